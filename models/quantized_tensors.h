// Linear weights as quantised checkpoints store them: what the bytes of their tensors mean, and how they become the kernels' own
// formats, exactly where those can hold them, or plain values. Used by weights loading, which has checked every shape and type.
//
// Whole numbers are seen without sign here, 0 .. 2^bits - 1, so that all forms have one meaning: w = scale * (code - zero).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/quant.h"
#include "kernels/status.h"
#include "kernels/tensor.h"

namespace kvasir {

// Where codes lie. `n` counts outputs (rows of the weight), `k` inputs.
enum class CodeForm : uint8_t {
  kGptq,     // int32 [k * bits / 32, n], the lowest bits the first input; zeros int32 [groups, n * bits / 32]; scales [groups, n]
  kAwq,      // int32 [k, n / 8], nibbles of outputs 0 2 4 6 1 3 5 7; zeros alike; scales [groups, n]
  kPacked,   // int32 [n, k * bits / 32], the lowest bits the first input; zeros int32 [n * bits / 32, groups]; scales [n, groups]
  kInt8,     // int8 [n, k]; zeros int8 [n, groups]; scales [n, groups]
  kFp8E4M3,  // [n, k]; no infinities, NaN is 0x7f and 0xff
  kFp8E5M2,  // [n, k]
  kMxfp4,    // [n, k / 32, 16], the low half of a byte first; scales [n, k / 32]
};
enum class ScaleType : uint8_t { kF32, kF16, kBF16, kE8M0 /* 2^(byte - 127), 255 is NaN */ };
std::optional<ScaleType> ScaleTypeOf(std::string_view stored);  // of a safetensors type

struct StoredQuant {
  CodeForm form = CodeForm::kInt8;
  int bits = 8;
  int64_t rows = 0, cols = 0;  // of the whole weight: outputs, inputs
  // Scale and zero of input k and output n are those of group k / group (group_of[k], where given) and row n / scale_rows.
  int64_t group = 0, groups = 1, scale_rows = 1;
  std::vector<int32_t> group_of;
  ScaleType scale_type = ScaleType::kF32;
  // No zero points are stored: they are 2^(bits - 1), the middle. Stored ones may be less one, and packed or int8.
  bool zeros = false, zeros_minus_one = false, zeros_packed = true;

  bool floats() const { return fp8() || form == CodeForm::kMxfp4; }
  bool fp8() const { return form == CodeForm::kFp8E4M3 || form == CodeForm::kFp8E5M2; }
  bool by_input() const { return form == CodeForm::kGptq || form == CodeForm::kAwq; }  // rows of the tensor are inputs
};

// The order that puts the inputs of a group together, the groups one after another; only where every group but the last has
// stored.group inputs. Empty = none.
std::vector<int32_t> InputOrder(const StoredQuant& stored);
// The kernels' format that holds the weight without another rounding of its codes, the widest groups there are; none where there
// is no such format: E5M2, 8 bits with zero points, groups that are no multiple of 32 or not equally many inputs. Ordered as
// InputOrder says where group_of is given.
QuantFormat ExactFormat(const StoredQuant& stored);
// Whether a weight that fits `wide` also fits `narrow`, by repeating scales.
bool Holds(QuantFormat narrow, QuantFormat wide);

// Bytes of the weight's tensors: codes of the rows asked for (all of them where by_input()), scales from row scales_row on, all
// zeros.
struct StoredBytes {
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  const std::byte* zeros = nullptr;
  int64_t scales_row = 0;
};

// Rows [first_row, first_row + rows) of a weight: codes [rows, cols], scales and zeros [rows, groups]. Of floats the codes are
// their bits, and zeros mean nothing.
struct UnpackedQuant {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
};
UnpackedQuant Unpack(const StoredQuant& stored, const StoredBytes& bytes, int64_t first_row, int64_t rows);

// Row i of the results is row order[i] of what was unpacked (all rows as they are when empty).
// In the kernels' format, which must be ExactFormat's or a narrower one, with the inputs in input_order where it is ordered:
// codes [rows, cols], scales and lows [rows, Groups(cols)]. Scales of int8 and int4 are rounded to float16, and low = -scale *
// zero too: an error where one does not fit. Those of fp8 and mxfp4 are float32.
Status WriteCodes(const StoredQuant& stored, const UnpackedQuant& unpacked, QuantFormat format,
                  std::span<const int32_t> input_order, std::span<const int32_t> order, int8_t* codes, void* scales,
                  uint16_t* lows);
// As values, computed in float32 and rounded once to `dtype`.
void WriteValues(const StoredQuant& stored, const UnpackedQuant& unpacked, DType dtype, std::byte* out);

float Fp8E5M2ToF32(uint8_t bits);

}  // namespace kvasir
