// Recurrent layers on CUDA: the causal convolution and the gated delta rule. Used by CudaDevice; arguments are those of the seam,
// all pointers are of the device.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/step.h"
#include "kernels/device.h"

namespace kvasir {

void CudaCausalConv(CudaContext& context, const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight,
                    int layer, const StepKv& kv, float* out);
void CudaDeltaRule(CudaContext& context, const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net,
                   const Weight& a_log, const Weight& dt_bias, int layer, const StepKv& kv, float* out);

}  // namespace kvasir
