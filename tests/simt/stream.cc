#include "tests/simt/stream.h"

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "tests/simt/simt.h"

namespace kvasir::simt {
namespace {

using Work = std::function<void()>;

struct Streams {
  std::deque<Work> queue;
  size_t first = 0;  // number of the queue's first
  bool running = false;
  cudaStream_t capturing = nullptr;
  std::vector<Work> captured;
  std::map<char*, size_t> pinned;
};
Streams& The() {
  static Streams streams;
  return streams;
}

bool Capturing(cudaStream_t stream) {
  return stream != nullptr && The().capturing == stream;
}

}  // namespace

void Enqueue(cudaStream_t stream, Work work) {
  if (Capturing(stream)) {
    The().captured.push_back(std::move(work));
  } else {
    The().queue.push_back(std::move(work));
  }
}

void RunThrough(size_t last) {
  Streams& streams = The();
  if (streams.running) return;
  streams.running = true;
  while (streams.first < last && !streams.queue.empty()) {
    const Work work = std::move(streams.queue.front());
    streams.queue.pop_front();
    ++streams.first;
    work();
  }
  streams.running = false;
}
void RunQueued() {
  RunThrough(The().first + The().queue.size());
}
void DropQueued() {
  The().first += The().queue.size();
  The().queue.clear();
  The().capturing = nullptr;
  The().captured.clear();
}
size_t Queued() {
  return The().first + The().queue.size();
}

void AddPinned(void* begin, size_t bytes) {
  The().pinned[static_cast<char*>(begin)] = bytes;
}
void RemovePinned(void* begin) {
  The().pinned.erase(static_cast<char*>(begin));
}
bool IsPinned(const void* at) {
  const auto after = The().pinned.upper_bound(const_cast<char*>(static_cast<const char*>(at)));
  if (after == The().pinned.begin()) return false;
  const auto& [begin, bytes] = *std::prev(after);
  return static_cast<const char*>(at) < begin + bytes;
}

}  // namespace kvasir::simt

using kvasir::simt::The;

struct CudaStream {};
struct CudaEvent {
  size_t through = 0;  // all that was queued when it was recorded
};
struct CudaGraph {
  std::vector<std::function<void()>> work;
};
struct CudaGraphExec {
  std::shared_ptr<const CudaGraph> graph;
};

namespace kvasir::simt {
cudaError_t NextCall();  // cuda_runtime.cc: what the call answers when it is to fail
void RunThrough(size_t last);
}  // namespace kvasir::simt
using kvasir::simt::NextCall;

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (const cudaError_t error = NextCall()) return error;
  const auto copy = [](void* to, const void* from, size_t bytes) {
    const kvasir::simt::OpenDeviceMemory open;
    std::memmove(to, from, bytes);
  };
  if (kind == cudaMemcpyHostToDevice && !kvasir::simt::IsPinned(from)) {
    if (kvasir::simt::Capturing(stream)) return cudaErrorInvalidValue;
    const std::vector<char> staged(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    kvasir::simt::Enqueue(stream, [=] { copy(to, staged.data(), bytes); });
  } else if (kind == cudaMemcpyDeviceToHost && !kvasir::simt::IsPinned(to)) {
    if (kvasir::simt::Capturing(stream)) return cudaErrorInvalidValue;
    kvasir::simt::RunQueued();
    copy(to, from, bytes);
  } else {
    kvasir::simt::Enqueue(stream, [=] { copy(to, from, bytes); });
  }
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = NextCall()) return error;
  kvasir::simt::Enqueue(stream, [=] {
    const kvasir::simt::OpenDeviceMemory open;
    kvasir::simt::DeviceSet(to, value, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CudaStream;
  return NextCall();
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return NextCall();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = NextCall()) return error;
  if (kvasir::simt::Capturing(stream)) return cudaErrorInvalidValue;
  kvasir::simt::RunQueued();
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  return NextCall();  // there is one order
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CudaEvent;
  return NextCall();
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return NextCall();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t error = NextCall()) return error;
  if (kvasir::simt::Capturing(stream)) return cudaErrorInvalidValue;
  event->through = kvasir::simt::Queued();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t error = NextCall()) return error;
  kvasir::simt::RunThrough(event->through);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (const cudaError_t error = NextCall()) return error;
  return The().first >= event->through ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (const cudaError_t error = NextCall()) return error;
  if (The().capturing != nullptr) return cudaErrorInvalidValue;
  The().capturing = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (const cudaError_t error = NextCall()) return error;
  if (!kvasir::simt::Capturing(stream)) return cudaErrorInvalidValue;
  The().capturing = nullptr;
  *graph = new CudaGraph{std::move(The().captured)};
  The().captured.clear();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = nullptr;
  if (const cudaError_t error = NextCall()) return error;
  *exec = new CudaGraphExec{std::make_shared<const CudaGraph>(*graph)};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return NextCall();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (const cudaError_t error = NextCall()) return error;
  kvasir::simt::Enqueue(stream, [graph = exec->graph] {
    for (const auto& work : graph->work) work();
  });
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return NextCall();
}
