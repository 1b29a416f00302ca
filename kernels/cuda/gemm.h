// Linear weights on CUDA: how they are packed and multiplied with, for every format of kernels/tensor.h and quant.h. Used by
// CudaDevice; arguments are those of the seam, all pointers are of the device.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/step.h"
#include "kernels/device.h"

namespace kvasir {

// Refuse what makes no sense, or what there is no memory for.
StatusOr<Weight> CudaPackLinear(CudaContext& context, std::span<const HostMatrix> parts, DType dtype, QuantFormat quant);
StatusOr<Weight> CudaPackEmbedding(CudaContext& context, const HostMatrix& table, DType dtype);  // rows as they are, of `dtype`
StatusOr<Weight> CudaPackVector(CudaContext& context, std::span<const HostMatrix> parts);        // float32

void CudaLinear(CudaContext& context, const float* in, int rows, const Weight& weight, const Weight* bias, float* out);
void CudaLinearHeads(CudaContext& context, const float* in, int rows, std::span<const Weight> weights, const HeadLinear& at,
                     float* out);

}  // namespace kvasir
