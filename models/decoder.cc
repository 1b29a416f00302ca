#include "models/decoder.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "models/rope.h"

namespace kvasir {
namespace {

constexpr int64_t kRopeFillPositions = 1024;  // rotary rows computed at a time

// Everything of a config that changes what is computed from the same weights.
std::string Numerics(const ModelConfig& c) {
  std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}", c.architecture, int(c.norm), c.norm_plus_one, c.norm_eps,
                  int(c.block), int(c.qk_norm), c.attention_scale, c.attention_softcap, int(c.activation.kind), c.gated,
                  c.embed_scale, c.residual_scale, c.num_q_heads, c.num_kv_heads, c.head_dim, c.sinks);
  text += fmt::format(" {} {} {}", c.attention_scale_by_layer, c.activation.alpha, c.activation.limit);
  for (const LayerSpec& layer : c.layers)
    text += fmt::format(" {},{},{},{},{}", layer.window, layer.rope, layer.kv_owner, layer.experts, layer.delta);
  if (c.delta) text += fmt::format(" delta {} {} {}", c.delta->key_heads, c.delta->value_heads, c.delta->key_dim);
  if (c.moe) {
    const MoeRouting& r = c.moe->routing;
    text += fmt::format(" moe {} {} {} {} {} {} {}", int(r.score), r.top_k, r.normalize, r.scale, r.num_groups, r.top_groups,
                        r.group_score_top2);
  }
  return text;
}

uint64_t NextProgram() {
  static std::atomic<uint64_t> last{0};
  return last += 2;  // each has two
}

float RoundTo(DType dtype, float value) {
  if (dtype == DType::kBF16) return BF16ToF32(F32ToBF16(value));
  return dtype == DType::kF16 ? F16ToF32(F32ToF16(value)) : value;
}

}  // namespace

Decoder::Decoder(Device* device, ModelConfig config, GenerationDefaults defaults, ModelWeights weights,
                 const LoadOptions& options)
    : device_(device),
      config_(std::move(config)),
      defaults_(defaults),
      weights_(std::move(weights)),
      max_step_tokens_(options.max_step_tokens),
      max_logits_rows_(options.max_logits_rows),
      max_model_len_(options.max_model_len),
      kv_plan_(PlanKv(config_, 1, weights_.dtype)),
      program_(NextProgram()) {
  config_.dtype = weights_.dtype;
  if (config_.embed_scale_rounded) config_.embed_scale = RoundTo(weights_.dtype, config_.embed_scale);
  for (const Rope& rope : config_.ropes)
    rotations_.push_back({.frequencies = RopeFrequencies(rope, max_model_len_), .scale = rope.scaling.attention_factor});
}

Decoder::~Decoder() {
  for (void* buffer : owned_) device_->Free(buffer);
}

std::vector<KvGroup> Decoder::kv_groups(int block_tokens, std::optional<KvFormat> kv_format) const {
  return PlanKv(config_, block_tokens, kv_format.value_or(weights_.dtype)).groups;
}

// What the values in a KV cache depend on: weights, the way they are computed with, and how positions are rotated.
std::string Decoder::fingerprint() const {
  const DeviceInfo info = device_->Info();
  std::string identity = fmt::format("{} {} {} {} {} {}", weights_.hash, Numerics(config_), Name(weights_.dtype),
                                     weights_.formats, info.backend, info.name.substr(0, info.name.find(',')));
  for (const Rotation& rotation : rotations_) {
    identity += fmt::format(" rope {:a}", rotation.scale);
    for (const double f : rotation.frequencies) identity += fmt::format(" {:a}", f);
  }
  const XXH128_hash_t hash = XXH3_128bits(identity.data(), identity.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

// --- activations ----------------------------------------------------------------------------------------------------------

StatusOr<float*> Decoder::AllocateRows(int64_t rows, int64_t width, std::string_view what) {
  // Config bounds keep rows * width * 4 far below 2^63.
  KVASIR_ASSIGN_OR_RETURN(void* buffer, device_->Allocate(static_cast<size_t>(rows) * width * sizeof(float), what));
  owned_.push_back(buffer);
  return static_cast<float*>(buffer);
}

Status Decoder::AllocateActivations() {
  const int64_t hidden = config_.hidden_size;
  int64_t ffn = config_.intermediate_size;
  if (config_.moe) ffn = std::max(ffn, config_.moe->shared_intermediate_size);
  const int64_t q_width = int64_t{config_.num_q_heads} * config_.head_dim;
  const int64_t qkv_width = q_width + 2 * int64_t{config_.num_kv_heads} * config_.head_dim;
  KVASIR_ASSIGN_OR_RETURN(residual_, AllocateRows(max_step_tokens_, hidden, "activations: residual"));
  KVASIR_ASSIGN_OR_RETURN(normed_, AllocateRows(max_step_tokens_, hidden, "activations: normed"));
  KVASIR_ASSIGN_OR_RETURN(delta_, AllocateRows(max_step_tokens_, hidden, "activations: delta"));
  KVASIR_ASSIGN_OR_RETURN(q_, AllocateRows(max_step_tokens_, q_width, "activations: q"));
  if (config_.latent) {
    KVASIR_RETURN_IF_ERROR(AllocateLatent());
  } else {
    KVASIR_ASSIGN_OR_RETURN(qkv_, AllocateRows(max_step_tokens_, qkv_width, "activations: qkv"));
    KVASIR_ASSIGN_OR_RETURN(attended_, AllocateRows(max_step_tokens_, q_width, "activations: attention"));
  }
  KVASIR_ASSIGN_OR_RETURN(up_, AllocateRows(max_step_tokens_, (config_.gated ? 2 : 1) * ffn, "activations: gate and up"));
  KVASIR_ASSIGN_OR_RETURN(activated_, AllocateRows(max_step_tokens_, ffn, "activations: activated"));
  const bool parallel = config_.block == BlockForm::kParallel || config_.block == BlockForm::kParallelTwo;
  if (parallel || (config_.moe && config_.moe->shared_intermediate_size > 0)) {
    KVASIR_ASSIGN_OR_RETURN(other_, AllocateRows(max_step_tokens_, hidden, "activations: second block"));
  }
  if (config_.attention_gate) {
    KVASIR_ASSIGN_OR_RETURN(gate_, AllocateRows(max_step_tokens_, q_width, "activations: attention gate"));
  }
  if (config_.delta) KVASIR_RETURN_IF_ERROR(AllocateDelta());
  if (config_.moe) KVASIR_RETURN_IF_ERROR(AllocateExperts());
  KVASIR_ASSIGN_OR_RETURN(picked_, AllocateRows(max_logits_rows_, hidden, "activations: rows for logits"));
  KVASIR_ASSIGN_OR_RETURN(logits_, AllocateRows(logits_rows(), config_.vocab_size, "logits"));
  for (Rotation& rotation : rotations_) {
    const int64_t half = static_cast<int64_t>(rotation.frequencies.size());
    KVASIR_ASSIGN_OR_RETURN(rotation.cos, AllocateRows(max_model_len_, half, "rotary table"));
    KVASIR_ASSIGN_OR_RETURN(rotation.sin, AllocateRows(max_model_len_, half, "rotary table"));
  }
  return OkStatus();
}

Status Decoder::AllocateLatent() {
  const LatentSpec& latent = *config_.latent;
  const int64_t heads = config_.num_q_heads;
  KVASIR_ASSIGN_OR_RETURN(qkv_,
                          AllocateRows(max_step_tokens_, heads * (latent.nope_dim + latent.rope_dim), "activations: queries"));
  KVASIR_ASSIGN_OR_RETURN(attended_, AllocateRows(max_step_tokens_, heads * latent.kv_rank, "activations: attention"));
  KVASIR_ASSIGN_OR_RETURN(latent_, AllocateRows(max_step_tokens_, latent.kv_rank + latent.rope_dim, "activations: latent"));
  KVASIR_ASSIGN_OR_RETURN(values_, AllocateRows(max_step_tokens_, heads * latent.value_dim, "activations: values"));
  if (latent.q_rank > 0) {
    KVASIR_ASSIGN_OR_RETURN(q_down_, AllocateRows(max_step_tokens_, latent.q_rank, "activations: query latent"));
  }
  return OkStatus();
}

Status Decoder::AllocateDelta() {
  const DeltaNet& net = *config_.delta;
  const int64_t width = net.channels() + net.values() + 2 * int64_t{net.value_heads};
  KVASIR_ASSIGN_OR_RETURN(delta_in_, AllocateRows(max_step_tokens_, width, "activations: delta net inputs"));
  KVASIR_ASSIGN_OR_RETURN(convolved_, AllocateRows(max_step_tokens_, net.channels(), "activations: convolution"));
  KVASIR_ASSIGN_OR_RETURN(delta_out_, AllocateRows(max_step_tokens_, net.values(), "activations: delta net outputs"));
  return OkStatus();
}

Status Decoder::AllocateExperts() {
  const MoeSpec& moe = *config_.moe;
  KVASIR_ASSIGN_OR_RETURN(router_logits_, AllocateRows(max_step_tokens_, moe.num_experts, "activations: router"));
  KVASIR_ASSIGN_OR_RETURN(expert_weights_, AllocateRows(max_step_tokens_, moe.top_k, "activations: expert weights"));
  KVASIR_ASSIGN_OR_RETURN(float* const ids, AllocateRows(max_step_tokens_, moe.top_k, "activations: expert ids"));
  static_assert(sizeof(float) == sizeof(int32_t));
  expert_ids_ = reinterpret_cast<int32_t*>(ids);
  if (moe.shared_gate) {
    KVASIR_ASSIGN_OR_RETURN(shared_gate_, AllocateRows(max_step_tokens_, 1, "activations: shared gate"));
  }
  return OkStatus();
}

// --- a step ---------------------------------------------------------------------------------------------------------------

Status Decoder::CheckInput(const ForwardInput& input) const {
  const size_t rows = input.token_ids.size();
  if (rows == 0 || rows > static_cast<size_t>(max_step_tokens_))
    return InvalidArgument("a step of {} tokens; wanted 1 to max_step_tokens = {}", rows, max_step_tokens_);
  if (input.positions.size() != rows) return InvalidArgument("{} positions for {} tokens", input.positions.size(), rows);
  for (size_t i = 0; i < rows; ++i) {
    const bool pending = IsPending(input.token_ids[i]) && device_->RunsAhead();
    if (!pending && (input.token_ids[i] < 0 || input.token_ids[i] >= config_.vocab_size))
      return InvalidArgument("token id {} in row {} is outside the vocabulary of {}", input.token_ids[i], i, config_.vocab_size);
    if (input.positions[i] < 0 || input.positions[i] >= max_model_len_)
      return OutOfRange("position {} in row {} is beyond the context of {} tokens", input.positions[i], i, max_model_len_);
  }
  KVASIR_RETURN_IF_ERROR(CheckKv(input));
  int64_t next_row = 0;
  const size_t tables = input.kv[0].tables.size();
  for (const SequenceSlice& slice : input.slices) {
    if (slice.first_row != next_row || slice.num_rows <= 0 || slice.kv < 0 || static_cast<size_t>(slice.kv) >= tables)
      return InvalidArgument(
          "slice of {} rows at row {} with KV table {}: slices must follow one another and name one of {} tables", slice.num_rows,
          slice.first_row, slice.kv, tables);
    next_row += slice.num_rows;
  }
  if (next_row != static_cast<int64_t>(rows)) return InvalidArgument("slices cover {} of {} rows", next_row, rows);
  return OkStatus();
}

Status Decoder::CheckKv(const ForwardInput& input) const {
  if (input.kv.size() != kv_plan_.groups.size())
    return InvalidArgument("{} KV groups; the model has {}", input.kv.size(), kv_plan_.groups.size());
  for (size_t g = 0; g < input.kv.size(); ++g) {
    const KvLayout &layout = input.kv[g].layout, &mine = kv_plan_.groups[g].layout;
    if (layout.num_layers != mine.num_layers || layout.num_kv_heads != mine.num_kv_heads || layout.head_dim != mine.head_dim ||
        layout.value_dim != mine.value_dim || layout.state_floats != mine.state_floats)
      return InvalidArgument("the KV layout of group {} is for another model: {} layers, {} heads of {}", g, layout.num_layers,
                             layout.num_kv_heads, layout.head_dim);
    if (input.kv[g].tables.size() != input.kv[0].tables.size())
      return InvalidArgument("KV group {} has {} tables, group 0 has {}", g, input.kv[g].tables.size(),
                             input.kv[0].tables.size());
  }
  return OkStatus();
}

// Fills a rotary table up to a position. Tables are filled as texts grow: a context of a million tokens should not cost every
// start its sines. The rows appended here are read by no step in flight.
void Decoder::RotateUpTo(Rotation& rotation, int64_t position) {
  const int64_t half = static_cast<int64_t>(rotation.frequencies.size());
  std::vector<float> cos, sin;
  while (rotation.filled <= position) {
    const int64_t count = std::min(kRopeFillPositions, max_model_len_ - rotation.filled);
    cos.resize(count * half);
    sin.resize(count * half);
    FillRope(rotation.frequencies, rotation.scale, rotation.filled, count, cos.data(), sin.data());
    device_->CopyToDevice(rotation.cos + rotation.filled * half, cos.data(), cos.size() * sizeof(float));
    device_->CopyToDevice(rotation.sin + rotation.filled * half, sin.data(), sin.size() * sizeof(float));
    rotation.filled += count;
  }
}

RopeTable Decoder::Table(int rope) const {
  if (rope < 0) return {};
  const Rotation& rotation = rotations_[rope];
  return {rotation.cos, rotation.sin, config_.ropes[rope].rotary_dim, max_model_len_};
}

Norm Decoder::MakeNorm(const NormWeights& weights) const {
  return {.kind = config_.norm, .weight = &weights.weight, .bias = OrNull(weights.bias), .eps = config_.norm_eps};
}

Status Decoder::Forward(const ForwardInput& wanted, bool logits) {
  last_rows_ = 0;
  has_logits_ = logits && wanted.token_ids.size() <= size_t(max_logits_rows_);
  ForwardInput input = wanted;
  input.program = has_logits_ ? program_ + 1 : program_;
  KVASIR_RETURN_IF_ERROR(CheckInput(input));
  const int32_t last_position = *std::max_element(input.positions.begin(), input.positions.end());
  for (Rotation& rotation : rotations_) RotateUpTo(rotation, last_position);
  const StepPlan plan = device_->StartStep(input, has_logits_ ? std::min(max_step_tokens_, logits_rows()) : max_step_tokens_);
  do {
    if (!plan.compute) continue;
    RunLayers(input, plan.rows);
    if (has_logits_) ComputeLogits(normed_, plan.rows);
  } while (!device_->FinishStep());
  last_rows_ = static_cast<int64_t>(input.token_ids.size());
  return OkStatus();
}

void Decoder::RunLayers(const ForwardInput& input, int rows) {
  const int hidden = static_cast<int>(config_.hidden_size);
  const float scale = config_.residual_scale;
  // residual += scale * delta; normed = norm(residual)
  const auto add_norm = [&](const float* delta, const NormWeights& norm) {
    device_->AddNorm(residual_, delta, scale, MakeNorm(norm), rows, hidden, normed_);
  };
  const auto norm_delta = [&](const NormWeights& norm) {
    device_->AddNorm(delta_, nullptr, 0, MakeNorm(norm), rows, hidden, delta_);
  };

  device_->Embed(weights_.embed, input.token_ids, config_.embed_scale, residual_);
  const float* delta = nullptr;  // what the residual stream still lacks
  if (weights_.positions) {
    device_->Embed(*weights_.positions, input.positions, 1, delta_);
    delta = delta_;
  }
  for (int i = 0; i < config_.num_layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    switch (config_.block) {
      case BlockForm::kPreNorm:
        add_norm(delta, *layer.input_norm);
        Attend(input, i, rows, normed_, delta_);
        add_norm(delta_, *layer.mlp_norm);
        FeedForward(i, rows, normed_, delta_);
        break;
      case BlockForm::kSandwich:
        add_norm(delta, *layer.input_norm);
        Attend(input, i, rows, normed_, delta_);
        norm_delta(*layer.post_attention_norm);
        add_norm(delta_, *layer.mlp_norm);
        FeedForward(i, rows, normed_, delta_);
        norm_delta(*layer.post_mlp_norm);
        break;
      case BlockForm::kPostNorm:
        if (delta != nullptr) device_->Add(residual_, delta, scale, rows, hidden);
        Attend(input, i, rows, residual_, delta_);
        norm_delta(*layer.post_attention_norm);
        device_->Add(residual_, delta_, scale, rows, hidden);
        FeedForward(i, rows, residual_, delta_);
        norm_delta(*layer.post_mlp_norm);
        break;
      case BlockForm::kParallel:
      case BlockForm::kParallelTwo:
        add_norm(delta, *layer.input_norm);
        Attend(input, i, rows, normed_, delta_);
        if (layer.mlp_norm) add_norm(nullptr, *layer.mlp_norm);
        FeedForward(i, rows, normed_, other_);
        device_->Add(delta_, other_, 1, rows, hidden);
        break;
    }
    delta = delta_;
  }
  add_norm(delta, weights_.final_norm);
}

StatusOr<const float*> Decoder::Logits(std::span<const int32_t> rows) {
  if (rows.empty() || rows.size() > static_cast<size_t>(max_logits_rows_))
    return InvalidArgument("logits of {} rows; wanted 1 to max_logits_rows = {}", rows.size(), max_logits_rows_);
  for (const int32_t row : rows)
    if (row < 0 || row >= last_rows_) return InvalidArgument("logits of row {}, but the last step had {} rows", row, last_rows_);
  if (has_logits_ && AreFirstRows(rows)) return logits_;
  has_logits_ = false;  // they are overwritten
  device_->GatherRows(normed_, rows, static_cast<int>(config_.hidden_size), picked_);
  ComputeLogits(picked_, static_cast<int>(rows.size()));
  return logits_;
}

void Decoder::ComputeLogits(const float* in, int rows) {
  device_->Linear(in, rows, weights_.lm_head, nullptr, logits_);
  if (config_.logit_scale != 1 || config_.logit_softcap != 0)
    device_->ScaleRows(logits_, rows, static_cast<int>(config_.vocab_size), config_.logit_scale, config_.logit_softcap);
}

bool AreFirstRows(std::span<const int32_t> rows) {
  for (size_t i = 0; i < rows.size(); ++i)
    if (rows[i] != int32_t(i)) return false;
  return true;
}

}  // namespace kvasir
