// What the host does to begin a step of decoding on the CUDA backend (Device::StartStep): tables, plans and what is uploaded, at
// 256 sequences of several lengths. Kernels do not matter, so it can be measured without a GPU: tests/simt runs it over the
// emulated one.
#pragma once

#include <functional>
#include <vector>

#include "bench/result.h"
#include "kernels/cuda/cuda_device.h"

namespace kvasir {

// `idle` is called between steps: it waits for what they have started, or forgets it.
StatusOr<std::vector<BenchResult>> BenchStepHost(CudaDevice& device, const std::function<void()>& idle);

}  // namespace kvasir
