#include "kernels/cuda/linear_kernels.cuh"

namespace kvasir {

void StartLinearFloat8(CudaContext& context, const LinearCall& call, bool many) {
  if (call.layout.format == LinearFormat::kMxfp4) {
    StartLinear<LinearFormat::kMxfp4, 4>(context, call, many);
  } else {
    StartLinear<LinearFormat::kFp8, 2>(context, call, many);
  }
}

}  // namespace kvasir
