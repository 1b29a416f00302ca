#include "models/tensor_rearrange.h"

#include <cmath>
#include <cstring>

namespace kvasir {
namespace {

template <typename T>
void Pick(const Rearrange& rearrange, const std::byte* in, int64_t rows, int64_t cols, std::byte* out) {
  // Stored data may be unaligned, so elements are moved as bytes.
  const int64_t out_cols = rearrange.transpose ? rows : cols;
  const int64_t all_rows = rearrange.transpose ? cols : rows;
  const int64_t out_rows = rearrange.rows.empty() ? all_rows : static_cast<int64_t>(rearrange.rows.size());
  for (int64_t i = 0; i < out_rows; ++i) {
    const int64_t from = rearrange.rows.empty() ? i : rearrange.rows[static_cast<size_t>(i)];
    std::byte* to = out + i * out_cols * int64_t{sizeof(T)};
    if (!rearrange.transpose) {
      std::memcpy(to, in + from * cols * int64_t{sizeof(T)}, static_cast<size_t>(cols) * sizeof(T));
      continue;
    }
    for (int64_t j = 0; j < out_cols; ++j)
      std::memcpy(to + j * int64_t{sizeof(T)}, in + (j * cols + from) * int64_t{sizeof(T)}, sizeof(T));
  }
}

float Load(const std::byte* at, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return dtype == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}

}  // namespace

void ApplyRearrange(const Rearrange& rearrange, const std::byte* in, DType dtype, int64_t rows, int64_t cols, std::byte* out) {
  if (rearrange.plus_one) {  // norm weights: never moved as well
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float value = 1.0f + Load(in + i * static_cast<int64_t>(SizeOf(dtype)), dtype);
      std::memcpy(out + i * int64_t{sizeof(float)}, &value, sizeof(value));
    }
    return;
  }
  if (SizeOf(dtype) == 4) {
    Pick<uint32_t>(rearrange, in, rows, cols, out);
  } else {
    Pick<uint16_t>(rearrange, in, rows, cols, out);
  }
}

std::vector<int32_t> HalfSplitRows(int heads, int head_dim, int first, int rotary_dim) {
  std::vector<int32_t> rows;
  for (int h = 0; h < heads; ++h) {
    for (int i = 0; i < head_dim; ++i) {
      const int r = i - first, half = rotary_dim / 2;
      const bool rotated = r >= 0 && r < rotary_dim;
      rows.push_back(h * head_dim + (rotated ? first + (r < half ? 2 * r : 2 * (r - half) + 1) : i));
    }
  }
  return rows;
}

std::vector<int32_t> HeadwiseQkvRows(int heads, int head_dim) {
  std::vector<int32_t> rows;
  for (int part = 0; part < 3; ++part)
    for (int h = 0; h < heads; ++h)
      for (int i = 0; i < head_dim; ++i) rows.push_back((h * 3 + part) * head_dim + i);
  return rows;
}

std::vector<int32_t> RowsOfHeads(int heads, int head_dim, int first, int count) {
  std::vector<int32_t> rows;
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < count; ++i) rows.push_back(h * head_dim + first + i);
  return rows;
}

std::vector<int32_t> AlternatingRows(int64_t width) {
  std::vector<int32_t> rows;
  for (int part = 0; part < 2; ++part)
    for (int64_t i = 0; i < width; ++i) rows.push_back(static_cast<int32_t>(2 * i + part));
  return rows;
}

}  // namespace kvasir
