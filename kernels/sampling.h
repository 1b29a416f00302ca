// What a request may ask of the sampler, and what the sampler answers. Plain data shared by the fronts, the scheduler and
// the devices. Ranges are enforced at the edge (scheduler/request.h); devices may assume them, but a row of logits may hold
// anything, NaN included, and must never crash or leak into another row.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvasir {

struct SamplingParams {
  float temperature = 1.0f;         // 0 = greedy (arg-max, ties to the lower id)
  int32_t top_k = 0;                // 0 = off
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]: keep tokens with p >= min_p * max p
  float presence_penalty = 0.0f;    // OpenAI: over generated tokens, subtracted once if present
  float frequency_penalty = 0.0f;   // OpenAI: over generated tokens, subtracted per occurrence
  float repetition_penalty = 1.0f;  // CTRL (arXiv 1909.05858): over prompt and generated tokens; l > 0 ? l / r : l * r
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id -> added to the logit
  std::vector<int32_t> allowed_token_ids;             // empty = all
  uint64_t seed = 0;
  int32_t num_logprobs = -1;         // alternatives wanted per generated token; -1 = no logprobs, 0 = the chosen token's only
  int32_t num_prompt_logprobs = -1;  // the same for prompt tokens
};

// A token that is not known yet where it is needed: a step can be started before the one before it has been read. In place of its
// id stands the name of the sample, counted among those of the step before.
constexpr int32_t PendingToken(int32_t sample) {
  return ~sample;
}
constexpr bool IsPending(int32_t token) {
  return token < 0;
}
constexpr int32_t SampleOf(int32_t pending) {
  return ~pending;
}

// One row of logits to sample from. Order of operations: (raw log-softmax for logprobs) -> suppressed ids and allowed ids ->
// logit_bias -> penalties -> temperature -> min_p -> top_k -> top_p -> draw. Reported logprobs are of the raw logits (vLLM's
// default).
struct SampleRow {
  const SamplingParams* params = nullptr;
  std::span<const int32_t> prompt;      // token ids, for repetition_penalty
  std::span<const int32_t> output;      // token ids generated so far, for the penalties
  std::span<const int32_t> suppressed;  // ids that must not be chosen now (end tokens before min_tokens)
  uint64_t stream = 0;                  // Philox stream: index of the choice (n > 1)
  uint64_t counter = 0;                 // Philox counter: index of the generated token
  int32_t pending = 0;                  // < 0: one more than `output` was generated, under this name (PendingToken)
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct SampleResult {
  int32_t token = -1;
  bool finite = true;  // false: the row held NaN or +Inf, or every token was masked; the request must end with an internal error
  float logprob = 0;   // of `token`, raw; only when num_logprobs >= 0
  int32_t rank = 0;    // 1 = most likely; only when num_logprobs >= 0
  std::vector<TokenLogprob> top;  // num_logprobs most likely tokens, best first, ties to the lower id
};

}  // namespace kvasir
