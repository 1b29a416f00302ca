#include "models/config.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "models/families.h"
#include "models/strict_json.h"

namespace kvasir {
namespace {

using nlohmann::json;

// Bounds on what a config may ask for. Far above any published model, and low enough that no product of them overflows 63 bits.
constexpr int64_t kMaxWidth = 1 << 17;  // hidden_size
constexpr int64_t kMaxFfn = 1 << 20;    // intermediate_size
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxPositions = 1 << 24;
constexpr int64_t kMaxTokenId = std::numeric_limits<int32_t>::max();

std::string Shown(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

// Typed reads of one object's fields. The first problem is kept and later reads give defaults, so that parsing reads as a list of
// fields; the caller asks status() once. A missing field and null are the same, as they are to transformers.
class Fields {
 public:
  Fields(const json& object, std::string where, Status* status) : object_(object), where_(std::move(where)), status_(status) {}

  const json* Find(std::string_view key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  bool Mentions(std::string_view key) const { return object_.contains(key); }

  std::optional<int64_t> OptionalInt(std::string_view key, int64_t low, int64_t high) {
    const json* value = Find(key);
    if (value == nullptr) return std::nullopt;
    if (const auto number = Whole(*value); number && *number >= low && *number <= high) return number;
    Fail(InvalidArgument("{}{} is {}; wanted a whole number from {} to {}", where_, key, Shown(*value), low, high));
    return std::nullopt;
  }
  int64_t Int(std::string_view key, int64_t low, int64_t high) {
    const auto value = OptionalInt(key, low, high);
    if (!value && Find(key) == nullptr)
      Fail(InvalidArgument("{}{} is missing; it is a whole number from {} to {}", where_, key, low, high));
    return value.value_or(low);
  }
  std::optional<double> OptionalReal(std::string_view key, double low, double high) {
    const json* value = Find(key);
    if (value == nullptr) return std::nullopt;
    if (value->is_number()) {
      const double number = value->get<double>();
      if (std::isfinite(number) && number >= low && number <= high) return number;
    }
    Fail(InvalidArgument("{}{} is {}; wanted a number from {} to {}", where_, key, Shown(*value), low, high));
    return std::nullopt;
  }
  double Real(std::string_view key, double low, double high) {
    const auto value = OptionalReal(key, low, high);
    if (!value && Find(key) == nullptr)
      Fail(InvalidArgument("{}{} is missing; it is a number from {} to {}", where_, key, low, high));
    return value.value_or(low);
  }
  bool BoolOr(std::string_view key, bool otherwise) {
    const json* value = Find(key);
    if (value == nullptr) return otherwise;
    if (value->is_boolean()) return value->get<bool>();
    Fail(InvalidArgument("{}{} is {}; wanted true or false", where_, key, Shown(*value)));
    return otherwise;
  }
  std::string StringOr(std::string_view key, std::string_view otherwise) {
    const json* value = Find(key);
    if (value == nullptr) return std::string(otherwise);
    if (value->is_string()) return value->get<std::string>().substr(0, 200);
    Fail(InvalidArgument("{}{} is {}; wanted a string", where_, key, Shown(*value)));
    return std::string(otherwise);
  }
  // One id or a list of them; ids that are not token ids are refused.
  std::vector<int32_t> TokenIds(std::string_view key) {
    std::vector<int32_t> ids;
    const json* value = Find(key);
    if (value == nullptr) return ids;
    const auto add = [&](const json& item) {
      const auto id = Whole(item);
      if (id && *id >= 0 && *id <= kMaxTokenId && ids.size() < 1024) {
        if (std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(static_cast<int32_t>(*id));
      } else {
        Fail(InvalidArgument("{}{} holds {}; wanted a token id or a list of at most 1024 of them", where_, key, Shown(item)));
      }
    };
    if (!value->is_array()) return add(*value), ids;
    for (const json& item : *value)
      if (status_->ok()) add(item);
    return ids;
  }

  void Fail(Status status) {
    if (status_->ok()) *status_ = std::move(status);
  }

 private:
  // A whole number, also when written as 2.0 or 1e5.
  static std::optional<int64_t> Whole(const json& value) {
    if (value.is_number_unsigned()) {
      const uint64_t number = value.get<uint64_t>();
      return number <= uint64_t{std::numeric_limits<int64_t>::max()} ? std::optional<int64_t>(number) : std::nullopt;
    }
    if (value.is_number_integer()) return value.get<int64_t>();
    if (!value.is_number_float()) return std::nullopt;
    const double number = value.get<double>();
    if (!(std::fabs(number) <= 0x1p53) || number != std::floor(number)) return std::nullopt;
    return static_cast<int64_t>(number);
  }

  const json& object_;
  const std::string where_;  // "" or "rope_scaling."
  Status* status_;
};

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
      fields.Fail(
          InvalidArgument("architectures: '{}' is not supported; supported: {}", config->architecture, SupportedArchitectures()));
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
  config->hidden_size = fields.Int("hidden_size", 1, kMaxWidth);
  config->intermediate_size = fields.Int("intermediate_size", 1, kMaxFfn);
  config->num_layers = static_cast<int>(fields.Int("num_hidden_layers", 1, kMaxLayers));
  config->num_q_heads = static_cast<int>(fields.Int("num_attention_heads", 1, kMaxHeads));
  const bool default_kv = family.default_kv_heads != 0 && !fields.Mentions("num_key_value_heads");
  config->num_kv_heads = static_cast<int>(fields.OptionalInt("num_key_value_heads", 1, kMaxHeads)
                                              .value_or(default_kv ? family.default_kv_heads : config->num_q_heads));
  config->vocab_size = fields.Int("vocab_size", 1, kMaxVocab);
  config->max_position_embeddings = fields.Int("max_position_embeddings", 1, kMaxPositions);
  if (config->num_q_heads % config->num_kv_heads != 0)
    fields.Fail(InvalidArgument("num_attention_heads is {}, which is not a multiple of num_key_value_heads {}",
                                config->num_q_heads, config->num_kv_heads));
  if (const auto head_dim = fields.OptionalInt("head_dim", 2, kMaxHeadDim)) {
    config->head_dim = static_cast<int>(*head_dim);
  } else if (config->hidden_size % config->num_q_heads != 0) {
    fields.Fail(InvalidArgument("hidden_size {} is not a multiple of num_attention_heads {}, and head_dim is not given",
                                config->hidden_size, config->num_q_heads));
  } else {
    const int64_t derived = config->hidden_size / config->num_q_heads;
    if (derived > kMaxHeadDim)
      fields.Fail(
          InvalidArgument("head_dim (hidden_size / num_attention_heads) is {} but the limit is {}", derived, kMaxHeadDim));
    config->head_dim = static_cast<int>(std::min(derived, kMaxHeadDim));
  }
  if (config->head_dim % 2 != 0)
    fields.Fail(InvalidArgument("head_dim is {}; rotary embedding needs an even one", config->head_dim));
}

RopeScaling ParseRopeKind(Fields& rope, const std::string& name, std::string_view where, const ModelConfig& config) {
  RopeScaling scaling;
  using Kind = RopeScaling::Kind;
  if (name == "default") return scaling;
  if (name == "linear" || name == "dynamic") {
    scaling.kind = name == "linear" ? Kind::kLinear : Kind::kDynamic;
    scaling.factor = rope.Real("factor", 1.0, 4096.0);
    // The method compares lengths with max_position_embeddings; some configs repeat that number here.
    scaling.original_max_position = config.max_position_embeddings;
    const auto original = rope.OptionalInt("original_max_position_embeddings", 1, kMaxPositions);
    if (original && *original != config.max_position_embeddings)
      rope.Fail(InvalidArgument(
          "{}original_max_position_embeddings is {} but max_position_embeddings is {}; for rope type '{}' they must be equal",
          where, *original, config.max_position_embeddings, name));
    if (scaling.kind == Kind::kDynamic && config.head_dim <= 2)
      rope.Fail(InvalidArgument("{}type 'dynamic' needs head_dim above 2", where));
    return scaling;
  }
  if (name == "llama3") {
    scaling.kind = Kind::kLlama3;
    scaling.factor = rope.Real("factor", 1.0, 4096.0);
    scaling.low_freq_factor = rope.Real("low_freq_factor", 1e-6, 1e6);
    scaling.high_freq_factor = rope.Real("high_freq_factor", 1e-6, 1e6);
    scaling.original_max_position = rope.Int("original_max_position_embeddings", 1, kMaxPositions);
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      rope.Fail(InvalidArgument("{}high_freq_factor is {}; it must be above low_freq_factor {}", where, scaling.high_freq_factor,
                                scaling.low_freq_factor));
    return scaling;
  }
  rope.Fail(InvalidArgument("{}rope_type '{}' is not supported; supported: default, linear, dynamic, llama3", where, name));
  return scaling;
}

// Three spellings: rope_theta and rope_scaling {"type": ...} or {"rope_type": ...}, and rope_parameters with rope_theta inside.
void ParseRope(Fields& fields, ModelConfig* config, Status* status) {
  config->rope_theta = fields.OptionalReal("rope_theta", 1e-3, 1e15).value_or(10000.0);
  if (fields.OptionalReal("partial_rotary_factor", 0.0, 1.0).value_or(1.0) != 1.0)
    fields.Fail(InvalidArgument("partial_rotary_factor is not 1; rotating a part of each head is not supported"));
  const json* scaling = fields.Find("rope_scaling");
  const json* parameters = fields.Find("rope_parameters");
  if (scaling != nullptr && parameters != nullptr && *scaling != *parameters)
    return fields.Fail(InvalidArgument("rope_scaling and rope_parameters are both given and differ; remove one"));
  const json* chosen = parameters != nullptr ? parameters : scaling;
  if (chosen == nullptr) return;
  const std::string where = parameters != nullptr ? "rope_parameters." : "rope_scaling.";
  if (!chosen->is_object())
    return fields.Fail(InvalidArgument("{} is {}; wanted an object or null", where.substr(0, where.size() - 1), Shown(*chosen)));
  for (const auto& [key, value] : chosen->items())
    if (value.is_object())
      return fields.Fail(
          InvalidArgument("{}{} is an object; rotary parameters per layer type are not supported", where, key.substr(0, 80)));
  Fields rope(*chosen, where, status);
  const std::string old_name = rope.StringOr("type", ""), new_name = rope.StringOr("rope_type", "");
  if (!old_name.empty() && !new_name.empty() && old_name != new_name)
    return rope.Fail(InvalidArgument("{}type is '{}' but {}rope_type is '{}'; remove one", where, old_name, where, new_name));
  const std::string name = !new_name.empty() ? new_name : old_name;
  if (name.empty() && parameters == nullptr && !chosen->empty())
    return rope.Fail(InvalidArgument("{}rope_type is missing; supported: default, linear, dynamic, llama3", where));
  if (const auto theta = rope.OptionalReal("rope_theta", 1e-3, 1e15)) config->rope_theta = *theta;
  if (rope.OptionalReal("partial_rotary_factor", 0.0, 1.0).value_or(1.0) != 1.0)
    rope.Fail(InvalidArgument("{}partial_rotary_factor is not 1; rotating a part of each head is not supported", where));
  config->rope_scaling = ParseRopeKind(rope, name.empty() ? "default" : name, where, *config);
}

// "sliding_window" of Mistral; "layer_types" must then say the same of all layers.
void ParseWindow(Fields& fields, const Family& family, ModelConfig* config) {
  if (family.sliding_window) {
    const auto window = fields.OptionalInt("sliding_window", 0, std::numeric_limits<int32_t>::max());
    config->sliding_window = static_cast<int>(window.value_or(fields.Mentions("sliding_window") ? 0 : family.default_window));
  } else if (fields.OptionalInt("sliding_window", 0, std::numeric_limits<int32_t>::max()).value_or(0) != 0) {
    fields.Fail(InvalidArgument("sliding_window is set but {} has none; remove it or set it to null", family.architecture));
  }
  const json* types = fields.Find("layer_types");
  if (types == nullptr) return;
  const char* wanted = config->sliding_window != 0 ? "sliding_attention" : "full_attention";
  if (!types->is_array()) return fields.Fail(InvalidArgument("layer_types is {}; wanted a list of strings", Shown(*types)));
  for (const json& type : *types)
    if (!type.is_string() || type.get<std::string>() != wanted)
      return fields.Fail(
          InvalidArgument("layer_types holds {}; for {} with sliding_window {} only '{}' in every layer is supported",
                          Shown(type), family.architecture, config->sliding_window, wanted));
}

void ParseVariants(Fields& fields, const Family& family, ModelConfig* config) {
  const std::string act = fields.StringOr("hidden_act", "silu");
  if (act != "silu" && act != "swish") fields.Fail(InvalidArgument("hidden_act '{}' is not supported; supported: silu", act));
  for (const char* key : {"quantization_config", "compression_config"}) {
    const json* quant = fields.Find(key);
    if (quant == nullptr) continue;
    const auto method = quant->is_object() ? quant->find("quant_method") : quant->end();
    fields.Fail(InvalidArgument("{}: quantised weights ({}) are not supported; use the float32, float16 or bfloat16 model", key,
                                method != quant->end() ? Shown(*method) : std::string("no quant_method")));
  }
  config->attention_bias = fields.BoolOr("attention_bias", false);
  config->mlp_bias = fields.BoolOr("mlp_bias", false);
  if (!family.bias_options && (config->attention_bias || config->mlp_bias))
    fields.Fail(InvalidArgument("{} is true but {} has no biases", config->attention_bias ? "attention_bias" : "mlp_bias",
                                family.architecture));
  config->tie_word_embeddings = fields.BoolOr("tie_word_embeddings", false);
  if (fields.BoolOr("is_encoder_decoder", false))
    fields.Fail(InvalidArgument("is_encoder_decoder is true; only decoders are supported"));
  if (fields.OptionalInt("num_local_experts", 0, 1 << 20).value_or(0) > 1)
    fields.Fail(InvalidArgument("num_local_experts: mixtures of experts are not supported"));
  config->rms_norm_eps =
      static_cast<float>(fields.OptionalReal("rms_norm_eps", 1e-12, 1.0).value_or(family.default_rms_norm_eps));
  std::string dtype = fields.StringOr("dtype", fields.StringOr("torch_dtype", "float32"));
  if (dtype.starts_with("torch.")) dtype = dtype.substr(6);
  if (dtype == "float32" || dtype == "float" || dtype == "auto") {
    config->dtype = DType::kF32;
  } else if (dtype == "float16" || dtype == "half") {
    config->dtype = DType::kF16;
  } else if (dtype == "bfloat16") {
    config->dtype = DType::kBF16;
  } else {
    fields.Fail(InvalidArgument("{} '{}' is not supported; supported: float32, float16, bfloat16",
                                fields.Find("dtype") ? "dtype" : "torch_dtype", dtype));
  }
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
  int64_t layer = hidden_size * (2 * q_width + 2 * kv_width) + 3 * hidden_size * intermediate_size + 2 * hidden_size;
  if (attention_bias) layer += q_width + 2 * kv_width + hidden_size;
  if (mlp_bias) layer += 2 * intermediate_size + hidden_size;
  return num_layers * layer + hidden_size + vocab_size * hidden_size * (tie_word_embeddings ? 1 : 2);
}

int64_t ModelConfig::max_context() const {
  const bool longer = rope_scaling.kind == RopeScaling::Kind::kLinear || rope_scaling.kind == RopeScaling::Kind::kDynamic;
  const double positions = static_cast<double>(max_position_embeddings) * (longer ? rope_scaling.factor : 1.0);
  return static_cast<int64_t>(std::min(positions, static_cast<double>(kMaxPositions)));
}

StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_config_json) {
  KVASIR_ASSIGN_OR_RETURN(const json root, ParseObject(config_json, "config.json"));
  Status status = OkStatus();
  ModelConfig config;
  Fields fields(root, "", &status);
  if (const Family* family = ParseFamily(fields, &config)) {
    ParseShape(fields, *family, &config);
    ParseRope(fields, &config, &status);
    ParseWindow(fields, *family, &config);
    ParseVariants(fields, *family, &config);
  }
  const std::vector<int32_t> bos = fields.TokenIds("bos_token_id");
  if (!bos.empty()) config.bos_token_id = bos[0];
  config.eos_token_ids = fields.TokenIds("eos_token_id");
  if (!status.ok()) return AtPlace("config.json", status);
  if (!generation_config_json.empty()) {
    KVASIR_ASSIGN_OR_RETURN(const json generation, ParseObject(generation_config_json, "generation_config.json"));
    Fields more(generation, "", &status);
    if (more.Find("eos_token_id") != nullptr) config.eos_token_ids = more.TokenIds("eos_token_id");
    if (const auto ids = more.TokenIds("bos_token_id"); !config.bos_token_id && !ids.empty()) config.bos_token_id = ids[0];
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
