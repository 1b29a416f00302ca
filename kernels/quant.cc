#include "kernels/quant.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/tensor.h"

namespace kvasir {

StatusOr<QuantFormat> ParseQuantFormat(std::string_view text) {
  const std::string_view kind = text.substr(0, text.find(':'));
  QuantFormat format;
  if (text == "none") return format;
  const auto wrong = [&] {
    return InvalidArgument(
        "quantization '{}' is not supported; supported: none, int8, int4, fp8, int8:channel, fp8:channel, and int8, int4 or fp8 "
        "with a group of 32, 64 or 128 (int4:128)",
        text);
  };
  if (kind == "int8") {
    format = {QuantFormat::Kind::kInt8, 0};
  } else if (kind == "int4") {
    format = {QuantFormat::Kind::kInt4, 64};
  } else if (kind == "fp8") {
    format = {QuantFormat::Kind::kFp8, 0};
  } else {
    return wrong();
  }
  if (kind.size() == text.size()) return format;
  const std::string_view group = text.substr(kind.size() + 1);
  if (group == "channel" && format.kind != QuantFormat::Kind::kInt4) {
    format.group = 0;
    return format;
  }
  if (group != "32" && group != "64" && group != "128") return wrong();
  std::from_chars(group.data(), group.data() + group.size(), format.group);
  return format;
}

std::string Name(QuantFormat format) {
  if (!format) return "none";
  if (format.kind == QuantFormat::Kind::kMxfp4) return "mxfp4";
  const char* kind = format.kind == QuantFormat::Kind::kInt8 ? "int8" : format.kind == QuantFormat::Kind::kInt4 ? "int4" : "fp8";
  const std::string name = format.group == 0 ? fmt::format("{}:channel", kind) : fmt::format("{}:{}", kind, format.group);
  return format.ordered ? name + " act-order" : name;
}

float Fp8E4M3ToF32(uint8_t bits) {
  const float sign = (bits & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(float(mantissa), -9);
  return sign * std::ldexp(float(8 + mantissa), exponent - 10);
}

uint8_t F32ToFp8E4M3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float size = std::abs(value);
  if (!(size <= 464)) return sign | 0x7f;  // 464 lies between 448 and what would be 480, and ties go to the even 448
  if (size < 0x1p-6f) return uint8_t(sign | uint8_t(std::nearbyint(size * 512)));  // 8 is the least normal number
  int exponent = 0;
  const float fraction = std::frexp(size, &exponent);       // [1/2, 1)
  const int mantissa = int(std::nearbyint(fraction * 16));  // 8..16: one more bit than is stored, for the leading one
  return uint8_t(sign | uint8_t(((exponent + 6) << 3) + mantissa - 8));  // 16 carries into the exponent
}

float Fp4E2M1ToF32(uint8_t bits) {
  static constexpr float kValues[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return (bits & 8) != 0 ? -kValues[bits & 7] : kValues[bits & 7];
}

float QuantizeFp8Group(const float* weights, int64_t count, uint8_t* codes) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(weights[i]));
  const float scale = most / 448;
  for (int64_t i = 0; i < count; ++i) codes[i] = scale > 0 ? F32ToFp8E4M3(weights[i] / scale) : uint8_t{0};
  return scale;
}

QuantGroup QuantizeGroup(QuantFormat::Kind kind, const float* weights, int64_t count, int8_t* codes) {
  QuantGroup group;
  // Adding 1.5 * 2^23 rounds to nearest even; unlike a call of rint, a compiler turns it into vectors.
  const auto round = [](float x, float low, float high) { return int8_t(std::clamp(x + 12582912.0f - 12582912.0f, low, high)); };
  if (kind == QuantFormat::Kind::kInt8) {
    float most = 0;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(weights[i]));
    group.scale = F32ToF16(most / 127);
    const float scale = F16ToF32(group.scale);
    for (int64_t i = 0; i < count; ++i) codes[i] = scale > 0 ? round(weights[i] / scale, -127, 127) : int8_t{0};
    return group;
  }
  const auto [least, most] = std::minmax_element(weights, weights + count);
  group.low = F32ToF16(*least);
  const float low = F16ToF32(group.low);
  group.scale = F32ToF16((*most - low) / 15);
  const float scale = F16ToF32(group.scale);
  for (int64_t i = 0; i < count; ++i) codes[i] = scale > 0 ? round((weights[i] - low) / scale, 0, 15) : int8_t{0};
  return group;
}

float QuantizeBlock(const float* x, int count, int8_t* codes) {
  float most = 0, finite = 0;
  for (int i = 0; i < count; ++i) {
    most = std::max(most, std::abs(x[i]));
    finite += x[i] * 0.0f;  // NaN where x is NaN or infinite
  }
  std::memset(codes, 0, kQuantBlock);
  const float scale = most / 127 + finite;
  if (!(scale > 0)) return scale;
  const float inverse = 1 / scale;
  if (!std::isfinite(inverse)) return 0;  // so small that its products are zero anyway
  for (int i = 0; i < count; ++i) codes[i] = int8_t(std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f));
  return scale;
}

}  // namespace kvasir
