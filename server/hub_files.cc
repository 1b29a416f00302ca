#include "server/hub_files.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "models/fs.h"
#include "models/strict_json.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

constexpr uint64_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxShards = 4096;
constexpr char kTemplateFolder[] = "additional_chat_templates/";

bool HasSuffix(std::string_view name, std::initializer_list<std::string_view> suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(), [&](std::string_view suffix) { return name.ends_with(suffix); });
}

bool IsTextFile(std::string_view name) {
  if (name.starts_with(kTemplateFolder)) {
    name.remove_prefix(sizeof(kTemplateFolder) - 1);
    return name.find('/') == std::string_view::npos && name.ends_with(".jinja");
  }
  if (name.find('/') != std::string_view::npos) return false;
  for (const std::string_view known : {"config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
                                       "vocab.json", "vocab.txt", "merges.txt"})
    if (name == known) return true;
  if (name.starts_with("tokenizer")) return HasSuffix(name, {".json", ".model", ".txt", ".jinja"});
  if (name.starts_with("chat_template")) return HasSuffix(name, {".json", ".jinja"});
  return HasSuffix(name, {".model", ".tiktoken"});
}

bool IsPlainShard(const std::string& name) {
  return CheckFileName(name).ok() && name.find('/') == std::string::npos && name.ends_with(".safetensors");
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);  // follows links: a link to a blob that is gone does not count
}

// Any file that tells about a tokenizer: which one a model uses is not known here.
bool HasTokenizer(const std::string& dir) {
  const auto names = RealFs().List(dir);
  if (!names.ok()) return false;
  return std::any_of(names->begin(), names->end(), [&](const std::string& name) {
    return IsTextFile(name) && name != "config.json" && name != "generation_config.json" && Exists(JoinPath(dir, name));
  });
}

}  // namespace

Status CheckFileName(std::string_view name) {
  const auto refuse = [&](const char* why) {
    std::string shown;
    for (const char c : name.substr(0, 80)) shown += c >= 0x20 && c < 0x7f ? c : '?';
    return InvalidArgument("the repository lists the file '{}', which {}; refused", shown, why);
  };
  if (name.empty() || name.size() > 1024) return refuse("has a name without or with too many bytes");
  if (name.front() == '/') return refuse("is an absolute path");
  if (FirstInvalidUtf8(name) != std::string_view::npos) return refuse("is not valid UTF-8");
  for (const char c : name)
    if (uint8_t(c) < 0x20 || c == 0x7f || c == '\\') return refuse("holds a control character or a backslash");
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    if (part.empty() || part == "." || part == "..") return refuse("leads outside its folder");
    if (part.size() > 255) return refuse("has a part of more than 255 bytes");
    at = end + 1;
  }
  return OkStatus();
}

StatusOr<std::vector<std::string>> ChooseFiles(const std::vector<std::string>& names, PullWhat what) {
  const auto has = [&](std::string_view name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  std::set<std::string> chosen;
  for (const std::string& name : names)
    if (IsTextFile(name)) chosen.insert(name);
  if (what == PullWhat::kModel) {
    std::string others;
    for (const std::string& name : names)
      if (others.size() < 200 && HasSuffix(name, {".safetensors", ".bin", ".pth", ".pt", ".gguf", ".onnx", ".h5", ".msgpack"}))
        others += (others.empty() ? "" : ", ") + name;
    if (!has("config.json"))
      return NotFound("has no config.json: it is not a model folder in Hugging Face layout{}",
                      others.empty() ? "" : " (it has " + others + ")");
    if (!has(kWeightsFile) && !has(kWeightsIndex))
      return NotFound("has neither {} nor {}{}: only safetensors are loaded; look for a converted copy of the model",
                      kWeightsFile, kWeightsIndex, others.empty() ? "" : " (it has " + others + ")");
    chosen.insert(has(kWeightsFile) ? kWeightsFile : kWeightsIndex);
  } else if (chosen.empty()) {
    return NotFound("has no configuration, tokenizer or template files");
  }
  return std::vector<std::string>(chosen.begin(), chosen.end());
}

StatusOr<std::vector<std::string>> ShardsOfIndex(std::string_view index_json) {
  StatusOr<nlohmann::json> root = ParseStrictJson<nlohmann::json>(index_json, {.depth = 8});
  if (!root.ok()) return AtPlace(kWeightsIndex, root.status());
  const auto found = root->is_object() ? root->find("weight_map") : root->end();
  if (found == root->end() || !found->is_object() || found->empty())
    return InvalidArgument("{}: wanted an object \"weight_map\" of tensor names and the shard of each", kWeightsIndex);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string() || !IsPlainShard(shard.get_ref<const std::string&>()))
      return InvalidArgument("{}: weight_map names something that is not a plain .safetensors file in the same folder",
                             kWeightsIndex);
    shards.insert(shard.get<std::string>());
    if (shards.size() > kMaxShards) return InvalidArgument("{}: names more than {} shards", kWeightsIndex, kMaxShards);
  }
  return std::vector<std::string>(shards.begin(), shards.end());
}

std::vector<std::string> MissingFiles(const std::string& dir, PullWhat what) {
  std::vector<std::string> missing;
  if (!HasTokenizer(dir)) missing.push_back("tokenizer.json");
  if (what == PullWhat::kText) return missing;
  if (!Exists(JoinPath(dir, "config.json"))) missing.push_back("config.json");
  if (Exists(JoinPath(dir, kWeightsFile))) return missing;
  const auto index = ReadText(RealFs(), JoinPath(dir, kWeightsIndex), kMaxIndexBytes);
  if (!index.ok()) {
    missing.push_back(kWeightsFile);
    return missing;
  }
  const auto shards = ShardsOfIndex(*index);
  if (!shards.ok()) return missing;
  for (const std::string& shard : *shards)
    if (!Exists(JoinPath(dir, shard))) missing.push_back(shard);
  return missing;
}

}  // namespace kvasir
