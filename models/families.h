// The families table: what differs between the architectures that the one decoder loop in models/model.cc can run, one row of
// data each. Used by config parsing (what is allowed) and weights loading (tensor names). A new family that fits is a new row.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kvasir {

// Names below a layer have a weight (".weight") and, where the config says so, a bias (".bias").
struct TensorNames {
  std::string_view embed, final_norm, lm_head;  // whole names
  std::string_view layer_prefix;                // "model.layers.": followed by the number and "."
  std::string_view input_norm, q, k, v, o, post_norm, gate, up, down;
};

struct Family {
  std::string_view architecture;  // "LlamaForCausalLM"
  std::string_view model_type;    // "llama"
  bool bias_options = false;      // attention_bias and mlp_bias mean something
  bool sliding_window = false;    // sliding_window means something
  int default_window = 0;         // when config.json does not mention sliding_window
  int default_kv_heads = 0;       // when it does not mention num_key_value_heads; 0 = as many as query heads
  double default_rms_norm_eps = 1e-6;
  TensorNames names;
};

std::span<const Family> Families();
const Family* FindFamily(std::string_view architecture);
const Family* FindFamilyByModelType(std::string_view model_type);
std::string SupportedArchitectures();  // "LlamaForCausalLM, MistralForCausalLM"

}  // namespace kvasir
