#include "kernels/kv_quant.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace kvasir {
namespace {

constexpr KvFormat kFormats[] = {DType::kF32, DType::kF16, DType::kBF16, KvQuant::kFp8, KvQuant::kInt8, KvQuant::kInt4};
constexpr uint16_t kNanF16 = 0x7e00;

// F32ToFp8E4M3 (quant.h), but saturating, and without branches: a compiler turns it into vectors.
uint8_t SaturatedFp8(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 24 & 0x80, size = bits & 0x7fffffff;
  const uint32_t finite = std::min(size, std::bit_cast<uint32_t>(448.0f));
  const uint32_t normal = ((finite + 0x7ffff + (finite >> 20 & 1)) >> 20) - (120 << 3);  // exponents are biased by 7, not 127
  // Below 2^-6 codes are 2^-9 apart: the last place of 2^14.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(finite) + 0x1p14f) - std::bit_cast<uint32_t>(0x1p14f);
  const uint32_t code = finite < std::bit_cast<uint32_t>(0x1p-6f) ? subnormal : normal;
  return uint8_t(sign | (size > 0x7f800000 ? 0x7f : code));
}

// Adding 1.5 * 2^23 rounds to nearest even; unlike a call of rint, a compiler turns it into vectors.
float Rounded(float x, float low, float high) {
  return std::clamp(x + 12582912.0f - 12582912.0f, low, high);
}

// The least float16 that times `steps` is at least `range`, which is no more than steps * 8672.
uint16_t ScaleFor(float range, float steps) {
  const uint16_t scale = F32ToF16(range / steps);
  return F16ToF32(scale) * steps < range ? uint16_t(scale + 1) : scale;
}

KvScale QuantizeInt8(const float* x, int count, uint8_t* codes) {
  float most = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, std::abs(x[i]));
  const KvScale stored = {ScaleFor(std::min(most, kKvLargest), 127), 0};
  const float scale = F16ToF32(stored.scale);
  if (stored.scale == 0)
    std::fill_n(codes, count, uint8_t{0});
  else
    for (int i = 0; i < count; ++i) codes[i] = uint8_t(int8_t(Rounded(x[i] / scale, -127, 127)));
  return stored;
}

KvScale QuantizeInt4(const float* x, int count, uint8_t* codes) {
  float least = x[0], most = x[0];
  for (int i = 1; i < count; ++i) {
    least = std::min(least, x[i]);
    most = std::max(most, x[i]);
  }
  least = std::clamp(least, -kKvLargest, kKvLargest);
  most = std::clamp(most, -kKvLargest, kKvLargest);
  KvScale stored;
  stored.low = F32ToF16(least);
  if (F16ToF32(stored.low) > least) stored.low = uint16_t(stored.low + ((stored.low & 0x8000) != 0 ? 1 : -1));
  const float low = F16ToF32(stored.low);
  stored.scale = ScaleFor(most - low, 15);
  const float scale = F16ToF32(stored.scale);
  if (stored.scale == 0)
    std::fill_n(codes, count, uint8_t{0});
  else
    for (int i = 0; i < count; ++i) codes[i] = uint8_t(Rounded((x[i] - low) / scale, 0, 15));
  return stored;
}

}  // namespace

KvScale QuantizeKv(KvQuant quant, const float* x, int count, uint8_t* codes) {
  if (quant == KvQuant::kFp8) {
    for (int i = 0; i < count; ++i) codes[i] = SaturatedFp8(x[i]);
    return {};
  }
  float finite = 0;
  for (int i = 0; i < count; ++i) finite += x[i] * 0.0f;  // NaN where x is NaN or infinite
  if (finite == 0) return quant == KvQuant::kInt8 ? QuantizeInt8(x, count, codes) : QuantizeInt4(x, count, codes);
  std::fill_n(codes, count, uint8_t{0});
  return {kNanF16, 0};
}

float DequantizeKv(KvQuant quant, uint8_t code, KvScale scale) {
  if (quant == KvQuant::kFp8) return Fp8E4M3ToF32(code);
  const float q = quant == KvQuant::kInt8 ? float(int8_t(code)) : float(code);
  return q * F16ToF32(scale.scale) + F16ToF32(scale.low);  // the product is exact
}

StatusOr<KvFormat> ParseKvFormat(std::string_view text) {
  for (const KvFormat format : kFormats)
    if (Name(format) == text) return format;
  return InvalidArgument("KV cache format '{}' is not supported; supported: float32, float16, bfloat16, fp8, int8, int4", text);
}

std::string_view Name(KvFormat format) {
  switch (format.quant) {
    case KvQuant::kFp8:
      return "fp8";
    case KvQuant::kInt8:
      return "int8";
    case KvQuant::kInt4:
      return "int4";
    case KvQuant::kNone:
      break;
  }
  return Name(format.dtype);
}

}  // namespace kvasir
