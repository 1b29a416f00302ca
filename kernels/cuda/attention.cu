#include "kernels/cuda/attention.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_unit.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/write_step.h"

namespace kvasir {
namespace gpu {
namespace {

constexpr int kMergeWarps = 4;

// Block (tile, KV head): a warp folds the splits of a row, in order.
__global__ void __launch_bounds__(kMergeWarps* kWarp) MergeKernel(AttentionArgs args) {
  WaitForPreviousKernel();
  constexpr int kAhead = 8;  // splits whose loads are under way together
  const UnitView view = ViewUnit<false>(args, args.units[blockIdx.x], int(blockIdx.y));
  if (view.num_splits <= 1) return;  // its unit has written the result
  for (int row = WarpIndex(); row < view.unit.count; row += kMergeWarps) {
    const int q_head = view.head * args.group + (view.unit.first + row) % args.group;
    float* const out = args.out + view.QueryRow<false>(args, row) * args.value_dim;
    for (int at = 4 * Lane(); at < args.partial_width; at += 4 * kWarp) {
      RowState state;
      float4 total = make_float4(0, 0, 0, 0);
      for (int split = 0; split < view.num_splits; split += kAhead) {
        float4 o[kAhead];
        float2 sums[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (split + i >= view.num_splits) continue;
          const int64_t partial = view.PartialRow<false>(args, row, split + i);
          sums[i] = reinterpret_cast<const float2*>(args.partial_sums)[partial];
          o[i] = *reinterpret_cast<const float4*>(args.partials + partial * args.partial_width + at);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (split + i >= view.num_splits) continue;
          const FoldFactors factors = Fold(state, sums[i].x, sums[i].y);
          total.x = Folded(total.x, o[i].x, factors);
          total.y = Folded(total.y, o[i].y, factors);
          total.z = Folded(total.z, o[i].z, factors);
          total.w = Folded(total.w, o[i].w, factors);
        }
      }
      const FinishFactors factors = Finish(args, state, q_head);
      const float results[4] = {Finished(total.x, factors), Finished(total.y, factors), Finished(total.z, factors),
                                Finished(total.w, factors)};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (at + i < args.value_dim) out[at + i] = results[i];
    }
  }
}

}  // namespace
}  // namespace gpu

namespace {

// The step's plan for this op, or one of its own, made for it.
AttentionPlan FindPlan(CudaContext& context, StepAttention& step, int group, int window) {
  for (const AttentionPlan& plan : step.plans) {
    if (plan.group == group && plan.window == window) return plan;
  }
  constexpr size_t kMostWanted = 8;
  const auto same = [&](const StepAttention::Wanted& w) {
    return w.num_kv_heads == step.layout.num_kv_heads && w.group == group && w.window == window;
  };
  if (std::none_of(step.wanted.begin(), step.wanted.end(), same) && step.wanted.size() < kMostWanted)
    step.wanted.push_back({step.layout.num_kv_heads, group, window});
  AttentionPlanMemory memory;
  std::vector<AttentionRange> ranges;
  AttentionPlan plan = PlanAttention(step.slices, step.prefixes, step.layout, TilingFor(step.layout, step.warpgroups), group,
                                     window, context.multiprocessors(), memory);
  AppendRanges(plan, memory, 0, ranges);
  const AttentionRange* const uploaded = context.Upload<AttentionRange>(ranges);
  plan.members = context.Upload<AttentionMember>(memory.members);
  if (uploaded == nullptr) return plan;
  AttentionUnit* const units = TakeUnits(context, CudaContext::Scratch::kUnits, plan.num_units());
  WriteStep(context, {.ranges = uploaded, .num_ranges = int32_t(ranges.size()), .units = units});
  plan.units = units;
  return plan;
}

}  // namespace

void CudaAttention(CudaContext& context, const float* q, int layer, const AttentionParams& params, const StepKv& kv, float* out) {
  if (!context.status().ok() || kv.num_slices == 0) return;
  KVASIR_CHECK(params.num_q_heads > 0 && params.num_q_heads % kv.num_kv_heads == 0, "{} query heads over {} KV heads",
               params.num_q_heads, kv.num_kv_heads);
  KVASIR_CHECK(params.scale > 0, "attention is scaled by {}", params.scale);
  const KvLayout& layout = kv.attention->layout;
  const bool warpgroups = kv.attention->warpgroups;
  const AttentionTiling tiling = TilingFor(layout, warpgroups);
  const AttentionKernel kernel = KernelFor(layout);
  const AttentionPlan plan = FindPlan(context, *kv.attention, params.num_q_heads / kv.num_kv_heads, params.window);
  if (plan.units == nullptr) return;  // no rows, or the context has failed

  gpu::AttentionArgs args = {.q = q, .out = out, .kv = kv, .partial_rows = plan.partial_rows, .layer = layer};
  args.partial_width = tiling.partial_width;
  args.num_q_heads = params.num_q_heads;
  args.group = plan.group;
  args.window = params.window;
  args.split_slots = tiling.split_slots;
  args.value_dim = kv.value_dim > 0 ? kv.value_dim : kv.head_dim;
  args.score_scale = params.softcap > 0 ? params.scale / params.softcap : params.scale * gpu::kLog2E;
  args.softcap = params.softcap * gpu::kLog2E;
  if (params.sinks != nullptr) args.sinks = static_cast<const float*>(params.sinks->packed);
  if (plan.partial_rows > 0) {
    // Doubled, as texts grow: a steady step takes no memory.
    const int64_t rows = plan.partial_rows * kv.num_kv_heads;
    const size_t floats = std::bit_ceil(size_t(rows * (tiling.partial_width + 2)));
    args.partials = context.Temporary<float>(CudaContext::Scratch::kPartials, std::max<size_t>(floats, 1 << 16));
    if (args.partials == nullptr) return;
    args.partial_sums = args.partials + rows * tiling.partial_width;
  }
  args.members = plan.members;
  const auto launch = [&](const AttentionUnit* units, bool tall, int count) {
    if (count == 0) return;
    args.units = units;
    if (kv.quant == KvQuant::kFp8) {
      LaunchTileAttentionFp8(context, args, tall, count);
    } else if (kv.quant == KvQuant::kInt8) {
      LaunchTileAttentionInt8(context, args, tall, count);
    } else if (kv.quant == KvQuant::kInt4) {
      LaunchTileAttentionInt4(context, args, tall, count);
    } else if (tall && warpgroups) {
      LaunchHopperAttention(context, args, count);
    } else if (kernel == AttentionKernel::kPlain) {
      LaunchPlainAttention(context, args, count);
    } else if (kv.dtype == DType::kBF16) {
      LaunchTileAttentionBf16(context, args, tall, count);
    } else {
      LaunchTileAttentionF16(context, args, tall, count);
    }
  };
  launch(plan.units, false, plan.num_short);
  launch(plan.units + plan.num_short, true, plan.num_tall);
  if (plan.num_merges > 0) {
    args.units = plan.units + plan.num_short + plan.num_tall;
    Launch(gpu::MergeKernel, dim3(unsigned(plan.num_merges), unsigned(kv.num_kv_heads)), gpu::kMergeWarps * gpu::kWarp, 0,
           context.stream(), args);
    context.CheckLaunch("merging attention");
  }
}

}  // namespace kvasir
