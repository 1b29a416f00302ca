// How linear weights and the activations they are multiplied with lie on the device, and what a product is asked for. Used by
// pack.cu, gemm.cu, experts.cu and the kernels in linear_kernels.cuh.
//
// Weights are the first operand of the tensor cores (16 rows of a tile are outputs), activations the second (8 tokens). Both are
// stored as the lanes of a warp hold them: for every tile of 16 outputs (8 tokens) and every stage of 64 inputs, lane after lane,
// 16 bytes at a time, so that every load of a warp is one contiguous run and shared memory needs no swizzle. Rows and inputs are
// padded with zeros.
//   16-bit floats: four runs of 512 bytes for k 0-15, 16-31, ...: the four registers of an m16n8k16 fragment
//   int8: two runs, the fragments of m16n8k32          int4: one run, the second fragment's bytes in the high nibbles of the
//   first's fp8: two runs; a lane's bytes are its elements of two m16n8k16 fragments      mxfp4: one run, of four fragments
// Scales follow, for each tile and group those of rows g and g + 8 side by side: 16 bits of int8, scale and low of int4, float32
// of fp8, the exponent byte of mxfp4. Then the order of inputs, where the weight has one. float32 weights are plain rows.
//
// Sums: K is cut into chunks of 8 stages; within a chunk a sum goes from zero in the order of k (tensor cores; quantised weights:
// as quant.h says), and the chunks are added in order in float32. Every kernel does exactly this, whatever the number of rows.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/tensor.h"

namespace kvasir {

enum class LinearFormat : uint8_t { kF32, kF16, kBF16, kInt8, kInt4, kFp8, kMxfp4 };

inline constexpr int kTileRows = 16, kTileTokens = 8, kStageCols = 64, kChunkStages = 8;
inline constexpr int kBlockTiles = 16;  // of tokens, of a block on warpgroups

constexpr bool IsInteger(LinearFormat format) {
  return format == LinearFormat::kInt8 || format == LinearFormat::kInt4;
}
// Runs of 16 bytes per lane in a stage of weights, and of activations.
constexpr int WeightRuns(LinearFormat format) {
  if (format == LinearFormat::kInt4 || format == LinearFormat::kMxfp4) return 1;
  return format == LinearFormat::kInt8 || format == LinearFormat::kFp8 ? 2 : 4;
}
inline constexpr int kFewTokens = 64;  // up to here weights are what is read
constexpr int InputRuns(LinearFormat format) {
  return IsInteger(format) ? 1 : 2;
}

struct LinearLayout {
  LinearFormat format = LinearFormat::kF32;
  int64_t rows = 0, cols = 0;
  int row_tiles = 0, stages = 0, blocks = 0;  // blocks of kQuantBlock inputs, without padding
  int groups = 0, blocks_per_group = 1;
  size_t scales = 0, order = 0, bytes = 0;  // offsets, and all of it
};
LinearLayout LayoutOf(const Weight& weight);

// One product of a call: tokens against a weight. Tiles of activations count from first_tile.
struct LinearTask {
  const std::byte* weight = nullptr;
  const float* bias = nullptr;
  float* out = nullptr;  // row i at out + i * out_stride of the call
  int32_t first_tile = 0;
  int32_t tokens = 0;
};

// Passed to kernels by value.
struct LinearCall {
  LinearLayout layout;
  const std::byte* inputs = nullptr;     // [tile][stage]
  const float* scales = nullptr;         // integer weights: [tile][block][8] of activations
  const float* sums = nullptr;           // int4: [tile][block][8]: scale * sum of codes
  const float* token_factors = nullptr;  // float16 weights: [token] a power of two that results are multiplied with
  int64_t out_stride = 0;
  LinearTask single;
  const LinearTask* tasks = nullptr;  // on the device; nullptr: only `single`
  int num_tasks = 1;
  // Chosen before activations are converted: for the kernel on warpgroups they lie, for each block of 128 tokens and stage, in
  // eight runs of 8 inputs, in each 16 bytes of token after token.
  bool warpgroups = false;
  int max_tokens = 0;      // of a task
  int typical_tokens = 0;  // of most tasks: chooses the kernel. 0 = max_tokens
};

// Activations as LinearCall wants them.
struct InputSource {
  const float* in = nullptr;
  int64_t stride = 0;
  int tokens = 0;                   // rows of `in`, or entries of gather
  const int32_t* gather = nullptr;  // on the device: row of each token, -1: a token of zeros
  int batch = 1;                    // such matrices, each with tiles of its own
  int64_t batch_stride = 0;
};
constexpr int TokenTiles(int tokens) {
  return (tokens + kTileTokens - 1) / kTileTokens;
}
// Fills inputs, scales, sums and token_factors of the call from context scratch. `order` as in the weight, or nullptr.
void ConvertInputs(CudaContext& context, const InputSource& source, const int32_t* order, LinearCall& call);
// Runs the call; dispatches on format and max_tokens.
void RunLinear(CudaContext& context, const LinearCall& call);

// Kernels of the formats, in files of their own. `many`: for more than kFewTokens of a task.
void StartLinearFloat16(CudaContext& context, const LinearCall& call, bool many);
void StartLinearInteger(CudaContext& context, const LinearCall& call, bool many);
void StartLinearFloat8(CudaContext& context, const LinearCall& call, bool many);
// One task, of a format that HopperTakes, on sm_90.
constexpr bool HopperTakes(LinearFormat format) {
  return format == LinearFormat::kBF16 || format == LinearFormat::kF16 || format == LinearFormat::kMxfp4;
}
void StartLinearHopper(CudaContext& context, const LinearCall& call);

}  // namespace kvasir
