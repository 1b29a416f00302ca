// OpenAI's JSON, with vLLM's extras, to GenerateRequest: /v1/completions, /v1/chat/completions, and the chat inputs of /tokenize
// and the rendering routes. Checks types and shapes; ranges are checked by Service and ValidatedRequest. What this version cannot
// do is refused by name.
#pragma once

#include <string>
#include <vector>

#include "server/json_reader.h"
#include "server/service.h"

namespace kvasir {

struct OpenAiRequest {
  bool chat = false;
  // For each prompt one request; a chat has one.
  std::vector<GenerateRequest> generate;
  bool stream = false, include_usage = false, continuous_usage = false;
  bool echo = false;
  bool logprobs = false;         // the answer has logprobs
  bool prompt_logprobs = false;  // the answer has vLLM's prompt_logprobs
  bool return_token_ids = false, tokens_as_ids = false;
  std::string max_tokens_field = "max_tokens";  // what the client called it
  std::vector<std::string> unknown;             // fields nobody knows: ignored, told in the log
};

// `max_logprobs` bounds top_logprobs -1 ("all").
ApiError ParseCompletionRequest(const Json& body, const ServerLimits& limits, OpenAiRequest* out);
ApiError ParseChatRequest(const Json& body, const ServerLimits& limits, int64_t max_logprobs, OpenAiRequest* out);
// messages, tools and template fields of `body`.
ApiError ParseChatInput(FieldReader& fields, const ServerLimits& limits, ApiError* error, ChatInput* out);

}  // namespace kvasir
