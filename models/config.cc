#include "models/config.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>

#include "models/config_fields.h"
#include "models/strict_json.h"

namespace kvasir {
namespace {

using nlohmann::json;

// Why an architecture is not served, where its name tells what kind of model it is.
std::string_view KindOf(std::string_view architecture) {
  const auto has = [&](std::string_view part) { return architecture.find(part) != std::string_view::npos; };
  for (const std::string_view part : {"ForSequenceClassification", "ForTokenClassification", "RewardModel", "ForRewardModel"})
    if (has(part)) return " (a model that scores texts: reranking and rewards are not served yet)";
  for (const std::string_view part : {"ForMaskedLM", "Bert", "Roberta", "MPNet", "Embedding", "ColBERT"})
    if (has(part)) return " (an encoder: embeddings and other pooled outputs are not served yet)";
  for (const std::string_view part : {"ForConditionalGeneration", "T5", "Bart", "Whisper"})
    if (has(part)) return " (an encoder-decoder or multimodal model)";
  if (architecture.ends_with("Model") && !architecture.ends_with("LMHeadModel"))
    return " (a model without an output head: embeddings are not served yet)";
  return "";
}

const Family* ParseFamily(Fields& fields, ModelConfig* config) {
  const Family* family = nullptr;
  config->model_type = fields.StringOr("model_type", "");
  if (const json* list = fields.Find("architectures")) {
    if (!list->is_array() || list->size() != 1 || !(*list)[0].is_string()) {
      fields.Fail(InvalidArgument("architectures is {}; wanted a list of one of: {}", Shown(*list), SupportedArchitectures()));
      return nullptr;
    }
    config->architecture = (*list)[0].get<std::string>().substr(0, 200);
    family = FindFamily(config->architecture);
    if (family == nullptr)
      fields.Fail(InvalidArgument("architectures: '{}' is not supported{}; supported: {}", config->architecture,
                                  KindOf(config->architecture), SupportedArchitectures()));
  } else {
    family = FindFamilyByModelType(config->model_type);
    if (family == nullptr)
      fields.Fail(InvalidArgument("architectures is missing and model_type '{}' does not tell it; supported: {}",
                                  config->model_type, SupportedArchitectures()));
  }
  if (family == nullptr) return nullptr;
  if (!config->model_type.empty() && config->model_type != family->model_type)
    fields.Fail(InvalidArgument("model_type is '{}' but architecture {} goes with '{}'", config->model_type, family->architecture,
                                family->model_type));
  config->architecture = family->architecture;
  config->model_type = family->model_type;
  return family;
}

void ParseShape(Fields& fields, const Family& family, ModelConfig* config) {
  config->hidden_size = fields.Int(family.hidden_key, 1, kMaxWidth);
  if (family.default_ffn_factor > 0) {
    config->intermediate_size =
        fields.OptionalInt(family.ffn_key, 1, kMaxFfn).value_or(family.default_ffn_factor * config->hidden_size);
  } else {
    config->intermediate_size = fields.Int(family.ffn_key, 1, kMaxFfn);
  }
  config->num_layers = static_cast<int>(fields.Int(family.layers_key, 1, kMaxLayers));
  config->layers.resize(config->num_layers);
  config->num_q_heads = static_cast<int>(fields.Int(family.heads_key, 1, kMaxHeads));
  const bool default_kv = family.default_kv_heads != 0 && !fields.Mentions("num_key_value_heads");
  config->num_kv_heads = static_cast<int>(fields.OptionalInt("num_key_value_heads", 1, kMaxHeads)
                                              .value_or(default_kv ? family.default_kv_heads : config->num_q_heads));
  config->vocab_size = fields.Int("vocab_size", 1, kMaxVocab);
  config->max_position_embeddings =
      family.default_positions == 0
          ? fields.Int(family.positions_key, 1, kMaxPositions)
          : fields.OptionalInt(family.positions_key, 1, kMaxPositions).value_or(family.default_positions);
  if (family.latent) return;  // heads are not cut from hidden_size
  if (config->num_q_heads % config->num_kv_heads != 0)
    fields.Fail(InvalidArgument("{} is {}, which is not a multiple of num_key_value_heads {}", family.heads_key,
                                config->num_q_heads, config->num_kv_heads));
  if (const auto head_dim = fields.OptionalInt("head_dim", 2, kMaxHeadDim)) {
    config->head_dim = static_cast<int>(*head_dim);
  } else if (family.default_head_dim != 0 && !fields.Mentions("head_dim")) {
    config->head_dim = family.default_head_dim;
  } else if (config->hidden_size % config->num_q_heads != 0) {
    fields.Fail(InvalidArgument("{} {} is not a multiple of {} {}, and head_dim is not given", family.hidden_key,
                                config->hidden_size, family.heads_key, config->num_q_heads));
  } else {
    const int64_t derived = config->hidden_size / config->num_q_heads;
    if (derived > kMaxHeadDim)
      fields.Fail(InvalidArgument("head_dim ({} / {}) is {} but the limit is {}", family.hidden_key, family.heads_key, derived,
                                  kMaxHeadDim));
    config->head_dim = static_cast<int>(std::min(derived, kMaxHeadDim));
  }
  if (config->head_dim % 2 != 0 && family.positions != PositionRule::kLearned)
    fields.Fail(InvalidArgument("head_dim is {}; rotary embedding needs an even one", config->head_dim));
}

struct NamedActivation {
  std::string_view name;
  Activation activation;
};
constexpr NamedActivation kActivations[] = {
    {"silu", Activation::kSilu},         {"swish", Activation::kSilu},         {"gelu", Activation::kGelu},
    {"gelu_new", Activation::kGeluTanh}, {"gelu_fast", Activation::kGeluTanh}, {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"relu", Activation::kRelu},         {"relu2", Activation::kRelu2},
};

void ParseActivation(Fields& fields, const Family& family, ModelConfig* config) {
  std::string name = fields.StringOr(family.activation_key, family.default_activation);
  // Early Gemma 1 files say hidden_act "gelu" where the model was trained with the tanh form; hidden_activation corrects them.
  if (family.model_type == "gemma") name = fields.StringOr("hidden_activation", name == "gelu" ? "gelu_pytorch_tanh" : name);
  std::string supported;
  for (const NamedActivation& known : kActivations) {
    if (known.name == name) {
      config->activation = known.activation;
      if (family.moe != MoeRule::kGptOss) return;
      config->activation = Activation::kSwigluOai;
      config->activation.alpha = static_cast<float>(fields.OptionalReal("swiglu_alpha", 1e-3, 1e3).value_or(1.702));
      config->activation.limit = static_cast<float>(fields.OptionalReal("swiglu_limit", 1e-3, 1e6).value_or(7.0));
      return;
    }
    supported += fmt::format("{}{}", supported.empty() ? "" : ", ", known.name);
  }
  fields.Fail(InvalidArgument("{} '{}' is not supported; supported: {}", family.activation_key, name, supported));
}

void ParseQuantization(Fields& fields, const Family& family, ModelConfig* config) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const json* quant = fields.Find(key);
    if (quant == nullptr) continue;
    StatusOr<QuantizedConfig> parsed = ParseQuantizedConfig(*quant, family.expert_storage == ExpertStorage::kInterleaved);
    if (!parsed.ok()) return fields.Fail(AtPlace(key, parsed.status()));
    config->quantized = std::move(*parsed);
    return;
  }
}

DType ParseStoredType(Fields& fields) {
  std::string dtype = fields.StringOr("dtype", fields.StringOr("torch_dtype", "float32"));
  if (dtype.starts_with("torch.")) dtype = dtype.substr(6);
  if (dtype == "float16" || dtype == "half") return DType::kF16;
  if (dtype == "bfloat16") return DType::kBF16;
  if (dtype != "float32" && dtype != "float" && dtype != "auto")
    fields.Fail(InvalidArgument("{} '{}' is not supported; supported: float32, float16, bfloat16",
                                fields.Find("dtype") ? "dtype" : "torch_dtype", dtype));
  return DType::kF32;
}

bool HasBias(Fields& fields, const BiasRule& rule) {
  return rule.key.empty() ? rule.otherwise : fields.BoolOr(rule.key, rule.otherwise);
}

void ParseVariants(Fields& fields, Fields& top, const Family& family, ModelConfig* config) {
  ParseActivation(fields, family, config);
  ParseQuantization(fields, family, config);
  if (!config->quantized && &top != &fields) ParseQuantization(top, family, config);  // multimodal ones have it outside
  config->norm = family.norm;
  config->norm_bias = family.norm_bias;
  config->norm_plus_one = family.norm_plus_one;
  config->block = family.block;
  if (family.block == BlockForm::kParallelTwo && !fields.BoolOr("use_parallel_residual", true))
    config->block = BlockForm::kPreNorm;
  config->qk_norm = family.qk_norm;
  config->attention_gate = family.attention_gate;
  config->gated = family.gated;
  config->sinks = family.sinks;
  config->qkv_bias = HasBias(fields, family.qkv_bias);
  config->o_bias = HasBias(fields, family.o_bias);
  config->mlp_bias = HasBias(fields, family.mlp_bias);
  // A bias the family has no place for.
  if (family.qkv_bias.key != "attention_bias" && fields.BoolOr("attention_bias", false))
    fields.Fail(InvalidArgument("attention_bias is true but {} has no such biases", family.architecture));
  if (family.mlp_bias.key != "mlp_bias" && fields.BoolOr("mlp_bias", false))
    fields.Fail(InvalidArgument("mlp_bias is true but {} has no such biases", family.architecture));
  for (const char* key :
       {"use_qk_norm", "qk_layernorm", "add_cross_attention", "use_bidirectional_attention", "is_encoder_decoder"})
    if (fields.BoolOr(key, false))
      fields.Fail(InvalidArgument("{} is true, which is not supported for {}", key, family.architecture));
  config->tie_word_embeddings = fields.Find("tie_word_embeddings") != nullptr || &fields == &top
                                    ? fields.BoolOr("tie_word_embeddings", family.default_tied)
                                    : top.BoolOr("tie_word_embeddings", family.default_tied);
  config->norm_eps = static_cast<float>(fields.OptionalReal(family.eps_key, 1e-12, 1.0).value_or(family.default_eps));
  config->dtype = ParseStoredType(fields.Find("dtype") != nullptr || fields.Find("torch_dtype") != nullptr ? fields : top);
}

// Scales and soft-caps.
void ParseScales(Fields& fields, const Family& family, ModelConfig* config) {
  const auto real = [&](std::string_view key, double low, double high, double otherwise) {
    return fields.OptionalReal(key, low, high).value_or(otherwise);
  };
  const double query_dim = config->latent ? config->latent->nope_dim + config->latent->rope_dim : config->head_dim;
  double scale = 1 / std::sqrt(query_dim);
  if (family.query_scalar) scale = 1 / std::sqrt(real("query_pre_attn_scalar", 1e-3, 1e9, 256));
  if (config->latent && config->ropes[0].scaling.kind == RopeScaling::Kind::kYarn) {
    // DeepSeek's softmax temperature: the square of mscale_all_dim's factor.
    const json* rope = fields.Find("rope_parameters") != nullptr ? fields.Find("rope_parameters") : fields.Find("rope_scaling");
    const auto all_dim = rope->find("mscale_all_dim");
    const double m = all_dim != rope->end() && all_dim->is_number() ? all_dim->get<double>() : 0.0;
    const double factor = config->ropes[0].scaling.factor;
    if (m != 0 && factor > 1) scale *= std::pow(0.1 * m * std::log(factor) + 1, 2);
  }
  if (family.positions == PositionRule::kLearned) {  // GPT-2
    if (!fields.BoolOr("scale_attn_weights", true)) scale = 1;
    config->attention_scale_by_layer = fields.BoolOr("scale_attn_by_inverse_layer_idx", false);
  }
  config->embed_scale_rounded = family.embed_sqrt_hidden;
  if (family.embed_sqrt_hidden) config->embed_scale = static_cast<float>(std::sqrt(double(config->hidden_size)));
  if (family.multipliers) {
    config->embed_scale = static_cast<float>(real("embedding_multiplier", 1e-9, 1e9, 1));
    config->residual_scale = static_cast<float>(real("residual_multiplier", 1e-9, 1e9, 1));
    config->logit_scale = static_cast<float>(1 / real("logits_scaling", 1e-9, 1e9, 1));
    scale = real("attention_multiplier", 1e-9, 1e9, 1);
  }
  if (family.default_logit_scale != 0)
    config->logit_scale = static_cast<float>(real("logit_scale", 1e-9, 1e9, family.default_logit_scale));
  if (family.softcaps) {
    const auto cap = [&](std::string_view key, double otherwise) {  // null turns it off, missing means the default
      return static_cast<float>(real(key, 1e-3, 1e9, fields.Mentions(key) ? 0 : otherwise));
    };
    config->attention_softcap = cap("attn_logit_softcapping", family.default_attention_softcap);
    config->logit_softcap = cap("final_logit_softcapping", family.default_logit_softcap);
  }
  config->attention_scale = static_cast<float>(scale);
}

StatusOr<json> ParseObject(std::string_view text, std::string_view file) {
  StatusOr<json> parsed = ParseStrictJson<json>(text);
  if (!parsed.ok()) return AtPlace(file, parsed.status());
  if (!parsed->is_object()) return InvalidArgument("{}: is {}; wanted an object", file, Shown(*parsed));
  return parsed;
}

}  // namespace

int64_t ModelConfig::parameter_count() const {
  const int64_t q_width = int64_t{num_q_heads} * head_dim, kv_width = int64_t{num_kv_heads} * head_dim;
  const auto mlp = [&](int64_t width, bool bias) {
    return (gated ? 3 : 2) * hidden_size * width + (bias ? (gated ? 2 : 1) * width + hidden_size : 0);
  };
  const int64_t norm_weights = hidden_size * (norm_bias ? 2 : 1);
  const int norms = block == BlockForm::kSandwich ? 4 : block == BlockForm::kParallel ? 1 : 2;
  int64_t total = norm_weights + vocab_size * hidden_size * (tie_word_embeddings ? 1 : 2);
  if (learned_positions) total += max_position_embeddings * hidden_size;
  for (size_t i = 0; i < layers.size(); ++i) {
    const bool own_kv = layers[i].kv_owner == static_cast<int>(i);
    total += norms * norm_weights;
    int64_t attention = hidden_size * (attention_gate ? 3 : 2) * q_width + (own_kv ? hidden_size * 2 * kv_width : 0);
    if (latent) {
      const int64_t queries = int64_t{num_q_heads} * (latent->nope_dim + latent->rope_dim);
      attention = latent->q_rank > 0 ? (hidden_size + 1 + queries) * latent->q_rank : hidden_size * queries;
      attention += hidden_size * head_dim + latent->kv_rank +
                   int64_t{num_q_heads} *
                       ((latent->nope_dim + latent->value_dim) * int64_t{latent->kv_rank} + latent->value_dim * hidden_size);
    }
    if (qkv_bias) attention += latent ? latent->q_rank + head_dim : q_width + (own_kv ? 2 * kv_width : 0);
    if (o_bias) attention += hidden_size;
    if (qk_norm == QkNorm::kPerHead) attention += 2 * head_dim;
    if (qk_norm == QkNorm::kWhole) attention += q_width + kv_width;
    if (sinks) attention += num_q_heads;
    if (layers[i].delta) {
      attention = (hidden_size + delta->kernel) * delta->channels() + 2 * hidden_size * (delta->values() + delta->value_heads) +
                  2 * delta->value_heads + delta->value_dim;
    }
    total += attention;
    if (!layers[i].experts) {
      total += mlp(intermediate_size, mlp_bias);
      continue;
    }
    total += moe->num_experts * (mlp(moe->intermediate_size, moe->expert_bias) + hidden_size);
    if (moe->router_bias || moe->correction_bias) total += moe->num_experts;
    if (moe->shared_intermediate_size > 0) total += mlp(moe->shared_intermediate_size, false);
    if (moe->shared_gate) total += hidden_size;
  }
  return total;
}

int64_t ModelConfig::max_context() const {
  if (ropes.empty()) return max_position_embeddings;
  const RopeScaling& scaling = ropes[0].scaling;
  const bool longer = scaling.kind == RopeScaling::Kind::kLinear || scaling.kind == RopeScaling::Kind::kDynamic;
  const double positions = static_cast<double>(max_position_embeddings) * (longer ? scaling.factor : 1.0);
  return static_cast<int64_t>(std::min(positions, static_cast<double>(kMaxPositions)));
}

StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_config_json) {
  KVASIR_ASSIGN_OR_RETURN(const json root, ParseObject(config_json, "config.json"));
  Status status = OkStatus();
  ModelConfig config;
  Fields top(root, "", &status);
  const Family* family = ParseFamily(top, &config);
  if (family == nullptr) return AtPlace("config.json", status);
  // A multimodal checkpoint keeps the language model's config in an object of its own.
  const json* text = family->text_key.empty() ? nullptr : top.Find(family->text_key);
  if (text != nullptr && !text->is_object())
    return AtPlace("config.json", InvalidArgument("{} is {}; wanted an object", family->text_key, Shown(*text)));
  Fields fields(text != nullptr ? *text : root, text != nullptr ? fmt::format("{}.", family->text_key) : "", &status);
  ParseShape(fields, *family, &config);
  ParseLatent(fields, *family, &config);
  ParseRopes(fields, *family, &config);
  ParseMoe(fields, *family, &config);
  ParseLayers(fields, *family, &config);
  ParseVariants(fields, top, *family, &config);
  ParseScales(fields, *family, &config);
  const auto ids = [&](std::string_view key) { return top.Find(key) != nullptr ? top.TokenIds(key) : fields.TokenIds(key); };
  if (const std::vector<int32_t> bos = ids("bos_token_id"); !bos.empty()) config.bos_token_id = bos[0];
  config.eos_token_ids = ids("eos_token_id");
  if (!status.ok()) return AtPlace("config.json", status);
  if (!generation_config_json.empty()) {
    KVASIR_ASSIGN_OR_RETURN(const json generation, ParseObject(generation_config_json, "generation_config.json"));
    Fields more(generation, "", &status);
    if (more.Find("eos_token_id") != nullptr) config.eos_token_ids = more.TokenIds("eos_token_id");
    if (const auto bos = more.TokenIds("bos_token_id"); !config.bos_token_id && !bos.empty()) config.bos_token_id = bos[0];
    if (!status.ok()) return AtPlace("generation_config.json", status);
  }
  // An end token outside the vocabulary cannot be generated; such configs exist, so it is dropped rather than refused.
  std::erase_if(config.eos_token_ids, [&](int32_t id) {
    if (id >= config.vocab_size)
      spdlog::warn("eos_token_id {} is outside the vocabulary of {} and is ignored", id, config.vocab_size);
    return id >= config.vocab_size;
  });
  if (config.bos_token_id && *config.bos_token_id >= config.vocab_size) config.bos_token_id.reset();
  return config;
}

StatusOr<GenerationDefaults> ParseGenerationDefaults(std::string_view generation_config_json) {
  GenerationDefaults defaults;
  if (generation_config_json.empty()) return defaults;
  KVASIR_ASSIGN_OR_RETURN(const json root, ParseObject(generation_config_json, "generation_config.json"));
  Status status = OkStatus();
  Fields fields(root, "", &status);
  const auto real = [&](std::string_view key, double low, double high) -> std::optional<float> {
    const auto value = fields.OptionalReal(key, low, high);
    return value ? std::optional<float>(static_cast<float>(*value)) : std::nullopt;
  };
  const auto whole = [&](std::string_view key, int64_t low, int64_t high) -> std::optional<int32_t> {
    const auto value = fields.OptionalInt(key, low, high);
    return value ? std::optional<int32_t>(static_cast<int32_t>(*value)) : std::nullopt;
  };
  defaults.temperature = real("temperature", 0.0, 100.0);
  defaults.top_p = real("top_p", 0.0, 1.0);
  if (defaults.top_p == 0.0f) fields.Fail(InvalidArgument("top_p is 0; wanted a number above 0 and at most 1"));
  defaults.min_p = real("min_p", 0.0, 1.0);
  defaults.repetition_penalty = real("repetition_penalty", 0.01, 100.0);
  defaults.top_k = whole("top_k", -1, kMaxTokenId);
  if (defaults.top_k == -1) defaults.top_k = 0;  // both mean off
  defaults.max_new_tokens = whole("max_new_tokens", 1, kMaxTokenId);
  if (!status.ok()) return AtPlace("generation_config.json", status);
  return defaults;
}

}  // namespace kvasir
