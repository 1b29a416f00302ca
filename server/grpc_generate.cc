#include "server/grpc_generate.h"

#include <deque>
#include <mutex>

#include "server/grpc_messages.h"

namespace kvasir {
namespace {

// Lives until gRPC says OnDone and the service has let go of it. Sink callbacks come on the loop thread, reactor callbacks on
// gRPC's threads; the mutex guards the queue between them. gRPC is never called with the mutex held.
class GenerateStream final : public grpc::ServerWriteReactor<v1::GenerateEvent>, public ResponseSink {
 public:
  GenerateStream(Service* service, grpc::CallbackServerContext* context) : service_(service), context_(context) {}

  static GenerateStream* Begin(Service* service, const std::shared_ptr<CallLoop>& loop, grpc::CallbackServerContext* context,
                               const v1::GenerateRequest& message, ApiError error, std::string tenant) {
    auto stream = std::make_shared<GenerateStream>(service, context);
    GenerateStream* const raw = stream.get();
    raw->self_ = stream;
    GenerateRequest request;
    if (error.ok()) error = ReadGenerateRequest(message, service->config().limits, &request);
    if (error.ok()) error = raw->CheckDeadline(&request);
    if (!error.ok()) {
      raw->End(ToGrpcStatus(error, context));
      return raw;
    }
    request.tenant = std::move(tenant);
    auto call = service->Generate(std::move(request), loop, stream);
    bool cancelled;
    {
      const std::lock_guard lock(raw->mutex_);
      raw->call_ = call;
      cancelled = raw->cancelled_;
    }
    if (cancelled) CancelCall(call);  // the client left before the call was there to be cancelled
    return raw;
  }

  // --- ResponseSink, on the loop thread ---
  void OnStart(const Started& started) override {
    v1::GenerateEvent event;
    auto* out = event.mutable_started();
    out->set_prompt_tokens(started.prompt_tokens);
    out->set_cached_tokens(started.cached_tokens);
    out->mutable_prompt_token_ids()->Add(started.prompt_ids.begin(), started.prompt_ids.end());
    for (const SampleResult& sample : started.prompt_logprobs)
      FillLogprobs(service_->tokenizer(), sample, out->add_prompt_logprobs());
    Push(std::move(event));
  }
  void OnDelta(const Delta& delta) override {
    v1::GenerateEvent event;
    auto* out = event.mutable_delta();
    out->set_index(delta.choice);
    out->set_text(std::string(delta.text));
    out->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    for (const SampleResult& sample : delta.logprobs) FillLogprobs(service_->tokenizer(), sample, out->add_logprobs());
    Push(std::move(event));
  }
  void OnFinish(const Finished& finished) override {
    v1::GenerateEvent event;
    auto* out = event.mutable_finished();
    out->set_index(finished.choice);
    out->set_reason(finished.reason == FinishReason::kLength ? v1::GenerateEvent::FINISH_REASON_LENGTH
                                                             : v1::GenerateEvent::FINISH_REASON_STOP);
    out->set_stop_string(std::string(finished.stop_string));
    if (finished.end_token >= 0) out->set_stop_token_id(finished.end_token);
    // Held back until it is known whether it is the last one, which carries the usage.
    if (held_finish_) Push(std::move(*held_finish_));
    held_finish_ = std::move(event);
  }
  void OnEnd(const ApiError& error, const Usage& usage) override {
    if (held_finish_) {
      auto* out = held_finish_->mutable_finished()->mutable_usage();
      out->set_prompt_tokens(usage.prompt_tokens);
      out->set_cached_tokens(usage.cached_tokens);
      out->set_completion_tokens(usage.completion_tokens);
      Push(std::move(*held_finish_));
      held_finish_.reset();
    }
    End(ToGrpcStatus(error, context_));
  }

  // --- reactor, on gRPC's threads ---
  void OnWriteDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      writing_ = false;
      queued_bytes_ -= int64_t(queue_.front().ByteSizeLong());
      queue_.pop_front();
      if (!ok) DropQueue();
    }
    Advance();
  }
  void OnCancel() override {
    std::shared_ptr<Call> call;
    {
      const std::lock_guard lock(mutex_);
      cancelled_ = true;
      call = call_;
    }
    if (call) CancelCall(call);
  }
  void OnDone() override {
    const std::shared_ptr<GenerateStream> last = std::move(self_);  // frees this at the end of the function
  }

 private:
  // A gRPC deadline ends the request in the engine as well, so that nobody computes for a client that has given up.
  ApiError CheckDeadline(GenerateRequest* request) {
    const auto left = context_->deadline() - std::chrono::system_clock::now();
    const int64_t millis = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
    constexpr int64_t kYear = int64_t{365} * 86'400'000;
    if (millis >= kYear) return {};  // none was given
    const int64_t deadline = std::max<int64_t>(millis, 1);
    if (request->timeout_millis == 0 || deadline < request->timeout_millis) request->timeout_millis = deadline;
    return {};
  }

  void Push(v1::GenerateEvent&& event) {
    bool too_slow = false;
    std::shared_ptr<Call> call;
    {
      const std::lock_guard lock(mutex_);
      if (end_) return;
      const bool last_is_free = queue_.size() > (writing_ ? 1u : 0u);
      if (last_is_free && CanJoin(queue_.back(), event)) {
        queued_bytes_ -= int64_t(queue_.back().ByteSizeLong());
        queue_.back().mutable_delta()->mutable_text()->append(event.delta().text());
        queue_.back().mutable_delta()->mutable_token_ids()->MergeFrom(event.delta().token_ids());
        queue_.back().mutable_delta()->mutable_logprobs()->MergeFrom(event.delta().logprobs());
        queued_bytes_ += int64_t(queue_.back().ByteSizeLong());
      } else {
        queued_bytes_ += int64_t(event.ByteSizeLong());
        queue_.push_back(std::move(event));
      }
      // A reader that does not read never holds KV; past the bound it is cut off.
      if (queued_bytes_ > int64_t(service_->config().limits.stream_buffer_hard_bytes)) {
        too_slow = true;
        call = call_;
      }
    }
    if (too_slow) {
      service_->metrics().CountSlowClient();
      if (call) CancelCall(call);
      End({grpc::StatusCode::RESOURCE_EXHAUSTED, "the client reads too slowly: the output of this stream exceeds the buffer"});
      return;
    }
    Advance();
  }
  static bool CanJoin(const v1::GenerateEvent& last, const v1::GenerateEvent& next) {
    return last.has_delta() && next.has_delta() && last.delta().index() == next.delta().index();
  }
  void End(grpc::Status status) {
    {
      const std::lock_guard lock(mutex_);
      if (end_) return;
      end_ = std::move(status);
    }
    Advance();
  }
  void DropQueue() {
    while (queue_.size() > (writing_ ? 1u : 0u)) queue_.pop_back();
    queued_bytes_ = queue_.empty() ? 0 : int64_t(queue_.front().ByteSizeLong());
  }
  // Starts the next write, or finishes when all is written. At most one of them is under way.
  void Advance() {
    const v1::GenerateEvent* next = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (writing_ || finishing_) return;
      if (!queue_.empty()) {
        writing_ = true;
        next = &queue_.front();  // a deque's front stays put while more is pushed behind
      } else if (end_) {
        finishing_ = true;
      } else {
        return;
      }
    }
    if (next != nullptr) {
      StartWrite(next);
    } else {
      Finish(*end_);  // end_ is not changed any more
    }
  }

  Service* const service_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<GenerateStream> self_;          // until OnDone
  std::optional<v1::GenerateEvent> held_finish_;  // loop thread only

  std::mutex mutex_;
  std::shared_ptr<Call> call_;
  std::deque<v1::GenerateEvent> queue_;
  int64_t queued_bytes_ = 0;
  std::optional<grpc::Status> end_;
  bool writing_ = false, finishing_ = false, cancelled_ = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateEvent>* StartGenerate(Service* service, const std::shared_ptr<CallLoop>& loop,
                                                           grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest& message, ApiError denied,
                                                           std::string tenant) {
  return GenerateStream::Begin(service, loop, context, message, std::move(denied), std::move(tenant));
}

}  // namespace kvasir
