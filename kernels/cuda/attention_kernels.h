// The kernels of attention as CudaAttention starts them: each computes units (attention_plan.h), whole rows or partials.
#pragma once

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/step.h"

namespace kvasir {
namespace gpu {

// Passed to the kernels by value.
struct AttentionArgs {
  const float* q = nullptr;
  float* out = nullptr;
  float* partials = nullptr;      // [num_kv_heads, partial_rows, partial_width]
  float* partial_sums = nullptr;  // [num_kv_heads, partial_rows, 2]: m, l
  const float* sinks = nullptr;
  const AttentionUnit* units = nullptr;
  const AttentionMember* members = nullptr;
  StepKv kv;
  int64_t partial_rows = 0;
  int32_t partial_width = 0;
  int32_t layer = 0, num_q_heads = 0, group = 0, window = 0, split_slots = 0;
  int32_t value_dim = 0;  // of a row of out
  float score_scale = 0;  // of q.k: log2(e) * scale, or with a softcap scale / softcap
  float softcap = 0;      // log2(e) * softcap, or 0
};

}  // namespace gpu

// Units of args.units on a grid of num_units x num_kv_heads blocks.
// Any type and head_dim up to 1024, on CUDA cores; tiles of at most 16 rows.
void LaunchPlainAttention(CudaContext& context, const gpu::AttentionArgs& args, int num_units);
// float16 and bfloat16, on tensor cores. Tall: tiles of at most 64 rows, else 16. head_dim up to 256, or latent keys of up to 576
// with values of up to 512 (tall only): KernelFor.
void LaunchTileAttentionBf16(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units);
void LaunchTileAttentionF16(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units);
// Tall tiles of at most 128 rows, on sm_90 only: where HopperTakes the layout, and tables are dense.
void LaunchHopperAttention(CudaContext& context, const gpu::AttentionArgs& args, int num_units);
// Quantised KV, multiplied as float16; head_dim up to 256.
void LaunchTileAttentionFp8(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units);
void LaunchTileAttentionInt8(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units);
void LaunchTileAttentionInt4(CudaContext& context, const gpu::AttentionArgs& args, bool tall, int num_units);

}  // namespace kvasir
