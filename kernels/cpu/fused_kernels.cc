// Elementwise kernels of one row, compiled once per ISA (see isa.h).
#include "kernels/cpu/fused_kernels.h"

#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;

Vec LoadUpTo(const float* p, int64_t left) {
  return left >= kLanes ? Load(p) : LoadPart(p, left);
}

void StoreUpTo(float* p, Vec v, int64_t left) {
  if (left >= kLanes) {
    Store(p, v);
  } else {
    StorePart(p, v, left);
  }
}

// Four chains of lanes, joined in a fixed order: a sum depends on the width only.
float Join(const Vec (&sums)[4]) {
  return SumLanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <bool kLayerNorm>
void AddNorm(float* residual, const float* delta, float scale, const float* weight, const float* bias, float eps, int64_t width,
             float* out) {
  Vec sums[4] = {Zero(), Zero(), Zero(), Zero()};
  for (int64_t j = 0, chain = 0; j < width; j += kLanes, chain = (chain + 1) & 3) {
    Vec x = LoadUpTo(residual + j, width - j);
    if (delta != nullptr) {
      x = x + LoadUpTo(delta + j, width - j) * Set(scale);
      StoreUpTo(residual + j, x, width - j);
    }
    sums[chain] = kLayerNorm ? sums[chain] + x : Fma(x, x, sums[chain]);
  }
  Vec mean = Zero();
  float variance = Join(sums) / float(width);
  if constexpr (kLayerNorm) {
    mean = Set(variance);
    for (Vec& sum : sums) sum = Zero();
    for (int64_t j = 0, chain = 0; j < width; j += kLanes, chain = (chain + 1) & 3) {
      Vec x = LoadUpTo(residual + j, width - j) - mean;
      if (width - j < kLanes) x = LaneIndex() < int32_t(width - j) ? x : Zero();
      sums[chain] = Fma(x, x, sums[chain]);
    }
    variance = Join(sums) / float(width);
  }
  const Vec factor = Set(1.0f / __builtin_sqrtf(variance + eps));
  for (int64_t j = 0; j < width; j += kLanes) {
    Vec x = LoadUpTo(residual + j, width - j);
    if constexpr (kLayerNorm) x = x - mean;
    x = x * factor;
    if (weight != nullptr) x = x * LoadUpTo(weight + j, width - j);
    if (bias != nullptr) x = x + LoadUpTo(bias + j, width - j);
    StoreUpTo(out + j, x, width - j);
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

// x * sigmoid(slope * x)
Vec Swish(Vec x, float slope) {
  return x / (Set(1.0f) + Exp2(x * Set(-kLog2E * slope)));
}

// x * Phi(x), by Phi(-|x|) = erfc(z) / 2 with z = |x| / sqrt(2) and erfc(z) = e^(-z^2) * t * P(t), t = 1 / (1 + 0.35 z): minimax
// to 7e-9 for z up to 10, where e^(-z^2) is no longer a float. So the far negative side keeps its digits too.
Vec Gelu(Vec x) {
  const Vec t = Set(1.0f) / Fma(Abs(x), Set(0.35f * 0.70710678118654752440f), Set(1.0f));
  Vec y = Set(0x1.3a975cp-5f);
  y = Fma(y, t, Set(-0x1.457f9ep-3f));
  y = Fma(y, t, Set(0x1.73aa08p-3f));
  y = Fma(y, t, Set(-0x1.c6449ap-6f));
  y = Fma(y, t, Set(0x1.647fe4p-4f));
  y = Fma(y, t, Set(0x1.2b1348p-3f));
  y = Fma(y, t, Set(0x1.35a2cep-3f));
  y = Fma(y, t, Set(0x1.80d29cp-3f));
  y = Fma(y, t, Set(0x1.93bd52p-3f));
  y = Fma(y, t, Set(0x1.94726p-3f));
  const Vec tail = Set(0.5f) * y * t * Exp2OfNegative(x * x * Set(-0.5f * kLog2E));
  return x > Zero() ? x - x * tail : x * tail;
}

// (1 + tanh(y)) / 2 = sigmoid(2 y): no digits are lost on the negative side.
Vec GeluTanh(Vec x) {
  const Vec inner = x * Fma(x * x, Set(0.044715f), Set(1.0f));
  return x / (Set(1.0f) + Exp2(inner * Set(-2 * 0.79788456080286535588f * kLog2E)));
}

Vec Min(Vec a, Vec b) {
  return a < b ? a : b;
}

// Orders as in Activation of device.h.
template <int kActivation>
Vec Act(Vec x, float alpha, float limit) {
  if constexpr (kActivation == 0) return Swish(x, 1.0f);
  if constexpr (kActivation == 1) return Gelu(x);
  if constexpr (kActivation == 2) return GeluTanh(x);
  if constexpr (kActivation == 3) return x > Zero() ? x : Zero();
  if constexpr (kActivation == 4) return x > Zero() ? x * x : Zero();
  return Swish(Min(x, Set(limit)), alpha);
}

template <int kActivation>
void Activate(const float* in, const float* up, int64_t count, float* out, float alpha, float limit) {
  for (int64_t j = 0; j < count; j += kLanes) {
    Vec y = Act<kActivation>(LoadUpTo(in + j, count - j), alpha, limit);
    if (up != nullptr) {
      Vec u = LoadUpTo(up + j, count - j);
      if constexpr (kActivation == 5) {
        u = Min(u, Set(limit));
        u = (u > Set(-limit) ? u : Set(-limit)) + Set(1.0f);
      }
      y = y * u;
    }
    StoreUpTo(out + j, y, count - j);
  }
}

void SoftCap(float* data, int64_t count, float scale, float softcap) {
  const Vec inner = Set(scale / softcap), outer = Set(softcap);
  for (int64_t j = 0; j < count; j += kLanes) StoreUpTo(data + j, outer * Tanh(LoadUpTo(data + j, count - j) * inner), count - j);
}

template <bool kSilu>
void MultiplyGate(float* data, const float* gate, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec x = LoadUpTo(gate + j, count - j);
    const Vec factor = (kSilu ? x : Set(1.0f)) / (Set(1.0f) + Exp2(x * Set(-kLog2E)));
    StoreUpTo(data + j, LoadUpTo(data + j, count - j) * factor, count - j);
  }
}

void AddScaled(float* residual, const float* in, float scale, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes)
    StoreUpTo(residual + j, LoadUpTo(residual + j, count - j) + LoadUpTo(in + j, count - j) * Set(scale), count - j);
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
const FusedKernels kFusedKernels = {
    {AddNorm<false>, AddNorm<true>},
    Rotate,
    {Activate<0>, Activate<1>, Activate<2>, Activate<3>, Activate<4>, Activate<5>},
    SoftCap,
    {MultiplyGate<false>, MultiplyGate<true>},
    AddScaled,
    ToF16,
    ToBF16,
};

}  // namespace kvasir::KVASIR_ISA
