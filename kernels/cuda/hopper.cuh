// Hopper (sm_90a) as kernels see it, beside simt.cuh: barriers in shared memory, bulk copies that arrive at them, and products of
// a warpgroup that run by themselves. Used by attention_hopper.cu and linear_hopper.cu, which are compiled for that architecture
// only. tests/simt emulates all of it: addresses, swizzle, what is asynchronous, and barriers nobody comes to.
//
// A warpgroup is 128 threads, its first a multiple of 128. Functions "of a warpgroup" are called with all of them.
#pragma once

#include "kernels/cuda/simt.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/tensor.h"

namespace kvasir::gpu {

inline constexpr int kWarpgroup = 128;

// In shared memory. A phase is over when all arrivals it was made for have come, and all bytes that were announced have landed;
// phases count from 0, so the parity of the first is 0, and waiting for parity 1 of a fresh barrier does not wait.
struct alignas(8) Barrier {
  uint64_t bits;
};

// What the tensor cores read in shared memory: the right factor of a product, B[16, N] of 16-bit numbers.
//  Swizzled rows: rows of 128 bytes at multiples of 1024, as CopyBox leaves them: 16 bytes at byte c of row r are at
//  c ^ 16 (r % 8).
//   * ColumnsInRows: a row is a column of B, 16 numbers of it are its k. Eight rows are `group_bytes` after the eight before.
//   * DepthInRows: a row is 64 columns of one k. The next eight k are 1024 bytes on, the next 64 columns `block_bytes`.
//  Plain: 8 columns by 8 k are 128 bytes, a column's 16 together. The next eight k are `depth_bytes` on, the next 8 columns
//  `column_bytes`.
// `at` is where the first number lies before the swizzle; in the first case it may be further on in the row.
KVASIR_DEVICE uint64_t ColumnsInRows(const void* at, int group_bytes = 1024);
KVASIR_DEVICE uint64_t DepthInRows(const void* at, int block_bytes);
KVASIR_DEVICE uint64_t PlainMatrix(const void* at, int depth_bytes, int column_bytes);

}  // namespace kvasir::gpu

#ifdef KVASIR_SIMT
#include "tests/simt/hopper_hardware.h"
#else

namespace kvasir::gpu {

KVASIR_DEVICE uint32_t SharedAddress(const void* at) {
  return uint32_t(__cvta_generic_to_shared(at));
}

// --- barriers -------------------------------------------------------------------------------------------------------------
// By one thread, before SyncBlock, behind which all may use it.
KVASIR_DEVICE void MakeBarrier(Barrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(&barrier)), "r"(arrivals) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
KVASIR_DEVICE void Arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(&barrier)) : "memory");
}
// Arrives, and announces bytes of bulk copies that are started afterwards.
KVASIR_DEVICE void ArriveExpecting(Barrier& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(&barrier)), "r"(bytes) : "memory");
}
KVASIR_DEVICE void Wait(Barrier& barrier, int parity) {
  uint32_t over = 0;
  while (over == 0) {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(SharedAddress(&barrier)), "r"(parity)
                 : "memory");
  }
}
// So many threads of the block meet. Numbers 1 to 15.
template <int kNumber>
KVASIR_DEVICE void SyncThreads(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(kNumber), "r"(threads) : "memory");
}
// What this thread has written to shared memory is seen by products and bulk copies; others' threads after a barrier.
KVASIR_DEVICE void ShowToProducts() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- bulk copies ----------------------------------------------------------------------------------------------------------
// By one thread. 16 bytes divide addresses and length.
KVASIR_DEVICE void CopyBulk(void* shared, const void* global, int bytes, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(&barrier))
      : "memory");
}
// A box of the map whose first element is column x of row y, swizzled; `shared` at a multiple of 1024.
KVASIR_DEVICE void CopyBox(void* shared, const TensorMap& map, int x, int y, Barrier& barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                   SharedAddress(shared)),
               "l"(&map), "r"(x), "r"(y), "r"(SharedAddress(&barrier))
               : "memory");
}

// --- products -------------------------------------------------------------------------------------------------------------
KVASIR_DEVICE uint64_t MatrixBits(const void* at, int leading_bytes, int stride_bytes, uint64_t swizzle) {
  const auto field = [](uint32_t bytes) { return uint64_t(bytes >> 4 & 0x3fffu); };
  return field(SharedAddress(at)) | field(uint32_t(leading_bytes)) << 16 | field(uint32_t(stride_bytes)) << 32 | swizzle << 62;
}
KVASIR_DEVICE uint64_t ColumnsInRows(const void* at, int group_bytes) {
  return MatrixBits(at, 16, group_bytes, 1);
}
KVASIR_DEVICE uint64_t DepthInRows(const void* at, int block_bytes) {
  return MatrixBits(at, block_bytes, 1024, 1);
}
KVASIR_DEVICE uint64_t PlainMatrix(const void* at, int depth_bytes, int column_bytes) {
  return MatrixBits(at, depth_bytes, column_bytes, 0);
}

// Of a warpgroup. Before products whose registers have been touched since the last ones.
KVASIR_DEVICE void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
KVASIR_DEVICE void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending groups are under way. Registers of the others, and what they read in shared memory, are free again.
template <int kPending>
KVASIR_DEVICE void WaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of registers across a wait.
template <int kCount>
KVASIR_DEVICE void KeepInPlace(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Of a warpgroup, asynchronously: D[64, N] = (add ? D : 0) + A[64, 16] * B[16, N]. Warp w of the group has rows 16 w to 16 w +
// 15; of these a lane has of A what it has in MmaBf16, and d[4 j ..] is what it has of D in columns 8 j to 8 j + 7. Both stay as
// they are until the product has been waited for. N is 64 or 128. kDepthInRows: B is of that kind.
#define KVASIR_EIGHT(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define KVASIR_PRODUCT_64(type)                                                          \
  asm volatile(                                                                          \
      "{ .reg .pred p; setp.ne.b32 p, %37, 0; "                                          \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                        \
      " {"                                                                               \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"   \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38; }"                                    \
      : KVASIR_EIGHT(d, 0), KVASIR_EIGHT(d, 8), KVASIR_EIGHT(d, 16), KVASIR_EIGHT(d, 24) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(int(kDepthInRows)))
#define KVASIR_PRODUCT_128(type)                                                                               \
  asm volatile(                                                                                                \
      "{ .reg .pred p; setp.ne.b32 p, %69, 0; "                                                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                             \
      " {"                                                                                                     \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                       \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                       \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                         \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70; }"                                                          \
      : KVASIR_EIGHT(d, 0), KVASIR_EIGHT(d, 8), KVASIR_EIGHT(d, 16), KVASIR_EIGHT(d, 24), KVASIR_EIGHT(d, 32), \
        KVASIR_EIGHT(d, 40), KVASIR_EIGHT(d, 48), KVASIR_EIGHT(d, 56)                                          \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(int(kDepthInRows)))
template <DType kType, bool kDepthInRows, int kHalfColumns>
KVASIR_DEVICE void Multiply(float (&d)[kHalfColumns], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(kHalfColumns == 32 || kHalfColumns == 64);
  if constexpr (kType == DType::kBF16) {
    if constexpr (kHalfColumns == 32)
      KVASIR_PRODUCT_64("bf16");
    else
      KVASIR_PRODUCT_128("bf16");
  } else {
    if constexpr (kHalfColumns == 32)
      KVASIR_PRODUCT_64("f16");
    else
      KVASIR_PRODUCT_128("f16");
  }
}
#undef KVASIR_PRODUCT_64
#undef KVASIR_PRODUCT_128
#undef KVASIR_EIGHT

// --- registers ------------------------------------------------------------------------------------------------------------
// Of a warpgroup: how many registers its threads have from here on. Those of a block must fit together.
template <int kCount>
KVASIR_DEVICE void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
KVASIR_DEVICE void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace kvasir::gpu

#endif  // KVASIR_SIMT
