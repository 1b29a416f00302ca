// Attention over one task, compiled once per ISA (see isa.h). Scores for 64 slots, online softmax, weighted values; four queries
// at a time share each loaded vector of K and V. Every (query, slot) score and every (query, dim) sum is one chain in a fixed
// order.
#include "kernels/cpu/attention_kernels.h"

#include "kernels/cpu/kv_decode.h"
#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

// kPairDot: bfloat16 with q and the weights rounded to bfloat16 too, two products per lane at once (vdpbf16ps).
enum class Format { kF32, kF16, kBF16, kPairDot };

template <Format F>
constexpr bool kPaired = F == Format::kBF16 || F == Format::kPairDot;
template <Format F>
constexpr int kElementBytes = F == Format::kF32 ? 4 : 2;

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kTileSlots = 16;
constexpr int kTiles = kStepSlots / kTileSlots;
constexpr int kStepVecs = kStepSlots / kLanes;
constexpr int kTileVecs = kTileSlots / kLanes;
constexpr int kQueries = 4;                       // sharing each load
constexpr int kScoreVecs = kLanes == 16 ? 4 : 2;  // vectors of slots per register tile of scores
constexpr int kValueVecs = kLanes == 16 ? 4 : 2;  // vectors of dims per register tile of values

// Where one step's K and V lie. Rows of K are dims (or pairs of dims), rows of V slots (or pairs of slots).
struct StepTiles {
  Bytes k[kStepVecs];  // first row of each vector of slots
  Bytes v[kTiles];     // first row of each tile
  int64_t k_row = 0;   // bytes from row to row
  int64_t v_row = 0;
};

// The pages of the next step, in the order of their addresses: asked for a few lines at a time while this step is computed. They
// lie scattered, so the hardware does not see them coming. Into L2 only: the few L1 miss buffers would limit the rate
// (measured on Zen 4, runs of 4 KB at random: 8 GB/s without, 11 into L1, 14 into L2).
struct Ahead {
  Bytes runs[kTiles] = {};
  int left = 0;   // runs after this one
  int lines = 1;  // of each pull: the pulls of all queries together cover the step
  int64_t run_bytes = 0;
  Bytes at = nullptr;
  Bytes end = nullptr;
  void Pull() {
    if (at == end) return;
    for (int line = 0; line < lines; ++line) __builtin_prefetch(at + line * 64, 0, 1);
    at += lines * 64;
    if (at < end) return;
    at = end = nullptr;
    if (left == 0) return;
    at = runs[--left];
    end = at + run_bytes;
  }
};

struct State {
  float* acc;      // [queries][padded]
  float* run_acc;  // the splits merged so far
  float* sum;      // [queries][kLanes] sums of weights, by lane
  float* max;      // [queries]
  float* run_max;
  float* run_sum;
  unsigned char* q;       // [queries][padded] float, or bfloat16 for kPairDot; scaled by scale * log2(e)
  float* scores;          // [kQueries][kStepSlots]
  float* weights;         // the same, or bfloat16 pairs for kPairDot
  unsigned char* k_tile;  // gathered steps
  unsigned char* v_tile;
};

State Carve(const AttendTask& task, int queries, int padded) {
  float* at = reinterpret_cast<float*>(task.workspace);
  const auto take = [&at](int64_t floats) {
    float* p = at;
    at += (floats + 15) / 16 * 16;
    return p;
  };
  State s;
  s.acc = take(int64_t{queries} * padded);
  s.run_acc = take(int64_t{queries} * padded);
  s.q = reinterpret_cast<unsigned char*>(take(int64_t{queries} * padded));
  s.sum = take(int64_t{queries} * kLanes);
  s.max = take(queries);
  s.run_max = take(queries);
  s.run_sum = take(queries);
  s.scores = take(kQueries * kStepSlots);
  s.weights = take(kQueries * kStepSlots);
  s.k_tile = reinterpret_cast<unsigned char*>(take(int64_t{kStepSlots} * padded));
  s.v_tile = reinterpret_cast<unsigned char*>(take(int64_t{kStepSlots} * padded));
  return s;
}

template <Format F>
void PrepareQueries(const AttendTask& task, int padded, State& s) {
  const float factor = task.scale * kLog2E;
  for (int r = 0; r < task.rows; ++r) {
    for (int h = 0; h < task.group; ++h) {
      const int64_t row = task.row_ids != nullptr ? task.row_ids[r] : r;
      const float* q = task.q + row * task.row_stride + int64_t{h} * task.head_dim;
      const int64_t n = int64_t{r} * task.group + h;
      for (int j = 0; j < padded; j += kLanes) {
        const int left = task.head_dim - j;
        const Vec x = (left >= kLanes ? Load(q + j) : left > 0 ? LoadPart(q + j, left) : Zero()) * Set(factor);
        if constexpr (F == Format::kPairDot) {
          const HVec half = __builtin_convertvector(BF16Bits(x), HVec);
          __builtin_memcpy(s.q + 2 * (n * padded + j), &half, sizeof(half));
        } else {
          Store(reinterpret_cast<float*>(s.q) + n * padded + j, x);
        }
      }
    }
  }
}

// Pages whose tiles can be read in place.
bool InPlace(const AttendTask& task) {
  return task.block_tokens % kTileSlots == 0 && task.head_dim % kTileSlots == 0;
}

// Tiles of the step's slots [low, high); whole tiles before low are never read from memory that may have been given back.
template <Format F>
void LocateTiles(const AttendTask& task, int64_t step, int low, int high, StepTiles& tiles) {
  constexpr int kPair = kPaired<F> ? 2 : 1;
  tiles.k_row = int64_t{task.block_tokens} * kPair * kElementBytes<F>;
  tiles.v_row = int64_t{task.head_dim} * kPair * kElementBytes<F>;
  for (int tile = 0; tile * kTileSlots < high; ++tile) {
    const int used = tile < low / kTileSlots ? low / kTileSlots : tile;
    const int64_t slot = step + used * kTileSlots;
    const int64_t page = slot / task.block_tokens;
    const int64_t inside = slot - page * task.block_tokens;
    Bytes k = PageAt(task, page);
    if (!task.keys_only) tiles.v[tile] = k + task.page_bytes + inside * task.head_dim * kElementBytes<F>;
    k += inside * kPair * kElementBytes<F>;
    for (int i = 0; i < kTileVecs; ++i) tiles.k[tile * kTileVecs + i] = k + i * kLanes * kPair * kElementBytes<F>;
  }
}

void LookAhead(const AttendTask& task, int64_t step, int queries, Ahead& ahead) {
  // Blocks of less than a tile would be more runs than are kept, and too short to ask for ahead.
  if (task.block_tokens < kTileSlots || kStepSlots % task.block_tokens != 0) return;
  const int runs = kStepSlots / task.block_tokens;
  ahead.run_bytes = int64_t(task.page_bytes) * (task.keys_only ? 1 : 2);
  for (int i = 0; i < runs; ++i) ahead.runs[runs - 1 - i] = PageAt(task, step / task.block_tokens + i);
  ahead.left = runs - 1;
  ahead.lines = queries <= kQueries ? kLanes / 4 : queries <= 2 * kQueries ? (kLanes / 4 + 1) / 2 : 1;
  ahead.at = ahead.runs[ahead.left];
  ahead.end = ahead.at + ahead.run_bytes;
}

// The same for any geometry: copies the step's slots [low, high) to padded tiles in scratch, zeros elsewhere.
template <Format F>
void GatherTiles(const AttendTask& task, int64_t step, int low, int high, int padded, State& s, StepTiles& tiles) {
  constexpr bool paired = kPaired<F>;
  constexpr int kPair = paired ? 2 : 1, kBytes = kElementBytes<F>;
  __builtin_memset(s.k_tile, 0, size_t{kStepSlots} * padded * kBytes);
  if (!task.keys_only) __builtin_memset(s.v_tile, 0, size_t{kStepSlots} * padded * kBytes);
  for (int i = low; i < high; ++i) {
    const int64_t page = (step + i) / task.block_tokens;
    const int slot = int(step + i - page * task.block_tokens);
    Bytes k = PageAt(task, page), v = k + task.page_bytes;
    for (int j = 0; j < task.head_dim; ++j) {
      const int64_t k_to = paired ? (int64_t{j / 2} * kStepSlots + i) * 2 + j % 2 : int64_t{j} * kStepSlots + i;
      const int64_t v_to = paired ? (int64_t{i / 2} * padded + j) * 2 + i % 2 : int64_t{i} * padded + j;
      __builtin_memcpy(s.k_tile + k_to * kBytes, k + KElement(paired, task.block_tokens, task.head_dim, slot, j) * kBytes,
                       kBytes);
      if (task.keys_only) continue;
      __builtin_memcpy(s.v_tile + v_to * kBytes, v + VElement(paired, task.block_tokens, task.head_dim, slot, j) * kBytes,
                       kBytes);
    }
  }
  tiles.k_row = int64_t{kStepSlots} * kPair * kBytes;
  tiles.v_row = int64_t{padded} * kPair * kBytes;
  for (int i = 0; i < kStepVecs; ++i) tiles.k[i] = s.k_tile + int64_t{i} * kLanes * kPair * kBytes;
  for (int i = 0; i < kTiles; ++i) tiles.v[i] = s.v_tile + int64_t{i} * kTileSlots * padded * kBytes;
}

// The same from codes, for any geometry: float32 tiles of what they stand for.
template <AttendCodes kKind>
void DecodeTiles(const AttendTask& task, int64_t step, int low, int high, int padded, State& s, StepTiles& tiles) {
  const int first_tile = low / kTileSlots;
  auto *const k = reinterpret_cast<float*>(s.k_tile), *const v = reinterpret_cast<float*>(s.v_tile);
  SlotScales<kStepSlots> k_scales, v_scales;
  LocateScales(task, step, low, high, k_scales, v_scales);
  const int bytes = CodeBytes(task.codes == AttendCodes::kInt4, task.head_dim);
  for (int tile = first_tile; tile * kTileSlots < high; ++tile) {
    const int at = tile * kTileSlots, from = at > low ? at : low, to = at + kTileSlots < high ? at + kTileSlots : high;
    DecodeKeys<kKind, kTileSlots>(task, step + at, from - at, to - at, bytes, kStepSlots, k_scales.At(at), k + at);
    // Rows that no key has: q is zero there.
    for (int j = task.head_dim; j < padded; ++j) __builtin_memset(k + j * kStepSlots + at, 0, kTileSlots * sizeof(float));
  }
  for (int slot = low; slot < high; ++slot) {
    const int64_t page = (step + slot) / task.block_tokens, inside = step + slot - page * task.block_tokens;
    Bytes row = PageAt(task, page) + task.page_bytes + size_t(inside) * task.row_bytes;
    DecodeValues<kKind>(row, task.head_dim, padded, v_scales.scale[slot], v_scales.low[slot], v + int64_t{slot} * padded);
  }
  tiles.k_row = int64_t{kStepSlots} * int64_t{sizeof(float)};
  tiles.v_row = int64_t{padded} * int64_t{sizeof(float)};
  for (int i = 0; i < kStepVecs; ++i) {  // what lies before the first tile is not there: any slots will do
    const int vec = i < first_tile * kTileVecs ? first_tile * kTileVecs : i;
    tiles.k[i] = s.k_tile + int64_t{vec} * kLanes * int64_t{sizeof(float)};
  }
  for (int i = 0; i < kTiles; ++i) tiles.v[i] = s.v_tile + int64_t{i} * kTileSlots * tiles.v_row;
}

// Latent KV: turns the step's keys, in place or gathered, into a tile of values. All query heads share the one KV head, so it is
// paid once for many queries. The slot before an odd low was kept until now, and weighs nothing.
template <Format F>
void TransposeValues(const AttendTask& task, int low, int high, State& s, StepTiles& tiles) {
  const int width = PaddedHeadDim(task.value_dim);
  tiles.v_row = int64_t{width} * (kPaired<F> ? 2 : 1) * kElementBytes<F>;
  for (int i = 0; i < kTiles; ++i) tiles.v[i] = s.v_tile + int64_t{i} * kTileSlots * width * kElementBytes<F>;
  if constexpr (kPaired<F>) {
    for (int pair = low / 2; 2 * pair < high; ++pair) {
      Bytes from = tiles.k[2 * pair / kLanes] + 2 * pair % kLanes * 4;
      unsigned char* to = s.v_tile + pair * tiles.v_row;
      for (int j = 0; j < width; j += 2, from += tiles.k_row, to += 8) {  // a 2 x 2 block: dims x slots to slots x dims
        uint64_t keys;
        __builtin_memcpy(&keys, from, 8);
        const uint64_t values = (keys & 0xffff00000000ffffu) | (keys >> 16 & 0xffff0000u) | (keys & 0xffff0000u) << 16;
        __builtin_memcpy(to, &values, 8);
      }
    }
  } else {
    for (int slot = low; slot < high; ++slot) {
      Bytes from = tiles.k[slot / kLanes] + slot % kLanes * kElementBytes<F>;
      unsigned char* to = s.v_tile + slot * tiles.v_row;
      for (int j = 0; j < width; ++j, from += tiles.k_row, to += kElementBytes<F>) __builtin_memcpy(to, from, kElementBytes<F>);
    }
  }
}

// scores[n][0 .. NV * kLanes) = q[n] . K for NV vectors of slots.
template <Format F, int NQ, int NV>
void Scores(const Bytes* k, int64_t k_row, const unsigned char* q, int padded, float* scores, Ahead& ahead) {
  Vec acc[NQ][NV];
  for (int n = 0; n < NQ; ++n) {
    for (int v = 0; v < NV; ++v) acc[n][v] = Zero();
  }
  const float* qf = reinterpret_cast<const float*>(q);
  for (int j = 0; j < padded; j += kPaired<F> ? 2 : 1) {
    const int64_t row = (kPaired<F> ? j / 2 : j) * k_row;
    ahead.Pull();
#if defined(__AVX512BF16__)
    if constexpr (F == Format::kPairDot) {
      __m512i x[NV];
      for (int v = 0; v < NV; ++v) x[v] = _mm512_loadu_si512(k[v] + row);
      for (int n = 0; n < NQ; ++n) {
        int pair;
        __builtin_memcpy(&pair, q + 2 * (int64_t{n} * padded + j), 4);
        const __m512bh qn = (__m512bh)_mm512_set1_epi32(pair);
        for (int v = 0; v < NV; ++v) acc[n][v] = _mm512_dpbf16_ps(acc[n][v], qn, (__m512bh)x[v]);
      }
      continue;
    }
#endif
    Vec x[NV], y[NV];
    for (int v = 0; v < NV; ++v) {
      if constexpr (F == Format::kF32) {
        x[v] = Load(reinterpret_cast<const float*>(k[v] + row));
      } else if constexpr (F == Format::kF16) {
        x[v] = LoadF16(reinterpret_cast<const uint16_t*>(k[v] + row));
      } else {
        const UVec pairs = LoadPairs(reinterpret_cast<const uint16_t*>(k[v] + row));
        x[v] = FirstOfPairs(pairs);
        y[v] = SecondOfPairs(pairs);
      }
    }
    for (int n = 0; n < NQ; ++n) {
      const Vec q0 = Set(qf[int64_t{n} * padded + j]);
      for (int v = 0; v < NV; ++v) acc[n][v] = Fma(q0, x[v], acc[n][v]);
    }
    if constexpr (F == Format::kBF16) {
      for (int n = 0; n < NQ; ++n) {
        const Vec q1 = Set(qf[int64_t{n} * padded + j + 1]);
        for (int v = 0; v < NV; ++v) acc[n][v] = Fma(q1, y[v], acc[n][v]);
      }
    }
  }
  for (int n = 0; n < NQ; ++n) {
    for (int v = 0; v < NV; ++v) Store(scores + n * kStepSlots + v * kLanes, acc[n][v]);
  }
}

// Scores are kept times log2(e), and so is the cap.
void SoftCap(float* scores, int vecs, float softcap) {
  const Vec cap = Set(softcap * kLog2E), inner = Set(1 / (softcap * kLog2E));
  for (int v = 0; v < vecs; ++v) {
    const Vec s = Load(scores + v * kLanes);
    Store(scores + v * kLanes, cap * Tanh(s * inner));
  }
}

// One query's online softmax over the step's slots [low, high): turns scores into weights, rescales what was summed before.
template <Format F>
void Softmax(float* scores, float* weights, int vecs, int low, int high, int padded, float& max, float* sum, float* acc) {
  Vec s[kStepVecs];
  Vec top = Set(-kInfinity);
  for (int v = 0; v < vecs; ++v) {
    s[v] = Load(scores + v * kLanes);
    if (low > v * kLanes || high < (v + 1) * kLanes) {
      const IVec slot = LaneIndex() + v * kLanes;
      s[v] = ((slot >= low) & (slot < high)) ? s[v] : Set(-kInfinity);
    }
    top = Max(top, s[v]);
  }
  const float step_max = MaxLanes(top);
  const float new_max = max > step_max ? max : step_max;
  Vec total = Load(sum);
  if (!(new_max == max)) {
    const Vec factor = Exp2OfNegative(Set(max - new_max));
    total = total * factor;
    for (int j = 0; j < padded; j += kLanes) Store(acc + j, Load(acc + j) * factor);
    max = new_max;
  }
  for (int v = 0; v < vecs; ++v) {
    const Vec p = Exp2OfNegative(s[v] - Set(new_max));
#if defined(__AVX512BF16__)
    if constexpr (F == Format::kPairDot) {
      const __m256i half = (__m256i)_mm512_cvtneps_pbh(p);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<uint16_t*>(weights) + v * kLanes), half);
      // The sum counts the weights as they will be used.
      total = total + (Vec)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, half), 16);
      continue;
    }
#endif
    Store(weights + v * kLanes, p);
    total = total + p;
  }
  Store(sum, total);
}

// acc[n][dim .. dim + ND * kLanes) += weights[n] . V over the step's slots [low, high).
template <Format F, int NQ, int ND>
void Values(const StepTiles& tiles, int dim, int low, int high, const float* weights, int padded, float* acc, Ahead& ahead) {
  Vec a[NQ][ND];
  for (int n = 0; n < NQ; ++n) {
    for (int i = 0; i < ND; ++i) a[n][i] = Load(acc + int64_t{n} * padded + dim + i * kLanes);
  }
  if constexpr (kPaired<F>) {
    constexpr int kTilePairs = kTileSlots / 2;
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(weights);
    for (int pair = low / 2; 2 * pair < high; ++pair) {
      const int64_t row = pair % kTilePairs * tiles.v_row + 4 * dim;
      const uint16_t* v = reinterpret_cast<const uint16_t*>(tiles.v[pair / kTilePairs] + row);
      UVec x[ND];
      ahead.Pull();
      for (int i = 0; i < ND; ++i) x[i] = LoadPairs(v + 2 * i * kLanes);
      if (2 * pair + 1 == high) {  // the second slot is not in use and may hold anything
        for (int i = 0; i < ND; ++i) x[i] = x[i] & 0xffffu;
      }
      for (int n = 0; n < NQ; ++n) {
#if defined(__AVX512BF16__)
        if constexpr (F == Format::kPairDot) {
          int p;
          __builtin_memcpy(&p, halves + n * kStepSlots * 2 + 2 * pair, 4);
          const __m512bh pn = (__m512bh)_mm512_set1_epi32(p);
          for (int i = 0; i < ND; ++i) a[n][i] = _mm512_dpbf16_ps(a[n][i], pn, (__m512bh)x[i]);
          continue;
        }
#endif
        const Vec p0 = Set(weights[n * kStepSlots + 2 * pair]), p1 = Set(weights[n * kStepSlots + 2 * pair + 1]);
        for (int i = 0; i < ND; ++i) a[n][i] = Fma(p1, SecondOfPairs(x[i]), Fma(p0, FirstOfPairs(x[i]), a[n][i]));
      }
    }
    (void)halves;
  } else {
    for (int slot = low; slot < high; ++slot) {
      const int64_t row = slot % kTileSlots * tiles.v_row + int64_t{dim} * kElementBytes<F>;
      Bytes v = tiles.v[slot / kTileSlots] + row;
      Vec x[ND];
      ahead.Pull();
      for (int i = 0; i < ND; ++i) {
        Bytes at = v + i * kLanes * kElementBytes<F>;
        x[i] = F == Format::kF32 ? Load(reinterpret_cast<const float*>(at)) : LoadF16(reinterpret_cast<const uint16_t*>(at));
      }
      for (int n = 0; n < NQ; ++n) {
        const Vec p = Set(weights[n * kStepSlots + slot]);
        for (int i = 0; i < ND; ++i) a[n][i] = Fma(p, x[i], a[n][i]);
      }
    }
  }
  for (int n = 0; n < NQ; ++n) {
    for (int i = 0; i < ND; ++i) Store(acc + int64_t{n} * padded + dim + i * kLanes, a[n][i]);
  }
}

struct Range {
  int64_t begin;
  int64_t end;
};

Range VisibleSlots(const AttendTask& task, int64_t row) {
  if (task.row_ids != nullptr) return {0, task.first_end};
  const int64_t end = task.first_end + row;
  const int64_t begin = task.window > 0 && end > task.window ? end - task.window : 0;
  return {begin, end};
}

// What part of [start, start + size) lies in the range, relative to start; empty as low >= high.
struct Overlap {
  int low;
  int high;
};

Overlap Clip(Range range, int64_t start, int64_t size) {
  const int64_t low = range.begin - start, high = range.end - start;
  return {int(low > 0 ? (low < size ? low : size) : 0), int(high < size ? (high > 0 ? high : 0) : size)};
}

// NQ queries from `first` on, over one step whose used slots are `used`.
template <Format F, int NQ>
void Step(const AttendTask& task, int64_t step, Overlap used, const StepTiles& tiles, Ahead& ahead, int first, int padded,
          State& s) {
  Overlap seen[NQ];
  bool any = false;
  for (int n = 0; n < NQ; ++n) {
    seen[n] = Clip(VisibleSlots(task, (first + n) / task.group), step, kStepSlots);
    any |= seen[n].low < seen[n].high;
  }
  if (!any) return;
  const int vecs = (used.high + kTileSlots - 1) / kTileSlots * kTileVecs;
  const unsigned char* q = s.q + int64_t{first} * padded * (F == Format::kPairDot ? 2 : 4);
  int vec = 0;
  for (; vec + kScoreVecs <= vecs; vec += kScoreVecs) {
    Scores<F, NQ, kScoreVecs>(tiles.k + vec, tiles.k_row, q, padded, s.scores + vec * kLanes, ahead);
  }
  for (; vec < vecs; ++vec) Scores<F, NQ, 1>(tiles.k + vec, tiles.k_row, q, padded, s.scores + vec * kLanes, ahead);

  float* acc = s.acc + int64_t{first} * padded;
  for (int n = 0; n < NQ; ++n) {
    float* weights = s.weights + n * kStepSlots;
    if (seen[n].low < seen[n].high) {
      if (task.softcap > 0) SoftCap(s.scores + n * kStepSlots, vecs, task.softcap);
      Softmax<F>(s.scores + n * kStepSlots, weights, vecs, seen[n].low, seen[n].high, padded, s.max[first + n],
                 s.sum + int64_t{first + n} * kLanes, acc + int64_t{n} * padded);
    } else {
      __builtin_memset(weights, 0, kStepSlots * sizeof(float));
    }
  }

  const int dim_vecs = PaddedHeadDim(task.value_dim) / kLanes;
  int i = 0;
  for (; i + kValueVecs <= dim_vecs; i += kValueVecs) {
    Values<F, NQ, kValueVecs>(tiles, i * kLanes, used.low, used.high, s.weights, padded, acc, ahead);
  }
  for (; i < dim_vecs; ++i) Values<F, NQ, 1>(tiles, i * kLanes, used.low, used.high, s.weights, padded, acc, ahead);
}

template <Format F>
void Split(const AttendTask& task, int64_t split, int queries, int padded, State& s) {
  for (int n = 0; n < queries; ++n) {
    s.max[n] = -kInfinity;
    Store(s.sum + int64_t{n} * kLanes, Zero());
    for (int j = 0; j < padded; j += kLanes) Store(s.acc + int64_t{n} * padded + j, Zero());
  }
  const Range all = {VisibleSlots(task, 0).begin, VisibleSlots(task, task.rows - 1).end};
  const bool in_place = InPlace(task);
  StepTiles here;
  for (int64_t step = split * kSplitSlots; step < (split + 1) * kSplitSlots && step < all.end; step += kStepSlots) {
    const Overlap used = Clip(all, step, kStepSlots);
    if (used.low >= used.high) continue;
    Ahead ahead;
    const bool coded = F == Format::kF32 && task.codes != AttendCodes::kNone;
    if (coded) {
      const auto decode = task.codes == AttendCodes::kFp8    ? DecodeTiles<AttendCodes::kFp8>
                          : task.codes == AttendCodes::kInt8 ? DecodeTiles<AttendCodes::kInt8>
                                                             : DecodeTiles<AttendCodes::kInt4>;
      decode(task, step, used.low, used.high, padded, s, here);
      if (step + 2 * kStepSlots <= all.end) LookAhead(task, step + kStepSlots, queries, ahead);
    } else if (in_place) {
      LocateTiles<F>(task, step, used.low, used.high, here);
      if (step + 2 * kStepSlots <= all.end) LookAhead(task, step + kStepSlots, queries, ahead);
    } else {
      GatherTiles<F>(task, step, used.low, used.high, padded, s, here);
    }
    if (task.keys_only) TransposeValues<F>(task, used.low, used.high, s, here);
    int n = 0;
    for (; n + kQueries <= queries; n += kQueries) Step<F, kQueries>(task, step, used, here, ahead, n, padded, s);
    if (queries - n == 3) Step<F, 3>(task, step, used, here, ahead, n, padded, s);
    if (queries - n == 2) Step<F, 2>(task, step, used, here, ahead, n, padded, s);
    if (queries - n == 1) Step<F, 1>(task, step, used, here, ahead, n, padded, s);
  }
}

// Merges one query's split (max, sum, acc) into what was merged before. A split it does not see has sum 0 and changes nothing.
void Merge(float max, float sum, const float* acc, int padded, float& run_max, float& run_sum, float* run_acc) {
  if (sum == 0) return;
  if (run_sum == 0) {
    run_max = max;
    run_sum = sum;
    __builtin_memcpy(run_acc, acc, size_t(padded) * sizeof(float));
    return;
  }
  const float new_max = run_max > max ? run_max : max;
  const Vec before = Exp2OfNegative(Set(run_max - new_max)), now = Exp2OfNegative(Set(max - new_max));
  for (int j = 0; j < padded; j += kLanes) Store(run_acc + j, Fma(Load(acc + j), now, Load(run_acc + j) * before));
  run_sum = run_sum * before[0] + sum * now[0];
  run_max = new_max;
}

// The splits computed before, for query n.
void MergePrior(const AttendTask& task, int n, int padded, float& run_max, float& run_sum, float* run_acc) {
  for (int64_t i = 0; i < task.num_prior; ++i) {
    const float* partial = task.prior[i] + int64_t{n} * (padded + 16);
    Merge(partial[padded], partial[padded + 1], partial, padded, run_max, run_sum, run_acc);
  }
}

void WriteOut(const AttendTask& task, int query, float max, float sum, const float* acc) {
  const int head = query % task.group;
  float* out = task.out + query / task.group * task.out_stride + int64_t{head} * task.value_dim;
  Vec factor = Set(1.0f / sum);
  if (task.sinks != nullptr) {
    const float sink = task.sinks[head] * kLog2E, top = max > sink ? max : sink;
    const Vec kept = Exp2OfNegative(Set(max - top)), sunk = Exp2OfNegative(Set(sink - top));
    factor = kept / (Set(sum) * kept + sunk);
  }
  int j = 0;
  for (; j + kLanes <= task.value_dim; j += kLanes) Store(out + j, Load(acc + j) * factor);
  if (j < task.value_dim) StorePart(out + j, Load(acc + j) * factor, task.value_dim - j);
}

template <Format F>
void Attend(const AttendTask& task) {
  const int queries = task.rows * task.group, padded = PaddedHeadDim(task.head_dim);
  State s = Carve(task, queries, padded);
  PrepareQueries<F>(task, padded, s);
  for (int n = 0; n < queries; ++n) {
    s.run_sum[n] = 0;
    if (task.partials == nullptr) MergePrior(task, n, padded, s.run_max[n], s.run_sum[n], s.run_acc + int64_t{n} * padded);
  }
  for (int64_t split = task.split_begin; split < task.split_end; ++split) {
    Split<F>(task, split, queries, padded, s);
    float* partial = task.partials == nullptr
                         ? nullptr
                         : task.partials + (split - task.split_begin) * AttendPartialFloats(queries, task.head_dim);
    for (int n = 0; n < queries; ++n) {
      const float* acc = s.acc + int64_t{n} * padded;
      const float sum = SumLanes(Load(s.sum + int64_t{n} * kLanes));
      if (partial == nullptr) {
        Merge(s.max[n], sum, acc, padded, s.run_max[n], s.run_sum[n], s.run_acc + int64_t{n} * padded);
      } else {
        float* to = partial + int64_t{n} * (padded + 16);
        __builtin_memcpy(to, acc, size_t(padded) * sizeof(float));
        to[padded] = s.max[n];
        to[padded + 1] = sum;
      }
    }
  }
  if (task.partials != nullptr) return;
  for (int n = 0; n < queries; ++n) WriteOut(task, n, s.run_max[n], s.run_sum[n], s.run_acc + int64_t{n} * padded);
}

void MergeSplits(const AttendTask& task) {
  const int queries = task.rows * task.group, padded = PaddedHeadDim(task.head_dim);
  State s = Carve(task, queries, padded);
  for (int n = 0; n < queries; ++n) {
    float max = 0, sum = 0;
    MergePrior(task, n, padded, max, sum, s.run_acc);
    for (int64_t split = 0; split < task.split_end - task.split_begin; ++split) {
      const float* partial = task.partials + split * AttendPartialFloats(queries, task.head_dim) + int64_t{n} * (padded + 16);
      Merge(partial[padded], partial[padded + 1], partial, padded, max, sum, s.run_acc);
    }
    WriteOut(task, n, max, sum, s.run_acc);
  }
}

}  // namespace

#if defined(__AVX512BF16__)
constexpr Format kBF16Format = Format::kPairDot;
#else
constexpr Format kBF16Format = Format::kBF16;
#endif

extern const AttentionKernels kAttentionKernels;
const AttentionKernels kAttentionKernels = {{Attend<Format::kF32>, Attend<Format::kF16>, Attend<kBF16Format>}, MergeSplits};

}  // namespace kvasir::KVASIR_ISA
