#include "models/quantized_tensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace kvasir {
namespace {

constexpr int64_t kTile = 64;  // rows unpacked together where the tensor lies the other way round

uint32_t Word(const std::byte* at, int64_t index) {
  uint32_t word;
  std::memcpy(&word, at + index * 4, sizeof(word));
  return word;
}

// Element `index` of a row of `bits`-bit numbers in 32-bit words, the lowest bits first.
uint8_t Bits(const std::byte* words, int64_t index, int bits) {
  const int64_t per_word = 32 / bits;
  return uint8_t(Word(words, index / per_word) >> (index % per_word * bits) & ((1u << bits) - 1));
}

// Where AWQ keeps output i of eight: its nibble.
constexpr std::array<int, 8> kAwqNibble = {0, 4, 1, 5, 2, 6, 3, 7};
uint8_t AwqNibble(const std::byte* row, int64_t output) {
  return uint8_t(Word(row, output / 8) >> (4 * kAwqNibble[static_cast<size_t>(output % 8)]) & 15);
}

void UnpackByInput(const StoredQuant& stored, const std::byte* codes, int64_t first_row, int64_t rows, uint8_t* out) {
  const int64_t n = stored.rows, k = stored.cols, per_word = 32 / stored.bits;
  for (int64_t tile = 0; tile < rows; tile += kTile) {
    const int64_t end = std::min(tile + kTile, rows);
    if (stored.form == CodeForm::kAwq) {
      for (int64_t i = 0; i < k; ++i)
        for (int64_t row = tile; row < end; ++row) out[row * k + i] = AwqNibble(codes + i * (n / 2), first_row + row);
      continue;
    }
    for (int64_t word = 0; word < k / per_word; ++word) {
      for (int64_t row = tile; row < end; ++row) {
        uint32_t bits = Word(codes, word * n + first_row + row);
        uint8_t* to = out + row * k + word * per_word;
        for (int64_t i = 0; i < per_word; ++i, bits >>= stored.bits) to[i] = uint8_t(bits & ((1u << stored.bits) - 1));
      }
    }
  }
}

void UnpackByOutput(const StoredQuant& stored, const std::byte* codes, int64_t rows, uint8_t* out) {
  const int64_t k = stored.cols, row_bytes = stored.form == CodeForm::kPacked  ? (k * stored.bits + 31) / 32 * 4
                                             : stored.form == CodeForm::kMxfp4 ? k / 2
                                                                               : k;
  for (int64_t row = 0; row < rows; ++row) {
    const std::byte* from = codes + row * row_bytes;
    uint8_t* to = out + row * k;
    if (stored.form == CodeForm::kPacked) {
      for (int64_t i = 0; i < k; ++i) to[i] = Bits(from, i, stored.bits);
      continue;
    }
    if (stored.form == CodeForm::kMxfp4) {
      for (int64_t i = 0; i < k; ++i) to[i] = std::to_integer<uint8_t>(from[i / 2]) >> (i % 2 * 4) & 15;
      continue;
    }
    std::memcpy(to, from, static_cast<size_t>(k));
    if (stored.form == CodeForm::kInt8)
      for (int64_t i = 0; i < k; ++i) to[i] ^= 0x80;  // -128 .. 127 -> 0 .. 255
  }
}

float ScaleAt(const std::byte* scales, ScaleType type, int64_t index) {
  if (type == ScaleType::kE8M0) {
    const int exponent = std::to_integer<int>(scales[index]);
    return exponent == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, exponent - 127);
  }
  if (type == ScaleType::kF32) return std::bit_cast<float>(Word(scales, index));
  uint16_t bits;
  std::memcpy(&bits, scales + index * 2, sizeof(bits));
  return type == ScaleType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}

uint8_t ZeroAt(const StoredQuant& stored, const std::byte* zeros, int64_t row, int64_t group) {
  const int64_t n = stored.rows, bits = stored.bits;
  switch (stored.form) {
    case CodeForm::kGptq: {
      const unsigned zero = Bits(zeros + group * (n * bits / 32) * 4, row, stored.bits);
      return uint8_t((zero + (stored.zeros_minus_one ? 1u : 0u)) & ((1u << bits) - 1));
    }
    case CodeForm::kAwq:
      return AwqNibble(zeros + group * (n / 2), row);
    default:
      break;
  }
  if (!stored.zeros_packed) {  // signed bytes, of as many bits as the codes
    const int8_t zero = std::to_integer<int8_t>(zeros[row / stored.scale_rows * stored.groups + group]);
    return uint8_t(zero + (1 << (bits - 1)));
  }
  const int64_t per_word = 32 / bits;
  return uint8_t(Word(zeros, row / per_word * stored.groups + group) >> (row % per_word * bits) & ((1u << bits) - 1));
}

int64_t GroupOf(const StoredQuant& stored, int64_t input) {
  if (!stored.group_of.empty()) return stored.group_of[static_cast<size_t>(input)];
  return stored.group == 0 ? 0 : input / stored.group;
}

// What the codes of a float format stand for.
const std::array<float, 256>& FloatTable(CodeForm form) {
  const auto fill = [](float (*convert)(uint8_t)) {
    std::array<float, 256> table;
    for (size_t i = 0; i < table.size(); ++i) table[i] = convert(uint8_t(i));
    return table;
  };
  static const std::array<float, 256> e4m3 = fill(Fp8E4M3ToF32), e5m2 = fill(Fp8E5M2ToF32), e2m1 = fill(Fp4E2M1ToF32);
  return form == CodeForm::kFp8E4M3 ? e4m3 : form == CodeForm::kFp8E5M2 ? e5m2 : e2m1;
}

void Store(const float* values, int64_t count, DType dtype, std::byte* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = dtype == DType::kF16 ? F32ToF16(values[i]) : F32ToBF16(values[i]);
    std::memcpy(out + i * 2, &bits, sizeof(bits));
  }
}

bool IsFinite16(uint16_t bits) {
  return (bits & 0x7c00) != 0x7c00;
}

}  // namespace

std::optional<ScaleType> ScaleTypeOf(std::string_view stored) {
  if (stored == "F32") return ScaleType::kF32;
  if (stored == "F16") return ScaleType::kF16;
  if (stored == "BF16") return ScaleType::kBF16;
  if (stored == "F8_E8M0") return ScaleType::kE8M0;
  return std::nullopt;
}

std::vector<int32_t> InputOrder(const StoredQuant& stored) {
  if (stored.group_of.empty() || stored.group <= 0) return {};
  std::vector<int32_t> order(stored.group_of.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return stored.group_of[static_cast<size_t>(a)] < stored.group_of[static_cast<size_t>(b)];
  });
  for (size_t i = 0; i < order.size(); ++i)
    if (stored.group_of[static_cast<size_t>(order[i])] != static_cast<int64_t>(i) / stored.group) return {};
  return order;
}

QuantFormat ExactFormat(const StoredQuant& stored) {
  if (stored.form == CodeForm::kMxfp4) return {QuantFormat::Kind::kMxfp4, 32};
  const bool int4 = stored.bits == 4, e4m3 = stored.form == CodeForm::kFp8E4M3;
  if ((stored.fp8() && !e4m3) || (!int4 && stored.zeros)) return {};
  const bool ordered = !stored.group_of.empty();
  if (ordered && InputOrder(stored).empty()) return {};
  const auto kind = int4 ? QuantFormat::Kind::kInt4 : e4m3 ? QuantFormat::Kind::kFp8 : QuantFormat::Kind::kInt8;
  if (stored.groups == 1) return {kind, int4 ? 128 : 0};
  for (const int32_t group : {128, 64, 32})
    if (stored.group % group == 0) return {kind, group, ordered};
  return {};
}

bool Holds(QuantFormat narrow, QuantFormat wide) {
  if (!narrow || narrow.kind != wide.kind || narrow.ordered != wide.ordered) return false;
  return narrow.group == wide.group || (narrow.group != 0 && (wide.group == 0 || wide.group % narrow.group == 0));
}

UnpackedQuant Unpack(const StoredQuant& stored, const StoredBytes& bytes, int64_t first_row, int64_t rows) {
  UnpackedQuant unpacked;
  unpacked.codes.resize(static_cast<size_t>(rows * stored.cols));
  if (stored.by_input()) {
    UnpackByInput(stored, bytes.codes, first_row, rows, unpacked.codes.data());
  } else {
    UnpackByOutput(stored, bytes.codes, rows, unpacked.codes.data());
  }
  const size_t count = static_cast<size_t>(rows * stored.groups);
  unpacked.scales.resize(count);
  unpacked.zeros.assign(count, uint8_t(1u << (stored.bits - 1)));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < stored.groups; ++group) {
      const int64_t from = first_row + row;
      const size_t to = static_cast<size_t>(row * stored.groups + group);
      const int64_t at =
          stored.by_input() ? group * stored.rows + from : (from - bytes.scales_row) / stored.scale_rows * stored.groups + group;
      unpacked.scales[to] = ScaleAt(bytes.scales, stored.scale_type, at);
      if (stored.zeros) unpacked.zeros[to] = ZeroAt(stored, bytes.zeros, from, group);
    }
  }
  return unpacked;
}

Status WriteCodes(const StoredQuant& stored, const UnpackedQuant& unpacked, QuantFormat format,
                  std::span<const int32_t> input_order, std::span<const int32_t> order, int8_t* codes, void* scales,
                  uint16_t* lows) {
  const int64_t all_rows = static_cast<int64_t>(unpacked.codes.size()) / stored.cols;
  const int64_t rows = order.empty() ? all_rows : static_cast<int64_t>(order.size());
  const int64_t size = format.GroupSize(stored.cols), groups = format.Groups(stored.cols);
  const bool int4 = format.kind == QuantFormat::Kind::kInt4;
  const uint8_t shift = format.kind == QuantFormat::Kind::kInt8 ? 0x80 : 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t from = order.empty() ? row : order[static_cast<size_t>(row)];
    const uint8_t* source = unpacked.codes.data() + from * stored.cols;
    for (int64_t i = 0; i < stored.cols; ++i)
      codes[row * stored.cols + i] = static_cast<int8_t>(source[input_order.empty() ? i : input_order[size_t(i)]] ^ shift);
    for (int64_t g = 0; g < groups; ++g) {
      const size_t at = static_cast<size_t>(from * stored.groups +
                                            GroupOf(stored, input_order.empty() ? g * size : input_order[size_t(g * size)]));
      const float scale = unpacked.scales[at];
      std::byte* const to = static_cast<std::byte*>(scales) + (row * groups + g) * static_cast<int64_t>(format.scale_bytes());
      if (!format.integer()) {
        std::memcpy(to, &scale, sizeof(scale));
        continue;
      }
      const uint16_t scale_bits = F32ToF16(scale), low_bits = F32ToF16(-scale * float(unpacked.zeros[at]));
      if (!IsFinite16(scale_bits) || (int4 && !IsFinite16(low_bits)))
        return InvalidArgument(
            "the scale {} of output {} and input {} does not fit float16, which quantised weights have; load the model with "
            "--quantization none",
            scale, from, g * size);
      std::memcpy(to, &scale_bits, sizeof(scale_bits));
      if (int4) lows[row * groups + g] = low_bits;
    }
  }
  return OkStatus();
}

void WriteValues(const StoredQuant& stored, const UnpackedQuant& unpacked, DType dtype, std::byte* out) {
  const int64_t k = stored.cols, rows = static_cast<int64_t>(unpacked.codes.size()) / k;
  std::vector<int32_t> groups(static_cast<size_t>(k));
  for (int64_t i = 0; i < k; ++i) groups[static_cast<size_t>(i)] = static_cast<int32_t>(GroupOf(stored, i));
  std::vector<float> values(static_cast<size_t>(k));
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* codes = unpacked.codes.data() + row * k;
    const float* scales = unpacked.scales.data() + row * stored.groups;
    const uint8_t* zeros = unpacked.zeros.data() + row * stored.groups;
    if (stored.floats()) {
      const std::array<float, 256>& table = FloatTable(stored.form);
      for (int64_t i = 0; i < k; ++i) values[i] = table[codes[i]] * scales[groups[i]];
    } else {
      for (int64_t i = 0; i < k; ++i) values[i] = scales[groups[i]] * float(int{codes[i]} - int{zeros[groups[i]]});
    }
    Store(values.data(), k, dtype, out + row * k * static_cast<int64_t>(SizeOf(dtype)));
  }
}

float Fp8E5M2ToF32(uint8_t bits) {
  return F16ToF32(uint16_t(bits << 8));
}

}  // namespace kvasir
