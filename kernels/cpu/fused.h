// The fused elementwise ops of a decoder on the CPU: residual + RMSNorm, rotary embedding + append to the KV pages, gated
// activation. Called by CpuDevice; arguments as in device.h. Every output depends on its own row only, and an element's
// arithmetic does not depend on where in a vector it falls.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/fused_kernels.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"

namespace kvasir {

// residual, delta (may be nullptr), out [rows, width]; weight [width].
void CpuAddRmsNorm(const FusedKernels& kernels, ThreadTeam& team, float* residual, const float* delta, const float* weight,
                   float eps, int rows, int64_t width, float* out);

void CpuRopeAppend(const FusedKernels& kernels, ThreadTeam& team, const float* qkv, std::span<const int32_t> positions,
                   const RopeTable& rope, int num_q_heads, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv,
                   float* q_out);

// gate_up [rows, 2 * width], out [rows, width].
void CpuGatedSilu(const FusedKernels& kernels, ThreadTeam& team, const float* gate_up, int rows, int width, float* out);

}  // namespace kvasir
