#include "server/grpc_messages.h"

#include "models/unicode.h"
#include "server/api_keys.h"
#include "server/json_reader.h"
#include "server/openai_request.h"

namespace kvasir {
namespace {

template <typename T>
std::optional<T> Optional(bool has, T value) {
  return has ? std::optional<T>(value) : std::nullopt;
}

ApiError Invalid(std::string param, std::string message) {
  return {ErrorCode::kInvalidRequest, std::move(message), std::move(param)};
}

void ReadSampling(const v1::SamplingParams& s, GenerateRequest* out) {
  out->temperature = Optional(s.has_temperature(), s.temperature());
  out->top_p = Optional(s.has_top_p(), s.top_p());
  out->min_p = Optional(s.has_min_p(), s.min_p());
  out->presence_penalty = Optional(s.has_presence_penalty(), s.presence_penalty());
  out->frequency_penalty = Optional(s.has_frequency_penalty(), s.frequency_penalty());
  out->repetition_penalty = Optional(s.has_repetition_penalty(), s.repetition_penalty());
  if (s.has_top_k()) out->top_k = s.top_k();
  if (s.has_seed()) out->seed = s.seed();
  for (const auto& [id, bias] : s.logit_bias()) out->logit_bias.emplace_back(id, bias);
  out->allowed_token_ids.assign(s.allowed_token_ids().begin(), s.allowed_token_ids().end());
}

}  // namespace

ApiError Authorize(const grpc::CallbackServerContext& context, const ApiKeys& keys, std::string* tenant) {
  if (keys.empty()) return {};
  const auto value = [&context](const char* name) -> std::string_view {
    const auto it = context.client_metadata().find(name);
    return it == context.client_metadata().end() ? std::string_view() : std::string_view(it->second.data(), it->second.size());
  };
  auto known = keys.TenantOfHeaders(value("authorization"), value("x-api-key"));
  if (!known)
    return {ErrorCode::kInvalidApiKey, "The API key is missing or wrong; send it as metadata 'authorization: Bearer KEY'."};
  *tenant = std::move(*known);
  return {};
}

ApiError ReadChat(const v1::Chat& message, const ServerLimits& limits, ChatInput* out) {
  // The three JSON strings become the body an HTTP client would send, so that both fronts read chats with the same code.
  Json body = Json::object();
  const std::pair<const char*, const std::string*> parts[] = {{"messages", &message.messages_json()},
                                                              {"tools", &message.tools_json()},
                                                              {"chat_template_kwargs", &message.template_kwargs_json()}};
  for (const auto& [name, text] : parts) {
    if (text->empty()) continue;
    if (ApiError error = ParseJson(*text, limits, &body[name]); !error.ok()) {
      error.param = name;
      error.message = fmt::format("`{}`: {}", name, error.message);
      return error;
    }
  }
  ApiError error;
  FieldReader fields(body, "", &error);
  if (ApiError wrong = ParseChatInput(fields, limits, &error, out); !wrong.ok()) return wrong;
  out->continue_final_message = message.continue_final_message();
  out->add_generation_prompt =
      message.has_add_generation_prompt() ? message.add_generation_prompt() : !message.continue_final_message();
  return error;
}

ApiError ReadGenerateRequest(const v1::GenerateRequest& m, const ServerLimits& limits, GenerateRequest* out) {
  switch (m.input_case()) {
    case v1::GenerateRequest::kText:
      out->prompt = m.text();
      break;
    case v1::GenerateRequest::kTokenIds:
      out->prompt = std::vector<int32_t>(m.token_ids().ids().begin(), m.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kChat: {
      ChatInput chat;
      if (ApiError error = ReadChat(m.chat(), limits, &chat); !error.ok()) return error;
      out->prompt = std::move(chat);
      break;
    }
    case v1::GenerateRequest::INPUT_NOT_SET:
      return Invalid("input", "`input` is not set; give text, token_ids or chat");
  }
  if (m.has_sampling()) ReadSampling(m.sampling(), out);
  out->model = m.model();
  out->max_tokens = Optional(m.has_max_tokens(), int64_t{m.max_tokens()});
  out->min_tokens = m.min_tokens();
  out->n = m.has_n() ? m.n() : 1;
  out->stop.assign(m.stop().begin(), m.stop().end());
  out->stop_token_ids.assign(m.stop_token_ids().begin(), m.stop_token_ids().end());
  out->include_stop_in_output = m.include_stop_in_output();
  out->ignore_eos = m.ignore_eos();
  if (m.has_logprobs()) out->logprobs = m.logprobs();
  if (m.has_prompt_logprobs()) out->prompt_logprobs = m.prompt_logprobs();
  if (m.has_skip_special_tokens()) out->skip_special_tokens = m.skip_special_tokens();
  out->add_special_tokens = Optional(m.has_add_special_tokens(), m.add_special_tokens());
  out->priority = m.priority();
  out->cache_salt = m.cache_salt();
  if (m.request_id().size() > limits.request_id_bytes) {
    return Invalid("request_id", fmt::format("`request_id` has {} bytes but the limit is {}; shorten it", m.request_id().size(),
                                             limits.request_id_bytes));
  }
  if (m.timeout_ms() < 0) return Invalid("timeout_ms", fmt::format("`timeout_ms` is {} but must be at least 0", m.timeout_ms()));
  out->timeout_millis = m.timeout_ms();
  return {};
}

void FillModelInfo(const Service& service, v1::ModelInfo* out) {
  const ModelInfo& model = service.model();
  const RequestLimits& limits = service.config().engine->config().limits;
  if (!model.names.empty()) out->set_id(model.names.front());
  for (const std::string& name : model.names) out->add_aliases(name);
  out->set_architecture(model.architecture);
  out->set_max_model_len(limits.max_model_len);
  out->set_vocab_size(limits.vocab_size);
  for (const int32_t id : limits.eos_token_ids) out->add_eos_token_ids(id);
  if (const auto bos = service.tokenizer().bos_id()) out->set_bos_token_id(*bos);
  out->set_dtype(model.dtype);
  out->set_kv_cache_dtype(model.kv_cache_dtype);
  out->set_num_parameters(model.num_parameters);
  out->set_has_chat_template(service.config().chat_template != nullptr);
  out->set_device(model.device);
  out->set_version(KVASIR_VERSION);
}

void FillStats(const Service& service, v1::Stats* out) {
  const EngineStats stats = service.Stats();
  out->set_running_requests(stats.running);
  out->set_waiting_requests(stats.waiting);
  out->set_kv_blocks_total(stats.kv.total_blocks);
  out->set_kv_blocks_used(stats.kv.used_blocks);
  out->set_kv_blocks_cached(stats.kv.cached_blocks);
  out->set_block_tokens(service.model().block_tokens);
  out->set_prompt_tokens_total(stats.prompt_tokens);
  out->set_generated_tokens_total(stats.generated_tokens);
  out->set_prefix_cache_queried_tokens_total(stats.kv.queried_tokens);
  out->set_prefix_cache_hit_tokens_total(stats.kv.hit_tokens);
  out->set_preemptions_total(stats.preemptions);
  out->set_steps_total(stats.steps);
  out->set_uptime_seconds(double(service.uptime_seconds()));
}

void FillLogprobs(const Tokenizer& tokenizer, const SampleResult& sample, v1::Logprobs* out) {
  const auto fill = [&tokenizer](int32_t id, float logprob, v1::TokenLogprob* token) {
    token->set_token_id(id);
    const std::string bytes = tokenizer.TokenBytes(id);
    token->set_token(ValidUtf8(bytes));
    token->set_bytes(bytes);
    token->set_logprob(logprob);
  };
  fill(sample.token, sample.logprob, out->mutable_chosen());
  out->mutable_chosen()->set_rank(sample.rank);
  for (size_t i = 0; i < sample.top.size(); ++i) {
    v1::TokenLogprob* token = out->add_top();
    fill(sample.top[i].token, sample.top[i].logprob, token);
    token->set_rank(int32_t(i) + 1);
  }
}

grpc::Status ToGrpcStatus(const ApiError& error, grpc::CallbackServerContext* context) {
  if (error.ok()) return grpc::Status::OK;
  if (Describe(error.code).retry_after) {
    context->AddTrailingMetadata("retry-after-ms", std::to_string(int64_t{error.retry_after_seconds} * 1000));
  }
  return {grpc::StatusCode(int(Describe(error.code).grpc)), ValidUtf8(error.message)};
}

std::string ValidUtf8(std::string_view bytes) {
  std::string out;
  AppendLossyUtf8(bytes, /*at_end=*/true, &out);
  return out;
}

}  // namespace kvasir
