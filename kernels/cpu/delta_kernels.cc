// Kernels of recurrent layers, compiled once per ISA (see isa.h).
#include "kernels/cpu/delta_kernels.h"

#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;

void ConvSilu(const float* const* rows, const float* weight, int64_t stride, int kernel, int64_t count, float* out) {
  for (int64_t c = 0; c < count; c += kLanes) {
    const int64_t left = count - c;
    Vec sum = Zero();
    for (int j = 0; j < kernel; ++j) {
      const float *w = weight + j * stride + c, *x = rows[j] + c;
      sum = left >= kLanes ? Fma(Load(w), Load(x), sum) : Fma(LoadPart(w, left), LoadPart(x, left), sum);
    }
    const Vec y = sum / (Set(1.0f) + Exp2(sum * Set(-kLog2E)));
    if (left >= kLanes) {
      Store(out + c, y);
    } else {
      StorePart(out + c, y, left);
    }
  }
}

void Normalize(const float* in, int64_t count, float eps, float scale, float* out) {
  Vec sum = Zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec x = count - i >= kLanes ? Load(in + i) : LoadPart(in + i, count - i);
    sum = Fma(x, x, sum);
  }
  const float factor = scale / __builtin_sqrtf(SumLanes(sum) + eps);
  for (int64_t i = 0; i < count; ++i) out[i] = in[i] * factor;
}

// A strip of columns, kVecs vectors wide: its sums stay in registers over both passes down the keys. kPart: the strip is one
// vector of which `left` columns are there.
template <int kVecs, bool kPart>
void StepStrip(float* state, int key_dim, int64_t stride, const float* q, const float* k, const float* v, float decay, float beta,
               float* out, int64_t left) {
  const auto load = [&](const float* p, int j) { return kPart ? LoadPart(p, left) : Load(p + j * kLanes); };
  const Vec keep = Set(decay);
  Vec sums[kVecs];
  for (int j = 0; j < kVecs; ++j) sums[j] = Zero();
  for (int d = 0; d < key_dim; ++d) {
    const Vec kd = Set(k[d]);
    for (int j = 0; j < kVecs; ++j) sums[j] = Fma(kd, load(state + d * stride, j) * keep, sums[j]);
  }
  Vec write[kVecs];
  for (int j = 0; j < kVecs; ++j) {
    write[j] = (load(v, j) - sums[j]) * Set(beta);
    sums[j] = Zero();
  }
  for (int d = 0; d < key_dim; ++d) {
    const Vec kd = Set(k[d]), qd = Set(q[d]);
    for (int j = 0; j < kVecs; ++j) {
      const Vec s = Fma(kd, write[j], load(state + d * stride, j) * keep);
      if constexpr (kPart) {
        StorePart(state + d * stride, s, left);
      } else {
        Store(state + d * stride + j * kLanes, s);
      }
      sums[j] = Fma(qd, s, sums[j]);
    }
  }
  for (int j = 0; j < kVecs; ++j) {
    if constexpr (kPart) {
      StorePart(out, sums[j], left);
    } else {
      Store(out + j * kLanes, sums[j]);
    }
  }
}

void DeltaStep(float* state, int key_dim, int value_dim, const float* q, const float* k, const float* v, float decay, float beta,
               float* out) {
  constexpr int kVecs = 4;
  int j = 0;
  for (; j + kVecs * kLanes <= value_dim; j += kVecs * kLanes)
    StepStrip<kVecs, false>(state + j, key_dim, value_dim, q, k, v + j, decay, beta, out + j, 0);
  for (; j + kLanes <= value_dim; j += kLanes)
    StepStrip<1, false>(state + j, key_dim, value_dim, q, k, v + j, decay, beta, out + j, 0);
  if (j < value_dim) StepStrip<1, true>(state + j, key_dim, value_dim, q, k, v + j, decay, beta, out + j, value_dim - j);
}

}  // namespace

extern const DeltaKernels kDeltaKernels;
const DeltaKernels kDeltaKernels = {ConvSilu, Normalize, DeltaStep};

}  // namespace kvasir::KVASIR_ISA
