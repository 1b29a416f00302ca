// ModelConfig: config.json as plain data, after every value has been checked: what the one decoder loop of models/model.cc
// computes, layer by layer. What is not supported is refused by name, never guessed. Used by model loading, the roofline and the
// server's model info.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "kernels/status.h"
#include "kernels/tensor.h"
#include "models/quantized_config.h"

namespace kvasir {

struct RopeScaling {
  enum class Kind { kNone, kLinear, kDynamic, kLlama3, kYarn, kLongRope } kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  int64_t original_max_position = 0;              // llama3, yarn, longrope; dynamic: the length up to which the plain base holds
  double beta_fast = 32.0, beta_slow = 1.0;       // yarn
  bool truncate = true;                           // yarn: whole dimensions bound the ramp
  double attention_factor = 1.0;                  // yarn, longrope: cos and sin are multiplied by it
  std::vector<double> short_factor, long_factor;  // longrope: one per pair
};

struct Rope {
  double theta = 10000.0;
  int rotary_dim = 0;        // leading dimensions of each head that are rotated; the rest passes
  bool interleaved = false;  // pairs are (2i, 2i + 1) in the checkpoint; weights are permuted to half-split pairs at load
  RopeScaling scaling;
};

// How the norms and the two halves of a layer are put together.
enum class BlockForm : uint8_t {
  kPreNorm,      // x += attention(norm(x)); x += mlp(norm(x))
  kPostNorm,     // x += norm(attention(x)); x += norm(mlp(x))                              OLMo-2
  kSandwich,     // x += norm(attention(norm(x))); x += norm(mlp(norm(x)))                  Gemma 2, 3
  kParallel,     // n = norm(x); x += attention(n) + mlp(n)                                 Cohere-2
  kParallelTwo,  // x += attention(norm1(x)) + mlp(norm2(x))                                GPT-NeoX
};

enum class QkNorm : uint8_t { kNone, kPerHead, kWhole };  // before rotation: each head by itself, or all heads of a row together

struct LayerSpec {
  int window = 0;        // sliding window in tokens; 0 = none
  int rope = 0;          // index into ModelConfig::ropes; -1 = positions are not rotated
  int kv_owner = 0;      // the layer whose KV it reads; its own index unless KV is shared across layers
  bool experts = false;  // a mixture of experts in place of the dense block
  bool delta = false;    // a gated delta net (ModelConfig::delta) in place of attention; window, rope and kv_owner say nothing
};

// Mixture of experts (models with LayerSpec::experts).
struct MoeSpec {
  int num_experts = 0, top_k = 0;
  int64_t intermediate_size = 0;         // of one expert
  int64_t shared_intermediate_size = 0;  // of the expert all tokens use; 0 = none
  bool shared_gate = false;              // its output times sigmoid of one logit per token
  bool router_bias = false, correction_bias = false, expert_bias = false;
  MoeRouting routing;  // num_experts and top_k repeated there; correction stays null
};

// Multi-head latent attention: one latent of kv_rank + rope_dim values per token is the whole KV.
struct LatentSpec {
  int q_rank = 0;  // 0 = queries are projected directly
  int kv_rank = 0;
  int nope_dim = 0, rope_dim = 0;  // of each query head
  int value_dim = 0;               // of each head's output
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  std::string model_type;    // "llama"
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int num_layers = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;

  NormKind norm = NormKind::kRms;
  bool norm_bias = false;
  bool norm_plus_one = false;  // the stored weight is w of a factor 1 + w
  float norm_eps = 1e-6f;
  BlockForm block = BlockForm::kPreNorm;
  QkNorm qk_norm = QkNorm::kNone;

  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  float attention_scale = 0;
  bool attention_scale_by_layer = false;  // divided by the layer's number, from 1
  float attention_softcap = 0;            // 0 = none
  bool attention_gate = false;            // the attention's output times the sigmoid of a projection of its input
  bool sinks = false;                     // a learned logit per query head in the softmax's denominator
  std::vector<Rope> ropes;
  bool learned_positions = false;  // a table of position embeddings is added to the token's

  ActivationParams activation = Activation::kSilu;
  bool gated = true;
  std::optional<MoeSpec> moe;
  std::optional<LatentSpec> latent;
  std::optional<DeltaNet> delta;
  std::vector<LayerSpec> layers;

  float embed_scale = 1, residual_scale = 1;
  bool embed_scale_rounded = false;  // to the type computed in, as the model was trained (Gemma)
  float logit_scale = 1, logit_softcap = 0;
  bool tie_word_embeddings = false;
  DType dtype = DType::kF32;  // as stored
  QuantizedConfig quantized;
  std::vector<int32_t> eos_token_ids;  // generation_config.json's list wins over config.json's
  std::optional<int32_t> bos_token_id;

  int64_t parameter_count() const;
  // Longest text the model can be asked to hold: max_position_embeddings, times the factor of linear and dynamic scaling.
  int64_t max_context() const;
};

// Sampling defaults of generation_config.json; unset means not given there.
struct GenerationDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int32_t> top_k, max_new_tokens;
};

StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_config_json);
StatusOr<GenerationDefaults> ParseGenerationDefaults(std::string_view generation_config_json);

}  // namespace kvasir
