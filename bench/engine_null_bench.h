// The engine's own cost, measured with a model that computes nothing: step, queue, prefix match, allocations, eviction
// (performance notes 5 b1-b4, b6), in CPU time of the engine's thread. Used by `kvasir bench engine` and by the small program
// engine_null_bench.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace kvasir {

// One figure. `ceiling` is the most it may cost (the project's bar) in the same unit; ratio = value / ceiling, good when <= 1.
struct EngineNullResult {
  std::string id;         // "b1"
  std::string case_name;  // "256 running"
  double value = 0;
  std::string unit;  // "us/step"
  double ceiling = 0;
  double ratio = 0;
};

struct EngineNullOptions {
  // Heap allocations of this thread so far (bench/allocation_count.h); empty = b4 is left out.
  std::function<int64_t()> allocations;
  int repeats = 9;  // medians over these
};

std::vector<EngineNullResult> RunEngineNullBench(const EngineNullOptions& options);
std::string ToJsonLine(const EngineNullResult& result);

}  // namespace kvasir
