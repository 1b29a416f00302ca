// Time as the engine sees it: a seam, so that simulation and tests run on a virtual clock. Monotonic microseconds; wall time
// is used only for logs and the `created` field of answers.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvasir {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t NowMicros() const = 0;
};

class SteadyClock : public Clock {
 public:
  int64_t NowMicros() const override {
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
};

class FakeClock : public Clock {
 public:
  int64_t NowMicros() const override { return now_micros_; }
  void Advance(int64_t micros) { now_micros_ += micros; }

 private:
  int64_t now_micros_ = 1'000'000;
};

}  // namespace kvasir
