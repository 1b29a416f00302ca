// Host memory for CpuDevice: aligned, zeroed, and lazily backed, so that a big KV pool costs no memory until it is written.
//
// Where threads of several memory nodes compute, the pages of large buffers are dealt out over those nodes: weights and KV are
// read by all threads, and pieces of work go to whoever is free, so no page belongs to one node; dealt out, every node's memory
// works at once, while pages left to first touch would lie where the loading thread happened to run. (Weights mapped from the
// packed cache are the page cache's, and lie where it has them.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

// Bytes this process may still take: the least of the system's MemAvailable, what the cgroup has left (version 2 or 1, page cache
// counted as free) and RLIMIT_AS/RLIMIT_DATA.
size_t AvailableMemory();

class HostMemory {
 public:
  HostMemory() = default;
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // 64-byte aligned and zeroed. ResourceExhausted when the machine or the cgroup cannot back it. huge_pages: for memory that is
  // filled at once, such as weights.
  StatusOr<void*> Allocate(size_t bytes, std::string_view what, bool huge_pages);
  void Free(void* buffer);

  // Deals out the pages of buffers allocated from now on over these memory nodes, if there are several.
  void InterleaveOver(std::vector<int> nodes) { nodes_ = std::move(nodes); }
  // Why that did not work, the first time it did not (some containers forbid it); empty: it does. The memory is good all the
  // same.
  const std::string& interleave_failure() const { return interleave_failure_; }

  // Memory of a mapped file that is in use: the system takes its pages for free ones, but losing them would cost reading them
  // again.
  void CountForeign(size_t bytes) { foreign_ += bytes; }

  // What AvailableMemory says, less foreign memory, and less what was promised to earlier buffers and not yet touched.
  size_t Available() const;

 private:
  void Interleave(void* buffer, size_t bytes);

  std::vector<int> nodes_;
  std::string interleave_failure_;
  size_t foreign_ = 0;
  size_t promised_ = 0;                        // bytes of the mapped buffers
  std::unordered_map<void*, size_t> buffers_;  // mapped bytes; 0 = from the heap
};

}  // namespace kvasir
