// Rotary embedding of a config: bases, scalings, and how much of a head is rotated.
#include <algorithm>
#include <cmath>

#include "models/config_fields.h"

namespace kvasir {
namespace {

using nlohmann::json;
using Kind = RopeScaling::Kind;

constexpr const char* kSupportedTypes = "default, linear, dynamic, llama3, yarn, longrope";

// What one object (rope_parameters, rope_scaling, or one of several by layer type) is read with.
struct RopeContext {
  const Family& family;
  const ModelConfig& config;
  std::string where;       // "rope_scaling."
  double theta = 10000.0;  // unless it has its own
  double partial = 1.0;
  int64_t original = 0;  // original_max_position_embeddings beside the object (Phi-3); 0 = not given
};

double YarnScale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

void ParseLlama3(Fields& rope, const RopeContext& context, RopeScaling* scaling) {
  scaling->factor = rope.Real("factor", 1.0, 4096.0);
  scaling->low_freq_factor = rope.Real("low_freq_factor", 1e-6, 1e6);
  scaling->high_freq_factor = rope.Real("high_freq_factor", 1e-6, 1e6);
  if (scaling->high_freq_factor <= scaling->low_freq_factor)
    rope.Fail(InvalidArgument("{}high_freq_factor is {}; it must be above low_freq_factor {}", context.where,
                              scaling->high_freq_factor, scaling->low_freq_factor));
}

void ParseYarn(Fields& rope, RopeScaling* scaling, const ModelConfig& config) {
  scaling->factor = rope.OptionalReal("factor", 1.0, 4096.0)
                        .value_or(std::max(1.0, double(config.max_position_embeddings) / double(scaling->original_max_position)));
  scaling->beta_fast = rope.OptionalReal("beta_fast", 0, 1e6).value_or(32.0);
  scaling->beta_slow = rope.OptionalReal("beta_slow", 0, 1e6).value_or(1.0);
  if (scaling->beta_fast == 0) scaling->beta_fast = 32;
  if (scaling->beta_slow == 0) scaling->beta_slow = 1;
  scaling->truncate = rope.BoolOr("truncate", true);
  const double mscale = rope.OptionalReal("mscale", 0, 1e3).value_or(0);
  const double all_dim = rope.OptionalReal("mscale_all_dim", 0, 1e3).value_or(0);
  const bool both = mscale != 0 && all_dim != 0;
  scaling->attention_factor = rope.OptionalReal("attention_factor", 1e-6, 1e6)
                                  .value_or(both ? YarnScale(scaling->factor, mscale) / YarnScale(scaling->factor, all_dim)
                                                 : YarnScale(scaling->factor, 1));
}

void ParseLongRope(Fields& rope, RopeScaling* scaling, const ModelConfig& config, size_t pairs) {
  scaling->factor = rope.OptionalReal("factor", 1e-3, 4096.0)
                        .value_or(double(config.max_position_embeddings) / double(scaling->original_max_position));
  scaling->short_factor = rope.Reals("short_factor", pairs, 1e-6, 1e6);
  scaling->long_factor = rope.Reals("long_factor", pairs, 1e-6, 1e6);
  const double derived =
      scaling->factor <= 1 ? 1.0 : std::sqrt(1 + std::log(scaling->factor) / std::log(double(scaling->original_max_position)));
  scaling->attention_factor = rope.OptionalReal("attention_factor", 1e-6, 1e6).value_or(derived);
}

RopeScaling ParseScaling(Fields& rope, const std::string& name, const RopeContext& context, double theta, int rotary_dim) {
  RopeScaling scaling;
  const ModelConfig& config = context.config;
  if (name == "default") return scaling;
  const auto original = rope.OptionalInt("original_max_position_embeddings", 1, kMaxPositions);
  if (name == "linear" || name == "dynamic") {
    scaling.kind = name == "linear" ? Kind::kLinear : Kind::kDynamic;
    scaling.factor = rope.Real("factor", 1.0, 4096.0);
    // The method compares lengths with max_position_embeddings; some configs repeat that number here.
    scaling.original_max_position = config.max_position_embeddings;
    if (original && *original != config.max_position_embeddings)
      rope.Fail(InvalidArgument(
          "{}original_max_position_embeddings is {} but max_position_embeddings is {}; for rope type '{}' they must be equal",
          context.where, *original, config.max_position_embeddings, name));
    if (scaling.kind == Kind::kDynamic && rotary_dim <= 2)
      rope.Fail(InvalidArgument("{}type 'dynamic' needs head_dim above 2", context.where));
    return scaling;
  }
  // The value beside the object wins, as it does in transformers.
  scaling.original_max_position = context.original != 0 ? context.original : original.value_or(config.max_position_embeddings);
  if (name == "llama3") {
    scaling.kind = Kind::kLlama3;
    ParseLlama3(rope, context, &scaling);
    if (!original && context.original == 0) rope.Int("original_max_position_embeddings", 1, kMaxPositions);
  } else if (name == "yarn") {
    scaling.kind = Kind::kYarn;
    if (theta <= 1) rope.Fail(InvalidArgument("{}type 'yarn' needs rope_theta above 1, not {}", context.where, theta));
    ParseYarn(rope, &scaling, config);
  } else if (name == "longrope" || name == "su") {
    scaling.kind = Kind::kLongRope;
    ParseLongRope(rope, &scaling, config, size_t(rotary_dim) / 2);
  } else {
    rope.Fail(InvalidArgument("{}rope_type '{}' is not supported; supported: {}", context.where, name, kSupportedTypes));
  }
  return scaling;
}

Rope ParseOne(const json& object, bool named_here, const RopeContext& context, Status* status) {
  Fields rope(object, context.where, status);
  const std::string old_name = rope.StringOr("type", ""), new_name = rope.StringOr("rope_type", "");
  if (!old_name.empty() && !new_name.empty() && old_name != new_name)
    rope.Fail(
        InvalidArgument("{}type is '{}' but {}rope_type is '{}'; remove one", context.where, old_name, context.where, new_name));
  const std::string name = !new_name.empty() ? new_name : old_name;
  if (name.empty() && !named_here && !object.empty())
    rope.Fail(InvalidArgument("{}rope_type is missing; supported: {}", context.where, kSupportedTypes));
  Rope result;
  result.interleaved = context.family.rope_interleaved;
  result.theta = rope.OptionalReal("rope_theta", 1e-3, 1e15).value_or(context.theta);
  const int head_dim = context.config.latent ? context.config.latent->rope_dim : context.config.head_dim;
  const double partial = rope.OptionalReal("partial_rotary_factor", 0.0, 1.0).value_or(context.partial);
  if (partial != 1.0 && !context.family.partial_rotary)
    rope.Fail(InvalidArgument("partial_rotary_factor is {}; {} rotates whole heads", partial, context.family.architecture));
  result.rotary_dim = static_cast<int>(head_dim * partial);
  if (result.rotary_dim < 2 || result.rotary_dim % 2 != 0)
    rope.Fail(
        InvalidArgument("rotary embedding turns {} of {} dimensions of a head (partial_rotary_factor {}); wanted an even number",
                        result.rotary_dim, head_dim, partial));
  result.rotary_dim = std::max(2, result.rotary_dim / 2 * 2);
  result.scaling = ParseScaling(rope, name.empty() ? "default" : name, context, result.theta, result.rotary_dim);
  return result;
}

}  // namespace

// Three spellings: rope_theta and rope_scaling {"type": ...} or {"rope_type": ...}, and rope_parameters with rope_theta inside,
// for all layers or one for each type of layer. ropes[0] is that of layers that see all, ropes[1] of sliding layers where they
// have their own.
void ParseRopes(Fields& fields, const Family& family, ModelConfig* config) {
  if (family.positions == PositionRule::kLearned) return;
  RopeContext context = {.family = family, .config = *config, .where = "rope_parameters."};
  context.theta = fields.OptionalReal("rope_theta", 1e-3, 1e15).value_or(family.default_theta);
  context.theta = fields.OptionalReal("rotary_emb_base", 1e-3, 1e15).value_or(context.theta);  // GPT-NeoX
  context.partial = fields.OptionalReal("partial_rotary_factor", 0.0, 1.0).value_or(family.default_partial_rotary);
  context.partial = fields.OptionalReal("rotary_pct", 0.0, 1.0).value_or(context.partial);  // GPT-NeoX
  context.original = fields.OptionalInt("original_max_position_embeddings", 1, kMaxPositions).value_or(0);
  const bool two = family.positions == PositionRule::kLocalGlobal;
  config->ropes.resize(two ? 2 : 1);  // also when the file is wrong: later steps look at them
  const double local_theta = fields.OptionalReal("rope_local_base_freq", 1e-3, 1e15).value_or(10000.0);

  const json* scaling = fields.Find("rope_scaling");
  const json* parameters = fields.Find("rope_parameters");
  if (scaling != nullptr && parameters != nullptr && *scaling != *parameters)
    return fields.Fail(InvalidArgument("rope_scaling and rope_parameters are both given and differ; remove one"));
  static const json kEmpty = json::object();
  const json* chosen = parameters != nullptr ? parameters : scaling != nullptr ? scaling : &kEmpty;
  if (scaling != nullptr && parameters == nullptr) context.where = "rope_scaling.";
  if (!chosen->is_object())
    return fields.Fail(
        InvalidArgument("{} is {}; wanted an object or null", context.where.substr(0, context.where.size() - 1), Shown(*chosen)));
  const bool nested = two && (chosen->contains("full_attention") || chosen->contains("sliding_attention"));
  for (const auto& [key, value] : chosen->items())
    if (value.is_object() && !(nested && (key == "full_attention" || key == "sliding_attention")))
      return fields.Fail(InvalidArgument("{}{} is an object; rotary parameters per layer type are not supported for {}",
                                         context.where, key.substr(0, 80), family.architecture));
  const auto part = [&](const char* key) -> const json& {
    const auto found = chosen->find(key);
    return found != chosen->end() && found->is_object() ? *found : kEmpty;
  };
  config->ropes[0] = ParseOne(nested ? part("full_attention") : *chosen, parameters != nullptr, context, fields.status());
  if (!two) return;
  context.theta = local_theta;
  config->ropes[1] = ParseOne(nested ? part("sliding_attention") : kEmpty, true, context, fields.status());
}

}  // namespace kvasir
