#include "models/tokenizer_config.h"

#include <algorithm>

#include "models/bpe.h"
#include "models/json_node.h"

namespace kvasir {
namespace {

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
  std::sort(config->added_tokens.begin(), config->added_tokens.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return OkStatus();
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
  KVASIR_ASSIGN_OR_RETURN(config.legacy, root.BoolOr("legacy", false));
  KVASIR_RETURN_IF_ERROR(ReadChatTemplates(root, &config));
  KVASIR_RETURN_IF_ERROR(ReadAddedTokens(root, &config));
  return config;
}

Status AddSpecialTokensMap(std::string_view json, TokenizerConfig* config) {
  KVASIR_ASSIGN_OR_RETURN(const nlohmann::json document, ParseObject(json));
  TokenizerConfig found;
  KVASIR_RETURN_IF_ERROR(ReadRoles(JsonNode(&document, ""), &found));
  if (!config->bos_token) config->bos_token = found.bos_token;
  if (!config->eos_token) config->eos_token = found.eos_token;
  if (!config->unk_token) config->unk_token = found.unk_token;
  if (!config->pad_token) config->pad_token = found.pad_token;
  return OkStatus();
}

}  // namespace kvasir
