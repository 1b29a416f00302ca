// The engine on its own thread with many callers: every accepted request gets exactly one end, whoever submits, cancels, drains
// or destroys meanwhile. Run it under TSan.
#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

#include "gtest/gtest.h"
#include "kernels/rng.h"
#include "scheduler/engine.h"

namespace kvasir {
namespace {

class QuickExecutor : public Executor {
 public:
  explicit QuickExecutor(int64_t fail_at = -1) : fail_at_(fail_at) {}
  Status Launch(const StepBatch& batch, StepResult& result) override {
    if (++steps_ == fail_at_) return Internal("the device was lost (injected)");
    for (size_t i = 0; i < batch.samples.size(); ++i) result.samples[i] = {.token = int32_t(batch.samples[i].counter % 50)};
    return OkStatus();
  }

 private:
  int64_t steps_ = 0, fail_at_;
};

// Counts ends and notes anything after one.
struct CountingSink : TokenSink {
  void OnEvent(TokenEvent&& event) override {
    if (ends.load() > 0) after_end = true;
    if (event.kind == TokenEvent::Kind::kEnd) ++ends;
    if (event.kind == TokenEvent::Kind::kToken) ++tokens;
  }
  std::atomic<int> ends{0}, tokens{0};
  std::atomic<bool> after_end{false};
};

class EngineThreadTest : public testing::Test {
 protected:
  EngineThreadTest() : kv_({.num_blocks = 40, .block_tokens = 4, .fingerprint = "t"}) {
    config_.max_running = 8;
    config_.max_step_tokens = 32;
    config_.max_waiting = 16;
    config_.limits = {.vocab_size = 100, .max_model_len = 100, .pool_tokens = 160, .block_tokens = 4};
  }
  ValidatedRequest Make(Rng& rng, int64_t max_tokens) {
    RequestDraft draft;
    for (int64_t i = rng.Between(1, 20); i > 0; --i) draft.prompt.push_back(int32_t(rng.Below(100)));
    draft.max_tokens = max_tokens;
    draft.n = rng.Between(1, 3);
    return *ValidatedRequest::Make(std::move(draft), config_.limits);
  }
  // Submits `count` requests, cancelling some; keeps the accepted ones' sinks.
  void Submitter(Engine& engine, uint64_t seed, int count) {
    Rng rng(seed);
    for (int i = 0; i < count; ++i) {
      auto sink = std::make_shared<CountingSink>();
      const auto id = engine.Submit(Make(rng, rng.Between(1, 20)), sink);
      if (!id.ok()) {
        if (absl::IsResourceExhausted(id.status())) std::this_thread::yield();
        continue;
      }
      if (rng.Chance(0.3)) engine.Cancel(*id, rng.Chance(0.5) ? -1 : 0);
      (void)engine.Stats();
      (void)engine.Healthy();
      std::lock_guard lock(mutex_);
      sinks_.push_back(std::move(sink));
    }
  }
  void ExpectOneEndEach() {
    for (const auto& sink : sinks_) {
      EXPECT_EQ(sink->ends.load(), 1);
      EXPECT_FALSE(sink->after_end.load());
    }
  }
  void RunSubmitters(Engine& engine, int count, const std::function<void()>& meanwhile) {
    std::vector<std::thread> threads;
    for (uint64_t i = 1; i <= 4; ++i) threads.emplace_back([&, i] { Submitter(engine, i, count); });
    meanwhile();
    for (std::thread& thread : threads) thread.join();
  }

  SteadyClock clock_;
  EngineConfig config_;
  KvCache kv_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<CountingSink>> sinks_;
};

TEST_F(EngineThreadTest, ManySubmittersThenDrain) {
  QuickExecutor executor;
  Engine engine(config_, &kv_, &executor, &clock_);
  engine.Start();
  RunSubmitters(engine, 300, [&] { engine.ResetPrefixCache(); });
  engine.Drain(60'000'000);
  EXPECT_GT(sinks_.size(), 16);
  ExpectOneEndEach();
  EXPECT_EQ(engine.Stats().kv.used_blocks, 0);
  EXPECT_EQ(engine.Stats().requests_ended, engine.Stats().requests_accepted);
}

TEST_F(EngineThreadTest, DrainWhileOthersSubmit) {
  QuickExecutor executor;
  Engine engine(config_, &kv_, &executor, &clock_);
  engine.Start();
  RunSubmitters(engine, 300, [&] { engine.Drain(1000); });
  ExpectOneEndEach();
  EXPECT_EQ(engine.Stats().kv.used_blocks, 0);
}

TEST_F(EngineThreadTest, DeviceErrorWhileOthersSubmit) {
  QuickExecutor executor(20);
  {
    Engine engine(config_, &kv_, &executor, &clock_);
    engine.Start();
    RunSubmitters(engine, 300, [] {});
    EXPECT_FALSE(engine.Healthy());
    engine.Drain(1000);
    ExpectOneEndEach();
  }
  ExpectOneEndEach();
}

TEST_F(EngineThreadTest, DestructionTellsEveryEnd) {
  QuickExecutor executor;
  {
    Engine engine(config_, &kv_, &executor, &clock_);
    engine.Start();
    RunSubmitters(engine, 50, [] {});
  }
  ExpectOneEndEach();
  EXPECT_EQ(kv_.stats().used_blocks, 0);
}

TEST_F(EngineThreadTest, APassedDeadlineEndsARequestBeforeItStarts) {
  QuickExecutor executor;
  Engine engine(config_, &kv_, &executor, &clock_);
  engine.Start();
  RequestDraft draft;
  draft.prompt = {1, 2, 3};
  draft.max_tokens = 90;
  draft.deadline_micros = clock_.NowMicros();
  const auto sink = std::make_shared<CountingSink>();
  ASSERT_TRUE(engine.Submit(*ValidatedRequest::Make(draft, config_.limits), sink).ok());
  for (int i = 0; i < 2000 && sink->ends.load() == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(sink->ends.load(), 1);
  EXPECT_EQ(sink->tokens.load(), 0);
}

}  // namespace
}  // namespace kvasir
