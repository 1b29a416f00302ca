// Throughput: how many requests end per second of busy time, measured with forgetting, so that Retry-After follows the load of
// the last half minute. Used by Engine.
#pragma once

#include <cmath>
#include <cstdint>

namespace kvasir {

class Throughput {
 public:
  // One step that took `micros` of the engine's time and ended `completions` requests.
  void AddStep(int64_t micros, int64_t completions) {
    pending_seconds_ += double(micros) * 1e-6;
    pending_completions_ += double(completions);
    if (pending_seconds_ < kFoldSeconds) return;
    const double keep = std::exp(-pending_seconds_ / kMemorySeconds);
    seconds_ = seconds_ * keep + pending_seconds_;
    completions_ = completions_ * keep + pending_completions_;
    pending_seconds_ = pending_completions_ = 0;
  }
  double completions_per_second() const {
    const double seconds = seconds_ + pending_seconds_;
    return seconds > 0 ? (completions_ + pending_completions_) / seconds : 0;
  }

 private:
  static constexpr double kMemorySeconds = 30, kFoldSeconds = 0.1;
  double seconds_ = 0, completions_ = 0, pending_seconds_ = 0, pending_completions_ = 0;
};

}  // namespace kvasir
