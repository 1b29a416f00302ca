// What steps sample and score, on its way to the host: results are copied to pinned memory behind the kernels that make them and
// read when somebody waits for the step (Device::StartResults, FinishResults). The tokens stay on the device, too, where the next
// step takes them by name (PendingToken in kernels/sampling.h). Owned by CudaDevice, used on the engine thread.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <vector>

#include "kernels/cuda/context.h"

namespace kvasir {

class StepResults {
 public:
  explicit StepResults(CudaContext* context) : context_(*context) {}
  ~StepResults();
  StepResults(const StepResults&) = delete;
  StepResults& operator=(const StepResults&) = delete;

  // What is collected from here on is a step's with so many samples. At most kOpen are started and not finished.
  void Start(int num_samples);
  Status Finish();  // of the oldest

  // Gives `bytes` at `device` to `read`: when the step that was started last is finished, or now where none is open.
  void Collect(const void* device, size_t bytes, std::function<void(const std::byte*)> read);
  // Device memory for the tokens of `count` more samples of the step; nullptr where none is open, or it has no more.
  int32_t* TakeTokens(int count);
  // Puts tokens of the step before in the place of the ids that name them. Device memory.
  void Resolve(int32_t* ids, int count);

 private:
  static constexpr int kOpen = 2;
  struct Wanted {
    const std::byte* at;
    std::function<void(const std::byte*)> read;
  };
  struct Step {
    std::vector<std::span<std::byte>> pinned;  // grows to what a step takes; a part is never moved
    size_t part = 0, used = 0;                 // of the pinned memory
    std::vector<Wanted> wanted;
    cudaEvent_t done = nullptr;
    bool recorded = false;
  };
  void Record(Step& step);
  std::byte* TakePinned(Step& step, size_t bytes);

  CudaContext& context_;
  std::array<Step, kOpen> steps_;  // step i at i % kOpen
  int64_t started_ = 0, finished_ = 0;
  int32_t *tokens_ = nullptr, *previous_ = nullptr;  // [capacity_] each, of the device
  int capacity_ = 0, num_samples_ = 0, num_taken_ = 0;
};

}  // namespace kvasir
