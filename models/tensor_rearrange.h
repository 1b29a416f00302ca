// How a stored matrix becomes the one that is packed: transposed, its rows picked in another order, one added. Used by weights
// loading only; exact, but for the sum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/tensor.h"

namespace kvasir {

struct Rearrange {
  bool transpose = false;     // first
  std::vector<int32_t> rows;  // then row i is row rows[i], as many as are listed; empty = all as they are
  bool plus_one = false;      // then 1 is added to every value; the result is float32

  bool empty() const { return !transpose && rows.empty() && !plus_one; }
};

// in [rows, cols] -> out, of the same type or float32 when plus_one. `out` does not overlap `in`.
void ApplyRearrange(const Rearrange& rearrange, const std::byte* in, DType dtype, int64_t rows, int64_t cols, std::byte* out);

// Orders of rows. Each head has `head_dim` rows of which `rotary_dim` from `first` on are pairs (2i, 2i + 1); the result has them
// as halves, which is what the kernels rotate. A dot product of query and key does not change by it.
std::vector<int32_t> HalfSplitRows(int heads, int head_dim, int first, int rotary_dim);
// Rows of q, k, v of head 0, then of head 1, ... -> all of q, all of k, all of v.
std::vector<int32_t> HeadwiseQkvRows(int heads, int head_dim);
// Heads of head_dim rows each: of every head its `count` rows from `first` on.
std::vector<int32_t> RowsOfHeads(int heads, int head_dim, int first, int count);
// Rows that alternate between gate and up -> all of gate, all of up.
std::vector<int32_t> AlternatingRows(int64_t width);

}  // namespace kvasir
