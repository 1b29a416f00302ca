// The kernel that a step begins with: it writes what the host only describes. Used by StepTables, and by attention that comes
// without a step.
#pragma once

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/resident_tables.h"

namespace kvasir {

// All of the device.
struct StepWrites {
  const AttentionRange* ranges = nullptr;
  int32_t num_ranges = 0;
  int32_t num_updates = 0;
  AttentionUnit* units = nullptr;
  const TableUpdate* updates = nullptr;
  const uint32_t* words = nullptr;
};
// Room for so many units, rounded up so that a steady state takes no more; nullptr when the context has failed.
AttentionUnit* TakeUnits(CudaContext& context, CudaContext::Scratch use, int64_t count);
void WriteStep(CudaContext& context, const StepWrites& writes);

}  // namespace kvasir
