// Micro-kernels of Linear, compiled once for each ISA (rules in isa.h).
//
// A strip of MR rows x NV vectors of columns keeps MR * NV accumulators in registers; per k it loads NV weight vectors and
// broadcasts MR activations from memory. Shapes: 12 x 32 with AVX-512 (24 of 32 registers), 6 x 16 with AVX2, 4 x 8 otherwise;
// few rows take all 32 columns at once, so that decoding reads its panel as one stream.
//
// A tile of several strips goes through its panel in steps that fit the second-level cache with room to spare: all strips take
// one step before any goes on, with their sums kept in memory between. So the panel is read once from where it lies, and while
// the strips work in the cache they ask for the next step, little by little: memory and the dot units are busy at once.
#include <stdint.h>

#include "kernels/cpu/gemm_kernels.h"

#include "kernels/cpu/decode_kernels.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tile_kernels.h"

namespace kvasir::KVASIR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kStripRows = 12;
constexpr int VectorsOf(int) {
  return 2;
}
#elif defined(__AVX2__)
constexpr int kStripRows = 6;
constexpr int VectorsOf(int rows) {
  return rows <= 2 ? 4 : 2;
}
#else
constexpr int kStripRows = 4;
constexpr int VectorsOf(int rows) {
  return rows == 1 ? 8 : 2;
}
#endif
constexpr int kMaxRows = 8 * kStripRows;

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

constexpr int kUnitsAtOnce = 4;           // units (elements of k, or pairs) between two looks at what to fetch
constexpr int64_t kStepBytes = 64 << 10;  // of a panel, about: steps are of nearly equal length

// --- one k at a time: float32 and float16 weights ------------------------------------------------------------------

inline __attribute__((always_inline)) Vec LoadWeights(const float* p) {
  return Load(p);
}
inline __attribute__((always_inline)) Vec LoadWeights(const uint16_t* p) {
  return LoadF16(p);
}

template <typename W>
struct Single {
  static constexpr int kColumnBytes = sizeof(W);    // from one column of the panel to the next
  static constexpr int kUnitBytes = sizeof(float);  // of an activation
  static constexpr int64_t Units(int64_t k) { return k; }

  template <int MR, int NV>
  static inline __attribute__((always_inline)) void Unit(Vec (&acc)[MR][NV], const Rows<MR>& rows, const char* panel) {
    Vec w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = LoadWeights((const W*)panel + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
      const Vec x = Set(*rows.template At<float>(r));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = Fma(x, w[v], acc[r][v]);
    }
  }
};

// --- pairs: bfloat16 weights ---------------------------------------------------------------------------------------

struct Pair {
  static constexpr int kColumnBytes = 4;
#if defined(__AVX512BF16__)
  static constexpr int kUnitBytes = sizeof(uint32_t);
#else
  static constexpr int kUnitBytes = 2 * sizeof(float);
#endif
  static constexpr int64_t Units(int64_t k) {
    return (k + 1) / 2;
  }

  template <int MR, int NV>
  static inline __attribute__((always_inline)) void Unit(Vec (&acc)[MR][NV], const Rows<MR>& rows, const char* panel) {
#if defined(__AVX512BF16__)
    // Sums the pair's two products into the accumulator with its own rounding and flushes subnormals, whatever MXCSR says.
    __m512bh w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = (__m512bh)LoadPairs((const uint16_t*)panel + v * 2 * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(*rows.template At<int>(r));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, w[v]);
    }
#else
    UVec p[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) p[v] = LoadPairs((const uint16_t*)panel + v * 2 * kLanes);
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
#endif
  }
};

// --- strips and tiles --------------------------------------------------------------------------------------------------

// Goes on with the sums acc [MR][32], of NV vectors of columns, over `units` units.
template <typename Kind, int MR, int NV>
void Strip(const void* a, int64_t a_stride, const char* panel, int64_t units, Ahead ahead, float* acc) {
  constexpr int kRowBytes = kPanelColumns * Kind::kColumnBytes;
  Vec sums[MR][NV];
  LoadSums(sums, acc);
  Rows<MR> rows(a, a_stride);
  for (; units >= kUnitsAtOnce; units -= kUnitsAtOnce) {
    ahead.Fetch();
#pragma GCC unroll 4
    for (int i = 0; i < kUnitsAtOnce; ++i) {
      Kind::Unit(sums, rows, panel);
      rows.Advance(Kind::kUnitBytes);
      panel += kRowBytes;
    }
  }
  for (; units > 0; --units) {
    Kind::Unit(sums, rows, panel);
    rows.Advance(Kind::kUnitBytes);
    panel += kRowBytes;
  }
  StoreSums(sums, acc);
}

template <typename Kind, int MR = 1>
void RunStrip(int height, const void* a, int64_t a_stride, const char* panel, int64_t units, Ahead ahead, float* acc,
              int columns) {
  if (height == MR) {
    constexpr int kVectors = VectorsOf(MR);
    for (int first = 0; first < columns; first += kVectors * kLanes, ahead.lines = 0) {
      Strip<Kind, MR, kVectors>(a, a_stride, panel + first * Kind::kColumnBytes, units, ahead, acc + first);
    }
  } else if constexpr (MR < kStripRows) {
    RunStrip<Kind, MR + 1>(height, a, a_stride, panel, units, ahead, acc, columns);
  }
}

template <typename Kind>
void RunTile(const void* a, int64_t a_stride, int rows, const void* packed, int64_t k, const float* bias, float* out,
             int64_t out_stride, int columns) {
  constexpr int kRowBytes = kPanelColumns * Kind::kColumnBytes;
  alignas(64) float acc[kMaxRows * kPanelColumns];
  for (int i = 0; i < rows * kPanelColumns; i += kLanes) Store(acc + i, Zero());
  const int64_t strips = (rows + kStripRows - 1) / kStripRows, units = Kind::Units(k);
  const int64_t steps = strips == 1 ? 1 : (units * kRowBytes + kStepBytes - 1) / kStepBytes;
  const char *at = (const char*)a, *panel = (const char*)packed;
  for (int64_t i = 0; i < steps; ++i) {
    const int64_t count = PartBegin(units, steps, i + 1) - PartBegin(units, steps, i);
    const int64_t looks = count / kUnitsAtOnce * strips;  // after the last step comes the next panel
    const int lines = strips == 1 || looks == 0 ? 0 : (int)((count * kRowBytes / 64 + looks - 1) / looks);
    const char* next = panel + count * kRowBytes;
    for (int64_t s = 0; s < strips; ++s) {
      const int first = (int)PartBegin(rows, strips, s), height = (int)PartBegin(rows, strips, s + 1) - first;
      float *sums = acc + first * kPanelColumns, *to = out + first * out_stride;
      for (int r = 0; strips > 1 && i + 1 == steps && r < height; ++r) {  // rows lie far apart: their lines are there in time
        __builtin_prefetch(to + r * out_stride, 1);
        __builtin_prefetch(to + r * out_stride + kPanelColumns / 2, 1);
      }
      RunStrip<Kind>(height, at + first * a_stride, a_stride, panel, count,
                     Ahead{next + s * (count / kUnitsAtOnce) * lines * 64, lines}, sums, columns);
      if (i + 1 == steps) Finish(sums, height, bias, to, out_stride, columns);
    }
    at += count * Kind::kUnitBytes;
    panel = next;
  }
}

// --- weights stored as small floats ------------------------------------------------------------------------------------
//
// Part of a panel is decoded, all strips take it, then comes the next part: each code is decoded once for all rows of the tile.
// A few rows take the weights from the registers they were decoded in.

constexpr int64_t kDecodedPairs = 128;  // 16 KB, half of the first-level cache
constexpr int64_t kMxfp4GroupPairs = 16;

// Goes on with the sums acc [rows][32] over `pairs` decoded ones, while the panel's next `next_bytes` at `next` are fetched.
void RunDecoded(const char* a, int64_t a_stride, int rows, const uint16_t* decoded, int64_t pairs, const void* next,
                int64_t next_bytes, float* acc, int columns) {
  const int64_t strips = (rows + kStripRows - 1) / kStripRows, looks = pairs / kUnitsAtOnce;
  const int lines = looks == 0 ? 0 : (int)((next_bytes / 64 + looks * strips - 1) / (looks * strips));
  for (int64_t s = 0; s < strips; ++s) {
    const int first = (int)PartBegin(rows, strips, s), height = (int)PartBegin(rows, strips, s + 1) - first;
    RunStrip<Pair>(height, a + first * a_stride, a_stride, (const char*)decoded, pairs,
                   Ahead{(const char*)next + s * looks * lines * 64, lines}, acc + first * kPanelColumns, columns);
  }
}

// total += acc * scale, and acc = 0.
void AddGroup(const float* scales, int rows, float* acc, float* total) {
  for (int v = 0; v < kPanelColumns; v += kLanes) {
    const Vec scale = Load(scales + v);
    for (int r = 0; r < rows; ++r) {
      float *from = acc + r * kPanelColumns + v, *to = total + r * kPanelColumns + v;
      Store(to, Fma(Load(from), scale, Load(to)));
      Store(from, Zero());
    }
  }
}

#if defined(__AVX512VBMI__) && defined(__AVX512BF16__)
constexpr int kFusedRows = 8;

// Goes on with the sums acc [MR][32] over `pairs` of the panel. add: of mxfp4.
template <bool kFp8, int MR>
void FusedStrip(const void* a, int64_t a_stride, const uint8_t* panel, int64_t pairs, const uint16_t* add, float* acc) {
  Vec sums[MR][2];
  LoadSums(sums, acc);
  Rows<MR> rows(a, a_stride);
  DecodeVec more[2] = {};
  if constexpr (!kFp8) __builtin_memcpy(&more, add, sizeof(more));
  for (; pairs > 0; --pairs, panel += (kFp8 ? 2 : 1) * kPanelColumns) {
    __m512i w[2];
    if constexpr (kFp8) {
      DecodeFp8Row(panel, w);
    } else {
      DecodeVec values[2];
      DecodeMxfp4Row(panel, more[0], values[0]);
      DecodeMxfp4Row(panel + kPanelColumns / 2, more[1], values[1]);
      __builtin_memcpy(&w, &values, sizeof(w));
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(*rows.template At<int>(r));
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, (__m512bh)w[0]);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, (__m512bh)w[1]);
    }
    rows.Advance(sizeof(uint32_t));
  }
  StoreSums(sums, acc);
}

template <bool kFp8>
constexpr decltype(&FusedStrip<kFp8, 1>) kFusedStrips[kFusedRows] = {
    FusedStrip<kFp8, 1>, FusedStrip<kFp8, 2>, FusedStrip<kFp8, 3>, FusedStrip<kFp8, 4>,
    FusedStrip<kFp8, 5>, FusedStrip<kFp8, 6>, FusedStrip<kFp8, 7>, FusedStrip<kFp8, 8>};
#else
constexpr int kFusedRows = 0;
template <bool kFp8>
constexpr void (*kFusedStrips[1])(const void*, int64_t, const uint8_t*, int64_t, const uint16_t*, float*) = {nullptr};
#endif

void Fp8Tile(const void* a, int64_t a_stride, int rows, const void* packed, int64_t k, int64_t group, const float* bias,
             float* out, int64_t out_stride, int columns) {
  constexpr int64_t kPairBytes = 2 * kPanelColumns;
  alignas(64) uint16_t decoded[kDecodedPairs * 2 * kPanelColumns];
  asm("" : "=m"(decoded));  // what is read of it was written: the compiler cannot see that
  alignas(64) float acc[kMaxRows * kPanelColumns], total[kMaxRows * kPanelColumns];
  for (int i = 0; i < rows * kPanelColumns; i += kLanes) {
    Store(acc + i, Zero());
    Store(total + i, Zero());
  }
  const char* at = (const char*)a;
  const uint8_t* panel = (const uint8_t*)packed;
  for (int64_t left = Pair::Units(k); left > 0; left -= group / 2) {
    const float* scales = (const float*)panel;
    panel += kPanelColumns * sizeof(float);
    for (int64_t in_group = left < group / 2 ? left : group / 2; in_group > 0;) {
      const int64_t pairs = rows <= kFusedRows || in_group < kDecodedPairs ? in_group : kDecodedPairs;
      if (rows <= kFusedRows) {
        kFusedStrips<true>[rows - 1](at, a_stride, panel, pairs, nullptr, acc);
      } else {
        DecodeFp8(panel, pairs, decoded);
        RunDecoded(at, a_stride, rows, decoded, pairs, panel + pairs * kPairBytes, pairs * kPairBytes, acc, columns);
      }
      panel += pairs * kPairBytes;
      at += pairs * Pair::kUnitBytes;
      in_group -= pairs;
    }
    AddGroup(scales, rows, acc, total);
  }
  Finish(total, rows, bias, out, out_stride, columns);
}

// Scales are powers of two: they go into the decoded weights, which stay exact (a scale that would leave the range of bfloat16
// was refused, or made its weights zero, when the panel was packed).
void Mxfp4Tile(const void* a, int64_t a_stride, int rows, const void* packed, int64_t k, const float* bias, float* out,
               int64_t out_stride, int columns) {
  alignas(64) uint16_t decoded[kDecodedPairs * 2 * kPanelColumns], add[2 * kPanelColumns];
  asm("" : "=m"(decoded));
  alignas(64) float acc[kMaxRows * kPanelColumns];
  for (int i = 0; i < rows * kPanelColumns; i += kLanes) Store(acc + i, Zero());
  const char* at = (const char*)a;
  const uint8_t* panel = (const uint8_t*)packed;
  for (int64_t left = Pair::Units(k); left > 0;) {
    const uint8_t* begin = panel;
    int64_t pairs = 0;
    for (; pairs < kDecodedPairs && left > 0; left -= kMxfp4GroupPairs) {
      for (int j = 0; j < kPanelColumns; ++j) add[2 * j] = add[2 * j + 1] = (uint16_t)((panel[j] - 127) * 128);
      const int64_t in_group = left < kMxfp4GroupPairs ? left : kMxfp4GroupPairs;
      if (rows <= kFusedRows) {
        kFusedStrips<false>[rows - 1](at + pairs * Pair::kUnitBytes, a_stride, panel + kPanelColumns, in_group, add, acc);
      } else {
        DecodeMxfp4(panel + kPanelColumns, in_group, add, decoded + pairs * 2 * kPanelColumns);
      }
      panel += (in_group + 1) * kPanelColumns;
      pairs += in_group;
    }
    if (rows > kFusedRows) RunDecoded(at, a_stride, rows, decoded, pairs, panel, panel - begin, acc, columns);
    at += pairs * Pair::kUnitBytes;
  }
  Finish(acc, rows, bias, out, out_stride, columns);
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
    .strip_rows = kStripRows,
    .f32 = RunTile<Single<float>>,
    .f16 = RunTile<Single<uint16_t>>,
    .bf16 = RunTile<Pair>,
    .fp8 = Fp8Tile,
    .mxfp4 = Mxfp4Tile,
    .round_bf16 = RoundBF16,
#if defined(__AVX512BF16__)
    .bf16_bytes = 2,
#else
    .bf16_bytes = 4,
#endif
    .quant = &kQuantKernels,
};

}  // namespace kvasir::KVASIR_ISA
