// Mixture of experts and head-wise linears on the CPU. Called by CpuDevice; arguments as in device.h. Rows are sorted by expert
// and all experts' products run together, so each weight is read once. A row's result is a sum over its own experts by rising id,
// each computed by the ordinary linear path, so it does not depend on the other rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/fused_kernels.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"

namespace kvasir {

// Scratch that grows to what the largest call needs and then stays.
struct ExpertScratch {
  std::vector<int32_t> first;    // [experts + 1]: where each expert's places begin in the sorted order
  std::vector<int32_t> next;     // [experts]: while sorting
  std::vector<int32_t> row_at;   // [rows * top_k]: by place
  std::vector<float> weight_at;  // [rows * top_k]: by place
  std::vector<int32_t> places;   // [rows, top_k]: each row's places, ascending, so by rising expert
  std::vector<LinearJob> up_jobs, down_jobs;
  GemmScratch in, up, activated, out;  // [places of a round, width or ffn]
};

void CpuRoute(ThreadTeam& team, const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights);

void CpuExperts(const GemmKernels& gemm, const FusedKernels& fused, ThreadTeam& team, GemmScratch& gemm_scratch,
                ExpertScratch& scratch, const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation,
                int top_k, const int32_t* ids, const float* weights, float* out);

void CpuLinearHeads(const GemmKernels& gemm, ThreadTeam& team, GemmScratch& gemm_scratch, ExpertScratch& scratch, const float* in,
                    int rows, std::span<const Weight> weights, const HeadLinear& at, float* out);

}  // namespace kvasir
