#include "tests/scheduler/simulator.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "scheduler/engine.h"
#include "scheduler/policies.h"
#include "tests/scheduler/shadow_executor.h"

namespace kvasir {
namespace {

// One choice as the oracle computes it: alone, without batch, cache or preemption.
struct OracleChoice {
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kLength;
  int32_t stop_token = -1;
};

struct SimRequest {
  RequestId id = 0;
  RequestDraft draft;
  uint32_t tenant = 0;
  std::vector<int32_t> end_ids;
  std::vector<uint64_t> prompt_chain;  // [prompt]: hash of the text up to and with each token
  std::vector<OracleChoice> oracle;
  int64_t poison_at = -1;
  // What has been told so far.
  bool started = false, ended = false;
  bool cancel_all = false;
  std::vector<bool> cancel_choice;
  std::vector<int32_t> told;  // tokens per choice
  std::vector<bool> finished, naturally;
  size_t prompt_events = 1;
  bool owes_step_end = false;
  Status status;
  int64_t cancelled_at_step = -1;
};

// A world of one seed. Every op can be missing (swarm testing): a bug that needs a quiet neighbourhood is found too.
class World {
 public:
  explicit World(uint64_t seed) : seed_(seed), rng_(seed, 1) { Build(); }
  SimulationOutcome Run();

  void OnEvent(SimRequest& request, TokenEvent&& event);
  void OnStepEnd(SimRequest& request);

 private:
  void Build();
  void BuildGroups();
  void SizePool(int64_t pool_tokens);
  void SubmitOne();
  RequestDraft MakeDraft();
  std::vector<int32_t> MakePrompt();
  void Predict(SimRequest& request) const;
  void CancelSomething();
  bool Step();
  void AfterStep();
  void RunOps();
  void RunToQuiet();
  void CheckEnd(SimRequest& request);
  void CheckFinished(SimRequest& request, const TokenEvent& event);
  void CheckQuiet();
  void Report(std::string what) {
    if (failure_.empty()) failure_ = std::move(what);
  }

  uint64_t seed_;
  Rng rng_;
  FakeClock clock_;
  EngineConfig config_;
  KvCacheConfig kv_config_;
  int state_group_ = -1;
  bool has_host_ = false;
  int32_t vocab_ = 0;
  int tenants_ = 1;
  bool do_cancel_ = false, do_jump_ = false, do_reset_ = false, do_deadlines_ = false, do_poison_ = false, do_scores_ = false;
  bool do_forks_ = false, do_fault_ = false, do_drain_ = false, do_abandon_ = false;
  double submit_chance_ = 0.5;
  std::vector<std::vector<int32_t>> texts_;  // prefixes that requests share
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<ShadowExecutor> executor_;
  std::vector<std::unique_ptr<SimRequest>> requests_;
  std::unique_ptr<Engine> engine_;
  bool refusing_ = false, faulted_ = false;
  int64_t published_at_fault_ = -1;
  RequestId last_started_ = 0;
  int64_t told_tokens_ = 0, steps_ = 0;
  uint64_t hash_ = 0;
  std::string failure_;
};

class SimSink : public TokenSink {
 public:
  SimSink(World* world, SimRequest* request) : world_(world), request_(request) {}
  void OnEvent(TokenEvent&& event) override { world_->OnEvent(*request_, std::move(event)); }
  void OnStepEnd() override { world_->OnStepEnd(*request_); }

 private:
  World* world_;
  SimRequest* request_;
};

void World::Build() {
  constexpr int kBlockTokens[] = {1, 2, 3, 4, 5, 8, 16, 32};
  kv_config_.block_tokens = kBlockTokens[rng_.Below(std::size(kBlockTokens))];
  const int64_t pool_tokens = rng_.Between(8, rng_.Chance(0.5) ? 60 : 400);
  BuildGroups();
  kv_config_.enable_prefix_caching = rng_.Chance(0.8);
  kv_config_.fingerprint = "shadow";
  has_host_ = rng_.Chance(0.4);
  vocab_ = int32_t(rng_.Between(6, 40));
  config_.max_step_tokens = int(rng_.Chance(0.3) ? rng_.Between(1, 6) : rng_.Between(4, 64));
  config_.max_running = int(rng_.Between(1, 12));
  config_.max_chunk = rng_.Chance(0.5) ? 0 : int(rng_.Between(1, 16));
  config_.max_waiting = rng_.Between(1, 24);
  config_.order = rng_.Chance(0.5) ? OrderPolicy::kFcfs : OrderPolicy::kPriority;
  config_.reserve_to_finish = rng_.Chance(0.25);
  config_.limits.reserve_to_finish = config_.reserve_to_finish;
  config_.max_preemptions = int(rng_.Between(1, 8));
  config_.check_invariants = true;
  config_.limits.vocab_size = vocab_;
  config_.limits.max_model_len = rng_.Between(8, 120);
  SizePool(pool_tokens);
  config_.limits.block_tokens = kv_config_.block_tokens;
  config_.limits.priority_allowed = config_.order == OrderPolicy::kPriority;
  if (rng_.Chance(0.5)) config_.limits.eos_token_ids = {0};
  tenants_ = int(rng_.Between(1, 3));
  submit_chance_ = 0.1 + 0.8 * rng_.Uniform();
  for (bool* op : {&do_cancel_, &do_jump_, &do_deadlines_, &do_scores_, &do_forks_}) *op = rng_.Chance(0.6);
  for (bool* op : {&do_reset_, &do_poison_, &do_drain_, &do_abandon_}) *op = rng_.Chance(0.3);
  do_fault_ = rng_.Chance(0.1);
  for (int i = 0; i < 3; ++i) {
    auto& text = texts_.emplace_back();
    for (int j = 0; j < 100; ++j) text.push_back(int32_t(rng_.Below(uint64_t(vocab_))));
  }
  cache_ = std::make_unique<KvCache>(kv_config_);
  executor_ = std::make_unique<ShadowExecutor>(*cache_, state_group_, vocab_, &clock_, seed_);
  executor_->SetDepth(rng_.Chance(0.5) ? 2 : 1);
  if (do_fault_) executor_->FailAtStep(rng_.Between(1, 80));
  engine_ = std::make_unique<Engine>(config_, cache_.get(), executor_.get(), &clock_);
}

// A shared beginning, often cut at a block boundary, sometimes a whole earlier conversation; then some tokens of its own.
std::vector<int32_t> World::MakePrompt() {
  const int64_t longest = std::max<int64_t>(1, std::min(config_.limits.max_model_len - 1, config_.limits.pool_tokens));
  std::vector<int32_t> prompt = texts_[rng_.Below(texts_.size())];
  if (!requests_.empty() && rng_.Chance(0.3)) {
    const SimRequest& earlier = *requests_[rng_.Below(requests_.size())];
    prompt = earlier.draft.prompt;
    const OracleChoice& said = earlier.oracle[rng_.Below(earlier.oracle.size())];
    prompt.insert(prompt.end(), said.tokens.begin(), said.tokens.end());
  }
  int64_t shared = rng_.Between(0, std::min<int64_t>(longest, int64_t(prompt.size())));
  if (rng_.Chance(0.5)) shared = shared / kv_config_.block_tokens * kv_config_.block_tokens;
  prompt.resize(size_t(shared));
  const int64_t own = shared == 0 ? rng_.Between(1, 5) : rng_.Between(0, 5);
  for (int64_t i = 0; i < own && int64_t(prompt.size()) < longest; ++i) prompt.push_back(int32_t(rng_.Below(uint64_t(vocab_))));
  return prompt;
}

// Half of the worlds have one group that keeps all; the others have groups of different sizes, with windows that are small beside
// their texts, and some end in a recurrent state. The last slot before a row must be there, so that the shadow can continue its
// chain: windows of group 0 are >= 2.
void World::BuildGroups() {
  kv_config_.groups.clear();
  const int count = rng_.Chance(0.5) ? 1 : int(rng_.Between(1, 3));
  const bool windows_only = count == 1 ? rng_.Chance(0.2) : rng_.Chance(0.25);
  int32_t window = int32_t(rng_.Between(2, 40));
  for (int g = 0; g < count; ++g) {
    const bool keeps_all = g == 0 ? !windows_only : !windows_only && g == 1 && count == 3 && rng_.Chance(0.3);
    const int64_t units = rng_.Chance(0.4) ? 1 : rng_.Between(1, 7);
    kv_config_.groups.push_back({64 * kv_config_.block_tokens * units, keeps_all ? 0 : window});
    if (!keeps_all) window = int32_t(rng_.Between(1, window));
  }
  if (count > 1 && rng_.Chance(0.4)) {
    kv_config_.groups.back().window_tokens = 2;
    state_group_ = count - 1;
  }
}

// Room for pool_tokens tokens of the text that takes most; a pool too small for any text is enlarged.
void World::SizePool(int64_t pool_tokens) {
  const KvArenaPlan plan = PlanKvArena(kv_config_.groups);
  std::vector<KvGroupShape>& shapes = config_.limits.kv_groups;
  int64_t& extents = config_.limits.pool_extents;
  extents = 0;
  config_.limits.chunk_tokens = ChunkTokens(INT32_MAX, config_.max_step_tokens, config_.max_chunk);
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    shapes.push_back({int32_t(plan.groups[g].blocks_per_extent) * kv_config_.block_tokens, kv_config_.groups[g].window_tokens});
    extents += ExtentsAtOnce(shapes.back(), pool_tokens, config_.limits.chunk_tokens);
  }
  const bool plain = shapes.size() == 1 && shapes[0].window_tokens == 0;
  if (plain) extents = std::max<int64_t>(2, pool_tokens / kv_config_.block_tokens);
  extents = std::max<int64_t>(extents, 2);
  kv_config_.num_blocks = extents;
  if (has_host_) kv_config_.host_blocks = rng_.Between(1, 3 * extents);
  config_.limits.pool_tokens = LongestText(shapes, extents, config_.limits.chunk_tokens, 100'000);
}

RequestDraft World::MakeDraft() {
  RequestDraft draft;
  draft.prompt = MakePrompt();
  const int64_t room = std::max<int64_t>(1, std::min(config_.limits.max_model_len - int64_t(draft.prompt.size()),
                                                     config_.limits.pool_tokens - int64_t(draft.prompt.size()) + 1));
  if (rng_.Chance(0.9)) draft.max_tokens = rng_.Between(1, rng_.Chance(0.7) ? std::min<int64_t>(room, 12) : room);
  if (rng_.Chance(0.3)) draft.min_tokens = rng_.Between(0, draft.max_tokens.value_or(room));
  if (do_forks_ && rng_.Chance(0.4)) draft.n = rng_.Between(2, rng_.Chance(0.2) ? 16 : 4);
  draft.ignore_eos = rng_.Chance(0.3);
  if (rng_.Chance(0.5)) draft.stop_token_ids = {int32_t(rng_.Below(uint64_t(vocab_))), int32_t(rng_.Below(uint64_t(vocab_)))};
  draft.sampling.seed = rng_.Below(4);
  if (do_scores_ && rng_.Chance(0.3)) draft.sampling.num_prompt_logprobs = int32_t(rng_.Below(3));
  if (config_.order == OrderPolicy::kPriority) draft.priority = int32_t(rng_.Below(3));
  if (do_deadlines_ && rng_.Chance(0.3)) draft.deadline_micros = clock_.NowMicros() + rng_.Between(0, 200'000);
  return draft;
}

void World::Predict(SimRequest& request) const {
  const RequestDraft& draft = request.draft;
  uint64_t chain = ChainRoot(request.tenant);
  for (const int32_t token : draft.prompt) request.prompt_chain.push_back(chain = ChainNext(chain, token));
  for (int64_t choice = 0; choice < draft.n; ++choice) {
    OracleChoice& oracle = request.oracle.emplace_back();
    uint64_t text = chain;
    for (int64_t i = 0; i < *draft.max_tokens; ++i) {
      const std::span<const int32_t> suppressed =
          i < draft.min_tokens ? std::span<const int32_t>(request.end_ids) : std::span<const int32_t>();
      const int32_t token = ShadowToken(text, draft.sampling.seed, uint64_t(choice), uint64_t(i), vocab_, suppressed);
      oracle.tokens.push_back(token);
      text = ChainNext(text, token);
      if (std::find(request.end_ids.begin(), request.end_ids.end(), token) != request.end_ids.end()) {
        oracle.reason = FinishReason::kStop;
        oracle.stop_token = token;
        break;
      }
    }
  }
}

void World::SubmitOne() {
  auto made = ValidatedRequest::Make(MakeDraft(), config_.limits);
  if (!made.ok()) return;  // a prompt without room: refused at the edge
  auto owner = std::make_unique<SimRequest>();
  SimRequest& request = *owner;
  request.draft = **made;
  request.tenant = uint32_t(rng_.Below(uint64_t(tenants_)));
  request.draft.salt[5] = std::byte(request.tenant);
  made = ValidatedRequest::Make(request.draft, config_.limits);
  request.end_ids = request.draft.stop_token_ids;
  if (!request.draft.ignore_eos) {
    for (const int32_t id : config_.limits.eos_token_ids) request.end_ids.push_back(id);
  }
  if (do_poison_ && rng_.Chance(0.1)) request.poison_at = int64_t(rng_.Below(6));
  const size_t n = size_t(request.draft.n);
  request.cancel_choice.resize(n);
  request.told.resize(n);
  request.finished.resize(n);
  request.naturally.resize(n);
  Predict(request);
  int retry_after = -1;
  const auto id = engine_->Submit(*std::move(made), std::make_shared<SimSink>(this, &request), &retry_after);
  if (!id.ok()) {
    const bool full = absl::IsResourceExhausted(id.status()) && engine_->Stats().waiting >= config_.max_waiting;
    if (!full && !(absl::IsUnavailable(id.status()) && (refusing_ || faulted_))) Report("refused: " + Message(id.status()));
    if (retry_after < 1 || retry_after > 60) Report(fmt::format("retry after {} s", retry_after));
    return;
  }
  if (refusing_ || faulted_) Report("accepted while draining or failed");
  request.id = *id;
  executor_->Add(*id, {.tenant = request.tenant, .poison_at = request.poison_at});
  requests_.push_back(std::move(owner));
}

void World::CancelSomething() {
  if (requests_.empty() || rng_.Chance(0.1)) return engine_->Cancel(rng_.Below(1000) + 1000000, -1);  // nobody's id
  SimRequest& request = *requests_[requests_.size() - 1 - rng_.Below(std::min<uint64_t>(requests_.size(), 8))];
  if (rng_.Chance(0.5)) {
    engine_->Cancel(request.id);
    if (!request.ended) request.cancel_all = true;
  } else {
    const int choice = int(rng_.Below(uint64_t(request.draft.n) + 1));  // one past the last is ignored
    engine_->Cancel(request.id, choice);
    if (choice < request.draft.n && !request.finished[size_t(choice)]) request.cancel_choice[size_t(choice)] = true;
  }
  if (request.cancelled_at_step < 0 && request.cancel_all) request.cancelled_at_step = steps_;
}

// --- what the engine tells ----------------------------------------------------------------------------------------------

void World::OnEvent(SimRequest& request, TokenEvent&& event) {
  hash_ = Mix(
      hash_, Mix(request.id, uint64_t(event.kind) << 40 | uint64_t(uint32_t(event.choice)) << 32 | uint32_t(event.sample.token)));
  hash_ = Mix(hash_, uint64_t(event.time_micros));
  request.owes_step_end = true;
  if (request.ended) return Report(fmt::format("I7: an event after the end of request {}", request.id));
  switch (event.kind) {
    case TokenEvent::Kind::kStarted:
      if (request.started) Report(fmt::format("request {} started twice", request.id));
      request.started = true;
      if (config_.order == OrderPolicy::kFcfs && request.id < last_started_) {
        Report(fmt::format("I9: request {} started after request {}", request.id, last_started_));
      }
      last_started_ = std::max(last_started_, request.id);
      if (event.cached_tokens >= int32_t(request.draft.prompt.size())) Report("the whole prompt was taken from the cache");
      return;
    case TokenEvent::Kind::kPrompt: {
      const size_t i = request.prompt_events++;
      if (request.draft.sampling.num_prompt_logprobs < 0 || i >= request.draft.prompt.size())
        return Report("a prompt score too many");
      const int32_t token = request.draft.prompt[i];
      if (event.sample.token != token || event.sample.logprob != ShadowScore(request.prompt_chain[i - 1], token)) {
        Report(fmt::format("I6: request {} got a wrong score for prompt token {}", request.id, i));
      }
      return;
    }
    case TokenEvent::Kind::kToken: {
      const size_t choice = size_t(event.choice);
      const OracleChoice& oracle = request.oracle[choice];
      const size_t i = size_t(request.told[choice]++);
      ++told_tokens_;
      if (!request.started || request.finished[choice]) Report(fmt::format("request {}: a token outside its run", request.id));
      if (i >= oracle.tokens.size() || event.sample.token != oracle.tokens[i]) {
        Report(fmt::format("I6: request {} choice {} token {} is {} but alone it is {}", request.id, choice, i,
                           event.sample.token, i < oracle.tokens.size() ? oracle.tokens[i] : -1));
      }
      return;
    }
    case TokenEvent::Kind::kFinished:
      return CheckFinished(request, event);
    case TokenEvent::Kind::kEnd:
      request.ended = true;
      request.status = event.status;
      return CheckEnd(request);
  }
}

void World::CheckFinished(SimRequest& request, const TokenEvent& event) {
  const size_t choice = size_t(event.choice);
  if (request.finished[choice]) return Report(fmt::format("I7: request {} choice {} finished twice", request.id, choice));
  request.finished[choice] = true;
  const OracleChoice& oracle = request.oracle[choice];
  switch (event.reason) {
    case FinishReason::kStop:
    case FinishReason::kLength:
      request.naturally[choice] = true;
      if (event.reason != oracle.reason || event.stop_token != oracle.stop_token ||
          request.told[choice] != int32_t(oracle.tokens.size())) {
        Report(fmt::format("I6: request {} choice {} finished after {} tokens, alone after {}", request.id, choice,
                           request.told[choice], oracle.tokens.size()));
      }
      if (request.draft.sampling.num_prompt_logprobs >= 0 && request.prompt_events != request.draft.prompt.size()) {
        Report(fmt::format("request {} finished with {} of {} prompt scores", request.id, request.prompt_events,
                           request.draft.prompt.size()));
      }
      return;
    case FinishReason::kCancelled:
      if (!request.cancel_all && !request.cancel_choice[choice])
        Report(fmt::format("request {} was cancelled by nobody", request.id));
      return;
    case FinishReason::kError:
      return;
  }
}

void World::CheckEnd(SimRequest& request) {
  for (size_t i = 0; i < request.finished.size(); ++i) {
    if (!request.finished[i]) Report(fmt::format("I7: request {} ended before its choice {}", request.id, i));
  }
  const bool natural = std::find(request.naturally.begin(), request.naturally.end(), true) != request.naturally.end();
  const bool cancelled = request.cancel_all || std::find(request.cancel_choice.begin(), request.cancel_choice.end(), true) !=
                                                   request.cancel_choice.end();
  bool right = false;
  switch (request.status.code()) {
    case StatusCode::kOk:
      right = natural;
      break;
    case StatusCode::kCancelled:
      right = cancelled;
      break;
    case StatusCode::kDeadlineExceeded:
      right = request.draft.deadline_micros > 0 && request.draft.deadline_micros <= clock_.NowMicros();
      break;
    case StatusCode::kInternal:
      right = request.poison_at >= 0;
      break;
    case StatusCode::kUnavailable:
      right = refusing_ || !engine_->Healthy();
      break;
    default:
      break;
  }
  if (!right) Report(fmt::format("I14: request {} ended with '{}' for no reason", request.id, request.status.ToString()));
}

void World::OnStepEnd(SimRequest& request) {
  if (!request.owes_step_end) Report(fmt::format("request {}: OnStepEnd without an event, or twice in a step", request.id));
  request.owes_step_end = false;
}

// --- the run --------------------------------------------------------------------------------------------------------------

bool World::Step() {
  ++steps_;
  const bool worked = engine_->Step();
  AfterStep();
  return worked;
}

void World::AfterStep() {
  if (!executor_->failure().empty()) Report("I4/I5: " + executor_->failure());
  const EngineStats stats = engine_->Stats();
  if (stats.invariant_failures > 0) {
    std::string why = "?";
    for (const auto& request : requests_) {
      if (absl::IsUnavailable(request->status)) why = Message(request->status);
    }
    Report("I1-I3, I15: " + why);
  }
  if (stats.kv.free_blocks + stats.kv.cached_blocks + stats.kv.used_blocks != kv_config_.num_blocks)
    Report("I1: blocks are missing");
  if (stats.running > config_.max_running) Report(fmt::format("{} run, the limit is {}", stats.running, config_.max_running));
  if (config_.reserve_to_finish && stats.preemptions > 0) Report("preempted under reserve_to_finish");
  if (stats.generated_tokens != told_tokens_) Report("I12: tokens counted and told differ");
  if (!faulted_ && !engine_->Healthy()) {
    faulted_ = true;
    if (!do_fault_) Report("the engine failed without a fault");
    published_at_fault_ = stats.kv.published_blocks;
  }
  if (faulted_ && stats.kv.published_blocks != published_at_fault_) Report("published after a device error");
  for (const auto& request : requests_) {
    if (request->owes_step_end) Report(fmt::format("request {} was not told of the step's end", request->id));
    if (request->cancelled_at_step >= 0 && !request->ended && steps_ > request->cancelled_at_step + 2) {
      Report(fmt::format("request {} lives on after its cancel", request->id));
    }
  }
}

void World::RunOps() {
  const int64_t ops = rng_.Between(10, 100);
  for (int64_t i = 0; i < ops && failure_.empty(); ++i) {
    if (rng_.Chance(submit_chance_)) SubmitOne();
    if (rng_.Chance(0.05)) {
      for (uint64_t burst = rng_.Below(12); burst > 0; --burst) SubmitOne();
    }
    if (do_cancel_ && rng_.Chance(0.2)) CancelSomething();
    if (do_jump_ && rng_.Chance(0.05)) clock_.Advance(rng_.Between(0, rng_.Chance(0.1) ? 86'400'000'000 : 100'000));
    if (do_reset_ && rng_.Chance(0.05)) engine_->ResetPrefixCache();
    for (int64_t steps = rng_.Between(0, 3); steps > 0; --steps) Step();
  }
}

// I10: when nothing new comes, all that was accepted ends within a bounded number of steps.
void World::RunToQuiet() {
  int64_t work = 100;
  for (const auto& request : requests_)
    work += int64_t(request->draft.prompt.size()) + *request->draft.max_tokens * request->draft.n;
  const int64_t limit = steps_ + work * (config_.max_preemptions + 2);
  while (failure_.empty() && Step()) {
    if (steps_ > limit) Report(fmt::format("I10: not done after {} steps", steps_));
  }
}

void World::CheckQuiet() {
  for (const auto& request : requests_) {
    if (!request->ended) Report(fmt::format("I7: request {} never got its end", request->id));
    if (request->owes_step_end) Report(fmt::format("request {} was not told of its last step's end", request->id));
  }
  if (cache_->stats().used_blocks != 0) Report(fmt::format("I11: {} blocks are in use at rest", cache_->stats().used_blocks));
  const Status check = cache_->Check({});
  if (!check.ok()) Report("I1-I3 at rest: " + Message(check));
}

SimulationOutcome World::Run() {
  RunOps();
  if (do_drain_ && failure_.empty()) {
    refusing_ = true;
    engine_->Drain(rng_.Chance(0.5) ? 0 : rng_.Between(1, 100'000));
    AfterStep();
    SubmitOne();
  } else if (!do_abandon_) {
    RunToQuiet();
  }
  const EngineStats stats = engine_->Stats();
  refusing_ = true;
  if (failure_.empty()) {
    if (!do_abandon_ || do_drain_) CheckQuiet();
    engine_.reset();
    CheckQuiet();
  }
  return {.failure = failure_,
          .event_hash = hash_,
          .steps = steps_,
          .accepted = int64_t(requests_.size()),
          .preemptions = stats.preemptions,
          .hit_tokens = stats.kv.hit_tokens,
          .copied_blocks = stats.kv.copied_blocks,
          .moved_out = stats.kv.moved_out_blocks,
          .moved_in = stats.kv.moved_in_blocks,
          .tokens = told_tokens_,
          .cancelled = stats.requests_cancelled,
          .failed = stats.requests_failed,
          .rejected = stats.requests_rejected};
}

}  // namespace

SimulationOutcome RunSimulation(uint64_t seed) {
  return World(seed).Run();
}

}  // namespace kvasir
