// The chat template of a model: OpenAI messages to the text the model was trained on.
//
// Wraps a JinjaTemplate with the context that Hugging Face's apply_chat_template gives it. Used by server/service for
// /v1/chat/completions, /tokenize with messages, and rendering. Immutable and safe to use from many threads.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "models/jinja.h"

namespace kvasir {

// How the template expects message content. kString: a list of text parts is joined to one string; kParts: a template that loops
// over the parts gets lists and strings as they came.
enum class ContentFormat { kAuto, kString, kParts };

struct ChatInput {
  // OpenAI messages, already validated in shape: content is a string, null, or a list of {"type": "text", "text": ...}.
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  nlohmann::ordered_json tools;                 // array, or null for none
  nlohmann::ordered_json documents;             // array, or null for none
  nlohmann::ordered_json chat_template_kwargs;  // object with further template variables, or null
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // the text ends inside the last message, for the model to go on
  int64_t now = 0;                      // Unix seconds for strftime_now(), in the server's time zone
};

class ChatTemplate {
 public:
  // Fails with the template's line when the source is not supported.
  static StatusOr<ChatTemplate> Parse(std::string source, std::string bos_token, std::string eos_token,
                                      ContentFormat format = ContentFormat::kAuto, const JinjaLimits& limits = {});

  // InvalidArgument for a conversation that the template refuses (its own words), and for input that cannot be rendered.
  StatusOr<std::string> Render(const ChatInput& input) const;

  bool wants_content_parts() const { return wants_parts_; }
  // Whether the template looks at `tools` at all; a request with tools to one that does not is best refused or told.
  bool uses_tools() const { return template_->UsesVariable("tools"); }
  bool UsesVariable(std::string_view name) const { return template_->UsesVariable(name); }
  const std::string& source() const { return template_->source(); }

 private:
  ChatTemplate() = default;
  std::shared_ptr<const JinjaTemplate> template_;
  std::string bos_token_, eos_token_;
  bool wants_parts_ = false;
  JinjaLimits limits_;
};

}  // namespace kvasir
