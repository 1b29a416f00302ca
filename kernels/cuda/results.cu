#include "kernels/cuda/results.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.cuh"
#include "kernels/sampling.h"

namespace kvasir {
namespace {

constexpr int kThreads = 256;
constexpr size_t kFirstPinnedBytes = size_t{64} << 10;

__global__ void ResolveKernel(int32_t* ids, int count, const int32_t* tokens) {
  gpu::WaitForPreviousKernel();
  const int i = int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x);
  if (i < count && ids[i] < 0) ids[i] = tokens[~ids[i]];
}

}  // namespace

StepResults::~StepResults() {
  cudaStreamSynchronize(context_.stream());
  for (Step& step : steps_) {
    for (const std::span<std::byte> part : step.pinned) cudaFreeHost(part.data());
    if (step.done != nullptr) cudaEventDestroy(step.done);
  }
  if (tokens_ != nullptr) cudaFree(tokens_);
  if (previous_ != nullptr) cudaFree(previous_);
}

void StepResults::Start(int num_samples) {
  KVASIR_CHECK(started_ - finished_ < kOpen, "{} steps are open", started_ - finished_);
  // The step before ends here. Its tokens are those that are named now.
  if (Step& before = steps_[size_t((started_ + 1) % kOpen)]; started_ > finished_ && !before.recorded) Record(before);
  const int last = num_taken_;
  std::swap(tokens_, previous_);
  num_samples_ = num_samples;
  num_taken_ = 0;
  Step& step = steps_[size_t(started_++ % kOpen)];
  step.part = step.used = 0;
  step.recorded = false;
  step.wanted.clear();
  if (!context_.status().ok()) return;
  if (step.done == nullptr && !context_.Check(cudaEventCreateWithFlags(&step.done, cudaEventDisableTiming), "making an event"))
    return;
  if (num_samples <= capacity_) return;
  // Rare: as many at once as there have never been.
  const int capacity = std::max(1024, 2 * num_samples);
  int32_t *tokens = nullptr, *previous = nullptr;
  const size_t bytes = size_t(capacity) * sizeof(int32_t);
  if (!context_.Check(cudaMalloc(reinterpret_cast<void**>(&tokens), bytes), "memory for sampled tokens") ||
      !context_.Check(cudaMalloc(reinterpret_cast<void**>(&previous), bytes), "memory for sampled tokens")) {
    return;
  }
  if (last > 0) {
    context_.Check(
        cudaMemcpyAsync(previous, previous_, size_t(last) * sizeof(int32_t), cudaMemcpyDeviceToDevice, context_.stream()),
        "copying sampled tokens");
  }
  context_.Check(cudaStreamSynchronize(context_.stream()), "waiting for the device");
  cudaFree(tokens_);
  cudaFree(previous_);
  tokens_ = tokens, previous_ = previous, capacity_ = capacity;
}

int32_t* StepResults::TakeTokens(int count) {
  if (started_ == finished_ || num_taken_ + count > num_samples_ || tokens_ == nullptr) return nullptr;
  return tokens_ + std::exchange(num_taken_, num_taken_ + count);
}

void StepResults::Resolve(int32_t* ids, int count) {
  KVASIR_CHECK(previous_ != nullptr, "tokens are named and no step was sampled before");
  Launch(ResolveKernel, dim3(unsigned(count + kThreads - 1) / kThreads), kThreads, 0, context_.stream(), ids, count,
         static_cast<const int32_t*>(previous_));
  context_.CheckLaunch("taking tokens of the step before");
}

std::byte* StepResults::TakePinned(Step& step, size_t bytes) {
  constexpr size_t kAlign = 64;
  for (; step.part < step.pinned.size(); ++step.part, step.used = 0) {
    const std::span<std::byte> part = step.pinned[step.part];
    if (step.used + bytes > part.size()) continue;
    return part.data() + std::exchange(step.used, (step.used + bytes + kAlign - 1) / kAlign * kAlign);
  }
  const size_t size = std::max(bytes, step.pinned.empty() ? kFirstPinnedBytes : 2 * step.pinned.back().size());
  void* memory = nullptr;
  if (!context_.Check(cudaHostAlloc(&memory, size, cudaHostAllocDefault), "pinning memory for results")) return nullptr;
  step.pinned.push_back({static_cast<std::byte*>(memory), size});
  return TakePinned(step, bytes);
}

void StepResults::Collect(const void* device, size_t bytes, std::function<void(const std::byte*)> read) {
  if (!context_.status().ok()) return;
  if (started_ == finished_) {
    std::vector<std::byte> host(bytes);
    context_.Download(host.data(), device, bytes);
    if (context_.status().ok()) read(host.data());
    return;
  }
  Step& step = steps_[size_t((started_ - 1) % kOpen)];
  std::byte* const host = TakePinned(step, bytes);
  if (host == nullptr) return;
  context_.Check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, context_.stream()), "copying results");
  Record(step);
  step.wanted.push_back({host, std::move(read)});
}

void StepResults::Record(Step& step) {
  if (context_.status().ok()) context_.Check(cudaEventRecord(step.done, context_.stream()), "recording an event");
  step.recorded = true;
}

Status StepResults::Finish() {
  KVASIR_CHECK(started_ > finished_, "no step to finish");
  Step& step = steps_[size_t(finished_++ % kOpen)];
  if (!step.recorded) Record(step);
  if (context_.status().ok()) context_.Check(cudaEventSynchronize(step.done), "waiting for a step");
  if (context_.status().ok())
    for (const Wanted& wanted : step.wanted) wanted.read(wanted.at);
  step.wanted.clear();
  return context_.status();
}

}  // namespace kvasir
