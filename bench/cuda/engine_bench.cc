#include "bench/cuda/engine_bench.h"

#include <algorithm>
#include <cstring>

#include "kernels/clock.h"
#include "kernels/rng.h"
#include "models/model.h"
#include "scheduler/engine.h"
#include "scheduler/model_executor.h"
#include "scheduler/policies.h"

namespace kvasir {
namespace {

constexpr int kBlockTokens = 16, kLeastStepTokens = 2048;
constexpr double kMemoryShare = 0.9;

// A model folder in which there is config.json and nothing else.
class ConfigOnly : public Fs {
 public:
  explicit ConfigOnly(std::string config) : config_(std::move(config)) {}
  StatusOr<std::vector<std::string>> List(const std::string&) const override { return std::vector<std::string>{"config.json"}; }
  StatusOr<std::unique_ptr<File>> Open(const std::string& path) const override {
    if (!path.ends_with("/config.json")) return NotFound("{}: no such file", path);
    return std::make_unique<Text>(config_);
  }

 private:
  class Text : public File {
   public:
    explicit Text(const std::string& text) : text_(text) {}
    uint64_t size() const override { return text_.size(); }
    Status ReadAt(uint64_t offset, void* out, size_t bytes) const override {
      std::memcpy(out, text_.data() + offset, bytes);
      return OkStatus();
    }

   private:
    const std::string& text_;
  };
  const std::string config_;
};

class CountingSink : public TokenSink {
 public:
  void OnEvent(TokenEvent&& event) override {
    tokens += event.kind == TokenEvent::Kind::kToken;
    if (event.kind == TokenEvent::Kind::kEnd) ended = true, status = event.status;
  }
  int64_t tokens = 0;
  bool ended = false;
  Status status;
};

// Says how long the calls that start a step took: what the host does for one, less planning.
class TimedExecutor : public Executor {
 public:
  TimedExecutor(Executor* executor, const Clock* clock) : executor_(executor), clock_(clock) {}
  int depth() const override { return executor_->depth(); }
  Status Launch(const StepBatch& batch, StepResult& result) override {
    const int64_t start = clock_->NowMicros();
    const Status status = executor_->Launch(batch, result);
    micros += clock_->NowMicros() - start;
    ++steps;
    return status;
  }
  Status Finish() override { return executor_->Finish(); }
  int64_t micros = 0, steps = 0;

 private:
  Executor* executor_;
  const Clock* clock_;
};

// One model with memory for one batch.
class Setup {
 public:
  // Room for `batch` texts on the device, and for host_texts more in the host's memory. The model takes as many tokens in a step.
  Status Create(Device& device, Model& model, int step_tokens, int batch, int most_tokens, int host_texts = 0) {
    const std::vector<KvGroup> groups = model.kv_groups(kBlockTokens, std::nullopt);
    std::vector<KvGroupConfig> configs;
    for (const KvGroup& group : groups) configs.push_back({int64_t(group.layout.block_bytes()), group.window});
    const KvArenaPlan plan = PlanKvArena(configs);
    const int64_t each = ((most_tokens + kBlockTokens - 1) / kBlockTokens + 1) * int64_t(groups.size());
    const int64_t extents = batch * each, host_extents = host_texts * each;
    cache_ = std::make_unique<KvCache>(KvCacheConfig{.num_blocks = extents,
                                                     .host_blocks = host_extents,
                                                     .block_tokens = kBlockTokens,
                                                     .enable_prefix_caching = host_texts > 0,
                                                     .groups = configs});
    KVASIR_ASSIGN_OR_RETURN(executor_, ModelExecutor::Create(&model, &device, groups, plan, extents, batch, host_extents));
    timed_ = std::make_unique<TimedExecutor>(executor_.get(), &clock_);
    EngineConfig config = {.max_step_tokens = step_tokens, .max_running = batch};
    config.limits = {.vocab_size = model.config().vocab_size,
                     .max_model_len = model.max_model_len(),
                     .pool_tokens = LongestText(cache_->shapes(), extents, step_tokens, model.max_model_len()),
                     .block_tokens = kBlockTokens,
                     .kv_groups = cache_->shapes(),
                     .pool_extents = extents,
                     .chunk_tokens = step_tokens};
    engine_ = std::make_unique<Engine>(config, cache_.get(), timed_.get(), &clock_);
    return OkStatus();
  }
  // Seconds until a prompt of random tokens has its first token.
  StatusOr<double> FirstToken(int tokens, uint64_t seed) {
    Rng rng(seed);
    RequestDraft draft;
    for (int t = 0; t < tokens; ++t) draft.prompt.push_back(int32_t(rng.Below(uint64_t(engine_->config().limits.vocab_size))));
    draft.max_tokens = 1;
    draft.ignore_eos = true;
    draft.sampling.temperature = 0;
    KVASIR_ASSIGN_OR_RETURN(ValidatedRequest request, ValidatedRequest::Make(std::move(draft), engine_->config().limits));
    const auto sink = std::make_shared<CountingSink>();
    const int64_t start = clock_.NowMicros();
    KVASIR_RETURN_IF_ERROR(engine_->Submit(std::move(request), sink).status());
    while (!sink->ended) engine_->Step();
    KVASIR_RETURN_IF_ERROR(sink->status);
    return double(clock_.NowMicros() - start) * 1e-6;
  }
  KvCacheStats stats() const { return cache_->stats(); }
  struct Timing {
    double prefill = 0, step = 0, launch = 0;  // seconds: of all prompts, of a step of decoding, of starting one
  };
  StatusOr<Timing> Run(const EngineShape& shape, int batch, uint64_t seed) {
    Rng rng(seed);
    std::vector<std::shared_ptr<CountingSink>> sinks;
    for (int i = 0; i < batch; ++i) {
      RequestDraft draft;
      for (int t = 0; t < shape.context; ++t)
        draft.prompt.push_back(int32_t(rng.Below(uint64_t(engine_->config().limits.vocab_size))));
      draft.max_tokens = shape.tokens + 1;
      draft.ignore_eos = true;
      draft.sampling.temperature = 0;
      KVASIR_ASSIGN_OR_RETURN(ValidatedRequest request, ValidatedRequest::Make(std::move(draft), engine_->config().limits));
      sinks.push_back(std::make_shared<CountingSink>());
      KVASIR_RETURN_IF_ERROR(engine_->Submit(std::move(request), sinks.back()).status());
    }
    const auto all = [&](auto condition) { return std::all_of(sinks.begin(), sinks.end(), condition); };
    Timing timing;
    const int64_t start = clock_.NowMicros();
    while (!all([](const auto& s) { return s->tokens > 0 || s->ended; })) engine_->Step();
    const int64_t first = clock_.NowMicros();
    int64_t tokens = 0;
    for (const auto& sink : sinks) tokens -= sink->tokens;
    timed_->micros = timed_->steps = 0;
    while (!all([](const auto& s) { return s->ended; })) engine_->Step();
    const double seconds = double(clock_.NowMicros() - first) * 1e-6;
    for (const auto& sink : sinks) {
      KVASIR_RETURN_IF_ERROR(sink->status);
      tokens += sink->tokens;
    }
    timing.prefill = double(first - start) * 1e-6;
    timing.step = seconds * batch / double(std::max<int64_t>(1, tokens));
    timing.launch = double(timed_->micros) * 1e-6 / double(std::max<int64_t>(1, timed_->steps));
    return timing;
  }

 private:
  SteadyClock clock_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<ModelExecutor> executor_;
  std::unique_ptr<TimedExecutor> timed_;
  std::unique_ptr<Engine> engine_;
};

// The serial bound: products, then attention.
double StepFloor(const Model& model, const CudaCeilings& machine, int batch, double context) {
  const ModelConfig& c = model.config();
  const double products = 2.0 * (double(c.parameter_count()) - double(c.vocab_size * c.hidden_size)) * batch;
  const double weights = double(model.linear_bytes()) / machine.copy_bytes_per_second;
  double kv = 0;
  for (const KvGroup& group : model.kv_groups(kBlockTokens, std::nullopt)) kv += double(group.layout.token_bytes());
  return std::max(weights, machine.gemm_bf16_flops > 0 ? products / machine.gemm_bf16_flops : 0) +
         kv * context * batch / machine.copy_bytes_per_second;
}

int StepTokens(const EngineShape& shape) {
  return std::max(kLeastStepTokens, *std::max_element(shape.batches.begin(), shape.batches.end()));
}

std::string LlamaConfig(int hidden, int ffn, int layers, int heads, int kv_heads, int vocab, bool tied, int positions = 16384) {
  return fmt::format(
      R"({{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {}, "intermediate_size": {}, )"
      R"("num_hidden_layers": {}, "num_attention_heads": {}, "num_key_value_heads": {}, "vocab_size": {}, )"
      R"("max_position_embeddings": {}, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu", )"
      R"("tie_word_embeddings": {}, "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}})",
      hidden, ffn, layers, heads, kv_heads, vocab, positions, tied);
}

// A prompt as it is computed, and as it comes back after another one has taken its place on the device.
Status BenchHost(Device& device, Model& model, const EngineShape& shape, std::vector<BenchResult>& results) {
  constexpr int kPrompts = 5;
  Setup setup;
  KVASIR_RETURN_IF_ERROR(setup.Create(device, model, StepTokens(shape), 1, shape.prefix + kBlockTokens, 3));
  std::vector<double> computed, brought;
  for (uint64_t seed = 1; seed <= kPrompts; ++seed) {
    KVASIR_ASSIGN_OR_RETURN(const double cold, setup.FirstToken(shape.prefix, seed));
    KVASIR_RETURN_IF_ERROR(setup.FirstToken(shape.prefix, seed + 100).status());
    const int64_t hits = setup.stats().host_hit_tokens;
    KVASIR_ASSIGN_OR_RETURN(const double warm, setup.FirstToken(shape.prefix, seed));
    if (setup.stats().host_hit_tokens == hits) return Internal("a prompt of {} tokens did not come from the host", shape.prefix);
    computed.push_back(cold), brought.push_back(warm);
  }
  std::sort(computed.begin(), computed.end());
  std::sort(brought.begin(), brought.end());
  const double cold = computed[kPrompts / 2], warm = brought[kPrompts / 2];
  const KvLayout layout = model.kv_groups(kBlockTokens, std::nullopt)[0].layout;
  const double bytes = double(setup.stats().moved_in_blocks) / kPrompts * double(layout.block_bytes());
  results.push_back({"c11",
                     fmt::format("{}: first token of a prompt of {} from the host, {:.1f} ms; computed, {:.1f} ms", shape.name,
                                 shape.prefix, warm * 1e3, cold * 1e3),
                     cold / warm, "x"});
  results.push_back({"c11", fmt::format("{}: {:.3f} GB come in that time, and as much goes", shape.name, bytes / 1e9),
                     bytes / warm / 1e9, "GB/s"});
  return OkStatus();
}

}  // namespace

std::vector<EngineShape> EngineShapes() {
  constexpr int kLong = 131072;
  return {
      {"c7", "Llama-3-8B", LlamaConfig(4096, 14336, 32, 32, 8, 128256, false), {1, 32, 256}, 1024, 64, 8192},
      {"c8", "0.5B", LlamaConfig(896, 4864, 24, 14, 2, 151936, true), {1, 64, 256}},
      {"extreme", "0.5B", LlamaConfig(896, 4864, 24, 14, 2, 151936, true), {4096}, 128, 32, 0, 1},
      {"extreme", "0.5B", LlamaConfig(896, 4864, 24, 14, 2, 151936, true, kLong), {1}, kLong - 64, 32, 0, 1},
      {"tiny", "tiny", LlamaConfig(64, 96, 2, 4, 2, 128, false), {1, 3}, 20, 6, 100},
  };
}

StatusOr<std::vector<BenchResult>> BenchEngineShape(Device& device, const EngineShape& shape, const CudaCeilings& machine) {
  std::vector<BenchResult> results;
  const ConfigOnly fs(shape.config);
  SteadyClock clock;
  const int64_t start = clock.NowMicros();
  const int most = *std::max_element(shape.batches.begin(), shape.batches.end());
  KVASIR_ASSIGN_OR_RETURN(
      const std::unique_ptr<Model> model,
      Model::Load("model", &device,
                  {.format = LoadFormat::kDummy, .max_step_tokens = StepTokens(shape), .max_logits_rows = most, .fs = &fs}));
  results.push_back(
      {shape.id, fmt::format("{}: weights made up and packed", shape.name), double(clock.NowMicros() - start) * 1e-6, "s"});
  if (shape.prefix > 0) KVASIR_RETURN_IF_ERROR(BenchHost(device, *model, shape, results));
  for (const int batch : shape.batches) {
    const int tokens = shape.context + shape.tokens;
    double kv_bytes = 0;
    for (const KvGroup& group : model->kv_groups(kBlockTokens, std::nullopt)) kv_bytes += double(group.layout.token_bytes());
    if (kv_bytes * batch * (tokens + kBlockTokens) > kMemoryShare * double(device.Info().memory_bytes)) {
      results.push_back({shape.id, fmt::format("{}: batch {} does not fit and is left out", shape.name, batch), 0, ""});
      continue;
    }
    Setup setup;
    KVASIR_RETURN_IF_ERROR(setup.Create(device, *model, StepTokens(shape), batch, tokens + 1));
    std::vector<double> prefill, step, launch;
    for (int repetition = 0; repetition <= shape.repetitions; ++repetition) {
      KVASIR_ASSIGN_OR_RETURN(const Setup::Timing timing, setup.Run(shape, batch, uint64_t(repetition)));
      if (repetition == 0) continue;  // graphs are recorded, scratch is taken
      prefill.push_back(timing.prefill), step.push_back(timing.step), launch.push_back(timing.launch);
    }
    for (std::vector<double>* times : {&prefill, &step, &launch}) std::sort(times->begin(), times->end());
    const double median = step[step.size() / 2], floor = StepFloor(*model, machine, batch, shape.context + shape.tokens / 2.0);
    results.push_back({shape.id,
                       fmt::format("{}: decode, batch {}, context ~{}, step of {:.0f} us", shape.name, batch,
                                   shape.context + shape.tokens / 2, median * 1e6),
                       batch / median, "tok/s", batch / floor, floor / median});
    results.push_back({shape.id, fmt::format("{}: host time to start a step of {}", shape.name, batch),
                       launch[launch.size() / 2] * 1e6, "us", 30, launch[launch.size() / 2] * 1e6 / 30});
    results.push_back({shape.id, fmt::format("{}: prompts, {} x {} tokens", shape.name, batch, shape.context),
                       double(batch) * shape.context / prefill[prefill.size() / 2], "tok/s"});
  }
  return results;
}

}  // namespace kvasir
