// Mixture of experts on CUDA: routing and the experts' products. Used by CudaDevice; arguments are those of the seam, all
// pointers are of the device.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/step.h"
#include "kernels/device.h"

namespace kvasir {

void CudaRoute(CudaContext& context, const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights);
void CudaExperts(CudaContext& context, const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation,
                 int top_k, const int32_t* ids, const float* weights, float* out);

}  // namespace kvasir
