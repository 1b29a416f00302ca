#include "kernels/cpu/host_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

namespace kvasir {
namespace {

constexpr size_t kMapFrom = size_t{1} << 20;  // smaller buffers come from the heap, where the sanitizers guard their ends
constexpr size_t kHugePage = size_t{2} << 20;
constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// The number after `key` in a file of "key value" or "key: value kB" lines; `missing` when it is not there.
uint64_t FieldOf(const char* path, std::string_view key, uint64_t missing) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.size() <= key.size() || line.compare(0, key.size(), key) != 0) continue;
    const char next = line[key.size()];
    if (next != ' ' && next != ':' && next != '\t') continue;
    const uint64_t value = std::strtoull(line.c_str() + key.size() + 1, nullptr, 10);
    return line.ends_with("kB") ? value * 1024 : value;
  }
  return missing;
}

// The one number of a file; kNoLimit for "max" or no file.
uint64_t NumberOf(const char* path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : kNoLimit;
}

uint64_t CgroupHeadroom(const char* limit, const char* used, const char* stat, std::string_view cache) {
  const uint64_t most = NumberOf(limit), now = NumberOf(used);
  if (most == kNoLimit || now == kNoLimit || most > kNoLimit / 4) return kNoLimit;
  const uint64_t reclaimable = FieldOf(stat, cache, 0);
  const uint64_t held = now > reclaimable ? now - reclaimable : 0;
  return most > held ? most - held : 0;
}

uint64_t RlimitHeadroom() {
  uint64_t least = kNoLimit;
  const std::pair<int, const char*> limits[] = {{RLIMIT_AS, "VmSize"}, {RLIMIT_DATA, "VmData"}};
  for (const auto& [resource, field] : limits) {
    rlimit limit;
    if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) continue;
    const uint64_t used = FieldOf("/proc/self/status", field, 0);
    least = std::min<uint64_t>(least, limit.rlim_cur > used ? limit.rlim_cur - used : 0);
  }
  return least;
}

}  // namespace

size_t AvailableMemory() {
  uint64_t least = FieldOf("/proc/meminfo", "MemAvailable", kNoLimit);
  least = std::min(least, CgroupHeadroom("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                                         "/sys/fs/cgroup/memory.stat", "inactive_file"));
  least =
      std::min(least, CgroupHeadroom("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                     "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file"));
  return static_cast<size_t>(std::min(least, RlimitHeadroom()));
}

HostMemory::~HostMemory() {
  while (!buffers_.empty()) Free(buffers_.begin()->first);
}

size_t HostMemory::Available() const {
  const size_t available = AvailableMemory();
  // A promise that was kept shows in our resident memory and is no longer in `available`; the rest still has to come out of it.
  const size_t resident = FieldOf("/proc/self/status", "RssAnon", promised_);
  const size_t owed = (promised_ > resident ? promised_ - resident : 0) + foreign_;
  return available > owed ? available - owed : 0;
}

StatusOr<void*> HostMemory::Allocate(size_t bytes, std::string_view what, bool huge_pages) {
  if (bytes < kMapFrom) {
    const size_t rounded = std::max<size_t>(64, (bytes + 63) / 64 * 64);
    void* buffer = std::aligned_alloc(64, rounded);
    if (buffer == nullptr) return ResourceExhausted("{} needs {} bytes and the heap has none left; free memory", what, bytes);
    std::memset(buffer, 0, rounded);
    buffers_.emplace(buffer, 0);
    return buffer;
  }
  const size_t available = Available();
  const size_t mapped = bytes > kNoLimit - 4095 ? bytes : (bytes + 4095) / 4096 * 4096;
  void* buffer = MAP_FAILED;
  if (mapped <= available) {
    buffer = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (buffer == MAP_FAILED) {
    return ResourceExhausted(
        "{} needs {} bytes but only {} are available; free memory, raise the container's limit or ask for less", what, bytes,
        available);
  }
  if (huge_pages && mapped >= kHugePage) madvise(buffer, mapped, MADV_HUGEPAGE);  // a hint: failure changes nothing
  if (nodes_.size() > 1 && mapped >= kHugePage) Interleave(buffer, mapped);
  promised_ += mapped;
  buffers_.emplace(buffer, mapped);
  return buffer;
}

// By the system call itself: it is all we would need libnuma for.
void HostMemory::Interleave(void* buffer, size_t bytes) {
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  constexpr int kModeInterleave = 3;  // MPOL_INTERLEAVE of linux/mempolicy.h, which is not everywhere
  std::vector<unsigned long> mask(size_t(*std::max_element(nodes_.begin(), nodes_.end())) / kBits + 1);
  for (const int node : nodes_) mask[size_t(node) / kBits] |= 1ul << size_t(node) % kBits;
  if (syscall(SYS_mbind, buffer, bytes, kModeInterleave, mask.data(), mask.size() * kBits + 1, 0) != 0 &&
      interleave_failure_.empty()) {
    interleave_failure_ = std::strerror(errno);
  }
}

void HostMemory::Free(void* buffer) {
  if (buffer == nullptr) return;
  const auto it = buffers_.find(buffer);
  KVASIR_CHECK(it != buffers_.end(), "buffer {} is not of this device", buffer);
  if (it->second == 0) {
    std::free(buffer);
  } else {
    munmap(buffer, it->second);
    promised_ -= it->second;
  }
  buffers_.erase(it);
}

}  // namespace kvasir
