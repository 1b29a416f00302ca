#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "kernels/reference.h"
#include "kernels/rng.h"

namespace kvasir {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

bool InRange(int32_t id, int vocab) {
  return id >= 0 && id < vocab;
}

bool HasNanOrPlusInf(const float* logits, int vocab) {
  return std::any_of(logits, logits + vocab,
                     [](float l) { return std::isnan(l) || l == std::numeric_limits<float>::infinity(); });
}

// Token ids, larger logit first, ties to the lower id.
std::vector<int32_t> Order(const std::vector<float>& logits) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  return order;
}

void FillLogprobs(const std::vector<float>& raw, int32_t token, int32_t num_top, SampleResult& result) {
  const double max = *std::max_element(raw.begin(), raw.end());
  double sum = 0;
  for (float l : raw) sum += std::exp(l - max);
  const double log_sum = max + std::log(sum);
  const std::vector<int32_t> order = Order(raw);
  result.logprob = float(raw[token] - log_sum);
  result.rank = int32_t(std::find(order.begin(), order.end(), token) - order.begin()) + 1;
  for (int32_t i = 0; i < num_top && i < int32_t(order.size()); ++i) {
    result.top.push_back({order[i], float(raw[order[i]] - log_sum)});
  }
}

std::vector<float> Adjust(const float* logits, int vocab, const SampleRow& row) {
  const SamplingParams& params = *row.params;
  std::vector<float> adjusted(logits, logits + vocab);
  if (!params.allowed_token_ids.empty()) {
    std::vector<bool> allowed(vocab, false);
    for (int32_t id : params.allowed_token_ids) {
      if (InRange(id, vocab)) allowed[id] = true;
    }
    for (int i = 0; i < vocab; ++i) {
      if (!allowed[i]) adjusted[i] = kMasked;
    }
  }
  for (int32_t id : row.suppressed) {
    if (InRange(id, vocab)) adjusted[id] = kMasked;
  }
  for (const auto& [id, bias] : params.logit_bias) {
    if (InRange(id, vocab)) adjusted[id] += bias;
  }
  std::map<int32_t, int> in_output;
  std::map<int32_t, int> anywhere;
  for (int32_t id : row.output) {
    if (InRange(id, vocab)) ++in_output[id], ++anywhere[id];
  }
  for (int32_t id : row.prompt) {
    if (InRange(id, vocab)) ++anywhere[id];
  }
  for (const auto& [id, count] : anywhere) {
    float& l = adjusted[id];
    l = l > 0 ? l / params.repetition_penalty : l * params.repetition_penalty;
  }
  for (const auto& [id, count] : in_output) {
    adjusted[id] -= params.frequency_penalty * float(count);
    adjusted[id] -= params.presence_penalty;
  }
  return adjusted;
}

int32_t Draw(const std::vector<float>& adjusted, const SampleRow& row) {
  const SamplingParams& params = *row.params;
  const std::vector<int32_t> order = Order(adjusted);
  const double max = adjusted[order[0]];
  const double temperature = params.temperature;

  std::vector<int32_t> kept;
  for (int32_t id : order) {
    if (adjusted[id] == kMasked) continue;
    if (params.min_p > 0 && adjusted[id] - max < temperature * std::log(double(params.min_p))) continue;
    kept.push_back(id);
  }
  if (params.top_k > 0 && params.top_k < int(kept.size())) kept.resize(params.top_k);
  const auto weight = [&](int32_t id) { return std::exp((adjusted[id] - max) / temperature); };
  if (params.top_p < 1) {
    double total = 0;
    for (int32_t id : kept) total += weight(id);
    double sum = 0;
    size_t count = 0;
    while (count < kept.size() && (count == 0 || sum < params.top_p * total)) sum += weight(kept[count++]);
    kept.resize(count);
  }
  std::sort(kept.begin(), kept.end());
  double total = 0;
  for (int32_t id : kept) total += weight(id);
  const double target = UniformDouble(params.seed, row.stream, row.counter) * total;
  double sum = 0;
  for (int32_t id : kept) {
    sum += weight(id);
    if (sum > target) return id;
  }
  return order[0];
}

}  // namespace

void ReferenceSample(const float* logits, int vocab, const SampleRow& row, SampleResult& result) {
  result.token = 0;
  result.finite = false;
  result.logprob = 0;
  result.rank = 0;
  result.top.clear();
  if (HasNanOrPlusInf(logits, vocab)) return;
  const std::vector<float> adjusted = Adjust(logits, vocab, row);
  if (HasNanOrPlusInf(adjusted.data(), vocab)) return;
  const std::vector<int32_t> order = Order(adjusted);
  if (adjusted[order[0]] == kMasked) return;
  result.finite = true;
  result.token = row.params->temperature > 0 ? Draw(adjusted, row) : order[0];
  if (row.params->num_logprobs >= 0) {
    FillLogprobs(std::vector<float>(logits, logits + vocab), result.token, row.params->num_logprobs, result);
  }
}

void ReferenceScore(const float* logits, int vocab, int32_t token, int32_t num_top, SampleResult& result) {
  result.token = token;
  result.finite = false;
  result.logprob = 0;
  result.rank = 0;
  result.top.clear();
  if (HasNanOrPlusInf(logits, vocab) || !InRange(token, vocab)) return;
  if (*std::max_element(logits, logits + vocab) == kMasked) return;
  result.finite = true;
  FillLogprobs(std::vector<float>(logits, logits + vocab), token, num_top, result);
}

}  // namespace kvasir
