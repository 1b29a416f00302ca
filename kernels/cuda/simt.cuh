// The GPU as kernels see it: warps, shared memory, asynchronous copies and tensor cores, as thin wrappers with one meaning each.
// Used by everything in kernels/cuda that runs on the device.
//
// The same kernels are compiled a second time as host code (tests/simt: threads as fibers), where these wrappers are emulated,
// so that index arithmetic, masks, barriers and reduction orders are tested without a GPU. To keep that possible kernels
//  * use the wrappers below and plain C++; no inline PTX, no cooperative groups, no warp intrinsics of their own,
//  * take shared memory by KVASIR_SHARED only, of a size given at launch,
//  * call warp-wide functions with all lanes of the warp, and SyncBlock with all threads of the block,
//  * begin with WaitForPreviousKernel, in every thread,
//  * never wait for another block.
// A sum whose order is part of the answer is written with explicit fused or unfused steps (fmaf, __fmul_rn, __fadd_rn): else the
// compiler may contract it in one kernel and not in another.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#ifdef KVASIR_SIMT
#include "tests/simt/hardware.h"
#else

#define KVASIR_DEVICE __device__ __forceinline__
// Names the block's shared memory: `name` is a reference to a Type that lies at its start.
#define KVASIR_SHARED(Type, name)                                 \
  extern __shared__ __align__(1024) unsigned char shared_bytes[]; \
  auto& name = *reinterpret_cast<Type*>(shared_bytes)

namespace kvasir::gpu {

inline constexpr int kWarp = 32;

// --- threads --------------------------------------------------------------------------------------------------------------
KVASIR_DEVICE int Lane() {
  return int(threadIdx.x) % kWarp;  // blocks are one-dimensional
}
KVASIR_DEVICE int WarpIndex() {
  return int(threadIdx.x) / kWarp;
}
KVASIR_DEVICE void SyncBlock() {
  __syncthreads();
}
KVASIR_DEVICE void SyncWarp() {
  __syncwarp();
}
template <typename T>
KVASIR_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <typename T>
KVASIR_DEVICE T Shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
KVASIR_DEVICE uint32_t Ballot(bool value) {
  return __ballot_sync(0xffffffffu, value);
}
// A kernel may start before the one ahead of it in the stream is done (launch_ahead): nothing that one wrote may be read, nor
// anything written, before this.
KVASIR_DEVICE void WaitForPreviousKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// --- numbers --------------------------------------------------------------------------------------------------------------
// Two 16-bit floats in a register, the first in the low half. Round to nearest even.
KVASIR_DEVICE uint32_t PackBf16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
KVASIR_DEVICE uint32_t PackF16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
KVASIR_DEVICE float Bf16ToFloat(uint16_t bits) {
  return __uint_as_float(uint32_t{bits} << 16);
}
KVASIR_DEVICE float F16ToFloat(uint16_t bits) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
  return out;
}
// Both halves of two registers of 16-bit floats; each step is rounded.
KVASIR_DEVICE uint32_t SubF16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
KVASIR_DEVICE uint32_t MulF16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
KVASIR_DEVICE uint32_t FmaF16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}
// Bytes of a (0 .. 3) and b (4 .. 7), chosen by the hexadecimal digits of the selector, the lowest first.
KVASIR_DEVICE uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
// Two E4M3 codes in the low bytes, exactly; NaN stays NaN.
KVASIR_DEVICE uint32_t Fp8x2ToF16x2(uint32_t codes) {
#if __CUDA_ARCH__ >= 890
  uint32_t out;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(uint16_t(codes)));
  return out;
#else
  const uint32_t wide = __byte_perm(codes, 0, 0x1404);  // each code the high byte of its half
  const uint32_t out = MulF16x2((wide & 0x80008000u) | (wide & 0x7f007f00u) >> 1, 0x5c005c00u);  // exponents are biased by 8 less
  const uint32_t low = (wide & 0x7f00u) == 0x7f00u ? 0x7fffu : 0u;
  const uint32_t high = (wide & 0x7f000000u) == 0x7f000000u ? 0x7fff0000u : 0u;
  return out | low | high;
#endif
}
// 2^x, within 2 units in the last place; -inf gives 0.
KVASIR_DEVICE float Exp2(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// --- memory ---------------------------------------------------------------------------------------------------------------
// 16 bytes that are read once: they do not push others out of the L1 cache.
KVASIR_DEVICE uint4 LoadStreamed(const void* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}
// 16 bytes of global memory into shared memory, later; where not `valid`, zeros instead, and the source is not touched.
KVASIR_DEVICE void CopyAsync16(void* shared, const void* global, bool valid = true) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
KVASIR_DEVICE void CopyAsync4(void* shared, const void* global, bool valid = true) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(valid ? 4 : 0) : "memory");
}
// Closes a group of this thread's copies.
KVASIR_DEVICE void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kPending of this thread's groups are under way. Others see the data after a barrier.
template <int kPending>
KVASIR_DEVICE void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- tensor cores ---------------------------------------------------------------------------------------------------------
// Fragments of D[16, 8] += A[16, K] * B[K, 8], with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments"):
//   d[0], d[1]: row g,     columns 2t, 2t + 1        d[2], d[3]: row g + 8, the same columns
//   16-bit, K = 16: a[0]: row g, k 2t, 2t + 1   a[1]: row g + 8   a[2]: row g, k 2t + 8, 2t + 9   a[3]: row g + 8, k 2t + 8, ...
//                   b[0]: k 2t, 2t + 1 of column g   b[1]: k 2t + 8, 2t + 9
//   8-bit,  K = 32: a[0]: row g, k 4t .. 4t + 3   a[1]: row g + 8   a[2]: row g, k 4t + 16 ..   a[3]: row g + 8, k 4t + 16 ..
//                   b[0]: k 4t .. 4t + 3 of column g   b[1]: k 4t + 16 ..
KVASIR_DEVICE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
KVASIR_DEVICE void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Signed bytes, exact.
KVASIR_DEVICE void MmaS8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four 8 x 8 matrices of 16-bit elements from shared memory: lane i gives the address of row i % 8 of matrix i / 8 (16 bytes,
// aligned), and gets of matrix m, in r[m], the elements 2t, 2t + 1 of row g. Transposed: elements of column g instead (rows 2t
// and 2t + 1).
KVASIR_DEVICE void LoadMatrices(uint32_t (&r)[4], const void* shared_row) {
  const uint32_t at = uint32_t(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
KVASIR_DEVICE void LoadMatricesTransposed(uint32_t (&r)[4], const void* shared_row) {
  const uint32_t at = uint32_t(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

}  // namespace kvasir::gpu

#endif  // KVASIR_SIMT

namespace kvasir::gpu {

// All lanes get the same; the order of the sum is fixed: a butterfly.
KVASIR_DEVICE float WarpSum(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = __fadd_rn(value, ShuffleXor(value, mask));
  return value;
}
KVASIR_DEVICE float WarpMax(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = fmaxf(value, ShuffleXor(value, mask));
  return value;
}

}  // namespace kvasir::gpu
