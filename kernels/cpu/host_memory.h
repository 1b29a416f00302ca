// Host memory for CpuDevice: aligned, zeroed, and lazily backed, so that a big KV pool costs no memory until it is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>

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

  // Memory of a mapped file that is in use: the system takes its pages for free ones, but losing them would cost reading them
  // again.
  void CountForeign(size_t bytes) { foreign_ += bytes; }

  // What AvailableMemory says, less foreign memory, and less what was promised to earlier buffers and not yet touched.
  size_t Available() const;

 private:
  size_t foreign_ = 0;
  size_t promised_ = 0;                        // bytes of the mapped buffers
  std::unordered_map<void*, size_t> buffers_;  // mapped bytes; 0 = from the heap
};

}  // namespace kvasir
