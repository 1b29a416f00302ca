// The emulated runtime: device memory that the host cannot touch outside of copies and kernels, and calls that fail on demand.
#include "tests/simt/include/cuda_runtime.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <string>

#include "tests/simt/simt.h"
#include "tests/simt/stream.h"

namespace kvasir::simt {
namespace {

// One reserved range; every allocation takes pages of its own and leaves one that is never opened behind it. Only pages that are
// touched take memory of the host, so the device may have more than that.
constexpr size_t kRangeBytes = size_t{512} << 30, kPage = 4096;
// Allocations from here on, and what of them is set to zero, are left to the system, which gives zeros when they are touched.
// They are never closed: it takes as long as they are large.
constexpr size_t kLazyBytes = size_t{1} << 30;

// Of the device: 8 GiB, or KVASIR_SIMT_GIB.
size_t TotalBytes() {
  static const size_t total = [] {
    const char* const text = std::getenv("KVASIR_SIMT_GIB");
    constexpr size_t kUsual = 8;
    return (text != nullptr ? size_t(std::atoi(text)) : kUsual) << 30;
  }();
  return total;
}

struct Memory {
  char* begin = nullptr;
  size_t used = 0, in_use = 0;
  std::map<char*, size_t> allocations;  // bytes, whole pages
  int open = 0;
  bool stays_open = false;
  bool closed = true;
  uint64_t closings = 0;
};
Memory& TheMemory() {
  static Memory memory;
  return memory;
}

// Closing and opening thousands of allocations (tests that leave theirs lying about) for every kernel would take all the time:
// beyond some hundred memory stays open.
void Protect(int protection) {
  constexpr size_t kMostClosed = 300;
  if (TheMemory().allocations.size() > kMostClosed) {
    if (TheMemory().stays_open) return;
    TheMemory().stays_open = true;
    protection = PROT_READ | PROT_WRITE;
  }
  for (const auto& [at, bytes] : TheMemory().allocations)
    if (bytes < kLazyBytes) mprotect(at, bytes, protection);
}

cudaError_t failure = cudaSuccess;
int calls_before_failure = 0;
cudaError_t last_error = cudaSuccess;

// The start of every call: what it answers when it is to fail.
cudaError_t Next() {
  if (failure == cudaSuccess) return cudaSuccess;
  if (calls_before_failure > 0) {
    --calls_before_failure;
    return cudaSuccess;
  }
  DropQueued();
  return last_error = failure;
}

}  // namespace

cudaError_t NextCall() {
  return Next();
}

// Closing costs as much as a small kernel: after the first times only one in so many does, which still finds a host that reads.
OpenDeviceMemory::OpenDeviceMemory() {
  Memory& memory = TheMemory();
  if (memory.open++ == 0 && memory.closed) Protect(PROT_READ | PROT_WRITE);
  memory.closed = false;
}
OpenDeviceMemory::~OpenDeviceMemory() {
  constexpr uint64_t kAlways = 200, kOneIn = 16;
  Memory& memory = TheMemory();
  if (--memory.open > 0 || (++memory.closings > kAlways && memory.closings % kOneIn != 0)) return;
  Protect(PROT_NONE);
  memory.closed = true;
}

void* DeviceAllocate(size_t bytes) {
  Memory& memory = TheMemory();
  if (memory.begin == nullptr) {
    void* const range = mmap(nullptr, kRangeBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return nullptr;
    memory.begin = static_cast<char*>(range);
  }
  if (bytes > TotalBytes()) return nullptr;
  const size_t pages = (bytes + kPage - 1) / kPage * kPage + (bytes == 0 ? kPage : 0);
  if (memory.in_use + pages > TotalBytes()) return nullptr;
  if (memory.used + pages + kPage > kRangeBytes) return nullptr;
  char* const at = memory.begin + memory.used;
  memory.used += pages + kPage;
  memory.in_use += pages;
  // What was never written is NaN; the end of the bytes is the end of the pages when 256 divides them.
  mprotect(at, pages, PROT_READ | PROT_WRITE);
  if (pages < kLazyBytes) std::memset(at, 0xff, pages);
  if (memory.closed && !memory.stays_open && pages < kLazyBytes) mprotect(at, pages, PROT_NONE);
  memory.allocations[at] = pages;
  char* const shifted = at + (pages - (bytes + 255) / 256 * 256);
  return shifted;
}

bool DeviceFree(void* pointer) {
  Memory& memory = TheMemory();
  auto it = memory.allocations.upper_bound(static_cast<char*>(pointer));
  if (it == memory.allocations.begin()) return false;
  --it;
  if (static_cast<char*>(pointer) >= it->first + it->second) return false;
  madvise(it->first, it->second, MADV_DONTNEED);
  mprotect(it->first, it->second, PROT_NONE);
  memory.in_use -= it->second;
  memory.allocations.erase(it);
  if (memory.allocations.empty()) {
    memory.used = 0;
    memory.stays_open = false;
  }
  return true;
}

void DeviceSet(void* to, int value, size_t bytes) {
  char* const begin = static_cast<char*>(to);
  const auto page_of = [](char* at) { return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(at) / kPage * kPage); };
  char *const first = page_of(begin + kPage - 1), *const last = page_of(begin + bytes);
  if (value != 0 || bytes < kLazyBytes) {
    std::memset(to, value, bytes);
    return;
  }
  std::memset(begin, 0, size_t(first - begin));
  madvise(first, size_t(last - first), MADV_DONTNEED);
  std::memset(last, 0, size_t(begin + bytes - last));
}

size_t DeviceBytesInUse() {
  return TheMemory().in_use;
}

void FailRuntime(cudaError_t error, int after_calls) {
  failure = error;
  calls_before_failure = after_calls;
  if (error == cudaSuccess) last_error = cudaSuccess;
}

}  // namespace kvasir::simt

using kvasir::simt::Next;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unknown error";
}
const char* cudaGetErrorName(cudaError_t error) {
  return cudaGetErrorString(error);
}
cudaError_t cudaGetLastError() {
  if (const cudaError_t error = Next()) return error;
  const cudaError_t error = kvasir::simt::last_error;
  kvasir::simt::last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  return Next();
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return Next();
}
cudaError_t cudaSetDevice(int) {
  return Next();
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  std::strcpy(properties->name, "emulated GPU");
  properties->totalGlobalMem = kvasir::simt::TotalBytes();
  // KVASIR_SIMT_ARCHITECTURE=90: a GPU that has what hopper.cuh wraps.
  const char* const wanted = std::getenv("KVASIR_SIMT_ARCHITECTURE");
  const int architecture = wanted != nullptr ? std::atoi(wanted) : 80;
  properties->major = architecture / 10;
  properties->minor = architecture % 10;
  properties->multiProcessorCount = 4;
  properties->sharedMemPerBlockOptin = (architecture >= 90 ? 227 : 163) << 10;
  return Next();
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = kvasir::simt::TotalBytes();
  *free = *total - kvasir::simt::DeviceBytesInUse();
  return Next();
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return Next();
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return Next();
}
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (const cudaError_t error = Next()) return error;
  *pointer = kvasir::simt::DeviceAllocate(bytes);
  return *pointer != nullptr ? cudaSuccess : kvasir::simt::last_error = cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* pointer) {
  if (const cudaError_t error = Next()) return error;
  kvasir::simt::RunQueued();
  return pointer == nullptr || kvasir::simt::DeviceFree(pointer) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  if (const cudaError_t error = Next()) return error;
  *pointer = std::malloc(bytes);
  kvasir::simt::AddPinned(*pointer, bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  const cudaError_t error = Next();
  kvasir::simt::RunQueued();
  kvasir::simt::RemovePinned(pointer);
  std::free(pointer);
  return error;
}
