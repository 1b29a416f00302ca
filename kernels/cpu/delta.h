// The ops of recurrent layers on the CPU (DeltaNet in device.h). Called by CpuDevice; arguments as there. Tokens of a text are
// taken one after another, whatever the step's chunk, so a state does not depend on how a prompt was cut.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/delta_kernels.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"

namespace kvasir {

void CpuCausalConv(const DeltaKernels& kernels, ThreadTeam& team, const float* in, int64_t in_stride, const DeltaNet& net,
                   const Weight& weight, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv, float* out);
void CpuDeltaRule(const DeltaKernels& kernels, ThreadTeam& team, const float* qkv, const float* gates, int64_t gate_stride,
                  const DeltaNet& net, const Weight& a_log, const Weight& dt_bias, int layer,
                  std::span<const SequenceSlice> slices, const PagedKv& kv, float* out);

}  // namespace kvasir
