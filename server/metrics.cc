#include "server/metrics.h"

#include <unistd.h>

#include <algorithm>
#include <ctime>

#include <cstdio>

#include <fmt/format.h>

namespace kvasir {
namespace {

constexpr double kFirstToken[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kInterToken[] = {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
constexpr double kLatency[] = {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
constexpr double kChoices[] = {1, 2, 5, 10, 20};
constexpr double kHttpSeconds[] = {.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60};

// Fixed labels: what a client sends never becomes a label.
constexpr std::string_view kRouteNames[] = {
    "/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics",  "/version",
    "/tokenize",       "/detokenize",          "render",     "/",       "unmatched", "refused"};
constexpr const char* kClasses[] = {"2xx", "3xx", "4xx", "5xx"};

std::vector<double> OneTwoFive(int64_t max) {
  std::vector<double> bounds;
  for (int64_t decade = 1; decade <= max; decade *= 10) {
    for (const int64_t step : {1, 2, 5}) {
      if (decade * step <= max) bounds.push_back(double(decade * step));
    }
  }
  if (bounds.empty()) bounds.push_back(1);
  return bounds;
}

std::string LabelValue(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out.push_back('\\');
    if (c == '\n') {
      out += "\\n";
    } else {
      out.push_back(c);
    }
  }
  return out;
}

void Header(std::string& out, std::string_view name, std::string_view type, std::string_view help) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void Line(std::string& out, std::string_view name, std::string_view labels, double value) {
  if (labels.empty()) {
    fmt::format_to(std::back_inserter(out), "{} {}\n", name, value);
  } else {
    fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", name, labels, value);
  }
}

void One(std::string& out, std::string_view name, std::string_view type, std::string_view help, std::string_view labels,
         double value) {
  Header(out, name, type, help);
  Line(out, name, labels, value);
}

// Resident memory and CPU time, from /proc.
void AppendProcess(std::string& out) {
  if (FILE* file = std::fopen("/proc/self/statm", "r")) {
    long size = 0, resident = 0;
    if (std::fscanf(file, "%ld %ld", &size, &resident) == 2) {
      const double page = double(sysconf(_SC_PAGESIZE));
      One(out, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", "", double(resident) * page);
      One(out, "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", "", double(size) * page);
    }
    std::fclose(file);
  }
  One(out, "process_cpu_seconds_total", "counter", "User and system CPU time spent in seconds.", "",
      double(std::clock()) / CLOCKS_PER_SEC);
}

}  // namespace

Histogram::Histogram(std::span<const double> bounds) : bounds_(bounds.begin(), bounds.end()), counts_(bounds.size() + 1) {}

void Histogram::Observe(double value) {
  const size_t bucket = size_t(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin());
  counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

void Histogram::Append(std::string& out, std::string_view name, std::string_view help, std::string_view labels) const {
  Header(out, name, "histogram", help);
  int64_t total = 0;
  const std::string_view comma = labels.empty() ? "" : ",";
  for (size_t i = 0; i < bounds_.size(); ++i) {
    total += counts_[i].load(std::memory_order_relaxed);
    fmt::format_to(std::back_inserter(out), "{}_bucket{{{}{}le=\"{}\"}} {}\n", name, labels, comma, bounds_[i], total);
  }
  total += counts_.back().load(std::memory_order_relaxed);
  fmt::format_to(std::back_inserter(out), "{}_bucket{{{}{}le=\"+Inf\"}} {}\n", name, labels, comma, total);
  Line(out, fmt::format("{}_sum", name), labels, sum_.load(std::memory_order_relaxed));
  Line(out, fmt::format("{}_count", name), labels, double(total));
}

ServerMetrics::ServerMetrics(int64_t max_model_len)
    : time_to_first_token_(kFirstToken),
      inter_token_(kInterToken),
      time_per_output_token_(kInterToken),
      e2e_(kLatency),
      queue_(kLatency),
      inference_(kLatency),
      prefill_(kLatency),
      decode_(kLatency),
      prompt_tokens_(OneTwoFive(max_model_len)),
      generation_tokens_(OneTwoFive(max_model_len)),
      max_generation_tokens_(OneTwoFive(max_model_len)),
      max_tokens_(OneTwoFive(max_model_len)),
      computed_tokens_(OneTwoFive(max_model_len)),
      n_(kChoices),
      http_seconds_(kHttpSeconds) {
  static_assert(std::size(kRouteNames) == kRouteCount);
}

void ServerMetrics::ObserveRequest(const RequestTimes& times) {
  e2e_.Observe(times.e2e);
  queue_.Observe(times.queue);
  prefill_.Observe(times.prefill);
  decode_.Observe(times.decode);
  inference_.Observe(times.inference);
  if (times.time_per_output_token >= 0) time_per_output_token_.Observe(times.time_per_output_token);
  prompt_tokens_.Observe(double(times.prompt_tokens));
  generation_tokens_.Observe(double(times.generation_tokens));
  max_generation_tokens_.Observe(double(times.max_generation_tokens));
  max_tokens_.Observe(double(times.max_tokens));
  computed_tokens_.Observe(double(times.prompt_tokens - times.cached_tokens));
  n_.Observe(double(times.n));
}

void ServerMetrics::CountHttp(std::string_view route, std::string_view, int status, double seconds) {
  size_t index = kRouteCount - 2;
  for (size_t i = 0; i < kRouteCount; ++i) {
    if (kRouteNames[i] == route) index = i;
  }
  const size_t group = status < 300 ? 0 : status < 400 ? 1 : status < 500 ? 2 : 3;
  http_[index][group].fetch_add(1, std::memory_order_relaxed);
  http_seconds_.Observe(seconds);
}

void ServerMetrics::AppendRequests(std::string& out, const std::string& labels) const {
  Header(out, "vllm:request_success_total", "counter", "Choices that ended, by reason.");
  constexpr const char* kReasons[] = {"stop", "length", "abort", "error"};
  for (size_t i = 0; i < 4; ++i) {
    Line(out, "vllm:request_success_total", fmt::format("{},finished_reason=\"{}\"", labels, kReasons[i]),
         double(finished_[i].load()));
  }
  time_to_first_token_.Append(out, "vllm:time_to_first_token_seconds", "From the arrival of a request to its first token.",
                              labels);
  inter_token_.Append(out, "vllm:inter_token_latency_seconds", "Between two tokens of a choice.", labels);
  inter_token_.Append(out, "vllm:time_per_output_token_seconds", "Between two tokens of a choice (older name).", labels);
  time_per_output_token_.Append(out, "vllm:request_time_per_output_token_seconds",
                                "Mean time per token after the first, by request.", labels);
  e2e_.Append(out, "vllm:e2e_request_latency_seconds", "From arrival to the last token.", labels);
  queue_.Append(out, "vllm:request_queue_time_seconds", "From arrival to the first step with this request.", labels);
  inference_.Append(out, "vllm:request_inference_time_seconds", "From the first step to the last token.", labels);
  prefill_.Append(out, "vllm:request_prefill_time_seconds", "From the first step to the first token.", labels);
  decode_.Append(out, "vllm:request_decode_time_seconds", "From the first token to the last.", labels);
  prompt_tokens_.Append(out, "vllm:request_prompt_tokens", "Prompt tokens of a request.", labels);
  generation_tokens_.Append(out, "vllm:request_generation_tokens", "Tokens generated for a request, all choices.", labels);
  max_generation_tokens_.Append(out, "vllm:request_max_num_generation_tokens", "Tokens of a request's longest choice.", labels);
  max_tokens_.Append(out, "vllm:request_params_max_tokens", "The max_tokens of a request.", labels);
  computed_tokens_.Append(out, "vllm:request_prefill_kv_computed_tokens", "Prompt tokens not found in the prefix cache.", labels);
  n_.Append(out, "vllm:request_params_n", "The n of a request.", labels);
}

void ServerMetrics::AppendServer(std::string& out, const Snapshot& snapshot) const {
  Header(out, "http_requests_total", "counter", "Answers by route and class of status.");
  for (size_t i = 0; i < kRouteCount; ++i) {
    for (size_t c = 0; c < kClassCount; ++c) {
      const int64_t count = http_[i][c].load(std::memory_order_relaxed);
      if (count > 0)
        Line(out, "http_requests_total", fmt::format("handler=\"{}\",status=\"{}\"", kRouteNames[i], kClasses[c]), double(count));
    }
  }
  http_seconds_.Append(out, "http_request_duration_seconds", "From the end of the request's headers to the end of the answer.",
                       "");
  One(out, "kvasir_http_connections", "gauge", "Open HTTP connections.", "", double(connections_.load()));
  One(out, "kvasir_http_refused_connections_total", "counter", "Connections closed because the limit was reached.", "",
      double(refused_connections_.load()));
  One(out, "kvasir_slow_clients_total", "counter", "Streams cut off because the client did not read.", "",
      double(slow_clients_.load()));
  One(out, "kvasir_open_calls", "gauge", "Requests between arrival and end.", "", double(snapshot.open_calls));
  One(out, "kvasir_ready", "gauge", "1 while new requests are accepted.", "", snapshot.healthy && !snapshot.draining ? 1 : 0);
  const EngineStats& engine = snapshot.engine;
  One(out, "kvasir_engine_steps_total", "counter", "Steps of the engine.", "", double(engine.steps));
  One(out, "kvasir_requests_accepted_total", "counter", "Requests the engine took.", "", double(engine.requests_accepted));
  One(out, "kvasir_requests_rejected_total", "counter", "Requests refused because the queue was full or the server was closing.",
      "", double(engine.requests_rejected));
  One(out, "kvasir_requests_ended_total", "counter", "Requests that got their end.", "", double(engine.requests_ended));
  One(out, "kvasir_requests_cancelled_total", "counter", "Requests whose client left or cancelled.", "",
      double(engine.requests_cancelled));
  One(out, "kvasir_requests_failed_total", "counter", "Requests that ended with an error.", "", double(engine.requests_failed));
  One(out, "kvasir_predicted_wait_seconds", "gauge", "How long a new request would wait.", "", engine.predicted_wait_seconds);
  const KvCacheStats& kv = engine.kv;
  One(out, "kvasir_kv_blocks", "gauge", "KV blocks in the pool.", "", double(kv.total_blocks));
  One(out, "kvasir_kv_blocks_used", "gauge", "KV blocks held by requests.", "", double(kv.used_blocks));
  One(out, "kvasir_kv_blocks_cached", "gauge", "KV blocks kept for reuse, given up when needed.", "", double(kv.cached_blocks));
  One(out, "kvasir_kv_blocks_free", "gauge", "KV blocks that hold nothing.", "", double(kv.free_blocks));
  One(out, "kvasir_kv_host_blocks", "gauge", "KV blocks that the host's memory holds at most.", "", double(kv.host_total_blocks));
  One(out, "kvasir_kv_host_blocks_used", "gauge", "KV blocks in the host's memory.", "", double(kv.host_used_blocks));
  One(out, "kvasir_kv_moved_out_blocks_total", "counter", "KV blocks moved to the host's memory.", "",
      double(kv.moved_out_blocks));
  One(out, "kvasir_kv_moved_in_blocks_total", "counter", "KV blocks moved back to the device.", "", double(kv.moved_in_blocks));
  One(out, "kvasir_kv_host_hit_tokens_total", "counter", "Prompt tokens found in the host's memory.", "",
      double(kv.host_hit_tokens));
  One(out, "kvasir_kv_evicted_blocks_total", "counter", "Cached KV blocks given up.", "", double(kv.evicted_blocks));
  One(out, "kvasir_kv_copied_blocks_total", "counter", "KV blocks copied before they were written.", "",
      double(kv.copied_blocks));
  AppendProcess(out);
}

std::string ServerMetrics::Text(const Snapshot& snapshot) const {
  const EngineStats& engine = snapshot.engine;
  const KvCacheStats& kv = engine.kv;
  const std::string labels = fmt::format("model_name=\"{}\",engine=\"0\"", LabelValue(snapshot.model_name));
  const double usage = kv.total_blocks > 0 ? double(kv.used_blocks) / double(kv.total_blocks) : 0;
  std::string out;
  out.reserve(32 << 10);
  One(out, "vllm:num_requests_running", "gauge", "Sequences that are being computed.", labels, double(engine.running));
  One(out, "vllm:num_requests_waiting", "gauge", "Sequences that wait.", labels, double(engine.waiting));
  One(out, "vllm:num_requests_swapped", "gauge", "Always 0; kept for older dashboards.", labels, 0);
  One(out, "vllm:kv_cache_usage_perc", "gauge", "Share of the KV pool in use, 0 to 1.", labels, usage);
  One(out, "vllm:gpu_cache_usage_perc", "gauge", "Share of the KV pool in use, 0 to 1 (older name).", labels, usage);
  One(out, "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", labels,
      double(kv.queried_tokens));
  One(out, "vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", labels, double(kv.hit_tokens));
  One(out, "vllm:gpu_prefix_cache_queries_total", "counter", "Prompt tokens looked up (older name).", labels,
      double(kv.queried_tokens));
  One(out, "vllm:gpu_prefix_cache_hits_total", "counter", "Prompt tokens found (older name).", labels, double(kv.hit_tokens));
  One(out, "vllm:prompt_tokens_total", "counter", "Prompt tokens of started requests.", labels, double(engine.prompt_tokens));
  One(out, "vllm:generation_tokens_total", "counter", "Generated tokens.", labels, double(engine.generated_tokens));
  One(out, "vllm:num_preemptions_total", "counter", "Preemptions.", labels, double(engine.preemptions));
  Header(out, "vllm:iteration_tokens_total", "histogram", "Tokens computed in a step.");
  for (size_t i = 0; i < kStepTokenBounds.size(); ++i) {
    Line(out, "vllm:iteration_tokens_total_bucket", fmt::format("{},le=\"{}\"", labels, kStepTokenBounds[i]),
         double(engine.step_tokens_le[i]));
  }
  const double all_steps = double(engine.step_tokens_le[kStepTokenBounds.size()]);
  Line(out, "vllm:iteration_tokens_total_bucket", fmt::format("{},le=\"+Inf\"", labels), all_steps);
  Line(out, "vllm:iteration_tokens_total_sum", labels, double(engine.step_tokens_sum));
  Line(out, "vllm:iteration_tokens_total_count", labels, all_steps);
  Header(out, "vllm:cache_config_info", "gauge", "How the KV cache is set up.");
  Line(out, "vllm:cache_config_info",
       fmt::format("{},block_size=\"{}\",num_gpu_blocks=\"{}\",cache_dtype=\"{}\"", labels, snapshot.block_tokens,
                   kv.total_blocks, LabelValue(snapshot.kv_cache_dtype)),
       1);
  AppendRequests(out, labels);
  AppendServer(out, snapshot);
  return out;
}

}  // namespace kvasir
