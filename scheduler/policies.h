// The scheduler's decisions as small pure functions over plain state: who goes first, who is given up when memory runs out, how
// many tokens of a step each sequence gets, who may come in, and how long a newcomer would wait. The same state gives the same
// answer, so a decision can be replayed from a log and tested without an engine. Used by Scheduler and Engine.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <span>

#include "scheduler/engine_config.h"

namespace kvasir {

// Total order of sequences; smaller runs earlier, takes memory earlier and is given up later.
struct Rank {
  uint8_t pinned = 1;    // 0 = was preempted as often as it may be: first in every list, and promised memory to its end
  int32_t priority = 0;  // 0 for all under first come, first served
  uint64_t arrival = 0;  // request id: the order in which the engine accepted them
  int32_t choice = 0;
  auto operator<=>(const Rank&) const = default;
};
Rank MakeRank(OrderPolicy order, int32_t priority, uint64_t arrival, int32_t choice, int preemptions, int max_preemptions);

// One running sequence as token packing sees it.
struct PackItem {
  int32_t remaining = 0;  // known tokens that are not computed yet; 1 = a decode row
  int32_t granted = 0;    // out: tokens to compute in this step
};
struct PackLimits {
  int32_t budget = 0;     // tokens in this step
  int32_t max_chunk = 0;  // of one prompt; 0 = the whole budget
};
// How many tokens a prompt with `remaining` uncomputed tokens gets out of `budget`.
int32_t ChunkTokens(int32_t remaining, int32_t budget, int32_t max_chunk);
// Token packing: items in rank order; decode rows first (each one token), then prompt chunks. Returns the tokens granted.
int32_t PackTokens(std::span<PackItem> items, const PackLimits& limits);

// Memory admission of one more sequence.
struct AdmissionState {
  int running = 0;  // sequences that own KV now
  int max_running = 0;
  int new_sequences = 1;          // the newcomer, with the choices it will fork
  int64_t available_extents = 0;  // free or evictable, after the newcomer's prefix hit was pinned
  int64_t promised_extents = 0;   // what the running ones are still owed (OwedExtents)
  int64_t needed_extents = 0;     // what the newcomer is owed, beyond its hit
  int64_t held_in_windows = 0;    // what all of them hold in groups with a window, each extent counted once
  int64_t total_extents = 0;
  bool reserve_to_finish = false;
};
bool MayAdmit(const AdmissionState& state);

// Extents that a group takes for one text of `tokens`, at most at once: with a window, those that a step of chunk_tokens reads
// and writes.
int64_t ExtentsAtOnce(const KvGroupShape& group, int64_t tokens, int64_t chunk_tokens);
// The longest text whose KV fits into `extents` when it is alone, computed chunk_tokens at a time; at most `most`.
int64_t LongestText(std::span<const KvGroupShape> groups, int64_t extents, int64_t chunk_tokens, int64_t most);

// What a sequence is still owed: for its known tokens, or to its end (reserve_to_finish: the engine reserves for all, or this one
// may not be preempted again). Of groups that keep all, what it needs beyond what it holds. Of groups with a window, all it may
// hold at once: an extent shared by several is let go by each, yet is free only after the last, so what is held there is taken
// off the sum over all sequences, once for each extent (AdmissionState::held_in_windows).
struct OwedState {
  std::span<const KvGroupShape> groups;
  std::array<int64_t, kMaxKvGroups> held{};  // extents
  uint32_t shared_tails = 0;                 // bit per group: its next write copies first
  int64_t known_tokens = 0;
  int64_t final_tokens = 0;  // prompt + max_tokens - 1: the slots it can ever fill
  int64_t prompt_tokens = 0;
  int64_t chunk_tokens = 1;  // most it computes in one step from now on
  int unforked_choices = 0;  // choices that will fork from it, beyond the first
  bool reserve_to_finish = false;
};
int64_t OwedExtents(const OwedState& state);

// Seconds a newcomer waits: requests ahead of it over the measured rate of completions.
struct LoadState {
  int64_t waiting = 0, running = 0;
  double completions_per_second = 0;  // 0 = none measured yet
  double oldest_running_seconds = 0;
};
double PredictWaitSeconds(const LoadState& state);
int RetryAfterSeconds(double predicted_wait_seconds);  // rounded up, 1 to 60

}  // namespace kvasir
