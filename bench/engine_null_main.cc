// Prints the engine's own cost, a JSON line per figure. Build in release mode for figures that mean something.
#include <cstdio>

#include "bench/allocation_count.h"
#include "bench/engine_null_bench.h"

int main() {
  for (const kvasir::EngineNullResult& result : kvasir::RunEngineNullBench({.allocations = kvasir::ThreadAllocations})) {
    std::printf("%s\n", kvasir::ToJsonLine(result).c_str());
  }
  return 0;
}
