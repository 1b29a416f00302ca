// Micro-kernels of Linear, compiled once for each ISA (rules in isa.h).
//
// A tile of MR rows x NV vectors of columns keeps MR * NV accumulators in registers over the whole of K; per k it loads NV
// weight vectors and broadcasts MR activations from memory. Shapes: 12 x 32 with AVX-512 (24 of 32 registers), 6 x 16 with AVX2,
// 4 x 8 otherwise; few rows take all 32 columns at once, so that decoding reads its panel as one stream.
#include <stdint.h>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kMaxRows = 12;
constexpr int VectorsOf(int) {
  return 2;
}
#elif defined(__AVX2__)
constexpr int kMaxRows = 6;
constexpr int VectorsOf(int rows) {
  return rows <= 2 ? 4 : 2;
}
#else
constexpr int kMaxRows = 4;
constexpr int VectorsOf(int rows) {
  return rows == 1 ? 8 : 2;
}
#endif

// Row r of the activations at byte offset 0. Three rows share a base pointer (+ 0, 1, 2 strides is an addressing mode), because
// twelve pointers would not fit the general registers.
template <int MR>
struct Rows {
  static constexpr int kBases = (MR + 2) / 3;
  const char* base[kBases];
  int64_t stride;
  inline __attribute__((always_inline)) Rows(const void* a, int64_t a_stride) : stride(a_stride) {
    for (int i = 0; i < kBases; ++i) base[i] = (const char*)a + i * 3 * a_stride;
  }
  template <typename T>
  inline __attribute__((always_inline)) const T* At(int r, int i = 0) const {
    return (const T*)(base[r / 3] + r % 3 * stride) + i;
  }
  inline __attribute__((always_inline)) void Advance(int64_t bytes) {
#pragma GCC unroll 4
    for (int i = 0; i < kBases; ++i) {
      base[i] += bytes;
      asm("" : "+r"(base[i]));  // keeps the compiler from turning the bases back into one pointer for each row
    }
  }
};

// Asks for a line per step of a tile until all are asked for. Tiles of few rows have no time for it: they wait for memory anyway.
template <int MR>
struct Puller {
  const char* at;
  const char* last;
  inline __attribute__((always_inline)) explicit Puller(TileAhead ahead)
      : at(ahead.at), last(ahead.at + (ahead.lines - 1) * 64) {}
  inline __attribute__((always_inline)) void Line() {
    if constexpr (MR > 2) {
      __builtin_prefetch(at, 0, 2);
      at += at < last ? 64 : 0;
    }
  }
};

// The first `count` columns of a vector that reaches over the weight's last column.
__attribute__((noinline)) void StoreTail(Vec v, const float* bias, float* out, int count) {
  float part[kLanes];
  Store(part, v);
  for (int j = 0; j < count; ++j) out[j] = bias != nullptr ? part[j] + bias[j] : part[j];
}

template <int MR, int NV>
inline __attribute__((always_inline)) void StoreTile(const Vec (&acc)[MR][NV], const float* bias, float* out, int64_t out_stride,
                                                     int columns) {
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const int first = v * kLanes, left = columns - first;
    const float* bias_at = bias != nullptr ? bias + first : nullptr;
    float* to = out + first;
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r, to += out_stride) {
      if (left >= kLanes) {
        Store(to, bias != nullptr ? acc[r][v] + Load(bias_at) : acc[r][v]);
      } else if (left > 0) {
        StoreTail(acc[r][v], bias_at, to, left);
      }
    }
  }
}

// --- one k at a time: float32 and float16 weights ------------------------------------------------------------------

inline __attribute__((always_inline)) Vec LoadWeights(const float* p) {
  return Load(p);
}
inline __attribute__((always_inline)) Vec LoadWeights(const uint16_t* p) {
  return LoadF16(p);
}

template <int MR, int NV, typename W>
void SingleTile(const void* a, int64_t a_stride, const void* packed, int64_t k, const float* bias, float* out, int64_t out_stride,
                int columns, TileAhead ahead) {
  const W* panel = (const W*)packed;
  Vec acc[MR][NV];
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = Zero();
  }
  Rows<MR> rows(a, a_stride);
  Puller<MR> pull(ahead);
  for (int64_t i = 0; i < k; ++i) {
    pull.Line();
    Vec w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = LoadWeights(panel + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
      const Vec x = Set(*rows.template At<float>(r));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = Fma(x, w[v], acc[r][v]);
    }
    rows.Advance(sizeof(float));
    panel += kPanelColumns;
  }
  StoreTile<MR, NV>(acc, bias, out, out_stride, columns);
}

// --- pairs: bfloat16 weights ---------------------------------------------------------------------------------------

template <int MR, int NV>
void PairTile(const void* a, int64_t a_stride, const void* packed, int64_t k, const float* bias, float* out, int64_t out_stride,
              int columns, TileAhead ahead) {
  const uint16_t* panel = (const uint16_t*)packed;
  Vec acc[MR][NV];
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = Zero();
  }
  Rows<MR> rows(a, a_stride);
  const int64_t pairs = (k + 1) / 2;
  Puller<MR> pull(ahead);
  for (int64_t i = 0; i < pairs; ++i) {
    pull.Line();
#if defined(__AVX512BF16__)
    // Sums the pair's two products into the accumulator with its own rounding and flushes subnormals, whatever MXCSR says.
    __m512bh w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = (__m512bh)LoadPairs(panel + v * 2 * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(*rows.template At<int>(r));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, w[v]);
    }
    rows.Advance(sizeof(uint32_t));
#else
    UVec p[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) p[v] = LoadPairs(panel + v * 2 * kLanes);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Vec w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) w[v] = half == 0 ? FirstOfPairs(p[v]) : SecondOfPairs(p[v]);
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r) {
        const Vec x = Set(*rows.template At<float>(r, half));
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][v] = Fma(x, w[v], acc[r][v]);
      }
    }
    rows.Advance(2 * sizeof(float));
#endif
    panel += 2 * kPanelColumns;
  }
  StoreTile<MR, NV>(acc, bias, out, out_stride, columns);
}

// --- choice of the tile ----------------------------------------------------------------------------------------------

struct SingleF32 {
  template <int MR, int NV>
  static constexpr auto kTile = SingleTile<MR, NV, float>;
};
struct SingleF16 {
  template <int MR, int NV>
  static constexpr auto kTile = SingleTile<MR, NV, uint16_t>;
};
struct PairBF16 {
  template <int MR, int NV>
  static constexpr auto kTile = PairTile<MR, NV>;
};

// kElementBytes: from one column of the panel to the next, at the same k (or pair).
template <typename Kind, int kElementBytes, int MR = 1>
void RunTile(const void* a, int64_t a_stride, int rows, const void* panel, int64_t k, const float* bias, float* out,
             int64_t out_stride, int columns, TileAhead ahead) {
  if (rows == MR) {
    constexpr int kVectors = VectorsOf(MR);
    for (int first = 0; first < columns; first += kVectors * kLanes) {
      const auto* from = (const char*)panel + first * kElementBytes;
      Kind::template kTile<MR, kVectors>(a, a_stride, from, k, bias != nullptr ? bias + first : nullptr, out + first, out_stride,
                                         columns - first, first == 0 ? ahead : TileAhead{(const char*)panel, 0});
    }
  } else if constexpr (MR < kMaxRows) {
    RunTile<Kind, kElementBytes, MR + 1>(a, a_stride, rows, panel, k, bias, out, out_stride, columns, ahead);
  }
}

// The same integer rounding everywhere: the conversion instruction of avx512_bf16 would flush subnormals.
void RoundBF16(const float* __restrict in, int64_t k, void* __restrict out) {
  for (int64_t i = 0; i < k; i += kLanes) {
    const UVec bits = BF16Bits(i + kLanes <= k ? Load(in + i) : LoadPart(in + i, k - i));
    const int lanes = k - i < kLanes ? (int)(k - i) : kLanes;
#if defined(__AVX512BF16__)
    uint16_t* to = (uint16_t*)out + i;
    _mm512_mask_cvtepi32_storeu_epi16(to, (__mmask16)((1u << lanes) - 1), (__m512i)bits);
#else
    float* to = (float*)out + i;
    const Vec value = (Vec)(bits << 16);
    if (lanes == kLanes) {
      Store(to, value);
    } else {
      StorePart(to, value, lanes);
    }
#endif
  }
  if (k % 2 == 0) return;
#if defined(__AVX512BF16__)
  ((uint16_t*)out)[k] = 0;
#else
  ((float*)out)[k] = 0;
#endif
}

}  // namespace

extern const QuantKernels kQuantKernels;
extern const GemmKernels kGemmKernels;
const GemmKernels kGemmKernels = {
    .max_rows = kMaxRows,
    .f32 = RunTile<SingleF32, 4>,
    .f16 = RunTile<SingleF16, 2>,
    .bf16 = RunTile<PairBF16, 4>,
    .round_bf16 = RoundBF16,
#if defined(__AVX512BF16__)
    .bf16_bytes = 2,
#else
    .bf16_bytes = 4,
#endif
    .quant = &kQuantKernels,
};

}  // namespace kvasir::KVASIR_ISA
