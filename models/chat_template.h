// The chat templates of a model: OpenAI messages to the text the model was trained on.
//
// Wraps JinjaTemplates with the context that Hugging Face's apply_chat_template gives them, and chooses among named templates as it
// does. Used by server/service for /v1/chat/completions, /tokenize with messages and the rendering routes, and by `kvasir render`.
// Immutable and safe to use from many threads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "models/jinja.h"

namespace kvasir {

class Fs;

// How a template expects message content. kString: a list of text parts is joined to one string; kParts: lists and strings are
// passed as they came, which is what a template that loops over the parts wants. kAuto looks whether it does.
enum class ContentFormat { kAuto, kString, kParts };
StatusOr<ContentFormat> ParseContentFormat(std::string_view name);  // "auto", "string" or "openai", as vLLM names them

// What a folder says about its chat templates.
struct ChatTemplateSources {
  std::map<std::string, std::string> templates;  // by name; the unnamed one is "default"
  std::map<std::string, std::string> special_tokens;  // "bos_token" -> "<s>": variables of every template
};

// Reads tokenizer_config.json, special_tokens_map.json, chat_template.json, chat_template.jinja and
// additional_chat_templates/*.jinja of `dir`, as far as they are there. The .jinja files win over the JSON ones.
StatusOr<ChatTemplateSources> ReadChatTemplateSources(const Fs& fs, const std::string& dir);

struct ChatInput {
  // OpenAI messages, already validated in shape: content is a string, null, or a list of {"type": "text", "text": ...}.
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  nlohmann::ordered_json tools;                 // array, or null for none
  nlohmann::ordered_json documents;             // array, or null for none
  nlohmann::ordered_json chat_template_kwargs;  // object with further template variables, or null
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // the text ends inside the last message, for the model to go on
  // The name of one of the model's templates, or the source of another one (which only the operator may allow); empty: chosen.
  std::string chat_template;
  // False: messages reach the template as they are, as in transformers. True: as clients of the HTTP API send them, with the
  // arguments of tool calls as JSON text (parsed for the template) and with text parts (joined where the template wants a string).
  bool from_wire = true;
  int64_t now = 0;  // Unix seconds for strftime_now(), in the server's time zone
};

class ChatTemplate {
 public:
  // One template. Fails with the template's line when the source is not supported.
  static StatusOr<ChatTemplate> Parse(std::string source, std::string bos_token, std::string eos_token,
                                      ContentFormat format = ContentFormat::kAuto, const JinjaLimits& limits = {});
  // All of a folder's; at least one.
  static StatusOr<ChatTemplate> Make(ChatTemplateSources sources, ContentFormat format = ContentFormat::kAuto,
                                     const JinjaLimits& limits = {});

  // InvalidArgument for a conversation that the template refuses (its own words), and for input that cannot be rendered.
  StatusOr<std::string> Render(const ChatInput& input) const;

  bool HasTemplate(std::string_view name) const { return templates_.contains(std::string(name)); }
  bool wants_content_parts() const { return Usual().wants_parts; }
  // Whether the template looks at `tools` at all; a request with tools to one that does not is best refused or told.
  bool uses_tools() const { return HasTemplate("tool_use") || Usual().jinja->UsesVariable("tools"); }
  bool UsesVariable(std::string_view name) const { return Usual().jinja->UsesVariable(name); }
  const std::string& source() const { return Usual().jinja->source(); }

 private:
  struct Entry {
    std::shared_ptr<const JinjaTemplate> jinja;
    bool wants_parts = false;
  };
  ChatTemplate() = default;
  static StatusOr<Entry> ParseEntry(std::string source, ContentFormat format);
  const Entry& Usual() const;
  StatusOr<Entry> Choose(const ChatInput& input) const;

  std::map<std::string, Entry> templates_;
  std::map<std::string, std::string> special_tokens_;
  ContentFormat format_ = ContentFormat::kAuto;
  JinjaLimits limits_;
};

}  // namespace kvasir
