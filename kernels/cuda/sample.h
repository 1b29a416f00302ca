// Sampling and scoring on CUDA. Used by CudaDevice; arguments are those of the seam, all pointers are of the device.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/results.h"
#include "kernels/device.h"

namespace kvasir {

void CudaSample(CudaContext& context, StepResults& step, const float* logits, int vocab, std::span<const SampleRow> rows,
                std::span<SampleResult> results);
void CudaScoreTokens(CudaContext& context, StepResults& step, const float* logits, int vocab, std::span<const int32_t> tokens,
                     std::span<const int32_t> num_top, std::span<SampleResult> results);

}  // namespace kvasir
