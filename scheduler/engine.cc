#include "scheduler/engine.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "scheduler/inbox.h"
#include "scheduler/policies.h"
#include "scheduler/scheduler.h"
#include "scheduler/throughput.h"
#include "spdlog/spdlog.h"

namespace kvasir {
namespace {

// A drain whose deadline has passed still waits this long for the engine thread to tell every request its end.
constexpr auto kEndAllPatience = std::chrono::seconds(10);

// Copies go on beside a step where steps go on beside the engine.
EngineConfig Adapted(EngineConfig config, const Executor& executor) {
  config.copies_beside = executor.depth() > 1;
  return config;
}

}  // namespace

void StepBatch::Clear() {
  token_ids.clear();
  positions.clear();
  slices.clear();
  for (auto& tables_of_group : tables) tables_of_group.clear();
  request_ids.clear();
  copies.clear();
  copies_beside.clear();
  sample_rows.clear();
  samples.clear();
  score_rows.clear();
  score_tokens.clear();
  score_top.clear();
}

struct Engine::State {
  State(EngineConfig engine_config, KvCache* kv_cache, Executor* step_executor, const Clock* engine_clock)
      : config(Adapted(std::move(engine_config), *step_executor)),
        cache(kv_cache),
        executor(step_executor),
        clock(engine_clock),
        inbox(config.max_waiting),
        scheduler(config, kv_cache) {}

  // Engine thread only.
  const EngineConfig config;
  KvCache* const cache;
  Executor* const executor;
  const Clock* const clock;
  Inbox inbox;  // shared
  Scheduler scheduler;
  InboxContents contents;
  StepBatch batch;
  std::array<StepResult, Scheduler::kMaxAhead> results;  // of step i at i % kMaxAhead
  int64_t launched_steps = 0, finished_steps = 0;
  Throughput throughput;
  Status failure;
  bool closed = false;  // no submission can follow
  int64_t invariant_failures = 0;

  // Shared.
  std::thread thread;
  std::atomic<bool> stop{false};
  std::atomic<bool> failed{false};
  std::atomic<int64_t> step_started_micros{0};  // 0 = no step is being computed
  std::atomic<int64_t> rejected{0};
  mutable std::mutex mutex;
  std::condition_variable drained_changed;
  EngineStats stats ABSL_GUARDED_BY(mutex);
  bool drained ABSL_GUARDED_BY(mutex) = false;  // closed and nothing is open

  bool Step();
  void ApplyInbox(int64_t now);
  Status Launch();
  Status Finish();
  void Fail(const Status& status, int64_t now);
  void FinishTurn(int64_t started, bool computed);
  void UpdateStats(int64_t started, bool computed);
  void Run();
  void EndEverything(const Status& status);
};

// The order matters: submissions first, so that a cancel that followed its submit finds it.
void Engine::State::ApplyInbox(int64_t now) {
  if (!inbox.Take(contents)) return;
  for (Submission& submission : contents.submissions) {
    scheduler.Submit(submission.id, std::move(submission.params), std::move(submission.sink), now);
  }
  for (const Cancellation& cancellation : contents.cancellations) scheduler.Cancel(cancellation.id, cancellation.choice, now);
  if (contents.reset_cache) cache->DropCached();
  if (contents.end_all) scheduler.EndAll(*contents.end_all, now);
  if (!failure.ok()) scheduler.EndAll(failure, now);  // accepted in the moment before the inbox was closed
  closed = closed || contents.closed;
  contents.Clear();
}

// A step's time counts from when the one before it was done.
Status Engine::State::Launch() {
  StepResult& result = results[size_t(launched_steps % Scheduler::kMaxAhead)];
  result.samples.resize(batch.samples.size());
  result.scores.resize(batch.score_rows.size());
  if (launched_steps == finished_steps) step_started_micros.store(clock->NowMicros(), std::memory_order_relaxed);
  ++launched_steps;
  return executor->Launch(batch, result);
}

// The oldest step under way: waits for it and applies what it gave.
Status Engine::State::Finish() {
  const Status status = executor->Finish();
  StepResult& result = results[size_t(finished_steps++ % Scheduler::kMaxAhead)];
  const int64_t now = clock->NowMicros();
  step_started_micros.store(launched_steps > finished_steps ? now : 0, std::memory_order_relaxed);
  if (status.ok()) scheduler.Commit(now, result);
  return status;
}

void Engine::State::Fail(const Status& status, int64_t now) {
  spdlog::error("the engine has failed and serves no more requests; restart it: {}", Message(status));
  failure = Unavailable("the engine has failed ({}); the server must be restarted", Message(status));
  failed.store(true, std::memory_order_release);
  inbox.Close(failure);
  finished_steps = launched_steps;
  step_started_micros.store(0, std::memory_order_relaxed);
  scheduler.AbandonSteps();
  scheduler.EndAll(failure, now);
}

bool Engine::State::Step() {
  const int64_t started = clock->NowMicros();
  ApplyInbox(started);
  scheduler.ExpireDeadlines(started);
  const bool planned = failure.ok() && scheduler.Schedule(started, batch);
  Status status = planned ? Launch() : OkStatus();
  // Results are read as late as may be: while the device computes the next step, this thread does all the rest.
  const bool finishes = status.ok() && launched_steps - finished_steps > (planned ? executor->depth() - 1 : 0);
  if (finishes) status = Finish();
  if (!status.ok()) Fail(status, clock->NowMicros());
  if (config.check_invariants) {
    if (const Status broken = scheduler.Check(); !broken.ok() && failure.ok()) {
      ++invariant_failures;
      Fail(broken, clock->NowMicros());
    }
  }
  FinishTurn(started, finishes);
  return planned || finishes;
}

void Engine::State::FinishTurn(int64_t started, bool computed) {
  inbox.SetWaiting(scheduler.waiting());
  UpdateStats(started, computed);
  scheduler.EndStep();  // wakes those who wait for events: whoever then asks for the statistics sees this step in them
  if (!closed || scheduler.open_requests() > 0) return;
  std::lock_guard lock(mutex);
  drained = true;
  drained_changed.notify_all();
}

void Engine::State::UpdateStats(int64_t started, bool computed) {
  const int64_t now = clock->NowMicros();
  std::lock_guard lock(mutex);
  const EngineStats& counters = scheduler.counters();
  if (computed) throughput.AddStep(now - started, counters.requests_ended - stats.requests_ended);
  stats = counters;
  stats.running = scheduler.running();
  stats.waiting = scheduler.waiting();
  stats.invariant_failures = invariant_failures;
  stats.predicted_wait_seconds =
      PredictWaitSeconds({.waiting = stats.waiting,
                          .running = stats.running,
                          .completions_per_second = throughput.completions_per_second(),
                          .oldest_running_seconds = double(now - scheduler.oldest_running_scheduled()) * 1e-6});
  stats.kv = cache->stats();
}

void Engine::State::Run() {
  while (!stop.load(std::memory_order_acquire)) {
    if (Step()) continue;
    const int64_t deadline = scheduler.next_deadline();
    inbox.Wait(deadline == INT64_MAX ? -1 : std::max<int64_t>(0, deadline - clock->NowMicros()));
  }
}

// Without the engine thread, or after it: whatever was accepted gets its end.
void Engine::State::EndEverything(const Status& status) {
  inbox.Close(status);
  const int64_t now = clock->NowMicros();
  ApplyInbox(now);
  scheduler.EndAll(status, now);
  FinishTurn(now, false);
}

Engine::Engine(EngineConfig config, KvCache* cache, Executor* executor, const Clock* clock)
    : state_(std::make_unique<State>(std::move(config), cache, executor, clock)) {}

Engine::~Engine() {
  const Status status = Unavailable("the server is shutting down; retry on another one");
  state_->inbox.Close(status);
  state_->stop.store(true, std::memory_order_release);
  state_->inbox.Wake();
  if (state_->thread.joinable()) state_->thread.join();
  state_->EndEverything(status);
}

void Engine::Start() {
  KVASIR_CHECK(!state_->thread.joinable(), "the engine was started twice");
  state_->thread = std::thread([state = state_.get()] { state->Run(); });
}

StatusOr<RequestId> Engine::Submit(ValidatedRequest request, std::shared_ptr<TokenSink> sink, int* retry_after_seconds) {
  auto id = state_->inbox.Submit(std::move(request), std::move(sink));
  if (!id.ok()) {
    state_->rejected.fetch_add(1, std::memory_order_relaxed);
    if (retry_after_seconds != nullptr) *retry_after_seconds = RetryAfterSeconds(Stats().predicted_wait_seconds);
  }
  return id;
}

void Engine::Cancel(RequestId id, int choice) {
  state_->inbox.Cancel(id, choice);
}

void Engine::ResetPrefixCache() {
  state_->inbox.ResetCache();
}

void Engine::Drain(int64_t timeout_micros) {
  State& state = *state_;
  state.inbox.Close(Unavailable("the server is draining; retry on another one"));
  const Status late =
      Unavailable("the server is shutting down and the request was not done within the drain timeout of {} s; retry it",
                  double(timeout_micros) * 1e-6);
  if (!state.thread.joinable()) {
    const int64_t deadline = state.clock->NowMicros() + timeout_micros;
    while (state.clock->NowMicros() < deadline && state.Step()) {
    }
    state.inbox.EndAll(late);
    state.Step();
    return;
  }
  std::unique_lock lock(state.mutex);
  const auto is_drained = [&] { return state.drained; };
  if (state.drained_changed.wait_for(lock, std::chrono::microseconds(timeout_micros), is_drained)) return;
  lock.unlock();
  state.inbox.EndAll(late);
  lock.lock();
  if (!state.drained_changed.wait_for(lock, kEndAllPatience, is_drained)) {
    spdlog::error("the engine thread did not answer within {} s after the drain timeout: a step hangs", kEndAllPatience.count());
  }
}

bool Engine::Step() {
  KVASIR_CHECK(!state_->thread.joinable(), "Step is for engines without a thread");
  return state_->Step();
}

EngineStats Engine::Stats() const {
  EngineStats stats;
  {
    std::lock_guard lock(state_->mutex);
    stats = state_->stats;
  }
  stats.waiting = std::max(stats.waiting, state_->inbox.waiting());
  stats.requests_rejected = state_->rejected.load(std::memory_order_relaxed);
  for (size_t i = 1; i <= kStepTokenBounds.size(); ++i) stats.step_tokens_le[i] += stats.step_tokens_le[i - 1];
  return stats;
}

bool Engine::Healthy() const {
  if (state_->failed.load(std::memory_order_acquire)) return false;
  const int64_t started = state_->step_started_micros.load(std::memory_order_relaxed);
  return started == 0 || state_->clock->NowMicros() - started <= state_->config.step_deadline_micros;
}

const EngineConfig& Engine::config() const {
  return state_->config;
}

}  // namespace kvasir
