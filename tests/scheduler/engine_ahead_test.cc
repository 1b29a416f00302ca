// The engine with two steps under way: what is planned before it is known, what is thrown away, and when it waits. That tokens
// are the same in every world is the simulator's.
#include <memory>

#include "gtest/gtest.h"
#include "kernels/clock.h"
#include "scheduler/engine.h"
#include "tests/scheduler/shadow_executor.h"

namespace kvasir {
namespace {

// The shadow, and what it was asked for.
class TracingExecutor : public Executor {
 public:
  explicit TracingExecutor(ShadowExecutor* shadow) : shadow_(shadow) { shadow->SetDepth(2); }
  int depth() const override { return 2; }
  Status Launch(const StepBatch& batch, StepResult& result) override {
    most_under_way = std::max(most_under_way, ++under_way_);
    rows += int64_t(batch.token_ids.size());
    for (const int32_t id : batch.token_ids) pending_ids += IsPending(id);
    for (const SampleRow& sample : batch.samples) pending_outputs += IsPending(sample.pending);
    return shadow_->Launch(batch, result);
  }
  Status Finish() override {
    --under_way_;
    return shadow_->Finish();
  }
  int most_under_way = 0;
  int64_t rows = 0, pending_ids = 0, pending_outputs = 0;

 private:
  ShadowExecutor* shadow_;
  int under_way_ = 0;
};

class Tokens : public TokenSink {
 public:
  void OnEvent(TokenEvent&& event) override {
    if (event.kind == TokenEvent::Kind::kToken) tokens[event.choice].push_back(event.sample.token);
    if (event.kind == TokenEvent::Kind::kFinished) ++finished;
    if (event.kind == TokenEvent::Kind::kEnd) ++ended, status = event.status;
  }
  void OnStepEnd() override {}
  std::map<int, std::vector<int32_t>> tokens;
  int finished = 0, ended = 0;
  Status status;
};

class EngineAheadTest : public testing::Test {
 protected:
  void Build(int64_t num_blocks) {
    config_.max_step_tokens = 16;
    config_.max_running = 4;
    config_.check_invariants = true;
    config_.limits = {.vocab_size = 1000, .max_model_len = 200, .pool_tokens = num_blocks * 4, .block_tokens = 4};
    kv_ = std::make_unique<KvCache>(KvCacheConfig{.num_blocks = num_blocks, .block_tokens = 4, .fingerprint = "t"});
    shadow_ = std::make_unique<ShadowExecutor>(*kv_, -1, 1000, &clock_, 1);
    executor_ = std::make_unique<TracingExecutor>(shadow_.get());
    engine_ = std::make_unique<Engine>(config_, kv_.get(), executor_.get(), &clock_);
  }
  std::shared_ptr<Tokens> Submit(RequestDraft draft, RequestId* id = nullptr) {
    auto sink = std::make_shared<Tokens>();
    auto request = ValidatedRequest::Make(std::move(draft), config_.limits);
    EXPECT_TRUE(request.ok()) << request.status();
    const auto submitted = engine_->Submit(*std::move(request), sink);
    EXPECT_TRUE(submitted.ok()) << submitted.status();
    shadow_->Add(*submitted, {});
    if (id != nullptr) *id = *submitted;
    return sink;
  }
  static RequestDraft Draft(int prompt_tokens, int64_t max_tokens, int first = 1) {
    RequestDraft draft;
    for (int i = 0; i < prompt_tokens; ++i) draft.prompt.push_back(first + i);
    draft.max_tokens = max_tokens;
    return draft;
  }
  void RunAll() {
    for (int i = 0; i < 5000 && engine_->Step(); ++i) {
    }
    EXPECT_EQ(shadow_->failure(), "");
    EXPECT_EQ(engine_->Stats().kv.used_blocks, 0);
  }
  // What the shadow's model says after the draft's prompt.
  static std::vector<int32_t> Expected(const RequestDraft& draft, int count, uint64_t stream = 0) {
    uint64_t chain = ChainRoot(0);
    for (const int32_t token : draft.prompt) chain = ChainNext(chain, token);
    std::vector<int32_t> tokens;
    for (int i = 0; i < count; ++i) {
      tokens.push_back(ShadowToken(chain, draft.sampling.seed, stream, uint64_t(i), 1000, {}));
      chain = ChainNext(chain, tokens.back());
    }
    return tokens;
  }

  FakeClock clock_;
  EngineConfig config_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<ShadowExecutor> shadow_;
  std::unique_ptr<TracingExecutor> executor_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineAheadTest, EveryTokenButTheFirstIsComputedBeforeTheLastOneIsRead) {
  Build(20);
  const RequestDraft draft = Draft(5, 9);
  const auto sink = Submit(draft);
  RunAll();
  EXPECT_EQ(sink->tokens[0], Expected(draft, 9));
  EXPECT_EQ(executor_->most_under_way, 2);
  EXPECT_EQ(executor_->pending_ids, 8);  // the last token is sampled and not computed
  EXPECT_EQ(executor_->pending_outputs, 8);
  EXPECT_EQ(executor_->rows, 5 + 8) << "the end by length is known ahead: nothing is computed past it";
}

TEST_F(EngineAheadTest, ATokenPastAStopIsThrownAway) {
  Build(20);
  RequestDraft draft = Draft(5, 50);
  const std::vector<int32_t> said = Expected(draft, 4);
  draft.stop_token_ids = {said[3]};
  const auto sink = Submit(draft);
  RunAll();
  EXPECT_EQ(sink->tokens[0], said);
  EXPECT_EQ(sink->ended, 1);
  EXPECT_EQ(executor_->rows, 5 + 4) << "one row more than needed";
}

TEST_F(EngineAheadTest, CancelledUnderWay) {
  Build(20);
  RequestId id = 0;
  const auto sink = Submit(Draft(5, 50), &id);
  const auto other = Submit(Draft(6, 12, 50));
  for (int i = 0; i < 4; ++i) engine_->Step();
  engine_->Cancel(id);
  RunAll();
  EXPECT_EQ(sink->ended, 1);
  EXPECT_TRUE(absl::IsCancelled(sink->status)) << sink->status;
  EXPECT_LT(sink->tokens[0].size(), 10u);
  EXPECT_EQ(other->tokens[0], Expected(Draft(6, 12, 50), 12));
}

TEST_F(EngineAheadTest, ChoicesForkBeforeTheyGoOn) {
  Build(40);
  RequestDraft draft = Draft(7, 6);
  draft.n = 3;
  const auto sink = Submit(draft);
  RunAll();
  for (int choice = 0; choice < 3; ++choice) EXPECT_EQ(sink->tokens[choice], Expected(draft, 6, uint64_t(choice))) << choice;
  EXPECT_EQ(executor_->pending_ids, 3 * 4) << "the first tokens of the choices are waited for, those after them are not";
}

TEST_F(EngineAheadTest, MemoryIsTakenAwayOnlyWhenNothingIsUnderWay) {
  Build(9);
  const RequestDraft first = Draft(8, 20), second = Draft(8, 20, 60);
  const auto one = Submit(first), two = Submit(second);
  RunAll();
  EXPECT_GT(engine_->Stats().preemptions, 0);
  EXPECT_EQ(one->tokens[0], Expected(first, 20));
  EXPECT_EQ(two->tokens[0], Expected(second, 20));
}

TEST_F(EngineAheadTest, AnErrorEndsWhatIsUnderWay) {
  Build(20);
  shadow_->FailAtStep(5);
  const auto one = Submit(Draft(5, 50)), two = Submit(Draft(5, 50, 70));
  RunAll();
  EXPECT_FALSE(engine_->Healthy());
  for (const auto& sink : {one, two}) {
    EXPECT_EQ(sink->ended, 1);
    EXPECT_TRUE(absl::IsUnavailable(sink->status)) << sink->status;
    EXPECT_LE(sink->tokens[0].size(), 4u) << "what was computed after the error was told";
  }
}

}  // namespace
}  // namespace kvasir
