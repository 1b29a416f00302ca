// The elementwise ops, norms, rotations and copies of the seam (kernels/device.h) on CUDA. Every row is computed by one block in
// a fixed order. Used by CudaDevice; arguments are those of the seam, all pointers are of the device.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/step.h"
#include "kernels/device.h"

namespace kvasir {

void CudaEmbed(CudaContext& context, const Weight& table, const int32_t* ids, int rows, float scale, float* out);
void CudaAddNorm(CudaContext& context, float* residual, const float* delta, float delta_scale, const Norm& norm, int rows,
                 int width, float* out);
void CudaAdd(CudaContext& context, float* residual, const float* delta, float scale, int rows, int width);
void CudaAddGated(CudaContext& context, float* residual, const float* in, const float* gate, int rows, int width);
void CudaNormSlices(CudaContext& context, float* data, int rows, const Slices& slices, const Norm& norm);
void CudaRotateSlices(CudaContext& context, float* data, int rows, const Slices& slices, std::span<const int32_t> positions,
                      const int32_t* positions_on_device, const RopeTable& rope);
void CudaCopySlices(CudaContext& context, const float* in, const Slices& from, int rows, float* out, const Slices& to);
void CudaActivate(CudaContext& context, const ActivationParams& activation, bool gated, const float* in, int rows, int width,
                  float* out);
void CudaScaleRows(CudaContext& context, float* data, int rows, int width, float scale, float softcap);
void CudaMultiplyGate(CudaContext& context, float* data, GateKind kind, const float* gate, int64_t gate_stride, int rows,
                      int width);
void CudaGatherRows(CudaContext& context, const float* in, std::span<const int32_t> row_ids, int width, float* out);

}  // namespace kvasir
