// Appending to pages and attention over them on CUDA. Used by CudaDevice; arguments are those of the seam, all pointers are of
// the device.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/step.h"
#include "kernels/device.h"

namespace kvasir {

void CudaRopeAppend(CudaContext& context, const float* qkv, std::span<const int32_t> positions,
                    const int32_t* positions_on_device, const RopeTable& rope, int num_q_heads, int layer, const StepKv& kv,
                    float* q_out);
void CudaAppendLatent(CudaContext& context, const float* latent, int layer, const StepKv& kv);
void CudaAttention(CudaContext& context, const float* q, int layer, const AttentionParams& params, const StepKv& kv, float* out);

}  // namespace kvasir
