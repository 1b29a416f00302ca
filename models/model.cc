#include "models/model.h"

#include <spdlog/spdlog.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>

#include "models/checkpoint.h"
#include "models/families.h"
#include "models/rope.h"
#include "models/weights.h"

namespace kvasir {
namespace {

constexpr uint64_t kMaxConfigBytes = 4 << 20;
constexpr int64_t kRopeFillPositions = 1024;  // rotary rows computed at a time
constexpr int64_t kMaxStepTokens = 1 << 20;
constexpr int64_t kMaxLogitsRows = 1 << 16;

const Weight* OrNull(const std::optional<Weight>& weight) {
  return weight ? &*weight : nullptr;
}

// The decoder of the families table: pre-norm, rotary grouped-query attention, gated SiLU.
class Decoder : public Model {
 public:
  Decoder(Device* device, ModelConfig config, GenerationDefaults defaults, ModelWeights weights, const LoadOptions& options)
      : device_(device),
        config_(std::move(config)),
        defaults_(defaults),
        weights_(std::move(weights)),
        max_step_tokens_(options.max_step_tokens),
        max_logits_rows_(options.max_logits_rows),
        max_model_len_(options.max_model_len),
        frequencies_(RopeFrequencies(config_, max_model_len_)) {
    config_.dtype = weights_.dtype;
  }
  ~Decoder() override {
    for (void* buffer : owned_) device_->Free(buffer);
  }

  const ModelConfig& config() const override { return config_; }
  const GenerationDefaults& generation_defaults() const override { return defaults_; }
  size_t weight_bytes() const override { return weights_.bytes; }
  int64_t max_model_len() const override { return max_model_len_; }

  std::vector<KvGroup> kv_groups(int block_tokens, std::optional<DType> kv_dtype) const override {
    return {{{kv_dtype.value_or(weights_.dtype), block_tokens, config_.num_layers, config_.num_kv_heads, config_.head_dim}}};
  }

  // What the values in a KV cache depend on: weights, the way they are computed with, and how positions are rotated.
  std::string fingerprint() const override {
    const DeviceInfo info = device_->Info();
    std::string identity =
        fmt::format("{} {} {} {} {} {} {}", weights_.hash, config_.architecture, Name(weights_.dtype), info.backend,
                    info.name.substr(0, info.name.find(',')), config_.rms_norm_eps, config_.sliding_window);
    for (const double f : frequencies_) identity += fmt::format(" {:a}", f);
    const XXH128_hash_t hash = XXH3_128bits(identity.data(), identity.size());
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

  Status AllocateActivations();
  Status Forward(const ForwardInput& input) override;
  StatusOr<const float*> Logits(std::span<const int32_t> rows) override;

 private:
  StatusOr<float*> AllocateRows(int64_t rows, int64_t width, std::string_view what);
  Status CheckInput(const ForwardInput& input) const;
  void RotateUpTo(int64_t position);

  Device* const device_;
  ModelConfig config_;
  const GenerationDefaults defaults_;
  const ModelWeights weights_;
  const int max_step_tokens_;
  const int max_logits_rows_;
  const int64_t max_model_len_;
  const std::vector<double> frequencies_;

  // Device memory, taken once; [max_step_tokens, width] unless said.
  std::vector<void*> owned_;
  float* residual_ = nullptr;   // [, hidden]
  float* normed_ = nullptr;     // [, hidden]; after Forward the final hidden states
  float* delta_ = nullptr;      // [, hidden]: what a block adds to the residual stream
  float* qkv_ = nullptr;        // [, (Hq + 2 Hkv) * head_dim]
  float* q_ = nullptr;          // [, Hq * head_dim]
  float* attended_ = nullptr;   // [, Hq * head_dim]
  float* gate_up_ = nullptr;    // [, 2 * intermediate]
  float* activated_ = nullptr;  // [, intermediate]
  float* picked_ = nullptr;     // [max_logits_rows, hidden]
  float* logits_ = nullptr;     // [max_logits_rows, vocab]
  float* rope_cos_ = nullptr;   // [max_model_len, head_dim / 2]
  float* rope_sin_ = nullptr;
  int64_t rotated_positions_ = 0;  // rows of the rotary tables that are filled
  int64_t last_rows_ = 0;          // rows of the last Forward
};

StatusOr<float*> Decoder::AllocateRows(int64_t rows, int64_t width, std::string_view what) {
  // Config bounds keep rows * width * 4 far below 2^63.
  KVASIR_ASSIGN_OR_RETURN(void* buffer, device_->Allocate(static_cast<size_t>(rows) * width * sizeof(float), what));
  owned_.push_back(buffer);
  return static_cast<float*>(buffer);
}

Status Decoder::AllocateActivations() {
  const int64_t hidden = config_.hidden_size, ffn = config_.intermediate_size, half = config_.head_dim / 2;
  const int64_t q_width = int64_t{config_.num_q_heads} * config_.head_dim;
  const int64_t qkv_width = q_width + 2 * int64_t{config_.num_kv_heads} * config_.head_dim;
  KVASIR_ASSIGN_OR_RETURN(residual_, AllocateRows(max_step_tokens_, hidden, "activations: residual"));
  KVASIR_ASSIGN_OR_RETURN(normed_, AllocateRows(max_step_tokens_, hidden, "activations: normed"));
  KVASIR_ASSIGN_OR_RETURN(delta_, AllocateRows(max_step_tokens_, hidden, "activations: delta"));
  KVASIR_ASSIGN_OR_RETURN(qkv_, AllocateRows(max_step_tokens_, qkv_width, "activations: qkv"));
  KVASIR_ASSIGN_OR_RETURN(q_, AllocateRows(max_step_tokens_, q_width, "activations: q"));
  KVASIR_ASSIGN_OR_RETURN(attended_, AllocateRows(max_step_tokens_, q_width, "activations: attention"));
  KVASIR_ASSIGN_OR_RETURN(gate_up_, AllocateRows(max_step_tokens_, 2 * ffn, "activations: gate and up"));
  KVASIR_ASSIGN_OR_RETURN(activated_, AllocateRows(max_step_tokens_, ffn, "activations: gated"));
  KVASIR_ASSIGN_OR_RETURN(picked_, AllocateRows(max_logits_rows_, hidden, "activations: rows for logits"));
  KVASIR_ASSIGN_OR_RETURN(logits_, AllocateRows(max_logits_rows_, config_.vocab_size, "logits"));
  KVASIR_ASSIGN_OR_RETURN(rope_cos_, AllocateRows(max_model_len_, half, "rotary table"));
  KVASIR_ASSIGN_OR_RETURN(rope_sin_, AllocateRows(max_model_len_, half, "rotary table"));
  return OkStatus();
}

Status Decoder::CheckInput(const ForwardInput& input) const {
  const size_t rows = input.token_ids.size();
  if (rows == 0 || rows > static_cast<size_t>(max_step_tokens_))
    return InvalidArgument("a step of {} tokens; wanted 1 to max_step_tokens = {}", rows, max_step_tokens_);
  if (input.positions.size() != rows) return InvalidArgument("{} positions for {} tokens", input.positions.size(), rows);
  for (size_t i = 0; i < rows; ++i) {
    if (input.token_ids[i] < 0 || input.token_ids[i] >= config_.vocab_size)
      return InvalidArgument("token id {} in row {} is outside the vocabulary of {}", input.token_ids[i], i, config_.vocab_size);
    if (input.positions[i] < 0 || input.positions[i] >= max_model_len_)
      return OutOfRange("position {} in row {} is beyond the context of {} tokens", input.positions[i], i, max_model_len_);
  }
  if (input.kv.size() != 1) return InvalidArgument("{} KV groups; the model has 1", input.kv.size());
  int64_t next_row = 0;
  for (const SequenceSlice& slice : input.slices) {
    if (slice.first_row != next_row || slice.num_rows <= 0 || slice.kv < 0 ||
        static_cast<size_t>(slice.kv) >= input.kv[0].tables.size())
      return InvalidArgument(
          "slice of {} rows at row {} with KV table {}: slices must follow one another and name one of {} tables", slice.num_rows,
          slice.first_row, slice.kv, input.kv[0].tables.size());
    next_row += slice.num_rows;
  }
  if (next_row != static_cast<int64_t>(rows)) return InvalidArgument("slices cover {} of {} rows", next_row, rows);
  const KvLayout& layout = input.kv[0].layout;
  if (layout.num_layers != config_.num_layers || layout.num_kv_heads != config_.num_kv_heads ||
      layout.head_dim != config_.head_dim)
    return InvalidArgument("the KV layout is for another model: {} layers, {} heads of {}", layout.num_layers,
                           layout.num_kv_heads, layout.head_dim);
  return OkStatus();
}

// Fills the rotary tables up to a position. They are filled as texts grow: a context of a million tokens should not cost every
// start its sines. The rows appended here are read by no step in flight.
void Decoder::RotateUpTo(int64_t position) {
  const int64_t half = config_.head_dim / 2;
  std::vector<float> cos, sin;
  while (rotated_positions_ <= position) {
    const int64_t count = std::min(kRopeFillPositions, max_model_len_ - rotated_positions_);
    cos.resize(count * half);
    sin.resize(count * half);
    FillRope(frequencies_, rotated_positions_, count, cos.data(), sin.data());
    device_->CopyToDevice(rope_cos_ + rotated_positions_ * half, cos.data(), cos.size() * sizeof(float));
    device_->CopyToDevice(rope_sin_ + rotated_positions_ * half, sin.data(), sin.size() * sizeof(float));
    rotated_positions_ += count;
  }
}

Status Decoder::Forward(const ForwardInput& input) {
  last_rows_ = 0;
  KVASIR_RETURN_IF_ERROR(CheckInput(input));
  RotateUpTo(*std::max_element(input.positions.begin(), input.positions.end()));
  const int rows = static_cast<int>(input.token_ids.size());
  const int ffn = static_cast<int>(config_.intermediate_size);
  const float eps = config_.rms_norm_eps;
  const RopeTable rope = {rope_cos_, rope_sin_, config_.head_dim, max_model_len_};
  const AttentionParams attention = {config_.num_q_heads, static_cast<float>(1.0 / std::sqrt(config_.head_dim)),
                                     config_.sliding_window};

  device_->Embed(weights_.embed, input.token_ids, residual_);
  const float* delta = nullptr;
  for (int i = 0; i < config_.num_layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    device_->AddRmsNorm(residual_, delta, layer.input_norm, eps, rows, normed_);
    device_->Linear(normed_, rows, layer.qkv, OrNull(layer.qkv_bias), qkv_);
    device_->RopeAppend(qkv_, input.positions, rope, config_.num_q_heads, i, input.slices, input.kv[0], q_);
    device_->Attention(q_, i, attention, input.slices, input.kv[0], attended_);
    device_->Linear(attended_, rows, layer.o, OrNull(layer.o_bias), delta_);
    device_->AddRmsNorm(residual_, delta_, layer.post_norm, eps, rows, normed_);
    device_->Linear(normed_, rows, layer.gate_up, OrNull(layer.gate_up_bias), gate_up_);
    device_->GatedSilu(gate_up_, rows, ffn, activated_);
    device_->Linear(activated_, rows, layer.down, OrNull(layer.down_bias), delta_);
    delta = delta_;
  }
  device_->AddRmsNorm(residual_, delta, weights_.final_norm, eps, rows, normed_);
  last_rows_ = rows;
  return OkStatus();
}

StatusOr<const float*> Decoder::Logits(std::span<const int32_t> rows) {
  if (rows.empty() || rows.size() > static_cast<size_t>(max_logits_rows_))
    return InvalidArgument("logits of {} rows; wanted 1 to max_logits_rows = {}", rows.size(), max_logits_rows_);
  for (const int32_t row : rows)
    if (row < 0 || row >= last_rows_) return InvalidArgument("logits of row {}, but the last step had {} rows", row, last_rows_);
  device_->GatherRows(normed_, rows, static_cast<int>(config_.hidden_size), picked_);
  device_->Linear(picked_, static_cast<int>(rows.size()), weights_.lm_head, nullptr, logits_);
  return logits_;
}

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
  StatusOr<Checkpoint> checkpoint = OpenCheckpoint(fs, dir);
  std::vector<std::string> problems;
  if (!config.ok()) problems.push_back(Message(config.status()));
  if (config.ok() && !defaults.ok()) problems.push_back(Message(defaults.status()));
  if (!checkpoint.ok() && problems.empty()) return checkpoint.status();
  if (!checkpoint.ok()) problems.push_back(Message(checkpoint.status()));
  if (!problems.empty()) return ListProblems(dir, problems);
  if (const Status status = CheckOptions(*config, options); !status.ok()) return AtPlace(dir, status);

  const Family* family = FindFamily(config->architecture);
  KVASIR_CHECK(family != nullptr, "{} passed ParseModelConfig", config->architecture);
  KVASIR_ASSIGN_OR_RETURN(ModelWeights weights,
                          LoadWeights(*checkpoint, dir, *config, *family, device, {options.dtype, options.progress}));
  LoadOptions chosen = options;
  if (chosen.max_model_len == 0) chosen.max_model_len = config->max_position_embeddings;
  auto model = std::make_unique<Decoder>(device, std::move(*config), *defaults, std::move(weights), chosen);
  KVASIR_RETURN_IF_ERROR(model->AllocateActivations());
  return model;
}

}  // namespace kvasir
