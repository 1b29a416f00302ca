#include "models/weights_plan.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "models/dummy_checkpoint.h"

namespace kvasir {
namespace {

// Tables that old checkpoints carry beside their weights: known and not needed.
constexpr std::array<std::string_view, 4> kKnownExtras = {"rotary_emb.inv_freq", ".attn.bias", "attention.bias", ".masked_bias"};
// Quantised ones: how activations and the KV cache were scaled where the checkpoint was made. Here activations are scaled as they
// come, which is finer.
constexpr std::array<std::string_view, 9> kQuantExtras = {".input_scale",  ".activation_scale",  ".input_zero_point",
                                                          ".output_scale", ".output_zero_point", ".k_scale",
                                                          ".v_scale",      ".input_scale_ub",    ".weight_shape"};

}  // namespace

QuantFormat FormatOfHead(QuantFormat format) {
  return format.kind == QuantFormat::Kind::kInt4 ? QuantFormat{QuantFormat::Kind::kInt8, 0} : format;
}

WeightsPlan::WeightsPlan(const Checkpoint& checkpoint, const ModelConfig& config, const Family& family,
                         const WeightsOptions& options)
    : checkpoint_(checkpoint),
      config_(config),
      family_(family),
      names_(family.names),
      root_(ChooseRoot()),
      asked_dtype_(options.dtype),
      asked_quantization_(options.quantization) {}

std::string_view WeightsPlan::ChooseRoot() const {
  const bool other = !family_.other_root.empty() &&
                     !checkpoint_.tensors.contains(fmt::format("{}{}.weight", family_.root, names_.embed)) &&
                     checkpoint_.tensors.contains(fmt::format("{}{}.weight", family_.other_root, names_.embed));
  return other ? family_.other_root : family_.root;
}

void WeightsPlan::Build(ModelWeights* weights) {
  const int64_t hidden = config_.hidden_size;
  const auto embedding = [&](std::string_view name, int64_t rows, Weight* packed) {
    AddGroup({.kind = PartGroup::Kind::kEmbedding,
              .parts = {Matrix(fmt::format("{}{}.weight", root_, name), rows, hidden)},
              .packed = packed});
  };
  embedding(names_.embed, config_.vocab_size, &weights->embed);
  if (const std::vector<Part>& table = groups_.back().parts; !table.empty()) dtype_ = asked_dtype_.value_or(table[0].dtype);
  if (config_.tie_word_embeddings) {
    groups_.back().also_linear = &weights->lm_head;
    groups_.back().also_quant = FormatOfHead(asked_quantization_.value_or(QuantFormat()));
  }
  if (config_.learned_positions) embedding(names_.positions, config_.max_position_embeddings, &weights->positions.emplace());
  weights->layers.resize(config_.num_layers);
  for (int i = 0; i < config_.num_layers; ++i) AddLayer(i, &weights->layers[i]);
  AddNorm(fmt::format("{}{}", root_, names_.final_norm), &weights->final_norm);
  if (!config_.tie_word_embeddings)
    AddLinear(&weights->lm_head, {Matrix(std::string(names_.lm_head), config_.vocab_size, hidden)}, false, true);
}

Status WeightsPlan::Check(const std::string& dir) const {
  if (!problems_.empty()) return ListProblems(dir, problems_);
  std::vector<std::string> extra;
  for (const auto& [name, place] : checkpoint_.tensors) {
    bool known = config_.tie_word_embeddings && name.ends_with("lm_head.weight");  // the second name of a tied weight
    for (const std::string_view suffix : kKnownExtras) known = known || name.ends_with(suffix);
    if (config_.quantized)
      for (const std::string_view suffix : kQuantExtras) known = known || name.ends_with(suffix);
    if (!known && !wanted_.contains(name)) extra.push_back(name);
  }
  const size_t num_extra = extra.size();
  extra.resize(std::min<size_t>(num_extra, 5));
  if (num_extra > 0)
    spdlog::warn("{}: {} tensors are not part of the model and are ignored: {}", dir, num_extra, fmt::join(extra, ", "));
  return OkStatus();
}

// --- parts ----------------------------------------------------------------------------------------------------------------

// A linear weight [rows, cols], as the family stores them.
Part WeightsPlan::Matrix(std::string name, int64_t rows, int64_t cols, Rearrange rearrange) const {
  const bool transposed = rearrange.transpose;
  Part part = {.name = std::move(name), .rows = transposed ? cols : rows, .cols = transposed ? rows : cols};
  part.shape = {static_cast<uint64_t>(part.rows), static_cast<uint64_t>(part.cols)};
  part.rearrange = std::move(rearrange);
  return part;
}

Part WeightsPlan::Vector(std::string name, int64_t size, Rearrange rearrange) const {
  return {.name = std::move(name),
          .shape = {static_cast<uint64_t>(size)},
          .rows = size,
          .cols = 1,
          .rearrange = std::move(rearrange)};
}

// `rows` rows of a larger tensor.
Part WeightsPlan::RowsOf(std::string name, std::vector<uint64_t> shape, int64_t first_row, int64_t rows,
                         Rearrange rearrange) const {
  Part part = {.name = std::move(name), .shape = std::move(shape), .first_row = first_row, .rows = rows};
  part.cols = static_cast<int64_t>(part.shape.back());
  part.rearrange = std::move(rearrange);
  return part;
}

void WeightsPlan::AddVector(Weight* packed, std::vector<Part> parts) {
  AddGroup({.kind = PartGroup::Kind::kVector, .parts = std::move(parts), .packed = packed});
}

void WeightsPlan::AddLinear(Weight* packed, std::vector<Part> parts, bool float32, bool head) {
  AddGroup({.kind = PartGroup::Kind::kLinear, .parts = std::move(parts), .packed = packed, .float32 = float32, .head = head});
}

void WeightsPlan::AddNorm(const std::string& name, NormWeights* norm) {
  AddVector(&norm->weight, {Vector(name + ".weight", config_.hidden_size, {.plus_one = config_.norm_plus_one})});
  if (config_.norm_bias) AddVector(&norm->bias.emplace(), {Vector(name + ".bias", config_.hidden_size)});
}

// --- layers ---------------------------------------------------------------------------------------------------------------

void WeightsPlan::AddLayer(int index, LayerWeights* layer) {
  const std::string prefix = fmt::format("{}{}{}.", root_, names_.layers, index);
  const LayerSpec& spec = config_.layers[index];
  const BlockForm block = config_.block;
  const auto norm = [&](std::string_view name, std::optional<NormWeights>& weights) {
    AddNorm(fmt::format("{}{}", prefix, name), &weights.emplace());
  };
  if (block != BlockForm::kPostNorm) norm(names_.input_norm, layer->input_norm);
  if (spec.delta) {
    AddDelta(prefix, &layer->delta.emplace());
  } else if (config_.latent) {
    AddLatent(prefix, &layer->latent.emplace());
  } else {
    AddAttention(prefix, spec.kv_owner == index, &layer->attention.emplace());
  }
  if (block == BlockForm::kPostNorm || block == BlockForm::kSandwich)
    norm(names_.post_attention_norm, layer->post_attention_norm);
  if (block != BlockForm::kPostNorm && block != BlockForm::kParallel) norm(names_.mlp_norm, layer->mlp_norm);
  if (spec.experts) {
    AddExperts(prefix, &layer->experts.emplace());
  } else {
    AddMlp(prefix, names_, config_.intermediate_size, config_.mlp_bias, &layer->mlp.emplace());
  }
  if (block == BlockForm::kPostNorm || block == BlockForm::kSandwich) norm(names_.post_mlp_norm, layer->post_mlp_norm);
}

void WeightsPlan::AddAttention(const std::string& prefix, bool own_kv, AttentionWeights* attention) {
  const int64_t hidden = config_.hidden_size;
  const int d = config_.head_dim, q_heads = config_.num_q_heads, kv_heads = config_.num_kv_heads;
  const int64_t q_rows = int64_t{q_heads} * d, kv_rows = int64_t{kv_heads} * d;
  const bool transpose = family_.storage == Storage::kConv1d;
  const auto weight = [&](std::string_view name, int64_t rows, int64_t cols, Rearrange rearrange = {}) {
    rearrange.transpose = transpose;
    return Matrix(fmt::format("{}{}.weight", prefix, name), rows, cols, std::move(rearrange));
  };
  const auto bias = [&](std::string_view name, int64_t size, Rearrange rearrange = {}) {
    return Vector(fmt::format("{}{}.bias", prefix, name), size, std::move(rearrange));
  };
  // Interleaved pairs become halves, in queries and keys alike.
  const auto halves = [&](int heads) -> Rearrange {
    if (!family_.rope_interleaved) return {};
    return {.rows = HalfSplitRows(heads, d, 0, config_.ropes[0].rotary_dim)};
  };
  if (!names_.qkv.empty()) {
    Rearrange order;
    if (family_.storage == Storage::kHeadwiseQkv) order.rows = HeadwiseQkvRows(q_heads, d);
    AddLinear(&attention->qkv, {weight(names_.qkv, q_rows + 2 * kv_rows, hidden, order)});
    if (config_.qkv_bias) AddVector(&attention->qkv_bias.emplace(), {bias(names_.qkv, q_rows + 2 * kv_rows, order)});
  } else {
    std::vector<Part> parts, biases;
    if (config_.attention_gate) {
      const Rearrange queries = {.rows = RowsOfHeads(q_heads, 2 * d, 0, d)}, gates = {.rows = RowsOfHeads(q_heads, 2 * d, d, d)};
      parts = {weight(names_.q, 2 * q_rows, hidden, queries)};
      biases = {bias(names_.q, 2 * q_rows, queries)};
      AddLinear(&attention->gate.emplace(), {weight(names_.q, 2 * q_rows, hidden, gates)});
      if (config_.qkv_bias) AddVector(&attention->gate_bias.emplace(), {bias(names_.q, 2 * q_rows, gates)});
    } else {
      parts = {weight(names_.q, q_rows, hidden, halves(q_heads))};
      biases = {bias(names_.q, q_rows, halves(q_heads))};
    }
    if (own_kv) {
      parts.insert(parts.end(), {weight(names_.k, kv_rows, hidden, halves(kv_heads)), weight(names_.v, kv_rows, hidden)});
      biases.insert(biases.end(), {bias(names_.k, kv_rows, halves(kv_heads)), bias(names_.v, kv_rows)});
    }
    AddLinear(&attention->qkv, std::move(parts));
    if (config_.qkv_bias) AddVector(&attention->qkv_bias.emplace(), std::move(biases));
  }
  AddLinear(&attention->o, {weight(names_.o, hidden, q_rows)});
  if (config_.o_bias) AddVector(&attention->o_bias.emplace(), {bias(names_.o, hidden)});
  if (config_.qk_norm != QkNorm::kNone) {
    const bool whole = config_.qk_norm == QkNorm::kWhole;
    const auto norm = [&](std::string_view name, int64_t rows, std::optional<Weight>& packed) {
      AddVector(&packed.emplace(),
                {Vector(fmt::format("{}{}.weight", prefix, name), whole ? rows : d, {.plus_one = config_.norm_plus_one})});
    };
    norm(names_.q_norm, q_rows, attention->q_norm);
    if (own_kv) norm(names_.k_norm, kv_rows, attention->k_norm);
  }
  if (config_.sinks) AddVector(&attention->sinks.emplace(), {Vector(fmt::format("{}{}", prefix, names_.sinks), q_heads)});
}

void WeightsPlan::AddLatent(const std::string& prefix, LatentWeights* latent) {
  const LatentSpec& spec = *config_.latent;
  const int64_t hidden = config_.hidden_size;
  const int heads = config_.num_q_heads, head_rows = spec.nope_dim + spec.rope_dim;
  const auto name = [&](std::string_view part) { return fmt::format("{}self_attn.{}.weight", prefix, part); };
  const Rearrange q_order = {.rows = HalfSplitRows(heads, head_rows, spec.nope_dim, spec.rope_dim)};
  if (spec.q_rank > 0) {
    AddLinear(&latent->q_down.emplace(), {Matrix(name("q_a_proj"), spec.q_rank, hidden)});
    AddVector(&latent->q_norm.emplace(), {Vector(name("q_a_layernorm"), spec.q_rank)});
    AddLinear(&latent->q, {Matrix(name("q_b_proj"), int64_t{heads} * head_rows, spec.q_rank, q_order)});
  } else {
    AddLinear(&latent->q, {Matrix(name("q_proj"), int64_t{heads} * head_rows, hidden, q_order)});
  }
  const int kv_rows = spec.kv_rank + spec.rope_dim;
  AddLinear(&latent->kv_down, {Matrix(name("kv_a_proj_with_mqa"), kv_rows, hidden,
                                      {.rows = HalfSplitRows(1, kv_rows, spec.kv_rank, spec.rope_dim)})});
  AddVector(&latent->kv_norm, {Vector(name("kv_a_layernorm"), spec.kv_rank)});
  const int up_rows = spec.nope_dim + spec.value_dim;
  const std::vector<uint64_t> up_shape = {static_cast<uint64_t>(heads) * up_rows, static_cast<uint64_t>(spec.kv_rank)};
  latent->query_up.resize(heads);
  latent->value_up.resize(heads);
  for (int h = 0; h < heads; ++h) {
    const int64_t first = int64_t{h} * up_rows;
    AddLinear(&latent->query_up[h], {RowsOf(name("kv_b_proj"), up_shape, first, spec.nope_dim, {.transpose = true})});
    AddLinear(&latent->value_up[h], {RowsOf(name("kv_b_proj"), up_shape, first + spec.nope_dim, spec.value_dim)});
  }
  AddLinear(&latent->o, {Matrix(name("o_proj"), hidden, int64_t{heads} * spec.value_dim)});
  if (!config_.qkv_bias) return;
  const auto bias = [&](std::string_view part) { return fmt::format("{}self_attn.{}.bias", prefix, part); };
  if (spec.q_rank > 0) AddVector(&latent->q_down_bias.emplace(), {Vector(bias("q_a_proj"), spec.q_rank)});
  AddVector(&latent->kv_down_bias.emplace(),
            {Vector(bias("kv_a_proj_with_mqa"), kv_rows, {.rows = HalfSplitRows(1, kv_rows, spec.kv_rank, spec.rope_dim)})});
  AddVector(&latent->o_bias.emplace(), {Vector(bias("o_proj"), hidden)});
}

// in_proj_qkvz holds for each key head its q, k, and the v and z of its value heads; in_proj_ba their b and a.
void WeightsPlan::AddDelta(const std::string& prefix, DeltaWeights* delta) {
  const DeltaNet& net = *config_.delta;
  const int64_t hidden = config_.hidden_size;
  const int shared = net.value_heads / net.key_heads, v_rows = shared * net.value_dim, head_rows = 2 * (net.key_dim + v_rows);
  const auto name = [&](std::string_view part) { return fmt::format("{}linear_attn.{}", prefix, part); };
  std::vector<int32_t> order;
  const auto pick = [&](int first, int count) {
    const std::vector<int32_t> rows = RowsOfHeads(net.key_heads, head_rows, first, count);
    order.insert(order.end(), rows.begin(), rows.end());
  };
  pick(0, net.key_dim);
  pick(net.key_dim, net.key_dim);
  pick(2 * net.key_dim, v_rows);
  pick(2 * net.key_dim + v_rows, v_rows);
  std::vector<int32_t> gates = RowsOfHeads(net.key_heads, 2 * shared, 0, shared);
  const std::vector<int32_t> decays = RowsOfHeads(net.key_heads, 2 * shared, shared, shared);
  gates.insert(gates.end(), decays.begin(), decays.end());
  AddLinear(&delta->in,
            {Matrix(name("in_proj_qkvz.weight"), int64_t{net.key_heads} * head_rows, hidden, {.rows = std::move(order)}),
             Matrix(name("in_proj_ba.weight"), 2 * int64_t{net.value_heads}, hidden, {.rows = std::move(gates)})});
  AddVector(&delta->conv,
            {RowsOf(name("conv1d.weight"), {static_cast<uint64_t>(net.channels()), 1, static_cast<uint64_t>(net.kernel)}, 0,
                    net.channels(), {.transpose = true})});
  AddVector(&delta->a_log, {Vector(name("A_log"), net.value_heads)});
  AddVector(&delta->dt_bias, {Vector(name("dt_bias"), net.value_heads)});
  AddVector(&delta->norm, {Vector(name("norm.weight"), net.value_dim)});
  AddLinear(&delta->o, {Matrix(name("out_proj.weight"), hidden, net.values())});
}

void WeightsPlan::AddMlp(const std::string& prefix, const TensorNames& names, int64_t width, bool bias, MlpWeights* mlp) {
  const int64_t hidden = config_.hidden_size;
  const bool transpose = family_.storage == Storage::kConv1d;
  const auto weight = [&](std::string_view name, int64_t rows, int64_t cols) {
    return Matrix(fmt::format("{}{}.weight", prefix, name), rows, cols, {.transpose = transpose});
  };
  const auto biases = [&](std::string_view name, int64_t size) { return Vector(fmt::format("{}{}.bias", prefix, name), size); };
  if (!config_.gated) {
    AddLinear(&mlp->up, {weight(names.up, width, hidden)});
    if (bias) AddVector(&mlp->up_bias.emplace(), {biases(names.up, width)});
  } else if (!names.gate_up.empty()) {
    AddLinear(&mlp->up, {weight(names.gate_up, 2 * width, hidden)});
  } else {
    AddLinear(&mlp->up, {weight(names.gate, width, hidden), weight(names.up, width, hidden)});
    if (bias) AddVector(&mlp->up_bias.emplace(), {biases(names.gate, width), biases(names.up, width)});
  }
  AddLinear(&mlp->down, {weight(names.down, hidden, width)});
  if (bias) AddVector(&mlp->down_bias.emplace(), {biases(names.down, hidden)});
}

void WeightsPlan::AddExperts(const std::string& prefix, ExpertsWeights* experts) {
  const MoeSpec& moe = *config_.moe;
  const int64_t hidden = config_.hidden_size;
  const std::string router = fmt::format("{}{}", prefix, names_.router);
  AddLinear(&experts->router, {Matrix(router + ".weight", moe.num_experts, hidden)}, true);
  if (moe.router_bias) AddVector(&experts->router_bias.emplace(), {Vector(router + ".bias", moe.num_experts)});
  if (moe.correction_bias)
    AddVector(&experts->correction.emplace(), {Vector(router + ".e_score_correction_bias", moe.num_experts)});
  experts->up.resize(moe.num_experts);
  experts->down.resize(moe.num_experts);
  if (moe.expert_bias) {
    experts->up_bias.resize(moe.num_experts);
    experts->down_bias.resize(moe.num_experts);
  }
  for (int e = 0; e < moe.num_experts; ++e) AddExpert(prefix, e, experts);
  if (moe.shared_intermediate_size == 0) return;
  AddMlp(fmt::format("{}{}.", prefix, names_.shared), {.gate = "gate_proj", .up = "up_proj", .down = "down_proj"},
         moe.shared_intermediate_size, false, &experts->shared.emplace());
  if (moe.shared_gate)
    AddLinear(&experts->shared_gate.emplace(), {Matrix(fmt::format("{}{}.weight", prefix, names_.shared_gate), 1, hidden)}, true);
}

void WeightsPlan::AddExpert(const std::string& prefix, int expert, ExpertsWeights* experts) {
  const MoeSpec& moe = *config_.moe;
  const int64_t hidden = config_.hidden_size, width = moe.intermediate_size;
  const uint64_t count = static_cast<uint64_t>(moe.num_experts);
  if (family_.expert_storage == ExpertStorage::kInterleaved) return AddInterleavedExpert(prefix, expert, experts);
  if (family_.expert_storage == ExpertStorage::kStacked) {
    const auto part = [&](std::string_view name, int64_t rows, int64_t cols) {
      return RowsOf(fmt::format("{}{}{}.weight", prefix, names_.experts, name),
                    {count, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols)}, expert * rows, rows);
    };
    AddLinear(&experts->up[expert], {part(names_.expert_gate, 2 * width, hidden)});
    AddLinear(&experts->down[expert], {part(names_.expert_down, hidden, width)});
    return;
  }
  const auto part = [&](std::string_view name, int64_t rows, int64_t cols) {
    return Matrix(fmt::format("{}{}{}.{}.weight", prefix, names_.experts, expert, name), rows, cols);
  };
  AddLinear(&experts->up[expert], {part(names_.expert_gate, width, hidden), part(names_.expert_up, width, hidden)});
  AddLinear(&experts->down[expert], {part(names_.expert_down, hidden, width)});
}

// [experts, in, out] with gate and up columns alternating, or the same as MXFP4 blocks, which lie [experts, out, in].
void WeightsPlan::AddInterleavedExpert(const std::string& prefix, int expert, ExpertsWeights* experts) {
  const MoeSpec& moe = *config_.moe;
  const uint64_t count = static_cast<uint64_t>(moe.num_experts);
  const auto add = [&](std::string_view matrix, int64_t rows, int64_t cols, std::vector<int32_t> order, Weight* packed,
                       Weight* bias) {
    const std::string name = fmt::format("{}{}{}", prefix, names_.experts, matrix);
    const uint64_t u_rows = static_cast<uint64_t>(rows), u_cols = static_cast<uint64_t>(cols);
    if (checkpoint_.tensors.contains(name + "_blocks")) {
      Part part = RowsOf(name + "_blocks", {count, u_rows, u_cols / 32, 16}, expert * rows, rows, {.rows = order});
      part.cols = cols;
      part.scales_name = name + "_scales";
      AddLinear(packed, {std::move(part)});
    } else {
      AddLinear(packed, {RowsOf(name, {count, u_cols, u_rows}, expert * cols, cols, {.transpose = true, .rows = order})});
    }
    Part part = RowsOf(name + "_bias", {count, u_rows}, expert * rows, rows, {.rows = std::move(order)});
    part.cols = 1;
    AddVector(bias, {std::move(part)});
  };
  add(names_.expert_gate, 2 * moe.intermediate_size, config_.hidden_size, AlternatingRows(moe.intermediate_size),
      &experts->up[expert], &experts->up_bias[expert]);
  add(names_.expert_down, config_.hidden_size, moe.intermediate_size, {}, &experts->down[expert], &experts->down_bias[expert]);
}

// --- places in the checkpoint ---------------------------------------------------------------------------------------------

void WeightsPlan::AddGroup(PartGroup group) {
  std::vector<Part> parts = std::move(group.parts);
  group.parts.clear();
  for (Part& part : parts)
    if (Locate(&part)) group.parts.push_back(std::move(part));
  group.quant = ChooseFormat(group);
  for (Part& part : group.parts) PlacePart(group, &part, &group.bytes);
  groups_.push_back(std::move(group));
}

// What is read of a part, and where its bytes and what becomes of them lie in the group's buffer, which ends at *end so far.
void WeightsPlan::PlacePart(const PartGroup& group, Part* part, size_t* end) {
  // The header proved that no size leaves the file, so these sums cannot overflow.
  const auto take = [&](size_t bytes) {
    const size_t at = *end;
    *end += (bytes + 63) / 64 * 64;
    return at;
  };
  const auto read = [&](const Checkpoint::Place& place, uint64_t skip, size_t bytes) {
    part->pieces.push_back({place, skip, bytes, take(bytes)});
  };
  const auto read_all = [&](const Checkpoint::Place& place) { read(place, 0, place.tensor->end - place.tensor->begin); };
  const size_t values = static_cast<size_t>(part->rows) * static_cast<size_t>(part->cols);
  const uint64_t first = static_cast<uint64_t>(part->first_row) * static_cast<uint64_t>(part->cols);
  const Rearrange& order = part->rearrange;
  part->out_rows = order.transpose ? part->cols : part->rows;
  if (!order.rows.empty()) part->out_rows = static_cast<int64_t>(order.rows.size());
  part->out_cols = order.transpose ? part->rows : part->cols;
  if (part->stored) {
    const StoredQuant& stored = *part->stored;
    const uint64_t row_bytes = (part->place.tensor->end - part->place.tensor->begin) / static_cast<uint64_t>(stored.rows);
    if (stored.by_input()) {
      read_all(part->place);
    } else {
      read(part->place, static_cast<uint64_t>(part->first_row) * row_bytes, static_cast<size_t>(part->rows) * row_bytes);
    }
    if (stored.form == CodeForm::kMxfp4) {  // of many experts' scales only these
      part->scales_row = part->first_row;
      read(part->scales, first / 32, values / 32);
    } else {
      read_all(part->scales);
    }
    if (stored.zeros) read_all(part->zeros);
    if (part->group_of.tensor != nullptr) read_all(part->group_of);  // for the hash: the plan knows it
    const QuantFormat exact = order.transpose ? QuantFormat() : ExactFormat(stored);
    if (group.quant && Holds(group.quant, exact)) {
      part->quant = group.quant;
      if (part->quant.ordered) part->input_order = InputOrder(stored);
      const size_t rows = static_cast<size_t>(part->out_rows), groups = static_cast<size_t>(part->quant.Groups(part->cols));
      part->offset = take(rows * static_cast<size_t>(part->cols));
      part->scales_offset = take(rows * groups * part->quant.scale_bytes());
      part->lows_offset = take(rows * groups * sizeof(uint16_t));
    } else {
      part->dtype = group.float32 ? DType::kF32 : dtype_;
      part->offset = take(std::max(values, static_cast<size_t>(part->out_rows * part->out_cols)) * SizeOf(part->dtype));
    }
    return;
  }
  part->dtype = *part->place.tensor->type->usable;
  read(part->place, first * SizeOf(part->dtype), values * SizeOf(part->dtype));
  part->offset = part->pieces[0].offset;
  if (!order.empty()) {
    if (order.plus_one) part->dtype = DType::kF32;
    part->offset = take(values * SizeOf(part->dtype));
  }
  if (group.kind == PartGroup::Kind::kVector) std::swap(part->out_rows, part->out_cols);
}

bool WeightsPlan::Locate(Part* part) {
  if (IsStoredQuantized(*part)) return LocateQuantized(part);
  if (part->scales_name.empty()) return LocateTensor(part->name, part->shape, false, &part->place);
  if (part->cols % 32 != 0) {
    problems_.push_back(
        fmt::format("tensor '{}': MXFP4 needs a multiple of 32 columns, config.json asks for {}", part->name, part->cols));
    return false;
  }
  std::vector<uint64_t> scales_shape(part->shape.begin(), part->shape.end() - 1);
  const bool blocks = LocateTensor(part->name, part->shape, true, &part->place);
  if (!LocateTensor(part->scales_name, scales_shape, true, &part->scales) || !blocks) return false;
  int64_t rows = 1;
  for (const uint64_t size : scales_shape) rows *= static_cast<int64_t>(size);
  part->stored = StoredQuant{.form = CodeForm::kMxfp4,
                             .bits = 4,
                             .rows = rows / (part->cols / 32),
                             .cols = part->cols,
                             .group = 32,
                             .groups = part->cols / 32,
                             .scale_type = ScaleType::kE8M0};
  return true;
}

bool WeightsPlan::LocateTensor(const std::string& name, const std::vector<uint64_t>& shape, bool bytes,
                               Checkpoint::Place* place) {
  const bool first = wanted_.insert(name).second;  // a tensor that several parts come from is complained of once
  const auto complain = [&](std::string problem) {
    if (first) problems_.push_back(std::move(problem));
    return false;
  };
  const auto found = checkpoint_.tensors.find(name);
  if (found == checkpoint_.tensors.end() && checkpoint_.dummy != nullptr && !bytes) {
    *place = checkpoint_.dummy->Invent(name, shape);
    return true;
  }
  if (found == checkpoint_.tensors.end()) {
    const char* hint = name == names_.lm_head ? "; a model without it has \"tie_word_embeddings\": true in config.json" : "";
    return complain(fmt::format("tensor '{}' is missing{}", name, hint));
  }
  *place = found->second;
  const StoredTensor& tensor = *place->tensor;
  const std::string& file = place->shard->name;
  bool fits = true;
  if (tensor.shape != shape)
    fits = complain(fmt::format("{}: tensor '{}' has shape {} but config.json asks for [{}]", file, name, tensor.ShapeText(),
                                fmt::join(shape, ", ")));
  const bool usable = bytes ? tensor.type->name == "U8" : tensor.type->usable.has_value();
  if (!usable)
    fits = complain(fmt::format("{}: tensor '{}' has dtype {}; supported: {}", file, name, tensor.type->name,
                                bytes ? "U8" : "F32, F16, BF16"));
  return fits && usable;
}

}  // namespace kvasir
