// What the attention kernels have in one: which slots a unit sees, and how splits become a result. Used by attention*.cu.
//
// The arithmetic of a row, whatever kernel, tile and unit computes it. Scores are in the domain of log2. Slots go in tiles at
// multiples of the tile's size; m is the largest score so far in the split, rounded up to a whole number, so that rescaling by
// 2^(old m - new m) is exact; weights are 2^(score - m), l is their sum and O the weighted sum of values, both in the order of
// slots, starting at zero in each split. Splits lie at multiples of the split's size and are folded in order: Fold, then Finish.
#pragma once

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir::gpu {

inline constexpr float kLog2E = 1.44269504088896341f;

KVASIR_DEVICE int Min(int a, int b) {
  return a < b ? a : b;
}
KVASIR_DEVICE int Max(int a, int b) {
  return a > b ? a : b;
}
KVASIR_DEVICE float NegativeInfinity() {
  return __uint_as_float(0xff800000u);
}
// 2^x for a whole x <= 0, exactly; 0 below -126 and for NaN.
KVASIR_DEVICE float WholePower(float x) {
  return __uint_as_float(uint32_t(int(fmaxf(x, -127.0f)) + 127) << 23);
}
// The m that is subtracted: a row that sees nothing has none.
KVASIR_DEVICE float Subtrahend(float m) {
  return m == NegativeInfinity() ? 0.0f : m;
}
// What the cap makes of q.k * score_scale.
KVASIR_DEVICE float Capped(const AttentionArgs& args, float score) {
  return __fmul_rn(args.softcap, tanhf(score));
}

// The slots of one packed row.
struct SlotRange {
  int begin = 0, end = 0;
};
KVASIR_DEVICE SlotRange RowSlots(const AttentionArgs& args, const AttentionUnit& unit, int num_slots, int row) {
  if (row >= unit.count) return {};
  const int end = num_slots - unit.slice.num_rows + (unit.first + row) / args.group + 1;
  return {args.window > 0 && end > args.window ? end - args.window : 0, end};
}

// A unit as the blocks of one KV head see it.
struct UnitView {
  AttentionUnit unit;
  StepRun run;
  int head = 0;            // KV head
  int first_split = 0;     // that the tile sees
  int num_splits = 0;      // that the tile sees
  int begin = 0, end = 0;  // slots that some row of the tile sees, of the unit's splits
  int all_begin = 0;       // from here ..
  int all_end = 0;         // .. to here every row of the tile sees every slot

  // Of a tile's slots: whether some row does not see one of them; and whether that is one that another row sees.
  KVASIR_DEVICE bool Masked(int tile, int slots) const { return tile < all_begin || tile + slots > all_end; }
  KVASIR_DEVICE bool Mixed(int tile, int slots) const {
    return Masked(tile, slots) && (Max(tile, begin) < all_begin || Min(tile + slots, end) > all_end);
  }
  // Whether the unit's result is the row's, with nothing to be merged.
  KVASIR_DEVICE bool Whole() const { return unit.splits != 1 || num_splits == 1; }
  // kMembers: units may be shared; kernels whose units never are have the registers for something else.
  template <bool kMembers>
  KVASIR_DEVICE int64_t QueryRow(const AttentionArgs& args, int row) const {  // among [rows, num_q_heads]
    if (kMembers && unit.member >= 0) {
      return int64_t(args.members[unit.member + row / args.group].row) * args.num_q_heads + head * args.group + row % args.group;
    }
    const int packed = unit.first + row;
    return int64_t(unit.slice.first_row + packed / args.group) * args.num_q_heads + head * args.group + packed % args.group;
  }
  template <bool kMembers>
  KVASIR_DEVICE int64_t PartialRow(const AttentionArgs& args, int row, int ordinal) const {
    if (kMembers && unit.member >= 0) {  // a tile of its own has the query heads of one row
      const int64_t first = args.members[unit.member + row / args.group].partial + int64_t(ordinal) * args.group;
      return head * args.partial_rows + first + row % args.group;
    }
    return head * args.partial_rows + unit.partial + int64_t(ordinal) * unit.count + row;
  }
};

template <bool kMembers>
KVASIR_DEVICE UnitView ViewUnit(const AttentionArgs& args, const AttentionUnit& unit, int head) {
  UnitView view;
  view.unit = unit;
  view.head = head;
  if (unit.count == 0) return view;  // there only to fill a grid
  const StepSlice& slice = unit.slice;
  if (slice.ragged >= 0) {
    view.run = args.kv.runs[slice.ragged + args.layer * args.kv.num_kv_heads + head];
  } else {
    view.run.entries = slice.entries;
    view.run.num_slots = slice.num_slots;
    view.run.k_offset = (int64_t(args.layer) * args.kv.num_kv_heads + head) * args.kv.pages_per_head * args.kv.page_bytes;
  }
  if (kMembers && unit.member >= 0) {  // a split that all see whole
    view.first_split = unit.ordinal;
    view.num_splits = 2;  // among others
    view.begin = unit.ordinal * args.split_slots;
    view.end = view.all_end = view.begin + args.split_slots;
    return view;
  }
  const SlotRange first = RowSlots(args, unit, view.run.num_slots, 0);
  const SlotRange last = RowSlots(args, unit, view.run.num_slots, unit.count - 1);
  view.all_begin = last.begin;
  view.all_end = first.end;
  view.first_split = first.begin / args.split_slots;
  view.num_splits = (last.end - 1) / args.split_slots - view.first_split + 1;
  if (unit.ordinal >= view.num_splits) return view;  // nothing to do: begin == end
  const int from = view.first_split + unit.ordinal;
  const int to = view.first_split + Min(view.num_splits, unit.ordinal + unit.splits);
  view.begin = Max(first.begin, from * args.split_slots);
  view.end = Min(last.end, to * args.split_slots);
  return view;
}

// Address of a slot's key. Only for slots that some row of the step sees.
KVASIR_DEVICE const std::byte* SlotKey(const StepKv& kv, const StepRun& run, int slot, int slot_bytes) {
  const int page = slot / kv.block_tokens;
  return kv.KPage(run, page) + (slot - page * kv.block_tokens) * slot_bytes;
}

// The splits of a row folded so far: total and l are relative to 2^m.
struct RowState {
  float m = -__builtin_huge_valf(), l = 0;
};
// Folds a split of sums `m` and `l` into the state. Elements: Folded(total, o, factors) where !factors.keep.
struct FoldFactors {
  float total, split;
  bool keep;  // the split is empty
};
KVASIR_DEVICE FoldFactors Fold(RowState& state, float m, float l) {
  FoldFactors factors = {1, 0, m == NegativeInfinity() && l == 0};
  if (factors.keep) return factors;
  const float larger = fmaxf(state.m, m);
  factors.total = WholePower(__fsub_rn(state.m, larger));
  factors.split = WholePower(__fsub_rn(m, larger));
  state.m = larger;
  state.l = __fadd_rn(__fmul_rn(state.l, factors.total), __fmul_rn(l, factors.split));
  return factors;
}
KVASIR_DEVICE float Folded(float total, float o, const FoldFactors& factors) {
  return factors.keep ? total : __fadd_rn(__fmul_rn(total, factors.total), __fmul_rn(o, factors.split));
}
// What the total is to be multiplied by, with the sink of the row's head.
struct FinishFactors {
  float scale, inverse;
};
KVASIR_DEVICE FinishFactors Finish(const AttentionArgs& args, const RowState& state, int q_head) {
  float scale = 1, l = state.l;
  if (args.sinks != nullptr) {
    const float sink = __fmul_rn(args.sinks[q_head], kLog2E);
    const float larger = fmaxf(state.m, ceilf(sink));
    scale = WholePower(__fsub_rn(state.m, larger));
    l = __fadd_rn(__fmul_rn(l, scale), Exp2(__fsub_rn(sink, larger)));
  }
  return {scale, __fdiv_rn(1.0f, l)};
}
KVASIR_DEVICE float Finished(float total, const FinishFactors& factors) {
  return __fmul_rn(__fmul_rn(total, factors.scale), factors.inverse);
}

}  // namespace kvasir::gpu
