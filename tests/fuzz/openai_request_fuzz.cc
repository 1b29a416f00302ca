// Request bodies as clients may send them: the first byte chooses the endpoint, the rest is the body. Whatever it is, the answer is a parsed
// request or an error with a message, in bounded time, and an error body is itself valid JSON.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>

#include "server/json_reader.h"
#include "server/openai_request.h"
#include "server/status.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  kvasir::ServerLimits limits;
  limits.json_nodes = 10'000;
  kvasir::Json body;
  kvasir::ApiError error = kvasir::ParseJson({reinterpret_cast<const char*>(data + 1), size - 1}, limits, &body);
  kvasir::OpenAiRequest request;
  if (error.ok()) {
    error = data[0] % 2 == 0 ? kvasir::ParseChatRequest(body, limits, /*max_logprobs=*/20, &request)
                             : kvasir::ParseCompletionRequest(body, limits, &request);
  }
  if (error.ok()) {
    if (request.generate.empty() || request.generate.size() > limits.prompts) std::abort();
    return 0;
  }
  if (error.message.empty()) std::abort();
  const std::string text = kvasir::ErrorBody(error);
  if (!nlohmann::json::accept(text)) std::abort();
  return 0;
}
