#include "bench/engine_null_bench.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>

#include "fmt/format.h"
#include "kernels/rng.h"
#include "memory/kv_cache.h"
#include "scheduler/engine.h"

namespace kvasir {
namespace {

double NowNanos() {
  return double(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

// Time this thread has computed: what other processes take from a busy machine does not count. Too slow for single calls.
double ThreadNanos() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return double(time.tv_sec) * 1e9 + double(time.tv_nsec);
}

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, size_t(q * double(values.size())))];
}

EngineNullResult Figure(std::string id, std::string case_name, double value, std::string unit, double ceiling) {
  return {std::move(id), std::move(case_name), value, std::move(unit), ceiling, ceiling > 0 ? value / ceiling : value};
}

class NullExecutor : public Executor {
 public:
  Status Launch(const StepBatch& batch, StepResult& result) override {
    for (size_t i = 0; i < batch.samples.size(); ++i) {
      result.samples[i].token = 7;
      result.samples[i].finite = true;
    }
    return OkStatus();
  }
};

class NullSink : public TokenSink {
 public:
  void OnEvent(TokenEvent&& event) override { tokens += event.kind == TokenEvent::Kind::kToken; }
  int64_t tokens = 0;
};

// An engine whose sequences never end by themselves.
class NullEngine {
 public:
  NullEngine(int running, int64_t max_waiting)
      : cache_({.num_blocks = int64_t{running} * 160 + 4096, .block_tokens = 16, .fingerprint = "null"}) {
    config_.max_step_tokens = std::max(2048, running);
    config_.max_running = running;
    config_.max_waiting = max_waiting;
    config_.limits = {
        .vocab_size = 32000, .max_model_len = 32768, .pool_tokens = cache_.config().num_blocks * 16, .block_tokens = 16};
    engine_ = std::make_unique<Engine>(config_, &cache_, &executor_, &clock_);
  }
  ValidatedRequest MakeRequest() {
    RequestDraft draft;
    for (int i = 0; i < 24; ++i) draft.prompt.push_back(int32_t(rng_.Below(32000)));
    draft.max_tokens = 32000;
    draft.sampling.seed = 1;
    return *ValidatedRequest::Make(std::move(draft), config_.limits);
  }
  std::vector<RequestId> Fill(int64_t count) {
    std::vector<RequestId> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(*engine_->Submit(MakeRequest(), std::make_shared<NullSink>()));
    return ids;
  }
  void Warm() {
    for (int i = 0; i < 64; ++i) engine_->Step();
  }
  double MicrosPerStep(int steps) {
    const double start = ThreadNanos();
    for (int i = 0; i < steps; ++i) engine_->Step();
    return (ThreadNanos() - start) / steps / 1e3;
  }
  Engine& engine() { return *engine_; }

 private:
  SteadyClock clock_;
  Rng rng_{5};
  EngineConfig config_;
  KvCache cache_;
  NullExecutor executor_;
  std::unique_ptr<Engine> engine_;
};

void StepCost(const EngineNullOptions& options, std::vector<EngineNullResult>& results) {
  constexpr std::pair<int, double> kCases[] = {{1, 1.5}, {64, 5}, {256, 12}, {1024, 45}};
  for (const auto& [running, bar] : kCases) {
    NullEngine null(running, running + 1);
    null.Fill(running);
    null.Warm();
    // Whole blocks, so that each repeat has its share of block ends; and few enough that no sequence ends.
    const int steps = std::clamp(16384 / running / 16 * 16, 160, 2048);
    std::vector<double> times;
    for (int i = 0; i < options.repeats; ++i) times.push_back(null.MicrosPerStep(steps));
    results.push_back(Figure("b1", fmt::format("{} running", running), Quantile(times, 0.5), "us/step", bar));
    if (!options.allocations) continue;
    const int64_t before = options.allocations();
    null.MicrosPerStep(steps);
    const double per_step = double(options.allocations() - before) / steps;
    results.push_back(Figure("b4", fmt::format("{} running", running), per_step, "allocations/step", 0));
  }
}

void QueueCost(const EngineNullOptions& options, std::vector<EngineNullResult>& results) {
  constexpr int64_t kWaiting[] = {1, 100, 1000, 10000};
  std::vector<std::unique_ptr<NullEngine>> engines;
  for (const int64_t waiting : kWaiting) {
    engines.push_back(std::make_unique<NullEngine>(64, 20000));
    engines.back()->Fill(64);
    engines.back()->engine().Step();
    engines.back()->Fill(waiting);
    engines.back()->Warm();
  }
  std::vector<std::vector<double>> times(engines.size());
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (size_t i = 0; i < engines.size(); ++i) times[i].push_back(engines[i]->MicrosPerStep(512));
  }
  const double alone = Quantile(times[0], 0.5);
  for (size_t i = 0; i < engines.size(); ++i) {
    results.push_back(Figure("b2", fmt::format("64 running, {} waiting over 1 waiting", kWaiting[i]),
                             Quantile(times[i], 0.5) / alone, "ratio", 1.05));
  }
  // Into and out of a queue of 10,000: the caller's part, and the engine's.
  NullEngine& full = *engines.back();
  constexpr int kCalls = 2000;
  std::vector<ValidatedRequest> requests;
  for (int i = 0; i < kCalls; ++i) requests.push_back(full.MakeRequest());
  const auto sink = std::make_shared<NullSink>();
  std::vector<RequestId> ids;
  std::vector<double> submit, cancel;
  for (int i = 0; i < kCalls; ++i) {
    const double start = NowNanos();
    ids.push_back(*full.engine().Submit(std::move(requests[size_t(i)]), sink));
    submit.push_back(NowNanos() - start);
  }
  const double step = full.MicrosPerStep(1) - alone;
  for (const RequestId id : ids) {
    const double start = NowNanos();
    full.engine().Cancel(id);
    cancel.push_back(NowNanos() - start);
  }
  const double cancel_step = full.MicrosPerStep(1) - alone;
  results.push_back(Figure("b2", "enqueue into 10000, caller p99", Quantile(submit, 0.99) / 1e3, "us", 1));
  results.push_back(Figure("b2", "enqueue into 10000, engine mean", step / kCalls, "us", 1));
  results.push_back(Figure("b2", "cancel among 10000, caller p99", Quantile(cancel, 0.99) / 1e3, "us", 1));
  results.push_back(Figure("b2", "cancel among 10000, engine mean", cancel_step / kCalls, "us", 1));
}

std::vector<int32_t> RandomTokens(Rng& rng, int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(int32_t(rng.Below(32000)));
  return tokens;
}

void MatchCost(const EngineNullOptions& options, std::vector<EngineNullResult>& results) {
  KvCache cache({.num_blocks = 20000, .block_tokens = 16, .fingerprint = "null"});
  Rng rng(9);
  const TenantSalt salt{};
  std::vector<BlockCopy> copies;
  const std::vector<int32_t> prompt = RandomTokens(rng, 8193);
  for (int i = 0; i < 20; ++i) {
    const std::vector<int32_t> tokens = i == 10 ? prompt : RandomTokens(rng, 8193);
    SequenceKv kv;
    cache.Grow(kv, 8193, 0, copies);
    cache.Publish(kv, tokens, 8193, salt);
    cache.Release(kv);
  }
  SequenceKv kv;
  cache.ReserveTables(kv, 16384);
  std::vector<double> times;
  for (int i = 0; i < 50 * options.repeats; ++i) {
    const double start = NowNanos();
    const int32_t matched = cache.Match(prompt, salt, 8192, false, kv);
    times.push_back((NowNanos() - start) / 1e3);
    cache.Release(kv);
    if (matched != 8192) return results.push_back(Figure("b3", "FAILED: the prompt was not found", 0, "us", 25));
  }
  results.push_back(Figure("b3", "match of 8192 tokens, 512 blocks", Quantile(times, 0.5), "us", 25));
}

// Every block is cached and unused; one more is asked for, again and again.
void EvictCost(std::vector<EngineNullResult>& results) {
  for (const int64_t blocks : {int64_t{1000}, int64_t{100'000}, int64_t{1'000'000}}) {
    KvCache cache({.num_blocks = blocks, .block_tokens = 16, .fingerprint = "null"});
    Rng rng(11);
    const TenantSalt salt{};
    std::vector<BlockCopy> copies;
    for (int64_t left = blocks; left > 0; left -= 10) {
      const std::vector<int32_t> tokens = RandomTokens(rng, 160);
      SequenceKv kv;
      cache.Grow(kv, int32_t(std::min<int64_t>(10, left) * 16), 0, copies);
      cache.Publish(kv, tokens, kv.num_tokens, salt);
      cache.Release(kv);
    }
    SequenceKv kv;
    const int64_t count = std::min<int64_t>(blocks / 2, 50'000);
    cache.ReserveTables(kv, count * 16);
    std::vector<double> each;
    each.reserve(size_t(count));
    for (int64_t i = 0; i < count; ++i) {
      const double start = NowNanos();
      cache.Grow(kv, int32_t((i + 1) * 16), int32_t(i * 16), copies);
      each.push_back(NowNanos() - start);
    }
    const double p50 = Quantile(each, 0.5), p999 = Quantile(each, 0.999);
    cache.Release(kv);
    results.push_back(Figure("b6", fmt::format("evict + allocate, {} blocks, p50", blocks), p50, "ns", 300));
    results.push_back(Figure("b6", fmt::format("evict + allocate, {} blocks, p99.9", blocks), p999, "ns", 3000));
  }
}

}  // namespace

std::vector<EngineNullResult> RunEngineNullBench(const EngineNullOptions& options) {
  std::vector<EngineNullResult> results;
  StepCost(options, results);
  QueueCost(options, results);
  MatchCost(options, results);
  EvictCost(results);
  return results;
}

std::string ToJsonLine(const EngineNullResult& result) {
  return fmt::format(R"({{"id":"{}","case":"{}","value":{:.4g},"unit":"{}","ceiling":{:.4g},"ratio":{:.4g}}})", result.id,
                     result.case_name, result.value, result.unit, result.ceiling, result.ratio);
}

}  // namespace kvasir
