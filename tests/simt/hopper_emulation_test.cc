// The emulation of what only Hopper has. Kernels that use it: tests/kernels/hopper_test.cc.
#include <gtest/gtest.h>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/rng.h"

namespace kvasir::gpu {
namespace {

struct DeviceFloats {
  explicit DeviceFloats(const std::vector<float>& host) : count(host.size()), data(simt::DeviceAllocate(4 * host.size())) {
    cudaMemcpyAsync(data, host.data(), 4 * count, cudaMemcpyHostToDevice, nullptr);
  }
  ~DeviceFloats() { simt::DeviceFree(data); }
  float* get() const { return static_cast<float*>(data); }
  std::vector<float> Back() const {
    std::vector<float> host(count);
    cudaMemcpyAsync(host.data(), data, 4 * count, cudaMemcpyDeviceToHost, nullptr);
    cudaStreamSynchronize(nullptr);
    return host;
  }
  size_t count;
  void* data;
};

std::vector<float> Whole(size_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> out(count);
  for (float& x : out) x = float(rng.Between(-8, 8));
  return out;
}

// D[64, 64 kBlocks] = A[64, 32] B[32, 64 kBlocks], with B laid out in one of the three ways by hand.
enum class Kind { kColumnsInRows, kDepthInRows, kPlain };
template <int kBlocks>
struct Operands {
  alignas(1024) unsigned char b[kBlocks * 64 * 128];
};
template <Kind kKind, DType kType, int kBlocks>
void MultiplyOnce(const float* a, const float* b, float* d, bool wait) {
  WaitForPreviousKernel();
  constexpr int kN = 64 * kBlocks, kK = 32;
  using Shared = Operands<kBlocks>;
  KVASIR_SHARED(Shared, s);
  const auto bits = [](float x) { return uint16_t(kType == DType::kBF16 ? PackBf16(x, 0) : PackF16(x, 0)); };
  for (int i = int(threadIdx.x); i < kK * kN; i += kWarpgroup) {
    const int k = i / kN, n = i % kN;
    int at = 0;
    if (kKind == Kind::kColumnsInRows) at = n * 128 + (k * 2 ^ n % 8 * 16);
    if (kKind == Kind::kDepthInRows) at = n / 64 * kK * 128 + k * 128 + (n % 64 * 2 ^ k % 8 * 16);
    if (kKind == Kind::kPlain) at = k / 8 * kN * 16 + n * 16 + k % 8 * 2;
    *reinterpret_cast<uint16_t*>(s.b + at) = bits(b[i]);
  }
  ShowToProducts();
  SyncBlock();
  const int row = WarpIndex() * 16 + Lane() / 4, column = Lane() % 4 * 2;
  float sums[kN / 2] = {};
  FenceProducts();
  for (int k = 0; k < kK; k += 16) {
    uint32_t fragment[4];
    for (int r = 0; r < 4; ++r) {
      const float* const from = a + (row + r % 2 * 8) * kK + k + column + r / 2 * 8;
      fragment[r] = uint32_t{bits(from[0])} | uint32_t{bits(from[1])} << 16;
    }
    const uint64_t matrix = kKind == Kind::kColumnsInRows ? ColumnsInRows(s.b + k * 2)
                            : kKind == Kind::kDepthInRows ? DepthInRows(s.b + k * 128, kK * 128)
                                                          : PlainMatrix(s.b + k / 8 * kN * 16, kN * 16, 128);
    Multiply<kType, kKind == Kind::kDepthInRows>(sums, fragment, matrix, k > 0);
  }
  CommitProducts();
  if (wait) WaitProducts<0>();
  for (int i = 0; i < kN / 2; ++i) d[(row + i / 2 % 2 * 8) * kN + i / 4 * 8 + column + i % 2] = sums[i];
}

template <Kind kKind, DType kType, int kBlocks>
void CheckProduct() {
  constexpr int kN = 64 * kBlocks, kK = 32;
  const std::vector<float> a = Whole(64 * kK, 1), b = Whole(kK * kN, 2);
  const DeviceFloats da(a), db(b), dd{std::vector<float>(64 * kN)};
  for (uint64_t seed = 0; seed < 4; ++seed) {
    simt::Seed(seed);
    Launch(MultiplyOnce<kKind, kType, kBlocks>, dim3(1), kWarpgroup, sizeof(Operands<kBlocks>), nullptr, da.get(), db.get(),
           dd.get(), true);
    const std::vector<float> d = dd.Back();
    for (int i = 0; i < 64 * kN; ++i) {
      float want = 0;
      for (int k = 0; k < kK; ++k) want += a[size_t(i / kN * kK + k)] * b[size_t(k * kN + i % kN)];
      ASSERT_EQ(d[size_t(i)], want) << "seed " << seed << " row " << i / kN << " column " << i % kN;
    }
  }
  simt::Seed(0);
}

TEST(Hopper, WarpgroupsMultiply) {
  CheckProduct<Kind::kColumnsInRows, DType::kBF16, 1>();
  CheckProduct<Kind::kColumnsInRows, DType::kF16, 2>();
  CheckProduct<Kind::kDepthInRows, DType::kBF16, 1>();
  CheckProduct<Kind::kDepthInRows, DType::kF16, 2>();
  CheckProduct<Kind::kPlain, DType::kBF16, 2>();
}

TEST(Hopper, ProductsAreThereWhenWaitedFor) {
  const DeviceFloats a(Whole(64 * 32, 1)), b(Whole(32 * 64, 2)), d{std::vector<float>(64 * 64)};
  simt::Seed(0);
  Launch(MultiplyOnce<Kind::kPlain, DType::kBF16, 1>, dim3(1), kWarpgroup, sizeof(Operands<1>), nullptr, a.get(), b.get(),
         d.get(), false);
  EXPECT_EQ(d.Back(), std::vector<float>(64 * 64));
}

// A warpgroup brings tiles of 64 x 16 floats' bits by boxes and in bulk, another one sums them.
constexpr int kTiles = 7, kRing = 2;
struct Ring {
  alignas(1024) uint16_t box[kRing][16][64];
  alignas(16) uint32_t plain[kRing][64];
  Barrier full[kRing], empty[kRing];
};
void PassOn(const TensorMap map, const uint32_t* plain, float* out, bool tell, int arrivals) {
  WaitForPreviousKernel();
  KVASIR_SHARED(Ring, s);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRing; ++i) {
      MakeBarrier(s.full[i], arrivals);
      MakeBarrier(s.empty[i], kWarpgroup);
    }
  }
  SyncBlock();
  if (threadIdx.x >= kWarpgroup) {
    for (int t = 0; t < kTiles && threadIdx.x == kWarpgroup; ++t) {
      Wait(s.empty[t % kRing], t / kRing % 2 ^ 1);
      ArriveExpecting(s.full[t % kRing], tell ? 16 * 128 + 256 : 256);
      CopyBox(s.box[t % kRing], map, 64, 16 * t, s.full[t % kRing]);
      CopyBulk(s.plain[t % kRing], plain + 64 * t, 256, s.full[t % kRing]);
    }
    return;
  }
  float sum = 0;
  for (int t = 0; t < kTiles; ++t) {
    Wait(s.full[t % kRing], t / kRing % 2);
    const int column = int(threadIdx.x) % 64;
    for (int row = 0; row < 16; ++row) sum += float(s.box[t % kRing][row][(column / 8 ^ row % 8) * 8 + column % 8]);
    sum += float(s.plain[t % kRing][column]);
    Arrive(s.empty[t % kRing]);
  }
  out[threadIdx.x] = sum;
}

TEST(Hopper, CopiesArriveAtBarriers) {
  constexpr int kColumns = 192, kRows = 16 * kTiles;
  std::vector<float> rows(kColumns * kRows / 2), plain(64 * kTiles);  // bits of other numbers
  auto* const numbers = reinterpret_cast<uint16_t*>(rows.data());
  auto* const words = reinterpret_cast<uint32_t*>(plain.data());
  for (int i = 0; i < kColumns * kRows; ++i) numbers[i] = uint16_t(i * 7 % 1000);
  for (int i = 0; i < 64 * kTiles; ++i) words[i] = uint32_t(i * 11 % 500);
  const DeviceFloats device_rows(rows), device_plain(plain), out{std::vector<float>(kWarpgroup)};
  TensorMap map;
  ASSERT_TRUE(MakeTensorMap(reinterpret_cast<const std::byte*>(device_rows.get()), kColumns, 16, map));
  const auto start = [&](bool tell, int arrivals) {
    Launch(PassOn, dim3(1), 2 * kWarpgroup, sizeof(Ring), nullptr, map, reinterpret_cast<const uint32_t*>(device_plain.get()),
           out.get(), tell, arrivals);
  };
  for (uint64_t seed = 0; seed < 6; ++seed) {
    simt::Seed(seed);
    start(true, 1);
    const std::vector<float> got = out.Back();
    for (int i = 0; i < kWarpgroup; ++i) {
      float want = 0;
      for (int row = 0; row < kRows; ++row) want += numbers[row * kColumns + 64 + i % 64];
      for (int t = 0; t < kTiles; ++t) want += float(words[64 * t + i % 64]);
      ASSERT_EQ(got[size_t(i)], want) << "seed " << seed << " column " << i;
    }
  }
  simt::Seed(0);
  EXPECT_DEATH((start(false, 1), simt::RunQueued()), "threads wait for others|under way|has landed");
  EXPECT_DEATH((start(true, 2), simt::RunQueued()), "threads wait for others");
}

}  // namespace
}  // namespace kvasir::gpu
