// Metrics: what /metrics shows. Requests are timed here from the engine's events; engine gauges are read from EngineStats when a
// scraper asks. Names, labels and buckets are vLLM's, so that its dashboards work, and kvasir's own for the rest. Lock-free to
// record; label sets are fixed.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/engine_config.h"

namespace kvasir {

class Histogram {
 public:
  explicit Histogram(std::span<const double> bounds);  // ascending; +Inf is implied
  void Observe(double value);
  // name_bucket, name_sum and name_count lines; `labels` like model_name="x",engine="0".
  void Append(std::string& out, std::string_view name, std::string_view help, std::string_view labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<std::atomic<int64_t>> counts_;  // one per bucket, not cumulative; the last is +Inf
  std::atomic<double> sum_{0};
};

// One finished request as the metrics see it. Times in seconds; negative = did not happen.
struct RequestTimes {
  double e2e = -1, queue = -1, prefill = -1, decode = -1, inference = -1, time_per_output_token = -1;
  int64_t prompt_tokens = 0, cached_tokens = 0, generation_tokens = 0, max_generation_tokens = 0, max_tokens = 0, n = 1;
};

class ServerMetrics {
 public:
  explicit ServerMetrics(int64_t max_model_len);

  void ObserveTimeToFirstToken(double seconds) { time_to_first_token_.Observe(seconds); }
  void ObserveInterToken(double seconds) { inter_token_.Observe(seconds); }
  void ObserveRequest(const RequestTimes& times);
  enum class Outcome : uint8_t { kStop, kLength, kAbort, kError };
  void CountFinished(Outcome outcome) { finished_[size_t(outcome)].fetch_add(1, std::memory_order_relaxed); }
  void CountHttp(std::string_view route, std::string_view method, int status, double seconds);  // route: one of kRoutes
  void CountSlowClient() { slow_clients_.fetch_add(1, std::memory_order_relaxed); }
  void SetConnections(int64_t count) { connections_.store(count, std::memory_order_relaxed); }
  void CountRefusedConnection() { refused_connections_.fetch_add(1, std::memory_order_relaxed); }

  struct Snapshot {
    EngineStats engine;
    std::string model_name;
    int block_tokens = 16;
    std::string kv_cache_dtype;
    bool draining = false, healthy = true;
    int64_t open_calls = 0;
  };
  std::string Text(const Snapshot& snapshot) const;

 private:
  void AppendRequests(std::string& out, const std::string& labels) const;
  void AppendServer(std::string& out, const Snapshot& snapshot) const;

  Histogram time_to_first_token_, inter_token_, time_per_output_token_, e2e_, queue_, inference_, prefill_, decode_;
  Histogram prompt_tokens_, generation_tokens_, max_generation_tokens_, max_tokens_, computed_tokens_, n_;
  std::array<std::atomic<int64_t>, 4> finished_{};
  std::atomic<int64_t> slow_clients_{0}, connections_{0}, refused_connections_{0};
  static constexpr size_t kRouteCount = 12, kClassCount = 4;  // 2xx..5xx
  std::array<std::array<std::atomic<int64_t>, kClassCount>, kRouteCount> http_{};
  Histogram http_seconds_;
};

}  // namespace kvasir
