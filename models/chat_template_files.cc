// Which chat templates a model folder has: the files transformers reads, in its order of precedence.
#include <algorithm>
#include <array>

#include "models/chat_template.h"
#include "models/fs.h"
#include "models/strict_json.h"

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxFileBytes = 64 << 20;
constexpr char kTemplateFolder[] = "additional_chat_templates";
constexpr std::array<const char*, 7> kRoles = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};

// The object in a JSON file; an empty one when there is no such file.
StatusOr<Json> ReadObject(const Fs& fs, const std::string& path) {
  StatusOr<std::string> text = ReadText(fs, path, kMaxFileBytes);
  if (!text.ok() && text.status().code() == StatusCode::kNotFound) return Json::object();
  if (!text.ok()) return text.status();
  StatusOr<Json> json = ParseStrictJson<Json>(*text);
  if (!json.ok()) return AtPlace(path, json.status());
  if (!json->is_object()) return InvalidArgument("{}: must hold a JSON object, not {}", path, json->type_name());
  return json;
}

Status AddSpecialTokens(const Json& file, const std::string& path, ChatTemplateSources* out) {
  for (const char* role : kRoles) {
    const auto it = file.find(role);
    if (it == file.end() || it->is_null()) continue;
    const Json* token = &*it;
    if (token->is_object() && token->contains("content")) token = &(*token)["content"];
    if (!token->is_string()) return InvalidArgument("{}: {} must be a string or an object with \"content\"", path, role);
    out->special_tokens.emplace(role, token->get<std::string>());
  }
  return OkStatus();
}

// "chat_template": a string, or a list of {name, template}.
Status AddTemplates(const Json& file, const std::string& path, ChatTemplateSources* out) {
  const auto it = file.find("chat_template");
  if (it == file.end() || it->is_null()) return OkStatus();
  if (it->is_string()) {
    out->templates["default"] = it->get<std::string>();
    return OkStatus();
  }
  if (!it->is_array()) return InvalidArgument("{}: chat_template must be a string or a list of {{name, template}}", path);
  for (const Json& item : *it) {
    const bool good = item.is_object() && item.contains("name") && item["name"].is_string() && item.contains("template") &&
                      item["template"].is_string();
    if (!good) return InvalidArgument("{}: every item of the chat_template list must have a name and a template", path);
    out->templates[item["name"].get<std::string>()] = item["template"].get<std::string>();
  }
  return OkStatus();
}

Status AddJinjaFile(const Fs& fs, const std::string& path, const std::string& name, ChatTemplateSources* out) {
  StatusOr<std::string> text = ReadText(fs, path, kMaxJinjaSourceBytes);
  if (!text.ok() && text.status().code() == StatusCode::kNotFound) return OkStatus();
  if (!text.ok()) return text.status();
  out->templates[name] = std::move(*text);
  return OkStatus();
}

}  // namespace

StatusOr<ChatTemplateSources> ReadChatTemplateSources(const Fs& fs, const std::string& dir) {
  ChatTemplateSources out;
  KVASIR_ASSIGN_OR_RETURN(const std::vector<std::string> names, fs.List(dir));
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json", "chat_template.json"}) {
    const std::string path = JoinPath(dir, name);
    KVASIR_ASSIGN_OR_RETURN(const Json file, ReadObject(fs, path));
    KVASIR_RETURN_IF_ERROR(AddSpecialTokens(file, path, &out));
    KVASIR_RETURN_IF_ERROR(AddTemplates(file, path, &out));
  }
  KVASIR_RETURN_IF_ERROR(AddJinjaFile(fs, JoinPath(dir, "chat_template.jinja"), "default", &out));
  if (std::find(names.begin(), names.end(), kTemplateFolder) == names.end()) return out;
  const std::string folder = JoinPath(dir, kTemplateFolder);
  KVASIR_ASSIGN_OR_RETURN(const std::vector<std::string> files, fs.List(folder));
  for (const std::string& file : files) {
    if (!file.ends_with(".jinja")) continue;
    KVASIR_RETURN_IF_ERROR(AddJinjaFile(fs, JoinPath(folder, file), file.substr(0, file.size() - 6), &out));
  }
  return out;
}

}  // namespace kvasir
