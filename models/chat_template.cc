#include "models/chat_template.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "models/jinja_text.h"
#include "models/strict_json.h"

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;

// A text no user writes; it marks where the last message ends (the trailing space shows whether the template trims).
constexpr std::string_view kContinueTag = "CONTINUE_FINAL_MESSAGE_TAG ";
constexpr std::array<std::string_view, 4> kReserved = {"messages", "tools", "documents", "add_generation_prompt"};
constexpr size_t kMaxArgumentBytes = 4 << 20;
constexpr int kMaxArgumentDepth = 128;

// One string from a list of text parts, joined by newlines as vLLM does.
StatusOr<std::string> JoinParts(const Json& parts, size_t message) {
  std::string out;
  for (size_t i = 0; i < parts.size(); i++) {
    const Json& part = parts[i];
    if (part.is_object() && part.contains("text") && part["text"].is_string()) {
      if (i > 0) out += "\n";
      out += part["text"].get_ref<const std::string&>();
    } else if (part.is_string()) {
      if (i > 0) out += "\n";
      out += part.get_ref<const std::string&>();
    } else {
      return InvalidArgument("messages[{}].content[{}] is not a text part; this model takes text only", message, i);
    }
  }
  return out;
}

// On the wire tool_calls[].function.arguments is a JSON string; templates want the object.
Status ParseArguments(Json* message, size_t index) {
  if (!message->contains("tool_calls") || !(*message)["tool_calls"].is_array()) return OkStatus();
  Json& calls = (*message)["tool_calls"];
  for (size_t i = 0; i < calls.size(); i++) {
    if (!calls[i].is_object() || !calls[i].contains("function") || !calls[i]["function"].is_object()) continue;
    Json& function = calls[i]["function"];
    if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
    const std::string& text = function["arguments"].get_ref<const std::string&>();
    const std::string place = fmt::format("messages[{}].tool_calls[{}].function.arguments", index, i);
    if (text.empty()) {
      function["arguments"] = Json::object();
      continue;
    }
    if (text.size() > kMaxArgumentBytes) {
      return InvalidArgument("{} has {} bytes but the limit is {}; shorten it", place, text.size(), kMaxArgumentBytes);
    }
    StatusOr<Json> parsed = ParseStrictJson<Json>(text, {.depth = kMaxArgumentDepth});
    if (!parsed.ok()) {
      return InvalidArgument("{} is not valid JSON ({}); send the arguments as a JSON object in a string", place,
                             Message(parsed.status()));
    }
    function["arguments"] = std::move(*parsed);
  }
  return OkStatus();
}

// A message's reasoning goes by several names; every one that templates read gets it, as transformers arranges it.
void AliasReasoning(Json* message, bool from_wire) {
  const Json* found = nullptr;
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    if (const auto it = message->find(name); it != message->end() && !it->is_null()) {
      found = &*it;
      break;
    }
  }
  if (found == nullptr) return;
  const Json reasoning = *found;
  Json aliased = {{"thinking", message->value("thinking", reasoning)}};
  for (const auto& [name, value] : message->items()) aliased[name] = value;
  aliased["reasoning_content"] = reasoning;
  if (from_wire && !aliased.contains("reasoning")) aliased["reasoning"] = reasoning;
  *message = std::move(aliased);
}

// Adds the tag to the end of the last message's text; returns that text.
StatusOr<std::string> MarkFinalMessage(Json* messages) {
  Json& last = messages->back();
  Json* text = last.contains("content") ? &last["content"] : nullptr;
  if (text != nullptr && text->is_array()) {
    Json* found = nullptr;
    for (Json& part : *text) {
      if (part.is_object() && part.contains("text") && part["text"].is_string()) found = &part["text"];
    }
    text = found;
  }
  if (text == nullptr || !text->is_string()) {
    return InvalidArgument("continue_final_message is set but the final message has no text content to continue");
  }
  std::string original = text->get<std::string>();
  *text = original + std::string(kContinueTag);
  return original;
}

// Cuts the rendering where the final message ends.
StatusOr<std::string> CutAtTag(std::string text, const std::string& final_text) {
  const std::string_view bare = kContinueTag.substr(0, kContinueTag.size() - 1);
  const size_t at = text.rfind(bare);
  const std::string_view stripped = jinja::Strip(final_text, nullptr, true, true);
  if (at == std::string::npos || text.find(stripped) == std::string::npos) {
    return InvalidArgument(
        "continue_final_message is set but the chat template does not show the final message's text; it cannot be continued");
  }
  const bool keeps_space = text.compare(at, kContinueTag.size(), kContinueTag) == 0;
  text.resize(at);
  if (!keeps_space) text.resize(jinja::Strip(text, nullptr, false, true).size());
  return text;
}

// The variables that transformers gives a template, but for the messages.
StatusOr<Json> BaseContext(const ChatInput& input, const std::map<std::string, std::string>& special_tokens) {
  Json context = Json::object();
  // A model without such a token leaves the variable undefined.
  for (const auto& [name, token] : special_tokens) context[name] = token;
  if (!input.chat_template_kwargs.is_null()) {
    if (!input.chat_template_kwargs.is_object()) {
      return InvalidArgument("chat_template_kwargs must be an object, not {}", input.chat_template_kwargs.type_name());
    }
    for (const auto& [name, value] : input.chat_template_kwargs.items()) {
      if (std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end()) {
        return InvalidArgument("chat_template_kwargs may not set '{}'; use the request's own field", name);
      }
      context[name] = value;
    }
  }
  context["tools"] = input.tools;
  context["documents"] = input.documents;
  context["add_generation_prompt"] = input.add_generation_prompt;
  return context;
}

std::string Names(const auto& templates) {
  std::string out;
  for (const auto& [name, unused] : templates) out += (out.empty() ? "" : ", ") + name;
  return out;
}

}  // namespace

StatusOr<ContentFormat> ParseContentFormat(std::string_view name) {
  if (name == "auto") return ContentFormat::kAuto;
  if (name == "string") return ContentFormat::kString;
  if (name == "openai") return ContentFormat::kParts;
  return InvalidArgument("the content format '{}' is unknown: use auto, string or openai", name);
}

StatusOr<ChatTemplate::Entry> ChatTemplate::ParseEntry(std::string source, ContentFormat format) {
  StatusOr<std::shared_ptr<const JinjaTemplate>> parsed = JinjaTemplate::Parse(std::move(source));
  if (!parsed.ok()) return AtPlace("chat template", parsed.status());
  Entry entry{.jinja = std::move(*parsed)};
  entry.wants_parts =
      format == ContentFormat::kParts || (format == ContentFormat::kAuto && entry.jinja->IteratesMember("content"));
  return entry;
}

StatusOr<ChatTemplate> ChatTemplate::Parse(std::string source, std::string bos_token, std::string eos_token, ContentFormat format,
                                           const JinjaLimits& limits) {
  ChatTemplateSources sources;
  sources.templates["default"] = std::move(source);
  if (!bos_token.empty()) sources.special_tokens["bos_token"] = std::move(bos_token);
  if (!eos_token.empty()) sources.special_tokens["eos_token"] = std::move(eos_token);
  return Make(std::move(sources), format, limits);
}

StatusOr<ChatTemplate> ChatTemplate::Make(ChatTemplateSources sources, ContentFormat format, const JinjaLimits& limits) {
  if (sources.templates.empty()) return InvalidArgument("there is no chat template; give one with --chat-template");
  ChatTemplate out;
  for (auto& [name, source] : sources.templates) {
    StatusOr<Entry> entry = ParseEntry(std::move(source), format);
    if (!entry.ok()) return name == "default" ? entry.status() : AtPlace(fmt::format("'{}'", name), entry.status());
    out.templates_[name] = std::move(*entry);
  }
  out.special_tokens_ = std::move(sources.special_tokens);
  out.format_ = format;
  out.limits_ = limits;
  return out;
}

const ChatTemplate::Entry& ChatTemplate::Usual() const {
  const auto it = templates_.find("default");
  return it != templates_.end() ? it->second : templates_.begin()->second;
}

StatusOr<ChatTemplate::Entry> ChatTemplate::Choose(const ChatInput& input) const {
  if (!input.chat_template.empty()) {
    const auto named = templates_.find(input.chat_template);
    return named != templates_.end() ? named->second : ParseEntry(input.chat_template, format_);
  }
  const auto tool_use = templates_.find("tool_use");
  if (!input.tools.is_null() && tool_use != templates_.end()) return tool_use->second;
  const auto usual = templates_.find("default");
  if (usual != templates_.end()) return usual->second;
  return InvalidArgument("this model has several chat templates and no default; name one of {} in `chat_template`",
                         Names(templates_));
}

StatusOr<std::string> ChatTemplate::Render(const ChatInput& input) const {
  if (!input.messages.is_array()) return InvalidArgument("messages must be an array, not {}", input.messages.type_name());
  if (input.continue_final_message && input.add_generation_prompt) {
    return InvalidArgument("continue_final_message and add_generation_prompt exclude each other; set only one of them");
  }
  KVASIR_ASSIGN_OR_RETURN(const Entry entry, Choose(input));
  KVASIR_ASSIGN_OR_RETURN(Json context, BaseContext(input, special_tokens_));
  Json messages = input.messages;
  for (size_t i = 0; i < messages.size(); i++) {
    Json& message = messages[i];
    if (!message.is_object()) return InvalidArgument("messages[{}] must be an object, not {}", i, message.type_name());
    if (input.from_wire) {
      if (!entry.wants_parts && message.contains("content") && message["content"].is_array()) {
        KVASIR_ASSIGN_OR_RETURN(message["content"], JoinParts(message["content"], i));
      }
      KVASIR_RETURN_IF_ERROR(ParseArguments(&message, i));
    }
    AliasReasoning(&message, input.from_wire);
  }
  std::string final_text;
  if (input.continue_final_message) {
    if (messages.empty()) return InvalidArgument("continue_final_message is set but there are no messages");
    KVASIR_ASSIGN_OR_RETURN(final_text, MarkFinalMessage(&messages));
  }
  context["messages"] = std::move(messages);
  KVASIR_ASSIGN_OR_RETURN(std::string text, entry.jinja->Render(context, limits_, input.now));
  if (!input.continue_final_message) return text;
  return CutAtTag(std::move(text), final_text);
}

}  // namespace kvasir
