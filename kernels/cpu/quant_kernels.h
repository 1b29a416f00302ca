// The table of quantised Linear's micro-kernels of one ISA, and the layouts they read (meaning of the numbers: kernels/quant.h).
// Used by gemm.cc and pack.cc (ordinary code) and by quant_kernels.cc (compiled once per ISA): plain pointers only.
//
// Weights: panels of 32 columns, as in gemm_kernels.h. A panel is one stream of groups, and a group is
//   float16 scale [32], for int4 also float16 low [32], then its blocks of 32 inputs:
//   int8: [8][32 columns][4 inputs], a byte is code + 128       int4: [8][16][4], column j in the low half of a byte, j + 16 high
//
// Activations: rows are cut into tiles of at most max_rows, and a tile into strips of at most strip_rows (both as PartBegin
// says). A strip is QuantBlock [blocks][rows of the strip], then float32 [groups][rows]: the sums of scale * code over a group,
// which int4's `low` is multiplied with. So an inner loop walks one pointer, and what it reads next is beside what it read last.
#pragma once

#include <stdint.h>

namespace kvasir {

constexpr int kPanelColumns = 32;

struct QuantBlock {
  int8_t codes[32];
  float scale;
  int32_t correction;  // -128 * sum of codes: takes the + 128 of the weights out again
};
static_assert(sizeof(QuantBlock) == 40);

struct QuantKernels {
  // out[r * out_stride + j] for r < rows <= max_rows and j < columns <= 32; a: a tile. A group is group_blocks blocks, the last
  // one may be shorter. bias may be null.
  using Tile = void (*)(const void* a, int rows, const void* panel, int64_t blocks, int64_t group_blocks, const float* bias,
                        float* out, int64_t out_stride, int columns);
  int max_rows = 0, strip_rows = 0;
  Tile int8 = nullptr, int4 = nullptr;
  // Quantises a row of k activations as QuantizeBlock does, bit for bit. Block b goes to to[b * block_stride], the sum of group g
  // to sums[g * block_stride]: block_stride is the strip's height.
  void (*quantize_row)(const float* in, int64_t k, int64_t group_blocks, int64_t block_stride, QuantBlock* to,
                       float* sums) = nullptr;
};

// Part i of `parts` nearly equal ones of `rows` begins here.
constexpr int64_t PartBegin(int64_t rows, int64_t parts, int64_t i) {
  return rows * i / parts;
}
// The part that a row lies in.
constexpr int64_t PartOf(int64_t rows, int64_t parts, int64_t row) {
  return ((row + 1) * parts - 1) / rows;
}

}  // namespace kvasir
