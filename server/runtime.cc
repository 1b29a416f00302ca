#include "server/runtime.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "server/generation_defaults.h"

namespace kvasir {
namespace {

// "auto" -> nullopt. The spellings are checked by the command line.
std::optional<DType> ParseDType(const std::string& name) {
  if (name == "float32" || name == "float" || name == "fp32") return DType::kF32;
  if (name == "float16" || name == "half" || name == "fp16") return DType::kF16;
  if (name == "bfloat16" || name == "bf16") return DType::kBF16;
  return std::nullopt;
}

StatusOr<int64_t> ChooseModelLength(const EngineOptions& options, const ModelConfig& config) {
  const int64_t limit = config.max_position_embeddings;
  if (options.max_model_len == 0) return limit;
  if (options.max_model_len > limit) {
    return InvalidArgument(
        "--max-model-len is {} but the model knows {} positions (max_position_embeddings in config.json): lower the flag",
        options.max_model_len, limit);
  }
  return options.max_model_len;
}

// How many blocks the KV pool gets: as flags say, else what max_num_seqs full sequences could use, but at most half of the free
// memory.
StatusOr<int64_t> ChooseNumBlocks(const EngineOptions& options, const KvLayout& layout, int64_t max_model_len,
                                  size_t free_memory) {
  const int64_t block_bytes = int64_t(layout.block_bytes());
  const int64_t per_sequence = (max_model_len + layout.block_tokens - 1) / layout.block_tokens;
  if (options.num_blocks > 0 || options.kv_cache_memory_bytes > 0) {
    const char* flag = options.num_blocks > 0 ? "--num-gpu-blocks-override" : "--kv-cache-memory-bytes";
    const int64_t blocks = options.num_blocks > 0 ? options.num_blocks : options.kv_cache_memory_bytes / block_bytes;
    if (blocks > int64_t(free_memory) / block_bytes) {
      return ResourceExhausted("{} asks for {} of KV but only {} of memory is free: lower it", flag,
                               FormatBytes(double(blocks) * double(block_bytes)), FormatBytes(double(free_memory)));
    }
    if (blocks >= 1) return blocks;
    return InvalidArgument("--kv-cache-memory-bytes is {} but one block of {} tokens takes {}: give more, or lower --block-size",
                           FormatBytes(double(options.kv_cache_memory_bytes)), layout.block_tokens,
                           FormatBytes(double(block_bytes)));
  }
  // Twice the sequences' own need leaves room for prefixes to stay cached.
  const int64_t wanted = per_sequence * std::max<int64_t>(2 * options.max_num_seqs, 16);
  const int64_t blocks = std::min(wanted, int64_t(free_memory / 2) / block_bytes);
  if (blocks >= per_sequence) return blocks;
  return ResourceExhausted(
      "KV for one sequence of {} tokens needs {} but only {} of memory is free for it: lower --max-model-len, or free memory",
      max_model_len, FormatBytes(double(per_sequence * block_bytes)), FormatBytes(double(free_memory) / 2));
}

StatusOr<std::optional<ChatTemplate>> LoadChatTemplate(const EngineOptions& options, const Tokenizer& tokenizer) {
  std::string source;
  std::string place = "chat template of the model";
  if (!options.chat_template.empty()) {
    std::ifstream file(options.chat_template);
    std::stringstream text;
    text << file.rdbuf();
    if (!file) return InvalidArgument("--chat-template {}: cannot be read", options.chat_template);
    source = text.str();
    place = options.chat_template;
  } else if (const auto it = tokenizer.chat_templates().find("default"); it != tokenizer.chat_templates().end()) {
    source = it->second;
  } else {
    return std::optional<ChatTemplate>();
  }
  auto parsed = ChatTemplate::Parse(source, tokenizer.bos_token(), tokenizer.eos_token());
  if (!parsed.ok()) return AtPlace(place, parsed.status());
  return std::optional<ChatTemplate>(std::move(parsed).value());
}

EngineConfig MakeEngineConfig(const EngineOptions& options, const Runtime& runtime, int64_t max_logprobs,
                              std::vector<int32_t> eos_token_ids) {
  EngineConfig config;
  config.max_step_tokens = int(options.max_num_batched_tokens);
  config.max_running = int(options.max_num_seqs);
  config.max_chunk = int(options.long_prefill_token_threshold);
  config.max_waiting = options.max_waiting_requests;
  config.order = options.scheduling_policy == "priority" ? OrderPolicy::kPriority : OrderPolicy::kFcfs;
  config.reserve_to_finish = options.reserve_to_finish;
  config.check_invariants = options.check_invariants;
  config.limits.vocab_size = runtime.model->config().vocab_size;
  config.limits.max_model_len = runtime.max_model_len;
  config.limits.pool_tokens = runtime.num_blocks * runtime.kv_layout.block_tokens;
  config.limits.block_tokens = runtime.kv_layout.block_tokens;
  config.limits.max_logprobs = max_logprobs;
  config.limits.reserve_to_finish = config.reserve_to_finish;
  config.limits.priority_allowed = config.order == OrderPolicy::kPriority;
  config.limits.eos_token_ids = std::move(eos_token_ids);
  return config;
}

}  // namespace

std::string FormatBytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, units[unit]);
}

StatusOr<std::unique_ptr<Device>> MakeDevice(const EngineOptions& options) {
  if (options.device == "reference") return MakeReferenceDevice();
  if (options.device == "cuda") {
    return Unimplemented("--device cuda: this build has no CUDA backend; use --device cpu");
  }
  return MakeCpuDevice({.threads = options.threads});
}

StatusOr<std::unique_ptr<Runtime>> Runtime::Create(const EngineOptions& options, int64_t max_logprobs,
                                                   std::function<void(double fraction, std::string_view what)> progress) {
  auto runtime = std::make_unique<Runtime>();
  KVASIR_ASSIGN_OR_RETURN(runtime->device, MakeDevice(options));
  // The tokenizer first: it is quick to read, and a broken one should be told before gigabytes are loaded.
  KVASIR_ASSIGN_OR_RETURN(runtime->tokenizer, Tokenizer::Load(options.model));
  KVASIR_ASSIGN_OR_RETURN(runtime->chat_template, LoadChatTemplate(options, *runtime->tokenizer));
  KVASIR_ASSIGN_OR_RETURN(const GenerationChoice generation,
                          ReadGenerationChoice(options.generation_config, options.override_generation_config));

  LoadOptions load;
  load.dtype = ParseDType(options.dtype);
  load.max_step_tokens = int(options.max_num_batched_tokens);
  load.progress = std::move(progress);
  load.max_model_len = options.max_model_len;
  KVASIR_ASSIGN_OR_RETURN(runtime->model, Model::Load(options.model, runtime->device.get(), load));
  const ModelConfig& config = runtime->model->config();
  if (runtime->tokenizer->vocab_size() > config.vocab_size) {
    return InvalidArgument(
        "{}: tokenizer.json knows {} ids but the model's embedding has {} rows: the files are of different models", options.model,
        runtime->tokenizer->vocab_size(), config.vocab_size);
  }
  KVASIR_ASSIGN_OR_RETURN(runtime->max_model_len, ChooseModelLength(options, config));
  runtime->generation_defaults = generation.Defaults(runtime->model->generation_defaults());
  std::vector<int32_t> eos = generation.EndTokens(config.eos_token_ids, runtime->tokenizer->eos_id(), config.vocab_size);

  runtime->kv_layout = runtime->model->kv_groups(int(options.block_size), ParseDType(options.kv_cache_dtype))[0].layout;
  KVASIR_ASSIGN_OR_RETURN(runtime->num_blocks, ChooseNumBlocks(options, runtime->kv_layout, runtime->max_model_len,
                                                               runtime->device->Info().memory_bytes));
  runtime->cache = std::make_unique<KvCache>(KvCacheConfig{
      .num_blocks = runtime->num_blocks,
      .block_tokens = int(options.block_size),
      .enable_prefix_caching = options.enable_prefix_caching,
      .fingerprint = fmt::format("{} {} {}", runtime->model->fingerprint(), Name(runtime->kv_layout.dtype), options.block_size)});
  KVASIR_ASSIGN_OR_RETURN(runtime->executor, ModelExecutor::Create(runtime->model.get(), runtime->device.get(),
                                                                   runtime->kv_layout, runtime->num_blocks));
  runtime->engine = std::make_unique<Engine>(MakeEngineConfig(options, *runtime, max_logprobs, std::move(eos)),
                                             runtime->cache.get(), runtime->executor.get(), &runtime->clock);
  return runtime;
}

std::string Runtime::Describe() const {
  const ModelConfig& config = model->config();
  const double kv_bytes = double(num_blocks) * double(kv_layout.block_bytes());
  return fmt::format(
      "{}: {:.1f}M parameters, {} layers, hidden {}, {} query / {} KV heads of {}, vocabulary {}; weights {}\n"
      "device: {}\n"
      "KV cache: {} in {} blocks of {} tokens = {} tokens ({} per token, {}); longest request {} tokens",
      config.architecture, double(config.parameter_count()) / 1e6, config.num_layers, config.hidden_size, config.num_q_heads,
      config.num_kv_heads, config.head_dim, config.vocab_size, FormatBytes(double(model->weight_bytes())), device->Info().name,
      FormatBytes(kv_bytes), num_blocks, kv_layout.block_tokens, num_blocks * kv_layout.block_tokens,
      FormatBytes(double(kv_layout.token_bytes())), Name(kv_layout.dtype), max_model_len);
}

}  // namespace kvasir
