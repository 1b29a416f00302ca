// Engine: the loop that turns requests into tokens, and its thread. Fronts call Submit and Cancel from any thread; everything
// else happens on the one engine thread, which alone owns scheduler, KV cache, model and device. Tests and the simulator call
// Step themselves.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "kernels/clock.h"
#include "memory/kv_cache.h"
#include "scheduler/engine_config.h"
#include "scheduler/executor.h"
#include "scheduler/request.h"

namespace kvasir {

class Engine {
 public:
  // cache, executor and clock outlive the engine.
  Engine(EngineConfig config, KvCache* cache, Executor* executor, const Clock* clock);
  ~Engine();  // stops the thread; every open request gets its kEnd first

  void Start();  // the engine thread; without it, the caller drives Step()
  // Accepts, or answers at once: ResourceExhausted (queue full; `retry_after_seconds` is set to 1..60), Unavailable (draining or
  // failed).
  StatusOr<RequestId> Submit(ValidatedRequest request, std::shared_ptr<TokenSink> sink, int* retry_after_seconds = nullptr);
  // Ends one choice (or all, choice < 0) with kCancelled. Idempotent; unknown ids are ignored. Its blocks are free within two
  // steps.
  void Cancel(RequestId id, int choice = -1);
  // Refuses new requests from now on; open ones go on. Returns when none is open or the deadline has passed; then ends the rest
  // with Unavailable.
  void Drain(int64_t timeout_micros);
  void ResetPrefixCache();

  // One turn: inbox -> schedule -> execute -> commit. False when there was nothing to do. Only where Start was not called.
  bool Step();

  EngineStats Stats() const;
  bool Healthy() const;  // false after a device error, or when a step is overdue
  const EngineConfig& config() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvasir
