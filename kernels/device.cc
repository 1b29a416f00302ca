#include "kernels/device.h"

#include <sys/mman.h>

#include <map>

namespace kvasir {
namespace {

// What Device::AllocateHost has given, to know how much FreeHost gives back. Never destroyed: devices may outlive it.
std::map<void*, size_t>& HostAllocations() {
  static auto* const allocations = new std::map<void*, size_t>;
  return *allocations;
}

}  // namespace

// Pages that are taken when they are first written. Devices are used on one thread, so this is, too.
StatusOr<void*> Device::AllocateHost(size_t bytes, std::string_view what) {
  const size_t free = Info().memory_bytes;
  void* const memory = free > 0 && bytes > free
                           ? MAP_FAILED
                           : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return ResourceExhausted("{} needs {:.3f} GB and the system has {:.3f} GB free; ask for less", what, double(bytes) / 1e9,
                             double(free) / 1e9);
  }
  HostAllocations()[memory] = bytes;
  return memory;
}

void Device::FreeHost(void* memory) {
  const auto found = HostAllocations().find(memory);
  KVASIR_CHECK(found != HostAllocations().end(), "freeing {}, which is not host memory of a device", memory);
  munmap(memory, found->second);
  HostAllocations().erase(found);
}

}  // namespace kvasir
