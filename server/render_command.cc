#include "server/render_command.h"

#include <cmath>
#include <ctime>
#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>

#include "models/fs.h"
#include "models/strict_json.h"
#include "server/json_text.h"
#include "server/pull_command.h"

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 150;

StatusOr<bool> Flag(const Json& line, const char* name) {
  const auto it = line.find(name);
  if (it == line.end() || it->is_null()) return false;
  if (!it->is_boolean()) return InvalidArgument("{} must be true or false, not {}", name, it->type_name());
  return it->get<bool>();
}

// Seconds since 1970, or local time as "2025-01-31" or "2025-01-31T12:30:00".
StatusOr<int64_t> Now(const Json& line) {
  const auto it = line.find("now");
  if (it == line.end() || it->is_null()) return static_cast<int64_t>(std::time(nullptr));
  if (it->is_number()) {
    const double seconds = it->get<double>();
    if (!(std::fabs(seconds) < 1e12)) return InvalidArgument("now is {} but must be in seconds since 1970", seconds);
    return static_cast<int64_t>(std::floor(seconds));
  }
  if (it->is_string()) {
    const std::string& text = it->get_ref<const std::string&>();
    for (const char* format : {"%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"}) {
      std::tm local{};
      const char* end = strptime(text.c_str(), format, &local);
      local.tm_isdst = -1;
      if (end != nullptr && *end == '\0') return static_cast<int64_t>(std::mktime(&local));
    }
  }
  return InvalidArgument("now must be a number of seconds since 1970, or local time like \"2025-01-31T12:30:00\"");
}

StatusOr<std::string> Render(const ChatTemplate& chat_template, std::string_view text, bool from_wire) {
  KVASIR_ASSIGN_OR_RETURN(const Json line, ParseStrictJson<Json>(text, {.depth = kMaxDepth}));
  if (!line.is_object()) return InvalidArgument("a line must be a JSON object, not {}", line.type_name());
  ChatInput input;
  input.from_wire = from_wire;
  if (!line.contains("messages")) return InvalidArgument("messages is missing; give an array of {{\"role\", \"content\"}}");
  input.messages = line["messages"];
  for (const auto& [name, field] : {std::pair{"tools", &input.tools}, {"documents", &input.documents}}) {
    if (!line.contains(name)) continue;
    *field = line[name];
    if (!field->is_null() && !field->is_array()) return InvalidArgument("{} must be an array, not {}", name, field->type_name());
  }
  if (line.contains("chat_template_kwargs")) input.chat_template_kwargs = line["chat_template_kwargs"];
  for (const char* name : {"bos_token", "eos_token"}) {
    if (!line.contains(name) || line[name].is_null()) continue;
    if (!line[name].is_string()) return InvalidArgument("{} must be a string, not {}", name, line[name].type_name());
    if (input.chat_template_kwargs.is_null()) input.chat_template_kwargs = Json::object();
    if (input.chat_template_kwargs.is_object() && !input.chat_template_kwargs.contains(name)) {
      input.chat_template_kwargs[name] = line[name];
    }
  }
  if (line.contains("chat_template") && !line["chat_template"].is_null()) {
    if (!line["chat_template"].is_string()) return InvalidArgument("chat_template must be a template's name or its source");
    input.chat_template = line["chat_template"].get<std::string>();
  }
  KVASIR_ASSIGN_OR_RETURN(input.add_generation_prompt, Flag(line, "add_generation_prompt"));
  KVASIR_ASSIGN_OR_RETURN(input.continue_final_message, Flag(line, "continue_final_message"));
  KVASIR_ASSIGN_OR_RETURN(input.now, Now(line));
  return chat_template.Render(input);
}

}  // namespace

std::string RenderJsonLine(const ChatTemplate& chat_template, std::string_view line, bool from_wire) {
  const StatusOr<std::string> text = Render(chat_template, line, from_wire);
  std::string out = text.ok() ? "{\"text\":" : "{\"error\":";
  AppendJsonString(out, text.ok() ? *text : Message(text.status()));
  out.push_back('}');
  return out;
}

Status RunRender(const RenderOptions& options, std::istream& in, std::ostream& out) {
  ChatTemplateSources sources;
  if (!options.model.empty()) {
    KVASIR_ASSIGN_OR_RETURN(const std::string folder, FindModelFolder({.model = options.model,
                                                                       .revision = options.revision,
                                                                       .download_dir = options.download_dir,
                                                                       .pull = options.pull,
                                                                       .what = PullWhat::kText}));
    KVASIR_ASSIGN_OR_RETURN(sources, ReadChatTemplateSources(RealFs(), folder));
    if (sources.templates.empty() && options.chat_template.empty()) {
      return InvalidArgument(
          "{}: there is no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): "
          "give one with --chat-template FILE",
          folder);
    }
  }
  if (!options.chat_template.empty()) {
    sources.templates.clear();
    KVASIR_ASSIGN_OR_RETURN(sources.templates["default"], ReadText(RealFs(), options.chat_template, kMaxJinjaSourceBytes));
  }
  KVASIR_ASSIGN_OR_RETURN(const ContentFormat format, ParseContentFormat(options.chat_template_content_format));
  StatusOr<ChatTemplate> made = ChatTemplate::Make(std::move(sources), format);
  if (!made.ok()) return AtPlace(options.chat_template.empty() ? options.model : options.chat_template, made.status());
  std::string line;
  while (std::getline(in, line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    out << RenderJsonLine(*made, line, options.from_wire) << std::endl;
    if (!out) return Unavailable("the output cannot be written; is the reader gone?");
  }
  return OkStatus();
}

}  // namespace kvasir
