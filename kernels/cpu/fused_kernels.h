// The table of elementwise kernels of one ISA: norm, rotary embedding, activation, conversions. Used by fused.cc and
// by fused_kernels.cc (compiled once per ISA): plain pointers only.
#pragma once

#include <stdint.h>

namespace kvasir {

struct FusedKernels {
  // residual += scale * delta (when not nullptr); out = norm(residual). One row; weight and bias may be null. [0] RMS, [1]
  // LayerNorm.
  void (*add_norm[2])(float* residual, const float* delta, float scale, const float* weight, const float* bias, float eps,
                      int64_t width, float* out);
  // One head: pairs (i, i + half) turned by cos, sin [half]; elements from 2 * half on are copied.
  void (*rotate)(const float* in, int head_dim, const float* cos, const float* sin, int half, float* out);
  // out[i] = act(in[i]) * up[i], or act(in[i]) when up is null. By Activation (device.h); alpha and limit are kSwigluOai's.
  void (*activate[6])(const float* in, const float* up, int64_t count, float* out, float alpha, float limit);
  // data[i] = softcap * tanh(scale * data[i] / softcap)
  void (*softcap)(float* data, int64_t count, float scale, float softcap);
  // data[i] *= sigmoid(gate[i]) or silu(gate[i]). By GateKind (device.h).
  void (*multiply_gate[2])(float* data, const float* gate, int64_t count);
  // residual[i] += scale * in[i]
  void (*add_scaled)(float* residual, const float* in, float scale, int64_t count);
  // Round to nearest even, as tensor.h defines. out must hold `count` elements.
  void (*to_f16)(const float* in, int64_t count, uint16_t* out);
  void (*to_bf16)(const float* in, int64_t count, uint16_t* out);
};

}  // namespace kvasir
