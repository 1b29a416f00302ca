// DType, host tensors as they come from a file, and the handle of a weight that a device has packed.
// Used by models (loading) and by every device. Plain data: no ownership unless said.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/quant.h"

namespace kvasir {

enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr size_t SizeOf(DType dtype) {
  return dtype == DType::kF32 ? 4 : 2;
}
std::string_view Name(DType dtype);  // "float32", "float16", "bfloat16"

// A row-major matrix in host memory, for example a mapped safetensors file; data is not owned and may be unaligned.
// A vector has rows = 1. Linear weights are [out_features, in_features] as Hugging Face stores them.
struct HostMatrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::string name;  // for error messages
  // When set, the matrix is quantised already: data is codes [rows, cols], a byte each (meaning: quant.h), and these are
  // [rows, quant.Groups(cols)]: float16 of int8 and int4, float32 of fp8 and mxfp4.
  QuantFormat quant = {};
  const void* scales = nullptr;
  const uint16_t* lows = nullptr;  // int4 only
  const int32_t* order = nullptr;  // quant.ordered: codes are in this order of inputs, a permutation of 0 .. cols - 1
};

// For PackLinear: whether a part can be packed with `first` as `quant`. What is quantised already must have that very format, and
// an order of inputs is one for all parts.
Status CheckQuantized(const HostMatrix& part, const HostMatrix& first, QuantFormat quant);

// A weight living on a device in the layout that device likes. Made by Device::Pack*, freed with the device.
struct Weight {
  DType dtype = DType::kF32;  // element type of the stored values
  int64_t rows = 0;           // out_features, or vocabulary size, or 1 for a vector
  int64_t cols = 0;           // in_features, or hidden size
  void* packed = nullptr;     // device memory; the meaning belongs to the device
  QuantFormat quant;          // of a linear weight; when set, dtype is what was quantised
};

// Conversions with round-to-nearest-even; the definition every kernel must agree with.
float BF16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);
float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);

}  // namespace kvasir
