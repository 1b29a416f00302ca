// "One answer" with real decoders: small checkpoints of every family, run by the engine alone, together, in small chunks, from a
// warm prefix cache and under constant preemption. Tokens are those of transformers, and logprobs are the same bits every time.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/clock.h"
#include "kernels/kv_quant.h"
#include "scheduler/engine.h"
#include "scheduler/model_executor.h"
#include "scheduler/policies.h"
#include "tests/slow.h"

namespace kvasir {
namespace {

namespace stdfs = std::filesystem;
using nlohmann::json;

constexpr int kBlockTokens = 8;
constexpr int kMaxTokens = 32;

std::vector<std::string> Checkpoints() {
  std::vector<std::string> folders;
  for (const char* place : {"/tests/data/tiny", "/tests/data/families"}) {
    if (!stdfs::is_directory(std::string(KVASIR_SOURCE_DIR) + place)) continue;
    for (const auto& entry : stdfs::directory_iterator(std::string(KVASIR_SOURCE_DIR) + place))
      if (stdfs::exists(entry.path() / "golden.json")) folders.push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

struct Answer : TokenSink {
  void OnEvent(TokenEvent&& event) override {
    if (event.kind == TokenEvent::Kind::kStarted) cached_tokens = event.cached_tokens;
    if (event.kind == TokenEvent::Kind::kEnd) status = event.status;
    if (event.kind != TokenEvent::Kind::kToken) return;
    if (event.choice > 0) return others[size_t(event.choice) - 1].push_back(event.sample.token);
    tokens.push_back(event.sample.token);
    logprobs.push_back(std::bit_cast<uint32_t>(event.sample.logprob));
  }
  std::vector<int32_t> tokens;
  std::vector<uint32_t> logprobs;
  std::array<std::vector<int32_t>, 2> others;  // tokens of the choices after the first
  int32_t cached_tokens = -1;
  Status status = Internal("never ended");
};
using Answers = std::vector<std::shared_ptr<Answer>>;

struct Case {
  std::string folder, quantization;
  std::string kv = "";  // format; empty: as the weights
};
std::optional<QuantFormat> Quantization(const std::string& name) {
  if (name == "stored") return std::nullopt;
  return *ParseQuantFormat(name);
}
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.folder << " " << c.quantization << " " << c.kv;
}

// Reads a step before the next one is launched, whatever the device could do.
class OneAtATime : public Executor {
 public:
  explicit OneAtATime(Executor* executor) : executor_(executor) {}
  Status Launch(const StepBatch& batch, StepResult& result) override {
    KVASIR_RETURN_IF_ERROR(executor_->Launch(batch, result));
    return executor_->Finish();
  }

 private:
  Executor* executor_;
};

class ModelEngine : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string& folder = GetParam().folder;
    std::ifstream file(folder + "/golden.json");
    std::stringstream text;
    text << file.rdbuf();
    const json golden = json::parse(text.str());
    // Where the rotation depends on the longest text served, the goldens of that meaning are called "fixed".
    const bool dynamic = folder.ends_with("llama-rope-dynamic");
    const bool fixed = dynamic || golden.contains("context_switch");
    const char* const device = std::getenv("KVASIR_TEST_DEVICE");  // "cuda": a GPU, or the emulated one of tests/simt
    device_ = device != nullptr && std::string_view(device) == "cuda" ? *MakeCudaDevice() : *MakeCpuDevice({.threads = 2});
    auto model = Model::Load(
        folder, device_.get(),
        {.dtype = DType::kF32, .quantization = Quantization(GetParam().quantization), .max_model_len = fixed ? 256 : 0});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
    for (const json& prompt : golden["prompts"]) {
      prompts_.push_back(prompt["prompt_ids"]);
      expected_.push_back((fixed ? prompt["fixed"] : prompt)["greedy_ids"]);
    }
  }

  // An engine over `extents` of KV memory; 0 = plenty. `ahead`: launches steps as far ahead as the device runs. `host_extents`:
  // of the host's memory below.
  void Build(int64_t extents, int max_step_tokens, int max_running, bool ahead = true, int64_t host_extents = 0) {
    engine_.reset();  // before what it uses
    executor_.reset();
    const std::vector<KvGroup> groups =
        model_->kv_groups(kBlockTokens, GetParam().kv.empty() ? std::nullopt : std::optional(*ParseKvFormat(GetParam().kv)));
    std::vector<KvGroupConfig> configs;
    for (const KvGroup& group : groups) configs.push_back({int64_t(group.layout.block_bytes()), group.window});
    const KvArenaPlan plan = PlanKvArena(configs);
    if (extents == 0) extents = 400;
    kv_ = std::make_unique<KvCache>(KvCacheConfig{.num_blocks = extents,
                                                  .host_blocks = host_extents,
                                                  .block_tokens = kBlockTokens,
                                                  .fingerprint = "test",
                                                  .groups = configs});
    auto executor = ModelExecutor::Create(model_.get(), device_.get(), groups, plan, extents, 64, host_extents);
    ASSERT_TRUE(executor.ok()) << executor.status();
    executor_ = std::move(*executor);
    EngineConfig config;
    config.max_step_tokens = max_step_tokens;
    config.max_running = max_running;
    config.check_invariants = true;
    config.limits = {.vocab_size = model_->config().vocab_size,
                     .max_model_len = model_->max_model_len(),
                     .pool_tokens = LongestText(kv_->shapes(), extents, max_step_tokens, 4096),
                     .block_tokens = kBlockTokens,
                     .kv_groups = kv_->shapes(),
                     .pool_extents = extents,
                     .chunk_tokens = max_step_tokens};
    limits_ = config.limits;
    one_at_a_time_ = std::make_unique<OneAtATime>(executor_.get());
    Executor* const used = ahead ? static_cast<Executor*>(executor_.get()) : one_at_a_time_.get();
    engine_ = std::make_unique<Engine>(config, kv_.get(), used, &clock_);
  }

  std::shared_ptr<Answer> Submit(const std::vector<int32_t>& prompt, int n = 1) {
    RequestDraft draft;
    draft.n = n;
    draft.sampling.temperature = 0;
    return Submit(prompt, std::move(draft));
  }
  std::shared_ptr<Answer> Submit(const std::vector<int32_t>& prompt, RequestDraft draft) {
    draft.prompt = prompt;
    draft.max_tokens = kMaxTokens;
    draft.ignore_eos = true;
    draft.sampling.num_logprobs = 0;
    auto answer = std::make_shared<Answer>();
    auto request = ValidatedRequest::Make(std::move(draft), limits_);
    EXPECT_TRUE(request.ok()) << request.status();
    if (request.ok()) {
      EXPECT_TRUE(engine_->Submit(*std::move(request), answer).ok());
    }
    return answer;
  }
  void RunAll() {
    for (int i = 0; i < 100000 && engine_->Step(); ++i) {
    }
    EXPECT_EQ(engine_->Stats().kv.used_blocks, 0);
    EXPECT_EQ(engine_->Stats().invariant_failures, 0);
  }
  Answers Together() {
    Answers answers;
    for (const auto& prompt : prompts_) answers.push_back(Submit(prompt));
    RunAll();
    return answers;
  }
  void ExpectSame(const Answers& answers, const Answers& first, const char* what) {
    SCOPED_TRACE(what);
    for (size_t i = 0; i < prompts_.size(); ++i) {
      SCOPED_TRACE(prompts_[i].size());
      EXPECT_TRUE(answers[i]->status.ok()) << answers[i]->status;
      EXPECT_EQ(answers[i]->tokens, expected_[i]);
      EXPECT_EQ(answers[i]->logprobs, first[i]->logprobs);
    }
  }

  SteadyClock clock_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<ModelExecutor> executor_;
  std::unique_ptr<Executor> one_at_a_time_;
  std::unique_ptr<Engine> engine_;
  RequestLimits limits_;
  std::vector<std::vector<int32_t>> prompts_, expected_;
};

TEST_P(ModelEngine, OneAnswer) {
  Answers alone;
  for (const auto& prompt : prompts_) {
    Build(0, 512, 1);
    alone.push_back(Submit(prompt));
    RunAll();
  }
  // Quantised, a model is another one than that of the goldens; its answers still agree with each other.
  if (GetParam().quantization != "none" || !GetParam().kv.empty()) {
    for (size_t i = 0; i < prompts_.size(); ++i) expected_[i] = alone[i]->tokens;
  }
  ExpectSame(alone, alone, "alone");
  ExpectSame(Together(), alone, "the last one cached, the others cold");

  Build(0, 64, 8);
  ExpectSame(Together(), alone, "together");
  const Answers warm = Together();
  ExpectSame(warm, alone, "from the prefix cache");
  EXPECT_GT(warm.back()->cached_tokens, 0);
  Build(0, 7, 8);
  ExpectSame(Together(), alone, "in chunks of 7");

  // Choices share the prompt's KV, and copy what they write to.
  Build(0, 16, 12);
  Answers choices;
  for (const auto& prompt : prompts_) choices.push_back(Submit(prompt, 3));
  RunAll();
  ExpectSame(choices, alone, "three choices");
  for (const auto& answer : choices) {
    for (const auto& tokens : answer->others) EXPECT_EQ(tokens, answer->tokens);
  }

  // As little memory as the third request alone needs, so that three take turns.
  prompts_.resize(3);
  for (int64_t extents = 4; extents < 200; ++extents) {
    Build(extents, 16, 4);
    RequestDraft longest;
    longest.prompt = prompts_.back();
    longest.max_tokens = kMaxTokens;
    if (!ValidatedRequest::Make(longest, limits_).ok()) continue;
    ExpectSame(Together(), alone, "preempted");
    const bool windows = kv_->shapes().back().window_tokens > 0;
    if (!windows) {
      EXPECT_GT(engine_->Stats().preemptions, 0) << extents << " extents";
    }
    // What is taken from one of them is swapped: it waits in the host.
    Build(extents, 16, 4, true, 4 * extents);
    ExpectSame(Together(), alone, "preempted, and brought back from the host");
    ExpectSame(Together(), alone, "again, with the others' in the host");
    EXPECT_GT(engine_->Stats().kv.moved_out_blocks, 0);
    EXPECT_GT(engine_->Stats().kv.moved_in_blocks, 0);
    return;
  }
  FAIL() << "no pool held the third request";
}

// Penalties count tokens that were sampled a moment ago, which the host may not know yet.
TEST_P(ModelEngine, PenaltiesSeeEveryToken) {
  RequestDraft draft;
  draft.sampling = {.presence_penalty = 0.6f, .frequency_penalty = 0.4f, .repetition_penalty = 1.4f, .seed = 7};
  draft.n = 2;
  draft.min_tokens = 5;
  std::vector<RequestDraft> drafts(4, draft);
  drafts[1].sampling.temperature = 0;
  drafts[2].sampling.repetition_penalty = 1;
  drafts[3].sampling = {.presence_penalty = 2, .seed = 3};
  const auto answer = [&](bool ahead) {
    Build(0, 24, 6, ahead);
    Answers answers;
    for (size_t i = 0; i < drafts.size(); ++i) answers.push_back(Submit(prompts_[i % prompts_.size()], drafts[i]));
    RunAll();
    return answers;
  };
  const Answers ahead = answer(true), one_at_a_time = answer(false);
  for (size_t i = 0; i < drafts.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(ahead[i]->tokens.size(), size_t{kMaxTokens});
    EXPECT_EQ(ahead[i]->tokens, one_at_a_time[i]->tokens);
    EXPECT_EQ(ahead[i]->logprobs, one_at_a_time[i]->logprobs);
    EXPECT_EQ(ahead[i]->others, one_at_a_time[i]->others);
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const std::string& folder : Checkpoints()) cases.push_back({folder, "none"});
  const std::vector<std::string> formats = {"int8", "int4", "int8:32", "int4:32"};
  constexpr size_t kEvery = kSanitized ? 5 : 1;
  const std::vector<std::string> folders = Checkpoints();
  for (size_t i = 0; i < folders.size(); i += kEvery) cases.push_back({folders[i], formats[i % formats.size()]});
  for (const char* name : {"gptq-int4-moe", "gptq-int4-actorder", "awq-int4", "compressed-w8a8", "fp8-block"})
    cases.push_back({fmt::format("{}/tests/data/quantized/{}", KVASIR_SOURCE_DIR, name), "stored"});
  // Grouped heads; windows; caps; states and KV side by side; layers that share KV.
  for (const char* name : {"tiny/llama-bf16", "families/gemma2", "families/qwen3-next", "families/kv-owner-windows"})
    for (const char* kv : {"fp8", "int8", "int4"})
      cases.push_back({fmt::format("{}/tests/data/{}", KVASIR_SOURCE_DIR, name), "none", kv});
  if (!kThreadSanitized) return cases;
  std::vector<Case> some;  // threads do the same whatever the model
  for (size_t i = 0; i < cases.size(); i += 7) some.push_back(cases[i]);
  return some;
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, ModelEngine, testing::ValuesIn(Cases()), [](const auto& info) {
  std::string name = stdfs::path(info.param.folder).filename();
  if (info.param.quantization != "none") name += "_" + info.param.quantization;
  if (!info.param.kv.empty()) name += "_kv_" + info.param.kv;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

}  // namespace
}  // namespace kvasir
