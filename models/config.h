// ModelConfig: config.json as plain data, after every value has been checked. What is not supported is refused by name, never
// guessed. Used by model loading, the roofline and the server's model info.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "kernels/tensor.h"

namespace kvasir {

struct RopeScaling {
  enum class Kind { kNone, kLinear, kDynamic, kLlama3 } kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  int64_t original_max_position = 0;                     // llama3; dynamic: the length up to which the plain base holds
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
  float rms_norm_eps = 1e-6f;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  int sliding_window = 0;  // 0 = none
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  DType dtype = DType::kF32;           // as stored
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
