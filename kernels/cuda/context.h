// What all of the CUDA backend shares: the device, its compute stream, the first error, memory taken once, and the way small host
// arrays reach kernels. Owned by CudaDevice, used on the engine thread only.
//
// Errors: a CUDA call or kernel that fails makes the context fail for good (the driver keeps such errors too). Ops go on being
// called until the step ends and mean nothing; Device::Synchronize then says what came first, and nothing of the step is used.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

class CudaContext {
 public:
  // Device number `index` of this machine.
  static StatusOr<std::unique_ptr<CudaContext>> Create(int index);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  cudaStream_t stream() const { return stream_; }
  const std::string& name() const { return name_; }  // "NVIDIA H200, sm_90"
  int multiprocessors() const { return multiprocessors_; }
  int architecture() const { return architecture_; }         // 90 for sm_90
  bool warpgroups() const { return warpgroups_; }            // kernels of hopper.cuh are used
  size_t total_bytes() const { return total_bytes_; }        // of memory
  size_t shared_per_block() const { return shared_bytes_; }  // the most a block may ask for

  // Keeps the first error and says whether there was none.
  bool Check(cudaError_t error, std::string_view what);
  // After Launch: whether the kernel could be started.
  bool CheckLaunch(std::string_view kernel) { return Check(cudaPeekAtLastError(), kernel); }
  const Status& status() const { return status_; }
  Status Synchronize();

  // Aligned to 256 bytes and zeroed.
  StatusOr<void*> Allocate(size_t bytes, std::string_view what);
  void Free(void* buffer);
  size_t Available() const;
  // A copy in the order of the compute stream, or beside it: on a stream of its own that goes on from where Fork was called, and
  // that the compute stream waits for at Join.
  void CopyBlocks(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, bool beside);
  void Fork();
  void Join();
  // Pinned memory of the host.
  StatusOr<void*> AllocateHost(size_t bytes, std::string_view what);
  void FreeHost(void* memory);

  // A copy of a host array on the device, for kernels started later. The array may change when this returns. nullptr when the
  // context has failed or the array is empty. Upload's is there for the current op, UploadStep's until its next call, and always
  // in the same place until it has outgrown that.
  template <typename T>
  T* Upload(std::span<const T> host) {
    return static_cast<T*>(UploadBytes(op_ring_, host.data(), host.size_bytes()));
  }
  std::byte* UploadStep(std::span<const std::byte> host) {
    return static_cast<std::byte*>(UploadBytes(step_ring_, host.data(), host.size_bytes()));
  }
  // The same for an array that every step like this one brings again: a recorded step finds it in a place of its own.
  template <typename T>
  const T* UploadAgain(std::span<const T> host) {
    return recording_ ? static_cast<const T*>(KeepBytes(host.data(), host.size_bytes())) : Upload(host);
  }
  // Recording: kernels, copies on the device and memsets are not done but noted, to be done as often as wanted. What cannot be
  // noted, or would be another one the next time (uploads, waiting, more memory), spoils the recording: the op goes on and means
  // nothing. A recording holds addresses; it is no longer to be used when generation() has changed.
  bool StartRecording();
  cudaGraphExec_t FinishRecording();  // nullptr: it was spoiled
  bool recording() const { return recording_; }
  uint64_t generation() const { return generation_; }

  // Copies device memory back and waits.
  void Download(void* host, const void* device, size_t bytes);

  // Device memory for the op being computed (kStepUnits: for the step), kept and grown to the largest ever asked for. One buffer
  // for each use: those of one op that live at the same time must differ.
  enum class Scratch : uint8_t { kInputs, kScales, kPartials, kRows, kExperts, kExpertIds, kSample, kUnits, kStepUnits, kCount };
  template <typename T>
  T* Temporary(Scratch use, size_t count) {
    return static_cast<T*>(TemporaryBytes(use, count * sizeof(T)));
  }

 private:
  CudaContext() = default;
  // Uploads go round a ring of segments: pinned host memory and its twin on the device. A segment is written again only when
  // what was uploaded from it has been read.
  static constexpr int kSegments = 4;
  struct Ring {
    bool of_steps = false;  // a segment for each upload, and one place for all on the device
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    size_t segment_bytes = 0;
    int segment = 0;
    size_t used = 0;  // of the segment
    std::array<cudaEvent_t, kSegments> done = {};
  };
  const void* KeepBytes(const void* host, size_t bytes);
  void* UploadBytes(Ring& ring, const void* host, size_t bytes);
  void* TemporaryBytes(Scratch use, size_t bytes);
  bool MakeRing(Ring& ring, size_t segment_bytes);
  static void FreeRing(Ring& ring);

  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
  };

  std::string name_;
  cudaStream_t stream_ = nullptr, copy_stream_ = nullptr;
  cudaEvent_t forked_ = nullptr, copied_ = nullptr;
  bool copies_beside_ = false;  // since the last Join
  bool recording_ = false, spoiled_ = false;
  uint64_t generation_ = 0;
  std::map<std::string, void*> kept_;  // KeepBytes: content and where it is
  int multiprocessors_ = 0, architecture_ = 0;
  bool warpgroups_ = false;
  size_t shared_bytes_ = 0, total_bytes_ = 0;
  Status status_ = OkStatus();
  Ring op_ring_, step_ring_ = {.of_steps = true};
  std::vector<Ring> outgrown_;  // freed when the device has been waited for
  std::array<Buffer, size_t(Scratch::kCount)> scratch_ = {};
  std::map<void*, size_t> allocations_;
  std::set<void*> host_allocations_;
};

}  // namespace kvasir
