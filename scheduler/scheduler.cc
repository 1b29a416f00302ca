#include "scheduler/scheduler.h"

#include <algorithm>

#include "memory/mutations.h"

namespace kvasir {

Scheduler::Scheduler(const EngineConfig& config, KvCache* kv) : config_(config), kv_(kv) {
  running_.reserve(size_t(config.max_running) + 1);
  pack_.reserve(size_t(config.max_running) + 1);
  for (StepUnderWay& step : under_way_) {
    step.entries.reserve(size_t(config.max_running) + 1);
    step.choices.reserve(size_t(config.max_running) + 1);
  }
}

Scheduler::~Scheduler() {
  // The engine has ended every request; what a mutated build leaked is given back all the same.
  for (Sequence* sequence : running_) kv_->Release(sequence->kv);
}

// --- requests in and out ------------------------------------------------------------------------------------------------

void Scheduler::Submit(RequestId id, ValidatedRequest params, std::shared_ptr<TokenSink> sink, int64_t now) {
  auto owner = std::make_unique<Request>(id, std::move(params));
  Request& request = *owner;
  request.sink = outbox_.Acquire(std::move(sink));
  request.choices.resize(size_t(request.params->n));
  request.open_choices = int32_t(request.params->n);
  request.end_ids = request.params->stop_token_ids;
  if (!request.params->ignore_eos) {
    request.end_ids.insert(request.end_ids.end(), config_.limits.eos_token_ids.begin(), config_.limits.eos_token_ids.end());
  }
  std::sort(request.end_ids.begin(), request.end_ids.end());
  request.end_ids.erase(std::unique(request.end_ids.begin(), request.end_ids.end()), request.end_ids.end());
  if (request.params->deadline_micros > 0) deadlines_.insert({request.params->deadline_micros, id});
  ++counters_.requests_accepted;
  auto root = std::make_unique<Sequence>(request);
  Enqueue(*root);
  request.choices[0].sequence = std::move(root);
  requests_.emplace(id, std::move(owner));
  (void)now;
}

void Scheduler::Cancel(RequestId id, int choice, int64_t now) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  Request& request = *found->second;
  if (choice < 0) {
    EndRequest(request, FinishReason::kCancelled, Cancelled("the request was cancelled"), now);
  } else if (size_t(choice) < request.choices.size() && request.choices[size_t(choice)].open) {
    FinishChoice(request, choice, FinishReason::kCancelled, -1, now);
  }
}

void Scheduler::EndAll(const Status& status, int64_t now) {
  std::vector<RequestId> ids;
  for (const auto& [id, request] : requests_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const RequestId id : ids) EndRequest(*requests_.at(id), FinishReason::kError, status, now);
  RemoveDone();
}

void Scheduler::ExpireDeadlines(int64_t now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    Request& request = *requests_.at(deadlines_.begin()->second);
    EndRequest(request, FinishReason::kError,
               DeadlineExceeded("the request's deadline passed {} ms ago, {}; allow it more time or send less load",
                                (now - deadlines_.begin()->first) / 1000,
                                request.started ? "while it was generating" : "before it was started"),
               now);
  }
}

// --- commit ---------------------------------------------------------------------------------------------------------------

void Scheduler::Commit(int64_t now, StepResult& result) {
  KVASIR_CHECK(steps_under_way() > 0, "a result of no step");
  StepUnderWay& step = UnderWay(ended_steps_);
  int64_t step_tokens = 0;
  size_t next_score = 0, next_sample = 0;
  for (const StepEntry& entry : step.entries) {
    const size_t num_scores = size_t(entry.scores), num_samples = size_t(entry.samples);
    KVASIR_CHECK(next_score + num_scores <= result.scores.size() && next_sample + num_samples <= result.samples.size(),
                 "the executor gave {} scores and {} samples, too few", result.scores.size(), result.samples.size());
    step_tokens += entry.tokens;
    // Whose request has ended meanwhile has computed for nothing.
    if (entry.sequence->place != Sequence::Place::kDone) {
      CommitSequence(entry, now, std::span(result.scores).subspan(next_score, num_scores),
                     std::span(result.samples).subspan(next_sample, num_samples),
                     std::span(step.choices).subspan(next_sample, num_samples));
    }
    next_score += num_scores;
    next_sample += num_samples;
  }
  ++ended_steps_;
  RemoveDone();
  if (!forks_.empty()) PlaceForks();
  CountStep(step_tokens);
}

void Scheduler::CountStep(int64_t step_tokens) {
  ++counters_.steps;
  counters_.step_tokens_sum += step_tokens;
  const auto bound = std::lower_bound(kStepTokenBounds.begin(), kStepTokenBounds.end(), step_tokens);
  ++counters_.step_tokens_le[size_t(bound - kStepTokenBounds.begin())];
}

void Scheduler::CommitSequence(const StepEntry& entry, int64_t now, std::span<SampleResult> scores,
                               std::span<SampleResult> samples, std::span<const int32_t> choices) {
  Sequence& sequence = *entry.sequence;
  Request& request = *sequence.request;
  const int32_t prompt_left = sequence.prompt_size - sequence.computed;
  counters_.computed_prompt_tokens += std::clamp(prompt_left, 0, entry.tokens);
  if (sequence.pending_step == uint8_t(ended_steps_) && !KVASIR_MUTATED(kKeepPending)) sequence.pending = 0;  // its token is here
  const auto broken = [](const SampleResult& result) { return !result.finite; };
  if (std::any_of(samples.begin(), samples.end(), broken) || std::any_of(scores.begin(), scores.end(), broken)) [[unlikely]] {
    // What this row computed is not to be trusted, so it is not published either.
    EndRequest(
        request, FinishReason::kError,
        Internal("the model gave no finite logits for token {} of this request; its weights or its prompt drive it out of range",
                 sequence.computed + entry.tokens),
        now);
    return;
  }
  sequence.computed += entry.tokens;
  if (!sequence.forked && !request.started) {
    request.started = true;
    outbox_.Send(request.sink, {.kind = TokenEvent::Kind::kStarted,
                                .time_micros = now,
                                .cached_tokens = request.cached_tokens,
                                .scheduled_micros = request.scheduled_micros});
  }
  for (SampleResult& score : scores) {
    outbox_.Send(request.sink, {.kind = TokenEvent::Kind::kPrompt, .time_micros = now, .sample = std::move(score)});
    ++request.next_prompt_event;
  }
  const KvCacheConfig& kv = kv_->config();
  const int32_t publishable =
      KVASIR_MUTATED(kPublishTooFar) ? std::min(sequence.computed + 1, int32_t(sequence.tokens.size())) : sequence.computed;
  // A product, not a quotient: a division for each sequence of each step would be felt.
  if (kv.enable_prefix_caching && publishable >= (sequence.kv.num_published + 1) * kv.block_tokens) {
    kv_->Publish(sequence.kv, sequence.tokens, publishable, request.params->salt);
  }
  if (sequence.computed >= sequence.kv.next_trim) kv_->Trim(sequence.kv, sequence.computed);
  if (samples.empty()) return;
  if (sequence.forked) return AppendToken(sequence, samples[0], now);
  Fork(sequence);
  for (size_t i = 0; i < samples.size(); ++i) {
    Choice& choice = request.choices[size_t(choices[i])];
    if (choice.open) AppendToken(*choice.sequence, samples[i], now);
  }
}

// The root becomes the first open choice; every other open one gets a sequence that shares its blocks.
void Scheduler::Fork(Sequence& root) {
  Request& request = *root.request;
  root.forked = true;
  for (size_t i = 0; i < request.choices.size(); ++i) {
    Choice& choice = request.choices[i];
    if (!choice.open || choice.sequence.get() == &root) continue;
    choice.sequence = std::make_unique<Sequence>(request);
    Sequence& child = *choice.sequence;
    child.choice = int32_t(i);
    child.rank.choice = int32_t(i);
    child.computed = child.launched = root.computed;
    child.forked = true;
    child.tokens.reserve(root.tokens.capacity());
    child.tokens.assign(root.tokens.begin(), root.tokens.end());
    kv_->Fork(root.kv, child.kv, root.computed);
    kv_->ReserveTables(child.kv, request.final_size());
    forks_.push_back(&child);
  }
}

void Scheduler::PlaceForks() {
  for (Sequence* fork : forks_) {
    if (fork->place == Sequence::Place::kDone) continue;
    if (int64_t(running_.size()) < config_.max_running) {
      InsertRunning(*fork);
      continue;
    }
    // No place now. Its prompt is published, so coming back costs little.
    kv_->Release(fork->kv);
    fork->computed = fork->launched = 0;
    Enqueue(*fork);
  }
  forks_.clear();
}

void Scheduler::AppendToken(Sequence& sequence, SampleResult& sample, int64_t now) {
  Request& request = *sequence.request;
  const int32_t token = sample.token;
  sequence.tokens.push_back(token);
  ++counters_.generated_tokens;
  outbox_.Send(sequence.sink,
               {.kind = TokenEvent::Kind::kToken, .choice = sequence.choice, .time_micros = now, .sample = std::move(sample)});
  if (sequence.num_end_ids > 0 && std::binary_search(sequence.end_ids, sequence.end_ids + sequence.num_end_ids, token)) {
    FinishChoice(request, sequence.choice, FinishReason::kStop, token, now);
  } else if (int32_t(sequence.tokens.size()) == sequence.final_size) {
    FinishChoice(request, sequence.choice, FinishReason::kLength, -1, now);
  }
}

void Scheduler::AbandonSteps() {
  ended_steps_ = planned_steps_;
}

// --- endings --------------------------------------------------------------------------------------------------------------

void Scheduler::FinishChoice(Request& request, int32_t choice, FinishReason reason, int32_t stop_token, int64_t now) {
  Choice& closing = request.choices[size_t(choice)];
  closing.open = false;
  --request.open_choices;
  if (reason != FinishReason::kCancelled) request.any_finished = true;
  if (closing.sequence != nullptr) {
    if (!closing.sequence->forked && request.open_choices > 0) {
      // The root works for the others too: it goes on as the first of them.
      const auto heir = std::find_if(request.choices.begin(), request.choices.end(), [](const Choice& c) { return c.open; });
      heir->sequence = std::move(closing.sequence);
      heir->sequence->choice = int32_t(heir - request.choices.begin());
    } else {
      StopSequence(*closing.sequence);
    }
  }
  outbox_.Send(
      request.sink,
      {.kind = TokenEvent::Kind::kFinished, .choice = choice, .time_micros = now, .reason = reason, .stop_token = stop_token});
  if (request.open_choices == 0) {
    SendEnd(request, request.any_finished ? OkStatus() : Cancelled("every choice of the request was cancelled"), now);
  }
}

void Scheduler::EndRequest(Request& request, FinishReason reason, const Status& status, int64_t now) {
  for (size_t i = 0; i < request.choices.size(); ++i) {
    Choice& choice = request.choices[i];
    if (choice.sequence != nullptr && choice.sequence->place != Sequence::Place::kDone) StopSequence(*choice.sequence);
    if (!choice.open) continue;
    choice.open = false;
    outbox_.Send(request.sink, {.kind = TokenEvent::Kind::kFinished, .choice = int32_t(i), .time_micros = now, .reason = reason});
  }
  request.open_choices = 0;
  SendEnd(request, status, now);
}

void Scheduler::SendEnd(Request& request, const Status& status, int64_t now) {
  KVASIR_CHECK(!request.ended, "request {} would end twice", request.id);
  request.ended = true;
  ++counters_.requests_ended;
  if (absl::IsCancelled(status)) {
    ++counters_.requests_cancelled;
  } else if (!status.ok()) {
    ++counters_.requests_failed;
  }
  if (!(KVASIR_MUTATED(kForgetEnd) && !request.started)) {
    outbox_.Send(request.sink, {.kind = TokenEvent::Kind::kEnd, .time_micros = now, .status = status});
  }
  if (KVASIR_MUTATED(kEndTwice))
    outbox_.Send(request.sink, {.kind = TokenEvent::Kind::kEnd, .time_micros = now, .status = status});
  outbox_.Release(request.sink);
  request.sink = nullptr;
  if (request.params->deadline_micros > 0) deadlines_.erase({request.params->deadline_micros, request.id});
  const auto found = requests_.find(request.id);
  ended_.emplace_back(planned_steps_, std::move(found->second));
  requests_.erase(found);
}

// Gives the KV back at once; the object lives until EndStep.
void Scheduler::StopSequence(Sequence& sequence) {
  if (sequence.place == Sequence::Place::kWaiting) waiting_.erase({sequence.rank, &sequence});
  if (sequence.place == Sequence::Place::kRunning) done_in_running_ = true;
  if (!(KVASIR_MUTATED(kLeakOnCancel) && sequence.tokens.size() < size_t(sequence.request->final_size())))
    kv_->Release(sequence.kv);
  sequence.place = Sequence::Place::kDone;
  if (!KVASIR_MUTATED(kForgetRetry)) admission_blocked_ = false;
}

// --- lists ----------------------------------------------------------------------------------------------------------------

void Scheduler::Enqueue(Sequence& sequence) {
  sequence.place = Sequence::Place::kWaiting;
  sequence.rank = MakeRank(config_.order, sequence.request->params->priority, sequence.request->id, sequence.rank.choice,
                           sequence.preemptions, config_.max_preemptions);
  if (KVASIR_MUTATED(kLatestFirst)) sequence.rank.arrival = ~sequence.rank.arrival;
  waiting_.insert({sequence.rank, &sequence});
}

void Scheduler::InsertRunning(Sequence& sequence) {
  sequence.place = Sequence::Place::kRunning;
  sequence.rank = MakeRank(config_.order, sequence.request->params->priority, sequence.request->id, sequence.rank.choice,
                           sequence.preemptions, config_.max_preemptions);
  const auto by_rank = [](const Sequence* a, const Sequence* b) { return a->rank < b->rank; };
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, by_rank), &sequence);
}

void Scheduler::RemoveDone() {
  if (!done_in_running_) return;
  std::erase_if(running_, [](const Sequence* sequence) { return sequence->place == Sequence::Place::kDone; });
  done_in_running_ = false;
}

void Scheduler::EndStep() {
  RemoveDone();
  outbox_.EndStep();
  while (!ended_.empty() && ended_.front().first <= ended_steps_) ended_.pop_front();
}

Status Scheduler::Check() const {
  const auto preempted_too_often = [this](const Sequence& sequence) {
    return Internal("request {} was preempted {} times, the limit is {}", sequence.request->id, sequence.preemptions,
                    config_.max_preemptions);
  };
  std::vector<const SequenceKv*> live;
  for (size_t i = 0; i < running_.size(); ++i) {
    const Sequence& sequence = *running_[i];
    live.push_back(&sequence.kv);
    if (sequence.preemptions > config_.max_preemptions) return preempted_too_often(sequence);
    if (sequence.place != Sequence::Place::kRunning || (i > 0 && !(running_[i - 1]->rank < sequence.rank))) {
      return Internal("the running list is out of order at {} (request {})", i, sequence.request->id);
    }
    const bool computes = steps_under_way() > 0;  // then all that is known may be on its way
    if (sequence.launched > sequence.kv.num_tokens || sequence.computed > sequence.launched ||
        sequence.launched >= sequence.known() + (computes ? 1 : 0)) {
      return Internal("request {} has {} computed tokens, {} launched, {} slots and {} tokens", sequence.request->id,
                      sequence.computed, sequence.launched, sequence.kv.num_tokens, sequence.known());
    }
  }
  for (const auto& [rank, sequence] : waiting_) {
    if (sequence->preemptions > config_.max_preemptions) return preempted_too_often(*sequence);
    if (sequence->place != Sequence::Place::kWaiting || !sequence->kv.empty()) {
      return Internal("request {} waits but owns {} blocks", sequence->request->id, sequence->kv.tables[0].size());
    }
  }
  return kv_->Check(live);
}

}  // namespace kvasir
