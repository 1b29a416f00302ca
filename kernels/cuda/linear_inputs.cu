// Activations into the form that products read (linear_layout.h): rounded or quantised, in the order of tensor-core fragments.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / gpu::kWarp;
constexpr int kSpareTiles = 16;  // that kernels may read and whose results nobody keeps

struct Conversion {
  InputSource source;
  const int32_t* order;
  int64_t cols;
  int stages, blocks, tiles;  // tiles of tokens of one of the batch
  uint4* out;
  float* scales;
  float* sums;
  float* factors;  // of tokens, float16 only
  bool half, int4, warpgroups;
};

// The token's row, or nullptr where it is one of zeros. Tiles of the batch follow one another.
KVASIR_DEVICE const float* RowOf(const Conversion& c, int tile, int token_in_tile) {
  const int batch = tile / c.tiles, token = tile % c.tiles * kTileTokens + token_in_tile;
  if (batch >= c.source.batch || token >= c.source.tokens) return nullptr;
  const int64_t row = c.source.gather != nullptr ? c.source.gather[token] : token;
  return row < 0 ? nullptr : c.source.in + batch * c.source.batch_stride + row * c.source.stride;
}

KVASIR_DEVICE float Input(const Conversion& c, const float* row, int64_t k) {
  if (row == nullptr || k >= c.cols) return 0;
  return row[c.order != nullptr ? c.order[k] : k];
}

// A power of two that brings a row into float16: 1 unless its largest value would become infinite. A warp for each token.
__global__ void TokenFactorKernel(Conversion c, int64_t tokens) {
  gpu::WaitForPreviousKernel();
  const int64_t token = int64_t(blockIdx.x) * kWarps + gpu::WarpIndex();
  if (token >= tokens) return;  // a whole warp
  const float* const row = RowOf(c, int(token / kTileTokens), int(token % kTileTokens));
  float most = 0;
  for (int64_t k = gpu::Lane(); row != nullptr && k < c.cols; k += gpu::kWarp) most = fmaxf(most, fabsf(row[k]));
  most = gpu::WarpMax(most);
  float factor = 1;
  if (most >= 32768.0f && most <= 3.4028234e38f) {
    const uint32_t exponent = __float_as_uint(most) >> 23;        // of 2^(exponent - 127) <= most
    factor = __uint_as_float((exponent - 127 - 14 + 127) << 23);  // most / factor is in [2^14, 2^15)
  }
  if (gpu::Lane() == 0) c.factors[token] = factor;
}

// A warp for each tile of tokens and stage; lane (g, t) has token g.
__global__ void ConvertFloatsKernel(Conversion c, int64_t items) {
  gpu::WaitForPreviousKernel();
  const int64_t item = int64_t(blockIdx.x) * kWarps + gpu::WarpIndex();
  if (item >= items) return;  // a whole warp
  const int tile = int(item / c.stages), stage = int(item % c.stages), t = gpu::Lane() % 4;
  const float* const row = RowOf(c, tile, gpu::Lane() / 4);
  // A power of two is divided by exactly.
  const float factor = c.half ? 1 / c.factors[int64_t{tile} * kTileTokens + gpu::Lane() / 4] : 1;
  uint32_t words[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {  // eight inputs apart: b[0] and b[1] of four fragments
    const int64_t k = int64_t{stage} * kStageCols + i * 8 + t * 2;
    const float low = Input(c, row, k) * factor, high = Input(c, row, k + 1) * factor;
    words[i] = c.half ? gpu::PackF16(low, high) : gpu::PackBf16(low, high);
  }
  if (c.warpgroups) {
    const int64_t block = tile / kBlockTiles, token = tile % kBlockTiles * kTileTokens + gpu::Lane() / 4;
    constexpr int kRunWords = kBlockTiles * kTileTokens * 4;
    uint32_t* const out = reinterpret_cast<uint32_t*>(c.out) + (block * c.stages + stage) * 8 * kRunWords + token * 4 + t;
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i * kRunWords] = words[i];
    return;
  }
  uint4* const out = c.out + item * 2 * gpu::kWarp + gpu::Lane();
  out[0] = make_uint4(words[0], words[1], words[2], words[3]);
  out[gpu::kWarp] = make_uint4(words[4], words[5], words[6], words[7]);
}

// As QuantizeBlock of quant.h, bit for bit: the four lanes of a token share its block.
__global__ void QuantizeInputsKernel(Conversion c, int64_t items) {
  gpu::WaitForPreviousKernel();
  const int64_t item = int64_t(blockIdx.x) * kWarps + gpu::WarpIndex();
  if (item >= items) return;  // a whole warp
  const int tile = int(item / c.stages), stage = int(item % c.stages), g = gpu::Lane() / 4, t = gpu::Lane() % 4;
  const float* const row = RowOf(c, tile, g);
  uint32_t words[4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int block = stage * 2 + h;
    float x[8], most = 0, finite = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      x[e] = Input(c, row, int64_t{block} * kQuantBlock + e / 4 * 16 + t * 4 + e % 4);
      most = fmaxf(most, fabsf(x[e]));
      finite = __fadd_rn(finite, __fmul_rn(x[e], 0.0f));  // NaN where x is NaN or infinite
    }
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) {
      most = fmaxf(most, gpu::ShuffleXor(most, mask));
      finite = __fadd_rn(finite, gpu::ShuffleXor(finite, mask));
    }
    float scale = __fadd_rn(__fdiv_rn(most, 127.0f), finite);
    const float inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0;
    const bool zero = !(scale > 0) || !(inverse <= 3.4028234e38f);
    if (scale > 0 && zero) scale = 0;  // so small that its products are zero anyway
    int sum = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint32_t word = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int code = zero ? 0 : max(-127, min(127, __float2int_rn(__fmul_rn(x[r * 4 + e], inverse))));
        sum += code;
        word |= (uint32_t(code) & 0xffu) << 8 * e;
      }
      words[h * 2 + r] = word;
    }
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) sum += gpu::ShuffleXor(sum, mask);
    if (t == 0 && block < c.blocks) {
      const int64_t at = (int64_t{tile} * c.blocks + block) * kTileTokens + g;
      c.scales[at] = scale;
      if (c.int4) c.sums[at] = __fmul_rn(scale, float(sum));
    }
  }
  c.out[item * gpu::kWarp + gpu::Lane()] = make_uint4(words[0], words[1], words[2], words[3]);
}

int Blocks(int64_t count) {
  return int((count + kWarps - 1) / kWarps);
}

}  // namespace

void ConvertInputs(CudaContext& context, const InputSource& source, const int32_t* order, LinearCall& call) {
  using Scratch = CudaContext::Scratch;
  const LinearLayout& layout = call.layout;
  const int tiles = TokenTiles(source.tokens);
  const int all = call.warpgroups ? (tiles + kBlockTiles - 1) / kBlockTiles * kBlockTiles  // whole blocks
                                  : tiles * source.batch + kSpareTiles;
  const bool integer = IsInteger(layout.format);
  Conversion c = {source,  order,   layout.cols, layout.stages, layout.blocks, tiles,          nullptr,
                  nullptr, nullptr, nullptr,     false,         false,         call.warpgroups};
  const size_t runs = size_t(all) * size_t(layout.stages) * size_t(InputRuns(layout.format)) * gpu::kWarp;
  c.out = context.Temporary<uint4>(Scratch::kInputs, runs);
  c.half = layout.format == LinearFormat::kF16;
  c.int4 = layout.format == LinearFormat::kInt4;
  const size_t blocks = size_t(all) * size_t(layout.blocks) * kTileTokens;
  const size_t tokens = size_t(all) * kTileTokens;
  float* const floats = integer || c.half ? context.Temporary<float>(Scratch::kScales, c.half ? tokens : 2 * blocks) : nullptr;
  if (!context.status().ok()) return;
  const int64_t items = int64_t{all} * layout.stages;
  if (integer) {
    c.scales = floats;
    c.sums = floats + blocks;
    Launch(QuantizeInputsKernel, dim3(Blocks(items)), kThreads, 0, context.stream(), c, items);
    context.CheckLaunch("quantising activations");
    call.scales = c.scales;
    call.sums = c.sums;
  } else {
    if (c.half) {
      c.factors = floats;
      Launch(TokenFactorKernel, dim3(Blocks(int64_t(tokens))), kThreads, 0, context.stream(), c, int64_t(tokens));
      context.CheckLaunch("scaling activations");
      call.token_factors = c.factors;
    }
    Launch(ConvertFloatsKernel, dim3(Blocks(items)), kThreads, 0, context.stream(), c, items);
    context.CheckLaunch("rounding activations");
  }
  call.inputs = reinterpret_cast<const std::byte*>(c.out);
}

}  // namespace kvasir
