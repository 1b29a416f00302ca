// Decoding and prompts of whole models on a GPU, weights made up, through the engine as the server drives it, beside the least
// time a step may take on this GPU: weights and KV read at the rate of its copies, or products at the rate of its matrix
// products, one after the other. Ids c7 and c8 of the benchmark set; "extreme" is a context of 128k, and 4,096 sequences in a
// step. Used by cuda_engine_bench.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/cuda/ceilings.h"
#include "bench/result.h"
#include "kernels/device.h"

namespace kvasir {

struct EngineShape {
  std::string id, name, config;  // config.json
  std::vector<int> batches;
  int context = 1024;  // tokens of each prompt
  int tokens = 64;     // decoded after it
  int prefix = 0;  // tokens of a prompt that is computed, and then brought back from the host's memory (c11); 0 = not measured
  int repetitions = 3;
};
std::vector<EngineShape> EngineShapes();

// What does not fit into the device's memory is left out, and said.
StatusOr<std::vector<BenchResult>> BenchEngineShape(Device& device, const EngineShape& shape, const CudaCeilings& machine);

}  // namespace kvasir
