#include "server/openai_request.h"

#include <algorithm>
#include <array>
#include <ctime>

#include "absl/strings/numbers.h"

namespace kvasir {
namespace {

// Accepted and without effect here.
constexpr const char* kIgnored[] = {"user",
                                    "metadata",
                                    "store",
                                    "service_tier",
                                    "verbosity",
                                    "safety_identifier",
                                    "prediction",
                                    "prompt_cache_key",
                                    "prompt_cache_retention",
                                    "prompt_cache_options",
                                    "cache_prompt",
                                    "length_penalty",
                                    "spaces_between_special_tokens",
                                    "parallel_tool_calls",
                                    "vllm_xargs",
                                    "request_id",
                                    "stream_interval",
                                    "detokenize",
                                    "early_stopping",
                                    "allowed_openai_params",
                                    "chat_template_content_format",
                                    "include_reasoning",
                                    "moderation"};

// Fields that would change the answer and that this version does not implement: silence would be a wrong answer.
constexpr const char* kUnsupported[] = {"structured_outputs",
                                        "guided_json",
                                        "guided_regex",
                                        "guided_choice",
                                        "guided_grammar",
                                        "grammar",
                                        "json_schema",
                                        "bad_words",
                                        "suffix",
                                        "audio",
                                        "web_search_options",
                                        "functions",
                                        "kv_transfer_params",
                                        "prompt_embeds",
                                        "repetition_detection",
                                        "thinking_token_budget"};

// Fields of which only some values are what this version does anyway.
struct OnlyValue {
  const char* name;
  std::array<const char*, 2> harmless;
  const char* remedy;
};
constexpr OnlyValue kOnly[] = {
    {"modalities", {R"(["text"])", "[]"}, "other than [\"text\"] is not supported: this server answers in text; leave it out"},
    {"function_call", {R"("none")", R"("auto")"}, "is not supported by this version of the server; leave it out"},
};

bool IsTrivial(const Json& value) {
  if (value.is_null() || ((value.is_array() || value.is_object()) && value.empty())) return true;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.is_boolean() && !value.get<bool>();
}

void RefuseUnsupported(FieldReader& fields, const GenerateRequest& request) {
  for (const char* name : kIgnored) (void)fields.Find(name);
  for (const char* name : kUnsupported) {
    const Json* value = fields.Find(name);
    if (value != nullptr && !IsTrivial(*value)) {
      fields.Complain(name, "is not supported by this version of the server; leave it out", ErrorCode::kNotSupported);
    }
  }
  for (const OnlyValue& only : kOnly) {
    const Json* value = fields.Find(only.name);
    if (value == nullptr) continue;
    const std::string text = value->dump();
    if (text != only.harmless[0] && text != only.harmless[1]) fields.Complain(only.name, only.remedy, ErrorCode::kNotSupported);
  }
  if (fields.Bool("use_beam_search", false)) {
    fields.Complain("use_beam_search", "is not supported: sample several answers with `n` instead", ErrorCode::kNotSupported);
  }
  if (const auto best_of = fields.Int("best_of"); best_of && *best_of != request.n) {
    fields.Complain("best_of", "is not supported unless it equals `n`; leave it out", ErrorCode::kNotSupported);
  }
  if (const Json* format = fields.Object("response_format")) {
    const auto type = format->find("type");
    if (type == format->end() || !type->is_string()) {
      fields.Complain("response_format.type", "is missing; send \"text\" or leave `response_format` out");
    } else if (*type != "text") {
      fields.Complain("response_format", "other than \"text\" is not supported by this version of the server; leave it out",
                      ErrorCode::kNotSupported);
    }
  }
}

void ReadStop(FieldReader& fields, GenerateRequest& request) {
  const Json* stop = fields.Find("stop");
  if (stop == nullptr) return;
  if (stop->is_string()) {
    request.stop.push_back(stop->get<std::string>());
  } else if (stop->is_array()) {
    for (const Json& entry : *stop) {
      if (!entry.is_string()) return fields.WrongType("stop", *stop, "a string or an array of strings");
      request.stop.push_back(entry.get<std::string>());
    }
  } else {
    fields.WrongType("stop", *stop, "a string or an array of strings");
  }
}

void ReadLogitBias(FieldReader& fields, GenerateRequest& request) {
  const Json* bias = fields.Object("logit_bias");
  if (bias == nullptr) return;
  for (const auto& [key, value] : bias->items()) {
    int32_t token = 0;
    if (!absl::SimpleAtoi(key, &token)) {
      return fields.Complain("logit_bias", fmt::format("has the key \"{}\" but keys must be token ids", key.substr(0, 32)));
    }
    if (!value.is_number()) return fields.Complain("logit_bias", fmt::format("of token {} must be a number", token));
    const double number = value.get<double>();
    if (!(number >= -100.0 && number <= 100.0)) {
      return fields.Complain("logit_bias", fmt::format("of token {} is {} but must be in [-100, 100]", token, number));
    }
    request.logit_bias.emplace_back(token, float(number));
  }
}

// The fields that completions and chat share.
void ReadSampling(FieldReader& fields, GenerateRequest& request) {
  request.model = fields.Text("model").value_or("");
  request.temperature = fields.Float("temperature");
  request.top_p = fields.Float("top_p");
  request.min_p = fields.Float("min_p");
  request.top_k = fields.Int("top_k");
  request.presence_penalty = fields.Float("presence_penalty");
  request.frequency_penalty = fields.Float("frequency_penalty");
  request.repetition_penalty = fields.Float("repetition_penalty");
  ReadLogitBias(fields, request);
  request.allowed_token_ids = fields.TokenIds("allowed_token_ids");
  request.seed = fields.Seed("seed");
  request.min_tokens = fields.Int("min_tokens").value_or(0);
  request.n = fields.Int("n").value_or(1);
  request.ignore_eos = fields.Bool("ignore_eos", false);
  ReadStop(fields, request);
  request.include_stop_in_output = fields.Bool("include_stop_str_in_output", false);
  request.stop_token_ids = fields.TokenIds("stop_token_ids");
  request.skip_special_tokens = fields.Bool("skip_special_tokens", true);
  request.add_special_tokens = fields.OptionalBool("add_special_tokens");
  request.truncate_prompt_tokens = fields.Int("truncate_prompt_tokens");
  if (const auto side = fields.Text("truncation_side")) {
    request.truncate_end = *side == "right";
    if (*side != "left" && *side != "right")
      fields.Complain("truncation_side", fmt::format("is \"{}\" but must be \"left\" or \"right\"", side->substr(0, 32)));
  }
  request.priority = fields.Int("priority").value_or(0);
  request.timeout_millis = fields.Int("timeout_ms").value_or(0);
  request.cache_salt = fields.Text("cache_salt").value_or("");
  RefuseUnsupported(fields, request);
}

void ReadStreaming(FieldReader& fields, OpenAiRequest* out) {
  out->stream = fields.Bool("stream", false);
  if (const Json* options = fields.Object("stream_options")) {
    if (!out->stream) return fields.Complain("stream_options", "is only for streams; set `stream` to true or leave it out");
    ApiError error;
    FieldReader inner(*options, "stream_options.", &error);
    out->include_usage = inner.Bool("include_usage", false);
    out->continuous_usage = inner.Bool("continuous_usage_stats", false) && out->include_usage;
    if (!error.ok()) fields.Complain(error.param, error.message.substr(error.message.find("` ") + 2));
  }
}

void ReadPromptLogprobs(FieldReader& fields, OpenAiRequest* out, GenerateRequest& request) {
  const auto asked = fields.Int("prompt_logprobs");
  if (!asked) return;
  if (out->stream) return fields.Complain("prompt_logprobs", "cannot be streamed; set `stream` to false");
  out->prompt_logprobs = true;
  request.prompt_logprobs = asked;
}

// A string, an array of strings, an array of ids, or an array of arrays of ids.
void ReadPrompts(FieldReader& fields, const ServerLimits& limits, const GenerateRequest& base, OpenAiRequest* out,
                 ApiError* error) {
  const Json* prompt = fields.Find("prompt");
  const auto add = [&](std::variant<std::string, std::vector<int32_t>, ChatInput> value) {
    out->generate.push_back(base);
    out->generate.back().prompt = std::move(value);
  };
  if (prompt == nullptr) return fields.Complain("prompt", "is missing; send a string, token ids, or an array of them");
  if (prompt->is_string()) return add(prompt->get<std::string>());
  if (!prompt->is_array()) return fields.WrongType("prompt", *prompt, "a string, token ids, or an array of them");
  if (prompt->empty()) return fields.Complain("prompt", "is an empty array; send at least one prompt");
  if (prompt->front().is_number()) {
    std::vector<int32_t> ids;
    if (ReadTokenIds(*prompt, "prompt", &ids, error)) add(std::move(ids));
    return;
  }
  if (prompt->size() > limits.prompts) {
    return fields.Complain(
        "prompt", fmt::format("holds {} prompts but the limit is {}; send several requests", prompt->size(), limits.prompts));
  }
  if (base.n > 0 && base.n <= 1 << 20 && prompt->size() * size_t(base.n) > limits.choices) {
    return fields.Complain("prompt", fmt::format("times `n` makes {} choices but the limit is {}; send several requests",
                                                 prompt->size() * size_t(base.n), limits.choices));
  }
  for (size_t i = 0; i < prompt->size(); ++i) {
    const Json& entry = (*prompt)[i];
    const std::string where = fmt::format("prompt[{}]", i);
    if (entry.is_string()) {
      add(entry.get<std::string>());
    } else if (entry.is_array()) {
      std::vector<int32_t> ids;
      if (!ReadTokenIds(entry, where, &ids, error)) return;
      add(std::move(ids));
    } else {
      return fields.WrongType(where, entry, "a string or an array of token ids");
    }
  }
}

// Empty: the content is good.
std::string CheckContent(const Json& content, const std::string& where, bool optional, ApiError* error) {
  const auto fail = [&](std::string param, std::string what, ErrorCode code = ErrorCode::kInvalidRequest) {
    *error = {.code = code, .message = fmt::format("`{}` {}", param, what), .param = param};
    return param;
  };
  if (content.is_string() || (content.is_null() && optional)) return {};
  if (!content.is_array()) return fail(where, "must be a string or an array of text parts");
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const std::string place = fmt::format("{}[{}]", where, i);
    if (part.is_string()) continue;
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string())
      return fail(place, "must be an object with a `type`");
    const std::string type = part["type"].get<std::string>();
    if (type != "text" && type != "input_text" && type != "output_text") {
      return fail(
          place, fmt::format("is of type \"{}\" but this model takes text only; send parts of type \"text\"", type.substr(0, 32)),
          ErrorCode::kNotSupported);
    }
    if (!part.contains("text") || !part["text"].is_string()) return fail(place + ".text", "is missing; send a string");
  }
  return {};
}

ApiError CheckMessage(const Json& message, size_t index) {
  ApiError error;
  const std::string place = fmt::format("messages[{}]", index);
  const auto fail = [&](const std::string& param, std::string what) {
    error = {.code = ErrorCode::kInvalidRequest, .message = fmt::format("`{}` {}", param, what), .param = param};
    return error;
  };
  if (!message.is_object()) return fail(place, "must be an object with `role` and `content`");
  const auto role = message.find("role");
  if (role == message.end() || !role->is_string())
    return fail(place + ".role", "is missing; send system, user, assistant or tool");
  constexpr std::array<std::string_view, 6> kRoles = {"developer", "system", "user", "assistant", "tool", "function"};
  if (std::find(kRoles.begin(), kRoles.end(), role->get_ref<const std::string&>()) == kRoles.end()) {
    return fail(place + ".role", fmt::format("is \"{}\" but must be one of developer, system, user, assistant, tool, function",
                                             role->get<std::string>().substr(0, 32)));
  }
  const auto content = message.find("content");
  const bool calls = message.contains("tool_calls") || message.contains("function_call");
  const bool optional = *role == "assistant";
  if (content == message.end()) {
    if (optional && calls) return {};
    return fail(place + ".content", "is missing; send a string");
  }
  (void)CheckContent(*content, place + ".content", optional, &error);
  return error;
}

void CheckTools(FieldReader& fields, ChatInput* out) {
  const Json* tools = fields.Array("tools");
  const Json* choice = fields.Find("tool_choice");
  if (tools == nullptr) {
    if (choice != nullptr && *choice != "none") fields.Complain("tool_choice", "is set but there are no `tools`; leave it out");
    return;
  }
  if (tools->empty()) return fields.Complain("tools", "is an empty array; leave it out");
  if (choice == nullptr || *choice != "none") {
    return fields.Complain(
        "tools",
        "are not called by this version of the server; leave them out, or set `tool_choice` to \"none\" to only show "
        "them to the model",
        ErrorCode::kNotSupported);
  }
  out->tools = *tools;
}

}  // namespace

ApiError ParseChatInput(FieldReader& fields, const ServerLimits& limits, ApiError* error, ChatInput* out) {
  const Json* messages = fields.Find("messages");
  if (messages == nullptr) {
    fields.Complain("messages", "is missing; send an array of {\"role\", \"content\"}");
    return *error;
  }
  if (!messages->is_array()) {
    fields.WrongType("messages", *messages, "an array of {\"role\", \"content\"}");
    return *error;
  }
  if (messages->empty()) fields.Complain("messages", "is empty; send at least one message");
  if (messages->size() > limits.messages) {
    fields.Complain("messages", fmt::format("holds {} messages but the limit is {}; leave out the oldest", messages->size(),
                                            limits.messages));
  }
  for (size_t i = 0; i < messages->size() && error->ok(); ++i) *error = CheckMessage((*messages)[i], i);
  out->add_generation_prompt = fields.Bool("add_generation_prompt", true);
  out->continue_final_message = fields.Bool("continue_final_message", false);
  if (out->continue_final_message && out->add_generation_prompt) {
    if (fields.Find("add_generation_prompt") != nullptr) {
      fields.Complain("continue_final_message", "and `add_generation_prompt` cannot both be true; set one of them to false");
    }
    out->add_generation_prompt = false;
  }
  if (const Json* kwargs = fields.Object("chat_template_kwargs")) out->chat_template_kwargs = *kwargs;
  // As a variable of the template, which is where models that know it look for it.
  if (const auto effort = fields.Text("reasoning_effort")) {
    if (out->chat_template_kwargs.is_null()) out->chat_template_kwargs = Json::object();
    out->chat_template_kwargs.emplace("reasoning_effort", *effort);
  }
  if (const Json* documents = fields.Array("documents")) out->documents = *documents;
  out->chat_template = fields.Text("chat_template").value_or("");
  if (error->ok()) out->messages = *messages;
  out->now = std::time(nullptr);
  return *error;
}

ApiError ParseCompletionRequest(const Json& body, const ServerLimits& limits, OpenAiRequest* out) {
  ApiError error;
  if (!body.is_object()) return {.code = ErrorCode::kInvalidRequest, .message = "The body must be a JSON object."};
  FieldReader fields(body, "", &error);
  GenerateRequest base;
  ReadSampling(fields, base);
  ReadStreaming(fields, out);
  base.max_tokens = fields.Int("max_tokens");
  if (const auto alias = fields.Int("n_predict"); alias && !base.max_tokens) base.max_tokens = alias;
  base.default_max_tokens = 16;
  out->echo = fields.Bool("echo", false);
  out->return_token_ids = fields.Bool("return_token_ids", false);
  out->tokens_as_ids = fields.Bool("return_tokens_as_token_ids", false);
  ReadPromptLogprobs(fields, out, base);
  if (const auto logprobs = fields.Int("logprobs")) {
    out->logprobs = true;
    base.logprobs = logprobs;
    if (out->echo && !base.prompt_logprobs) base.prompt_logprobs = logprobs;
  }
  ReadPrompts(fields, limits, base, out, &error);
  out->unknown = fields.Unknown();
  return error;
}

ApiError ParseChatRequest(const Json& body, const ServerLimits& limits, int64_t max_logprobs, OpenAiRequest* out) {
  ApiError error;
  if (!body.is_object()) return {.code = ErrorCode::kInvalidRequest, .message = "The body must be a JSON object."};
  out->chat = true;
  FieldReader fields(body, "", &error);
  GenerateRequest request;
  ReadSampling(fields, request);
  ReadStreaming(fields, out);
  request.max_tokens = fields.Int("max_tokens");
  if (const auto newer = fields.Int("max_completion_tokens")) {
    request.max_tokens = newer;
    out->max_tokens_field = "max_completion_tokens";
  }
  if (fields.Bool("echo", false))
    fields.Complain("echo", "is not supported for chats; use /v1/completions", ErrorCode::kNotSupported);
  out->return_token_ids = fields.Bool("return_token_ids", false);
  out->tokens_as_ids = fields.Bool("return_tokens_as_token_ids", false);
  ReadPromptLogprobs(fields, out, request);
  out->logprobs = fields.Bool("logprobs", false);
  const auto top = fields.Int("top_logprobs");
  if (out->logprobs) request.logprobs = top && *top == -1 ? max_logprobs : top.value_or(0);
  if (top && *top != 0 && !out->logprobs) fields.Complain("top_logprobs", "needs `logprobs` to be true");
  ChatInput input;
  CheckTools(fields, &input);
  (void)ParseChatInput(fields, limits, &error, &input);
  request.prompt = std::move(input);
  out->generate.push_back(std::move(request));
  out->unknown = fields.Unknown();
  return error;
}

}  // namespace kvasir
