// Attention over 16-bit keys and values on tensor cores: one kernel for decoding, prompts and latent keys, which differ in how
// warps share a tile. Used by attention_bf16.cu and attention_f16.cu. The arithmetic of a row is that of attention_unit.cuh, with
// q and the weights rounded to the KV's type; these chains make it the same for every way of sharing:
//  * a score is one chain of mma over head_dim in order,
//  * l and an element of O are one chain over the split's slots in order (l: weights times ones),
//  * a maximum is exact in any order.
#pragma once

#include "kernels/cuda/attention_codes.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_unit.cuh"
#include "kernels/cuda/launch.h"

namespace kvasir::gpu {

// kRowWarps x kColumnWarps warps; those of a row of warps share 16 rows of q: each computes the scores of some slots and sums
// some columns of the values. With one column of warps the weights never leave their registers.
template <DType kTypeOf, int kDimOf, int kRowWarpsOf, int kColumnWarpsOf, int kStagesOf, KvQuant kQuantOf = KvQuant::kNone>
struct TileShape {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;  // head_dim, at most
  static constexpr int kRowWarps = kRowWarpsOf, kColumnWarps = kColumnWarpsOf, kStages = kStagesOf;
  static constexpr bool kLatent = kDim > 256;  // the tile of keys is that of values, too
  static constexpr int kValueDim = kLatent ? 512 : kDim;
  static constexpr int kSlots = kLatent ? 32 : 64;  // of a tile
  static constexpr int kRows = 16 * kRowWarps, kThreads = kWarp * kRowWarps * kColumnWarps;
  static constexpr int kStride = kDim + 8;                       // 16 bytes of padding: rows of a matrix lie in different banks
  static constexpr int kSlotBlocks = kSlots / kColumnWarps / 8;  // of 8 slots, of a warp
  static constexpr int kValueBlocks = kValueDim / 16 / kColumnWarps;  // of 16 columns, of a warp
  // Blocks of a multiprocessor: as many as their shared memory leaves room for, where registers suffice.
  static constexpr int kBlocks = kRowWarps == 1 || kDim > 128 ? 1 : kDim > 64 ? 3 : 4;
  // Addresses of keys are looked up a chunk ahead.
  static constexpr int kChunk = 256, kKeyRing = 2 * kChunk;
  // Quantised pages: their codes come in stages, and are turned into one tile.
  static constexpr KvQuant kQuant = kQuantOf;
  static constexpr bool kCoded = kQuant != KvQuant::kNone;
  static constexpr int kTileStages = kCoded ? 1 : kStages;
  static constexpr int kCodeRow = kDim * CodeBits(kQuant) / 8, kCodeStages = kCoded ? kStages : 1,
                       kCodeSlots = kCoded ? kSlots : 1;

  // Among the threads that compute: all of them.
  KVASIR_DEVICE static void Sync() { SyncBlock(); }
  // Where a value lies in a tile of them; an even column and the next one are neighbours.
  KVASIR_DEVICE static int ValueAt(int slot, int column) { return slot * kStride + column; }

  struct Shared {
    alignas(16) uint16_t k[kTileStages][kSlots][kStride];
    alignas(16) uint16_t v[kLatent ? 1 : kTileStages][kLatent ? 1 : kSlots][kLatent ? 8 : kStride];
    alignas(16) uint16_t q[kRows][kStride];
    alignas(16) uint16_t p[kColumnWarps > 1 ? kRows : 1][kSlots + 8];
    float max[kColumnWarps][kRows];
    float q_scale[kRows];
    SlotRange slots[kRows];
    RowState folded[kColumnWarps][kRows];  // each warp's own
    UnitView view;                         // here and not in registers, of which sums leave few
    const std::byte* keys[kKeyRing];       // slot s at s % kKeyRing
    alignas(16) uint8_t codes[kCodeStages][kCoded ? 2 : 1][kCodeSlots][kCoded ? kCodeRow : 16];  // keys, values
    uint32_t scales[kCodeStages][kCoded ? 2 : 1][kCodeSlots];
    int32_t scale_from_row[kCoded ? kKeyRing : 1];
    int32_t unfinite[2];  // slots of the tile with an infinity or NaN: kSlots - first, last + 1; 0: none
  };
};

template <DType kType>
KVASIR_DEVICE uint32_t Pack(float low, float high) {
  if constexpr (kType == DType::kBF16) return PackBf16(low, high);
  return PackF16(low, high);
}
template <DType kType>
inline constexpr uint32_t kOnes = kType == DType::kBF16 ? 0x3f803f80u : 0x3c003c00u;  // two
template <DType kType>
KVASIR_DEVICE float ToFloat(uint16_t bits) {
  if constexpr (kType == DType::kBF16) return Bf16ToFloat(bits);
  return F16ToFloat(bits);
}
template <DType kType>
KVASIR_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kType == DType::kBF16)
    MmaBf16(d, a, b);
  else
    MmaF16(d, a, b);
}

// The tile's rows of q, rounded; a row too long for float16 is scaled by a power of two. Columns and rows beyond are zero.
template <typename T>
KVASIR_DEVICE void LoadQueries(const AttentionArgs& args, const UnitView& view, typename T::Shared& s) {
  const int d = args.kv.head_dim;
  for (int row = WarpIndex(); row < T::kRows; row += T::kThreads / kWarp) {
    const float* const q = row < view.unit.count ? args.q + view.template QueryRow<!T::kLatent>(args, row) * d : nullptr;
    float scale = 1, down = 1;
    if constexpr (T::kType == DType::kF16) {
      float largest = 0;
      for (int j = Lane(); j < d && q != nullptr; j += kWarp) largest = fmaxf(largest, fabsf(q[j]));
      largest = WarpMax(largest);
      const int exponent = int(__float_as_uint(largest) >> 23) - 127;
      if (exponent >= 15 && exponent < 128) {
        scale = __uint_as_float(uint32_t(exponent - 14 + 127) << 23);
        down = __uint_as_float(uint32_t(127 - (exponent - 14)) << 23);
      }
    }
    for (int j = 2 * Lane(); j < T::kDim; j += 2 * kWarp) {
      const float low = q != nullptr && j < d ? q[j] : 0.0f, high = q != nullptr && j + 1 < d ? q[j + 1] : 0.0f;
      *reinterpret_cast<uint32_t*>(&s.q[row][j]) = Pack<T::kType>(__fmul_rn(low, down), __fmul_rn(high, down));
    }
    if (Lane() != 0) continue;
    s.q_scale[row] = scale;
    s.slots[row] = RowSlots(args, view.unit, view.run.num_slots, row);
    for (int i = 0; i < T::kColumnWarps; ++i) s.folded[i][row] = {};
  }
}

// Columns of keys beyond head_dim that a product touches.
template <typename T>
KVASIR_DEVICE void PadKeys(int head_dim, typename T::Shared& s) {
  const int end = (head_dim + 15) / 16 * 16, columns = end - head_dim;
  for (int i = int(threadIdx.x); i < T::kTileStages * T::kSlots * columns; i += T::kThreads)
    s.k[i / columns / T::kSlots][i / columns % T::kSlots][head_dim + i % columns] = 0;
}

template <typename T>
KVASIR_DEVICE void FindKeys(const AttentionArgs& args, const UnitView& view, int chunk, typename T::Shared& s) {
  for (int slot = chunk + int(threadIdx.x); slot < chunk + T::kChunk; slot += T::kThreads) {
    if (slot < view.begin || slot >= view.end) continue;
    s.keys[slot % T::kKeyRing] = SlotKey(args.kv, view.run, slot, args.kv.row_bytes);
    if constexpr (T::kCoded) s.scale_from_row[slot % T::kKeyRing] = ScaleFromRow(args.kv, slot);
  }
}

// Starts to load what lies `offset` bytes after the keys of a tile's slots; slots that are not there are zero.
template <typename T>
KVASIR_DEVICE void LoadTile(const AttentionArgs& args, const UnitView& view, int tile, int64_t offset, uint16_t (*to)[T::kStride],
                            const typename T::Shared& s) {
  const int d = args.kv.head_dim;
  if (d % 8 == 0) {
    // A warp takes whole rows: what is computed for a piece is little, and few registers keep it.
    constexpr int kPieces = T::kDim / 8;  // of 16 bytes
    constexpr int kLanes = kPieces <= 8 ? 8 : kPieces <= 16 ? 16 : 32, kRowsAtOnce = kWarp / kLanes;
    const int piece = Lane() % kLanes, first = WarpIndex() * kRowsAtOnce + Lane() / kLanes;
#pragma unroll(T::kLatent ? 1 : 4)
    for (int row = first; row < T::kSlots; row += T::kThreads / kLanes) {
      const int slot = tile + row;
      const bool there = slot >= view.begin && slot < view.end;
      const std::byte* const from = there ? s.keys[slot % T::kKeyRing] + offset : args.kv.base;
#pragma unroll
      for (int p = 0; p < kPieces; p += kLanes)
        if (8 * (p + piece) < d) CopyAsync16(&to[row][8 * (p + piece)], there ? from + 16 * (p + piece) : from, there);
    }
  } else {
    for (int i = int(threadIdx.x); i < T::kSlots * d; i += T::kThreads) {
      const int row = i / d, column = i % d, slot = tile + row;
      const bool there = slot >= view.begin && slot < view.end;
      to[row][column] = there ? reinterpret_cast<const uint16_t*>(s.keys[slot % T::kKeyRing] + offset)[column] : uint16_t{0};
    }
  }
}

// What a thread holds: of rows g and g + 8 of its warp's 16 (g = lane / 4).
template <typename T>
struct TileState {
  float o[T::kValueBlocks][2][4] = {};
  float l[4] = {};  // as a product with ones leaves it: [0] and [2]
  float m[2];
  int row = 0;     // the first of the two, in the tile
  int column = 0;  // warp among those that share the rows

  KVASIR_DEVICE int ValueColumn(int block) const { return (column + block * T::kColumnWarps) * 16; }
  KVASIR_DEVICE void Reset() {
#pragma unroll
    for (int i = 0; i < T::kValueBlocks; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[i][0][e] = o[i][1][e] = 0;
    l[0] = l[1] = l[2] = l[3] = 0;
    m[0] = m[1] = NegativeInfinity();
  }
};

// q.k of the warp's rows and its share of the tile's slots.
template <typename T>
KVASIR_DEVICE void TileScores(const AttentionArgs& args, const TileState<T>& state, const uint16_t (*k)[T::kStride],
                              const typename T::Shared& s, float (&score)[T::kSlotBlocks][4]) {
  const int lane = Lane();
  const uint16_t* const q_row = &s.q[state.row - lane / 4 + lane % 16][lane / 16 * 8];
  const uint16_t* const k_row = &k[state.column * 8 * T::kSlotBlocks + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8];
#pragma unroll
  for (int n = 0; n < T::kSlotBlocks; ++n) score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0;
#pragma unroll 4
  for (int j = 0; j < args.kv.head_dim; j += 16) {
    uint32_t a[4];
    LoadMatrices(a, q_row + j);
#pragma unroll
    for (int n = 0; n < T::kSlotBlocks; n += 2) {
      uint32_t b[4];
      LoadMatrices(b, k_row + n * 8 * T::kStride + j);
      Mma<T::kType>(score[n], a, {b[0], b[1]});
      Mma<T::kType>(score[n + 1], a, {b[2], b[3]});
    }
  }
}

// Caps, masks what a row does not see, and gives each row's largest score of these, times its scale.
template <typename T>
KVASIR_DEVICE void MaskScores(const AttentionArgs& args, const TileState<T>& state, bool masked, int tile,
                              const typename T::Shared& s, float (&scale)[2], float (&largest)[2],
                              float (&score)[T::kSlotBlocks][4]) {
  const int first_slot = tile + state.column * 8 * T::kSlotBlocks + Lane() % 4 * 2;
  scale[0] = scale[1] = args.score_scale;
  if constexpr (T::kType == DType::kF16) {
    scale[0] = __fmul_rn(scale[0], s.q_scale[state.row]);
    scale[1] = __fmul_rn(scale[1], s.q_scale[state.row + 8]);
  }
  if (args.softcap > 0) {
#pragma unroll
    for (int n = 0; n < T::kSlotBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) score[n][e] = Capped(args, __fmul_rn(score[n][e], scale[e / 2]));
    scale[0] = scale[1] = 1;
  }
  if (masked) {
    const SlotRange slots[2] = {s.slots[state.row], s.slots[state.row + 8]};
#pragma unroll
    for (int n = 0; n < T::kSlotBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int slot = first_slot + n * 8 + e % 2;
        if (slot < slots[e / 2].begin || slot >= slots[e / 2].end) score[n][e] = NegativeInfinity();
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = NegativeInfinity();
#pragma unroll
    for (int n = 0; n < T::kSlotBlocks; ++n) most = fmaxf(most, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
    most = fmaxf(most, ShuffleXor(most, 1));
    most = fmaxf(most, ShuffleXor(most, 2));
    largest[r] = __fmul_rn(most, scale[r]);
  }
}

// Scores to weights, with the tile's largest score of each row. What was summed before is to be rescaled.
template <typename T>
KVASIR_DEVICE void Weigh(const float (&scale)[2], const float (&largest)[2], const float (&score)[T::kSlotBlocks][4],
                         TileState<T>& state, uint32_t (&weight)[T::kSlotBlocks][2], float (&rescale)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float m = fmaxf(state.m[r], ceilf(largest[r])), subtrahend = Subtrahend(m);
    rescale[r] = WholePower(__fsub_rn(state.m[r], m));
    state.m[r] = m;
#pragma unroll
    for (int n = 0; n < T::kSlotBlocks; ++n) {
      weight[n][r] = Pack<T::kType>(Exp2(fmaf(score[n][2 * r], scale[r], -subtrahend)),
                                    Exp2(fmaf(score[n][2 * r + 1], scale[r], -subtrahend)));
    }
  }
}
template <typename T>
KVASIR_DEVICE void Rescale(const float (&rescale)[2], TileState<T>& state) {
  if (Ballot(rescale[0] != 1 || rescale[1] != 1) == 0) return;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    state.l[e] = __fmul_rn(state.l[e], rescale[e / 2]);
#pragma unroll
    for (int i = 0; i < T::kValueBlocks; ++i) {
      state.o[i][0][e] = __fmul_rn(state.o[i][0][e], rescale[e / 2]);
      state.o[i][1][e] = __fmul_rn(state.o[i][1][e], rescale[e / 2]);
    }
  }
}

// Infinities and NaN among the values, which even a weight of 0 passes on: looks for them in a tile of which some rows do not see
// every slot. A row that sees none of those slots must not be touched. All threads that Sync; slots of the tile count from 0.
template <typename T>
KVASIR_DEVICE void FindUnfinite(const AttentionArgs& args, const uint16_t* v, typename T::Shared& s) {
  constexpr uint32_t kExponent = T::kType == DType::kBF16 ? 0x7f80u : 0x7c00u;
  if (threadIdx.x < 2) s.unfinite[threadIdx.x] = 0;
  T::Sync();
#pragma unroll 1
  for (int slot = WarpIndex(); slot < T::kSlots; slot += T::kThreads / kWarp) {
    bool found = false;
#pragma unroll 1
    for (int j = Lane(); j < args.value_dim; j += kWarp) found |= (v[T::ValueAt(slot, j)] & kExponent) == kExponent;
    if (Ballot(found) == 0 || Lane() > 0) continue;
    atomicMax(&s.unfinite[0], T::kSlots - slot);
    atomicMax(&s.unfinite[1], slot + 1);
  }
  T::Sync();
}
// Two values, zero where they are not finite.
template <DType kType>
KVASIR_DEVICE uint32_t OnlyFinite(uint32_t pair) {
  constexpr uint32_t kExponent = kType == DType::kBF16 ? 0x7f80u : 0x7c00u;
  if ((pair & kExponent) == kExponent) pair &= 0xffff0000u;
  if ((pair >> 16 & kExponent) == kExponent) pair &= 0xffffu;
  return pair;
}

// Adds what FindUnfinite has found to the rows that see it, whatever its weight, and makes it zero. All threads that Sync.
template <typename T>
KVASIR_DEVICE void TakeUnfinite(uint16_t* v, int tile, const typename T::Shared& s, TileState<T>& state) {
#pragma unroll 1
  for (int slot = T::kSlots - s.unfinite[0]; slot < s.unfinite[1]; ++slot) {
    const SlotRange slots[2] = {s.slots[state.row], s.slots[state.row + 8]};
    const bool sees[2] = {tile + slot >= slots[0].begin && tile + slot < slots[0].end,
                          tile + slot >= slots[1].begin && tile + slot < slots[1].end};
#pragma unroll
    for (int i = 0; i < 2 * T::kValueBlocks; ++i) {
      const int column = state.ValueColumn(i / 2) + i % 2 * 8 + Lane() % 4 * 2;
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(v + T::ValueAt(slot, column));
      const uint32_t rest = pair ^ OnlyFinite<T::kType>(pair);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& sum = state.o[i / 2][i % 2][e];
        if (sees[e / 2]) sum = __fadd_rn(sum, ToFloat<T::kType>(uint16_t(rest >> 16 * (e % 2))));
      }
      if (i % 4 == 3) SyncWarp();  // as in EndSplit
    }
  }
  T::Sync();
#pragma unroll 1
  for (int i = int(threadIdx.x); i < T::kSlots * T::kValueDim / 2; i += T::kThreads) {
    auto* const pair = reinterpret_cast<uint32_t*>(v + T::ValueAt(i / (T::kValueDim / 2), i % (T::kValueDim / 2) * 2));
    *pair = OnlyFinite<T::kType>(*pair);
  }
  T::Sync();
}

// Weights of 16 slots as the left factor. They are the thread's own, or all of the row in s.p.
template <typename T>
KVASIR_DEVICE void LoadWeights(int k, const uint32_t (&weight)[T::kSlotBlocks][2], const typename T::Shared& s,
                               const TileState<T>& state, uint32_t (&a)[4]) {
  if constexpr (T::kColumnWarps == 1) {
    a[0] = weight[2 * k][0], a[1] = weight[2 * k][1], a[2] = weight[2 * k + 1][0], a[3] = weight[2 * k + 1][1];
  } else {
    LoadMatrices(a, &s.p[state.row - Lane() / 4 + Lane() % 16][k * 16 + Lane() / 16 * 8]);
  }
}

// Adds weights times values, and the weights to l. Columns that are not there get what happens to lie in shared memory: nobody
// reads their sums, and a branch for each would cost more.
template <typename T>
KVASIR_DEVICE void AddValues(const uint16_t* v, const uint32_t (&weight)[T::kSlotBlocks][2], const typename T::Shared& s,
                             TileState<T>& state) {
  const uint16_t* const v_row = v + (Lane() % 16) * T::kStride + Lane() / 16 * 8;
#pragma unroll(T::kLatent ? 1 : T::kSlots / 16)
  for (int k = 0; k < T::kSlots / 16; ++k) {
    uint32_t a[4];
    LoadWeights<T>(k, weight, s, state, a);
    Mma<T::kType>(state.l, a, {kOnes<T::kType>, kOnes<T::kType>});
#pragma unroll
    for (int i = 0; i < T::kValueBlocks; ++i) {
      uint32_t b[4];
      LoadMatricesTransposed(b, v_row + k * 16 * T::kStride + state.ValueColumn(i));
      Mma<T::kType>(state.o[i][0], a, {b[0], b[1]});
      Mma<T::kType>(state.o[i][1], a, {b[2], b[3]});
    }
  }
}

// A split is done: its partial, or folded into out, which holds the total until the last one. Starts the next one.
template <typename T>
KVASIR_DEVICE void EndSplit(const AttentionArgs& args, const UnitView& view, bool first, bool last, typename T::Shared& s,
                            TileState<T>& state) {
  const bool whole = view.Whole(), pairs = !whole || args.value_dim % 2 == 0;
  float* out[2];
  FoldFactors fold[2];
  FinishFactors finish[2];
  RowState folded[2] = {s.folded[state.column][state.row], s.folded[state.column][state.row + 8]};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = state.row + 8 * r;
    const float m = state.m[r], l = state.l[2 * r];
    out[r] = nullptr;
    fold[r] = {1, 1, false};
    finish[r] = {1, 1};
    if (row >= view.unit.count) continue;
    if (whole) {
      out[r] = args.out + view.template QueryRow<!T::kLatent>(args, row) * args.value_dim;
      fold[r] = Fold(folded[r], m, l);
      if (last) finish[r] = Finish(args, folded[r], view.head * args.group + (view.unit.first + row) % args.group);
    } else {
      const int64_t partial = view.template PartialRow<!T::kLatent>(args, row, view.unit.ordinal);
      out[r] = args.partials + partial * args.partial_width;
      if (state.column == 0 && Lane() % 4 == 0) {
        args.partial_sums[2 * partial] = m;
        args.partial_sums[2 * partial + 1] = l;
      }
    }
  }
  SyncWarp();
  if (Lane() % 4 == 0) {
    s.folded[state.column][state.row] = folded[0];
    s.folded[state.column][state.row + 8] = folded[1];
  }
#pragma unroll
  for (int i = 0; i < 2 * T::kValueBlocks; ++i) {
    const int column = state.ValueColumn(i / 2) + i % 2 * 8 + Lane() % 4 * 2;
    const bool both = column + 1 < args.value_dim;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (out[r] == nullptr || column >= args.value_dim) continue;
      float* const to = out[r] + column;
      float2 x = make_float2(state.o[i / 2][i % 2][2 * r], state.o[i / 2][i % 2][2 * r + 1]);
      if (whole) {
        float2 total = make_float2(0, 0);
        if (!first) total = both && pairs ? *reinterpret_cast<const float2*>(to) : make_float2(to[0], both ? to[1] : 0.0f);
        x = make_float2(Folded(total.x, x.x, fold[r]), Folded(total.y, x.y, fold[r]));
        if (last) x = make_float2(Finished(x.x, finish[r]), Finished(x.y, finish[r]));
      }
      if (both && pairs) {
        *reinterpret_cast<float2*>(to) = x;
      } else {
        to[0] = x.x;
        if (both) to[1] = x.y;
      }
    }
    if (i % 4 == 3) SyncWarp();  // keeps the compiler from holding all of the totals beside all of the sums
  }
  state.Reset();
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) TileKernel(AttentionArgs args) {
  constexpr int kStages = T::kStages;
  KVASIR_SHARED(typename T::Shared, s);
  WaitForPreviousKernel();
  if (threadIdx.x == 0) s.view = ViewUnit<!T::kLatent>(args, args.units[blockIdx.x], int(blockIdx.y));
  SyncBlock();
  const UnitView& view = s.view;
  if (view.begin >= view.end) return;
  const bool keys_only = T::kLatent || (!T::kCoded && args.kv.value_dim > 0);  // values are in the tile of keys
  const int first_tile = view.begin / T::kSlots * T::kSlots, num_tiles = (view.end - first_tile + T::kSlots - 1) / T::kSlots;
  const int first_chunk = view.begin / T::kChunk * T::kChunk;
  FindKeys<T>(args, view, first_chunk, s);
  FindKeys<T>(args, view, first_chunk + T::kChunk, s);
  SyncBlock();
  // Copies in order: keys 0, values 0, keys 1, ... Keys of tile t + kStages are asked for when those of t have been used, values
  // a tile later; with keys only they go the way of the values.
  const auto load_keys = [&](int t, bool now) {
    if constexpr (T::kCoded) {
      if (t < num_tiles) LoadCodes<T>(args, view, first_tile + t * T::kSlots, 0, t % kStages, s);
    } else {
      if (now && t < num_tiles) LoadTile<T>(args, view, first_tile + t * T::kSlots, 0, s.k[t % kStages], s);
    }
    CommitCopies();
  };
  const auto load_values = [&](int t) {
    if constexpr (T::kLatent) {
      load_keys(t, true);
    } else if constexpr (T::kCoded) {
      if (t < num_tiles) LoadCodes<T>(args, view, first_tile + t * T::kSlots, 1, t % kStages, s);
      CommitCopies();
    } else {
      if (keys_only) return load_keys(t, true);
      if (t < num_tiles) LoadTile<T>(args, view, first_tile + t * T::kSlots, args.kv.page_bytes, s.v[t % kStages], s);
      CommitCopies();
    }
  };
#pragma unroll 1
  for (int t = 0; t < kStages; ++t) {
    load_keys(t, !keys_only);
    if (t + 1 < kStages) load_values(t);
  }
  LoadQueries<T>(args, view, s);
  PadKeys<T>(args.kv.head_dim, s);
  TileState<T> state;
  state.Reset();
  state.row = WarpIndex() / T::kColumnWarps * 16 + Lane() / 4;
  state.column = WarpIndex() % T::kColumnWarps;

  bool first = true;
  for (int t = 0; t < num_tiles; ++t) {
    const int tile = first_tile + t * T::kSlots, stage = t % kStages, tile_stage = T::kCoded ? 0 : stage;
    if (kStages == 1 && keys_only) {
      SyncBlock();
      load_values(t);
      WaitCopies<0>();
    } else if (keys_only) {
      WaitCopies<(kStages > 1 ? 2 * kStages - 3 : 0)>();
    } else {
      WaitCopies<2 * kStages - 2>();
    }
    if constexpr (T::kCoded) DecodeTile<T>(args, view, tile, 0, stage, s.k[0], s);
    SyncBlock();
    if (t > 0 && tile % T::kChunk == 0) FindKeys<T>(args, view, tile + T::kChunk, s);
    if (kStages > 1 || !keys_only) load_values(t + kStages - 1);
    float score[T::kSlotBlocks][4], scale[2], largest[2], rescale[2];
    uint32_t weight[T::kSlotBlocks][2];
    TileScores<T>(args, state, s.k[tile_stage], s, score);
    MaskScores<T>(args, state, view.Masked(tile, T::kSlots), tile, s, scale, largest, score);
    if (T::kColumnWarps > 1 && Lane() % 4 == 0) {
      s.max[state.column][state.row] = largest[0];
      s.max[state.column][state.row + 8] = largest[1];
    }
    SyncBlock();
    load_keys(t + kStages, !keys_only);
#pragma unroll
    for (int i = 0; i < T::kColumnWarps && T::kColumnWarps > 1; ++i)
      for (int r = 0; r < 2; ++r) largest[r] = fmaxf(largest[r], s.max[i][state.row + 8 * r]);
    Weigh<T>(scale, largest, score, state, weight, rescale);
    Rescale<T>(rescale, state);
    if (T::kColumnWarps > 1) {
      const int column = state.column * 8 * T::kSlotBlocks + Lane() % 4 * 2;
      for (int i = 0; i < 2 * T::kSlotBlocks; ++i)
        *reinterpret_cast<uint32_t*>(&s.p[state.row + i % 2 * 8][column + i / 2 * 8]) = weight[i / 2][i % 2];
    }
    if (!keys_only) WaitCopies<2 * kStages - 1>();
    if constexpr (T::kCoded) DecodeTile<T>(args, view, tile, 1, stage, s.v[0], s);
    SyncBlock();
    uint16_t* const values = keys_only ? &s.k[tile_stage][0][0] : &s.v[T::kLatent ? 0 : tile_stage][0][0];
    const bool mixed = view.Mixed(tile, T::kSlots);
    if (mixed) FindUnfinite<T>(args, values, s);
    if (mixed && s.unfinite[1] > 0) TakeUnfinite<T>(values, tile, s, state);
    AddValues<T>(values, weight, s, state);
    const bool last = t + 1 == num_tiles;
    if (last || (tile + T::kSlots) % args.split_slots == 0) {
      EndSplit<T>(args, view, first, last, s, state);
      first = false;
    }
  }
}

template <typename T>
void StartTiles(CudaContext& context, const AttentionArgs& args, int num_units) {
  Launch(TileKernel<T>, dim3(unsigned(num_units), unsigned(args.kv.num_kv_heads)), T::kThreads, sizeof(typename T::Shared),
         context.stream(), args);
}

template <DType kType>
void LaunchTiles(CudaContext& context, const AttentionArgs& args, bool tall, int num_units) {
  const int d = args.kv.head_dim;
  KVASIR_CHECK(d <= 256 || (tall && d <= 576 && args.kv.value_dim > 0 && args.kv.value_dim <= 512), "no attention for {} of {}",
               d, args.kv.value_dim);
  if (d > 256) {
    StartTiles<TileShape<kType, 576, 4, 2, 2>>(context, args, num_units);
  } else if (d > 192) {
    tall ? StartTiles<TileShape<kType, 256, 4, 1, 1>>(context, args, num_units)
         : StartTiles<TileShape<kType, 256, 1, 4, 2>>(context, args, num_units);
  } else if (d > 128) {
    tall ? StartTiles<TileShape<kType, 192, 4, 1, 1>>(context, args, num_units)
         : StartTiles<TileShape<kType, 192, 1, 4, 2>>(context, args, num_units);
  } else if (d > 64) {
    tall ? StartTiles<TileShape<kType, 128, 4, 1, 1>>(context, args, num_units)
         : StartTiles<TileShape<kType, 128, 1, 4, 2>>(context, args, num_units);
  } else {
    tall ? StartTiles<TileShape<kType, 64, 4, 1, 1>>(context, args, num_units)
         : StartTiles<TileShape<kType, 64, 1, 4, 3>>(context, args, num_units);
  }
  context.CheckLaunch("attention on tensor cores");
}

template <KvQuant kQuant>
void LaunchCodedTiles(CudaContext& context, const AttentionArgs& args, bool tall, int num_units) {
  constexpr DType kType = DType::kF16;
  const int d = args.kv.head_dim;
  KVASIR_CHECK(d <= 256 && args.kv.value_dim == 0, "no attention for {} of {} as codes", d, args.kv.value_dim);
  if (d > 192) {
    tall ? StartTiles<TileShape<kType, 256, 4, 1, 1, kQuant>>(context, args, num_units)
         : StartTiles<TileShape<kType, 256, 1, 4, 2, kQuant>>(context, args, num_units);
  } else if (d > 128) {
    tall ? StartTiles<TileShape<kType, 192, 4, 1, 1, kQuant>>(context, args, num_units)
         : StartTiles<TileShape<kType, 192, 1, 4, 2, kQuant>>(context, args, num_units);
  } else if (d > 64) {
    tall ? StartTiles<TileShape<kType, 128, 4, 1, 1, kQuant>>(context, args, num_units)
         : StartTiles<TileShape<kType, 128, 1, 4, 3, kQuant>>(context, args, num_units);
  } else {
    tall ? StartTiles<TileShape<kType, 64, 4, 1, 1, kQuant>>(context, args, num_units)
         : StartTiles<TileShape<kType, 64, 1, 4, 3, kQuant>>(context, args, num_units);
  }
  context.CheckLaunch("attention over quantised KV");
}

}  // namespace kvasir::gpu
