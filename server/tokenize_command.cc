#include "server/tokenize_command.h"

#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>

#include "models/strict_json.h"
#include "models/unicode.h"
#include "server/json_text.h"
#include "server/pull_command.h"

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;

StatusOr<bool> Flag(const Json& line, const char* name, bool otherwise) {
  const auto it = line.find(name);
  if (it == line.end() || it->is_null()) return otherwise;
  if (!it->is_boolean()) return InvalidArgument("{} must be true or false, not {}", name, it->type_name());
  return it->get<bool>();
}

void AppendText(std::string& out, std::string_view text) {
  std::string valid;  // a vocabulary may hold pieces that are half a character
  AppendLossyUtf8(text, true, &valid);
  AppendJsonString(out, valid);
}

StatusOr<std::string> Encode(const Tokenizer& tokenizer, const Json& line) {
  const auto text = line.find("text");
  if (text == line.end()) return InvalidArgument("text is missing; give a string");
  if (!text->is_string()) return InvalidArgument("text must be a string, not {}", text->type_name());
  KVASIR_ASSIGN_OR_RETURN(const bool special, Flag(line, "add_special_tokens", true));
  KVASIR_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(text->get_ref<const std::string&>(), special));
  std::string out = "{\"ids\":[";
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendJsonInt(out, ids[i]);
  }
  out += "],\"pieces\":[";
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendText(out, tokenizer.TokenText(ids[i]));
  }
  return out + "]}";
}

StatusOr<std::string> Decode(const Tokenizer& tokenizer, const Json& line) {
  const auto list = line.find("ids");
  if (list == line.end()) return InvalidArgument("ids is missing; give an array of token ids");
  if (!list->is_array()) return InvalidArgument("ids must be an array, not {}", list->type_name());
  std::vector<int32_t> ids;
  ids.reserve(list->size());
  for (const Json& item : *list) {
    const bool known = item.is_number_unsigned() && item.get<uint64_t>() < static_cast<uint64_t>(tokenizer.vocab_size());
    if (!known) {
      return InvalidArgument("ids[{}] is {}; a token id is an integer from 0 to {}", ids.size(),
                             item.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 60), tokenizer.vocab_size() - 1);
    }
    ids.push_back(item.get<int32_t>());
  }
  KVASIR_ASSIGN_OR_RETURN(const bool skip, Flag(line, "skip_special_tokens", false));
  std::string out = "{\"text\":";
  AppendText(out, tokenizer.Decode(ids, skip));
  return out + "}";
}

StatusOr<std::string> Answer(const Tokenizer& tokenizer, std::string_view text, bool decode) {
  KVASIR_ASSIGN_OR_RETURN(const Json line, ParseStrictJson<Json>(text));
  if (!line.is_object()) return InvalidArgument("a line must be a JSON object, not {}", line.type_name());
  return decode ? Decode(tokenizer, line) : Encode(tokenizer, line);
}

}  // namespace

std::string TokenizeJsonLine(const Tokenizer& tokenizer, std::string_view line, bool decode) {
  StatusOr<std::string> answer = Answer(tokenizer, line, decode);
  if (answer.ok()) return *std::move(answer);
  std::string out = "{\"error\":";
  AppendText(out, Message(answer.status()));
  return out + "}";
}

Status RunTokenize(const TokenizeOptions& options, std::istream& in, std::ostream& out) {
  KVASIR_ASSIGN_OR_RETURN(const std::string folder, FindModelFolder({.model = options.model,
                                                                     .revision = options.revision,
                                                                     .download_dir = options.download_dir,
                                                                     .pull = options.pull,
                                                                     .what = PullWhat::kText}));
  KVASIR_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(folder));
  std::string line;
  while (std::getline(in, line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    out << TokenizeJsonLine(*tokenizer, line, options.decode) << std::endl;
    if (!out) return Unavailable("the output cannot be written; is the reader gone?");
  }
  return OkStatus();
}

}  // namespace kvasir
