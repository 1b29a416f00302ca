#include "models/families.h"

#include <array>

namespace kvasir {
namespace {

constexpr TensorNames kLlamaNames = {
    .embed = "model.embed_tokens.weight",
    .final_norm = "model.norm.weight",
    .lm_head = "lm_head.weight",
    .layer_prefix = "model.layers.",
    .input_norm = "input_layernorm",
    .q = "self_attn.q_proj",
    .k = "self_attn.k_proj",
    .v = "self_attn.v_proj",
    .o = "self_attn.o_proj",
    .post_norm = "post_attention_layernorm",
    .gate = "mlp.gate_proj",
    .up = "mlp.up_proj",
    .down = "mlp.down_proj",
};

// Defaults are those of the configuration classes of transformers: what a missing field means to everybody else.
constexpr std::array<Family, 2> kFamilies = {{
    {.architecture = "LlamaForCausalLM", .model_type = "llama", .bias_options = true, .names = kLlamaNames},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .sliding_window = true,
     .default_window = 4096,
     .default_kv_heads = 8,
     .names = kLlamaNames},
}};

}  // namespace

std::span<const Family> Families() {
  return kFamilies;
}

const Family* FindFamily(std::string_view architecture) {
  for (const Family& family : kFamilies)
    if (family.architecture == architecture) return &family;
  return nullptr;
}

const Family* FindFamilyByModelType(std::string_view model_type) {
  for (const Family& family : kFamilies)
    if (family.model_type == model_type) return &family;
  return nullptr;
}

std::string SupportedArchitectures() {
  std::string names;
  for (const Family& family : kFamilies) names += (names.empty() ? "" : ", ") + std::string(family.architecture);
  return names;
}

}  // namespace kvasir
