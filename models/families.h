// The families table: what differs between the architectures that the one decoder loop in models/model.cc can run, one row of
// data each. Used by config parsing (keys, defaults, what is allowed) and weights loading (tensor names and how they are stored).
// A new family that fits is a new row; docs/models.md is made from this table.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "models/config.h"

namespace kvasir {

// Names after the root and the layer's prefix. Each has a weight (".weight") and, where the config says so, a bias (".bias").
struct TensorNames {
  std::string_view layers = "layers.";  // followed by the number and "."
  std::string_view embed = "embed_tokens", final_norm = "norm";
  std::string_view lm_head = "lm_head.weight";  // whole name, without root
  std::string_view positions;                   // table of learned positions
  std::string_view input_norm = "input_layernorm";
  std::string_view post_attention_norm;  // of the attention's output (post-norm and sandwich forms)
  std::string_view mlp_norm = "post_attention_layernorm";
  std::string_view post_mlp_norm;
  std::string_view q = "self_attn.q_proj", k = "self_attn.k_proj", v = "self_attn.v_proj", o = "self_attn.o_proj";
  std::string_view qkv;  // instead of q, k, v where they are stored as one
  std::string_view q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm";
  std::string_view sinks = "self_attn.sinks";  // whole name
  std::string_view gate = "mlp.gate_proj", up = "mlp.up_proj", down = "mlp.down_proj";
  std::string_view gate_up;  // instead of gate and up where they are stored as one
  // mixture of experts
  std::string_view router = "mlp.gate", experts = "mlp.experts.";  // experts: then the number, ".", and the three below
  std::string_view expert_gate = "gate_proj", expert_up = "up_proj", expert_down = "down_proj";
  std::string_view shared;  // prefix of the expert that all tokens use
  std::string_view shared_gate = "mlp.shared_expert_gate";
};

// How matrices lie in the checkpoint.
enum class Storage : uint8_t {
  kPlain,        // [out, in]; a fused qkv is all of q, then k, then v; a fused gate_up is gate, then up
  kConv1d,       // [in, out] (GPT-2)
  kHeadwiseQkv,  // fused qkv as q, k, v of head 0, then of head 1, ... (GPT-NeoX)
};
enum class ExpertStorage : uint8_t {
  kSeparate,     // a tensor for each expert and matrix
  kStacked,      // experts.gate_up [experts, 2 * ffn, hidden] and experts.down [experts, hidden, ffn] (Granite MoE)
  kInterleaved,  // [experts, in, out], gate and up columns alternating; or the same as MXFP4 blocks and scales (gpt-oss)
};

// A bias: there always, never, or as a config key says.
struct BiasRule {
  std::string_view key;  // empty: `otherwise` holds
  bool otherwise = false;
};

// Which layers see a sliding window when the config has no "layer_types".
enum class WindowRule : uint8_t {
  kNone,      // sliding_window must not be set
  kAll,       // all layers, if sliding_window is set
  kPattern,   // all but every n-th (sliding_window_pattern, or Family::window_period)
  kQwen2,     // if use_sliding_window: layers from max_window_layers on
  kQwen2Moe,  // if use_sliding_window: every second layer below max_window_layers
  kQwen3Moe,  // if use_sliding_window: all
  kSmolLm3,   // if use_sliding_window: the layers without rotation
};
enum class PositionRule : uint8_t {
  kRotary,
  kLearned,       // a table of position embeddings, no rotation (GPT-2)
  kLocalGlobal,   // sliding layers rotate by a base of their own (Gemma 3)
  kSlidingOnly,   // layers that see all are not rotated (Cohere-2)
  kNoRopeLayers,  // "no_rope_layers" (SmolLM3)
};
enum class MoeRule : uint8_t { kNone, kMixtral, kQwen, kDeepSeekV2, kDeepSeekV3, kGptOss, kGranite };

struct Family {
  std::string_view architecture;  // "LlamaForCausalLM"
  std::string_view model_type;    // "llama"
  std::string_view models;        // for people: "Llama 2, 3, 3.1, 3.2, 3.3"

  // Keys of config.json.
  std::string_view hidden_key = "hidden_size", ffn_key = "intermediate_size", layers_key = "num_hidden_layers",
                   heads_key = "num_attention_heads", positions_key = "max_position_embeddings", eps_key = "rms_norm_eps",
                   activation_key = "hidden_act";
  std::string_view text_key;  // the language model's config is nested under it

  // Values when config.json does not tell.
  double default_eps = 1e-6;
  std::string_view default_activation = "silu";
  double default_theta = 10000.0;
  double default_partial_rotary = 1.0;
  int default_window = 0;
  int default_kv_heads = 0;  // 0 = as many as query heads
  int default_head_dim = 0;  // 0 = hidden / heads
  bool default_tied = false;
  int64_t default_positions = 0;   // 0 = must be given
  int64_t default_ffn_factor = 0;  // ffn = this times hidden when not given; 0 = must be given

  NormKind norm = NormKind::kRms;
  bool norm_bias = false;
  bool norm_plus_one = false;
  BlockForm block = BlockForm::kPreNorm;
  QkNorm qk_norm = QkNorm::kNone;
  BiasRule qkv_bias, o_bias, mlp_bias;
  bool gated = true;
  bool rope_interleaved = false;
  bool partial_rotary = false;  // partial_rotary_factor means something
  bool latent = false;          // multi-head latent attention
  bool delta_net = false;       // layers of gated delta nets among those of attention
  bool attention_gate = false;  // q_proj has, for each head, the query's rows and then those of a gate on the head's output
  bool sinks = false;
  PositionRule positions = PositionRule::kRotary;
  WindowRule windows = WindowRule::kNone;
  int window_period = 0;
  MoeRule moe = MoeRule::kNone;
  bool default_normalized_experts = false;  // norm_topk_prob
  bool embed_sqrt_hidden = false;           // token embeddings times sqrt(hidden)
  bool query_scalar = false;                // attention scale from query_pre_attn_scalar
  bool softcaps = false;                    // attn_logit_softcapping and final_logit_softcapping
  double default_attention_softcap = 0, default_logit_softcap = 0;
  bool multipliers = false;        // embedding_, residual_, attention_multiplier and logits_scaling (Granite)
  double default_logit_scale = 0;  // 0 = no logit_scale (Cohere)

  Storage storage = Storage::kPlain;
  ExpertStorage expert_storage = ExpertStorage::kSeparate;
  TensorNames names;
  std::string_view root = "model.", other_root;  // before every name but lm_head; the second is tried when the first is not there
};

std::span<const Family> Families();
const Family* FindFamily(std::string_view architecture);
const Family* FindFamilyByModelType(std::string_view model_type);
std::string SupportedArchitectures();  // "LlamaForCausalLM, MistralForCausalLM, ..."

}  // namespace kvasir
