// Scheduler: decides what each step computes and keeps every request's state. Two stages: memory admission (may this sequence own
// the KV it needs) and token packing (who gets how many tokens of the step's budget); the rules are the pure functions of
// policies.h. Used by Engine on the engine thread; it knows no thread, no clock and no model.
//
// A step is a transaction: Schedule plans it and reserves its KV, the executor computes it, Commit applies it. Preemption adds no
// path: the victim's full blocks are published already, its references are dropped, and resuming it is Match over its prompt and
// generated tokens. Every accepted request gets exactly one kEnd.
//
// A step may be planned while the one before it is under way ("ahead"). What that one samples is then planned with by name
// (PendingToken), and whoever turns out to have ended there has computed a token too many, which Commit passes over. KV that is
// given back meanwhile may still be read and written by the step under way: the device computes steps one after another, so its
// next holder comes later. Who has to give up memory is decided only when no step is under way.
#pragma once

#include <array>
#include <deque>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/kv_cache.h"
#include "scheduler/engine_config.h"
#include "scheduler/executor.h"
#include "scheduler/outbox.h"
#include "scheduler/sequence.h"

namespace kvasir {

class Scheduler {
 public:
  Scheduler(const EngineConfig& config, KvCache* kv);
  ~Scheduler();

  void Submit(RequestId id, ValidatedRequest params, std::shared_ptr<TokenSink> sink, int64_t now);
  void Cancel(RequestId id, int choice, int64_t now);  // choice < 0 = all; unknown and ended ones are ignored
  void EndAll(const Status& status, int64_t now);
  void ExpireDeadlines(int64_t now);
  int64_t next_deadline() const { return deadlines_.empty() ? INT64_MAX : deadlines_.begin()->first; }

  // Plans the next step. False when there is nothing to compute before the steps under way are committed.
  bool Schedule(int64_t now, StepBatch& batch);
  int steps_under_way() const { return int(planned_steps_ - ended_steps_); }  // planned and not committed: at most kMaxAhead
  // Applies the result of the oldest step under way: tokens, published blocks, ends, forks.
  void Commit(int64_t now, StepResult& result);
  // The steps under way will never be read; their sequences must not be published. Follow with EndAll.
  void AbandonSteps();
  static constexpr int kMaxAhead = 2;
  void EndStep();  // tells the touched sinks; frees what ended

  int64_t running() const { return int64_t(running_.size()); }
  int64_t waiting() const { return int64_t(waiting_.size()); }
  int64_t open_requests() const { return int64_t(requests_.size()); }
  int64_t oldest_running_scheduled() const { return running_.empty() ? 0 : running_.front()->request->scheduled_micros; }
  // The scheduler's share of EngineStats; the histogram is not yet cumulative.
  const EngineStats& counters() const { return counters_; }
  Status Check() const;  // KvCache::Check over all live sequences, and the lists' own consistency. O(blocks + sequences)

 private:
  using WaitEntry = std::pair<Rank, Sequence*>;
  // What a step under way computes for a sequence, and what its results will be.
  struct StepEntry {
    Sequence* sequence;
    int32_t tokens, scores, samples;
  };
  struct StepUnderWay {
    std::vector<StepEntry> entries;  // in batch order
    std::vector<int32_t> choices;    // of each sample
  };
  StepUnderWay& UnderWay(int64_t step) { return under_way_[size_t(step % kMaxAhead)]; }

  // scheduler_plan.cc: planning
  void PackRunning();
  void MoveOutAhead(StepBatch& batch);
  bool PackAndGrow(std::vector<BlockCopy>& copies);
  bool GrowRunning(std::vector<BlockCopy>& copies);
  bool Grow(Sequence& sequence, std::vector<BlockCopy>& copies);
  void Preempt(Sequence& victim);
  void AdmitWaiting(int64_t now, int32_t granted, StepBatch& batch);
  bool Admit(Sequence& sequence, int64_t now);
  int64_t Owed(const Sequence& sequence) const;
  int32_t ScoresOwed(const Sequence& sequence, int32_t first, int32_t count) const;
  int32_t SamplesOwed(const Sequence& sequence) const;
  void AppendToBatch(Sequence& sequence, StepBatch& batch);
  void AppendSample(const Sequence& sequence, int32_t choice, int32_t row, StepBatch& batch);
  void AppendSamples(Sequence& sequence, int32_t row, StepBatch& batch);

  // scheduler.cc: state
  void CommitSequence(const StepEntry& entry, int64_t now, std::span<SampleResult> scores, std::span<SampleResult> samples,
                      std::span<const int32_t> choices);
  void CountStep(int64_t step_tokens);
  void Fork(Sequence& root);
  void AppendToken(Sequence& sequence, SampleResult& sample, int64_t now);
  void Enqueue(Sequence& sequence);
  void InsertRunning(Sequence& sequence);
  void PlaceForks();
  void StopSequence(Sequence& sequence);
  void FinishChoice(Request& request, int32_t choice, FinishReason reason, int32_t stop_token, int64_t now);
  void EndRequest(Request& request, FinishReason reason, const Status& status, int64_t now);
  void SendEnd(Request& request, const Status& status, int64_t now);
  void RemoveDone();

  const EngineConfig& config_;
  KvCache* kv_;
  Outbox outbox_;
  std::unordered_map<RequestId, std::unique_ptr<Request>> requests_;  // open ones
  std::deque<std::pair<int64_t, std::unique_ptr<Request>>> ended_;    // freed when steps planned before (.first) are committed
  std::vector<Sequence*> running_;                                    // by rank
  std::set<WaitEntry> waiting_;                                       // by rank
  std::set<std::pair<int64_t, RequestId>> deadlines_;
  std::vector<PackItem> pack_;                     // parallel to running_ while planning
  std::array<StepUnderWay, kMaxAhead> under_way_;  // step i at i % kMaxAhead
  int64_t planned_steps_ = 0, ended_steps_ = 0;
  bool wait_for_steps_ = false;     // memory ran out while a step was under way: plan again when none is
  std::vector<Sequence*> forks_;    // made by the commit in progress, not yet placed
  bool done_in_running_ = false;    // running_ holds sequences that are done
  bool admission_blocked_ = false;  // the head of the queue did not fit; nothing was given back since
  const Sequence* blocked_head_ = nullptr;
  int blocked_steps_ = 0;
  EngineStats counters_;
};

}  // namespace kvasir
