#include "scheduler/policies.h"

#include <algorithm>
#include <cmath>

namespace kvasir {

Rank MakeRank(OrderPolicy order, int32_t priority, uint64_t arrival, int32_t choice, int preemptions, int max_preemptions) {
  return {.pinned = uint8_t(preemptions >= max_preemptions ? 0 : 1),
          .priority = order == OrderPolicy::kPriority ? priority : 0,
          .arrival = arrival,
          .choice = choice};
}

int32_t ChunkTokens(int32_t remaining, int32_t budget, int32_t max_chunk) {
  const int32_t cap = max_chunk > 0 ? std::min(max_chunk, budget) : budget;
  return std::max(0, std::min(remaining, cap));
}

int32_t PackTokens(std::span<PackItem> items, const PackLimits& limits) {
  int32_t left = limits.budget;
  bool prompts = false;
  for (PackItem& item : items) {
    item.granted = 0;
    if (item.remaining > 1) {
      prompts = true;
    } else if (left > 0) {
      item.granted = item.remaining;
      left -= item.granted;
    }
  }
  if (prompts) {
    for (PackItem& item : items) {
      if (left == 0) break;
      if (item.remaining <= 1) continue;
      item.granted = ChunkTokens(item.remaining, left, limits.max_chunk);
      left -= item.granted;
    }
  }
  return limits.budget - left;
}

bool MayAdmit(const AdmissionState& state) {
  // Alone, everything that was accepted fits; only choices that together need more than the pool may then take turns.
  if (state.running == 0) return true;
  if (state.running >= state.max_running) return false;
  // Without preemption there is no way back, so all choices must find a place at once.
  if (state.reserve_to_finish && state.running + state.new_sequences > state.max_running) return false;
  // Where preemption is the way out, a little is left free so that the newcomer is not thrown out by the next decode steps.
  const int64_t headroom = state.reserve_to_finish ? 0 : std::min<int64_t>(state.running, state.total_extents / 64 + 1);
  return state.promised_extents + state.needed_extents - state.held_in_windows + headroom <= state.available_extents;
}

int64_t ExtentsAtOnce(const KvGroupShape& group, int64_t tokens, int64_t chunk_tokens) {
  const int64_t whole = (tokens + group.extent_tokens - 1) / group.extent_tokens;
  if (group.window_tokens == 0) return whole;
  // A span of n tokens touches at most that many extents, wherever it begins.
  const int64_t span = group.window_tokens - 1 + std::max<int64_t>(1, chunk_tokens);
  return std::min(whole, (span - 1 + group.extent_tokens - 1) / group.extent_tokens + 1);
}

int64_t LongestText(std::span<const KvGroupShape> groups, int64_t extents, int64_t chunk_tokens, int64_t most) {
  const auto fits = [&](int64_t tokens) {
    int64_t needed = 0;
    for (const KvGroupShape& group : groups) needed += ExtentsAtOnce(group, tokens, chunk_tokens);
    return needed <= extents;
  };
  int64_t low = 0, high = most;  // low fits
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    (fits(middle) ? low : high) = fits(middle) ? middle : middle - 1;
  }
  return low;
}

int64_t OwedExtents(const OwedState& state) {
  const int64_t tokens = state.reserve_to_finish ? state.final_tokens : state.known_tokens;
  const int64_t forks = state.reserve_to_finish ? state.unforked_choices : 0;
  int64_t owed = 0;
  for (size_t g = 0; g < state.groups.size(); ++g) {
    const KvGroupShape& group = state.groups[g];
    if (group.window_tokens > 0) {
      owed += std::max(state.held[g], ExtentsAtOnce(group, tokens, state.chunk_tokens));
      owed += forks * ExtentsAtOnce(group, state.final_tokens, 1);
      continue;
    }
    owed += std::max<int64_t>(0, ExtentsAtOnce(group, tokens, 1) - state.held[g]) + (state.shared_tails >> g & 1);
    if (forks == 0) continue;
    // A fork shares the prompt's full extents; it needs its own copy of a partial one, and all that follows. So does the parent.
    const int64_t full = state.prompt_tokens / group.extent_tokens;
    owed +=
        forks * (ExtentsAtOnce(group, state.final_tokens, 1) - full) + (state.prompt_tokens % group.extent_tokens != 0 ? 1 : 0);
  }
  return owed;
}

double PredictWaitSeconds(const LoadState& state) {
  if (state.waiting == 0) return 0;
  if (state.completions_per_second > 0) return double(state.waiting) / state.completions_per_second;
  // Nothing has ended yet: as if the running ones ended after twice the time they have taken so far.
  return double(state.waiting) / double(std::max<int64_t>(1, state.running)) * 2.0 * std::max(0.5, state.oldest_running_seconds);
}

int RetryAfterSeconds(double predicted_wait_seconds) {
  if (!(predicted_wait_seconds > 1)) return 1;
  return int(std::ceil(std::min(predicted_wait_seconds, 60.0)));
}

}  // namespace kvasir
