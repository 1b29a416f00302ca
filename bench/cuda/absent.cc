// In a build without CUDA.
#include "bench/cuda/kernel_bench.h"
#include "kernels/device.h"

namespace kvasir {

Status RunCudaBench(const CudaBenchOptions& /*options*/) {
  return MakeCudaDevice().status();  // says what to do
}

}  // namespace kvasir
