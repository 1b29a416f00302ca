// The wrappers of kernels/cuda/simt.cuh as host code. Included by it, with KVASIR_SIMT defined.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/tensor.h"
#include "tests/simt/simt.h"

#define KVASIR_DEVICE inline
#define KVASIR_SHARED(Type, name) auto& name = ::kvasir::gpu::Shared<Type>()

#define threadIdx (::kvasir::simt::Here().thread)
#define blockIdx (::kvasir::simt::Here().block)
#define blockDim (::kvasir::simt::Here().block_dim)
#define gridDim (::kvasir::simt::Here().grid_dim)

// Unfused steps: the emulation is compiled with -ffp-contract=off.
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
inline float __uint_as_float(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t out;
  std::memcpy(&out, &value, 4);
  return out;
}
inline int __float2int_rn(float x) {
  return int(std::nearbyint(x));
}
inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int max(int a, int b) {
  return a > b ? a : b;
}
inline int __popc(uint32_t x) {
  return __builtin_popcount(x);
}
inline int __ffs(uint32_t x) {
  return __builtin_ffs(int(x));
}
inline int __clz(uint32_t x) {
  return x == 0 ? 32 : __builtin_clz(x);
}
template <typename T>
T atomicAdd(T* address, T value) {  // blocks and fibers never run at the same time
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <typename T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
inline void __threadfence() {}

namespace kvasir::gpu {

inline constexpr int kWarp = 32;

template <typename T>
T& Shared() {
  if (simt::SharedBytes() < sizeof(T)) {
    std::fprintf(stderr, "simt: a kernel uses %zu bytes of shared memory, the launch gave %zu\n", sizeof(T), simt::SharedBytes());
    std::abort();
  }
  return *reinterpret_cast<T*>(simt::SharedMemory());
}

inline int Lane() {
  return int(threadIdx.x) % kWarp;
}
inline int WarpIndex() {
  return int(threadIdx.x) / kWarp;
}
inline void SyncBlock() {
  simt::MeetBlock();
}
inline void SyncWarp() {
  simt::MeetWarp("SyncWarp", nullptr, [](void* const*, int) {});
}

template <typename T>
struct Exchange {
  T value;
  int lane;
  T result;
};

template <typename T>
T Shuffle(T value, int lane) {
  Exchange<T> mine = {value, lane, value};
  simt::MeetWarp("Shuffle", &mine, [](void* const* all, int lanes) {
    for (int i = 0; i < lanes; ++i) {
      auto* to = static_cast<Exchange<T>*>(all[i]);
      const int from = to->lane & (kWarp - 1);
      if (from < lanes) to->result = static_cast<Exchange<T>*>(all[from])->value;
    }
  });
  return mine.result;
}
template <typename T>
T ShuffleXor(T value, int mask) {
  return Shuffle(value, Lane() ^ mask);
}
inline uint32_t Ballot(bool value) {
  struct Vote {
    bool value;
    uint32_t result;
  } mine = {value, 0};
  simt::MeetWarp("Ballot", &mine, [](void* const* all, int lanes) {
    uint32_t bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= uint32_t{static_cast<Vote*>(all[i])->value} << i;
    for (int i = 0; i < lanes; ++i) static_cast<Vote*>(all[i])->result = bits;
  });
  return mine.result;
}
inline void WaitForPreviousKernel() {
  simt::WaitForPrevious();
}

inline uint32_t PackBf16(float low, float high) {
  return uint32_t{F32ToBF16(low)} | uint32_t{F32ToBF16(high)} << 16;
}
inline uint32_t PackF16(float low, float high) {
  return uint32_t{F32ToF16(low)} | uint32_t{F32ToF16(high)} << 16;
}
inline float Bf16ToFloat(uint16_t bits) {
  return BF16ToF32(bits);
}
inline float F16ToFloat(uint16_t bits) {
  return F16ToF32(bits);
}
template <typename Op>
uint32_t BothHalves(Op op) {
  return uint32_t{F32ToF16(op(0))} | uint32_t{F32ToF16(op(16))} << 16;
}
inline float HalfAt(uint32_t pair, int shift) {
  return F16ToF32(uint16_t(pair >> shift));
}
inline uint32_t SubF16x2(uint32_t a, uint32_t b) {
  return BothHalves([&](int at) { return HalfAt(a, at) - HalfAt(b, at); });
}
inline uint32_t MulF16x2(uint32_t a, uint32_t b) {
  return BothHalves([&](int at) { return HalfAt(a, at) * HalfAt(b, at); });
}
// Rounded once only where the sum fits a float.
inline uint32_t FmaF16x2(uint32_t a, uint32_t b, uint32_t c) {
  return BothHalves([&](int at) { return std::fma(HalfAt(a, at), HalfAt(b, at), HalfAt(c, at)); });
}
inline uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= uint32_t(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}
inline uint32_t Fp8x2ToF16x2(uint32_t codes) {
  return uint32_t{F32ToF16(Fp8E4M3ToF32(uint8_t(codes)))} | uint32_t{F32ToF16(Fp8E4M3ToF32(uint8_t(codes >> 8)))} << 16;
}
inline float Exp2(float x) {
  return std::exp2(x);
}

inline uint4 LoadStreamed(const void* address) {
  uint4 v;
  std::memcpy(&v, address, 16);
  return v;
}
inline void CopyAsync16(void* shared, const void* global, bool valid = true) {
  simt::CopyLater(shared, global, 16, valid);
}
inline void CopyAsync4(void* shared, const void* global, bool valid = true) {
  simt::CopyLater(shared, global, 4, valid);
}
inline void CommitCopies() {
  simt::CloseCopies();
}
template <int kPending>
void WaitCopies() {
  simt::FinishCopies(kPending);
}

// A[16][K], B[8][K] (column by column) and D[16][8] of a warp, from and to its lanes' fragments.
template <typename Acc>
struct MmaLane {
  Acc* d;
  const uint32_t *a, *b;
};

template <typename Acc, int kK, typename Convert>
void MultiplyFragments(void* const* all, int lanes, Convert convert) {
  if (lanes != kWarp) std::abort();
  constexpr int kPerRegister = kK / 8;  // elements: 2 of 16 bits, 4 of 8
  Acc a[16][kK], b[8][kK];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& f = *static_cast<const MmaLane<Acc>*>(all[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int e = 0; e < kPerRegister; ++e) {
      const int k = kPerRegister * t + e, half = kK / 2;
      a[g][k] = convert(f.a[0], e), a[g + 8][k] = convert(f.a[1], e);
      a[g][k + half] = convert(f.a[2], e), a[g + 8][k + half] = convert(f.a[3], e);
      b[g][k] = convert(f.b[0], e), b[g][k + half] = convert(f.b[1], e);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& f = *static_cast<const MmaLane<Acc>*>(all[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      Acc sum = 0;
      for (int k = 0; k < kK; ++k) sum += a[row][k] * b[column][k];
      f.d[i] += sum;
    }
  }
}

inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaLane<float> mine = {d, a, b};
  simt::MeetWarp("MmaBf16", &mine, [](void* const* all, int lanes) {
    MultiplyFragments<float, 16>(all, lanes, [](uint32_t r, int e) { return BF16ToF32(uint16_t(r >> 16 * e)); });
  });
}
inline void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaLane<float> mine = {d, a, b};
  simt::MeetWarp("MmaF16", &mine, [](void* const* all, int lanes) {
    MultiplyFragments<float, 16>(all, lanes, [](uint32_t r, int e) { return F16ToF32(uint16_t(r >> 16 * e)); });
  });
}
inline void MmaS8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaLane<int32_t> mine = {d, a, b};
  simt::MeetWarp("MmaS8", &mine, [](void* const* all, int lanes) {
    MultiplyFragments<int32_t, 32>(all, lanes, [](uint32_t r, int e) { return int32_t(int8_t(r >> 8 * e)); });
  });
}

struct MatrixLane {
  const void* row;
  uint32_t* r;
};

template <bool kTransposed>
void GatherMatrices(void* const* all, int lanes) {
  if (lanes != kWarp) std::abort();
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const void* from = static_cast<const MatrixLane*>(all[m * 8 + row])->row;
      if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
        std::fprintf(stderr, "simt: a row of LoadMatrices is not aligned to 16 bytes\n");
        std::abort();
      }
      std::memcpy(matrix[row], from, 16);
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint16_t low = kTransposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint16_t high = kTransposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      static_cast<const MatrixLane*>(all[lane])->r[m] = uint32_t{low} | uint32_t{high} << 16;
    }
  }
}

inline void LoadMatrices(uint32_t (&r)[4], const void* shared_row) {
  MatrixLane mine = {shared_row, r};
  simt::MeetWarp("LoadMatrices", &mine, GatherMatrices<false>);
}
inline void LoadMatricesTransposed(uint32_t (&r)[4], const void* shared_row) {
  MatrixLane mine = {shared_row, r};
  simt::MeetWarp("LoadMatricesTransposed", &mine, GatherMatrices<true>);
}

}  // namespace kvasir::gpu
