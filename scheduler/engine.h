// Engine: the loop that turns requests into tokens, and its thread. Fronts call Submit and Cancel from any thread; everything
// else happens on the one engine thread, which alone owns scheduler, KV cache, model and device. Tests and the simulator call Step themselves.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "kernels/clock.h"
#include "memory/kv_cache.h"
#include "scheduler/executor.h"
#include "scheduler/request.h"

namespace kvasir {

enum class OrderPolicy : uint8_t { kFcfs, kPriority };

struct EngineConfig {
  int max_step_tokens = 512;        // --max-num-batched-tokens: tokens computed per step
  int max_running = 256;            // --max-num-seqs
  int max_chunk = 0;                // --long-prefill-token-threshold: a prompt's largest share of a step; 0 = the whole budget
  int64_t max_waiting = 1024;       // --max-waiting-requests: then Submit answers ResourceExhausted
  OrderPolicy order = OrderPolicy::kFcfs;
  bool reserve_to_finish = false;   // admit only what can finish without preemption (prompt + max_tokens reserved)
  int max_preemptions = 8;          // after that a request is not chosen as victim while another exists
  RequestLimits limits;
  bool check_invariants = false;    // KvCache::Check after every step
  int64_t step_deadline_micros = 30'000'000;  // watchdog: a longer step makes Healthy() false
};

// A snapshot; all counters since start. Times in microseconds.
struct EngineStats {
  int64_t running = 0, waiting = 0;
  int64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, computed_prompt_tokens = 0, preemptions = 0;
  int64_t requests_accepted = 0, requests_rejected = 0, requests_ended = 0, requests_cancelled = 0, requests_failed = 0;
  int64_t step_tokens_sum = 0;                       // vllm:iteration_tokens_total
  std::array<int64_t, 16> step_tokens_le{};          // cumulative buckets 1 8 16 32 64 ... 16384 (15 used) and +Inf
  double predicted_wait_seconds = 0;                 // what Retry-After is computed from
  KvCacheStats kv;
};

class Engine {
 public:
  // cache, executor and clock outlive the engine.
  Engine(EngineConfig config, KvCache* cache, Executor* executor, const Clock* clock);
  ~Engine();  // stops the thread; every open request gets its kEnd first

  void Start();  // the engine thread; without it, the caller drives Step()
  // Accepts, or answers at once: ResourceExhausted (queue full; `retry_after_seconds` is set to 1..60), Unavailable (draining or failed).
  StatusOr<RequestId> Submit(ValidatedRequest request, std::shared_ptr<TokenSink> sink, int* retry_after_seconds = nullptr);
  // Ends one choice (or all, choice < 0) with kCancelled. Idempotent; unknown ids are ignored. Its blocks are free within two steps.
  void Cancel(RequestId id, int choice = -1);
  // Refuses new requests from now on; open ones go on. Returns when none is open or the deadline has passed; then ends the rest with Unavailable.
  void Drain(int64_t timeout_micros);
  void ResetPrefixCache();

  // One turn: inbox -> schedule -> execute -> commit. False when there was nothing to do. Only where Start was not called.
  bool Step();

  EngineStats Stats() const;
  bool Healthy() const;     // false after a device error, or when a step is overdue
  const EngineConfig& config() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvasir
