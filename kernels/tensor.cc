#include "kernels/tensor.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace kvasir {

std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
  }
  return "?";
}

namespace {

// Nothing becomes mxfp4 here, and its scales are powers of two that leave 6 times them a bfloat16.
Status CheckMxfp4(const HostMatrix& part) {
  if (!part.quant) return InvalidArgument("'{}' cannot be quantised to mxfp4: only checkpoints bring that format", part.name);
  const auto* scales = static_cast<const std::byte*>(part.scales);
  for (int64_t i = 0; i < part.rows * part.quant.Groups(part.cols); ++i) {
    float scale;
    std::memcpy(&scale, scales + i * int64_t{sizeof(scale)}, sizeof(scale));
    int exponent = 0;
    if (!(scale > 0 && scale <= 0x1p125f && std::frexp(scale, &exponent) == 0.5f))
      return InvalidArgument("'{}' has the mxfp4 scale {} at {}; it must be a power of two up to 2^125", part.name, scale, i);
  }
  return OkStatus();
}

}  // namespace

Status CheckQuantized(const HostMatrix& part, const HostMatrix& first, QuantFormat quant) {
  if ((part.quant || quant.ordered) && part.quant != quant)
    return InvalidArgument("'{}' is quantised as {} but is to be packed as {}", part.name, Name(part.quant), Name(quant));
  if (quant.kind == QuantFormat::Kind::kMxfp4) return CheckMxfp4(part);
  if (quant.ordered && !std::equal(part.order, part.order + part.cols, first.order, first.order + first.cols))
    return InvalidArgument("'{}' has its inputs in another order than '{}', packed with it", part.name, first.name);
  return OkStatus();
}

float BF16ToF32(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

uint16_t F32ToBF16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t(u >> 16 | 0x40);  // keep NaN a NaN
  return uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

float F16ToF32(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t F32ToF16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const uint16_t sign = uint16_t(u >> 16 & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00;                 // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;                // rounds to infinity
  if (magnitude < 0x38800000u) {                                     // subnormal: let the FPU round at 2^-24
    const float scaled = std::bit_cast<float>(magnitude) + 0x1p-1f;  // ulp of [0.5, 1) is 2^-24
    return sign | uint16_t(std::bit_cast<uint32_t>(scaled) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return sign | uint16_t((rounded - 0x38000000u) >> 13);
}

}  // namespace kvasir
