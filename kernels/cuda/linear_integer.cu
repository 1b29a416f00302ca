#include "kernels/cuda/linear_kernels.cuh"

namespace kvasir {

void StartLinearInteger(CudaContext& context, const LinearCall& call, bool many) {
  if (call.layout.format == LinearFormat::kInt4) {
    StartLinear<LinearFormat::kInt4, 2>(context, call, many);
  } else {
    StartLinear<LinearFormat::kInt8, 2>(context, call, many);
  }
}

}  // namespace kvasir
