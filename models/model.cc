#include "models/model.h"

#include "models/checkpoint.h"
#include "models/decoder.h"
#include "models/dummy_checkpoint.h"
#include "models/families.h"
#include "models/weights.h"

namespace kvasir {
namespace {

constexpr uint64_t kMaxConfigBytes = 4 << 20;
constexpr int64_t kMaxStepTokens = 1 << 20;
constexpr int64_t kMaxLogitsRows = 1 << 16;

Status CheckOptions(const ModelConfig& config, const LoadOptions& options) {
  if (options.max_step_tokens < 1 || options.max_step_tokens > kMaxStepTokens)
    return InvalidArgument("max_step_tokens is {}; wanted 1 to {}", options.max_step_tokens, kMaxStepTokens);
  if (options.max_logits_rows < 1 || options.max_logits_rows > kMaxLogitsRows)
    return InvalidArgument("max_logits_rows is {}; wanted 1 to {}", options.max_logits_rows, kMaxLogitsRows);
  if (options.max_model_len < 0 || options.max_model_len > config.max_context())
    return InvalidArgument(
        "max_model_len is {} but the model holds at most {} tokens (max_position_embeddings and rope scaling of config.json); "
        "ask for less",
        options.max_model_len, config.max_context());
  return OkStatus();
}

StatusOr<std::string> ReadOptionalText(const Fs& fs, const std::string& path) {
  StatusOr<std::string> text = ReadText(fs, path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return std::string();
  return text;
}

}  // namespace

StatusOr<std::unique_ptr<Model>> Model::Load(const std::string& dir, Device* device, const LoadOptions& options) {
  const Fs& fs = options.fs != nullptr ? *options.fs : RealFs();
  StatusOr<std::string> config_text = ReadText(fs, JoinPath(dir, "config.json"), kMaxConfigBytes);
  if (absl::IsNotFound(config_text.status()))
    return NotFound("{}: there is no config.json; a model is a Hugging Face folder with config.json and *.safetensors", dir);
  KVASIR_RETURN_IF_ERROR(config_text.status());
  KVASIR_ASSIGN_OR_RETURN(const std::string generation_text, ReadOptionalText(fs, JoinPath(dir, "generation_config.json")));

  // What is wrong with the config and what is wrong with the files is told at once.
  StatusOr<ModelConfig> config = ParseModelConfig(*config_text, generation_text);
  StatusOr<GenerationDefaults> defaults = ParseGenerationDefaults(generation_text);
  const bool dummy = options.format == LoadFormat::kDummy;
  StatusOr<Checkpoint> checkpoint = dummy ? DummyCheckpoint() : OpenCheckpoint(fs, dir);
  std::vector<std::string> problems;
  if (!config.ok()) problems.push_back(Message(config.status()));
  if (config.ok() && !defaults.ok()) problems.push_back(Message(defaults.status()));
  if (!checkpoint.ok() && problems.empty()) return checkpoint.status();
  if (!checkpoint.ok()) problems.push_back(Message(checkpoint.status()));
  if (!problems.empty()) return ListProblems(dir, problems);
  if (const Status status = CheckOptions(*config, options); !status.ok()) return AtPlace(dir, status);
  if (dummy && config->quantized)
    return InvalidArgument(
        "{}: config.json has a quantization_config, and quantised weights are not made up; take it out and quantise at load "
        "instead (--quantization)",
        dir);

  const Family* family = FindFamily(config->architecture);
  KVASIR_CHECK(family != nullptr, "{} passed ParseModelConfig", config->architecture);
  KVASIR_ASSIGN_OR_RETURN(ModelWeights weights, LoadWeights(*checkpoint, dir, *config, *family, device,
                                                            {.dtype = options.dtype,
                                                             .quantization = options.quantization,
                                                             .config_text = *config_text,
                                                             .packed_cache = dummy ? PackedCacheOptions() : options.packed_cache,
                                                             .progress = options.progress}));
  LoadOptions chosen = options;
  if (chosen.max_model_len == 0) chosen.max_model_len = config->max_position_embeddings;
  auto model = std::make_unique<Decoder>(device, std::move(*config), *defaults, std::move(weights), chosen);
  KVASIR_RETURN_IF_ERROR(model->AllocateActivations());
  return model;
}

}  // namespace kvasir
