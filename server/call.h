// Call: one request under way, from the engine's events to the sink's callbacks. Its token side is touched by the engine thread
// (OnEvent only queues), its text side only by the thread of its CallLoop; between them lies the loop's queue. Cancel may come
// from any thread.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "models/detokenizer.h"
#include "server/service.h"
#include "server/stop_matcher.h"

namespace kvasir {

class Call : public TokenSink, public std::enable_shared_from_this<Call> {
 public:
  Call(Service* service, std::shared_ptr<CallLoop> loop, std::shared_ptr<ResponseSink> sink, int64_t arrival_micros);
  ~Call() override;

  // Before the engine may send events, on the thread that prepares: everything the text side needs.
  struct Setup {
    std::vector<int32_t> prompt;
    std::vector<std::string> stop;
    std::vector<int32_t> stop_token_ids;
    bool include_stop = false, skip_special_tokens = true, ignore_eos = false;
    bool wants_logprobs = false, wants_prompt_logprobs = false;
    int64_t n = 1, min_tokens = 0, max_tokens = 0;
  };
  void SetUp(Setup setup) { setup_ = std::move(setup); }
  void Submitted(RequestId id);  // after Engine::Submit
  void Refuse(ApiError error);   // instead of it: OnEnd will tell

  void Cancel();
  bool accepted() const { return accepted_.load(std::memory_order_acquire); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  int64_t arrival_micros() const { return arrival_micros_; }

  // TokenSink, on the engine thread.
  void OnEvent(TokenEvent&& event) override { loop_->Push(shared_from_this(), std::move(event)); }
  void OnStepEnd() override { loop_->Wake(); }

  // On the loop's thread.
  void Deliver(TokenEvent&& event);
  void Flush();          // after the events of one wake: sends what they brought
  bool touched = false;  // used by CallLoop

 private:
  struct Choice {
    std::optional<IncrementalDetokenizer> detokenizer;
    std::optional<StopMatcher> stops;
    std::string text;                    // to be sent
    std::vector<int32_t> token_ids;      // to be sent
    std::vector<SampleResult> logprobs;  // to be sent, parallel
    int64_t tokens = 0;
    int64_t last_token_micros = 0;
    bool done = false;
  };

  void Begin();  // OnStart, once
  void AddToken(Choice& choice, int32_t index, TokenEvent&& event);
  void FlushChoice(Choice& choice, int32_t index);
  void FinishChoice(Choice& choice, int32_t index, FinishReason reason, std::string_view stop_string, int32_t stop_token);
  void End(ApiError error);
  void CancelChoice(int32_t index);
  bool EndsText(int32_t token) const;
  void RecordTimes(bool finished);
  ApiError EngineError(const Status& status) const;

  Service* const service_;
  const std::shared_ptr<CallLoop> loop_;
  std::shared_ptr<ResponseSink> sink_;
  const int64_t arrival_micros_;

  std::mutex mutex_;
  RequestId id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<int32_t> early_cancels_ ABSL_GUARDED_BY(mutex_);  // wanted before the id was known
  std::atomic<bool> cancelled_{false}, accepted_{false};

  // Written while preparing, then read on the loop's thread only.
  Setup setup_;
  ApiError refusal_;

  // Loop thread.
  std::vector<Choice> choices_;
  std::vector<SampleResult> prompt_logprobs_;
  absl::flat_hash_set<int32_t> end_ids_, stop_ids_;
  Usage usage_;
  int64_t scheduled_micros_ = 0, first_token_micros_ = 0, last_token_micros_ = 0;
  int64_t unfinished_ = 0;
  bool started_ = false, begun_ = false, ended_ = false;
};

}  // namespace kvasir
