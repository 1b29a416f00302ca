// The table of elementwise kernels of one ISA: norm, rotary embedding, activation, conversions. Used by fused.cc and
// by fused_kernels.cc (compiled once per ISA): plain pointers only.
#pragma once

#include <stdint.h>

namespace kvasir {

struct FusedKernels {
  // residual += delta (when not nullptr); out = residual / rms(residual) * weight. One row.
  void (*add_rms_norm)(float* residual, const float* delta, const float* weight, float eps, int64_t width, float* out);
  // One head: pairs (i, i + half) turned by cos, sin [half]; elements from 2 * half on are copied.
  void (*rotate)(const float* in, int head_dim, const float* cos, const float* sin, int half, float* out);
  // out[i] = silu(gate[i]) * up[i]
  void (*gated_silu)(const float* gate, const float* up, int64_t count, float* out);
  // Round to nearest even, as tensor.h defines. out must hold `count` elements.
  void (*to_f16)(const float* in, int64_t count, uint16_t* out);
  void (*to_bf16)(const float* in, int64_t count, uint16_t* out);
};

}  // namespace kvasir
