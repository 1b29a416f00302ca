#include "server/openai_response.h"

#include <ctime>

#include "models/detokenizer.h"
#include "server/json_text.h"

namespace kvasir {

class OpenAiResponse::PromptSink : public ResponseSink {
 public:
  PromptSink(std::shared_ptr<OpenAiResponse> response, size_t prompt) : response_(std::move(response)), prompt_(prompt) {}
  void OnStart(const Started& started) override { response_->OnStart(prompt_, started); }
  void OnDelta(const Delta& delta) override { response_->OnDelta(prompt_, delta); }
  void OnFinish(const Finished& finished) override { response_->OnFinish(prompt_, finished); }
  void OnEnd(const ApiError& error, const Usage& usage) override { response_->OnEnd(prompt_, error, usage); }

 private:
  std::shared_ptr<OpenAiResponse> response_;
  size_t prompt_;
};

void AppendUsage(std::string& out, const Usage& usage) {
  fmt::format_to(
      std::back_inserter(out),
      "{{\"prompt_tokens\":{},\"total_tokens\":{},\"completion_tokens\":{},\"prompt_tokens_details\":{{\"cached_tokens\":{}}},"
      "\"completion_tokens_details\":{{\"reasoning_tokens\":0}}}}",
      usage.prompt_tokens, usage.prompt_tokens + usage.completion_tokens, usage.completion_tokens, usage.cached_tokens);
}

OpenAiResponse::OpenAiResponse(Service* service, std::shared_ptr<HttpExchange> exchange, OpenAiRequest request)
    : service_(service), exchange_(std::move(exchange)), request_(std::move(request)), n_(request_.generate.front().n) {
  const bool chat = request_.chat;
  const char* object = !chat ? "text_completion" : request_.stream ? "chat.completion.chunk" : "chat.completion";
  head_ = fmt::format("{{\"id\":\"{}-{}\",\"object\":\"{}\",\"created\":{},\"model\":", chat ? "chatcmpl" : "cmpl",
                      exchange_->request_id(), object, std::time(nullptr));
  const std::string& asked = request_.generate.front().model;
  AppendJsonString(head_, asked.empty() ? service_->model().names.front() : asked);
  head_ += ",\"system_fingerprint\":\"kvasir-" KVASIR_VERSION "\"";
  naming_ = {.tokenizer = &service_->tokenizer(), .as_ids = request_.tokens_as_ids};
  legacy_naming_ = naming_;
  legacy_naming_.hide_special = request_.generate.front().skip_special_tokens;
  prompts_.resize(request_.generate.size());
}

void OpenAiResponse::Start() {
  // A request for an absurd n never starts; its choices are made once the engine has taken it.
  const auto self = shared_from_this();
  exchange_->OnLeave([self] {
    self->over_ = true;
    self->CancelAll();
  });
  if (request_.stream) {
    exchange_->OnSilence([self] {
      if (self->over_) return;
      if (!self->streaming_) {
        for (const Prompt& prompt : self->prompts_) {
          if (!prompt.started && !CallIsAccepted(prompt.call)) return;
        }
        self->StartStream();
      }
      self->exchange_->Write(": ping\n\n");
    });
  }
  for (size_t i = 0; i < prompts_.size(); ++i) {
    if (request_.echo) {
      if (const auto* text = std::get_if<std::string>(&request_.generate[i].prompt)) prompts_[i].echo_text = *text;
    }
    prompts_[i].call =
        service_->Generate(std::move(request_.generate[i]), exchange_->loop(), std::make_shared<PromptSink>(self, i));
  }
}

void OpenAiResponse::CancelAll() {
  for (Prompt& prompt : prompts_) {
    if (!prompt.ended && prompt.call != nullptr) CancelCall(prompt.call);
  }
}

void OpenAiResponse::OnStart(size_t index, const Started& started) {
  if (over_) return;
  Prompt& prompt = prompts_[index];
  prompt.started = true;
  prompt.usage.prompt_tokens = started.prompt_tokens;
  prompt.usage.cached_tokens = started.cached_tokens;
  if (choices_.empty()) choices_.resize(prompts_.size() * size_t(n_));
  if (request_.return_token_ids) {
    for (const int32_t id : started.prompt_ids) {
      if (!prompt.prompt_ids.empty()) prompt.prompt_ids.push_back(',');
      AppendJsonInt(prompt.prompt_ids, id);
    }
  }
  if (request_.prompt_logprobs) AppendPromptLogprobs(prompt.prompt_logprobs, naming_, started.prompt_logprobs);
  if (request_.echo) Echo(index, started);
  if (!request_.stream) return;
  if (!streaming_) StartStream();
  if (!request_.chat && !request_.echo && !request_.return_token_ids) return;
  for (int64_t i = 0; i < n_; ++i) SendFirstChunk(ChoiceIndex(index, int32_t(i)), prompt);
}

// The prompt's text, and its log-probabilities where asked, before each choice's own.
void OpenAiResponse::Echo(size_t index, const Started& started) {
  Prompt& prompt = prompts_[index];
  const bool skip = legacy_naming_.hide_special;
  if (prompt.echo_text.empty()) prompt.echo_text = service_->tokenizer().Decode(started.prompt_ids, skip);
  LegacyLogprobs legacy;
  if (request_.logprobs && started.prompt_logprobs.size() + 1 == started.prompt_ids.size()) {
    IncrementalDetokenizer detokenizer(&service_->tokenizer(), skip, {});
    legacy.AddFirst(legacy_naming_, started.prompt_ids[0], detokenizer.Append(started.prompt_ids[0]));
    for (size_t i = 1; i < started.prompt_ids.size(); ++i) {
      const std::string text = detokenizer.Append(started.prompt_ids[i]);
      const std::string name = naming_.as_ids ? TokenString(naming_, started.prompt_ids[i]) : text;
      legacy.AddNamed(name, text, legacy_naming_, started.prompt_logprobs[i - 1]);
    }
  }
  for (int64_t i = 0; i < n_; ++i) {
    Choice& choice = choices_[ChoiceIndex(index, int32_t(i))];
    choice.legacy = legacy;
    choice.text = prompt.echo_text;
  }
}

void OpenAiResponse::AddDelta(Choice& choice, const Delta& delta) {
  if (request_.return_token_ids) {
    for (const int32_t id : delta.token_ids) {
      if (!choice.token_ids.empty()) choice.token_ids.push_back(',');
      AppendJsonInt(choice.token_ids, id);
    }
  }
  if (!request_.logprobs) return;
  for (const SampleResult& sample : delta.logprobs) {
    if (request_.chat) {
      if (!choice.chat_logprobs.empty()) choice.chat_logprobs.push_back(',');
      AppendChatLogprob(choice.chat_logprobs, naming_, sample);
    } else {
      choice.legacy.Add(legacy_naming_, sample);
    }
  }
}

void OpenAiResponse::OnDelta(size_t index, const Delta& delta) {
  if (over_) return;
  Prompt& prompt = prompts_[index];
  prompt.usage.completion_tokens = delta.completion_tokens;
  const size_t at = ChoiceIndex(index, delta.choice);
  Choice& choice = choices_[at];
  AddDelta(choice, delta);
  if (!request_.stream) {
    choice.text += delta.text;
    return;
  }
  // Text may be held back for a while; a step without text says nothing unless ids or logprobs were asked for.
  if (delta.text.empty() && !request_.return_token_ids && !request_.logprobs) return;
  SendDelta(at, choice, delta, prompt.usage);
}

void OpenAiResponse::OnFinish(size_t index, const Finished& finished) {
  if (over_) return;
  const size_t at = ChoiceIndex(index, finished.choice);
  Choice& choice = choices_[at];
  choice.finish_reason = finished.reason == FinishReason::kLength ? "\"length\"" : "\"stop\"";
  choice.stop_reason = "null";
  if (!finished.stop_string.empty()) {
    choice.stop_reason.clear();
    AppendJsonString(choice.stop_reason, finished.stop_string);
  } else if (finished.stop_token >= 0) {
    choice.stop_reason = std::to_string(finished.stop_token);
  }
  if (!request_.stream) return;
  std::string chunk = fmt::format("{{\"index\":{},", at);
  chunk += request_.chat ? "\"delta\":{},\"logprobs\":null" : "\"text\":\"\",\"logprobs\":null";
  AppendFinish(chunk, choice);
  chunk.push_back('}');
  SendChunk(chunk, request_.continuous_usage ? &prompts_[index].usage : nullptr);
}

void OpenAiResponse::OnEnd(size_t index, const ApiError& error, const Usage& usage) {
  Prompt& prompt = prompts_[index];
  prompt.ended = true;
  prompt.usage = usage;
  ++ended_;
  if (over_) return;
  if (!error.ok()) return Fail(error);
  if (ended_ == prompts_.size()) Complete();
}

void OpenAiResponse::StartStream() {
  streaming_ = true;
  exchange_->StartStream({{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
}

void OpenAiResponse::SendFirstChunk(size_t index, Prompt& prompt) {
  Choice& choice = choices_[index];
  std::string chunk = fmt::format("{{\"index\":{},", index);
  if (request_.chat) {
    chunk += "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null";
  } else {
    chunk += "\"text\":";
    AppendJsonString(chunk, choice.text);
    AppendLogprobs(chunk, choice);
    choice.text.clear();
    choice.legacy.Clear();
  }
  chunk += ",\"finish_reason\":null";
  if (!prompt.prompt_ids.empty() && !request_.chat) chunk += ",\"prompt_token_ids\":[" + prompt.prompt_ids + "]";
  chunk.push_back('}');
  if (request_.chat && !prompt.prompt_ids.empty()) {
    // vLLM puts a chat's prompt ids beside the choices of the first chunk.
    const std::string head = head_;
    head_ += ",\"prompt_token_ids\":[" + prompt.prompt_ids + "]";
    SendChunk(chunk, request_.continuous_usage ? &prompt.usage : nullptr);
    head_ = head;
    return;
  }
  SendChunk(chunk, request_.continuous_usage ? &prompt.usage : nullptr);
}

void OpenAiResponse::SendDelta(size_t index, Choice& choice, const Delta& delta, const Usage& usage) {
  std::string chunk = "{\"index\":";
  AppendJsonInt(chunk, int64_t(index));
  chunk += request_.chat ? ",\"delta\":{\"content\":" : ",\"text\":";
  AppendJsonString(chunk, delta.text);
  if (request_.chat) chunk.push_back('}');
  AppendLogprobs(chunk, choice);
  chunk += ",\"finish_reason\":null";
  if (request_.return_token_ids) chunk += ",\"token_ids\":[" + choice.token_ids + "]";
  chunk.push_back('}');
  choice.token_ids.clear();
  choice.chat_logprobs.clear();
  choice.legacy.Clear();
  SendChunk(chunk, request_.continuous_usage ? &usage : nullptr);
}

void OpenAiResponse::SendChunk(const std::string& choices, const Usage* usage) {
  line_ = "data: ";
  line_ += head_;
  line_ += ",\"choices\":[";
  line_ += choices;
  line_ += "]";
  if (usage != nullptr) {
    line_ += ",\"usage\":";
    AppendUsage(line_, *usage);
  } else if (request_.include_usage) {
    line_ += ",\"usage\":null";
  }
  line_ += "}\n\n";
  exchange_->Write(line_);
}

void OpenAiResponse::AppendLogprobs(std::string& out, const Choice& choice) const {
  if (!request_.logprobs) {
    out += ",\"logprobs\":null";
  } else if (request_.chat) {
    out += ",\"logprobs\":{\"content\":[" + choice.chat_logprobs + "],\"refusal\":null}";
  } else {
    out += ",\"logprobs\":";
    choice.legacy.AppendJson(out);
  }
}

void OpenAiResponse::AppendFinish(std::string& out, const Choice& choice) const {
  out += ",\"finish_reason\":" + choice.finish_reason + ",\"stop_reason\":" + choice.stop_reason;
}

Usage OpenAiResponse::TotalUsage() const {
  Usage total;
  for (const Prompt& prompt : prompts_) {
    total.prompt_tokens += prompt.usage.prompt_tokens;
    total.cached_tokens += prompt.usage.cached_tokens;
    total.completion_tokens += prompt.usage.completion_tokens;
  }
  return total;
}

// Before the headers: a plain HTTP error. After them: an error event, and the connection closes without [DONE].
void OpenAiResponse::Fail(ApiError error) {
  over_ = true;
  CancelAll();
  if (request_.chat) {
    RenameParam(error, "prompt", "messages");
    RenameParam(error, "logprobs", "top_logprobs");
  }
  RenameParam(error, "max_tokens", request_.max_tokens_field);
  if (!streaming_) {
    exchange_->Respond(ErrorResponse(error));
  } else {
    exchange_->Write("data: " + ErrorBody(error) + "\n\n");
    exchange_->Finish(/*complete=*/false);
  }
  exchange_ = nullptr;
}

void OpenAiResponse::Complete() {
  over_ = true;
  if (request_.stream) {
    if (request_.include_usage) {
      const Usage total = TotalUsage();
      SendChunk("", &total);
    }
    exchange_->Write("data: [DONE]\n\n");
    exchange_->Finish(/*complete=*/true);
  } else {
    exchange_->Respond({.body = Body()});
  }
  exchange_ = nullptr;
}

void OpenAiResponse::AppendChoice(std::string& out, size_t index) const {
  const Choice& choice = choices_[index];
  const Prompt& prompt = prompts_[index / size_t(n_)];
  fmt::format_to(std::back_inserter(out), "{{\"index\":{},", index);
  if (request_.chat) {
    out += "\"message\":{\"role\":\"assistant\",\"content\":";
    AppendJsonString(out, choice.text);
    out += ",\"refusal\":null}";
  } else {
    out += "\"text\":";
    AppendJsonString(out, choice.text);
  }
  AppendLogprobs(out, choice);
  AppendFinish(out, choice);
  if (request_.return_token_ids) {
    out += ",\"token_ids\":[" + choice.token_ids + "]";
    if (!request_.chat) out += ",\"prompt_token_ids\":[" + prompt.prompt_ids + "]";
  }
  if (request_.prompt_logprobs && !request_.chat) out += ",\"prompt_logprobs\":" + prompt.prompt_logprobs;
  out.push_back('}');
}

std::string OpenAiResponse::Body() const {
  std::string out = head_;
  out += ",\"choices\":[";
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendChoice(out, i);
  }
  out += "],\"usage\":";
  AppendUsage(out, TotalUsage());
  if (request_.chat && request_.return_token_ids) out += ",\"prompt_token_ids\":[" + prompts_[0].prompt_ids + "]";
  if (request_.chat && request_.prompt_logprobs) out += ",\"prompt_logprobs\":" + prompts_[0].prompt_logprobs;
  out.push_back('}');
  return out;
}

}  // namespace kvasir
