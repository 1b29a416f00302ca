#include "models/chat_template.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "models/jinja_text.h"

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;

// A text no user writes; it marks where the last message ends (the trailing space shows whether the template trims).
constexpr std::string_view kContinueTag = "CONTINUE_FINAL_MESSAGE_TAG ";
constexpr std::array<std::string_view, 6> kReserved = {"messages",  "tools",     "documents",
                                                       "bos_token", "eos_token", "add_generation_prompt"};
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

// Brackets that nest deeper than any sane arguments would exhaust the parser's stack.
bool TooDeep(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); i++) {
    if (quoted) {
      if (text[i] == '\\')
        i++;
      else if (text[i] == '"')
        quoted = false;
    } else if (text[i] == '"') {
      quoted = true;
    } else if (text[i] == '{' || text[i] == '[') {
      if (++depth > kMaxArgumentDepth) return true;
    } else if (text[i] == '}' || text[i] == ']') {
      depth--;
    }
  }
  return false;
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
    if (text.size() > kMaxArgumentBytes || TooDeep(text))
      return InvalidArgument("{} is larger or nests deeper than is accepted", place);
    Json parsed = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_discarded())
      return InvalidArgument("{} is not valid JSON; send the arguments as a JSON object in a string", place);
    function["arguments"] = std::move(parsed);
  }
  return OkStatus();
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

}  // namespace

StatusOr<ChatTemplate> ChatTemplate::Parse(std::string source, std::string bos_token, std::string eos_token, ContentFormat format,
                                           const JinjaLimits& limits) {
  StatusOr<std::shared_ptr<const JinjaTemplate>> parsed = JinjaTemplate::Parse(std::move(source));
  if (!parsed.ok()) return AtPlace("chat template", parsed.status());
  ChatTemplate out;
  out.template_ = std::move(*parsed);
  out.bos_token_ = std::move(bos_token);
  out.eos_token_ = std::move(eos_token);
  out.wants_parts_ =
      format == ContentFormat::kParts || (format == ContentFormat::kAuto && out.template_->IteratesMember("content"));
  out.limits_ = limits;
  return out;
}

StatusOr<std::string> ChatTemplate::Render(const ChatInput& input) const {
  if (!input.messages.is_array()) return InvalidArgument("messages must be an array, not {}", input.messages.type_name());
  if (input.continue_final_message && input.add_generation_prompt) {
    return InvalidArgument("continue_final_message and add_generation_prompt exclude each other; set only one of them");
  }
  Json context = Json::object();
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
  Json messages = input.messages;
  for (size_t i = 0; i < messages.size(); i++) {
    Json& message = messages[i];
    if (!message.is_object()) return InvalidArgument("messages[{}] must be an object, not {}", i, message.type_name());
    if (!wants_parts_ && message.contains("content") && message["content"].is_array()) {
      KVASIR_ASSIGN_OR_RETURN(message["content"], JoinParts(message["content"], i));
    }
    KVASIR_RETURN_IF_ERROR(ParseArguments(&message, i));
  }
  std::string final_text;
  if (input.continue_final_message) {
    if (messages.empty()) return InvalidArgument("continue_final_message is set but there are no messages");
    KVASIR_ASSIGN_OR_RETURN(final_text, MarkFinalMessage(&messages));
  }
  context["messages"] = std::move(messages);
  context["tools"] = input.tools;
  context["documents"] = input.documents;
  context["add_generation_prompt"] = input.add_generation_prompt;
  // A model without such a token leaves the variable undefined, as transformers does.
  if (!bos_token_.empty()) context["bos_token"] = bos_token_;
  if (!eos_token_.empty()) context["eos_token"] = eos_token_;
  KVASIR_ASSIGN_OR_RETURN(std::string text, template_->Render(context, limits_, input.now));
  if (!input.continue_final_message) return text;
  return CutAtTag(std::move(text), final_text);
}

}  // namespace kvasir
