// Streams, events and graphs of the emulated runtime. What is asked for waits in one queue for all streams and runs, in the order
// asked for, when somebody waits for it: as late as a real device may be. So a host that changes an array before it was copied,
// or reads a result before it is there, gets wrong numbers here, too. Used by cuda_runtime.cc and Launch.
#pragma once

#include <cstddef>
#include <functional>

#include "tests/simt/include/cuda_runtime.h"

namespace kvasir::simt {

// Adds work to the queue, or to the graph that is being captured on that stream.
void Enqueue(cudaStream_t stream, std::function<void()> work);
// Runs all that is queued.
void RunQueued();
// Forgets it, as a device does that has failed.
void DropQueued();
size_t Queued();

// Memory that copies may read or write later; other host memory is copied from at once, and copied to after all that is queued.
void AddPinned(void* begin, size_t bytes);
void RemovePinned(void* begin);
bool IsPinned(const void* at);

}  // namespace kvasir::simt
