// What the engine is told at start and what it tells about itself. Plain data, used by the scheduler, the engine and the fronts.
#pragma once

#include <array>
#include <cstdint>

#include "memory/kv_cache.h"
#include "scheduler/request.h"

namespace kvasir {

enum class OrderPolicy : uint8_t { kFcfs, kPriority };

struct EngineConfig {
  int max_step_tokens = 512;   // --max-num-batched-tokens: tokens computed per step
  int max_running = 256;       // --max-num-seqs
  int max_chunk = 0;           // --long-prefill-token-threshold: a prompt's largest share of a step; 0 = the whole budget
  int64_t max_waiting = 1024;  // --max-waiting-requests: then Submit answers ResourceExhausted
  OrderPolicy order = OrderPolicy::kFcfs;
  bool reserve_to_finish = false;  // admit only what can finish without preemption (prompt + max_tokens reserved)
  int max_preemptions = 8;         // of one sequence; then it comes back only with memory to its end
  RequestLimits limits;
  bool copies_beside = false;                 // set by the engine: KV comes from the host and goes there beside a step
  bool check_invariants = false;              // KvCache::Check after every step
  int64_t step_deadline_micros = 30'000'000;  // watchdog: a longer step makes Healthy() false
};

// Upper bounds of EngineStats::step_tokens_le, in tokens; the entry after the last bound counts all steps.
inline constexpr std::array<int64_t, 13> kStepTokenBounds = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};

// A snapshot; all counters since start. Times in microseconds.
struct EngineStats {
  int64_t running = 0, waiting = 0;  // sequences that own KV; sequences that wait for it
  int64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, computed_prompt_tokens = 0, preemptions = 0;
  int64_t requests_accepted = 0, requests_rejected = 0, requests_ended = 0, requests_cancelled = 0, requests_failed = 0;
  int64_t step_tokens_sum = 0;               // vllm:iteration_tokens_total
  std::array<int64_t, 16> step_tokens_le{};  // cumulative: [i] = steps of <= kStepTokenBounds[i] tokens, [13] = all steps
  int64_t invariant_failures = 0;            // KvCache::Check said no (check_invariants); the engine has failed then
  double predicted_wait_seconds = 0;         // what Retry-After is computed from
  KvCacheStats kv;
};

}  // namespace kvasir
