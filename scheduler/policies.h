// The scheduler's decisions as small pure functions over plain state: who goes first, who is given up when memory runs out, how
// many tokens of a step each sequence gets, who may come in, and how long a newcomer would wait. The same state gives the same
// answer, so a decision can be replayed from a log and tested without an engine. Used by Scheduler and Engine.
#pragma once

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
  int new_sequences = 1;         // the newcomer, with the choices it will fork
  int64_t available_blocks = 0;  // free or evictable, after the newcomer's prefix hit was pinned
  int64_t promised_blocks = 0;   // what the running ones are still owed
  int64_t needed_blocks = 0;     // what the newcomer is owed, beyond its hit
  int64_t total_blocks = 0;
  bool reserve_to_finish = false;
};
bool MayAdmit(const AdmissionState& state);

// Blocks a sequence is still owed beyond those it holds: for its known tokens, or to its end (reserve_to_finish: the engine
// reserves for all, or this one may not be preempted again).
struct OwedState {
  int64_t held_blocks = 0;
  int64_t known_tokens = 0;
  int64_t final_tokens = 0;  // prompt + max_tokens - 1: the slots it can ever fill
  int64_t prompt_tokens = 0;
  int unforked_choices = 0;  // choices that will fork from it, beyond the first
  bool shared_tail = false;  // its next write copies a block first
  int block_tokens = 16;
  bool reserve_to_finish = false;
};
int64_t OwedBlocks(const OwedState& state);

// Seconds a newcomer waits: requests ahead of it over the measured rate of completions.
struct LoadState {
  int64_t waiting = 0, running = 0;
  double completions_per_second = 0;  // 0 = none measured yet
  double oldest_running_seconds = 0;
};
double PredictWaitSeconds(const LoadState& state);
int RetryAfterSeconds(double predicted_wait_seconds);  // rounded up, 1 to 60

}  // namespace kvasir
