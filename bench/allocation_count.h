// Counts the heap allocations of each thread by replacing operator new in the program that links it. For benchmarks and tests
// only.
#pragma once

#include <cstdint>

namespace kvasir {

int64_t ThreadAllocations();  // of the calling thread, since it began

}  // namespace kvasir
