// The engine step by step on a virtual clock: what each request is told, in order, in the situations that the simulator meets by
// chance.
#include "scheduler/engine.h"

#include "gtest/gtest.h"
#include "tests/scheduler/shadow_executor.h"

namespace kvasir {
namespace {

using Kind = TokenEvent::Kind;

struct Recorder : TokenSink {
  void OnEvent(TokenEvent&& event) override { events.push_back(std::move(event)); }
  void OnStepEnd() override { ++step_ends; }
  std::vector<int32_t> Tokens(int choice = 0) const {
    std::vector<int32_t> tokens;
    for (const TokenEvent& event : events) {
      if (event.kind == Kind::kToken && event.choice == choice) tokens.push_back(event.sample.token);
    }
    return tokens;
  }
  int Count(Kind kind) const {
    return int(std::count_if(events.begin(), events.end(), [&](const TokenEvent& event) { return event.kind == kind; }));
  }
  bool ended() const { return !events.empty() && events.back().kind == Kind::kEnd; }
  const Status& status() const { return events.back().status; }
  std::vector<TokenEvent> events;
  int step_ends = 0;
};

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    config_.max_step_tokens = 16;
    config_.max_running = 4;
    config_.check_invariants = true;
    config_.limits = {.vocab_size = 1000, .max_model_len = 200, .block_tokens = 4, .priority_allowed = true};
  }
  void Build(int64_t num_blocks) {
    engine_.reset();  // before what it uses
    kv_ = std::make_unique<KvCache>(KvCacheConfig{.num_blocks = num_blocks, .block_tokens = 4, .fingerprint = "t"});
    executor_ = std::make_unique<ShadowExecutor>(*kv_, -1, 1000, &clock_, 1);
    config_.limits.pool_tokens = num_blocks * 4;
    engine_ = std::make_unique<Engine>(config_, kv_.get(), executor_.get(), &clock_);
  }
  RequestDraft Draft(int prompt_tokens, int64_t max_tokens, int first = 1) {
    RequestDraft draft;
    for (int i = 0; i < prompt_tokens; ++i) draft.prompt.push_back(first + i);
    draft.max_tokens = max_tokens;
    return draft;
  }
  // The shadow of tenant 0 for every request; the executor only looks ids up.
  RequestId Submit(RequestDraft draft, const std::shared_ptr<Recorder>& sink, int64_t poison_at = -1) {
    auto request = ValidatedRequest::Make(std::move(draft), config_.limits);
    EXPECT_TRUE(request.ok()) << request.status();
    const auto id = engine_->Submit(*std::move(request), sink);
    EXPECT_TRUE(id.ok()) << id.status();
    if (id.ok()) executor_->Add(*id, {.poison_at = poison_at});
    return id.value_or(0);
  }
  void RunAll() {
    for (int i = 0; i < 5000 && engine_->Step(); ++i) {
    }
    EXPECT_EQ(executor_->failure(), "");
    EXPECT_EQ(engine_->Stats().kv.used_blocks, 0);
  }

  FakeClock clock_;
  EngineConfig config_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<ShadowExecutor> executor_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, TellsStartTokensFinishEnd) {
  Build(32);
  const auto sink = std::make_shared<Recorder>();
  Submit(Draft(5, 3), sink);
  RunAll();
  ASSERT_EQ(sink->events.size(), 6);
  EXPECT_EQ(sink->events[0].kind, Kind::kStarted);
  EXPECT_EQ(sink->events[0].cached_tokens, 0);
  EXPECT_EQ(sink->events[4].kind, Kind::kFinished);
  EXPECT_EQ(sink->events[4].reason, FinishReason::kLength);
  EXPECT_TRUE(sink->status().ok());
  EXPECT_EQ(sink->step_ends, 3);
  EXPECT_FALSE(engine_->Step()) << "nothing to do";
}

TEST_F(EngineTest, SecondPromptIsServedFromTheCacheWithTheSameTokens) {
  Build(32);
  const auto cold = std::make_shared<Recorder>(), warm = std::make_shared<Recorder>();
  Submit(Draft(12, 4), cold);
  RunAll();
  Submit(Draft(12, 4), warm);
  RunAll();
  EXPECT_EQ(warm->events[0].cached_tokens, 8) << "whole blocks, and one token is left to compute";
  EXPECT_EQ(warm->Tokens(), cold->Tokens());
}

TEST_F(EngineTest, StopIdEndsAndIsDelivered) {
  Build(32);
  const auto alone = std::make_shared<Recorder>(), stopped = std::make_shared<Recorder>();
  Submit(Draft(4, 6), alone);
  RunAll();
  RequestDraft draft = Draft(4, 6);
  draft.stop_token_ids = {alone->Tokens()[2]};
  Submit(draft, stopped);
  RunAll();
  ASSERT_EQ(stopped->Tokens().size(), 3);
  const TokenEvent& finished = stopped->events[stopped->events.size() - 2];
  EXPECT_EQ(finished.reason, FinishReason::kStop);
  EXPECT_EQ(finished.stop_token, alone->Tokens()[2]);
  draft.min_tokens = 3;
  const auto later = std::make_shared<Recorder>();
  Submit(draft, later);
  RunAll();
  EXPECT_NE(later->Tokens()[2], alone->Tokens()[2]) << "suppressed until min_tokens";
}

TEST_F(EngineTest, EndTokensCountUnlessIgnored) {
  Build(32);
  const auto alone = std::make_shared<Recorder>();
  Submit(Draft(4, 6), alone);
  RunAll();
  config_.limits.eos_token_ids = {alone->Tokens()[1]};
  Build(32);
  const auto ends = std::make_shared<Recorder>(), ignores = std::make_shared<Recorder>();
  Submit(Draft(4, 6), ends);
  RequestDraft draft = Draft(4, 6);
  draft.ignore_eos = true;
  Submit(draft, ignores);
  RunAll();
  EXPECT_EQ(ends->Tokens().size(), 2);
  EXPECT_EQ(ignores->Tokens(), alone->Tokens());
}

TEST_F(EngineTest, ChoicesForkAfterThePromptAndEqualThoseAlone) {
  config_.max_running = 2;  // fewer places than choices
  Build(32);
  RequestDraft draft = Draft(6, 5);
  draft.n = 3;
  const auto sink = std::make_shared<Recorder>();
  Submit(draft, sink);
  RunAll();
  EXPECT_EQ(sink->Count(Kind::kFinished), 3);
  EXPECT_EQ(sink->Count(Kind::kEnd), 1);
  EXPECT_EQ(sink->Count(Kind::kStarted), 1);
  uint64_t chain = ChainRoot(0);
  for (const int32_t token : draft.prompt) chain = ChainNext(chain, token);
  for (int choice = 0; choice < 3; ++choice) {
    uint64_t text = chain;
    std::vector<int32_t> expected;
    for (uint64_t i = 0; i < 5; ++i) {
      expected.push_back(ShadowToken(text, 0, uint64_t(choice), i, 1000, {}));
      text = ChainNext(text, expected.back());
    }
    EXPECT_EQ(sink->Tokens(choice), expected) << choice;
  }
}

TEST_F(EngineTest, PreemptionChangesNoToken) {
  Build(64);
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 4; ++i) {
    const auto sink = std::make_shared<Recorder>();
    Submit(Draft(8, 24, 100 * i + 1), sink);
    RunAll();
    expected.push_back(sink->Tokens());
  }
  Build(10);  // 40 tokens for four that want 31 each
  std::vector<std::shared_ptr<Recorder>> sinks;
  for (int i = 0; i < 4; ++i) Submit(Draft(8, 24, 100 * i + 1), sinks.emplace_back(std::make_shared<Recorder>()));
  RunAll();
  EXPECT_GT(engine_->Stats().preemptions, 0);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(sinks[size_t(i)]->Tokens(), expected[size_t(i)]) << i;
}

TEST_F(EngineTest, ReserveToFinishNeverPreempts) {
  config_.reserve_to_finish = true;
  Build(10);
  std::vector<std::shared_ptr<Recorder>> sinks;
  for (int i = 0; i < 4; ++i) Submit(Draft(8, 24, 100 * i + 1), sinks.emplace_back(std::make_shared<Recorder>()));
  RunAll();
  EXPECT_EQ(engine_->Stats().preemptions, 0);
  for (const auto& sink : sinks) EXPECT_TRUE(sink->ended() && sink->status().ok());
}

TEST_F(EngineTest, PreemptionsOfOneRequestAreLimited) {
  config_.max_preemptions = 1;
  Build(10);
  std::vector<std::shared_ptr<Recorder>> sinks;
  for (int i = 0; i < 4; ++i) Submit(Draft(8, 24, 100 * i + 1), sinks.emplace_back(std::make_shared<Recorder>()));
  RunAll();
  EXPECT_LE(engine_->Stats().preemptions, 4) << "one each";
  for (const auto& sink : sinks) EXPECT_TRUE(sink->ended() && sink->status().ok());
}

TEST_F(EngineTest, PromptScoresComeOnceAndInOrderAcrossChunksAndCache) {
  config_.max_chunk = 5;
  Build(32);
  const auto warm_up = std::make_shared<Recorder>(), sink = std::make_shared<Recorder>();
  Submit(Draft(17, 2), warm_up);
  RunAll();
  RequestDraft draft = Draft(17, 2);
  draft.sampling.num_prompt_logprobs = 1;
  Submit(draft, sink);
  RunAll();
  ASSERT_EQ(sink->Count(Kind::kPrompt), 16);
  EXPECT_EQ(sink->events[0].cached_tokens, 0) << "every row's logits are wanted";
  for (int i = 0; i < 16; ++i) EXPECT_EQ(sink->events[size_t(i) + 1].sample.token, draft.prompt[size_t(i) + 1]);
  EXPECT_EQ(sink->Tokens(), warm_up->Tokens());
}

TEST_F(EngineTest, CancelFreesWithinTwoStepsAndEndsOnce) {
  Build(32);
  const auto sink = std::make_shared<Recorder>();
  const RequestId id = Submit(Draft(8, 50), sink);
  for (int i = 0; i < 5; ++i) engine_->Step();
  EXPECT_GT(engine_->Stats().kv.used_blocks, 0);
  engine_->Cancel(id);
  engine_->Cancel(id);
  engine_->Cancel(id + 77);
  engine_->Step();
  EXPECT_EQ(engine_->Stats().kv.used_blocks, 0);
  EXPECT_TRUE(absl::IsCancelled(sink->status()));
  EXPECT_EQ(sink->Count(Kind::kEnd), 1);
  EXPECT_EQ(sink->Count(Kind::kFinished), 1);
}

TEST_F(EngineTest, CancelOfOneChoiceLeavesTheOthers) {
  Build(64);
  RequestDraft draft = Draft(30, 8);
  draft.n = 3;
  const auto whole = std::make_shared<Recorder>(), part = std::make_shared<Recorder>();
  Submit(draft, whole);
  RunAll();
  const RequestId id = Submit(draft, part);
  engine_->Cancel(id, 0);  // the one that would compute the prompt
  engine_->Step();
  engine_->Step();
  engine_->Step();
  engine_->Cancel(id, 2);
  RunAll();
  EXPECT_TRUE(part->Tokens(0).empty());
  EXPECT_EQ(part->Tokens(1), whole->Tokens(1));
  EXPECT_LT(part->Tokens(2).size(), 8);
  EXPECT_TRUE(part->status().ok()) << "one choice was finished";
}

TEST_F(EngineTest, DeadlinesEndWaitingAndRunningRequests) {
  config_.max_running = 1;
  Build(32);
  const auto running = std::make_shared<Recorder>(), waiting = std::make_shared<Recorder>();
  RequestDraft draft = Draft(4, 100);
  draft.deadline_micros = clock_.NowMicros() + 1'000'000;
  Submit(draft, running);
  Submit(draft, waiting);
  engine_->Step();
  clock_.Advance(2'000'000);
  EXPECT_FALSE(engine_->Step());
  EXPECT_TRUE(absl::IsDeadlineExceeded(running->status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(waiting->status()));
  EXPECT_EQ(waiting->Count(Kind::kStarted), 0);
  EXPECT_EQ(engine_->Stats().kv.used_blocks, 0);
}

TEST_F(EngineTest, AFullQueueAnswersAtOnceWithRetryAfter) {
  config_.max_waiting = 2;
  Build(32);
  const auto sink = std::make_shared<Recorder>();
  Submit(Draft(4, 4), sink);
  Submit(Draft(4, 4), std::make_shared<Recorder>());
  int retry_after = 0;
  const auto third =
      engine_->Submit(*ValidatedRequest::Make(Draft(4, 4), config_.limits), std::make_shared<Recorder>(), &retry_after);
  EXPECT_TRUE(absl::IsResourceExhausted(third.status()));
  EXPECT_GE(retry_after, 1);
  EXPECT_LE(retry_after, 60);
  EXPECT_EQ(engine_->Stats().requests_rejected, 1);
  RunAll();
  EXPECT_TRUE(sink->status().ok());
}

TEST_F(EngineTest, ARowWithoutFiniteLogitsEndsOnlyItsRequest) {
  Build(64);
  const auto good = std::make_shared<Recorder>(), bad = std::make_shared<Recorder>(), alone = std::make_shared<Recorder>();
  Submit(Draft(4, 6), alone);
  RunAll();
  Submit(Draft(4, 6), good);
  Submit(Draft(4, 6, 50), bad, 2);
  RunAll();
  EXPECT_EQ(good->Tokens(), alone->Tokens());
  EXPECT_EQ(bad->Tokens().size(), 2);
  EXPECT_TRUE(absl::IsInternal(bad->status()));
}

TEST_F(EngineTest, ADeviceErrorEndsEverythingAndRefusesMore) {
  Build(32);
  executor_->FailAtStep(3);
  const auto first = std::make_shared<Recorder>(), second = std::make_shared<Recorder>();
  Submit(Draft(4, 20), first);
  Submit(Draft(4, 20, 9), second);
  while (engine_->Step()) {
  }
  EXPECT_FALSE(engine_->Healthy());
  EXPECT_TRUE(absl::IsUnavailable(first->status()));
  EXPECT_TRUE(absl::IsUnavailable(second->status()));
  EXPECT_TRUE(absl::IsUnavailable(
      engine_->Submit(*ValidatedRequest::Make(Draft(4, 4), config_.limits), std::make_shared<Recorder>()).status()));
  EXPECT_EQ(engine_->Stats().kv.used_blocks, 0);
}

TEST_F(EngineTest, DrainFinishesWhatIsOpenAndRefusesTheRest) {
  Build(32);
  const auto sink = std::make_shared<Recorder>();
  Submit(Draft(4, 10), sink);
  engine_->Drain(60'000'000);
  EXPECT_TRUE(sink->ended() && sink->status().ok());
  EXPECT_TRUE(absl::IsUnavailable(
      engine_->Submit(*ValidatedRequest::Make(Draft(4, 4), config_.limits), std::make_shared<Recorder>()).status()));
}

TEST_F(EngineTest, DrainTimeoutAndDestructionTellEveryEnd) {
  Build(32);
  const auto late = std::make_shared<Recorder>();
  Submit(Draft(4, 100), late);
  engine_->Drain(0);
  ASSERT_TRUE(late->ended());
  EXPECT_TRUE(absl::IsUnavailable(late->status()));
  Build(32);
  const auto dropped = std::make_shared<Recorder>();
  Submit(Draft(4, 100), dropped);
  engine_.reset();
  ASSERT_TRUE(dropped->ended());
  EXPECT_TRUE(absl::IsUnavailable(dropped->status()));
}

TEST_F(EngineTest, PriorityRunsEarlierAndGivesWayLast) {
  config_.order = OrderPolicy::kPriority;
  config_.max_running = 1;
  Build(32);
  std::vector<int> order;
  struct Noting : Recorder {
    Noting(std::vector<int>* list, int number) : list_(list), number_(number) {}
    void OnEvent(TokenEvent&& event) override {
      if (event.kind == Kind::kStarted) list_->push_back(number_);
      Recorder::OnEvent(std::move(event));
    }
    std::vector<int>* list_;
    int number_;
  };
  for (const int priority : {5, 1, 3}) {
    RequestDraft draft = Draft(4, 3);
    draft.priority = priority;
    Submit(draft, std::make_shared<Noting>(&order, priority));
  }
  RunAll();
  EXPECT_EQ(order, (std::vector<int>{1, 3, 5}));
}

TEST_F(EngineTest, WatchdogSeesAStepThatIsOverdue) {
  struct Slow : Executor {
    Status Launch(const StepBatch& batch, StepResult& result) override {
      clock->Advance(31'000'000);
      healthy_during = engine->Healthy();
      for (size_t i = 0; i < batch.samples.size(); ++i) result.samples[i] = {.token = 1};
      return OkStatus();
    }
    FakeClock* clock = nullptr;
    Engine* engine = nullptr;
    bool healthy_during = true;
  } slow;
  KvCache kv({.num_blocks = 8, .block_tokens = 4, .fingerprint = "t"});
  config_.limits.pool_tokens = 32;
  Engine engine(config_, &kv, &slow, &clock_);
  slow.clock = &clock_;
  slow.engine = &engine;
  EXPECT_TRUE(engine.Submit(*ValidatedRequest::Make(Draft(4, 1), config_.limits), std::make_shared<Recorder>()).ok());
  engine.Step();
  EXPECT_FALSE(slow.healthy_during);
  EXPECT_TRUE(engine.Healthy()) << "it came back";
}

TEST_F(EngineTest, CountersAgreeWithWhatWasTold) {
  Build(32);
  std::vector<std::shared_ptr<Recorder>> sinks;
  for (int i = 0; i < 3; ++i) Submit(Draft(9, 4, 1 + 20 * i), sinks.emplace_back(std::make_shared<Recorder>()));
  RunAll();
  const EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.requests_accepted, 3);
  EXPECT_EQ(stats.requests_ended, 3);
  EXPECT_EQ(stats.prompt_tokens, 27);
  EXPECT_EQ(stats.computed_prompt_tokens, 27);
  EXPECT_EQ(stats.generated_tokens, 12);
  EXPECT_EQ(stats.step_tokens_sum, 27 + 9);
  EXPECT_EQ(stats.step_tokens_le[kStepTokenBounds.size()], stats.steps);
}

}  // namespace
}  // namespace kvasir
