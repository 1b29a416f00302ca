// The table of kernels of recurrent layers (DeltaNet in device.h) of one ISA. Used by delta.cc and by delta_kernels.cc (compiled
// once per ISA): plain pointers only.
#pragma once

#include <stdint.h>

namespace kvasir {

struct DeltaKernels {
  // out[c] = silu(sum over j of weight[j * stride + c] * rows[j][c]), by rising j
  void (*conv_silu)(const float* const* rows, const float* weight, int64_t stride, int kernel, int64_t count, float* out);
  // out = in * scale / sqrt(sum of squares + eps)
  void (*normalize)(const float* in, int64_t count, float eps, float scale, float* out);
  // One token of one head: state [key_dim, value_dim] *= decay; state += k (x) (beta * (v - state^T k)); out = state^T q
  void (*delta_step)(float* state, int key_dim, int value_dim, const float* q, const float* k, const float* v, float decay,
                     float beta, float* out);
};

}  // namespace kvasir
