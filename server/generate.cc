#include "server/generate.h"

#include <unistd.h>

#include <charconv>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <fstream>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>

#include "models/detokenizer.h"
#include "server/pull_command.h"
#include "server/runtime.h"

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;

// Events cross from the engine thread to the terminal here.
class WaitingSink : public TokenSink {
 public:
  void OnEvent(TokenEvent&& event) override {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
  }
  void OnStepEnd() override { ready_.notify_one(); }

  TokenEvent Next() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return !events_.empty(); });
    TokenEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<TokenEvent> events_;
};

StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    int32_t id = 0;
    const auto [rest, error] = std::from_chars(at, end, id);
    if (error != std::errc() || (rest != end && *rest != ',')) {
      return InvalidArgument("--token-ids: '{}' at byte {} is not a token id: write them as 1,2,3",
                             std::string(at, end).substr(0, 20), at - text.data());
    }
    ids.push_back(id);
    at = rest == end ? end : rest + 1;
  }
  return ids;
}

StatusOr<std::string> ReadPrompt(const GenerateOptions& options) {
  if (options.prompt_file.empty()) return options.prompt;
  std::stringstream text;
  if (options.prompt_file == "-") {
    text << std::cin.rdbuf();
  } else {
    std::ifstream file(options.prompt_file);
    if (!file) return InvalidArgument("--prompt-file {}: cannot be read", options.prompt_file);
    text << file.rdbuf();
  }
  return text.str();
}

StatusOr<std::vector<int32_t>> PromptIds(const GenerateOptions& options, const Runtime& runtime) {
  if (!options.token_ids.empty()) return ParseTokenIds(options.token_ids);
  KVASIR_ASSIGN_OR_RETURN(const std::string text, ReadPrompt(options));
  if (!options.chat) return runtime.tokenizer->Encode(text, /*add_special_tokens=*/true);
  if (!runtime.chat_template)
    return InvalidArgument("--chat: the model has no chat template; leave --chat out, or give --chat-template");
  ChatInput input;
  input.messages = Json::array({Json{{"role", "user"}, {"content", text}}});
  input.add_generation_prompt = true;
  KVASIR_ASSIGN_OR_RETURN(const std::string prompt, runtime.chat_template->Render(input));
  return runtime.tokenizer->Encode(prompt, /*add_special_tokens=*/false);
}

// Greedy unless told otherwise: by the sampling flags, or by naming a generation config.
RequestDraft MakeDraft(const GenerateOptions& options, const Runtime& runtime, std::vector<int32_t> prompt) {
  const EngineOptions& engine = options.engine;
  const bool named = engine.generation_config != "auto" || !engine.override_generation_config.empty();
  GenerationDefaults defaults;
  if (named) defaults = runtime.generation_defaults;
  RequestDraft draft;
  draft.prompt = std::move(prompt);
  draft.max_tokens = std::min<int64_t>(options.max_tokens, defaults.max_new_tokens.value_or(INT32_MAX));
  draft.ignore_eos = options.ignore_eos;
  draft.sampling.temperature = float(options.temperature.value_or(defaults.temperature.value_or(0.0f)));
  draft.sampling.top_p = float(options.top_p.value_or(defaults.top_p.value_or(1.0f)));
  draft.sampling.top_k = int32_t(options.top_k.value_or(defaults.top_k.value_or(0)));
  draft.sampling.min_p = defaults.min_p.value_or(0.0f);
  draft.sampling.repetition_penalty = defaults.repetition_penalty.value_or(1.0f);
  draft.sampling.seed = options.request_seed;
  draft.sampling.num_logprobs = int32_t(options.logprobs);
  return draft;
}

struct Generated {
  std::vector<int32_t> ids;
  Json logprobs = Json::array();
  std::string text;
  int32_t cached_tokens = 0;
  FinishReason reason = FinishReason::kStop;
};

// Reads events to the end, printing text as it becomes complete (unless JSON is wanted).
StatusOr<Generated> Collect(const GenerateOptions& options, const Runtime& runtime, std::span<const int32_t> prompt,
                            WaitingSink& sink) {
  Generated out;
  IncrementalDetokenizer detokenizer(runtime.tokenizer.get(), /*skip_special_tokens=*/true, prompt);
  const auto show = [&](const std::string& text) {
    out.text += text;
    if (!options.json) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    }
  };
  while (true) {
    const TokenEvent event = sink.Next();
    switch (event.kind) {
      case TokenEvent::Kind::kStarted:
        out.cached_tokens = event.cached_tokens;
        break;
      case TokenEvent::Kind::kPrompt:
        break;
      case TokenEvent::Kind::kToken:
        out.ids.push_back(event.sample.token);
        if (options.logprobs >= 0) {
          Json top = Json::array();
          for (const TokenLogprob& t : event.sample.top) top.push_back({{"id", t.token}, {"logprob", t.logprob}});
          out.logprobs.push_back({{"logprob", event.sample.logprob}, {"top", std::move(top)}});
        }
        show(detokenizer.Append(event.sample.token));
        break;
      case TokenEvent::Kind::kFinished:
        out.reason = event.reason;
        break;
      case TokenEvent::Kind::kEnd:
        if (!event.status.ok()) return event.status;
        show(detokenizer.Finish());
        return out;
    }
  }
}

}  // namespace

bool ShowLoadProgress(double fraction, std::string_view what) {
  if (!isatty(STDERR_FILENO)) return true;
  constexpr int kWidth = 30;
  const int filled = std::clamp(int(fraction * kWidth), 0, kWidth);
  std::fprintf(stderr, "\rloading [%s%s] %3d%% %-40.*s", std::string(size_t(filled), '#').c_str(),
               std::string(size_t(kWidth - filled), '.').c_str(), int(fraction * 100), int(what.size()), what.data());
  if (fraction >= 1.0) std::fprintf(stderr, "\r%80s\r", "");
  std::fflush(stderr);
  return true;
}

Status RunGenerate(const GenerateOptions& options) {
  EngineOptions engine = options.engine;
  engine.max_num_seqs = 1;
  KVASIR_RETURN_IF_ERROR(ResolveModel(&engine));
  KVASIR_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime,
                          Runtime::Create(engine, std::max<int64_t>(options.logprobs, 20), ShowLoadProgress));
  KVASIR_ASSIGN_OR_RETURN(std::vector<int32_t> prompt, PromptIds(options, *runtime));
  KVASIR_ASSIGN_OR_RETURN(ValidatedRequest request,
                          ValidatedRequest::Make(MakeDraft(options, *runtime, prompt), runtime->engine->config().limits));
  runtime->engine->Start();
  const auto sink = std::make_shared<WaitingSink>();
  KVASIR_RETURN_IF_ERROR(runtime->engine->Submit(std::move(request), sink).status());
  KVASIR_ASSIGN_OR_RETURN(const Generated out, Collect(options, *runtime, prompt, *sink));
  if (!options.json) {
    std::printf("\n");
    return OkStatus();
  }
  Json answer = {{"prompt_token_ids", prompt},
                 {"token_ids", out.ids},
                 {"text", out.text},
                 {"finish_reason", out.reason == FinishReason::kLength ? "length" : "stop"},
                 {"cached_tokens", out.cached_tokens}};
  if (options.logprobs >= 0) answer["logprobs"] = out.logprobs;
  std::printf("%s\n", answer.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  return OkStatus();
}

}  // namespace kvasir
