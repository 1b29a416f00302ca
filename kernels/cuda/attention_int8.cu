#include "kernels/cuda/attention_tile.cuh"

namespace kvasir {

void LaunchTileAttentionInt8(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units) {
  gpu::LaunchCodedTiles<KvQuant::kInt8>(context, args, tall, num_units);
}

}  // namespace kvasir
