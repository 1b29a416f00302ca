#include "kernels/cuda/attention_tile.cuh"

namespace kvasir {

void LaunchTileAttentionBf16(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units) {
  gpu::LaunchTiles<DType::kBF16>(context, args, tall, num_units);
}

}  // namespace kvasir
