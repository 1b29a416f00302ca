#include "server/call.h"

#include <algorithm>

#include "spdlog/spdlog.h"

namespace kvasir {
namespace {

constexpr size_t kDetokenizerContext =
    16;  // tokens of the prompt's end: enough to hold one that is not skipped, and half a character

}  // namespace

void CancelCall(const std::shared_ptr<Call>& call) {
  call->Cancel();
}
bool CallIsAccepted(const std::shared_ptr<Call>& call) {
  return call->accepted();
}

Call::Call(Service* service, std::shared_ptr<CallLoop> loop, std::shared_ptr<ResponseSink> sink, int64_t arrival_micros)
    : service_(service), loop_(std::move(loop)), sink_(std::move(sink)), arrival_micros_(arrival_micros) {
  service_->open_calls_.fetch_add(1);
}

Call::~Call() {
  if (!ended_) service_->open_calls_.fetch_sub(1);
}

void Call::Submitted(RequestId id) {
  std::vector<int32_t> cancels;
  {
    std::lock_guard lock(mutex_);
    id_ = id;
    cancels.swap(early_cancels_);
  }
  accepted_.store(true, std::memory_order_release);
  for (const int32_t choice : cancels) service_->config_.engine->Cancel(id, choice);
}

void Call::Refuse(ApiError error) {
  refusal_ = std::move(error);
  TokenEvent event;
  event.kind = TokenEvent::Kind::kEnd;
  loop_->Push(shared_from_this(), std::move(event));
  loop_->Wake();
}

void Call::Cancel() {
  if (cancelled_.exchange(true)) return;
  CancelChoice(-1);
}

void Call::CancelChoice(int32_t index) {
  RequestId id = 0;
  {
    std::lock_guard lock(mutex_);
    id = id_;
    if (id == 0) early_cancels_.push_back(index);
  }
  if (id != 0) service_->config_.engine->Cancel(id, index);
}

bool Call::EndsText(int32_t token) const {
  return end_ids_.contains(token) || stop_ids_.contains(token);
}

void Call::Deliver(TokenEvent&& event) {
  if (ended_) return;
  switch (event.kind) {
    case TokenEvent::Kind::kStarted: {
      started_ = true;
      scheduled_micros_ = event.scheduled_micros;
      usage_.prompt_tokens = int64_t(setup_.prompt.size());
      usage_.cached_tokens = event.cached_tokens;
      choices_.resize(size_t(setup_.n));
      unfinished_ = setup_.n;
      if (!setup_.ignore_eos) {
        const auto& eos = service_->config_.engine->config().limits.eos_token_ids;
        end_ids_.insert(eos.begin(), eos.end());
      }
      stop_ids_.insert(setup_.stop_token_ids.begin(), setup_.stop_token_ids.end());
      if (!setup_.wants_prompt_logprobs) Begin();
      return;
    }
    case TokenEvent::Kind::kPrompt:
      prompt_logprobs_.push_back(std::move(event.sample));
      return;
    case TokenEvent::Kind::kToken:
    case TokenEvent::Kind::kFinished: {
      if (event.choice < 0 || size_t(event.choice) >= choices_.size()) return;
      Begin();
      Choice& choice = choices_[size_t(event.choice)];
      if (choice.done) return;  // what came after a stop string
      if (event.kind == TokenEvent::Kind::kToken) {
        AddToken(choice, event.choice, std::move(event));
      } else if (event.reason == FinishReason::kStop || event.reason == FinishReason::kLength) {
        FinishChoice(choice, event.choice, event.reason, {}, event.stop_token);
      }
      return;
    }
    case TokenEvent::Kind::kEnd:
      if (!refusal_.ok()) return End(std::move(refusal_));
      if (!event.status.ok()) return End(EngineError(event.status));
      if (cancelled()) return End({.code = ErrorCode::kCancelled, .message = "The request was cancelled."});
      End({});
      return;
  }
}

void Call::Begin() {
  if (begun_) return;
  begun_ = true;
  const size_t context = std::min(setup_.prompt.size(), kDetokenizerContext);
  const std::span<const int32_t> tail(setup_.prompt.data() + setup_.prompt.size() - context, context);
  for (Choice& choice : choices_) {
    choice.detokenizer.emplace(service_->config_.tokenizer, setup_.skip_special_tokens, tail);
    choice.stops.emplace(&setup_.stop, setup_.include_stop);
  }
  sink_->OnStart({.prompt_tokens = usage_.prompt_tokens,
                  .cached_tokens = usage_.cached_tokens,
                  .prompt_ids = setup_.prompt,
                  .prompt_logprobs = prompt_logprobs_});
}

void Call::AddToken(Choice& choice, int32_t index, TokenEvent&& event) {
  const int32_t token = event.sample.token;
  ServerMetrics& metrics = service_->metrics_;
  if (first_token_micros_ == 0) {
    first_token_micros_ = event.time_micros;
    metrics.ObserveTimeToFirstToken(double(event.time_micros - arrival_micros_) * 1e-6);
  }
  if (choice.last_token_micros != 0) metrics.ObserveInterToken(double(event.time_micros - choice.last_token_micros) * 1e-6);
  choice.last_token_micros = last_token_micros_ = event.time_micros;
  ++choice.tokens;
  ++usage_.completion_tokens;
  choice.token_ids.push_back(token);
  if (setup_.wants_logprobs) choice.logprobs.push_back(std::move(event.sample));

  // The token that ends the text is counted and reported, but it is not part of the text unless that was asked for.
  if (EndsText(token) && !setup_.include_stop) return;
  const std::string piece = choice.detokenizer->Append(token);
  if (choice.tokens < setup_.min_tokens) {  // stop strings count from min_tokens on
    choice.text += piece;
    return;
  }
  if (!choice.stops->Append(piece, choice.text)) return;
  CancelChoice(index);
  FinishChoice(choice, index, FinishReason::kStop, choice.stops->matched(), -1);
}

void Call::FlushChoice(Choice& choice, int32_t index) {
  if (choice.text.empty() && choice.token_ids.empty()) return;
  sink_->OnDelta({.choice = index,
                  .text = choice.text,
                  .token_ids = choice.token_ids,
                  .logprobs = choice.logprobs,
                  .completion_tokens = usage_.completion_tokens});
  choice.text.clear();
  choice.token_ids.clear();
  choice.logprobs.clear();
}

void Call::Flush() {
  if (ended_) return;
  for (size_t i = 0; i < choices_.size(); ++i) FlushChoice(choices_[i], int32_t(i));
}

void Call::FinishChoice(Choice& choice, int32_t index, FinishReason reason, std::string_view stop_string, int32_t stop_token) {
  if (stop_string.empty()) {
    const std::string rest = choice.detokenizer->Finish();
    if (choice.stops->Append(rest, choice.text)) {
      stop_string = choice.stops->matched();
      reason = FinishReason::kStop;
    } else {
      choice.stops->Finish(choice.text);
    }
  }
  FlushChoice(choice, index);
  choice.done = true;
  choice.detokenizer.reset();
  --unfinished_;
  service_->metrics_.CountFinished(reason == FinishReason::kStop ? ServerMetrics::Outcome::kStop
                                                                 : ServerMetrics::Outcome::kLength);
  sink_->OnFinish({.choice = index,
                   .reason = reason,
                   .stop_string = stop_string,
                   .stop_token = stop_ids_.contains(stop_token) ? stop_token : -1,
                   .end_token = stop_token});
  if (unfinished_ == 0) End({});  // the engine's own end adds nothing, and after a stop string it is two steps away
}

void Call::End(ApiError error) {
  if (ended_) return;
  if (error.ok() && unfinished_ > 0) {
    error = {.code = ErrorCode::kInternal, .message = "The request ended before all of its choices did. Please report it."};
    spdlog::error("a request ended with {} of {} choices unfinished", unfinished_, setup_.n);
  }
  if (!error.ok()) Flush();
  ended_ = true;
  service_->open_calls_.fetch_sub(1);
  error.after_tokens = usage_.completion_tokens > 0;
  if (!error.ok() && started_) {
    service_->metrics_.CountFinished(error.code == ErrorCode::kCancelled ? ServerMetrics::Outcome::kAbort
                                                                         : ServerMetrics::Outcome::kError);
  }
  RecordTimes(error.ok());
  sink_->OnEnd(error, usage_);
  sink_ = nullptr;  // it may hold the connection, which may hold this call
}

void Call::RecordTimes(bool finished) {
  if (!started_ || !finished) return;
  const auto seconds = [](int64_t from, int64_t to) { return double(std::max<int64_t>(0, to - from)) * 1e-6; };
  RequestTimes times;
  times.e2e = seconds(arrival_micros_, last_token_micros_);
  times.queue = seconds(arrival_micros_, scheduled_micros_);
  times.prefill = seconds(scheduled_micros_, first_token_micros_);
  times.decode = seconds(first_token_micros_, last_token_micros_);
  times.inference = seconds(scheduled_micros_, last_token_micros_);
  int64_t longest = 0;
  for (const Choice& choice : choices_) longest = std::max(longest, choice.tokens);
  if (longest > 1) times.time_per_output_token = times.decode / double(longest - 1);
  times.prompt_tokens = usage_.prompt_tokens;
  times.cached_tokens = usage_.cached_tokens;
  times.generation_tokens = usage_.completion_tokens;
  times.max_generation_tokens = longest;
  times.max_tokens = setup_.max_tokens;
  times.n = setup_.n;
  service_->metrics_.ObserveRequest(times);
}

ApiError Call::EngineError(const Status& status) const {
  const auto say = [&](std::string message) {
    ApiError error = ToApiError(status);
    error.message = std::move(message);
    return error;
  };
  switch (status.code()) {
    case StatusCode::kUnavailable:
      if (!service_->config_.engine->Healthy()) {
        return {.code = ErrorCode::kEngineFailed,
                .message = "The engine has failed and the server must be restarted; the text so far is valid."};
      }
      return {.code = ErrorCode::kDraining,
              .message = "The server is shutting down and the request was not done in time; send it to another server."};
    case StatusCode::kDeadlineExceeded:
      return say("The request was not done within its timeout; ask for fewer tokens or allow more time.");
    case StatusCode::kCancelled:
      return say("The request was cancelled.");
    default:
      spdlog::error("a request failed: {}", Message(status));
      return {.code = ErrorCode::kInternal,
              .message = "The server failed on this request; other requests are not affected. Please report it."};
  }
}

}  // namespace kvasir
