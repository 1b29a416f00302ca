// Scans over one row of logits, compiled once per ISA (see isa.h).
#include "kernels/cpu/sample_kernels.h"

#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;

// Logits from `at`, with `pad` in the lanes past the end.
Vec LoadLogits(const float* logits, int64_t at, int64_t n, float pad) {
  if (at + kLanes <= n) return Load(logits + at);
  alignas(64) float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = at + i < n ? logits[at + i] : pad;
  return Load(lanes);
}

bool Scan(const float* logits, int64_t n, float* block_max) {
  IVec bad = {};
  for (int64_t begin = 0; begin < n; begin += kSampleBlock) {
    Vec top = Set(-kInfinity);
    const int64_t end = begin + kSampleBlock < n ? begin + kSampleBlock : n;
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec x = LoadLogits(logits, i, end, -kInfinity);
      bad |= ~(IVec)(x < Set(kInfinity));  // NaN compares false
      top = Max(top, x);
    }
    block_max[begin / kSampleBlock] = MaxLanes(top);
  }
  for (int i = 0; i < kLanes; ++i) {
    if (bad[i] != 0) return false;
  }
  return true;
}

// Running sums of lanes as doubles.
struct DoubleSum {
#if defined(__AVX512F__)
  __m512d low = {}, high = {};
  void Add(Vec v) {
    low = low + __builtin_convertvector(LowHalf(v), __m512d);
    high = high + __builtin_convertvector(HighHalf(v), __m512d);
  }
  double Total() const {
    const __m512d s = low + high;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
  }
#else
  double lanes[kLanes] = {};
  void Add(Vec v) {
    for (int i = 0; i < kLanes; ++i) lanes[i] += double(v[i]);
  }
  double Total() const {
    double sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    return sum;
  }
#endif
};

void ExpSums(const float* logits, int64_t n, float max, float scale, double* block_sum) {
  const Vec top = Set(max), factor = Set(scale * kLog2E);
  for (int64_t begin = 0; begin < n; begin += kSampleBlock) {
    const int64_t end = begin + kSampleBlock < n ? begin + kSampleBlock : n;
    DoubleSum sum;
    for (int64_t i = begin; i < end; i += kLanes) {
      sum.Add(Exp2OfNegative((LoadLogits(logits, i, end, -kInfinity) - top) * factor));
    }
    block_sum[begin / kSampleBlock] = sum.Total();
  }
}

void Weights(const float* logits, int64_t n, float max, float scale, float* weights) {
  const Vec top = Set(max), factor = Set(scale * kLog2E);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(weights + i, Exp2OfNegative((Load(logits + i) - top) * factor));
  if (i < n) StorePart(weights + i, Exp2OfNegative((LoadLogits(logits, i, n, -kInfinity) - top) * factor), n - i);
}

int64_t Collect(const float* logits, int64_t n, float threshold, int32_t first_id, int32_t* ids, float* values) {
  int64_t count = 0;
  int64_t i = 0;
#if defined(__AVX512F__)
  const __m512 bound = Set(threshold);
  const IVec lane = LaneIndex();
  for (; i + kLanes <= n; i += kLanes) {
    const __m512 x = Load(logits + i);
    const __mmask16 mask = _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ);
    if (mask == 0) continue;
    _mm512_storeu_ps(values + count, _mm512_maskz_compress_ps(mask, x));
    _mm512_storeu_si512(ids + count, _mm512_maskz_compress_epi32(mask, (__m512i)(lane + (first_id + int32_t(i)))));
    count += __builtin_popcount(mask);
  }
#else
  const Vec bound = Set(threshold);
  for (; i + kLanes <= n; i += kLanes) {
    const IVec hit = Load(logits + i) >= bound;
    bool any = false;
    for (int lane = 0; lane < kLanes; ++lane) any |= hit[lane] != 0;
    if (!any) continue;
    for (int lane = 0; lane < kLanes; ++lane) {
      values[count] = logits[i + lane];
      ids[count] = first_id + int32_t(i) + lane;
      count += hit[lane] != 0;
    }
  }
#endif
  for (; i < n; ++i) {
    if (!(logits[i] >= threshold)) continue;
    values[count] = logits[i];
    ids[count++] = first_id + int32_t(i);
  }
  return count;
}

int64_t SumCounts(IVec counts) {
  int64_t total = 0;
  for (int i = 0; i < kLanes; ++i) total -= counts[i];
  return total;
}

int64_t CountGreater(const float* logits, int64_t n, float value) {
  IVec counts = {};  // true is -1
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) counts += (IVec)(Load(logits + i) > Set(value));
  int64_t total = SumCounts(counts);
  for (; i < n; ++i) total += logits[i] > value;
  return total;
}

int64_t CountEqual(const float* logits, int64_t n, float value) {
  IVec counts = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) counts += (IVec)(Load(logits + i) == Set(value));
  int64_t total = SumCounts(counts);
  for (; i < n; ++i) total += logits[i] == value;
  return total;
}

}  // namespace

extern const SampleKernels kSampleKernels;
const SampleKernels kSampleKernels = {Scan, ExpSums, Weights, Collect, CountGreater, CountEqual};

}  // namespace kvasir::KVASIR_ISA
