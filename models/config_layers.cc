// What each layer is: windows, recurrent layers, experts, shared KV; and latent attention.
#include <algorithm>
#include <cmath>

#include "models/config_fields.h"

namespace kvasir {
namespace {

constexpr int64_t kMaxWindow = std::numeric_limits<int32_t>::max();

// The window of the sliding layers, 0 = there are none.
int ParseWindowSize(Fields& fields, const Family& family) {
  const auto window = fields.OptionalInt("sliding_window", 0, kMaxWindow);
  if (family.windows == WindowRule::kNone) {
    if (window.value_or(0) != 0)
      fields.Fail(InvalidArgument("sliding_window is set but {} has none; remove it or set it to null", family.architecture));
    return 0;
  }
  const bool switched = family.windows == WindowRule::kQwen2 || family.windows == WindowRule::kQwen2Moe ||
                        family.windows == WindowRule::kQwen3Moe || family.windows == WindowRule::kSmolLm3;
  if (switched && !fields.BoolOr("use_sliding_window", false)) return 0;
  return static_cast<int>(window.value_or(fields.Mentions("sliding_window") ? 0 : family.default_window));
}

// What transformers' configuration classes put into layer_types when the file does not.
bool SlidesByDefault(const Family& family, int layer, int64_t period, int64_t max_window_layers, bool rotated) {
  switch (family.windows) {
    case WindowRule::kNone:
      return false;
    case WindowRule::kAll:
    case WindowRule::kQwen3Moe:
      return true;
    case WindowRule::kPattern:
      return (layer + 1) % period != 0;
    case WindowRule::kQwen2:
      return layer >= max_window_layers;
    case WindowRule::kQwen2Moe:
      return (layer + 1) % 2 != 0 && layer < max_window_layers;
    case WindowRule::kSmolLm3:
      return !rotated;
  }
  return false;
}

void ParseWindows(Fields& fields, const Family& family, ModelConfig* config) {
  const int window = ParseWindowSize(fields, family);
  int64_t period = std::max(1, family.window_period);
  for (const char* key : {"sliding_window_pattern", "_sliding_window_pattern"}) {
    // Cohere-2 and Gemma 3 write a number here.
    if (family.windows == WindowRule::kPattern) period = fields.OptionalInt(key, 1, kMaxLayers).value_or(period);
  }
  const int64_t max_window_layers = fields.OptionalInt("max_window_layers", 0, 1 << 20).value_or(28);
  const auto types = fields.OptionalStrings("layer_types", config->layers.size());
  for (size_t i = 0; i < config->layers.size(); ++i) {
    LayerSpec& layer = config->layers[i];
    bool slides = window != 0 && SlidesByDefault(family, int(i), period, max_window_layers, layer.rope >= 0);
    if (types) {
      const std::string& type = (*types)[i];
      slides = type == "sliding_attention";
      if (!slides && type != "full_attention")
        fields.Fail(InvalidArgument("layer_types holds '{}'; supported for {}: full_attention, sliding_attention", type,
                                    family.architecture));
      // A uniform family whose list says something else than its window is not what the checkpoint was made with.
      if (slides && window == 0)
        fields.Fail(InvalidArgument("layer_types says 'sliding_attention' for layer {} but sliding_window is not set", i));
      if (!slides && window != 0 && family.windows == WindowRule::kAll)
        fields.Fail(InvalidArgument("layer_types says '{}' for layer {} but {} slides its window of {} over every layer", type, i,
                                    family.architecture, window));
    }
    layer.window = slides ? window : 0;
  }
}

// Which layers are gated delta nets, and their shape.
void ParseDeltaNet(Fields& fields, const Family& family, ModelConfig* config) {
  const int64_t period = fields.OptionalInt("full_attention_interval", 1, kMaxLayers).value_or(4);
  const auto types = fields.OptionalStrings("layer_types", config->layers.size());
  bool any = false;
  if (fields.BoolOr("use_sliding_window", false))
    fields.Fail(InvalidArgument("use_sliding_window is true but {} has no sliding window", family.architecture));
  for (size_t i = 0; i < config->layers.size(); ++i) {
    LayerSpec& layer = config->layers[i];
    const std::string_view type = types                            ? std::string_view((*types)[i])
                                  : (int64_t(i) + 1) % period != 0 ? "linear_attention"
                                                                   : "full_attention";
    if (type != "linear_attention" && type != "full_attention")
      fields.Fail(InvalidArgument("layer_types holds '{}'; supported for {}: full_attention, linear_attention", type,
                                  family.architecture));
    layer.delta = type == "linear_attention";
    if (layer.delta) layer.rope = -1;
    any = any || layer.delta;
  }
  if (!any) return;
  const auto size = [&](std::string_view key, int64_t most, int64_t otherwise) {
    return static_cast<int>(fields.OptionalInt(key, 1, most).value_or(otherwise));
  };
  const DeltaNet net = {.key_heads = size("linear_num_key_heads", kMaxHeads, 16),
                        .value_heads = size("linear_num_value_heads", kMaxHeads, 32),
                        .key_dim = size("linear_key_head_dim", kMaxHeadDim, 128),
                        .value_dim = size("linear_value_head_dim", kMaxHeadDim, 128),
                        .kernel = size("linear_conv_kernel_dim", 64, 4)};
  if (net.value_heads % net.key_heads != 0)
    fields.Fail(InvalidArgument("linear_num_value_heads is {}, which is not a multiple of linear_num_key_heads {}",
                                net.value_heads, net.key_heads));
  config->delta = net;
}

void ParseRotation(Fields& fields, const Family& family, ModelConfig* config) {
  if (family.positions == PositionRule::kLearned) {
    config->learned_positions = true;
    for (LayerSpec& layer : config->layers) layer.rope = -1;
  }
  if (family.positions != PositionRule::kNoRopeLayers) return;
  const size_t num_layers = config->layers.size();
  const auto rotated = fields.OptionalInts("no_rope_layers", num_layers, 0, 1);  // 1 = rotated, in spite of the name
  const int64_t interval = fields.OptionalInt("no_rope_layer_interval", 1, kMaxLayers).value_or(4);
  if (rotated && rotated->size() != num_layers)
    return fields.Fail(InvalidArgument("no_rope_layers has {} entries for {} layers", rotated->size(), num_layers));
  for (size_t i = 0; i < num_layers; ++i) {
    const bool rotate = rotated ? (*rotated)[i] != 0 : (int64_t(i) + 1) % interval != 0;
    config->layers[i].rope = rotate ? 0 : -1;
  }
}

// "kv_owner": for each layer the layer whose KV it reads (cross-layer sharing as in CLA and YOCO). Kvasir's own key: there is no
// common one.
void ParseKvOwners(Fields& fields, const Family& family, ModelConfig* config) {
  const size_t num_layers = config->layers.size();
  for (size_t i = 0; i < num_layers; ++i) config->layers[i].kv_owner = static_cast<int>(i);
  const auto owners = fields.OptionalInts("kv_owner", num_layers, 0, int64_t(num_layers) - 1);
  if (!owners) return;
  if (family.latent) return fields.Fail(InvalidArgument("kv_owner: {} keeps a latent, which is not shared", family.architecture));
  if (owners->size() != num_layers)
    return fields.Fail(InvalidArgument("kv_owner has {} entries for {} layers", owners->size(), num_layers));
  for (size_t i = 0; i < num_layers; ++i) {
    const size_t owner = size_t((*owners)[i]);
    if (owner > i || (*owners)[owner] != int64_t(owner))
      return fields.Fail(
          InvalidArgument("kv_owner of layer {} is {}; wanted itself or an earlier layer that owns its KV", i, owner));
    if (owner != i && (config->layers[owner].delta || config->layers[i].delta))
      return fields.Fail(InvalidArgument("kv_owner of layer {} is {}, but a linear_attention layer keeps no keys", i, owner));
    if (config->layers[owner].window != config->layers[i].window)
      return fields.Fail(InvalidArgument("kv_owner of layer {} is {}, which has another sliding window", i, owner));
    config->layers[i].kv_owner = static_cast<int>(owner);
  }
}

void ParseQwenMoe(Fields& fields, const Family& family, ModelConfig* config, MoeSpec* moe) {
  const char* key = fields.Find("num_experts") != nullptr ? "num_experts" : "num_local_experts";
  moe->num_experts = static_cast<int>(fields.Int(key, 1, kMaxExperts));
  moe->intermediate_size = fields.Int("moe_intermediate_size", 1, kMaxFfn);
  moe->routing.normalize = fields.BoolOr("norm_topk_prob", family.default_normalized_experts);
  const int64_t step = fields.OptionalInt("decoder_sparse_step", 1, kMaxLayers).value_or(1);
  const auto dense = fields.OptionalInts("mlp_only_layers", kMaxLayers, 0, kMaxLayers).value_or(std::vector<int64_t>());
  for (size_t i = 0; i < config->layers.size(); ++i)
    config->layers[i].experts = (int64_t(i) + 1) % step == 0 && std::find(dense.begin(), dense.end(), int64_t(i)) == dense.end();
}

void ParseDeepSeekMoe(Fields& fields, const Family& family, ModelConfig* config, MoeSpec* moe) {
  const bool v3 = family.moe == MoeRule::kDeepSeekV3;
  moe->num_experts = static_cast<int>(fields.OptionalInt("n_routed_experts", 1, kMaxExperts).value_or(0));
  moe->intermediate_size = fields.Int("moe_intermediate_size", 1, kMaxFfn);
  moe->shared_intermediate_size = fields.OptionalInt("n_shared_experts", 0, 64).value_or(0) * moe->intermediate_size;
  moe->routing.scale = static_cast<float>(fields.OptionalReal("routed_scaling_factor", 1e-6, 1e6).value_or(v3 ? 2.5 : 1.0));
  moe->routing.normalize = fields.BoolOr("norm_topk_prob", v3);
  const std::string method = fields.StringOr("topk_method", v3 ? "noaux_tc" : "greedy");
  const bool known = v3 ? method == "noaux_tc" : method == "greedy" || method == "group_limited_greedy";
  if (!known)
    fields.Fail(InvalidArgument("topk_method '{}' is not supported for {}; supported: {}", method, family.architecture,
                                v3 ? "noaux_tc" : "greedy, group_limited_greedy"));
  const std::string scoring = fields.StringOr("scoring_func", v3 ? "sigmoid" : "softmax");
  if (scoring != (v3 ? "sigmoid" : "softmax"))
    fields.Fail(InvalidArgument("scoring_func '{}' is not supported for {}", scoring, family.architecture));
  if (!v3 && moe->routing.normalize)
    fields.Fail(InvalidArgument("norm_topk_prob is true; {} is supported without it", family.architecture));
  moe->routing.score = v3 ? MoeRouting::Score::kSigmoid : MoeRouting::Score::kSoftmax;
  moe->routing.group_score_top2 = v3;
  moe->correction_bias = v3;
  if (v3 || method == "group_limited_greedy") {
    moe->routing.num_groups = static_cast<int>(fields.OptionalInt("n_group", 1, kMaxExperts).value_or(v3 ? 8 : 1));
    moe->routing.top_groups = static_cast<int>(fields.OptionalInt("topk_group", 1, kMaxExperts).value_or(v3 ? 4 : 1));
  }
  const int64_t first = fields.OptionalInt("first_k_dense_replace", 0, kMaxLayers).value_or(v3 ? 3 : 0);
  const int64_t every = fields.OptionalInt("moe_layer_freq", 1, kMaxLayers).value_or(1);
  for (size_t i = 0; i < config->layers.size(); ++i)
    config->layers[i].experts = moe->num_experts > 0 && int64_t(i) >= first && int64_t(i) % every == 0;
}

void CheckMoe(Fields& fields, const MoeSpec& moe) {
  if (moe.top_k > moe.num_experts)
    fields.Fail(InvalidArgument("num_experts_per_tok is {} but there are {} experts", moe.top_k, moe.num_experts));
  const MoeRouting& routing = moe.routing;
  if (moe.num_experts % routing.num_groups != 0 || routing.top_groups > routing.num_groups)
    return fields.Fail(InvalidArgument("{} experts in {} groups (n_group) of which {} are chosen (topk_group): not possible",
                                       moe.num_experts, routing.num_groups, routing.top_groups));
  const int in_groups = moe.num_experts / routing.num_groups * routing.top_groups;
  if (moe.top_k > in_groups)
    fields.Fail(InvalidArgument("num_experts_per_tok is {} but the chosen groups hold {} experts", moe.top_k, in_groups));
  if (routing.group_score_top2 && moe.num_experts / routing.num_groups < 2)
    fields.Fail(InvalidArgument("n_group is {} for {} experts; a group needs two", routing.num_groups, moe.num_experts));
}

}  // namespace

void ParseLatent(Fields& fields, const Family& family, ModelConfig* config) {
  if (!family.latent) return;
  LatentSpec latent;
  latent.q_rank =
      static_cast<int>(fields.OptionalInt("q_lora_rank", 1, kMaxWidth).value_or(fields.Mentions("q_lora_rank") ? 0 : 1536));
  latent.kv_rank = static_cast<int>(fields.OptionalInt("kv_lora_rank", 1, kMaxHeadDim).value_or(512));
  latent.nope_dim = static_cast<int>(fields.OptionalInt("qk_nope_head_dim", 1, kMaxHeadDim).value_or(128));
  latent.rope_dim = static_cast<int>(fields.OptionalInt("qk_rope_head_dim", 2, kMaxHeadDim).value_or(64));
  latent.value_dim = static_cast<int>(fields.OptionalInt("v_head_dim", 1, kMaxHeadDim).value_or(128));
  if (latent.kv_rank + latent.rope_dim > kMaxHeadDim)
    fields.Fail(InvalidArgument("kv_lora_rank {} + qk_rope_head_dim {} is above the limit of {}", latent.kv_rank, latent.rope_dim,
                                kMaxHeadDim));
  if (!fields.BoolOr("rope_interleave", true))
    fields.Fail(InvalidArgument("rope_interleave is false; only the published true is supported"));
  config->latent = latent;
  // The one KV head holds latents; queries are compared with them in their space.
  config->num_kv_heads = 1;
  config->head_dim = latent.kv_rank + latent.rope_dim;
}

void ParseMoe(Fields& fields, const Family& family, ModelConfig* config) {
  if (family.moe == MoeRule::kNone) {
    for (const char* key : {"num_local_experts", "num_experts", "n_routed_experts"})
      if (fields.OptionalInt(key, 0, 1 << 20).value_or(0) > 1)
        fields.Fail(InvalidArgument("{}: {} has no mixture of experts", key, family.architecture));
    return;
  }
  MoeSpec moe;
  for (LayerSpec& layer : config->layers) layer.experts = true;
  switch (family.moe) {
    case MoeRule::kQwen:
      ParseQwenMoe(fields, family, config, &moe);
      if (!family.names.shared.empty()) {
        moe.shared_intermediate_size = fields.Int("shared_expert_intermediate_size", 1, kMaxFfn);
        moe.shared_gate = true;
      }
      break;
    case MoeRule::kDeepSeekV2:
    case MoeRule::kDeepSeekV3:
      ParseDeepSeekMoe(fields, family, config, &moe);
      break;
    default:  // Mixtral, Granite, gpt-oss: every layer, experts as wide as intermediate_size, weights are a softmax of the chosen
      moe.num_experts = static_cast<int>(
          fields.Int(fields.Find("num_local_experts") != nullptr ? "num_local_experts" : "num_experts", 1, kMaxExperts));
      moe.intermediate_size = config->intermediate_size;
      moe.routing.score = MoeRouting::Score::kTopKThenSoftmax;
      moe.router_bias = moe.expert_bias = family.moe == MoeRule::kGptOss;
  }
  const bool any =
      std::any_of(config->layers.begin(), config->layers.end(), [](const LayerSpec& layer) { return layer.experts; });
  if (!any) return;
  const char* top_k = fields.Find("num_experts_per_tok") != nullptr ? "num_experts_per_tok" : "experts_per_token";
  moe.top_k = static_cast<int>(fields.Int(top_k, 1, kMaxExperts));
  moe.routing.num_experts = moe.num_experts;
  moe.routing.top_k = moe.top_k;
  CheckMoe(fields, moe);
  config->moe = moe;
}

void ParseLayers(Fields& fields, const Family& family, ModelConfig* config) {
  ParseRotation(fields, family, config);
  if (family.delta_net) {
    ParseDeltaNet(fields, family, config);
  } else {
    ParseWindows(fields, family, config);
  }
  for (LayerSpec& layer : config->layers) {
    if (family.positions == PositionRule::kLocalGlobal && layer.window != 0) layer.rope = 1;
    if (family.positions == PositionRule::kSlidingOnly && layer.window == 0) layer.rope = -1;
  }
  ParseKvOwners(fields, family, config);
}

}  // namespace kvasir
