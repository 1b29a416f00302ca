// The emulation itself: what it computes, and that it ends the program where a kernel is wrong.
#include <gtest/gtest.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.cuh"
#include "kernels/rng.h"

namespace kvasir::gpu {
namespace {

struct Numbers {
  float values[64];
};

void Reverse(const float* in, float* out) {
  WaitForPreviousKernel();
  KVASIR_SHARED(Numbers, shared);
  shared.values[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  SyncBlock();
  out[blockIdx.x * 64 + threadIdx.x] = shared.values[63 - threadIdx.x];
}

struct DeviceArray {
  explicit DeviceArray(size_t bytes) : data(simt::DeviceAllocate(bytes)) {}
  ~DeviceArray() { simt::DeviceFree(data); }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data);
  }
  void* data;
};

TEST(Simt, BlocksShareMemoryAndMeet) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    simt::Seed(seed);
    const DeviceArray in(4 * 192), out(4 * 192);
    float host[192];
    for (int i = 0; i < 192; ++i) host[i] = float(i);
    cudaMemcpyAsync(in.data, host, sizeof host, cudaMemcpyHostToDevice, nullptr);
    Launch(Reverse, dim3(3), 64, sizeof(Numbers), nullptr, in.As<float>(), out.As<float>());
    cudaMemcpyAsync(host, out.data, sizeof host, cudaMemcpyDeviceToHost, nullptr);
    for (int i = 0; i < 192; ++i) EXPECT_EQ(host[i], float(i / 64 * 64 + 63 - i % 64));
  }
}

void Sums(float* out) {
  WaitForPreviousKernel();
  const float sum = WarpSum(float(threadIdx.x)), max = WarpMax(float(threadIdx.x));
  const uint32_t odd = Ballot(threadIdx.x % 2 == 1);
  if (Lane() == 0) {
    out[WarpIndex() * 3] = sum;
    out[WarpIndex() * 3 + 1] = max;
    out[WarpIndex() * 3 + 2] = float(odd == 0xaaaaaaaau);
  }
}

TEST(Simt, WarpsExchange) {
  const DeviceArray out(4 * 6);
  Launch(Sums, dim3(1), 64, 0, nullptr, out.As<float>());
  float host[6];
  cudaMemcpyAsync(host, out.data, sizeof host, cudaMemcpyDeviceToHost, nullptr);
  EXPECT_EQ(host[0], 496);
  EXPECT_EQ(host[1], 31);
  EXPECT_EQ(host[2], 1);
  EXPECT_EQ(host[3], 1520);
  EXPECT_EQ(host[4], 63);
}

// D[16, 8] = A[16, 16] B[16, 8]: A by LoadMatrices from rows, B by LoadMatricesTransposed from rows of k.
struct Tiles {
  alignas(16) uint16_t a[16][16], b[16][8];
};
void Multiply(const float* a, const float* b, float* d) {
  WaitForPreviousKernel();
  KVASIR_SHARED(Tiles, tiles);
  for (int i = int(threadIdx.x); i < 256; i += 32) tiles.a[i / 16][i % 16] = uint16_t(PackBf16(a[i], 0));
  for (int i = int(threadIdx.x); i < 128; i += 32) tiles.b[i / 8][i % 8] = uint16_t(PackBf16(b[i], 0));
  SyncWarp();
  uint32_t fa[4], fb4[4];
  LoadMatrices(fa, &tiles.a[Lane() % 16][Lane() / 16 * 8]);
  LoadMatricesTransposed(fb4, &tiles.b[Lane() % 16][0]);
  const uint32_t fb[2] = {fb4[0], fb4[1]};
  float sum[4] = {};
  MmaBf16(sum, fa, fb);
  const int g = Lane() / 4, t = Lane() % 4;
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

TEST(Simt, TensorCoresMultiply) {
  Rng rng(3);
  float a[256], b[128], d[128];
  for (float& x : a) x = float(rng.Between(-8, 8));
  for (float& x : b) x = float(rng.Between(-8, 8));
  const DeviceArray da(sizeof a), db(sizeof b), dd(sizeof d);
  cudaMemcpyAsync(da.data, a, sizeof a, cudaMemcpyHostToDevice, nullptr);
  cudaMemcpyAsync(db.data, b, sizeof b, cudaMemcpyHostToDevice, nullptr);
  Launch(Multiply, dim3(1), 32, sizeof(Tiles), nullptr, da.As<float>(), db.As<float>(), dd.As<float>());
  cudaMemcpyAsync(d, dd.data, sizeof d, cudaMemcpyDeviceToHost, nullptr);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float want = 0;
      for (int k = 0; k < 16; ++k) want += a[i * 16 + k] * b[k * 8 + j];
      EXPECT_EQ(d[i * 8 + j], want) << i << " " << j;
    }
  }
}

struct Lines {
  alignas(16) uint32_t words[32][4];
};
void CopyLines(const uint32_t* in, uint32_t* out, bool wait) {
  WaitForPreviousKernel();
  KVASIR_SHARED(Lines, lines);
  CopyAsync16(lines.words[threadIdx.x], in + threadIdx.x * 4, threadIdx.x != 5);
  CommitCopies();
  if (wait) WaitCopies<0>();
  SyncBlock();
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = lines.words[31 - threadIdx.x][i];
}

TEST(Simt, AsynchronousCopiesLandWhenWaitedFor) {
  uint32_t host[128];
  for (int i = 0; i < 128; ++i) host[i] = uint32_t(i + 1);
  const DeviceArray in(sizeof host), out(sizeof host);
  for (const bool wait : {false, true}) {
    simt::Seed(0);
    cudaMemcpyAsync(in.data, host, sizeof host, cudaMemcpyHostToDevice, nullptr);
    Launch(CopyLines, dim3(1), 32, sizeof(Lines), nullptr, in.As<uint32_t>(), out.As<uint32_t>(), wait);
    uint32_t got[128];
    cudaMemcpyAsync(got, out.data, sizeof got, cudaMemcpyDeviceToHost, nullptr);
    EXPECT_EQ(got[0], wait ? host[124] : 0xffffffffu);
    if (wait) {
      EXPECT_EQ(got[26 * 4], 0u);  // thread 5 copied nothing: zeros
    }
  }
}

void HalfMeets() {
  WaitForPreviousKernel();
  if (threadIdx.x < 16) SyncBlock();
}
void Mixed() {
  WaitForPreviousKernel();
  if (threadIdx.x % 2 == 0)
    SyncWarp();
  else
    Ballot(true);
}
void DoesNotWait() {}
void TooLittleShared() {
  WaitForPreviousKernel();
  KVASIR_SHARED(Numbers, shared);
  shared.values[0] = 1;
}

TEST(SimtDeathTest, WrongKernelsEndTheProgram) {
  EXPECT_DEATH((Launch(HalfMeets, dim3(1), 32, 0, nullptr), simt::RunQueued()), "threads wait for others");
  EXPECT_DEATH((Launch(Mixed, dim3(1), 32, 0, nullptr), simt::RunQueued()), "different warp-wide functions");
  EXPECT_DEATH((Launch(DoesNotWait, dim3(1), 32, 0, nullptr), simt::RunQueued()), "does not wait for the one before");
  EXPECT_DEATH((Launch(TooLittleShared, dim3(1), 32, 16, nullptr), simt::RunQueued()), "shared memory");
  const DeviceArray array(64);
  EXPECT_DEATH(*array.As<volatile float>() = 1, "");
}

}  // namespace
}  // namespace kvasir::gpu
