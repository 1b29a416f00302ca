#include "kernels/cpu/pack.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/status.h"

namespace kvasir {
namespace {

constexpr int kChunk = 64;  // elements of a row converted at once; even

// The conversions of tensor.h, inline so that the loops below vectorize; pack_test holds them to be equal.
void BF16ToFloat(const uint16_t* src, int64_t count, float* dst) {
  for (int64_t i = 0; i < count; ++i) dst[i] = std::bit_cast<float>(uint32_t{src[i]} << 16);
}

void FloatToBF16(const float* src, int64_t count, uint16_t* dst) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t u = std::bit_cast<uint32_t>(src[i]);
    const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1)) >> 16, quiet = u >> 16 | 0x40;
    dst[i] = uint16_t((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
}

// count <= kChunk elements from src (unaligned) to dst. Equal types are copied bit by bit.
void ConvertChunk(const std::byte* src, DType from, int64_t count, DType to, void* dst) {
  if (from == to) {
    std::memcpy(dst, src, size_t(count) * SizeOf(to));
    return;
  }
  alignas(64) float values[kChunk];
  alignas(64) uint16_t bits[kChunk];
  if (from == DType::kF32) {
    std::memcpy(values, src, size_t(count) * sizeof(float));
  } else {
    std::memcpy(bits, src, size_t(count) * sizeof(uint16_t));
    if (from == DType::kBF16) {
      BF16ToFloat(bits, count, values);
    } else {
      for (int64_t i = 0; i < count; ++i) values[i] = F16ToF32(bits[i]);
    }
  }
  if (to == DType::kF32) {
    std::memcpy(dst, values, size_t(count) * sizeof(float));
  } else if (to == DType::kBF16) {
    FloatToBF16(values, count, static_cast<uint16_t*>(dst));
  } else {
    for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(dst)[i] = F32ToF16(values[i]);
  }
}

// Where row `row` of the stacked parts starts.
struct RowSource {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  const std::byte* scales = nullptr;  // data is codes, and these belong to the row
  const uint16_t* lows = nullptr;
};

RowSource FindRow(std::span<const HostMatrix> parts, int64_t row) {
  for (const HostMatrix& part : parts) {
    if (row < part.rows) {
      const auto* data = static_cast<const std::byte*>(part.data);
      if (!part.quant) return {data + row * part.cols * int64_t(SizeOf(part.dtype)), part.dtype};
      const int64_t first_group = row * part.quant.Groups(part.cols);
      return {data + row * part.cols, part.dtype,
              static_cast<const std::byte*>(part.scales) + first_group * int64_t(part.quant.scale_bytes()),
              part.lows != nullptr ? part.lows + first_group : nullptr};
    }
    row -= part.rows;
  }
  KVASIR_CHECK(false, "row {} past the end", row);
}

// Spreads one chunk of one row (`units` of T: elements, or pairs of them) over column `column` of a panel.
template <typename T>
void Scatter(const void* chunk, int64_t units, void* panel, int64_t first_unit, int column) {
  const T* from = static_cast<const T*>(chunk);
  T* to = static_cast<T*>(panel) + first_unit * kPanelColumns + column;
  for (int64_t i = 0; i < units; ++i) to[i * kPanelColumns] = from[i];
}

void PackPanel(std::span<const HostMatrix> parts, int64_t first_row, int columns, int64_t k, DType dtype, void* panel) {
  RowSource rows[kPanelColumns];
  for (int j = 0; j < columns; ++j) rows[j] = FindRow(parts, first_row + j);
  alignas(64) std::byte chunk[kChunk * sizeof(float)];
  for (int64_t i = 0; i < k; i += kChunk) {
    const int64_t count = std::min<int64_t>(kChunk, k - i);
    for (int j = 0; j < columns; ++j) {
      ConvertChunk(rows[j].data + i * int64_t(SizeOf(rows[j].dtype)), rows[j].dtype, count, dtype, chunk);
      if (dtype == DType::kF32) {
        Scatter<uint32_t>(chunk, count, panel, i, j);
      } else if (dtype == DType::kF16) {
        Scatter<uint16_t>(chunk, count, panel, i, j);
      } else {
        if (count % 2 != 0) reinterpret_cast<uint16_t*>(chunk)[count] = 0;
        Scatter<uint32_t>(chunk, (count + 1) / 2, panel, i / 2, j);
      }
    }
  }
}

// Codes of column `column`, from input `first` on, to their places in the group's blocks.
void ScatterCodes(QuantFormat::Kind kind, const int8_t* codes, int64_t count, int column, std::byte* blocks) {
  auto* to = reinterpret_cast<uint8_t*>(blocks);
  for (int64_t i = 0; i < count; ++i) {
    if (kind == QuantFormat::Kind::kInt8) {
      to[(i / 4 * kPanelColumns + column) * 4 + i % 4] = uint8_t(codes[i] + 128);
    } else {
      constexpr int kHalf = kPanelColumns / 2;
      to[(i / 4 * kHalf + column % kHalf) * 4 + i % 4] |= uint8_t(column < kHalf ? codes[i] : codes[i] << 4);
    }
  }
}

// One chunk of one row as the values that are quantised: those of the model's type.
void ReadChunk(const RowSource& row, int64_t first, int64_t count, DType dtype, float* values) {
  alignas(64) std::byte chunk[kChunk * sizeof(float)];
  for (int64_t i = 0; i < count; i += kChunk) {
    const int64_t n = std::min<int64_t>(kChunk, count - i);
    ConvertChunk(row.data + (first + i) * int64_t(SizeOf(row.dtype)), row.dtype, n, dtype, chunk);
    ConvertChunk(chunk, dtype, n, DType::kF32, values + i);
  }
}

void PackFp8Panel(std::span<const HostMatrix> parts, int64_t first_row, int columns, int64_t k, DType dtype, QuantFormat quant,
                  std::byte* panel) {
  const int64_t size = quant.GroupSize(k);
  std::vector<float> values(static_cast<size_t>(size));
  std::vector<uint8_t> codes(static_cast<size_t>(size + 1));
  for (int64_t first = 0; first < k; first += size) {
    const int64_t count = std::min(size, k - first), pairs = (count + 1) / 2;
    auto* const scales = reinterpret_cast<float*>(panel);
    panel += sizeof(float) * kPanelColumns;
    for (int j = 0; j < columns; ++j) {
      const RowSource row = FindRow(parts, first_row + j);
      if (row.scales != nullptr) {
        std::memcpy(scales + j, row.scales + first / size * int64_t{sizeof(float)}, sizeof(float));
        std::memcpy(codes.data(), row.data + first, size_t(count));
      } else {
        ReadChunk(row, first, count, dtype, values.data());
        scales[j] = QuantizeFp8Group(values.data(), count, codes.data());
      }
      codes[size_t(count)] = 0;
      Scatter<uint16_t>(codes.data(), pairs, panel, 0, j);
    }
    panel += pairs * 2 * kPanelColumns;
  }
}

// Scales outside of this would take a weight out of the range of bfloat16. Weights of smaller ones are as good as zero.
constexpr int kLeastMxfp4Scale = 2;

void PackMxfp4Panel(std::span<const HostMatrix> parts, int64_t first_row, int columns, int64_t k, QuantFormat quant,
                    std::byte* panel) {
  const int64_t size = quant.GroupSize(k);
  uint8_t bytes[kQuantBlock / 2] = {};
  for (int64_t first = 0; first < k; first += size) {
    const int64_t count = std::min(size, k - first), pairs = (count + 1) / 2;
    std::byte* const scales = panel;
    panel += kPanelColumns;
    for (int j = 0; j < columns; ++j) {
      const RowSource row = FindRow(parts, first_row + j);
      uint32_t scale;
      std::memcpy(&scale, row.scales + first / size * int64_t{sizeof(scale)}, sizeof(scale));
      const int exponent = int(scale >> 23 & 255);
      scales[j] = std::byte(exponent < kLeastMxfp4Scale ? 127 : exponent);
      for (int64_t i = 0; i < 2 * pairs; ++i) {
        const unsigned code = i < count && exponent >= kLeastMxfp4Scale ? std::to_integer<unsigned>(row.data[first + i]) & 15 : 0;
        bytes[i / 2] = uint8_t(i % 2 == 0 ? code : bytes[i / 2] | code << 4);
      }
      Scatter<uint8_t>(bytes, pairs, panel, 0, j);
    }
    panel += pairs * kPanelColumns;
  }
}

void PackQuantPanel(std::span<const HostMatrix> parts, int64_t first_row, int columns, int64_t k, DType dtype, QuantFormat quant,
                    std::byte* panel) {
  const int64_t size = quant.GroupSize(k);
  const bool low = quant.kind == QuantFormat::Kind::kInt4;
  std::vector<float> values(static_cast<size_t>(size));
  std::vector<int8_t> codes(static_cast<size_t>(size));
  for (int64_t first = 0; first < k; first += size) {
    const int64_t count = std::min(size, k - first), blocks = (count + kQuantBlock - 1) / kQuantBlock;
    auto* scales = reinterpret_cast<uint16_t*>(panel);
    std::byte* const data = panel + (low ? 4 : 2) * kPanelColumns;
    for (int j = 0; j < columns; ++j) {
      const RowSource row = FindRow(parts, first_row + j);
      if (row.scales != nullptr) {
        std::memcpy(scales + j, row.scales + first / size * 2, sizeof(uint16_t));
        if (low) scales[kPanelColumns + j] = row.lows[first / size];
        ScatterCodes(quant.kind, reinterpret_cast<const int8_t*>(row.data) + first, count, j, data);
        continue;
      }
      ReadChunk(row, first, count, dtype, values.data());
      const QuantGroup group = QuantizeGroup(quant.kind, values.data(), count, codes.data());
      scales[j] = group.scale;
      if (low) scales[kPanelColumns + j] = group.low;
      ScatterCodes(quant.kind, codes.data(), count, j, data);
    }
    panel = data + blocks * kQuantBlock * kPanelColumns / (low ? 2 : 1);
  }
}

}  // namespace

int64_t PanelsOf(int64_t rows) {
  return (rows + kPanelColumns - 1) / kPanelColumns;
}

int64_t PanelBytes(int64_t cols, DType dtype, QuantFormat quant) {
  if (quant.kind == QuantFormat::Kind::kFp8)
    return (quant.Groups(cols) * int64_t{sizeof(float)} + (cols + 1) / 2 * 2) * kPanelColumns;
  if (quant.kind == QuantFormat::Kind::kMxfp4) return (quant.Groups(cols) + (cols + 1) / 2) * kPanelColumns;
  if (quant) {
    const bool low = quant.kind == QuantFormat::Kind::kInt4;
    const int64_t blocks = (cols + kQuantBlock - 1) / kQuantBlock;
    return quant.Groups(cols) * (low ? 4 : 2) * kPanelColumns + blocks * kQuantBlock * kPanelColumns / (low ? 2 : 1);
  }
  const int64_t padded = dtype == DType::kBF16 ? (cols + 1) / 2 * 2 : cols;
  return padded * kPanelColumns * int64_t(SizeOf(dtype));
}

const int32_t* OrderOf(const Weight& weight) {
  const int64_t panels = PanelsOf(weight.rows) * PanelBytes(weight.cols, weight.dtype, weight.quant);
  return reinterpret_cast<const int32_t*>(static_cast<const std::byte*>(weight.packed) + panels);
}

int64_t OrderBytes(int64_t cols, QuantFormat quant) {
  return quant.ordered ? cols * int64_t{sizeof(int32_t)} : 0;
}

int64_t QuantRowBytes(int64_t cols, QuantFormat quant) {
  const int64_t blocks = (cols + kQuantBlock - 1) / kQuantBlock;
  return blocks * int64_t{sizeof(QuantBlock)} + quant.Groups(cols) * int64_t{sizeof(float)};
}

void PackPanels(ThreadTeam& team, std::span<const HostMatrix> parts, DType dtype, QuantFormat quant, void* dst) {
  int64_t rows = 0;
  for (const HostMatrix& part : parts) rows += part.rows;
  const int64_t k = parts[0].cols, bytes = PanelBytes(k, dtype, quant);
  if (quant.ordered)
    std::memcpy(static_cast<std::byte*>(dst) + PanelsOf(rows) * bytes, parts[0].order, size_t(OrderBytes(k, quant)));
  team.ParallelFor(PanelsOf(rows), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanelColumns;
      const int columns = int(std::min<int64_t>(kPanelColumns, rows - first));
      std::byte* const to = static_cast<std::byte*>(dst) + panel * bytes;
      if (quant.kind == QuantFormat::Kind::kFp8) {
        PackFp8Panel(parts, first, columns, k, dtype, quant, to);
      } else if (quant.kind == QuantFormat::Kind::kMxfp4) {
        PackMxfp4Panel(parts, first, columns, k, quant, to);
      } else if (quant) {
        PackQuantPanel(parts, first, columns, k, dtype, quant, to);
      } else {
        PackPanel(parts, first, columns, k, dtype, to);
      }
    }
  });
}

void PackRows(ThreadTeam& team, const HostMatrix& matrix, DType dtype, void* dst) {
  const auto* src = static_cast<const std::byte*>(matrix.data);
  const int64_t from = int64_t(SizeOf(matrix.dtype)), to = int64_t(SizeOf(dtype));
  team.ParallelFor(matrix.rows * matrix.cols, int64_t{1} << 20, [&](int64_t begin, int64_t end, int) {
    if (matrix.dtype == dtype) {
      std::memcpy(static_cast<std::byte*>(dst) + begin * to, src + begin * from, size_t((end - begin) * to));
      return;
    }
    for (int64_t i = begin; i < end; i += kChunk) {
      ConvertChunk(src + i * from, matrix.dtype, std::min<int64_t>(kChunk, end - i), dtype,
                   static_cast<std::byte*>(dst) + i * to);
    }
  });
}

void ToFloat(const void* src, DType dtype, int64_t count, float* dst) {
  const auto* from = static_cast<const std::byte*>(src);
  for (int64_t i = 0; i < count; i += kChunk) {
    ConvertChunk(from + i * int64_t(SizeOf(dtype)), dtype, std::min<int64_t>(kChunk, count - i), DType::kF32, dst + i);
  }
}

}  // namespace kvasir
