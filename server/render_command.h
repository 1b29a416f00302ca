// kvasir render: chat templates from the command line, for looking at prompts and for comparing with other renderers. Needs only
// the tokenizer_config.json and template files of a model folder; no weights, no tokenizer.json.
#pragma once

#include <iosfwd>
#include <string>
#include <string_view>

#include "kernels/status.h"
#include "models/chat_template.h"
#include "server/cli.h"

namespace kvasir {

// One JSON object {messages, tools, documents, add_generation_prompt, chat_template_kwargs, bos_token, eos_token, now,
// continue_final_message, chat_template} to {"text": ...} or {"error": ...}, without a newline. Fields that are absent mean what
// they mean for transformers' apply_chat_template; `from_wire` treats the messages as the HTTP API does.
std::string RenderJsonLine(const ChatTemplate& chat_template, std::string_view line, bool from_wire);

// Answers every line of `in` with a line on `out`, each as soon as it is read.
Status RunRender(const RenderOptions& options, std::istream& in, std::ostream& out);

}  // namespace kvasir
