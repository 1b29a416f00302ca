// The table of Linear's micro-kernels of one ISA, and the layout of packed linear weights. Used by gemm.cc and pack.cc (ordinary
// code) and by gemm_kernels.cc (compiled once per ISA): plain pointers only.
//
// Layout: output features are cut into panels of 32 columns; a panel holds all of K, padded with zeros:
//   float32, float16: [K][32]            bfloat16: [ceil(K / 2)][32][2], the pairs that vdpbf16ps takes
//   fp8:    groups of float32 scale [32], then [inputs / 2][32][2] codes
//   mxfp4:  groups of 32 inputs, E8M0 scale [32] (2^(byte - 127)), then [16][32] bytes, the first of a pair in the low half
// so the share of a thread is one contiguous stream, for one row (decode) and for many (prefill) alike. It is the same on every
// ISA.
//
// Reduction order: an output element is one chain of multiply-adds over k = 0, 1, 2, ... in one float32 accumulator (bfloat16 on
// avx512_bf16: over pairs, as the instruction defines), then the bias. It is the same chain in every tile shape;
// fp8 adds up one such chain for each group, times its scale. It does depend on the ISA: avx2 and avx512 fuse multiply and add,
// portable does not, vdpbf16ps also flushes subnormals.
#pragma once

#include <stdint.h>

#include "kernels/cpu/quant_kernels.h"

namespace kvasir {

struct GemmKernels {
  // out[r * out_stride + j] = sum over k of a[r][k] * panel[k][j] (+ bias[j]) for r < rows <= max_rows and j < columns <= 32.
  // a: row r starts r * a_stride bytes after a. bias may be null. k counts elements, not pairs.
  using Tile = void (*)(const void* a, int64_t a_stride, int rows, const void* panel, int64_t k, const float* bias, float* out,
                        int64_t out_stride, int columns);
  int max_rows = 0, strip_rows = 0;
  Tile f32 = nullptr;   // a: float32, not padded
  Tile f16 = nullptr;   // a: float32, not padded
  Tile bf16 = nullptr;  // a: what round_bf16 wrote
  // a: the same. `group`: inputs that share a scale, an even number; the last group may be shorter.
  using Fp8Tile = void (*)(const void* a, int64_t a_stride, int rows, const void* panel, int64_t k, int64_t group,
                           const float* bias, float* out, int64_t out_stride, int columns);
  Fp8Tile fp8 = nullptr;
  Tile mxfp4 = nullptr;  // a: the same
  // Rounds a row of k activations to bfloat16 (nearest, ties to even) in the form the bf16 tile reads, with a zero after an odd
  // k.
  void (*round_bf16)(const float* in, int64_t k, void* out) = nullptr;
  int bf16_bytes = 0;  // of one rounded activation: 2 (bfloat16) or 4 (its value as float32)
  const QuantKernels* quant = nullptr;
};

}  // namespace kvasir
