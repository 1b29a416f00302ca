#include "scheduler/request.h"

#include <cmath>
#include <span>

#include "scheduler/policies.h"

namespace kvasir {
namespace {

struct FloatRange {
  const char* field;
  float SamplingParams::*value;
  float low, high;
  bool open_low;  // low itself is refused
  const char* remedy;
};

constexpr FloatRange kFloatRanges[] = {
    {"temperature", &SamplingParams::temperature, 0.0f, 2.0f, false, "0 is greedy, 1 is the model's own distribution"},
    {"top_p", &SamplingParams::top_p, 0.0f, 1.0f, true, "1 turns it off"},
    {"min_p", &SamplingParams::min_p, 0.0f, 1.0f, false, "0 turns it off"},
    {"presence_penalty", &SamplingParams::presence_penalty, -2.0f, 2.0f, false, "0 turns it off"},
    {"frequency_penalty", &SamplingParams::frequency_penalty, -2.0f, 2.0f, false, "0 turns it off"},
    {"repetition_penalty", &SamplingParams::repetition_penalty, 0.0f, 100.0f, true, "1 turns it off"},
};

Status CheckFloats(const SamplingParams& sampling) {
  for (const FloatRange& range : kFloatRanges) {
    const float value = sampling.*range.value;
    const bool inside = std::isfinite(value) && value <= range.high && (range.open_low ? value > range.low : value >= range.low);
    if (inside) continue;
    return InvalidArgument("`{}` is {} but must be in {}{}, {}]; {}", range.field, value, range.open_low ? "(" : "[", range.low,
                           range.high, range.remedy);
  }
  return OkStatus();
}

Status CheckInteger(const char* field, int64_t value, int64_t low, int64_t high, const char* remedy) {
  if (value >= low && value <= high) return OkStatus();
  return InvalidArgument("`{}` is {} but must be in [{}, {}]; {}", field, value, low, high, remedy);
}

Status CheckIds(const char* field, std::span<const int32_t> ids, int64_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return InvalidArgument(
        "`{}` holds the token id {} at index {} but the vocabulary has ids 0 to {}; send ids of this model's tokenizer", field,
        ids[i], i, vocab_size - 1);
  }
  return OkStatus();
}

Status CheckLogitBias(const SamplingParams& sampling, const RequestLimits& limits) {
  const auto& bias = sampling.logit_bias;
  if (int64_t(bias.size()) > limits.max_logit_bias) {
    return InvalidArgument("`logit_bias` has {} entries but the limit is {}; send fewer", bias.size(), limits.max_logit_bias);
  }
  for (const auto& [token, value] : bias) {
    if (token < 0 || token >= limits.vocab_size) {
      return InvalidArgument(
          "`logit_bias` names the token id {} but the vocabulary has ids 0 to {}; send ids of this model's tokenizer", token,
          limits.vocab_size - 1);
    }
    if (!std::isfinite(value) || value < -100.0f || value > 100.0f) {
      return InvalidArgument("`logit_bias` of token {} is {} but must be in [-100, 100]; -100 forbids a token in practice", token,
                             value);
    }
  }
  return OkStatus();
}

Status CheckSampling(const SamplingParams& sampling, const RequestLimits& limits) {
  KVASIR_RETURN_IF_ERROR(CheckFloats(sampling));
  KVASIR_RETURN_IF_ERROR(CheckInteger("top_k", sampling.top_k, 0, INT32_MAX, "0 turns it off"));
  KVASIR_RETURN_IF_ERROR(
      CheckInteger("logprobs", sampling.num_logprobs, -1, limits.max_logprobs, "leave it out for no log-probabilities"));
  KVASIR_RETURN_IF_ERROR(CheckInteger("prompt_logprobs", sampling.num_prompt_logprobs, -1, limits.max_logprobs,
                                      "leave it out for no log-probabilities"));
  KVASIR_RETURN_IF_ERROR(CheckLogitBias(sampling, limits));
  if (int64_t(sampling.allowed_token_ids.size()) > limits.vocab_size) {
    return InvalidArgument("`allowed_token_ids` has {} entries but the vocabulary has only {}; send each id once",
                           sampling.allowed_token_ids.size(), limits.vocab_size);
  }
  return CheckIds("allowed_token_ids", sampling.allowed_token_ids, limits.vocab_size);
}

// Prompt, max_tokens, context and pool. Sets max_tokens where the draft left it open.
Status CheckLengths(RequestDraft& draft, const RequestLimits& limits) {
  const int64_t prompt = int64_t(draft.prompt.size());
  if (prompt == 0) return InvalidArgument("`prompt` is empty but must hold at least one token; send some text");
  if (draft.max_tokens && *draft.max_tokens < 1) {
    return InvalidArgument("`max_tokens` is {} but must be at least 1; leave it out to use the rest of the context",
                           *draft.max_tokens);
  }
  if (prompt >= limits.max_model_len) {
    return OutOfRange(
        "`prompt` has {} tokens but the context is {} tokens and at least one must be generated; shorten the prompt", prompt,
        limits.max_model_len);
  }
  const int64_t room = limits.max_model_len - prompt;
  if (draft.max_tokens && *draft.max_tokens > room) {
    return OutOfRange(
        "`max_tokens` is {} but the prompt has {} tokens and the context is {}, which leaves {}; lower `max_tokens` or shorten "
        "the prompt",
        *draft.max_tokens, prompt, limits.max_model_len, room);
  }
  // The last generated token is never fed back, so it takes no slot. Rounded to whole blocks, as the pool hands them out.
  const int64_t pool_room = limits.pool_tokens / limits.block_tokens * limits.block_tokens - prompt + 1;
  if (pool_room < 1) {
    return OutOfRange(
        "`prompt` has {} tokens but the KV pool of this server holds {}; shorten the prompt or give the server more KV memory",
        prompt, limits.pool_tokens);
  }
  if (draft.max_tokens && *draft.max_tokens > pool_room) {
    return OutOfRange(
        "`max_tokens` is {} but the prompt has {} tokens and the KV pool of this server holds {}, which leaves {}; lower "
        "`max_tokens` or "
        "give the server more KV memory",
        *draft.max_tokens, prompt, limits.pool_tokens, pool_room);
  }
  if (!draft.max_tokens) draft.max_tokens = std::min(room, pool_room);
  return CheckInteger("min_tokens", draft.min_tokens, 0, *draft.max_tokens, "it may not exceed `max_tokens`");
}

// Without preemption the choices of a request cannot take turns.
Status CheckChoicesFitTogether(const RequestDraft& draft, const RequestLimits& limits) {
  if (!limits.reserve_to_finish || draft.n == 1) return OkStatus();
  const int64_t prompt = int64_t(draft.prompt.size());
  const KvGroupShape single = {.extent_tokens = limits.block_tokens};
  const bool one_group = limits.kv_groups.empty();
  const int64_t needed = OwedExtents({.groups = one_group ? std::span(&single, 1) : std::span(limits.kv_groups),
                                      .known_tokens = prompt,
                                      .final_tokens = prompt + *draft.max_tokens - 1,
                                      .prompt_tokens = prompt,
                                      .chunk_tokens = std::min(prompt, limits.chunk_tokens),
                                      .unforked_choices = int(draft.n - 1),
                                      .reserve_to_finish = true});
  const int64_t extents = one_group ? limits.pool_tokens / limits.block_tokens : limits.pool_extents;
  if (needed <= extents) return OkStatus();
  return OutOfRange(
      "`n` is {} but so many choices of {} tokens need {} blocks of KV memory and this server, which reserves memory to the end "
      "of every request, has {}; lower `n` or `max_tokens`",
      draft.n, *draft.max_tokens, needed, extents);
}

}  // namespace

StatusOr<ValidatedRequest> ValidatedRequest::Make(RequestDraft draft, const RequestLimits& limits) {
  KVASIR_RETURN_IF_ERROR(CheckLengths(draft, limits));
  KVASIR_RETURN_IF_ERROR(CheckIds("prompt", draft.prompt, limits.vocab_size));
  KVASIR_RETURN_IF_ERROR(CheckInteger("n", draft.n, 1, limits.max_n, "send several requests for more choices"));
  KVASIR_RETURN_IF_ERROR(CheckChoicesFitTogether(draft, limits));
  if (int64_t(draft.stop_token_ids.size()) > limits.max_stop_token_ids) {
    return InvalidArgument("`stop_token_ids` has {} entries but the limit is {}; send fewer", draft.stop_token_ids.size(),
                           limits.max_stop_token_ids);
  }
  KVASIR_RETURN_IF_ERROR(CheckIds("stop_token_ids", draft.stop_token_ids, limits.vocab_size));
  KVASIR_RETURN_IF_ERROR(CheckSampling(draft.sampling, limits));
  if (draft.priority != 0 && !limits.priority_allowed) {
    return InvalidArgument(
        "`priority` is {} but this server runs requests in order of arrival; start it with --scheduling-policy priority",
        draft.priority);
  }
  KVASIR_RETURN_IF_ERROR(CheckInteger("deadline", draft.deadline_micros, 0, INT64_MAX, "leave it out for no deadline"));
  return ValidatedRequest(std::move(draft));
}

}  // namespace kvasir
