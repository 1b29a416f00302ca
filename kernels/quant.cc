#include "kernels/quant.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "kernels/tensor.h"

namespace kvasir {

StatusOr<QuantFormat> ParseQuantFormat(std::string_view text) {
  const std::string_view kind = text.substr(0, text.find(':'));
  QuantFormat format;
  if (text == "none") return format;
  const auto wrong = [&] {
    return InvalidArgument(
        "quantization '{}' is not supported; supported: none, int8, int4, int8:channel, and int8 or int4 with a group of 32, 64 "
        "or "
        "128 (int4:128)",
        text);
  };
  if (kind == "int8") {
    format = {QuantFormat::Kind::kInt8, 0};
  } else if (kind == "int4") {
    format = {QuantFormat::Kind::kInt4, 64};
  } else {
    return wrong();
  }
  if (kind.size() == text.size()) return format;
  const std::string_view group = text.substr(kind.size() + 1);
  if (group == "channel" && format.kind == QuantFormat::Kind::kInt8) {
    format.group = 0;
    return format;
  }
  if (group != "32" && group != "64" && group != "128") return wrong();
  std::from_chars(group.data(), group.data() + group.size(), format.group);
  return format;
}

std::string Name(QuantFormat format) {
  if (!format) return "none";
  const char* kind = format.kind == QuantFormat::Kind::kInt8 ? "int8" : "int4";
  const std::string name = format.group == 0 ? fmt::format("{}:channel", kind) : fmt::format("{}:{}", kind, format.group);
  return format.ordered ? name + " act-order" : name;
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
