#include "kernels/cuda/attention_tile.cuh"

namespace kvasir {

void LaunchTileAttentionF16(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units) {
  gpu::LaunchTiles<DType::kF16>(context, args, tall, num_units);
}

}  // namespace kvasir
