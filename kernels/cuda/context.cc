#include "kernels/cuda/context.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/launch.h"

namespace kvasir {
namespace {

constexpr size_t kFirstSegmentBytes = size_t{1} << 20;

double Gigabytes(size_t bytes) {
  return double(bytes) / 1e9;
}

bool IsAskedFor(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && std::string_view(value) == "1";
}

}  // namespace

StatusOr<std::unique_ptr<CudaContext>> CudaContext::Create(int index) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    return Unavailable(
        "no CUDA device can be used ({}); is there an NVIDIA GPU, and is its driver at least as new as this build's CUDA {}? "
        "--device cpu computes without one",
        error != cudaSuccess ? cudaGetErrorString(error) : "none is here", [] {
          int version = 0;
          cudaRuntimeGetVersion(&version);
          return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
        }());
  }
  if (index < 0 || index >= count) return InvalidArgument("CUDA device {} of {}: they count from 0", index, count);
  std::unique_ptr<CudaContext> context(new CudaContext());
  cudaDeviceProp properties;
  context->Check(cudaSetDevice(index), "choosing the device");
  context->Check(cudaGetDeviceProperties(&properties, index), "asking for the device's properties");
  KVASIR_RETURN_IF_ERROR(context->status());
  context->architecture_ = properties.major * 10 + properties.minor;
  context->name_ = fmt::format("{}, sm_{}", properties.name, context->architecture_);
  context->multiprocessors_ = properties.multiProcessorCount;
  context->total_bytes_ = properties.totalGlobalMem;
  context->shared_bytes_ = properties.sharedMemPerBlockOptin;
  // Until they have run on a GPU only who asks for them gets the kernels for Hopper, and kernels that start ahead.
  context->warpgroups_ = context->architecture_ == 90 && IsAskedFor("KVASIR_CUDA_HOPPER");
  launch_ahead = context->architecture_ >= 90 && IsAskedFor("KVASIR_CUDA_LAUNCH_AHEAD");
  if (context->warpgroups_) context->name_ += ", with kernels for Hopper";
  constexpr int kOldest = 80;  // bfloat16 tensor cores and asynchronous copies
  if (context->architecture_ < kOldest) {
    return Unavailable(
        "CUDA device {} ({}) is older than sm_{}, the oldest that kernels are written for; --device cpu "
        "computes without it",
        index, context->name_, kOldest);
  }
  context->Check(cudaStreamCreateWithFlags(&context->stream_, cudaStreamNonBlocking), "making the compute stream");
  context->Check(cudaStreamCreateWithFlags(&context->copy_stream_, cudaStreamNonBlocking), "making a stream for copies");
  for (cudaEvent_t* event : {&context->forked_, &context->copied_})
    context->Check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "making an event");
  for (Ring* ring : {&context->op_ring_, &context->step_ring_})
    if (context->status().ok()) context->MakeRing(*ring, kFirstSegmentBytes);
  KVASIR_RETURN_IF_ERROR(context->status());
  return context;
}

CudaContext::~CudaContext() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  if (copy_stream_ != nullptr) cudaStreamSynchronize(copy_stream_);
  for (cudaEvent_t event : {forked_, copied_})
    if (event != nullptr) cudaEventDestroy(event);
  for (Ring& ring : outgrown_) FreeRing(ring);
  FreeRing(op_ring_);
  FreeRing(step_ring_);
  for (const Buffer& buffer : scratch_)
    if (buffer.data != nullptr) cudaFree(buffer.data);
  for (const auto& [pointer, bytes] : allocations_) cudaFree(pointer);
  for (const auto& [content, pointer] : kept_) cudaFree(pointer);
  for (void* const memory : host_allocations_) cudaFreeHost(memory);
  if (copy_stream_ != nullptr) cudaStreamDestroy(copy_stream_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

bool CudaContext::Check(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return status_.ok();
  if (status_.ok()) {
    status_ = Internal("CUDA failed at {}: {} ({}). The device cannot be used any more by this process", what,
                       cudaGetErrorString(error), cudaGetErrorName(error));
  }
  return false;
}

Status CudaContext::Synchronize() {
  if (status_.ok()) Check(cudaStreamSynchronize(stream_), "waiting for the device");
  if (status_.ok() && copies_beside_) Check(cudaStreamSynchronize(copy_stream_), "waiting for copies");
  for (Ring& ring : outgrown_) FreeRing(ring);
  outgrown_.clear();
  return status_;
}

size_t CudaContext::Available() const {
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

StatusOr<void*> CudaContext::Allocate(size_t bytes, std::string_view what) {
  KVASIR_RETURN_IF_ERROR(status_);
  void* buffer = nullptr;
  const cudaError_t error = cudaMalloc(&buffer, std::max<size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not one that stays
    return ResourceExhausted("{} needs {:.3f} GB of device memory and {:.3f} GB are free on {}", what, Gigabytes(bytes),
                             Gigabytes(Available()), name_);
  }
  if (!Check(error, what)) return status_;
  allocations_[buffer] = bytes;
  if (!Check(cudaMemsetAsync(buffer, 0, std::max<size_t>(bytes, 1), stream_), what)) return status_;
  return buffer;
}

void CudaContext::Free(void* buffer) {
  if (buffer == nullptr) return;
  const auto it = allocations_.find(buffer);
  KVASIR_CHECK(it != allocations_.end(), "freeing {}, which is not an allocation of this device", buffer);
  allocations_.erase(it);
  cudaStreamSynchronize(stream_);  // kernels may still read it
  cudaStreamSynchronize(copy_stream_);
  Check(cudaFree(buffer), "freeing memory");
}

void CudaContext::CopyBlocks(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, bool beside) {
  if (bytes == 0 || !status_.ok()) return;
  Check(cudaMemcpyAsync(to, from, bytes, kind, beside ? copy_stream_ : stream_), "copying blocks");
  copies_beside_ = copies_beside_ || beside;
}

void CudaContext::Fork() {
  if (!status_.ok()) return;
  Check(cudaEventRecord(forked_, stream_), "recording an event");
  Check(cudaStreamWaitEvent(copy_stream_, forked_), "waiting for the compute stream");
}

void CudaContext::Join() {
  if (!status_.ok() || !std::exchange(copies_beside_, false)) return;
  Check(cudaEventRecord(copied_, copy_stream_), "recording an event");
  Check(cudaStreamWaitEvent(stream_, copied_), "waiting for copies");
}

StatusOr<void*> CudaContext::AllocateHost(size_t bytes, std::string_view what) {
  KVASIR_RETURN_IF_ERROR(status_);
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, std::max<size_t>(bytes, 1), cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not one that stays
    return ResourceExhausted("{} needs {:.3f} GB of pinned memory of the host, which the system does not give", what,
                             Gigabytes(bytes));
  }
  if (!Check(error, what)) return status_;
  host_allocations_.insert(memory);
  return memory;
}

void CudaContext::FreeHost(void* memory) {
  if (memory == nullptr) return;
  KVASIR_CHECK(host_allocations_.erase(memory) == 1, "freeing {}, which is not host memory of this device", memory);
  cudaStreamSynchronize(stream_);  // copies may be under way
  cudaStreamSynchronize(copy_stream_);
  Check(cudaFreeHost(memory), "freeing host memory");
}

bool CudaContext::MakeRing(Ring& ring, size_t segment_bytes) {
  // The op that outgrew the old one may have uploaded something else to it before.
  if (ring.host != nullptr) outgrown_.push_back(ring);
  ring = {.of_steps = ring.of_steps};
  ++generation_;
  void *host = nullptr, *device = nullptr;
  if (!Check(cudaHostAlloc(&host, segment_bytes * kSegments, cudaHostAllocDefault), "pinning memory for uploads")) return false;
  ring.host = static_cast<std::byte*>(host);
  if (!Check(cudaMalloc(&device, segment_bytes * (ring.of_steps ? 1 : kSegments)), "memory for uploads")) return false;
  ring.device = static_cast<std::byte*>(device);
  for (cudaEvent_t& event : ring.done) {
    if (!Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event")) return false;
  }
  ring.segment_bytes = segment_bytes;
  return true;
}

void CudaContext::FreeRing(Ring& ring) {
  if (ring.host != nullptr) cudaFreeHost(ring.host);
  if (ring.device != nullptr) cudaFree(ring.device);
  for (cudaEvent_t event : ring.done)
    if (event != nullptr) cudaEventDestroy(event);
  ring = {.of_steps = ring.of_steps};
}

void* CudaContext::UploadBytes(Ring& ring, const void* host, size_t bytes) {
  constexpr size_t kAlign = 256;
  if (bytes == 0 || !status_.ok()) return nullptr;
  if (recording_) {
    spoiled_ = true;
    return nullptr;
  }
  const size_t room = (bytes + kAlign - 1) / kAlign * kAlign;
  if (room > ring.segment_bytes) {
    size_t segment = ring.segment_bytes;
    while (segment < room) segment *= 2;
    if (!MakeRing(ring, segment)) return nullptr;
  }
  if (ring.used > 0 && (ring.of_steps || ring.used + room > ring.segment_bytes)) {
    Check(cudaEventRecord(ring.done[ring.segment], stream_), "recording an event");
    ring.segment = (ring.segment + 1) % kSegments;
    ring.used = 0;
    Check(cudaEventSynchronize(ring.done[ring.segment]), "waiting for uploads");  // at once when never recorded
  }
  const size_t at = size_t(ring.segment) * ring.segment_bytes + ring.used;
  ring.used += room;
  std::memcpy(ring.host + at, host, bytes);
  std::byte* const device = ring.device + (ring.of_steps ? 0 : at);
  if (!Check(cudaMemcpyAsync(device, ring.host + at, bytes, cudaMemcpyHostToDevice, stream_), "uploading")) return nullptr;
  return device;
}

// Recordings bring the same arrays again and again: those of experts, of heads. By content they are few.
const void* CudaContext::KeepBytes(const void* host, size_t bytes) {
  if (bytes == 0 || !status_.ok()) return nullptr;
  void*& device = kept_[std::string(static_cast<const char*>(host), bytes)];
  if (device != nullptr) return device;
  void* memory = nullptr;
  if (!Check(cudaMalloc(&memory, bytes), "memory for a recorded step") ||
      !Check(cudaMemcpyAsync(memory, host, bytes, cudaMemcpyHostToDevice, copy_stream_), "uploading") ||
      !Check(cudaStreamSynchronize(copy_stream_), "uploading")) {
    return nullptr;
  }
  return device = memory;
}

bool CudaContext::StartRecording() {
  if (!status_.ok() || cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  spoiled_ = false;
  return recording_ = true;
}

cudaGraphExec_t CudaContext::FinishRecording() {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t recorded = nullptr;
  // Errors here are of the recording, not of the device: the step is computed without.
  bool good = cudaStreamEndCapture(stream_, &graph) == cudaSuccess && graph != nullptr;
  recording_ = false;
  good = good && !spoiled_ && cudaGraphInstantiate(&recorded, graph, 0) == cudaSuccess;
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (!good) cudaGetLastError();
  return good ? recorded : nullptr;
}

void CudaContext::Download(void* host, const void* device, size_t bytes) {
  if (bytes == 0 || !status_.ok()) return;
  if (recording_) {
    spoiled_ = true;
    return;
  }
  Check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "copying to the host");
  Check(cudaStreamSynchronize(stream_), "waiting for the device");
}

void* CudaContext::TemporaryBytes(Scratch use, size_t bytes) {
  Buffer& buffer = scratch_[size_t(use)];
  if (bytes <= buffer.bytes || !status_.ok()) return buffer.data;
  if (recording_) {
    spoiled_ = true;
    return buffer.data;
  }
  ++generation_;
  if (!Check(cudaStreamSynchronize(stream_), "waiting for the device")) return nullptr;
  if (buffer.data != nullptr) Check(cudaFree(buffer.data), "freeing memory");
  buffer = {};
  if (!Check(cudaMalloc(&buffer.data, bytes), "memory for intermediate results")) return nullptr;
  buffer.bytes = bytes;
  return buffer.data;
}

}  // namespace kvasir
