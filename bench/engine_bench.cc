#include "bench/engine_bench.h"

#include <algorithm>
#include <cstdio>

#include "bench/ceilings.h"
#include "bench/engine_null_bench.h"
#include "bench/result.h"
#include "kernels/cpu/topology.h"
#include "kernels/rng.h"
#include "server/generate.h"
#include "server/pull_command.h"
#include "server/runtime.h"

namespace kvasir {
namespace {

// Counts what the engine sends; the bench drives Engine::Step itself, so everything is on one thread.
class CountingSink : public TokenSink {
 public:
  void OnEvent(TokenEvent&& event) override {
    tokens += event.kind == TokenEvent::Kind::kToken;
    ended = ended || event.kind == TokenEvent::Kind::kEnd;
    if (event.kind == TokenEvent::Kind::kEnd) status = event.status;
  }
  int64_t tokens = 0;
  bool ended = false;
  Status status;
};

struct Timing {
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t decode_tokens = 0;
};

// `batch` prompts at once: time until each has its first token, then until each has all of them.
StatusOr<Timing> RunBatch(Runtime& runtime, const BenchOptions& options, int64_t batch, uint64_t seed) {
  Rng rng(seed);
  std::vector<std::shared_ptr<CountingSink>> sinks;
  for (int64_t i = 0; i < batch; ++i) {
    RequestDraft draft;
    for (int64_t t = 0; t < options.prompt_tokens; ++t)
      draft.prompt.push_back(int32_t(rng.Below(uint64_t(runtime.model->config().vocab_size))));
    draft.max_tokens = options.decode_tokens + 1;
    draft.ignore_eos = true;
    draft.sampling.temperature = 0;
    KVASIR_ASSIGN_OR_RETURN(ValidatedRequest request, ValidatedRequest::Make(std::move(draft), runtime.engine->config().limits));
    sinks.push_back(std::make_shared<CountingSink>());
    KVASIR_RETURN_IF_ERROR(runtime.engine->Submit(std::move(request), sinks.back()).status());
  }
  const auto all = [&](auto condition) { return std::all_of(sinks.begin(), sinks.end(), condition); };
  const auto total = [&] {
    int64_t sum = 0;
    for (const auto& sink : sinks) sum += sink->tokens;
    return sum;
  };
  Timing timing;
  const int64_t start = runtime.clock.NowMicros();
  while (!all([](const auto& s) { return s->tokens > 0 || s->ended; })) runtime.engine->Step();
  const int64_t first = runtime.clock.NowMicros();
  const int64_t tokens_then = total();
  while (!all([](const auto& s) { return s->ended; })) runtime.engine->Step();
  timing.prefill_seconds = double(first - start) * 1e-6;
  timing.decode_seconds = double(runtime.clock.NowMicros() - first) * 1e-6;
  timing.decode_tokens = total() - tokens_then;
  for (const auto& sink : sinks) KVASIR_RETURN_IF_ERROR(sink->status);
  return timing;
}

// Operations per second of the instruction that the weights' format is computed with.
double PeakOperations(const Runtime& runtime, const Ceilings& machine) {
  const bool bf16 = runtime.model->config().dtype == DType::kBF16;
  if (runtime.model->quantization() && machine.dot_int8_gops > 0) return machine.dot_int8_gops * 1e9;
  return (bf16 && machine.dot_bf16_gflops > 0 ? machine.dot_bf16_gflops : machine.fma_f32_gflops) * 1e9;
}

// The least time one decode step may take: all weights that a token needs and all KV are read once, or all products are done.
double DecodeFloorSeconds(const Runtime& runtime, const Ceilings& machine, int64_t batch, double context) {
  const ModelConfig& c = runtime.model->config();
  const double embedding = double(c.vocab_size * c.hidden_size);
  // The input embedding is read by rows; the output head is read whole, tied or not.
  const double read_weights = double(c.parameter_count()) - (c.tie_word_embeddings ? 0 : embedding);
  double bytes = double(runtime.model->linear_bytes());
  for (const KvGroup& group : runtime.kv_groups) {
    const double tokens = group.window > 0 ? std::min(context, double(group.window)) : context;
    const bool state = group.layout.state_floats > 0;  // read and written
    bytes += double(batch) * (state ? 2 * double(group.layout.block_bytes()) : tokens * double(group.layout.token_bytes()));
  }
  const double flops = 2 * read_weights * double(batch);
  return std::max(bytes / (machine.stream_read_gbs * 1e9), flops / PeakOperations(runtime, machine));
}

double PrefillFloorSeconds(const Runtime& runtime, const Ceilings& machine, int64_t tokens, int64_t prompt) {
  const ModelConfig& c = runtime.model->config();
  const double body = double(c.parameter_count()) - double(c.vocab_size * c.hidden_size) * (c.tie_word_embeddings ? 1 : 2);
  const double attention =
      2.0 * double(prompt) * c.num_q_heads * c.head_dim * c.num_layers;  // causal: half of 4 T Hq d per token
  return double(tokens) * (2 * body + attention) / PeakOperations(runtime, machine);
}

Status BenchModel(const BenchOptions& options) {
  EngineOptions engine = options.engine;
  engine.enable_prefix_caching = false;
  KVASIR_RETURN_IF_ERROR(ResolveModel(&engine));
  KVASIR_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, Runtime::Create(engine, 20, ShowLoadProgress));
  ThreadTeam team(options.engine.threads > 0 ? options.engine.threads : DefaultThreads());
  const Ceilings machine = MeasureCeilings(team);
  std::fprintf(stderr, "%s\n", runtime->Describe().c_str());
  PrintResult({"", "stream read", machine.stream_read_gbs, "GB/s"}, options.json);
  PrintResult({"", "fp32 FMA", machine.fma_f32_gflops, "GFLOP/s"}, options.json);
  if (machine.dot_bf16_gflops > 0) PrintResult({"", "bf16 dot", machine.dot_bf16_gflops, "GFLOP/s"}, options.json);
  if (machine.dot_int8_gops > 0) PrintResult({"", "int8 dot", machine.dot_int8_gops, "GOP/s"}, options.json);
  for (const int64_t batch : options.batches) {
    if (options.prompt_tokens + options.decode_tokens + 1 > runtime->max_model_len) {
      return InvalidArgument("--prompt-tokens {} and --decode-tokens {} are longer than the model's context of {}",
                             options.prompt_tokens, options.decode_tokens, runtime->max_model_len);
    }
    std::vector<double> prefill, decode;
    for (int repetition = 0; repetition < int(options.repetitions); ++repetition) {
      KVASIR_ASSIGN_OR_RETURN(const Timing timing, RunBatch(*runtime, options, batch, uint64_t(repetition)));
      prefill.push_back(double(batch * options.prompt_tokens) / timing.prefill_seconds);
      decode.push_back(double(timing.decode_tokens) / timing.decode_seconds);
    }
    std::sort(prefill.begin(), prefill.end());
    std::sort(decode.begin(), decode.end());
    const double context = double(options.prompt_tokens) + double(options.decode_tokens) / 2;
    const double decode_ceiling = double(batch) / DecodeFloorSeconds(*runtime, machine, batch, context);
    const int64_t tokens = batch * options.prompt_tokens;
    const double prefill_ceiling = double(tokens) / PrefillFloorSeconds(*runtime, machine, tokens, options.prompt_tokens);
    PrintResult({"", fmt::format("prefill, {} x {} tokens", batch, options.prompt_tokens), prefill[prefill.size() / 2], "tok/s",
                 prefill_ceiling, prefill[prefill.size() / 2] / prefill_ceiling},
                options.json);
    PrintResult({"", fmt::format("decode, batch {}, context ~{:.0f}", batch, context), decode[decode.size() / 2], "tok/s",
                 decode_ceiling, decode[decode.size() / 2] / decode_ceiling},
                options.json);
  }
  return OkStatus();
}

}  // namespace

Status RunBenchEngine(const BenchOptions& options) {
  if (!options.null_model) return BenchModel(options);
  for (const EngineNullResult& r : RunEngineNullBench({})) {
    PrintResult({r.id, r.case_name, r.value, r.unit, r.ceiling, r.ratio}, options.json);
  }
  return OkStatus();
}

}  // namespace kvasir
