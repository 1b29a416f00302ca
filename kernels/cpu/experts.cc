#include "kernels/cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/fused.h"

namespace kvasir {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float* Reserve(std::vector<float>& buffer, int64_t count) {
  if (int64_t(buffer.size()) < count) buffer.resize(size_t(count));
  return buffer.data();
}

const float* Floats(const Weight* vector) {
  return vector != nullptr ? static_cast<const float*>(vector->packed) : nullptr;
}

// The scores that weights are made of.
void Score(const float* logits, const MoeRouting& routing, float* scores) {
  const int n = routing.num_experts;
  std::copy_n(logits, n, scores);
  if (routing.score == MoeRouting::Score::kSoftmax) {
    const float max = *std::max_element(scores, scores + n);
    float sum = 0;
    for (int e = 0; e < n; ++e) sum += scores[e] = std::exp(scores[e] - max);
    for (int e = 0; e < n; ++e) scores[e] /= sum;
  } else if (routing.score == MoeRouting::Score::kSigmoid) {
    for (int e = 0; e < n; ++e) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
  }
}

// Takes the experts of all but the best groups out of the choice.
void LimitGroups(const MoeRouting& routing, float* choice) {
  const int per_group = routing.num_experts / routing.num_groups;
  std::vector<std::pair<float, int>> groups(size_t(routing.num_groups));
  for (int g = 0; g < routing.num_groups; ++g) {
    float best = kNever, second = kNever;
    for (int e = g * per_group; e < (g + 1) * per_group; ++e) {
      if (choice[e] > best)
        second = std::exchange(best, choice[e]);
      else if (choice[e] > second)
        second = choice[e];
    }
    groups[size_t(g)] = {routing.group_score_top2 ? best + second : best, g};
  }
  std::stable_sort(groups.begin(), groups.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (int g = routing.top_groups; g < routing.num_groups; ++g)
    std::fill_n(choice + groups[size_t(g)].second * per_group, per_group, kNever);
}

void RouteRow(const float* logits, const MoeRouting& routing, float* scores, float* choice, int32_t* ids, float* weights) {
  const int n = routing.num_experts;
  Score(logits, routing, scores);
  const float* correction = Floats(routing.correction);
  for (int e = 0; e < n; ++e) choice[e] = scores[e] + (correction != nullptr ? correction[e] : 0);
  if (routing.top_groups < routing.num_groups) LimitGroups(routing, choice);
  float sum = 0;
  for (int k = 0; k < routing.top_k; ++k) {
    const int best = int(std::max_element(choice, choice + n) - choice);  // the first of equals
    choice[best] = kNever;
    ids[k] = best;
    weights[k] = routing.score == MoeRouting::Score::kTopKThenSoftmax ? std::exp(scores[best] - scores[ids[0]]) : scores[best];
    sum += weights[k];
  }
  const bool divide = routing.normalize || routing.score == MoeRouting::Score::kTopKThenSoftmax;
  const float scale = routing.scale / (divide ? sum : 1.0f);
  for (int k = 0; k < routing.top_k; ++k) weights[k] *= scale;
}

}  // namespace

void CpuRoute(ThreadTeam& team, const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights) {
  const int n = routing.num_experts, top_k = routing.top_k;
  team.ParallelFor(rows, std::max(1, 4096 / n), [&](int64_t begin, int64_t end, int) {
    thread_local std::vector<float> scratch;
    scratch.resize(std::max(scratch.size(), size_t(2 * n)));
    for (int64_t i = begin; i < end; ++i)
      RouteRow(logits + i * n, routing, scratch.data(), scratch.data() + n, ids + i * top_k, weights + i * top_k);
  });
}

void CpuExperts(const GemmKernels& gemm, const FusedKernels& fused, ThreadTeam& team, GemmScratch& gemm_scratch,
                ExpertScratch& scratch, const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation,
                int top_k, const int32_t* ids, const float* weights, float* out) {
  const int num_experts = int(experts.down.size());
  const int64_t width = experts.down[0].rows, ffn = experts.down[0].cols;
  // Rows by expert, each expert's in row order.
  scratch.first.assign(size_t(num_experts) + 1, 0);
  for (int64_t i = 0; i < int64_t{rows} * top_k; ++i) ++scratch.first[size_t(ids[i]) + 1];
  std::partial_sum(scratch.first.begin(), scratch.first.end(), scratch.first.begin());
  scratch.rows.resize(size_t(rows) * size_t(top_k));
  Reserve(scratch.weights, int64_t{rows} * top_k);
  std::vector<int32_t>& next = scratch.first;
  for (int64_t i = 0; i < int64_t{rows} * top_k; ++i) {
    const int32_t to = next[size_t(ids[i])]++;
    scratch.rows[size_t(to)] = int32_t(i / top_k);
    scratch.weights[size_t(to)] = weights[i];
  }
  // Filling has moved each expert's beginning to its end, which is the next one's beginning.
  std::fill_n(out, int64_t{rows} * width, 0.0f);
  for (int e = 0; e < num_experts; ++e) {
    const int32_t begin = e == 0 ? 0 : next[size_t(e) - 1], end = next[size_t(e)];
    const int count = end - begin;
    if (count == 0) continue;
    float* x = Reserve(scratch.in, int64_t{count} * width);
    float* up = Reserve(scratch.up, int64_t{count} * 2 * ffn);
    float* activated = Reserve(scratch.activated, int64_t{count} * ffn);
    float* y = Reserve(scratch.out, int64_t{count} * width);
    for (int32_t i = 0; i < count; ++i) std::copy_n(in + int64_t{scratch.rows[size_t(begin + i)]} * width, width, x + i * width);
    const auto bias = [&](std::span<const Weight> biases) { return biases.empty() ? nullptr : Floats(&biases[size_t(e)]); };
    PanelLinear(gemm, team, gemm_scratch, x, count, experts.gate_up[size_t(e)], bias(experts.gate_up_bias), up);
    CpuActivate(fused, team, activation, true, up, count, int(ffn), activated);
    PanelLinear(gemm, team, gemm_scratch, activated, count, experts.down[size_t(e)], bias(experts.down_bias), y);
    for (int32_t i = 0; i < count; ++i)
      fused.add_scaled(out + int64_t{scratch.rows[size_t(begin + i)]} * width, y + i * width, scratch.weights[size_t(begin + i)],
                       width);
  }
}

void CpuLinearHeads(const GemmKernels& gemm, ThreadTeam& team, GemmScratch& gemm_scratch, ExpertScratch& scratch, const float* in,
                    int rows, std::span<const Weight> weights, const HeadLinear& at, float* out) {
  const int64_t in_width = weights[0].cols, out_width = weights[0].rows;
  float* x = Reserve(scratch.in, rows * in_width);
  float* y = Reserve(scratch.out, rows * out_width);
  for (size_t h = 0; h < weights.size(); ++h) {
    for (int64_t i = 0; i < rows; ++i)
      std::copy_n(in + i * at.in_stride + int64_t(h) * at.in_head_stride, in_width, x + i * in_width);
    PanelLinear(gemm, team, gemm_scratch, x, rows, weights[h], nullptr, y);
    for (int64_t i = 0; i < rows; ++i)
      std::copy_n(y + i * out_width, out_width, out + i * at.out_stride + int64_t(h) * at.out_head_stride);
  }
}

}  // namespace kvasir
