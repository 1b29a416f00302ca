// Micro-kernels of quantised Linear, compiled once for each ISA (rules in isa.h).
//
// A strip of MR rows x NV vectors of columns has two sets of registers: integer sums over one block, and float32 sums over
// blocks. Integer sums are exact, so every ISA computes the same; float32 sums are one chain over the blocks whatever the strip.
// A tile has several strips. All of them take a few blocks of the panel before any goes on to the next ones, with their float32
// sums kept in memory between: the panel is read once from where it lies, and the strips find it in the first-level cache.
#include "kernels/cpu/quant_kernels.h"

#include "kernels/cpu/tile_kernels.h"

namespace kvasir::KVASIR_ISA {
namespace {

constexpr int kBlock = 32, kQuads = kBlock / 4;
constexpr int kPanelVectors = kPanelColumns / kLanes;

enum class Kind { kInt8, kInt4 };

#if defined(__AVX512VNNI__)
constexpr int kRegisterRows = 6;
constexpr int VectorsOf(int) {
  return 2;
}
#elif defined(__AVX512F__)
constexpr int kRegisterRows = 4;
constexpr int VectorsOf(int) {
  return 2;
}
#elif defined(__AVX2__)
constexpr int kRegisterRows = 4;
constexpr int VectorsOf(int rows) {
  return rows == 1 ? 4 : rows == 2 ? 2 : 1;
}
#else
constexpr int kRegisterRows = 4;
constexpr int VectorsOf(int) {
  return 1;
}
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kStripRows = 2;  // every height is compiled by itself, for minutes with a sanitizer's checks
#else
constexpr int kStripRows = kRegisterRows;
#endif
constexpr int kMaxRows = 8 * kStripRows;
constexpr int64_t kBlocksAtOnce = 8;  // 8 KB of int8 panel: half of what the first-level cache holds, with the activations

// Four inputs of kLanes columns as bytes: int8 codes + 128, or int4 codes.
template <Kind kKind, int kVector>
inline __attribute__((always_inline)) UVec LoadCodes(const char* quad) {
  if constexpr (kKind == Kind::kInt8) {
    return LoadPairs((const uint16_t*)(quad + kVector * kLanes * 4));
  } else {
    constexpr int kHalfVectors = 16 / kLanes;
    const UVec both = LoadPairs((const uint16_t*)(quad + kVector % kHalfVectors * kLanes * 4));
    return (kVector < kHalfVectors ? both : both >> 4) & 0x0f0f0f0fu;
  }
}

// sum + the products of four unsigned bytes of w with four signed bytes of x, in each lane. kUnsigned: int8 weights enter as code
// + 128, and the sum must begin with the correction.
#if defined(__AVX512VNNI__)
constexpr bool kUnsigned = true;
template <Kind kKind>
inline __attribute__((always_inline)) IVec Dot(IVec sum, UVec w, int32_t x) {
  return (IVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
}
#elif defined(__AVX512F__)
constexpr bool kUnsigned = false;
template <Kind kKind>
inline __attribute__((always_inline)) IVec Dot(IVec sum, UVec w, int32_t x) {
  __m512i a = (__m512i)w, b = _mm512_set1_epi32(x);
  if constexpr (kKind == Kind::kInt8) {  // |w| <= 128 and |x| <= 127: a pair of products fits 16 bits
    const __m512i code = _mm512_xor_si512(a, _mm512_set1_epi8((char)0x80));
    a = _mm512_abs_epi8(code);
    b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(code), _mm512_setzero_si512(), b);
  }
  return sum + (IVec)_mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
}
#elif defined(__AVX2__)
constexpr bool kUnsigned = false;
template <Kind kKind>
inline __attribute__((always_inline)) IVec Dot(IVec sum, UVec w, int32_t x) {
  __m256i a = (__m256i)w, b = _mm256_set1_epi32(x);
  if constexpr (kKind == Kind::kInt8) {
    const __m256i code = _mm256_xor_si256(a, _mm256_set1_epi8((char)0x80));
    a = _mm256_abs_epi8(code);
    b = _mm256_sign_epi8(b, code);
  }
  return sum + (IVec)_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
}
#else
constexpr bool kUnsigned = true;
template <Kind kKind>
inline IVec Dot(IVec sum, UVec w, int32_t x) {
  for (int byte = 0; byte < 4; ++byte) sum += (IVec)(w >> (8 * byte) & 0xffu) * (int32_t)(int8_t)(x >> (8 * byte));
  return sum;
}
#endif

constexpr int64_t GroupHeaderBytes(Kind kind) {
  return (kind == Kind::kInt4 ? 4 : 2) * kPanelColumns;
}
constexpr int64_t BlockBytes(Kind kind) {
  return kBlock * kPanelColumns / (kind == Kind::kInt4 ? 2 : 1);
}

// How scales of weights meet the sums. kEach: a group is a block, and each block's sum is multiplied by both scales. kNested: the
// sum over a group's blocks is multiplied by the weights' scale. kWhole: so is the only group's, but by FinishWhole, so that it
// can be cut into steps.
enum class Scaling { kEach, kNested, kWhole };

// The integer sums of one block: a [MR] blocks of activations, panel the block's codes.
template <Kind kKind, int MR, int NV, int kFirst>
inline __attribute__((always_inline)) void BlockDots(IVec (&dot)[MR][NV], const QuantBlock* a, const char* panel) {
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    const int32_t first = kUnsigned && kKind == Kind::kInt8 ? a[r].correction : 0;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) dot[r][v] = IVec{} + first;
  }
#pragma GCC unroll 8
  for (int quad = 0; quad < kQuads; ++quad, panel += BlockBytes(kKind) / kQuads) {
    UVec w[NV];
    w[0] = LoadCodes<kKind, kFirst>(panel);
    if constexpr (NV > 1) w[1] = LoadCodes<kKind, kFirst + 1>(panel);
    if constexpr (NV > 2) w[2] = LoadCodes<kKind, kFirst + 2>(panel);
    if constexpr (NV > 3) w[3] = LoadCodes<kKind, kFirst + 3>(panel);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      int32_t x;
      __builtin_memcpy(&x, a[r].codes + 4 * quad, sizeof(x));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) dot[r][v] = Dot<kKind>(dot[r][v], w[v], x);
    }
  }
}

// Goes on with the float32 sums acc [MR][32], for the vectors of columns from kFirst on, over `blocks` blocks: whole groups,
// their headers among them, or with kWhole blocks only.
template <Kind kKind, Scaling kScaling, int MR, int NV, int kFirst>
void Strip(const QuantBlock* a, const float* sums, const char* panel, int64_t blocks, int64_t group_blocks, Ahead ahead,
           float* acc) {
  constexpr bool kLow = kKind == Kind::kInt4;
  acc += kFirst * kLanes;
  Vec total[MR][NV];
  if constexpr (kScaling != Scaling::kNested) LoadSums(total, acc);
  for (int64_t left = blocks; left > 0; left -= group_blocks, sums += MR) {
    Vec scale[NV], low[NV];
    if constexpr (kScaling != Scaling::kWhole) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        scale[v] = LoadF16((const uint16_t*)panel + (kFirst + v) * kLanes);
        if constexpr (kLow) low[v] = LoadF16((const uint16_t*)panel + kPanelColumns + (kFirst + v) * kLanes);
      }
      panel += GroupHeaderBytes(kKind);
    }
    if constexpr (kScaling == Scaling::kNested) {
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) total[r][v] = Zero();
      }
    }
    for (int64_t b = left < group_blocks ? left : group_blocks; b > 0; --b, a += MR, panel += BlockBytes(kKind)) {
      if (kFirst == 0) ahead.Fetch();
      IVec dot[MR][NV];
      BlockDots<kKind, MR, NV, kFirst>(dot, a, panel);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const Vec x = Set(a[r].scale);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const Vec factor = kScaling == Scaling::kEach ? scale[v] * x : x;
          total[r][v] = Fma(__builtin_convertvector(dot[r][v], Vec), factor, total[r][v]);
        }
      }
    }
    if constexpr (kScaling == Scaling::kNested) {
      Vec all[MR][NV];
      LoadSums(all, acc);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const Vec sum = Set(sums[r]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          all[r][v] = Fma(total[r][v], scale[v], all[r][v]);
          if constexpr (kLow) all[r][v] = Fma(low[v], sum, all[r][v]);
        }
      }
      StoreSums(all, acc);
    } else if constexpr (kLow && kScaling == Scaling::kEach) {
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const Vec sum = Set(sums[r]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) total[r][v] = Fma(low[v], sum, total[r][v]);
      }
    }
  }
  if constexpr (kScaling != Scaling::kNested) StoreSums(total, acc);
}

template <Kind kKind, Scaling kScaling, int MR, int kFirst = 0>
void StripColumns(const QuantBlock* a, const float* sums, const char* panel, int64_t blocks, int64_t group_blocks, Ahead ahead,
                  float* acc, int columns) {
  constexpr int NV = VectorsOf(MR);
  Strip<kKind, kScaling, MR, NV, kFirst>(a, sums, panel, blocks, group_blocks, ahead, acc);
  if constexpr (kFirst + NV < kPanelVectors) {
    if (columns > (kFirst + NV) * kLanes)
      StripColumns<kKind, kScaling, MR, kFirst + NV>(a, sums, panel, blocks, group_blocks, ahead, acc, columns);
  }
}

template <Kind kKind, Scaling kScaling, int MR = 1>
void RunStrip(int rows, const QuantBlock* a, const float* sums, const char* panel, int64_t blocks, int64_t group_blocks,
              Ahead ahead, float* acc, int columns) {
  if (rows == MR) {
    StripColumns<kKind, kScaling, MR>(a, sums, panel, blocks, group_blocks, ahead, acc, columns);
  } else if constexpr (MR < kStripRows) {
    RunStrip<kKind, kScaling, MR + 1>(rows, a, sums, panel, blocks, group_blocks, ahead, acc, columns);
  }
}

// The scales of the only group, and low.
template <Kind kKind>
void FinishWhole(const char* header, const float* sums, int rows, float* acc) {
  for (int v = 0; v < kPanelVectors; ++v) {
    const Vec scale = LoadF16((const uint16_t*)header + v * kLanes);
    const Vec low = kKind == Kind::kInt4 ? LoadF16((const uint16_t*)header + kPanelColumns + v * kLanes) : Zero();
    for (int r = 0; r < rows; ++r) {
      float* at = acc + r * kPanelColumns + v * kLanes;
      Vec x = Load(at) * scale;
      if constexpr (kKind == Kind::kInt4) x = Fma(low, Set(sums[r]), x);
      Store(at, x);
    }
  }
}

// Where a tile's strips lie.
struct Strips {
  const char* tile;
  int rows;
  int64_t count, blocks, row_bytes;
  Strips(const void* a, int tile_rows, int64_t num_blocks, int64_t groups)
      : tile((const char*)a),
        rows(tile_rows),
        count((tile_rows + kStripRows - 1) / kStripRows),
        blocks(num_blocks),
        row_bytes(num_blocks * (int64_t)sizeof(QuantBlock) + groups * (int64_t)sizeof(float)) {}
  int First(int64_t s) const { return (int)PartBegin(rows, count, s); }
  int Height(int64_t s) const { return First(s + 1) - First(s); }
  const QuantBlock* Blocks(int64_t s) const { return (const QuantBlock*)(tile + First(s) * row_bytes); }
  const float* Sums(int64_t s) const { return (const float*)(Blocks(s) + blocks * Height(s)); }
};

template <Kind kKind, Scaling kScaling>
void RunSteps(const Strips& strips, const char* panel, int64_t group_blocks, float* acc, int columns) {
  constexpr bool kWhole = kScaling == Scaling::kWhole;
  const int64_t step_groups = kWhole ? 0 : (group_blocks >= kBlocksAtOnce ? 1 : kBlocksAtOnce / group_blocks);
  const int64_t step = strips.count == 1 ? strips.blocks : kWhole ? kBlocksAtOnce : step_groups * group_blocks;
  const char* const header = panel;
  if (kWhole) panel += GroupHeaderBytes(kKind);
  for (int64_t block = 0, group = 0; block < strips.blocks; block += step, group += step_groups) {
    const int64_t count = strips.blocks - block < step ? strips.blocks - block : step;
    const int64_t step_bytes = step_groups * GroupHeaderBytes(kKind) + step * BlockBytes(kKind);
    const int64_t lines = strips.count == 1 ? 0 : (step_bytes / 64 + step * strips.count - 1) / (step * strips.count);
    for (int64_t s = 0; s < strips.count; ++s) {
      const int height = strips.Height(s);
      RunStrip<kKind, kScaling>(height, strips.Blocks(s) + block * height, strips.Sums(s) + group * height, panel, count,
                                group_blocks, Ahead{panel + step_bytes + s * step * lines * 64, (int)lines},
                                acc + strips.First(s) * kPanelColumns, columns);
    }
    panel += step_bytes;
  }
  if (!kWhole) return;
  for (int64_t s = 0; s < strips.count; ++s)
    FinishWhole<kKind>(header, strips.Sums(s), strips.Height(s), acc + strips.First(s) * kPanelColumns);
}

template <Kind kKind>
void RunTile(const void* a, int rows, const void* packed, int64_t blocks, int64_t group_blocks, const float* bias, float* out,
             int64_t out_stride, int columns) {
  alignas(64) float acc[kMaxRows * kPanelColumns];
  for (int i = 0; i < rows * kPanelColumns; i += kLanes) Store(acc + i, Zero());
  const char* panel = (const char*)packed;
  const Strips strips(a, rows, blocks, (blocks + group_blocks - 1) / group_blocks);
  for (int r = 0; rows > kStripRows && r < rows; ++r) {  // rows lie far apart: their lines are there when the sums are
    __builtin_prefetch(out + r * out_stride, 1);
    __builtin_prefetch(out + r * out_stride + kPanelColumns / 2, 1);
  }
  if (group_blocks >= blocks) {
    RunSteps<kKind, Scaling::kWhole>(strips, panel, group_blocks, acc, columns);
  } else if (group_blocks == 1) {
    RunSteps<kKind, Scaling::kEach>(strips, panel, group_blocks, acc, columns);
  } else {
    RunSteps<kKind, Scaling::kNested>(strips, panel, group_blocks, acc, columns);
  }
  Finish(acc, rows, bias, out, out_stride, columns);
}

void QuantizeRow(const float* in, int64_t k, int64_t group_blocks, int64_t block_stride, QuantBlock* to, float* sums) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  constexpr int kVectors = kBlock / kLanes;
  const int64_t blocks = (k + kBlock - 1) / kBlock;
  float group_sum = 0;
  for (int64_t b = 0; b < blocks; ++b, to += block_stride) {
    Vec x[kVectors], most = Zero(), finite = Zero();
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = b * kBlock + v * kLanes, left = k - at;
      x[v] = left >= kLanes ? Load(in + at) : LoadPart(in + at, left);
      most = Max(most, Abs(x[v]));
      finite = finite + x[v] * Zero();
    }
    float scale = MaxLanes(most) / 127 + SumLanes(finite);
    float inverse = scale > 0 ? 1 / scale : 0;
    if (inverse == kInfinity) scale = inverse = 0;
    IVec total = IVec{};
    for (int v = 0; v < kVectors; ++v) {
      // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
      const IVec code = (IVec)(x[v] * Set(inverse) + Set(12582912.0f)) - 0x4b400000;
      const IVec kept = inverse > 0 ? code : IVec{};
      total += kept;
      const Bytes bytes = __builtin_convertvector(kept, Bytes);
      __builtin_memcpy(to->codes + v * kLanes, &bytes, sizeof(bytes));
    }
    int32_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += total[i];
    to->scale = scale;
    to->correction = -128 * sum;
    group_sum += scale * (float)sum;
    if ((b + 1) % group_blocks == 0 || b + 1 == blocks) {
      *sums = group_sum;
      sums += block_stride;
      group_sum = 0;
    }
  }
}

}  // namespace

extern const QuantKernels kQuantKernels;
const QuantKernels kQuantKernels = {
    .max_rows = kMaxRows,
    .strip_rows = kStripRows,
    .int8 = RunTile<Kind::kInt8>,
    .int4 = RunTile<Kind::kInt4>,
    .quantize_row = QuantizeRow,
};

}  // namespace kvasir::KVASIR_ISA
