#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/reference.h"

namespace kvasir {
namespace {

double Sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// Takes experts outside the best groups out of the choice.
void KeepBestGroups(const MoeRouting& routing, std::vector<double>& choosing) {
  const int size = routing.num_experts / routing.num_groups;
  std::vector<double> score(routing.num_groups);
  for (int g = 0; g < routing.num_groups; ++g) {
    std::vector<double> members(choosing.begin() + g * size, choosing.begin() + (g + 1) * size);
    std::sort(members.begin(), members.end(), std::greater<>());
    score[g] = routing.group_score_top2 && size > 1 ? members[0] + members[1] : members[0];
  }
  std::vector<int> order(routing.num_groups);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score[a] > score[b]; });
  for (int i = routing.top_groups; i < routing.num_groups; ++i) {
    std::fill_n(choosing.begin() + order[i] * size, size, -HUGE_VAL);
  }
}

}  // namespace

double ReferenceActivation(const ActivationParams& activation, double x, double up) {
  switch (activation.kind) {
    case Activation::kSilu:
      return x * Sigmoid(x) * up;
    case Activation::kGelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0)) * up;
    case Activation::kGeluTanh:
      return x * Sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)) * up;  // (1 + tanh(y)) / 2 = sigmoid(2 y)
    case Activation::kRelu:
      return std::max(x, 0.0) * up;
    case Activation::kRelu2:
      return std::max(x, 0.0) * std::max(x, 0.0) * up;
    case Activation::kSwigluOai: {
      const double gate = std::min(x, double{activation.limit});
      return gate * Sigmoid(activation.alpha * gate) * (std::clamp(up, -double{activation.limit}, double{activation.limit}) + 1);
    }
  }
  return 0;
}

void ReferenceRoute(const float* logits, const MoeRouting& routing, int32_t* ids, float* weights) {
  const int n = routing.num_experts;
  const bool late_softmax = routing.score == MoeRouting::Score::kTopKThenSoftmax;
  std::vector<double> scores(logits, logits + n);
  const auto softmax = [](std::vector<double>& x) {
    const double max = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& v : x) sum += v = std::exp(v - max);
    for (double& v : x) v /= sum;
  };
  if (routing.score == MoeRouting::Score::kSoftmax) softmax(scores);
  if (routing.score == MoeRouting::Score::kSigmoid) {
    for (double& s : scores) s = Sigmoid(s);
  }
  std::vector<double> choosing = scores;
  if (routing.correction != nullptr) {
    const float* correction = static_cast<const float*>(routing.correction->packed);
    for (int e = 0; e < n; ++e) choosing[e] += correction[e];
  }
  if (routing.num_groups > 1) KeepBestGroups(routing, choosing);
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return choosing[a] > choosing[b]; });
  std::vector<double> chosen(routing.top_k);
  for (int k = 0; k < routing.top_k; ++k) chosen[k] = scores[order[k]];
  if (late_softmax) softmax(chosen);
  const double sum = std::accumulate(chosen.begin(), chosen.end(), routing.score == MoeRouting::Score::kSigmoid ? 1e-20 : 0.0);
  for (int k = 0; k < routing.top_k; ++k) {
    ids[k] = order[k];
    weights[k] = float(chosen[k] / (routing.normalize ? sum : 1) * routing.scale);
  }
}

}  // namespace kvasir
