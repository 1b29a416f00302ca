#include "kernels/cuda/attention_tile.cuh"

namespace kvasir {

void LaunchTileAttentionInt4(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units) {
  gpu::LaunchCodedTiles<KvQuant::kInt4>(context, args, tall, num_units);
}

}  // namespace kvasir
