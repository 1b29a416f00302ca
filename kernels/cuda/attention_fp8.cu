#include "kernels/cuda/attention_tile.cuh"

namespace kvasir {

void LaunchTileAttentionFp8(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units) {
  gpu::LaunchCodedTiles<KvQuant::kFp8>(context, args, tall, num_units);
}

}  // namespace kvasir
