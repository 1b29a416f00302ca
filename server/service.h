// Service: what Kvasir does, without a protocol. Both fronts build a GenerateRequest and give a ResponseSink; Service validates,
// renders the chat template, tokenizes, submits, and turns the engine's events into text, stop strings, logprobs, usage and
// metrics.
//
// Thread-safe. Everything a client may get wrong is checked here or in ValidatedRequest, once for both fronts. Callbacks of a
// sink come on the CallLoop given to Generate, never inside Generate, in the order OnStart, OnDelta..., OnFinish for each choice,
// OnEnd exactly once.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/clock.h"
#include "models/chat_template.h"
#include "models/config.h"
#include "models/tokenizer.h"
#include "scheduler/engine.h"
#include "server/call_loop.h"
#include "server/limits.h"
#include "server/metrics.h"
#include "server/status.h"
#include "server/worker_pool.h"

namespace kvasir {

// As a client may ask; unset fields take the model's generation_config.json, then the neutral value.
struct GenerateRequest {
  std::variant<std::string, std::vector<int32_t>, ChatInput> prompt;
  std::string model;  // empty = the one that is served

  std::optional<float> temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
  std::optional<int64_t> top_k;  // -1 and 0 = off
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed_token_ids;
  std::optional<uint64_t> seed;  // unset = drawn anew

  std::optional<int64_t> max_tokens;  // unset = default_max_tokens, as far as there is room
  int64_t default_max_tokens = 0;     // 0 = the rest of the context
  int64_t min_tokens = 0;
  int64_t n = 1;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  bool include_stop_in_output = false;
  std::vector<int32_t> stop_token_ids;

  std::optional<int64_t> logprobs, prompt_logprobs;  // alternatives; unset = none
  bool skip_special_tokens = true;
  std::optional<bool> add_special_tokens;         // default: true for text, false for chat
  std::optional<int64_t> truncate_prompt_tokens;  // keep so many; -1 = as many as the context takes
  bool truncate_end = false;                      // keep the first ones instead of the last
  int64_t priority = 0;
  std::string cache_salt;
  std::string tenant;          // who asks, from the key; never from the request
  int64_t timeout_millis = 0;  // 0 = none
};

struct Started {
  int64_t prompt_tokens = 0, cached_tokens = 0;
  std::span<const int32_t> prompt_ids;
  std::span<const SampleResult> prompt_logprobs;  // of prompt tokens 1, 2, ...; only where asked
};

struct Delta {
  int32_t choice = 0;
  std::string_view text;                   // whole characters; may be empty while text is held back
  std::span<const int32_t> token_ids;      // since the last delta
  std::span<const SampleResult> logprobs;  // parallel to token_ids, or empty when not asked for
  int64_t completion_tokens = 0;           // of all choices so far
};

struct Finished {
  int32_t choice = 0;
  FinishReason reason = FinishReason::kStop;  // kStop or kLength
  std::string_view stop_string;               // the one that matched, if any
  int32_t stop_token = -1;                    // the stop id asked for that ended it; -1 for none and for the model's own end
  int32_t end_token = -1;                     // the end or stop id that ended it, whichever
};

struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
};

class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  virtual void OnStart(const Started& started) = 0;
  virtual void OnDelta(const Delta& delta) = 0;
  virtual void OnFinish(const Finished& finished) = 0;
  // error.ok(): every choice was finished. Otherwise the request ended early; nothing else follows.
  virtual void OnEnd(const ApiError& error, const Usage& usage) = 0;
};

// What is loaded, as the fronts show it.
struct ModelInfo {
  std::vector<std::string> names;  // the first is shown; all are accepted
  std::string architecture, dtype, kv_cache_dtype, device;
  int64_t num_parameters = 0;
  int block_tokens = 0;
  int64_t num_blocks = 0;
  int64_t created = 0;  // Unix seconds
};

struct ServiceConfig {
  Engine* engine = nullptr;  // outlive the service
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: the model has none
  bool trust_request_chat_template = false;     // requests may bring a template's source, not only the name of one
  const Clock* clock = nullptr;                 // the engine's
  GenerationDefaults defaults;
  ModelInfo model;
  ServerLimits limits;
  uint64_t seed = 0;  // for requests that give none; 0 = drawn anew
};

// A request under way. Kept by the front for as long as it may want to cancel.
class Call;
void CancelCall(const std::shared_ptr<Call>& call);      // idempotent; OnEnd still comes. Any thread.
bool CallIsAccepted(const std::shared_ptr<Call>& call);  // the engine has taken it: it waits or runs. Any thread.

class Service {
 public:
  explicit Service(ServiceConfig config);
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  std::shared_ptr<Call> Generate(GenerateRequest request, std::shared_ptr<CallLoop> loop, std::shared_ptr<ResponseSink> sink);

  // Pure and thread-safe, but slow for long input: run them on workers.
  StatusOr<std::vector<int32_t>> Tokenize(const std::variant<std::string, ChatInput>& input,
                                          std::optional<bool> add_special_tokens) const;
  StatusOr<std::string> Detokenize(std::span<const int32_t> ids, bool skip_special_tokens) const;
  StatusOr<std::string> Render(const ChatInput& input) const;

  ApiError CheckModel(std::string_view name) const;  // kModelNotFound unless it is empty or served
  ApiError CheckReady() const;                       // kDraining, kEngineFailed or none
  void BeginDrain() { draining_.store(true); }       // new requests are refused from now on; open ones go on
  bool draining() const { return draining_.load(); }
  int64_t open_calls() const { return open_calls_.load(); }

  EngineStats Stats() const { return config_.engine->Stats(); }
  std::string MetricsText() const;  // Prometheus text format
  const ServiceConfig& config() const { return config_; }
  const ModelInfo& model() const { return config_.model; }
  int64_t max_model_len() const { return config_.engine->config().limits.max_model_len; }
  const Tokenizer& tokenizer() const { return *config_.tokenizer; }
  // Those for a text of so many bytes.
  WorkerPool& workers(size_t text_bytes) { return text_bytes > config_.limits.long_prompt_bytes ? long_workers_ : workers_; }
  ServerMetrics& metrics() { return metrics_; }
  int64_t uptime_seconds() const { return (config_.clock->NowMicros() - started_micros_) / 1'000'000; }

 private:
  friend class Call;
  // Prepares and submits; on a worker or inside Generate.
  void Prepare(const std::shared_ptr<Call>& call, GenerateRequest request);
  ApiError Tokens(const GenerateRequest& request, std::vector<int32_t>* ids) const;
  ApiError CheckStops(const GenerateRequest& request) const;
  StatusOr<RequestDraft> MakeDraft(GenerateRequest& request, std::vector<int32_t> prompt, int64_t arrival_micros);
  TenantSalt Salt(const GenerateRequest& request) const;

  const ServiceConfig config_;
  const int64_t started_micros_;
  std::string secret_;  // for salts; random per start
  std::atomic<bool> draining_{false};
  std::atomic<int64_t> open_calls_{0};
  std::atomic<uint64_t> next_seed_;
  ServerMetrics metrics_;
  WorkerPool workers_, long_workers_;  // last: their threads use the rest
};

}  // namespace kvasir
