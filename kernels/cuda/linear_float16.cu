#include "kernels/cuda/linear_kernels.cuh"

namespace kvasir {

void StartLinearFloat16(CudaContext& context, const LinearCall& call, bool many) {
  if (call.layout.format == LinearFormat::kF16) {
    StartLinear<LinearFormat::kF16, 4>(context, call, many);
  } else {
    StartLinear<LinearFormat::kBF16, 4>(context, call, many);
  }
}

}  // namespace kvasir
