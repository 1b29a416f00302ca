// The elementwise ops of a decoder on the CPU: residual + norm, rotary embedding + append to the KV pages, activations. Called by
// CpuDevice; arguments as in device.h. Every output depends on its own row only, and an element's arithmetic does not depend on
// where in a vector it falls.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/fused_kernels.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"

namespace kvasir {

inline constexpr int64_t kGrainElements = 1 << 13;  // below this a piece is not worth handing to another thread

// What Device::PackVector made on the CPU; nullptr for none.
inline const float* Floats(const Weight* vector) {
  return vector != nullptr ? static_cast<const float*>(vector->packed) : nullptr;
}

void CpuAddNorm(const FusedKernels& kernels, ThreadTeam& team, float* residual, const float* delta, float delta_scale,
                const Norm& norm, int rows, int64_t width, float* out);
void CpuAdd(const FusedKernels& kernels, ThreadTeam& team, float* residual, const float* delta, float scale, int rows,
            int64_t width);
void CpuAddGated(const FusedKernels& kernels, ThreadTeam& team, float* residual, const float* in, const float* gate, int rows,
                 int64_t width);
void CpuNormSlices(const FusedKernels& kernels, ThreadTeam& team, float* data, int rows, const Slices& slices, const Norm& norm);
void CpuRotateSlices(const FusedKernels& kernels, ThreadTeam& team, float* data, int rows, const Slices& slices,
                     std::span<const int32_t> positions, const RopeTable& rope);
void CpuCopySlices(ThreadTeam& team, const float* in, const Slices& from, int rows, float* out, const Slices& to);
void CpuAppendLatent(const FusedKernels& kernels, ThreadTeam& team, const float* latent, int layer,
                     std::span<const SequenceSlice> slices, const PagedKv& kv);

void CpuRopeAppend(const FusedKernels& kernels, ThreadTeam& team, const float* qkv, std::span<const int32_t> positions,
                   const RopeTable& rope, int num_q_heads, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv,
                   float* q_out);

void CpuActivate(const FusedKernels& kernels, ThreadTeam& team, const ActivationParams& activation, bool gated, const float* in,
                 int rows, int width, float* out);
void CpuMultiplyGate(const FusedKernels& kernels, ThreadTeam& team, float* data, GateKind kind, const float* gate,
                     int64_t gate_stride, int rows, int64_t width);
void CpuScaleRows(const FusedKernels& kernels, ThreadTeam& team, float* data, int rows, int64_t width, float scale,
                  float softcap);

}  // namespace kvasir
