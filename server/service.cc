#include "server/service.h"

#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cstring>

#include "server/call.h"

namespace kvasir {
namespace {

std::string RandomBytes(size_t count) {
  std::string bytes(count, '\0');
  KVASIR_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), int(count)) == 1, "no randomness from OpenSSL");
  return bytes;
}

uint64_t RandomU64() {
  const std::string bytes = RandomBytes(8);
  uint64_t value = 0;
  std::memcpy(&value, bytes.data(), 8);
  return value;
}

ApiError Invalid(std::string param, std::string message) {
  return {.code = ErrorCode::kInvalidRequest, .message = std::move(message), .param = std::move(param)};
}

// A weight of about a tenth beside the engine's threads.
constexpr int kLongNiceness = 10;

// How long the text is that preparing a request reads, about.
size_t TextBytes(const GenerateRequest& request) {
  if (const auto* text = std::get_if<std::string>(&request.prompt)) return text->size();
  const auto* chat = std::get_if<ChatInput>(&request.prompt);
  if (chat == nullptr) return 0;
  size_t bytes = 0;
  const auto count = [&bytes](const nlohmann::ordered_json& object, const char* key) {
    const auto it = object.find(key);
    if (it != object.end() && it->is_string()) bytes += it->get_ref<const std::string&>().size();
  };
  for (const auto& message : chat->messages) {
    count(message, "content");
    const auto parts = message.find("content");
    if (parts == message.end() || !parts->is_array()) continue;
    for (const auto& part : *parts) count(part, "text");
  }
  return bytes;
}

}  // namespace

Service::Service(ServiceConfig config)
    : config_(std::move(config)),
      started_micros_(config_.clock->NowMicros()),
      secret_(RandomBytes(32)),
      next_seed_(config_.seed != 0 ? config_.seed : RandomU64()),
      metrics_(config_.engine->config().limits.max_model_len),
      workers_(config_.limits.worker_threads, config_.limits.worker_queue),
      long_workers_(config_.limits.worker_threads, config_.limits.worker_queue, kLongNiceness) {
  KVASIR_CHECK(!config_.model.names.empty(), "a model needs a name");
}

Service::~Service() = default;

ApiError Service::CheckModel(std::string_view name) const {
  if (name.empty() || std::find(config_.model.names.begin(), config_.model.names.end(), name) != config_.model.names.end())
    return {};
  return {.code = ErrorCode::kModelNotFound,
          .message = fmt::format("The model `{}` does not exist. This server serves `{}`; see /v1/models.", name.substr(0, 200),
                                 config_.model.names.front()),
          .param = "model"};
}

ApiError Service::CheckReady() const {
  if (!config_.engine->Healthy()) {
    return {.code = ErrorCode::kEngineFailed,
            .message = "The engine has failed; the server must be restarted.",
            .retry_after_seconds = 5};
  }
  if (draining()) {
    return {.code = ErrorCode::kDraining,
            .message = "The server is shutting down; send the request to another server.",
            .retry_after_seconds = 2};
  }
  return {};
}

std::shared_ptr<Call> Service::Generate(GenerateRequest request, std::shared_ptr<CallLoop> loop,
                                        std::shared_ptr<ResponseSink> sink) {
  auto call = std::make_shared<Call>(this, std::move(loop), std::move(sink), config_.clock->NowMicros());
  const auto* text = std::get_if<std::string>(&request.prompt);
  const auto* ids = std::get_if<std::vector<int32_t>>(&request.prompt);
  const size_t limit = config_.limits.inline_prompt_bytes;
  if ((text != nullptr && text->size() <= limit) || (ids != nullptr && ids->size() <= limit)) {
    Prepare(call, std::move(request));
    return call;
  }
  const size_t bytes = TextBytes(request);
  auto shared = std::make_shared<GenerateRequest>(std::move(request));
  if (!workers(bytes).Post([this, call, shared] { Prepare(call, std::move(*shared)); })) {
    call->Refuse({.code = ErrorCode::kServerBusy,
                  .message = "Too many long prompts are being prepared; retry in a moment.",
                  .retry_after_seconds = 2});
  }
  return call;
}

void Service::Prepare(const std::shared_ptr<Call>& call, GenerateRequest request) {
  if (call->cancelled()) return call->Refuse({.code = ErrorCode::kCancelled, .message = "The request was cancelled."});
  if (ApiError error = CheckReady(); !error.ok()) return call->Refuse(std::move(error));
  if (ApiError error = CheckModel(request.model); !error.ok()) return call->Refuse(std::move(error));
  if (ApiError error = CheckStops(request); !error.ok()) return call->Refuse(std::move(error));
  std::vector<int32_t> prompt;
  if (ApiError error = Tokens(request, &prompt); !error.ok()) return call->Refuse(std::move(error));

  auto draft = MakeDraft(request, std::move(prompt), call->arrival_micros());
  if (!draft.ok()) return call->Refuse(ToApiError(draft.status()));
  auto valid = ValidatedRequest::Make(std::move(draft).value(), config_.engine->config().limits);
  if (!valid.ok()) return call->Refuse(ToApiError(valid.status()));

  Call::Setup setup;
  setup.prompt = (*valid)->prompt;
  setup.stop = std::move(request.stop);
  setup.stop_token_ids = (*valid)->stop_token_ids;
  setup.include_stop = request.include_stop_in_output;
  setup.skip_special_tokens = request.skip_special_tokens;
  setup.ignore_eos = request.ignore_eos;
  setup.wants_logprobs = request.logprobs.has_value();
  setup.wants_prompt_logprobs = request.prompt_logprobs.has_value();
  setup.n = (*valid)->n;
  setup.min_tokens = (*valid)->min_tokens;
  setup.max_tokens = valid->max_tokens();
  call->SetUp(std::move(setup));

  int retry_after = 1;
  const auto id = config_.engine->Submit(std::move(valid).value(), call, &retry_after);
  if (id.ok()) return call->Submitted(*id);
  if (ApiError error = CheckReady(); !error.ok()) return call->Refuse(std::move(error));
  if (id.status().code() == StatusCode::kUnavailable) {
    return call->Refuse(
        {.code = ErrorCode::kDraining, .message = "The server is shutting down; send the request to another server."});
  }
  call->Refuse(
      {.code = ErrorCode::kQueueFull,
       .message = fmt::format("The queue is full; retry in {} s. More can wait with --max-waiting-requests.", retry_after),
       .retry_after_seconds = retry_after});
}

ApiError Service::CheckStops(const GenerateRequest& request) const {
  const ServerLimits& limits = config_.limits;
  if (request.stop.size() > limits.stop_strings) {
    return Invalid(
        "stop", fmt::format("`stop` has {} strings but the limit is {}; send fewer", request.stop.size(), limits.stop_strings));
  }
  for (size_t i = 0; i < request.stop.size(); ++i) {
    if (request.stop[i].empty()) return Invalid("stop", fmt::format("`stop` holds an empty string at index {}; leave it out", i));
    if (request.stop[i].size() > limits.stop_bytes) {
      return Invalid("stop", fmt::format("`stop` holds a string of {} bytes at index {} but the limit is {}; shorten it",
                                         request.stop[i].size(), i, limits.stop_bytes));
    }
  }
  if (request.cache_salt.size() > limits.cache_salt_bytes || request.cache_salt.find('\0') != std::string::npos) {
    return Invalid("cache_salt",
                   fmt::format("`cache_salt` must be at most {} bytes without NUL; shorten it", limits.cache_salt_bytes));
  }
  if (request.timeout_millis < 0) return Invalid("timeout", "`timeout` is negative; leave it out for no timeout");
  return {};
}

ApiError Service::Tokens(const GenerateRequest& request, std::vector<int32_t>* ids) const {
  const int64_t context = max_model_len();
  if (const auto* given = std::get_if<std::vector<int32_t>>(&request.prompt)) {
    *ids = *given;
  } else {
    const auto* text = std::get_if<std::string>(&request.prompt);
    auto encoded = text != nullptr ? Tokenize(*text, request.add_special_tokens)
                                   : Tokenize(std::get<ChatInput>(request.prompt), request.add_special_tokens);
    if (!encoded.ok()) {
      ApiError error = ToApiError(encoded.status());
      if (error.param.empty()) error.param = "prompt";
      return error;
    }
    *ids = std::move(encoded).value();
  }
  if (request.truncate_prompt_tokens) {
    int64_t keep = *request.truncate_prompt_tokens;
    if (keep < -1 || keep == 0 || keep > context) {
      return Invalid("truncate_prompt_tokens",
                     fmt::format("`truncate_prompt_tokens` is {} but must be -1 or in [1, {}]", keep, context));
    }
    if (keep == -1) keep = std::max<int64_t>(1, context - request.max_tokens.value_or(1));
    if (const int64_t excess = int64_t(ids->size()) - keep; excess > 0) {
      const auto first = ids->begin() + (request.truncate_end ? keep : 0);
      ids->erase(first, first + excess);
    }
  }
  const int64_t prompt = int64_t(ids->size());
  const int64_t asked = request.max_tokens.value_or(1);
  if (asked < 1) return {};  // ValidatedRequest names it
  if (prompt >= context || asked > context - prompt) {
    return {.code = ErrorCode::kContextLengthExceeded,
            .message = fmt::format(
                "This model's maximum context length is {} tokens. However, you requested {} tokens ({} in the `prompt`, {} in "
                "the completion). Shorten the `prompt` or lower `max_tokens`.",
                context, asked > INT64_MAX - prompt ? INT64_MAX : prompt + asked, prompt, asked),
            .param = prompt >= context ? "prompt" : "max_tokens"};
  }
  return {};
}

StatusOr<RequestDraft> Service::MakeDraft(GenerateRequest& request, std::vector<int32_t> prompt, int64_t arrival_micros) {
  const GenerationDefaults& defaults = config_.defaults;
  RequestDraft draft;
  draft.prompt = std::move(prompt);
  draft.max_tokens = request.max_tokens;
  if (!draft.max_tokens && request.default_max_tokens > 0) {
    const RequestLimits& limits = config_.engine->config().limits;
    const int64_t room = std::min(limits.max_model_len, limits.pool_tokens) - int64_t(draft.prompt.size());
    draft.max_tokens = std::clamp<int64_t>(room, 1, request.default_max_tokens);
  }
  // As in vLLM, max_new_tokens of the generation config is a limit for every request, not only a default.
  if (defaults.max_new_tokens) {
    const RequestLimits& limits = config_.engine->config().limits;
    const int64_t room = std::min(limits.max_model_len, limits.pool_tokens) - int64_t(draft.prompt.size());
    const int64_t most = *defaults.max_new_tokens;
    draft.max_tokens = draft.max_tokens ? std::min(*draft.max_tokens, most) : std::clamp<int64_t>(room, 1, most);
  }
  draft.min_tokens = request.min_tokens;
  draft.n = request.n;
  draft.ignore_eos = request.ignore_eos;
  draft.stop_token_ids = std::move(request.stop_token_ids);
  SamplingParams& sampling = draft.sampling;
  const auto choose = [](const std::optional<float>& asked, const std::optional<float>& usual, float neutral) {
    return asked ? *asked : usual.value_or(neutral);
  };
  sampling.temperature = choose(request.temperature, defaults.temperature, 1.0f);
  sampling.top_p = choose(request.top_p, defaults.top_p, 1.0f);
  sampling.min_p = choose(request.min_p, defaults.min_p, 0.0f);
  sampling.repetition_penalty = choose(request.repetition_penalty, defaults.repetition_penalty, 1.0f);
  sampling.presence_penalty = request.presence_penalty.value_or(0.0f);
  sampling.frequency_penalty = request.frequency_penalty.value_or(0.0f);
  const int64_t top_k = request.top_k ? *request.top_k : defaults.top_k.value_or(0);
  if (top_k < -1 || top_k > INT32_MAX)
    return InvalidArgument("`top_k` is {} but must be in [-1, {}]; 0 and -1 turn it off", top_k, INT32_MAX);
  sampling.top_k = int32_t(std::max<int64_t>(0, top_k));
  sampling.logit_bias = std::move(request.logit_bias);
  sampling.allowed_token_ids = std::move(request.allowed_token_ids);
  sampling.seed = request.seed ? *request.seed : config_.seed != 0 ? config_.seed : next_seed_.fetch_add(0x9e3779b97f4a7c15);
  const int64_t most = config_.engine->config().limits.max_logprobs;
  const auto alternatives = [&](const char* field, const std::optional<int64_t>& asked) -> StatusOr<int32_t> {
    if (!asked) return -1;
    if (*asked >= 0 && *asked <= most) return int32_t(*asked);
    return InvalidArgument("`{}` is {} but must be in [0, {}]; ask for fewer alternatives", field, *asked, most);
  };
  KVASIR_ASSIGN_OR_RETURN(sampling.num_logprobs, alternatives("logprobs", request.logprobs));
  KVASIR_ASSIGN_OR_RETURN(sampling.num_prompt_logprobs, alternatives("prompt_logprobs", request.prompt_logprobs));
  if (request.priority < INT32_MIN || request.priority > INT32_MAX) {
    return InvalidArgument("`priority` is {} but must fit 32 bits; smaller numbers run earlier", request.priority);
  }
  draft.priority = int32_t(request.priority);
  draft.salt = Salt(request);
  draft.arrival_micros = arrival_micros;
  constexpr int64_t kLongestMillis = int64_t{1000} * 86400 * 365;
  if (request.timeout_millis > 0)
    draft.deadline_micros = arrival_micros + std::min(request.timeout_millis, kLongestMillis) * 1000;
  return draft;
}

// A digest that only this process can make: without the secret nobody can find a salt that meets another tenant's.
TenantSalt Service::Salt(const GenerateRequest& request) const {
  TenantSalt salt{};
  if (request.tenant.empty() && request.cache_salt.empty()) return salt;
  const std::string text = fmt::format("{}:{}{}", request.tenant.size(), request.tenant, request.cache_salt);
  unsigned int size = 0;
  HMAC(EVP_sha256(), secret_.data(), int(secret_.size()), reinterpret_cast<const unsigned char*>(text.data()), text.size(),
       reinterpret_cast<unsigned char*>(salt.data()), &size);
  return salt;
}

StatusOr<std::string> Service::Render(const ChatInput& input) const {
  if (config_.chat_template == nullptr) {
    return InvalidArgument(
        "`messages` cannot be used: this model has no chat template; use /v1/completions or start the server with "
        "--chat-template");
  }
  if (!input.chat_template.empty() && !config_.trust_request_chat_template &&
      !config_.chat_template->HasTemplate(input.chat_template)) {
    return InvalidArgument(
        "`chat_template` of a request is not trusted: name one of the model's templates, or start the server with "
        "--trust-request-chat-template");
  }
  auto text = config_.chat_template->Render(input);
  if (text.ok()) return text;
  // The field at fault comes first: clients find it in `param`.
  const std::string message = Message(text.status());
  constexpr std::string_view kKwargs = "chat_template_kwargs";
  if (message.starts_with(kKwargs)) {
    return Status(text.status().code(), fmt::format("`{}`{}", kKwargs, std::string_view(message).substr(kKwargs.size())));
  }
  const bool brought = !input.chat_template.empty() && !config_.chat_template->HasTemplate(input.chat_template);
  const bool in_messages = !brought || message.starts_with("messages");
  return Status(text.status().code(), fmt::format("`{}`: {}", in_messages ? "messages" : "chat_template", message));
}

StatusOr<std::vector<int32_t>> Service::Tokenize(const std::variant<std::string, ChatInput>& input,
                                                 std::optional<bool> add_special_tokens) const {
  if (const auto* text = std::get_if<std::string>(&input)) {
    auto ids = config_.tokenizer->Encode(*text, add_special_tokens.value_or(true));
    if (ids.ok()) return ids;
    return Status(ids.status().code(), fmt::format("`prompt`: {}", Message(ids.status())));
  }
  KVASIR_ASSIGN_OR_RETURN(const std::string text, Render(std::get<ChatInput>(input)));
  auto ids = config_.tokenizer->Encode(text, add_special_tokens.value_or(false));
  if (ids.ok()) return ids;
  return Status(ids.status().code(), fmt::format("`messages`: {}", Message(ids.status())));
}

StatusOr<std::string> Service::Detokenize(std::span<const int32_t> ids, bool skip_special_tokens) const {
  const int64_t vocab_size = config_.engine->config().limits.vocab_size;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return InvalidArgument("`tokens` holds the id {} at index {} but the vocabulary has ids 0 to {}", ids[i], i, vocab_size - 1);
  }
  return config_.tokenizer->Decode(ids, skip_special_tokens);
}

std::string Service::MetricsText() const {
  return metrics_.Text({.engine = Stats(),
                        .model_name = config_.model.names.front(),
                        .block_tokens = config_.engine->config().limits.block_tokens,
                        .kv_cache_dtype = config_.model.kv_cache_dtype,
                        .draining = draining(),
                        .healthy = config_.engine->Healthy(),
                        .open_calls = open_calls()});
}

}  // namespace kvasir
