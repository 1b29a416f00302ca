// Attention on CUDA cores: float32 KV, and shapes that the tensor core kernel does not take. For tiny models and tests; correct,
// not fast. Rows of a tile do not touch each other, not even by NaN.

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_unit.cuh"
#include "kernels/cuda/launch.h"

namespace kvasir {
namespace gpu {
namespace {

constexpr int kRows = 16, kTile = 64, kThreads = 128, kRowsOfThread = kRows * kTile / kThreads;

template <int kMaxDim>
struct PlainShared {
  float q[kRows][kMaxDim];
  float o[kRows][kMaxDim];
  float p[kRows][kTile];  // scores, then weights
  const std::byte* keys[kTile];
  uint32_t visible[kTile];  // bit r: row r sees the slot
  float m[kRows], l[kRows], rescale[kRows];
  RowState state[kRows];
  FoldFactors fold[kRows];
  FinishFactors finish[kRows];
};

template <bool kF32>
KVASIR_DEVICE float LoadKv(const std::byte* row, DType dtype, int at) {
  if constexpr (kF32) {
    return reinterpret_cast<const float*>(row)[at];
  } else {
    const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[at];
    return dtype == DType::kF16 ? F16ToFloat(bits) : Bf16ToFloat(bits);
  }
}

// p[row][slot] = scores of the tile.
template <bool kF32, int kMaxDim>
KVASIR_DEVICE void Score(const AttentionArgs& args, PlainShared<kMaxDim>& s) {
  const int slot = int(threadIdx.x) % kTile, first = int(threadIdx.x) / kTile * kRowsOfThread;
  const std::byte* const key = s.keys[slot];
  float sum[kRowsOfThread] = {};
  if (key != nullptr) {
    for (int j = 0; j < args.kv.head_dim; ++j) {
      const float k = LoadKv<kF32>(key, args.kv.dtype, j);
#pragma unroll
      for (int r = 0; r < kRowsOfThread; ++r) sum[r] = fmaf(s.q[first + r][j], k, sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
    float score = __fmul_rn(sum[r], args.score_scale);
    if (args.softcap > 0) score = Capped(args, score);
    s.p[first + r][slot] = (s.visible[slot] >> (first + r) & 1) != 0 ? score : NegativeInfinity();
  }
}

// Scores to weights, a warp for each row in turn.
template <int kMaxDim>
KVASIR_DEVICE void Weigh(PlainShared<kMaxDim>& s) {
  for (int r = WarpIndex(); r < kRows; r += kThreads / kWarp) {
    const float a = s.p[r][Lane()], b = s.p[r][Lane() + kWarp], old = s.m[r];
    const float m = fmaxf(old, ceilf(WarpMax(fmaxf(a, b)))), subtrahend = Subtrahend(m);
    const float pa = Exp2(__fsub_rn(a, subtrahend)), pb = Exp2(__fsub_rn(b, subtrahend));
    s.p[r][Lane()] = pa;
    s.p[r][Lane() + kWarp] = pb;
    const float sum = WarpSum(__fadd_rn(pa, pb)), rescale = WholePower(__fsub_rn(old, m));
    SyncWarp();
    if (Lane() == 0) {
      s.m[r] = m;
      s.l[r] = __fadd_rn(__fmul_rn(s.l[r], rescale), sum);
      s.rescale[r] = rescale;
    }
  }
}

template <bool kF32, int kMaxDim>
KVASIR_DEVICE void AddValues(const AttentionArgs& args, int64_t to_value, PlainShared<kMaxDim>& s) {
  for (int j = int(threadIdx.x); j < args.value_dim; j += kThreads) {
    float sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = __fmul_rn(s.o[r][j], s.rescale[r]);
    for (int slot = 0; slot < kTile; ++slot) {
      if (s.keys[slot] == nullptr) continue;
      const float v = LoadKv<kF32>(s.keys[slot] + to_value, args.kv.dtype, j);
      const uint32_t visible = s.visible[slot];
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] = (visible >> r & 1) != 0 ? fmaf(s.p[r][slot], v, sum[r]) : sum[r];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) s.o[r][j] = sum[r];
  }
}

// A split is done: its partial, or folded into out. Starts the next one.
template <int kMaxDim>
KVASIR_DEVICE void EndSplit(const AttentionArgs& args, const UnitView& view, bool first, bool last, PlainShared<kMaxDim>& s) {
  SyncBlock();
  const int r = int(threadIdx.x);
  if (r < view.unit.count) {
    if (view.Whole()) {
      s.fold[r] = Fold(s.state[r], s.m[r], s.l[r]);
      if (last) s.finish[r] = Finish(args, s.state[r], view.head * args.group + (view.unit.first + r) % args.group);
    } else {
      float* const sums = args.partial_sums + 2 * view.PartialRow<false>(args, r, view.unit.ordinal);
      sums[0] = s.m[r];
      sums[1] = s.l[r];
    }
  }
  SyncBlock();
  if (r < kRows) {
    s.m[r] = NegativeInfinity();
    s.l[r] = 0;
  }
  for (int row = 0; row < view.unit.count; ++row) {
    float* const out = view.Whole() ? args.out + view.QueryRow<false>(args, row) * args.value_dim
                                    : args.partials + view.PartialRow<false>(args, row, view.unit.ordinal) * args.partial_width;
    for (int j = int(threadIdx.x); j < args.value_dim; j += kThreads) {
      float o = s.o[row][j];
      s.o[row][j] = 0;
      if (view.Whole()) {
        o = Folded(first ? 0.0f : out[j], o, s.fold[row]);
        if (last) o = Finished(o, s.finish[row]);
      }
      out[j] = o;
    }
  }
  SyncBlock();
}

template <bool kF32, int kMaxDim>
__global__ void __launch_bounds__(kThreads) PlainKernel(AttentionArgs args) {
  KVASIR_SHARED(PlainShared<kMaxDim>, s);
  WaitForPreviousKernel();
  const UnitView view = ViewUnit<false>(args, args.units[blockIdx.x], int(blockIdx.y));
  if (view.begin >= view.end) return;
  const int d = args.kv.head_dim, thread = int(threadIdx.x), slot_bytes = d * (kF32 ? 4 : 2);
  for (int i = thread; i < kRows * d; i += kThreads) {
    const int r = i / d, j = i % d;
    s.q[r][j] = r < view.unit.count ? args.q[view.QueryRow<false>(args, r) * d + j] : 0.0f;
  }
  for (int i = thread; i < kRows * args.value_dim; i += kThreads) s.o[i / args.value_dim][i % args.value_dim] = 0;
  if (thread < kRows) {
    s.m[thread] = NegativeInfinity();
    s.l[thread] = 0;
    s.state[thread] = {};
  }
  const int64_t to_value = args.kv.value_dim > 0 ? 0 : args.kv.page_bytes;
  bool first = true;
  for (int tile = view.begin / kTile * kTile; tile < view.end; tile += kTile) {
    if (thread < kTile) {
      const int slot = tile + thread;
      const bool there = slot >= view.begin && slot < view.end;
      uint32_t visible = 0;
      for (int r = 0; there && r < view.unit.count; ++r) {
        const SlotRange slots = RowSlots(args, view.unit, view.run.num_slots, r);
        visible |= uint32_t{slot >= slots.begin && slot < slots.end} << r;
      }
      s.keys[thread] = there ? SlotKey(args.kv, view.run, slot, slot_bytes) : nullptr;
      s.visible[thread] = visible;
    }
    SyncBlock();
    Score<kF32>(args, s);
    SyncBlock();
    Weigh(s);
    SyncBlock();
    AddValues<kF32>(args, to_value, s);
    const bool last = tile + kTile >= view.end;
    if (last || (tile + kTile) % args.split_slots == 0) {
      EndSplit(args, view, first, last, s);
      first = false;
    } else {
      SyncBlock();
    }
  }
}

template <bool kF32, int kMaxDim>
void Start(CudaContext& context, const AttentionArgs& args, int num_units) {
  Launch(PlainKernel<kF32, kMaxDim>, dim3(unsigned(num_units), unsigned(args.kv.num_kv_heads)), kThreads,
         sizeof(PlainShared<kMaxDim>), context.stream(), args);
}

}  // namespace
}  // namespace gpu

void LaunchPlainAttention(CudaContext& context, const gpu::AttentionArgs& args, int num_units) {
  KVASIR_CHECK(args.kv.head_dim <= 1024, "heads of {} elements: attention on CUDA has at most 1024", args.kv.head_dim);
  if (args.kv.dtype != DType::kF32) {
    gpu::Start<false, 1024>(context, args, num_units);
  } else if (args.kv.head_dim <= 256) {
    gpu::Start<true, 256>(context, args, num_units);
  } else {
    gpu::Start<true, 1024>(context, args, num_units);
  }
  context.CheckLaunch("attention on CUDA cores");
}

}  // namespace kvasir
