#include "models/tokenizer_config.h"

#include <algorithm>

#include "models/bpe.h"
#include "models/json_node.h"

namespace kvasir {
namespace {

constexpr int64_t kMaxExtraIds = 10'000;  // T5 has 100

void SortById(std::vector<AddedToken>* tokens) {
  std::sort(tokens->begin(), tokens->end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
}

StatusOr<nlohmann::json> ParseObject(std::string_view text) {
  auto document = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  if (document.is_discarded()) return InvalidArgument("not valid JSON; download the file again");
  if (!document.is_object()) return InvalidArgument("must hold a JSON object");
  return document;
}

// A role is a string, or an object with the string in "content".
Status ReadRole(const JsonNode& root, std::string_view key, std::optional<std::string>* role) {
  if (!root.Has(key)) return OkStatus();
  KVASIR_ASSIGN_OR_RETURN(const JsonNode field, root.Field(key));
  if (field.value().is_string()) {
    *role = field.value().get_ref<const std::string&>();
  } else if (field.value().is_object()) {
    KVASIR_ASSIGN_OR_RETURN(*role, field.String("content"));
  } else {
    return root.Wrong(key, "a string or an object with \"content\"");
  }
  return OkStatus();
}

Status ReadRoles(const JsonNode& root, TokenizerConfig* config) {
  KVASIR_RETURN_IF_ERROR(ReadRole(root, "bos_token", &config->bos_token));
  KVASIR_RETURN_IF_ERROR(ReadRole(root, "eos_token", &config->eos_token));
  KVASIR_RETURN_IF_ERROR(ReadRole(root, "unk_token", &config->unk_token));
  return ReadRole(root, "pad_token", &config->pad_token);
}

Status ReadChatTemplates(const JsonNode& root, TokenizerConfig* config) {
  if (!root.Has("chat_template")) return OkStatus();
  KVASIR_ASSIGN_OR_RETURN(const JsonNode field, root.Field("chat_template"));
  if (field.value().is_string()) {
    config->chat_templates["default"] = field.value().get_ref<const std::string&>();
    return OkStatus();
  }
  if (!field.value().is_array()) return root.Wrong("chat_template", "a string or a list of {name, template}");
  KVASIR_ASSIGN_OR_RETURN(const auto items, root.Array("chat_template"));
  for (const JsonNode& item : items) {
    KVASIR_ASSIGN_OR_RETURN(const std::string name, item.String("name"));
    KVASIR_ASSIGN_OR_RETURN(config->chat_templates[name], item.String("template"));
  }
  return OkStatus();
}

Status ReadAddedTokens(const JsonNode& root, TokenizerConfig* config) {
  if (!root.Has("added_tokens_decoder")) return OkStatus();
  KVASIR_ASSIGN_OR_RETURN(const JsonNode list, root.Field("added_tokens_decoder"));
  if (!list.value().is_object()) return root.Wrong("added_tokens_decoder", "an object of id: token");
  for (const auto& [key, value] : list.value().items()) {
    const JsonNode node(&value, list.path() + "." + key);
    const bool digits = !key.empty() && key.size() <= 9 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoll(key) > kMaxTokenId) {
      return InvalidArgument("{}: the key must be a token id from 0 to {}", node.path(), kMaxTokenId);
    }
    AddedToken token;
    token.id = static_cast<int32_t>(std::stoll(key));
    KVASIR_ASSIGN_OR_RETURN(token.content, node.String("content"));
    KVASIR_ASSIGN_OR_RETURN(token.special, node.BoolOr("special", false));
    KVASIR_ASSIGN_OR_RETURN(token.normalized, node.BoolOr("normalized", !token.special));
    KVASIR_ASSIGN_OR_RETURN(token.lstrip, node.BoolOr("lstrip", false));
    KVASIR_ASSIGN_OR_RETURN(token.rstrip, node.BoolOr("rstrip", false));
    KVASIR_ASSIGN_OR_RETURN(token.single_word, node.BoolOr("single_word", false));
    config->added_tokens.push_back(std::move(token));
  }
  SortById(&config->added_tokens);
  return OkStatus();
}

Status ReadExtraSpecialTokens(const JsonNode& root, TokenizerConfig* config) {
  for (const char* key : {"extra_special_tokens", "additional_special_tokens"}) {
    if (!root.Has(key) || !config->extra_special_tokens.empty()) continue;
    KVASIR_ASSIGN_OR_RETURN(const JsonNode list, root.Field(key));
    for (const auto& item : list.value()) {  // strings or {"content"}; the newer form may be an object of them
      if (item.is_string()) config->extra_special_tokens.push_back(item);
      if (item.is_object() && item.contains("content") && item["content"].is_string()) config->extra_special_tokens.push_back(item["content"]);
    }
  }
  return OkStatus();
}

// What only matters where there is no tokenizer.json.
Status ReadVocabularyFileSettings(const JsonNode& root, TokenizerConfig* config) {
  config->has_auto_map = root.Has("auto_map");
  KVASIR_ASSIGN_OR_RETURN(config->legacy, root.BoolOr("legacy", false));
  if (root.Has("add_prefix_space")) {
    KVASIR_ASSIGN_OR_RETURN(config->add_prefix_space, root.BoolOr("add_prefix_space", true));
  }
  if (root.Has("extra_ids")) {
    KVASIR_ASSIGN_OR_RETURN(config->extra_ids, root.Integer("extra_ids"));
    if (config->extra_ids < 0 || config->extra_ids > kMaxExtraIds) return root.Wrong("extra_ids", fmt::format("from 0 to {}", kMaxExtraIds));
  }
  return ReadExtraSpecialTokens(root, config);
}

}  // namespace

StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view json) {
  TokenizerConfig config;
  if (json.empty()) return config;
  KVASIR_ASSIGN_OR_RETURN(const nlohmann::json document, ParseObject(json));
  const JsonNode root(&document, "");
  KVASIR_RETURN_IF_ERROR(ReadRoles(root, &config));
  for (const auto& [key, field] : {std::pair{"add_bos_token", &config.add_bos_token}, {"add_eos_token", &config.add_eos_token}}) {
    if (!root.Has(key)) continue;
    KVASIR_ASSIGN_OR_RETURN(*field, root.BoolOr(key, false));
  }
  // Often 1e30, "no limit", written as an integer of 31 digits that JSON readers turn into a float.
  if (root.Has("model_max_length")) {
    const auto& length = document["model_max_length"];
    if (!length.is_number()) return root.Wrong("model_max_length", "a number of tokens");
    const double tokens = length.get<double>();
    if (tokens >= 1 && tokens <= 1e12) config.model_max_length = static_cast<int64_t>(tokens);
  }
  if (root.Has("tokenizer_class") && document["tokenizer_class"].is_string()) config.tokenizer_class = document["tokenizer_class"];
  config.lists_added_tokens = root.Has("added_tokens_decoder");
  KVASIR_RETURN_IF_ERROR(ReadVocabularyFileSettings(root, &config));
  KVASIR_RETURN_IF_ERROR(ReadChatTemplates(root, &config));
  KVASIR_RETURN_IF_ERROR(ReadAddedTokens(root, &config));
  return config;
}

Status AddSpecialTokensMap(std::string_view json, TokenizerConfig* config) {
  KVASIR_ASSIGN_OR_RETURN(const nlohmann::json document, ParseObject(json));
  TokenizerConfig found;
  KVASIR_RETURN_IF_ERROR(ReadRoles(JsonNode(&document, ""), &found));
  const bool wins = !config->lists_added_tokens;
  const auto take = [&](std::optional<std::string>& role, std::optional<std::string>& other) {
    if (other && (wins || !role)) role = std::move(other);
  };
  take(config->bos_token, found.bos_token);
  take(config->eos_token, found.eos_token);
  take(config->unk_token, found.unk_token);
  take(config->pad_token, found.pad_token);
  return OkStatus();
}

Status AddAddedTokensFile(std::string_view json, TokenizerConfig* config) {
  if (config->lists_added_tokens) return OkStatus();
  KVASIR_ASSIGN_OR_RETURN(const nlohmann::json document, ParseObject(json));
  for (const auto& [text, id] : document.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId)) {
      return InvalidArgument("{}: must be a token id from 0 to {}", text, kMaxTokenId);
    }
    AddedToken token;
    token.id = id.get<int32_t>();
    token.content = text;
    const auto& extra = config->extra_special_tokens;
    token.special = text == config->bos_token || text == config->eos_token || text == config->unk_token || text == config->pad_token ||
                    std::find(extra.begin(), extra.end(), text) != extra.end();
    token.normalized = !token.special;
    config->added_tokens.push_back(std::move(token));
  }
  SortById(&config->added_tokens);
  return OkStatus();
}

Status AddModelConfig(std::string_view json, TokenizerConfig* config) {
  KVASIR_ASSIGN_OR_RETURN(const nlohmann::json document, ParseObject(json));
  const JsonNode root(&document, "");
  KVASIR_ASSIGN_OR_RETURN(config->model_type, root.StringOr("model_type", ""));
  if (!config->tokenizer_class.empty()) return OkStatus();
  KVASIR_ASSIGN_OR_RETURN(config->tokenizer_class, root.StringOr("tokenizer_class", ""));
  return OkStatus();
}

}  // namespace kvasir
