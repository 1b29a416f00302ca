// Elementwise kernels of one row, compiled once per ISA (see isa.h).
#include "kernels/cpu/fused_kernels.h"

#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

void AddRmsNorm(float* residual, const float* delta, const float* weight, float eps, int64_t width, float* out) {
  // Four chains of lanes, joined in a fixed order: the sum depends on the width only.
  Vec sums[4] = {Zero(), Zero(), Zero(), Zero()};
  int64_t j = 0;
  for (int chain = 0; j < width; j += kLanes, chain = (chain + 1) & 3) {
    const int64_t left = width - j;
    Vec x;
    if (left >= kLanes) {
      x = Load(residual + j);
      if (delta != nullptr) {
        x = x + Load(delta + j);
        Store(residual + j, x);
      }
    } else {
      x = LoadPart(residual + j, left);
      if (delta != nullptr) {
        x = x + LoadPart(delta + j, left);
        StorePart(residual + j, x, left);
      }
    }
    sums[chain] = Fma(x, x, sums[chain]);
  }
  const float mean = SumLanes((sums[0] + sums[1]) + (sums[2] + sums[3])) / float(width);
  const Vec scale = Set(1.0f / __builtin_sqrtf(mean + eps));
  for (j = 0; j + kLanes <= width; j += kLanes) Store(out + j, Load(residual + j) * scale * Load(weight + j));
  if (j < width) {
    StorePart(out + j, LoadPart(residual + j, width - j) * scale * LoadPart(weight + j, width - j), width - j);
  }
}

void Rotate(const float* in, int head_dim, const float* cos, const float* sin, int half, float* out) {
  int j = 0;
  for (; j + kLanes <= half; j += kLanes) {
    const Vec x = Load(in + j), y = Load(in + half + j), c = Load(cos + j), s = Load(sin + j);
    Store(out + j, x * c - y * s);
    Store(out + half + j, y * c + x * s);
  }
  for (; j < half; ++j) {
    const float x = in[j], y = in[half + j];
    out[j] = x * cos[j] - y * sin[j];
    out[half + j] = y * cos[j] + x * sin[j];
  }
  for (j = 2 * half; j < head_dim; ++j) out[j] = in[j];
}

Vec Silu(Vec gate, Vec up) {
  return gate / (Set(1.0f) + Exp2(gate * Set(-1.44269504088896340736f))) * up;
}

void GatedSilu(const float* gate, const float* up, int64_t count, float* out) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) Store(out + j, Silu(Load(gate + j), Load(up + j)));
  if (j < count) StorePart(out + j, Silu(LoadPart(gate + j, count - j), LoadPart(up + j, count - j)), count - j);
}

void ToBF16(const float* in, int64_t count, uint16_t* out) {
  int64_t j = 0;
  for (; j < count; j += kLanes) {
    const int64_t left = count - j;
    const HVec half = __builtin_convertvector(BF16Bits(left >= kLanes ? Load(in + j) : LoadPart(in + j, left)), HVec);
    __builtin_memcpy(out + j, &half, left >= kLanes ? sizeof(half) : size_t(left) * 2);
  }
}

#if defined(__F16C__)
void ToF16(const float* in, int64_t count, uint16_t* out) {
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) {
    _mm_storeu_si128((__m128i*)(out + j), _mm256_cvtps_ph(_mm256_loadu_ps(in + j), _MM_FROUND_TO_NEAREST_INT));
  }
  for (; j < count; ++j) out[j] = _cvtss_sh(in[j], _MM_FROUND_TO_NEAREST_INT);
}
#else
uint16_t HalfBits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (bits < 0x38800000u) {  // subnormal: let the adder round
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    uint32_t sum;
    __builtin_memcpy(&sum, &magnitude, 4);
    return uint16_t(sign | (sum - 0x3f000000u));
  }
  bits += 0xfffu + (bits >> 13 & 1u);
  return uint16_t(sign | ((bits - 0x38000000u) >> 13));
}

void ToF16(const float* in, int64_t count, uint16_t* out) {
  for (int64_t j = 0; j < count; ++j) out[j] = HalfBits(in[j]);
}
#endif

}  // namespace

extern const FusedKernels kFusedKernels;
const FusedKernels kFusedKernels = {AddRmsNorm, Rotate, GatedSilu, ToF16, ToBF16};

}  // namespace kvasir::KVASIR_ISA
