// The answer to /v1/completions and /v1/chat/completions: takes Service's events of one or several prompts and writes one JSON
// body or a stream of server-sent events. Lives on the I/O thread of its exchange. Errors that are known before the first event
// are a plain HTTP error.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/http_exchange.h"
#include "server/openai_logprobs.h"
#include "server/openai_request.h"

namespace kvasir {

class OpenAiResponse : public std::enable_shared_from_this<OpenAiResponse> {
 public:
  OpenAiResponse(Service* service, std::shared_ptr<HttpExchange> exchange, OpenAiRequest request);

  // Starts generating; the answer goes to the exchange when it comes.
  void Start();

 private:
  class PromptSink;

  struct Choice {
    std::string text;           // the whole text, where it is not streamed
    std::string token_ids;      // JSON numbers
    std::string chat_logprobs;  // JSON objects
    LegacyLogprobs legacy;
    std::string finish_reason, stop_reason = "null";  // JSON
  };
  struct Prompt {
    std::shared_ptr<Call> call;
    std::string echo_text, prompt_ids, prompt_logprobs;  // JSON, but the first
    Usage usage;
    bool started = false, ended = false;
  };

  void OnStart(size_t prompt, const Started& started);
  void OnDelta(size_t prompt, const Delta& delta);
  void OnFinish(size_t prompt, const Finished& finished);
  void OnEnd(size_t prompt, const ApiError& error, const Usage& usage);
  void Echo(size_t prompt, const Started& started);

  size_t ChoiceIndex(size_t prompt, int32_t choice) const { return prompt * size_t(n_) + size_t(choice); }
  void AddDelta(Choice& choice, const Delta& delta);
  void StartStream();
  void SendFirstChunk(size_t index, Prompt& prompt);
  void SendDelta(size_t index, Choice& choice, const Delta& delta, const Usage& usage);
  void SendChunk(const std::string& choices, const Usage* usage);
  void AppendLogprobs(std::string& out, const Choice& choice) const;
  void AppendFinish(std::string& out, const Choice& choice) const;
  void Fail(ApiError error);
  void Complete();
  std::string Body() const;
  void AppendChoice(std::string& out, size_t index) const;
  Usage TotalUsage() const;
  void CancelAll();

  Service* const service_;
  std::shared_ptr<HttpExchange> exchange_;
  OpenAiRequest request_;
  const int64_t n_;
  std::string head_;  // {"id":...,"object":...,"created":...,"model":...  of every chunk
  TokenNaming naming_, legacy_naming_;
  std::vector<Prompt> prompts_;
  std::vector<Choice> choices_;
  size_t ended_ = 0;
  bool streaming_ = false, over_ = false;
  std::string line_;  // reused for every chunk
};

void AppendUsage(std::string& out, const Usage& usage);

}  // namespace kvasir
