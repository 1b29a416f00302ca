#include "server/runtime.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>

#include "models/fs.h"
#include "models/kv_plan.h"
#include "scheduler/policies.h"
#include "server/generation_defaults.h"

namespace kvasir {
namespace {

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

// A snapshot of a recurrent state is as large as the KV of hundreds or thousands of tokens, so there are fewer of them; prefixes
// are then found in larger steps.
int ChooseBlockTokens(const EngineOptions& options, const ModelConfig& config) {
  if (options.block_size > 0) return int(options.block_size);
  return config.delta ? 256 : 16;
}

// How a model's groups of layers share the KV memory, and what a text takes of it.
StatusOr<std::vector<KvGroupConfig>> MakeKvGroups(std::span<const KvGroup> groups) {
  if (groups.empty() || groups.size() > kMaxKvGroups) {
    return Unimplemented("the model's layers keep KV in {} groups of different size or window, at most {} are supported",
                         groups.size(), kMaxKvGroups);
  }
  std::vector<KvGroupConfig> configs;
  for (const KvGroup& group : groups) configs.push_back({int64_t(group.layout.block_bytes()), group.window});
  return configs;
}

std::vector<KvGroupShape> MakeKvShapes(std::span<const KvGroup> groups, const KvArenaPlan& plan) {
  std::vector<KvGroupShape> shapes;
  for (size_t g = 0; g < groups.size(); ++g) {
    shapes.push_back({int32_t(plan.groups[g].blocks_per_extent) * groups[g].layout.block_tokens, groups[g].window});
  }
  return shapes;
}

int64_t LargestChunk(const EngineOptions& options) {
  const int64_t budget = options.max_num_batched_tokens, chunk = options.long_prefill_token_threshold;
  return chunk > 0 ? std::min(chunk, budget) : budget;
}

// Memory that may become KV: of the host's half of what is free, of a GPU's all that utilization leaves.
size_t MemoryForKv(const EngineOptions& options, const DeviceInfo& device) {
  if (device.total_bytes == 0) return device.memory_bytes / 2;
  const auto kept_free = size_t(double(device.total_bytes) * (1 - options.gpu_memory_utilization));
  return device.memory_bytes > kept_free ? device.memory_bytes - kept_free : 0;
}

// How many extents (with one group of layers: blocks) the KV pool gets: as flags say, else what max_num_seqs full sequences could
// use, or on a GPU all there is: what no sequence uses keeps prefixes.
StatusOr<int64_t> ChooseNumBlocks(const EngineOptions& options, const KvArenaPlan& plan, std::span<const KvGroupShape> shapes,
                                  int64_t max_model_len, const DeviceInfo& device) {
  const size_t free_memory = device.memory_bytes, for_kv = MemoryForKv(options, device);
  const int64_t block_bytes = plan.extent_bytes;
  int64_t per_sequence = 0;
  for (const KvGroupShape& shape : shapes) per_sequence += ExtentsAtOnce(shape, max_model_len, LargestChunk(options));
  if (options.num_blocks > 0 || options.kv_cache_memory_bytes > 0) {
    const char* flag = options.num_blocks > 0 ? "--num-gpu-blocks-override" : "--kv-cache-memory-bytes";
    const int64_t blocks = options.num_blocks > 0 ? options.num_blocks : options.kv_cache_memory_bytes / block_bytes;
    if (blocks > int64_t(free_memory) / block_bytes) {
      return ResourceExhausted("{} asks for {} of KV but only {} of memory is free: lower it", flag,
                               FormatBytes(double(blocks) * double(block_bytes)), FormatBytes(double(free_memory)));
    }
    if (blocks > plan.ExtentsIn(INT64_MAX)) {
      return InvalidArgument("{} asks for {} KV blocks of {} but {} can be addressed: lower it, or raise --block-size", flag,
                             blocks, FormatBytes(double(block_bytes)), plan.ExtentsIn(INT64_MAX));
    }
    if (blocks >= int64_t(shapes.size())) return blocks;  // one for each group, or nothing could ever run
    return InvalidArgument(
        "{} gives {} KV blocks of {} ({} tokens each) but at least {} are needed: give more, or lower --block-size", flag, blocks,
        FormatBytes(double(block_bytes)), shapes[0].extent_tokens, shapes.size());
  }
  // Twice the sequences' own need leaves room for prefixes to stay cached.
  const int64_t wanted = device.total_bytes > 0 ? INT64_MAX : per_sequence * std::max<int64_t>(2 * options.max_num_seqs, 16);
  const int64_t blocks = std::min(wanted, plan.ExtentsIn(int64_t(for_kv)));
  if (blocks >= per_sequence) return blocks;
  return ResourceExhausted(
      "KV for one sequence of {} tokens needs {} but only {} of memory is free for it: lower --max-model-len, or free memory",
      max_model_len, FormatBytes(double(per_sequence * block_bytes)), FormatBytes(double(for_kv)));
}

StatusOr<std::optional<ChatTemplate>> LoadChatTemplate(const EngineOptions& options, const Tokenizer& tokenizer) {
  KVASIR_ASSIGN_OR_RETURN(ChatTemplateSources sources, ReadChatTemplateSources(RealFs(), options.model));
  // What only the tokenizer's own file says.
  for (const auto& [name, token] : {std::pair{"bos_token", tokenizer.bos_token()}, {"eos_token", tokenizer.eos_token()}}) {
    if (!token.empty()) sources.special_tokens.emplace(name, token);
  }
  if (!options.chat_template.empty()) {
    sources.templates.clear();
    KVASIR_ASSIGN_OR_RETURN(sources.templates["default"], ReadText(RealFs(), options.chat_template, kMaxJinjaSourceBytes));
  }
  if (sources.templates.empty()) return std::optional<ChatTemplate>();
  KVASIR_ASSIGN_OR_RETURN(const ContentFormat format, ParseContentFormat(options.chat_template_content_format));
  auto parsed = ChatTemplate::Make(std::move(sources), format);
  if (!parsed.ok()) return AtPlace(options.chat_template.empty() ? options.model : options.chat_template, parsed.status());
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
  config.limits.pool_tokens = runtime.pool_tokens;
  config.limits.kv_groups = runtime.cache->shapes();
  config.limits.pool_extents = runtime.num_blocks;
  config.limits.chunk_tokens = LargestChunk(options);
  config.limits.block_tokens = runtime.kv_layout.block_tokens;
  config.limits.max_logprobs = max_logprobs;
  config.limits.reserve_to_finish = config.reserve_to_finish;
  config.limits.priority_allowed = config.order == OrderPolicy::kPriority;
  config.limits.eos_token_ids = std::move(eos_token_ids);
  return config;
}

// Beside the other caches of the user. Without a home there is none.
std::string PackedCacheFolder(const std::string& option) {
  if (option == "off") return "";
  if (option != "auto") return option;
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return std::string(cache) + "/kvasir/packed";
  const char* home = std::getenv("HOME");
  return home != nullptr && home[0] == '/' ? std::string(home) + "/.cache/kvasir/packed" : "";
}

// Rows of logits computed at a time: where each op has a cost of its own, those of a whole step.
int LogitsRows(const EngineOptions& options, const Device& device) {
  constexpr int64_t kFew = 64, kMany = 256;
  return int(std::clamp<int64_t>(options.max_num_seqs, 1, device.RunsAhead() ? kMany : kFew));
}

std::string PlacementNote(const DeviceInfo& info) {
  return info.placement.empty() ? "" : fmt::format(" ({})", info.placement);
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
  if (options.device == "cuda") return MakeCudaDevice();
  if (options.device == "auto" && HasCudaDevice()) {
    StatusOr<std::unique_ptr<Device>> device = MakeCudaDevice();
    if (device.ok()) return device;
    spdlog::warn("{}", Message(device.status()));  // it says why, and computing on the CPU is what was asked for next
  }
  return MakeCpuDevice({.threads = options.threads});
}

StatusOr<std::unique_ptr<Runtime>> Runtime::Create(const EngineOptions& options, int64_t max_logprobs,
                                                   std::function<bool(double fraction, std::string_view what)> progress) {
  auto runtime = std::make_unique<Runtime>();
  KVASIR_ASSIGN_OR_RETURN(runtime->device, MakeDevice(options));
  // The tokenizer first: it is quick to read, and a broken one should be told before gigabytes are loaded.
  KVASIR_ASSIGN_OR_RETURN(runtime->tokenizer, Tokenizer::Load(options.model));
  KVASIR_ASSIGN_OR_RETURN(runtime->chat_template, LoadChatTemplate(options, *runtime->tokenizer));
  KVASIR_ASSIGN_OR_RETURN(const GenerationChoice generation,
                          ReadGenerationChoice(options.generation_config, options.override_generation_config));

  LoadOptions load;
  load.dtype = ParseDType(options.dtype);
  if (options.quantization != "auto") {
    KVASIR_ASSIGN_OR_RETURN(load.quantization, ParseQuantFormat(options.quantization));
  }
  if (options.load_format == "dummy") {
    load.format = LoadFormat::kDummy;
    spdlog::warn("the weights are made up (--load-format dummy): answers mean nothing");
  }
  load.packed_cache = {.dir = PackedCacheFolder(options.packed_cache),
                       .limit_bytes = uint64_t(options.packed_cache_limit),
                       .remark = [](const std::string& text) { spdlog::info("{}", text); }};
  load.max_step_tokens = int(options.max_num_batched_tokens);
  load.max_logits_rows = LogitsRows(options, *runtime->device);
  load.progress = std::move(progress);
  load.max_model_len = options.max_model_len;
  const int64_t before_weights = runtime->clock.NowMicros();
  KVASIR_ASSIGN_OR_RETURN(runtime->model, Model::Load(options.model, runtime->device.get(), load));
  runtime->weights_seconds = double(runtime->clock.NowMicros() - before_weights) * 1e-6;
  const ModelConfig& config = runtime->model->config();
  if (runtime->tokenizer->vocab_size() > config.vocab_size) {
    return InvalidArgument(
        "{}: tokenizer.json knows {} ids but the model's embedding has {} rows: the files are of different models", options.model,
        runtime->tokenizer->vocab_size(), config.vocab_size);
  }
  KVASIR_ASSIGN_OR_RETURN(runtime->max_model_len, ChooseModelLength(options, config));
  runtime->generation_defaults = generation.Defaults(runtime->model->generation_defaults());
  std::vector<int32_t> eos = generation.EndTokens(config.eos_token_ids, runtime->tokenizer->eos_id(), config.vocab_size);

  KVASIR_RETURN_IF_ERROR(runtime->CreateKv(options));
  runtime->engine = std::make_unique<Engine>(MakeEngineConfig(options, *runtime, max_logprobs, std::move(eos)),
                                             runtime->cache.get(), runtime->executor.get(), &runtime->clock);
  return runtime;
}

namespace {

// Extents of the host's arena.
StatusOr<int64_t> ChooseHostBlocks(const EngineOptions& options, const KvArenaPlan& plan, int64_t num_blocks) {
  if (options.kv_host_memory == 0) return 0;
  if (!options.enable_prefix_caching) {
    return InvalidArgument(
        "--kv-host-memory {} keeps KV to be found again, which --no-enable-prefix-caching switches off; use one of the two",
        FormatBytes(double(options.kv_host_memory)));
  }
  const int64_t blocks = options.kv_host_memory / plan.extent_bytes;
  if (blocks == 0) {
    return InvalidArgument("--kv-host-memory {} does not hold one KV block of {}; give it more, or 0 for none",
                           FormatBytes(double(options.kv_host_memory)), FormatBytes(double(plan.extent_bytes)));
  }
  const int64_t most = (int64_t{kNoBlock} - 1) / plan.extent_granules - num_blocks;
  if (blocks > most) {
    return InvalidArgument("--kv-host-memory {} is more KV than can be named beside the device's; at most {}",
                           FormatBytes(double(options.kv_host_memory)), FormatBytes(double(most) * double(plan.extent_bytes)));
  }
  return blocks;
}

}  // namespace

Status Runtime::CreateKv(const EngineOptions& options) {
  const int block_tokens = ChooseBlockTokens(options, model->config());
  KVASIR_ASSIGN_OR_RETURN(const std::optional<KvFormat> format, ParseKvCacheDType(options.kv_cache_dtype));
  if (format.has_value()) {
    const Status fits = CheckKvFormat(model->config(), *format);
    if (!fits.ok()) return InvalidArgument("--kv-cache-dtype {}: {}", options.kv_cache_dtype, Message(fits));
  }
  kv_groups = model->kv_groups(block_tokens, format);
  KVASIR_ASSIGN_OR_RETURN(std::vector<KvGroupConfig> configs, MakeKvGroups(kv_groups));
  kv_layout = kv_groups[0].layout;
  const KvArenaPlan plan = PlanKvArena(configs);
  const std::vector<KvGroupShape> shapes = MakeKvShapes(kv_groups, plan);
  KVASIR_ASSIGN_OR_RETURN(num_blocks, ChooseNumBlocks(options, plan, shapes, max_model_len, device->Info()));
  pool_tokens = LongestText(shapes, num_blocks, LargestChunk(options), num_blocks * int64_t{shapes[0].extent_tokens});
  for (const KvGroupShape& shape : shapes) {  // windows only: any length fits once the windows do
    if (shape.window_tokens == 0) break;
    if (&shape == &shapes.back()) pool_tokens = LongestText(shapes, num_blocks, LargestChunk(options), INT32_MAX);
  }
  KVASIR_ASSIGN_OR_RETURN(const int64_t host_blocks, ChooseHostBlocks(options, plan, num_blocks));
  // Memory first: what is not there should be told before what keeps account of it is made.
  KVASIR_ASSIGN_OR_RETURN(executor, ModelExecutor::Create(model.get(), device.get(), kv_groups, plan, num_blocks,
                                                          LogitsRows(options, *device), host_blocks));
  cache = std::make_unique<KvCache>(
      KvCacheConfig{.num_blocks = num_blocks,
                    .host_blocks = host_blocks,
                    .block_tokens = block_tokens,
                    .enable_prefix_caching = options.enable_prefix_caching,
                    .fingerprint = fmt::format("{} {} {}", model->fingerprint(), Name(kv_layout.format()), block_tokens),
                    .groups = std::move(configs)});
  return OkStatus();
}

std::string Runtime::Describe() const {
  const ModelConfig& config = model->config();
  const KvArenaPlan& plan = cache->plan();
  std::string text = fmt::format(
      "{}: {:.1f}M parameters, {} layers, hidden {}, {} query / {} KV heads of {}, vocabulary {}; weights {}, {}{}\n"
      "device: {}{}\n"
      "KV cache: {} in {} blocks of {} tokens",
      config.architecture, double(config.parameter_count()) / 1e6, config.num_layers, config.hidden_size, config.num_q_heads,
      config.num_kv_heads, config.head_dim, config.vocab_size, FormatBytes(double(model->weight_bytes())), model->formats(),
      model->weights_mapped() ? ", mapped from the packed cache" : "", device->Info().name, PlacementNote(device->Info()),
      FormatBytes(double(num_blocks) * double(plan.extent_bytes)), num_blocks, kv_layout.block_tokens);
  if (const int64_t host = cache->config().host_blocks; host > 0) {
    text += fmt::format(", and {} below in the host's memory", FormatBytes(double(host) * double(plan.extent_bytes)));
  }
  if (kv_groups.size() == 1 && kv_groups[0].window == 0) {
    return text + fmt::format(" = {} tokens ({} per token, {}); longest request {} tokens", pool_tokens,
                              FormatBytes(double(kv_layout.token_bytes())), Name(kv_layout.format()), max_model_len);
  }
  text += fmt::format(" ({}), shared by {} group{} of layers; longest request {} tokens", Name(kv_layout.format()),
                      kv_groups.size(), kv_groups.size() == 1 ? "" : "s", std::min(max_model_len, pool_tokens));
  for (size_t g = 0; g < kv_groups.size(); ++g) {
    const KvGroup& group = kv_groups[g];
    if (group.layout.state_floats > 0) {
      text += fmt::format("\n  {} layers of recurrent state: {} per sequence, and again per {} tokens that stay cached",
                          group.layout.num_layers, FormatBytes(double(group.layout.block_bytes())), group.layout.block_tokens);
      continue;
    }
    text += fmt::format("\n  {} layers that keep {}: {} per token, {} tokens would fit alone", group.layout.num_layers,
                        group.window == 0 ? "all tokens" : fmt::format("the last {} tokens", group.window),
                        FormatBytes(double(group.layout.token_bytes())), num_blocks * int64_t{cache->shapes()[g].extent_tokens});
  }
  return text;
}

}  // namespace kvasir
