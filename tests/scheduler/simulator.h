// The simulator: one seed makes one random world (pool, budgets, policies, tenants, requests, cancels, clock jumps, faults) and
// drives the real Engine and KvCache through it with a ShadowExecutor, checking every invariant after every step and every token
// against a sequential oracle that knows no batch and no cache. The same seed gives the same run, event by event. The invariants'
// numbers are those of the reliability notes: I1-I7, I9-I12, I14-I16.
#pragma once

#include <cstdint>
#include <string>

namespace kvasir {

struct SimulationOutcome {
  std::string failure;      // empty = everything held
  uint64_t event_hash = 0;  // of all events in order
  int64_t steps = 0, accepted = 0, preemptions = 0, hit_tokens = 0, copied_blocks = 0, moved_out = 0, moved_in = 0, tokens = 0,
          cancelled = 0, failed = 0, rejected = 0;
};

SimulationOutcome RunSimulation(uint64_t seed);

}  // namespace kvasir
