#include "kernels/cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/fused.h"

namespace kvasir {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

constexpr int64_t kRoundPlaces = 4096;  // (row, expert) pairs computed at a time: bounds the scratch

float* Reserve(GemmScratch& buffer, int64_t count) {
  return reinterpret_cast<float*>(buffer.Reserve(size_t(count) * sizeof(float)));
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

// Takes the experts of all but the best groups out of the choice. `scores` is scratch [num_groups].
void LimitGroups(const MoeRouting& routing, float* choice, float* scores) {
  const int per_group = routing.num_experts / routing.num_groups;
  for (int g = 0; g < routing.num_groups; ++g) {
    float best = kNever, second = kNever;
    for (int e = g * per_group; e < (g + 1) * per_group; ++e) {
      if (choice[e] > best)
        second = std::exchange(best, choice[e]);
      else if (choice[e] > second)
        second = choice[e];
    }
    scores[g] = routing.group_score_top2 && per_group > 1 ? best + second : best;
  }
  for (int left = routing.num_groups; left > routing.top_groups; --left) {  // the worst; of equals the last
    int worst = -1;
    for (int g = 0; g < routing.num_groups; ++g) {
      if (!std::isnan(scores[g]) && (worst < 0 || scores[g] <= scores[worst])) worst = g;
    }
    if (worst < 0) return;  // nothing but NaN: the row is lost anyway
    scores[worst] = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(choice + worst * per_group, per_group, kNever);
  }
}

void RouteRow(const float* logits, const MoeRouting& routing, float* scores, float* choice, int32_t* ids, float* weights) {
  const int n = routing.num_experts;
  Score(logits, routing, scores);
  const float* correction = Floats(routing.correction);
  for (int e = 0; e < n; ++e) choice[e] = scores[e] + (correction != nullptr ? correction[e] : 0);
  if (routing.top_groups < routing.num_groups) LimitGroups(routing, choice, choice + n);
  float sum = 0;
  for (int k = 0; k < routing.top_k; ++k) {
    const int best = int(std::max_element(choice, choice + n) - choice);  // the first of equals
    choice[best] = kNever;
    ids[k] = best;
    weights[k] = routing.score == MoeRouting::Score::kTopKThenSoftmax ? std::exp(scores[best] - scores[ids[0]]) : scores[best];
    sum += weights[k];
  }
  if (routing.score == MoeRouting::Score::kSigmoid) sum += 1e-20f;  // all of them may be 0
  const bool divide = routing.normalize || routing.score == MoeRouting::Score::kTopKThenSoftmax;
  const float scale = routing.scale / (divide ? sum : 1.0f);
  for (int k = 0; k < routing.top_k; ++k) weights[k] *= scale;
}

// Counting sort of the (row, expert) pairs by expert, then by row.
void SortByExpert(ExpertScratch& s, int64_t rows, int64_t num_experts, int top_k, const int32_t* ids, const float* weights) {
  const int64_t places = rows * top_k;
  s.first.assign(size_t(num_experts) + 1, 0);
  for (int64_t i = 0; i < places; ++i) {
    KVASIR_CHECK(ids[i] >= 0 && ids[i] < num_experts, "expert {} but the layer has {}", ids[i], num_experts);
    ++s.first[size_t(ids[i]) + 1];
  }
  std::partial_sum(s.first.begin(), s.first.end(), s.first.begin());
  s.next.assign(s.first.begin(), s.first.end() - 1);
  s.row_at.resize(size_t(places));
  s.weight_at.resize(size_t(places));
  s.places.resize(size_t(places));
  for (int64_t i = 0; i < places; ++i) {
    const int32_t place = s.next[size_t(ids[i])]++;
    s.row_at[size_t(place)] = int32_t(i / top_k);
    s.weight_at[size_t(place)] = weights[i];
    s.places[size_t(i)] = place;
  }
  for (int64_t row = 0; row < rows; ++row) std::sort(s.places.begin() + row * top_k, s.places.begin() + (row + 1) * top_k);
}

}  // namespace

void CpuRoute(ThreadTeam& team, const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights) {
  const int n = routing.num_experts, top_k = routing.top_k;
  team.ParallelFor(rows, std::max(1, 4096 / n), [&](int64_t begin, int64_t end, int) {
    thread_local std::vector<float> scratch;
    scratch.resize(std::max(scratch.size(), size_t(2 * n + routing.num_groups)));
    for (int64_t i = begin; i < end; ++i)
      RouteRow(logits + i * n, routing, scratch.data(), scratch.data() + n, ids + i * top_k, weights + i * top_k);
  });
}

void CpuExperts(const GemmKernels& gemm, const FusedKernels& fused, ThreadTeam& team, GemmScratch& gemm_scratch,
                ExpertScratch& scratch, const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation,
                int top_k, const int32_t* ids, const float* weights, float* out) {
  if (rows <= 0) return;
  const int64_t width = experts.down[0].rows, ffn = experts.down[0].cols;
  SortByExpert(scratch, rows, int64_t(experts.down.size()), top_k, ids, weights);
  const int64_t places = int64_t{rows} * top_k, most = std::min(places, kRoundPlaces);
  float *x = Reserve(scratch.in, most * width), *up = Reserve(scratch.up, most * 2 * ffn),
        *activated = Reserve(scratch.activated, most * ffn), *y = Reserve(scratch.out, most * width);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / width);
  const auto bias = [](std::span<const Weight> biases, size_t e) { return biases.empty() ? nullptr : Floats(&biases[e]); };
  size_t expert = 0;
  for (int64_t begin = 0; begin < places; begin += most) {
    const int64_t end = std::min(begin + most, places);
    team.ParallelFor(end - begin, grain, [&](int64_t from, int64_t to, int) {
      for (int64_t i = from; i < to; ++i) std::copy_n(in + scratch.row_at[size_t(begin + i)] * width, width, x + i * width);
    });
    scratch.up_jobs.clear();
    scratch.down_jobs.clear();
    for (int64_t place = begin; place < end;) {
      while (scratch.first[expert + 1] <= place) ++expert;
      const int64_t count = std::min<int64_t>(scratch.first[expert + 1], end) - place, at = place - begin;
      scratch.up_jobs.push_back({x + at * width, width, count, &experts.gate_up[expert], bias(experts.gate_up_bias, expert),
                                 up + at * 2 * ffn, 2 * ffn});
      scratch.down_jobs.push_back(
          {activated + at * ffn, ffn, count, &experts.down[expert], bias(experts.down_bias, expert), y + at * width, width});
      place += count;
    }
    PanelLinears(gemm, team, gemm_scratch, scratch.up_jobs);
    CpuActivate(fused, team, activation, true, up, int(end - begin), int(ffn), activated);
    PanelLinears(gemm, team, gemm_scratch, scratch.down_jobs);
    team.ParallelFor(rows, grain, [&](int64_t from, int64_t to, int) {
      for (int64_t row = from; row < to; ++row) {
        if (begin == 0) std::fill_n(out + row * width, width, 0.0f);
        for (int k = 0; k < top_k; ++k) {
          const int64_t place = scratch.places[size_t(row * top_k + k)];
          if (place < begin || place >= end) continue;
          fused.add_scaled(out + row * width, y + (place - begin) * width, scratch.weight_at[size_t(place)], width);
        }
      }
    });
  }
}

void CpuLinearHeads(const GemmKernels& gemm, ThreadTeam& team, GemmScratch& gemm_scratch, ExpertScratch& scratch, const float* in,
                    int rows, std::span<const Weight> weights, const HeadLinear& at, float* out) {
  scratch.up_jobs.clear();
  for (int64_t h = 0; h < int64_t(weights.size()); ++h) {
    scratch.up_jobs.push_back({in + h * at.in_head_stride, at.in_stride, rows, &weights[size_t(h)], nullptr,
                               out + h * at.out_head_stride, at.out_stride});
  }
  PanelLinears(gemm, team, gemm_scratch, scratch.up_jobs);
}

}  // namespace kvasir
