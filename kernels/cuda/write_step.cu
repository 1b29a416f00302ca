#include "kernels/cuda/write_step.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {
namespace gpu {
namespace {

constexpr int kThreads = 64;

// A block for each range, and then for each update.
__global__ void __launch_bounds__(kThreads) WriteStepKernel(StepWrites writes) {
  WaitForPreviousKernel();
  const int item = int(blockIdx.x), thread = int(threadIdx.x);
  if (item >= writes.num_ranges) {
    const TableUpdate update = writes.updates[item - writes.num_ranges];
    for (int i = thread; i < update.count; i += kThreads) update.to[i] = writes.words[update.first + i];
    return;
  }
  const AttentionRange range = writes.ranges[item];
  for (int i = thread; i < range.count; i += kThreads) {
    AttentionUnit unit = range.unit;
    unit.ordinal += i;
    writes.units[range.at + i] = unit;
  }
  if (thread == 0 && range.merge >= 0) writes.units[range.merge] = range.unit;
}

}  // namespace
}  // namespace gpu

AttentionUnit* TakeUnits(CudaContext& context, CudaContext::Scratch use, int64_t count) {
  constexpr int64_t kLeast = 1024;
  return context.Temporary<AttentionUnit>(use, std::bit_ceil(size_t(std::max(count, kLeast))));
}

void WriteStep(CudaContext& context, const StepWrites& writes) {
  const int blocks = writes.num_ranges + writes.num_updates;
  if (blocks == 0 || !context.status().ok()) return;
  Launch(gpu::WriteStepKernel, dim3(unsigned(blocks)), gpu::kThreads, 0, context.stream(), writes);
  context.CheckLaunch("writing a step");
}

}  // namespace kvasir
