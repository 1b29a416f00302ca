#include <cmath>

#include "kernels/cuda/experts.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {
namespace {

constexpr int kMaxExperts = 1024, kMaxGroups = 128, kRowsPerBlock = 2;

// Of one row, in doubles as in the reference: what is chosen hangs on the last digit, and there are few of them.
struct RouteRow {
  double scores[kMaxExperts];
  double choosing[kMaxExperts];
  double groups[kMaxGroups];
};
struct RouteShared {
  RouteRow rows[kRowsPerBlock];
};

KVASIR_DEVICE double WarpSumDouble(double value) {
  for (int mask = gpu::kWarp / 2; mask > 0; mask /= 2) value += gpu::ShuffleXor(value, mask);
  return value;
}
KVASIR_DEVICE double WarpMaxDouble(double value) {
  for (int mask = gpu::kWarp / 2; mask > 0; mask /= 2) value = fmax(value, gpu::ShuffleXor(value, mask));
  return value;
}

// scores -> their softmax.
KVASIR_DEVICE void SoftmaxInPlace(double* x, int n) {
  double max = -HUGE_VAL, sum = 0;
  for (int i = gpu::Lane(); i < n; i += gpu::kWarp) max = fmax(max, x[i]);
  max = WarpMaxDouble(max);
  for (int i = gpu::Lane(); i < n; i += gpu::kWarp) sum += x[i] = exp(x[i] - max);
  sum = WarpSumDouble(sum);
  for (int i = gpu::Lane(); i < n; i += gpu::kWarp) x[i] /= sum;
  gpu::SyncWarp();
}

// Takes the experts outside the best groups out of the choice.
KVASIR_DEVICE void KeepBestGroups(RouteRow& row, const MoeRouting& routing) {
  const int size = routing.num_experts / routing.num_groups;
  for (int g = gpu::Lane(); g < routing.num_groups; g += gpu::kWarp) {
    double best = -HUGE_VAL, second = -HUGE_VAL;
    for (int i = 0; i < size; ++i) {
      const double x = row.choosing[g * size + i];
      second = x > best ? best : x > second ? x : second;
      best = x > best ? x : best;
    }
    row.groups[g] = routing.group_score_top2 && size > 1 ? best + second : best;
  }
  gpu::SyncWarp();
  for (int e = gpu::Lane(); e < routing.num_experts; e += gpu::kWarp) {
    const int g = e / size;
    int better = 0;
    for (int other = 0; other < routing.num_groups; ++other)
      better += row.groups[other] > row.groups[g] || (row.groups[other] == row.groups[g] && other < g);
    if (better >= routing.top_groups) row.choosing[e] = -HUGE_VAL;
  }
  gpu::SyncWarp();
}

// The lane's candidate against another's: the larger value, of equals the lower id. No id is below 0.
struct Candidate {
  double value;
  int id;
};
KVASIR_DEVICE Candidate Better(Candidate a, Candidate b) {
  if (b.id < 0) return a;
  if (a.id < 0) return b;
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

// A warp for each row.
__global__ void RouteKernel(const float* logits, int rows, MoeRouting routing, const float* correction, int32_t* ids,
                            float* weights) {
  gpu::WaitForPreviousKernel();
  using Score = MoeRouting::Score;
  KVASIR_SHARED(RouteShared, shared);
  const int64_t at = int64_t(blockIdx.x) * kRowsPerBlock + gpu::WarpIndex();
  if (at >= rows) return;  // a whole warp
  RouteRow& row = shared.rows[gpu::WarpIndex()];
  const int n = routing.num_experts;
  for (int e = gpu::Lane(); e < n; e += gpu::kWarp) row.scores[e] = logits[at * n + e];
  if (routing.score == Score::kSoftmax) SoftmaxInPlace(row.scores, n);
  for (int e = gpu::Lane(); e < n; e += gpu::kWarp) {
    if (routing.score == Score::kSigmoid) row.scores[e] = 1 / (1 + exp(-row.scores[e]));
    const double choosing = row.scores[e] + (correction != nullptr ? double(correction[e]) : 0.0);
    row.choosing[e] = choosing == choosing ? choosing : -HUGE_VAL;  // a NaN is the last to be chosen, but can be
  }
  gpu::SyncWarp();
  if (routing.num_groups > 1) KeepBestGroups(row, routing);
  // Chosen ones leave the choice: ids stay distinct whatever the scores are. They are kept by the lane of their number, the
  // chosen's scores in `groups`, which has done its duty.
  double sum = routing.score == Score::kSigmoid ? 1e-20 : 0.0;
  for (int k = 0; k < routing.top_k; ++k) {
    Candidate best = {0, -1};
    for (int e = gpu::Lane(); e < n; e += gpu::kWarp) {
      const double x = row.choosing[e];
      if (x == x) best = Better(best, {x, e});
    }
    for (int mask = gpu::kWarp / 2; mask > 0; mask /= 2)
      best = Better(best, {gpu::ShuffleXor(best.value, mask), gpu::ShuffleXor(best.id, mask)});
    if (gpu::Lane() == 0) {
      row.groups[k] = row.scores[best.id];
      row.choosing[best.id] = NAN;
      ids[at * routing.top_k + k] = best.id;
    }
    gpu::SyncWarp();
  }
  if (routing.score == Score::kTopKThenSoftmax) SoftmaxInPlace(row.groups, routing.top_k);
  for (int k = 0; k < routing.top_k; ++k) sum += row.groups[k];
  for (int k = gpu::Lane(); k < routing.top_k; k += gpu::kWarp)
    weights[at * routing.top_k + k] = float(row.groups[k] / (routing.normalize ? sum : 1) * routing.scale);
}

}  // namespace

void CudaRoute(CudaContext& context, const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights) {
  KVASIR_CHECK(routing.num_experts <= kMaxExperts && routing.num_groups <= kMaxGroups && routing.top_k <= kMaxGroups,
               "{} of {} experts in {} groups; CUDA kernels are made for at most {} of {} in {}", routing.top_k,
               routing.num_experts, routing.num_groups, kMaxGroups, kMaxExperts, kMaxGroups);
  const float* const correction = routing.correction != nullptr ? static_cast<const float*>(routing.correction->packed) : nullptr;
  Launch(RouteKernel, dim3((rows + kRowsPerBlock - 1) / kRowsPerBlock), kRowsPerBlock * gpu::kWarp, sizeof(RouteShared),
         context.stream(), logits, rows, routing, correction, ids, weights);
  context.CheckLaunch("routing");
}

}  // namespace kvasir
