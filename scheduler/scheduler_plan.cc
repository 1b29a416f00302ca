// Scheduler's planning half: who computes what in the next step.
#include <algorithm>

#include "memory/mutations.h"
#include "scheduler/scheduler.h"

namespace kvasir {
namespace {

// A head of the queue that did not fit is tried again when something was given back, and from time to time in case its prefix
// was published meanwhile.
constexpr int kRetryBlockedEvery = 32;

constexpr int32_t kReservedTokens = 4096;

// 0: what the step under way samples must be read first. It is the last token, or those of choices that are still to fork.
int32_t Remaining(const Sequence& sequence) {
  return std::min(sequence.known(), sequence.final_size - 1) - sequence.launched;
}

}  // namespace

bool Scheduler::Schedule(int64_t now, StepBatch& batch) {
  if (steps_under_way() == kMaxAhead || (steps_under_way() > 0 && wait_for_steps_)) return false;
  wait_for_steps_ = false;
  batch.Clear();
  StepUnderWay& step = UnderWay(planned_steps_);
  step.entries.clear();
  step.choices.clear();
  RemoveDone();
  if (KVASIR_MUTATED(kFreeTooSoon)) MoveOutAhead(batch);
  const bool preempted = PackAndGrow(batch.copies);
  int32_t granted = 0;
  for (const Sequence* sequence : running_) granted += sequence->granted;
  if (!preempted && !wait_for_steps_ && !waiting_.empty()) {
    AdmitWaiting(now, granted, batch);
  }
  for (Sequence* sequence : running_) {
    if (sequence->granted > 0) AppendToBatch(*sequence, batch);
  }
  if (step.entries.empty()) return false;
  MoveOutAhead(batch);
  ++planned_steps_;
  return true;
}

// After all that this step takes: what becomes free is for the next one, which begins when the copies are done.
void Scheduler::MoveOutAhead(StepBatch& batch) {
  if (config_.copies_beside) kv_->MoveOutAhead(batch.copies_beside);
}

// Says whether somebody had to give up memory.
bool Scheduler::PackAndGrow(std::vector<BlockCopy>& copies) {
  bool preempted = false;
  for (;;) {
    PackRunning();
    const bool gave_up = GrowRunning(copies);
    preempted = preempted || gave_up;
    const auto computes = [](const Sequence* sequence) { return sequence->granted > 0; };
    // Again when the ones that got the whole budget were those that had to give up their memory: the others are still there.
    if (!gave_up || running_.empty() || std::any_of(running_.begin(), running_.end(), computes)) return preempted;
  }
}

void Scheduler::PackRunning() {
  pack_.resize(running_.size());
  for (size_t i = 0; i < running_.size(); ++i) pack_[i].remaining = Remaining(*running_[i]);
  PackTokens(pack_, {.budget = config_.max_step_tokens, .max_chunk = config_.max_chunk});
  for (size_t i = 0; i < running_.size(); ++i) running_[i]->granted = pack_[i].granted;
}

// Memory is taken in rank order and victims come from the other end, so a victim never has slots reserved in this step. While a
// step is under way nobody becomes a victim: what it reads and gives back is seen first, and those left have nothing to compute.
bool Scheduler::GrowRunning(std::vector<BlockCopy>& copies) {
  bool preempted = false;
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.granted == 0) continue;
    while (!Grow(sequence, copies)) {
      if (steps_under_way() > 0) {
        wait_for_steps_ = true;
        for (; i < running_.size(); ++i) running_[i]->granted = 0;
        return preempted;
      }
      Sequence& victim = *running_.back();
      KVASIR_CHECK(running_.size() > 1, "request {} alone does not fit into {} extents: it should not have been accepted",
                   sequence.request->id, kv_->config().num_blocks);
      Preempt(victim);
      preempted = true;
      if (&victim == &sequence) return true;
    }
  }
  return preempted;
}

// Reserves the slots that this step writes. Whole blocks are asked for, so a decoding sequence comes here once per block.
bool Scheduler::Grow(Sequence& sequence, std::vector<BlockCopy>& copies) {
  const int32_t needed = sequence.launched + sequence.granted;
  if (needed <= sequence.kv.num_tokens && sequence.kv.shared_tails == 0) return true;
  const int32_t block_tokens = kv_->config().block_tokens;
  const int32_t rounded = (needed + block_tokens - 1) / block_tokens * block_tokens;
  const int32_t first_write = KVASIR_MUTATED(kWriteShared) ? rounded : sequence.launched;
  const size_t copies_before = copies.size();
  if (!kv_->Grow(sequence.kv, rounded, first_write, copies)) return false;
  if (KVASIR_MUTATED(kSkipCopy)) copies.resize(copies_before);
  return true;
}

// Publish + Release, where Commit has published every full block already.
void Scheduler::Preempt(Sequence& victim) {
  KVASIR_CHECK(running_.back() == &victim, "victims come from the end of the running list");
  running_.pop_back();
  kv_->Release(victim.kv);
  victim.computed = victim.launched = 0;
  victim.granted = 0;
  ++victim.preemptions;
  if (KVASIR_MUTATED(kRepeatPromptEvents)) victim.request->next_prompt_event = 1;
  ++counters_.preemptions;
  admission_blocked_ = false;
  Enqueue(victim);
}

void Scheduler::AdmitWaiting(int64_t now, int32_t granted, StepBatch& batch) {
  int32_t budget = config_.max_step_tokens - granted;
  while (budget > 0 && !waiting_.empty() && int64_t(running_.size()) < config_.max_running) {
    Sequence& sequence = *waiting_.begin()->second;
    if (KVASIR_MUTATED(kForgetRetry) && admission_blocked_) return;
    if (admission_blocked_ && !running_.empty() && blocked_head_ == &sequence && ++blocked_steps_ < kRetryBlockedEvery) return;
    admission_blocked_ = false;
    if (!Admit(sequence, now)) {
      admission_blocked_ = true;
      blocked_head_ = &sequence;
      blocked_steps_ = 0;
      return;
    }
    sequence.granted = ChunkTokens(Remaining(sequence), budget, config_.max_chunk);
    // What comes from the host takes a while: the others need not wait for it, and it begins with the next step. Nobody is
    // admitted behind it now, whose copies would have to be done after these and before the step.
    const bool beside = config_.copies_beside && granted > 0 && sequence.kv.in_host != decltype(sequence.kv.in_host){};
    const bool grown = Grow(sequence, beside ? batch.copies_beside : batch.copies);
    KVASIR_CHECK(grown, "admission promised blocks that are not there");
    if (beside && !KVASIR_MUTATED(kComputeTooSoon)) {
      sequence.granted = 0;
      if (!KVASIR_MUTATED(kAdmitBeside)) return;
    }
    granted += sequence.granted;
    budget -= sequence.granted;
  }
}

// Memory admission of the head of the queue. On success it is among the running, holding its cached prefix.
bool Scheduler::Admit(Sequence& sequence, int64_t now) {
  Request& request = *sequence.request;
  if (sequence.tokens.empty()) {
    // Room for all that most requests generate, so that a steady step allocates nothing; the longest ones double it now and then.
    sequence.tokens.reserve(size_t(std::min(request.final_size(), request.prompt_size() + kReservedTokens)));
    sequence.tokens.assign(request.prompt().begin(), request.prompt().end());
  }
  int32_t longest = int32_t(sequence.tokens.size()) - 1;  // one token is left to compute: its logits are sampled
  if (KVASIR_MUTATED(kMatchEverything)) ++longest;
  // A prompt token whose score is still owed needs the logits of the token before it.
  if (request.scores_prompt() && request.next_prompt_event < request.prompt_size()) {
    longest = std::min(longest, request.next_prompt_event - 1);
  }
  const TenantSalt salt = KVASIR_MUTATED(kDropSaltOnMatch) ? TenantSalt{} : request.params->salt;
  const int32_t matched = kv_->Match(sequence.tokens, salt, longest, !request.counted, sequence.kv);
  request.counted = true;

  int64_t promised = 0;
  for (const Sequence* other : running_) promised += Owed(*other);
  const AdmissionState state = {.running = int(running_.size()),
                                .max_running = config_.max_running,
                                .new_sequences = sequence.forked ? 1 : request.open_choices,
                                .available_extents = kv_->available_extents(),
                                .promised_extents = promised,
                                .needed_extents = Owed(sequence),
                                .held_in_windows = kv_->held_in_windows(),
                                .total_extents = kv_->config().num_blocks,
                                .reserve_to_finish = config_.reserve_to_finish};
  if (!MayAdmit(state)) {
    kv_->Release(sequence.kv);
    return false;
  }
  // For the whole life, so that a steady step allocates nothing.
  kv_->ReserveTables(sequence.kv, request.final_size());
  sequence.computed = matched;
  if (KVASIR_MUTATED(kResumeOffByOne) && sequence.preemptions > 0) {
    sequence.computed = std::min(matched + 1, int32_t(sequence.tokens.size()) - 1);
  }
  sequence.launched = sequence.computed;
  if (!request.admitted) {
    request.admitted = true;
    request.scheduled_micros = now;
    request.cached_tokens = matched;
    counters_.prompt_tokens += request.prompt_size();
  }
  waiting_.erase(waiting_.begin());
  InsertRunning(sequence);
  return true;
}

// A sequence that was preempted as often as it may be is promised memory to its end: with its place at the head of every list,
// that is why it is never preempted again. Its forks are not (they start at zero preemptions).
int64_t Scheduler::Owed(const Sequence& sequence) const {
  const Request& request = *sequence.request;
  const bool pinned = sequence.preemptions >= config_.max_preemptions && !KVASIR_MUTATED(kPinWithoutPromise);
  OwedState state = {.groups = kv_->shapes(),
                     .shared_tails = sequence.kv.shared_tails,
                     .known_tokens = sequence.known(),
                     .final_tokens = request.final_size() - 1,
                     .prompt_tokens = request.prompt_size(),
                     .chunk_tokens = ChunkTokens(Remaining(sequence), config_.max_step_tokens, config_.max_chunk),
                     .unforked_choices = sequence.forked || !config_.reserve_to_finish ? 0 : request.open_choices - 1,
                     .reserve_to_finish = config_.reserve_to_finish || pinned};
  for (int g = 0; g < kv_->num_groups(); ++g) state.held[size_t(g)] = kv_->HeldExtents(sequence.kv, g);
  return OwedExtents(state);
}

// How many prompt tokens the rows [first, first + count) score: those from next_prompt_event on, without what is under way.
int32_t Scheduler::ScoresOwed(const Sequence& sequence, int32_t first, int32_t count) const {
  if (!sequence.scores_prompt) return 0;
  const Request& request = *sequence.request;
  return std::max(0, std::min(first + count, request.prompt_size() - 1) - std::max(first, request.next_prompt_event - 1));
}

// Samples that the planned rows give: one per open choice for a root that completes its prompt.
int32_t Scheduler::SamplesOwed(const Sequence& sequence) const {
  if (sequence.launched + sequence.granted != sequence.known()) return 0;
  return sequence.forked ? 1 : sequence.request->open_choices;
}

void Scheduler::AppendToBatch(Sequence& sequence, StepBatch& batch) {
  const int32_t first = sequence.launched, count = sequence.granted;
  const int32_t first_row = int32_t(batch.token_ids.size());
  batch.slices.push_back({.first_row = first_row, .num_rows = count, .kv = int32_t(batch.tables[0].size())});
  for (size_t g = 0; g < size_t(kv_->num_groups()); ++g) {
    batch.tables[g].push_back(
        {.blocks = sequence.kv.tables[g].data(), .num_slots = first + count, .stamp = sequence.kv.stamp + g});
  }
  batch.request_ids.push_back(sequence.request_id);
  for (int32_t i = 0; i < count; ++i) {
    const size_t at = size_t(first + i);
    batch.token_ids.push_back(at < sequence.tokens.size() ? sequence.tokens[at] : sequence.pending);
    batch.positions.push_back(first + i);
  }
  // The row of token p gives the logits of token p + 1.
  const int32_t scores = ScoresOwed(sequence, first, count);
  for (int32_t i = 0; i < scores; ++i) {
    const Request& request = *sequence.request;
    const int32_t token = std::max(first + 1, request.next_prompt_event) + i;
    batch.score_rows.push_back(first_row + token - 1 - first);
    batch.score_tokens.push_back(request.params->prompt[size_t(token)]);
    batch.score_top.push_back(request.params->sampling.num_prompt_logprobs);
  }
  const int32_t samples = SamplesOwed(sequence);
  UnderWay(planned_steps_).entries.push_back({&sequence, count, scores, samples});
  if (samples > 0) AppendSamples(sequence, first_row + count - 1, batch);
  if (KVASIR_MUTATED(kPublishEarly)) {
    kv_->Publish(sequence.kv, sequence.tokens, std::min(first + count, int32_t(sequence.tokens.size())),
                 sequence.request->params->salt);
  }
  sequence.launched += count;
  sequence.granted = 0;
}

// Filled in place: a copy of what was just written in pieces would wait for them, for every row of every step.
void Scheduler::AppendSample(const Sequence& sequence, int32_t choice, int32_t row, StepBatch& batch) {
  const Request& request = *sequence.request;
  const size_t prompt_size = size_t(sequence.prompt_size);
  UnderWay(planned_steps_).choices.push_back(choice);
  batch.sample_rows.push_back(row);
  SampleRow& sample = batch.samples.emplace_back();
  sample.params = &request.params->sampling;
  sample.prompt = std::span(sequence.tokens).first(prompt_size);
  sample.output = std::span(sequence.tokens).subspan(prompt_size);
  sample.pending = sequence.pending;
  sample.stream = KVASIR_MUTATED(kStreamZero) && sequence.forked ? 0 : uint64_t(choice);
  sample.counter = uint64_t(sequence.known()) - prompt_size;
  if (KVASIR_MUTATED(kPendingUncounted)) sample.counter = sequence.tokens.size() - prompt_size;
  if (KVASIR_MUTATED(kCounterFromStep)) sample.counter = uint64_t(counters_.steps);
  if (sequence.known() < sequence.min_size) sample.suppressed = request.end_ids;
}

void Scheduler::AppendSamples(Sequence& sequence, int32_t row, StepBatch& batch) {
  if (sequence.forked) {
    AppendSample(sequence, sequence.choice, row, batch);
  } else {
    // The root's last prompt row gives every choice its first token.
    const Request& request = *sequence.request;
    for (size_t choice = 0; choice < request.choices.size(); ++choice)
      if (request.choices[choice].open) AppendSample(sequence, int32_t(choice), row, batch);
    if (request.open_choices > 1) return;  // they must have forked before they go on
  }
  sequence.pending = PendingToken(int32_t(batch.samples.size()) - 1);
  sequence.pending_step = uint8_t(planned_steps_);
}

}  // namespace kvasir
