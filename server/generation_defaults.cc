#include "server/generation_defaults.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/fs.h"
#include "models/strict_json.h"

namespace kvasir {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxFileBytes = 1 << 20;
constexpr char kFile[] = "generation_config.json";
constexpr const char* kKnown[] = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"};

// The reader of models/config.h names the file; here the text came from elsewhere.
Status Renamed(const Status& status, const std::string& place) {
  std::string message = Message(status);
  if (message.starts_with(kFile)) message = place + message.substr(sizeof(kFile) - 1);
  return Status(status.code(), message);
}

// One id or a list of them, as the file may have it.
StatusOr<std::optional<std::vector<int32_t>>> EndsOf(const json& config, const std::string& place) {
  const auto found = config.find("eos_token_id");
  if (found == config.end() || found->is_null()) return std::optional<std::vector<int32_t>>();
  std::vector<int32_t> ids;
  for (const json& id : found->is_array() ? *found : json::array({*found})) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX || ids.size() >= 1024)
      return InvalidArgument("{}: eos_token_id must be a token id or a list of at most 1024 of them", place);
    ids.push_back(id.get<int32_t>());
  }
  return std::optional<std::vector<int32_t>>(std::move(ids));
}

StatusOr<json> ParseObject(const std::string& text, const std::string& place) {
  auto parsed = ParseStrictJson<json>(text);
  if (!parsed.ok()) return AtPlace(place, parsed.status());
  if (!parsed->is_object()) return InvalidArgument("{}: must be a JSON object, as {{\"temperature\": 0.5}}", place);
  return parsed;
}

template <typename T>
void LayOver(const std::optional<T>& from, std::optional<T>* to) {
  if (from) *to = from;
}

Status ReadOverride(const std::string& text, GenerationChoice* choice) {
  const std::string place = "--override-generation-config";
  KVASIR_ASSIGN_OR_RETURN(const json object, ParseObject(text, place));
  for (const auto& [key, value] : object.items()) {
    if (std::find(std::begin(kKnown), std::end(kKnown), key) == std::end(kKnown))
      return InvalidArgument("{}: '{}' is not a sampling default: use {}", place, key.substr(0, 80), fmt::join(kKnown, ", "));
    if (value.is_null()) choice->unset.push_back(key);
  }
  auto laid_over = ParseGenerationDefaults(text);
  if (!laid_over.ok()) return Renamed(laid_over.status(), place);
  choice->laid_over = *laid_over;
  return OkStatus();
}

}  // namespace

GenerationDefaults GenerationChoice::Defaults(const GenerationDefaults& of_the_model) const {
  GenerationDefaults defaults = of_model ? of_the_model : base;
  for (const std::string& name : unset) {
    if (name == "temperature") defaults.temperature.reset();
    if (name == "top_p") defaults.top_p.reset();
    if (name == "top_k") defaults.top_k.reset();
    if (name == "min_p") defaults.min_p.reset();
    if (name == "repetition_penalty") defaults.repetition_penalty.reset();
    if (name == "max_new_tokens") defaults.max_new_tokens.reset();
  }
  LayOver(laid_over.temperature, &defaults.temperature);
  LayOver(laid_over.top_p, &defaults.top_p);
  LayOver(laid_over.top_k, &defaults.top_k);
  LayOver(laid_over.min_p, &defaults.min_p);
  LayOver(laid_over.repetition_penalty, &defaults.repetition_penalty);
  LayOver(laid_over.max_new_tokens, &defaults.max_new_tokens);
  return defaults;
}

std::vector<int32_t> GenerationChoice::EndTokens(const std::vector<int32_t>& of_the_model, std::optional<int32_t> of_tokenizer,
                                                 int64_t vocab_size) const {
  std::vector<int32_t> ids = folder_ends.value_or(of_the_model);
  if (of_tokenizer) ids.push_back(*of_tokenizer);
  std::vector<int32_t> ends;
  for (const int32_t id : ids)
    if (id < vocab_size && std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  return ends;
}

StatusOr<GenerationChoice> ReadGenerationChoice(const std::string& generation_config, const std::string& override_json) {
  GenerationChoice choice;
  choice.of_model = generation_config == "auto";
  if (!choice.of_model && generation_config != "vllm") {
    const std::string path = JoinPath(generation_config, kFile);
    auto text = ReadText(RealFs(), path, kMaxFileBytes);
    if (!text.ok())
      return InvalidArgument("--generation-config {}: must be auto, vllm, or a folder with {} ({})", generation_config, kFile,
                             Message(text.status()));
    auto defaults = ParseGenerationDefaults(*text);
    if (!defaults.ok()) return Renamed(defaults.status(), path);
    choice.base = *defaults;
    KVASIR_ASSIGN_OR_RETURN(const json object, ParseObject(*text, path));
    KVASIR_ASSIGN_OR_RETURN(choice.folder_ends, EndsOf(object, path));
  }
  if (!override_json.empty()) KVASIR_RETURN_IF_ERROR(ReadOverride(override_json, &choice));
  return choice;
}

}  // namespace kvasir
