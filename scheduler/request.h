// A request as the engine sees it: token ids, sampling, limits; no text, no JSON, no sockets. Both fronts build a
// RequestDraft; ValidatedRequest::Make is the only way to the engine, so every limit is checked in one place (and a field that
// one front forgets cannot slip in through the other).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/sampling.h"
#include "kernels/status.h"
#include "memory/kv_arena.h"

namespace kvasir {

using TenantSalt = std::array<std::byte, 32>;  // digest of tenant and cache_salt; all zero = the public one

struct RequestDraft {
  std::vector<int32_t> prompt;        // token ids, at least one
  std::optional<int64_t> max_tokens;  // unset: the rest of the context
  int64_t min_tokens = 0;             // end and stop ids are suppressed until then
  int64_t n = 1;                      // choices, forked after the prompt is computed
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;  // beside the model's end tokens
  SamplingParams sampling;              // seed: choice i draws from stream i
  TenantSalt salt{};
  int32_t priority = 0;         // lower runs earlier; used by --scheduling-policy priority
  int64_t deadline_micros = 0;  // on the engine's clock; 0 = none
  int64_t arrival_micros = 0;   // when the front received it
};

struct RequestLimits {
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;
  int64_t pool_tokens = 0;  // the longest text whose KV the whole pool holds: a request that can never fit is refused
  int block_tokens = 16;
  // With several groups of layers, or one with a window; empty = one group that keeps all, in extents of block_tokens.
  std::vector<KvGroupShape> kv_groups;
  int64_t pool_extents = 0;  // where kv_groups is set
  int64_t chunk_tokens = 1;  // most tokens of one text that a step computes
  int64_t max_n = 128;
  int64_t max_logprobs = 20;
  int64_t max_stop_token_ids = 128;
  int64_t max_logit_bias = 1024;
  bool priority_allowed = false;
  bool reserve_to_finish = false;  // all choices of a request must fit into the pool together
  std::vector<int32_t> eos_token_ids;
};

class ValidatedRequest {
 public:
  // InvalidArgument messages begin with the field's name in backquotes ("`top_p` is 1.5 but ..."), so that the fronts can fill
  // `param`. A prompt that leaves no room for a token, or prompt + max_tokens over max_model_len, is OutOfRange
  // (context_length_exceeded).
  static StatusOr<ValidatedRequest> Make(RequestDraft draft, const RequestLimits& limits);
  const RequestDraft& operator*() const { return draft_; }
  const RequestDraft* operator->() const { return &draft_; }
  int64_t max_tokens() const { return *draft_.max_tokens; }  // always set after Make

 private:
  explicit ValidatedRequest(RequestDraft draft) : draft_(std::move(draft)) {}
  RequestDraft draft_;
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };

// What the engine tells about a request. Order: kStarted, (kPrompt), kToken..., one kFinished per choice, exactly one kEnd. kEnd
// is the terminal event: it comes for every accepted request, whatever happens, and nothing follows it.
struct TokenEvent {
  enum class Kind : uint8_t { kStarted, kPrompt, kToken, kFinished, kEnd } kind = Kind::kToken;
  int32_t choice = 0;
  int64_t time_micros = 0;  // engine clock, when the step that made it was committed
  // kStarted
  int32_t cached_tokens = 0;     // prompt tokens found in the prefix cache
  int64_t scheduled_micros = 0;  // first time it was put into a step
  // kPrompt: one per prompt token from the second on, in order (prompt_logprobs); kToken: the sampled token
  SampleResult sample;
  // kFinished
  FinishReason reason = FinishReason::kStop;
  int32_t stop_token = -1;  // the end or stop id that ended the choice, -1 = none; it is also delivered as a kToken before
  // kEnd: OK, Cancelled, DeadlineExceeded, Unavailable (draining, engine failed), Internal (this request's fault only)
  Status status;
};

// Where events go. Called on the engine thread: must not block, throw or call back into the engine's blocking parts.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void OnEvent(TokenEvent&& event) = 0;
  // After all events of a step have been given to all sinks that got any: the moment to wake I/O threads once.
  virtual void OnStepEnd() {}
};

using RequestId = uint64_t;  // the engine's own; never chosen by a client

}  // namespace kvasir
