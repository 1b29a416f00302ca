// Fuzz target: any bytes as config.json and, after a zero byte, generation_config.json. What is accepted must be within bounds:
// sizes that multiply without overflow, heads that divide, finite rotary frequencies.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "models/config.h"
#include "models/families.h"
#include "models/kv_plan.h"
#include "models/rope.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view config_json(reinterpret_cast<const char*>(data), size), generation_json;
  if (const size_t zero = config_json.find('\0'); zero != std::string_view::npos) {
    generation_json = config_json.substr(zero + 1);
    config_json = config_json.substr(0, zero);
  }
  const auto check = [](bool holds) {
    if (!holds) std::abort();
  };
  const auto defaults = kvasir::ParseGenerationDefaults(generation_json);
  if (defaults.ok()) check(!defaults->temperature || *defaults->temperature >= 0);
  const auto config = kvasir::ParseModelConfig(config_json, generation_json);
  if (!config.ok()) {
    check(config.status().message().size() < 2000);
    return 0;
  }
  check(kvasir::FindFamily(config->architecture) != nullptr);
  check(config->hidden_size > 0 && config->intermediate_size > 0 && config->num_layers > 0 && config->vocab_size > 0);
  check(config->num_kv_heads > 0 && config->num_q_heads % config->num_kv_heads == 0);
  check(config->head_dim > 0 && (config->head_dim % 2 == 0 || config->ropes.empty() || config->latent));
  check(config->parameter_count() > 0);
  check(config->norm_eps > 0 && std::isfinite(config->attention_scale) && config->attention_scale > 0);
  check(std::isfinite(config->embed_scale) && std::isfinite(config->logit_scale));
  check(config->layers.size() == size_t(config->num_layers));
  for (const kvasir::LayerSpec& layer : config->layers) {
    check(layer.window >= 0 && layer.rope < int(config->ropes.size()));
    check(layer.kv_owner >= 0 && layer.kv_owner < config->num_layers && (!layer.experts || config->moe));
  }
  const kvasir::KvPlan plan = kvasir::PlanKv(*config, 16, config->dtype);
  check(!plan.groups.empty() && plan.layers.size() == config->layers.size());
  for (const kvasir::KvGroup& group : plan.groups) check(group.layout.num_layers > 0 && group.layout.block_bytes() > 0);
  check(config->max_context() >= config->max_position_embeddings || config->max_context() == 1 << 24);
  for (const int32_t id : config->eos_token_ids) check(id >= 0 && id < config->vocab_size);
  for (const kvasir::Rope& rope : config->ropes) {
    check(rope.rotary_dim > 0 && rope.rotary_dim % 2 == 0 && std::isfinite(rope.scaling.attention_factor));
    for (const int64_t length : {int64_t{1}, config->max_context()})
      for (const double f : kvasir::RopeFrequencies(rope, length)) check(std::isfinite(f) && f >= 0);
  }
  return 0;
}
