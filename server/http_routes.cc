#include "server/http_routes.h"

#include <algorithm>

#include "server/json_text.h"
#include "server/openai_request.h"
#include "server/openai_response.h"
#include "spdlog/spdlog.h"

namespace kvasir {
namespace {

enum class Action : uint8_t {
  kPage,
  kHealth,
  kVersion,
  kMetrics,
  kModels,
  kModel,
  kCompletions,
  kChat,
  kTokenize,
  kDetokenize,
  kRender,
  kRenderText,
  kRenderCompletion
};

struct Route {
  const char* path;  // ends with '/' where an id follows
  bool post;         // else GET and HEAD
  bool open;         // no key needed
  Action action;
  const char* label;  // in the metrics
};

constexpr Route kRoutes[] = {
    {"/", false, true, Action::kPage, "/"},
    {"/health", false, true, Action::kHealth, "/health"},
    {"/v1/health", false, true, Action::kHealth, "/health"},
    {"/ping", false, true, Action::kHealth, "/health"},
    {"/version", false, false, Action::kVersion, "/version"},
    {"/metrics", false, false, Action::kMetrics, "/metrics"},
    {"/v1/models", false, false, Action::kModels, "/v1/models"},
    {"/models", false, false, Action::kModels, "/v1/models"},
    {"/v1/models/", false, false, Action::kModel, "/v1/models"},
    {"/v1/completions", true, false, Action::kCompletions, "/v1/completions"},
    {"/v1/chat/completions", true, false, Action::kChat, "/v1/chat/completions"},
    {"/chat/completions", true, false, Action::kChat, "/v1/chat/completions"},
    {"/tokenize", true, false, Action::kTokenize, "/tokenize"},
    {"/detokenize", true, false, Action::kDetokenize, "/detokenize"},
    {"/v1/chat/completions/render", true, false, Action::kRender, "render"},
    {"/v1/completions/render", true, false, Action::kRenderCompletion, "render"},
    {"/apply-template", true, false, Action::kRenderText, "render"},
};

constexpr const char* kPage = "Kvasir " KVASIR_VERSION
                              " - an LLM inference server with OpenAI's API.\n\n"
                              "  curl $THIS/v1/chat/completions -H 'Content-Type: application/json' \\\n"
                              "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}], \"stream\": true}'\n\n"
                              "POST /v1/chat/completions  /v1/completions  /tokenize  /detokenize  /apply-template\n"
                              "POST /v1/chat/completions/render  /v1/completions/render\n"
                              "GET  /v1/models  /health  /metrics  /version\n\n"
                              "With an API key, add -H 'Authorization: Bearer KEY'.\n";

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') return (c | 0x20) - 'a' + 10;
  return -1;
}

int FindRoute(std::string_view path) {
  for (size_t i = 0; i < std::size(kRoutes); ++i) {
    const std::string_view known = kRoutes[i].path;
    if (path == known && kRoutes[i].action != Action::kModel) return int(i);
    if (kRoutes[i].action == Action::kModel && path.size() > known.size() && path.substr(0, known.size()) == known) return int(i);
  }
  return -1;
}

std::string ModelJson(const Service& service, const std::string& name) {
  std::string out = "{\"id\":";
  AppendJsonString(out, name);
  out += fmt::format(",\"object\":\"model\",\"created\":{},\"owned_by\":\"kvasir\",\"root\":", service.model().created);
  AppendJsonString(out, service.model().names.front());
  out += fmt::format(",\"parent\":null,\"max_model_len\":{},\"permission\":[]}}", service.max_model_len());
  return out;
}

HttpResponse GetAnswer(Action action, const std::string& path, Service* service) {
  if (action == Action::kPage) return {.content_type = "text/plain; charset=utf-8", .body = kPage};
  if (action == Action::kVersion) return {.body = "{\"version\":\"" KVASIR_VERSION "\"}"};
  if (service == nullptr) {
    return ErrorResponse({.code = ErrorCode::kLoading,
                          .message = "The model is still being loaded; retry in a moment.",
                          .retry_after_seconds = 2});
  }
  switch (action) {
    case Action::kHealth: {
      const ApiError error = service->CheckReady();
      return error.ok() ? HttpResponse{.body = "{\"status\":\"ok\"}"} : ErrorResponse(error);
    }
    case Action::kMetrics:
      return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = service->MetricsText()};
    case Action::kModels: {
      std::string out = "{\"object\":\"list\",\"data\":[";
      for (size_t i = 0; i < service->model().names.size(); ++i) {
        if (i > 0) out.push_back(',');
        out += ModelJson(*service, service->model().names[i]);
      }
      return {.body = out + "]}"};
    }
    default: {
      const std::string name = path.substr(std::string_view("/v1/models/").size());
      if (const ApiError error = service->CheckModel(name); !error.ok()) return ErrorResponse(error);
      return {.body = ModelJson(*service, name)};
    }
  }
}

void AppendIds(std::string& out, std::span<const int32_t> ids) {
  out.push_back('[');
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendJsonInt(out, ids[i]);
  }
  out.push_back(']');
}

// vLLM's body has `prompt` or `messages`, llama.cpp's has `content`; each is answered its own way.
HttpResponse Tokenize(const Json& body, Service* service) {
  ApiError error;
  FieldReader fields(body, "", &error);
  if (const ApiError model = service->CheckModel(fields.Text("model").value_or("")); !model.ok()) return ErrorResponse(model);
  auto add_special = fields.OptionalBool("add_special_tokens");
  const bool pieces = fields.Bool("return_token_strs", false);
  std::variant<std::string, ChatInput> input;
  const bool llama = fields.Find("content") != nullptr;
  if (llama) {
    input = fields.Text("content").value_or("");
    add_special = fields.Bool("add_special", false);
  } else if (fields.Find("messages") != nullptr) {
    ChatInput chat;
    if (const Json* tools = fields.Array("tools")) chat.tools = *tools;
    (void)ParseChatInput(fields, service->config().limits, &error, &chat);
    input = std::move(chat);
  } else if (const auto prompt = fields.Text("prompt")) {
    input = *prompt;
  } else {
    fields.Complain("prompt", "is missing; send `prompt` (a string) or `messages`");
  }
  if (!error.ok()) return ErrorResponse(error);
  const auto ids = service->Tokenize(input, add_special);
  if (!ids.ok()) return ErrorResponse(ToApiError(ids.status()));
  std::string out;
  if (llama) {
    out = "{\"tokens\":";
    AppendIds(out, *ids);
    return {.body = out + "}"};
  }
  out = fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":", ids->size(), service->max_model_len());
  AppendIds(out, *ids);
  out += ",\"token_strs\":";
  if (pieces) {
    out.push_back('[');
    for (size_t i = 0; i < ids->size(); ++i) {
      if (i > 0) out.push_back(',');
      AppendJsonString(out, service->tokenizer().TokenText((*ids)[i]));
    }
    out.push_back(']');
  } else {
    out += "null";
  }
  return {.body = out + "}"};
}

HttpResponse Detokenize(const Json& body, Service* service) {
  ApiError error;
  FieldReader fields(body, "", &error);
  if (fields.Find("tokens") == nullptr) fields.Complain("tokens", "is missing; send an array of token ids");
  const std::vector<int32_t> ids = fields.TokenIds("tokens");
  if (!error.ok()) return ErrorResponse(error);
  const auto text = service->Detokenize(ids, /*skip_special_tokens=*/false);
  if (!text.ok()) return ErrorResponse(ToApiError(text.status()));
  // vLLM calls it prompt, llama.cpp content: both are there.
  std::string out = "{\"prompt\":";
  AppendJsonString(out, *text);
  out += ",\"content\":";
  AppendJsonString(out, *text);
  return {.body = out + "}"};
}

// What a request would be computed from, as vLLM's rendering routes show it, and the text beside the ids.
std::string RenderedJson(const Service& service, std::string_view kind, std::string_view text, std::span<const int32_t> ids) {
  static std::atomic<uint64_t> next{0};
  std::string out = fmt::format("{{\"request_id\":\"{}-render-{}\",\"model\":", kind, next.fetch_add(1));
  AppendJsonString(out, service.model().names.front());
  out += ",\"prompt\":";
  AppendJsonString(out, text);
  for (const char* name : {"token_ids", "prompt_token_ids"}) {
    out += fmt::format(",\"{}\":", name);
    AppendIds(out, ids);
  }
  return out + ",\"features\":null}";
}

// /v1/completions/render: one object for each prompt.
HttpResponse RenderCompletion(const Json& body, Service* service) {
  OpenAiRequest request;
  ApiError error = ParseCompletionRequest(body, service->config().limits, &request);
  std::string out = "[";
  for (const GenerateRequest& generate : request.generate) {
    if (!error.ok()) break;
    if (error = service->CheckModel(generate.model); !error.ok()) break;
    if (out.size() > 1) out.push_back(',');
    StatusOr<std::vector<int32_t>> ids = std::vector<int32_t>();
    StatusOr<std::string> text = std::string();
    if (const auto* given = std::get_if<std::vector<int32_t>>(&generate.prompt)) {
      ids = *given;
      text = service->Detokenize(*given, /*skip_special_tokens=*/false);
    } else {
      text = std::get<std::string>(generate.prompt);
      ids = service->Tokenize(*text, generate.add_special_tokens);
    }
    if (!ids.ok()) return ErrorResponse(ToApiError(ids.status()));
    if (!text.ok()) return ErrorResponse(ToApiError(text.status()));
    out += RenderedJson(*service, "cmpl", *text, *ids);
  }
  if (!error.ok()) return ErrorResponse(error);
  return {.body = out + "]"};
}

HttpResponse Render(const Json& body, Service* service, bool with_ids) {
  ApiError error;
  FieldReader fields(body, "", &error);
  if (const ApiError model = service->CheckModel(fields.Text("model").value_or("")); !model.ok()) return ErrorResponse(model);
  ChatInput chat;
  if (const Json* tools = fields.Array("tools")) chat.tools = *tools;
  (void)ParseChatInput(fields, service->config().limits, &error, &chat);
  if (!error.ok()) return ErrorResponse(error);
  const auto text = service->Render(chat);
  if (!text.ok()) return ErrorResponse(ToApiError(text.status()));
  if (with_ids) {
    const auto ids = service->Tokenize(*text, fields.OptionalBool("add_special_tokens").value_or(false));
    if (!error.ok()) return ErrorResponse(error);
    if (!ids.ok()) return ErrorResponse(ToApiError(ids.status()));
    return {.body = RenderedJson(*service, "chatcmpl", *text, *ids)};
  }
  std::string out = "{\"prompt\":";
  AppendJsonString(out, *text);
  return {.body = out + "}"};
}

}  // namespace

HttpResponse ErrorResponse(const ApiError& error) {
  const ErrorEntry& entry = Describe(error.code);
  HttpResponse response{.status = entry.http, .body = ErrorBody(error), .close = entry.closes};
  if (entry.retry_after) response.headers.emplace_back("Retry-After", std::to_string(error.retry_after_seconds));
  if (!entry.should_retry || error.after_tokens) response.headers.emplace_back("x-should-retry", "false");
  if (error.code == ErrorCode::kInvalidApiKey) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

std::optional<std::string> CanonicalPath(std::string_view target) {
  if (const size_t query = target.find_first_of("?#"); query != std::string_view::npos) target = target.substr(0, query);
  if (target.empty() || target[0] != '/') return std::nullopt;
  std::string path;
  for (size_t i = 0; i < target.size(); ++i) {
    char c = target[i];
    if (c == '%') {
      const int high = i + 2 < target.size() ? HexDigit(target[i + 1]) : -1;
      const int low = i + 2 < target.size() ? HexDigit(target[i + 2]) : -1;
      if (high < 0 || low < 0) return std::nullopt;
      c = char(high * 16 + low);
      i += 2;
      if (c == '%') return std::nullopt;  // encoded twice
    }
    if (static_cast<unsigned char>(c) < 0x21 || static_cast<unsigned char>(c) > 0x7e || c == '\\' || c == ';')
      return std::nullopt;
    path.push_back(c);
  }
  for (size_t begin = 1; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view segment = std::string_view(path).substr(begin, end - begin);
    if (segment.empty() || segment == "." || segment == "..") return std::nullopt;
    begin = end + 1;
  }
  return path;
}

HttpRoutes::HttpRoutes(HttpRoutesConfig config) : config_(std::move(config)), keys_(config_.api_keys) {}

HttpHeaders HttpRoutes::CorsHeaders(const HttpRequest& request) const {
  if (request.origin.empty()) return {};
  for (const std::string& allowed : config_.allowed_origins) {
    if (allowed == "*") return {{"Access-Control-Allow-Origin", "*"}};
    if (allowed == request.origin) return {{"Access-Control-Allow-Origin", allowed}, {"Vary", "Origin"}};
  }
  return {};
}

std::optional<HttpResponse> HttpRoutes::CheckHead(HttpRequest& request) const {
  if (request.method == "OPTIONS") {
    HttpResponse response{.status = 204, .content_type = ""};
    if (!CorsHeaders(request).empty()) {
      response.headers = {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
                          {"Access-Control-Allow-Headers", request.requested_headers.empty() ? "*" : request.requested_headers},
                          {"Access-Control-Max-Age", "600"}};
    }
    response.headers.emplace_back("Allow", "GET, HEAD, POST, OPTIONS");
    return response;
  }
  const auto path = CanonicalPath(request.target);
  if (!path) {
    return ErrorResponse(
        {.code = ErrorCode::kInvalidRequest,
         .message = "The path of this request is malformed: write it without empty, dot or doubly encoded segments."});
  }
  request.path = *path;
  request.route = FindRoute(*path);
  const bool open = request.route >= 0 && kRoutes[request.route].open;
  if (!open && !keys_.empty()) {
    const auto tenant = keys_.TenantOfHeaders(request.authorization, request.api_key);
    if (!tenant) {
      return ErrorResponse({.code = ErrorCode::kInvalidApiKey,
                            .message = "The API key is missing or wrong; send it as `Authorization: Bearer KEY`."});
    }
    request.tenant = *tenant;
  }
  if (request.route < 0) {
    return ErrorResponse(
        {.code = ErrorCode::kRouteNotFound, .message = "There is nothing at this path; GET / lists what there is."});
  }
  const Route& route = kRoutes[request.route];
  const bool allowed = route.post ? request.method == "POST" : request.method == "GET" || request.method == "HEAD";
  if (allowed) return std::nullopt;
  HttpResponse response = ErrorResponse({.code = ErrorCode::kMethodNotAllowed,
                                         .message = fmt::format("{} takes {} only.", route.path, route.post ? "POST" : "GET")});
  response.headers.emplace_back("Allow", route.post ? "POST, OPTIONS" : "GET, HEAD, OPTIONS");
  return response;
}

void HttpRoutes::Count(const HttpRequest& request, int status, double seconds) const {
  Service* service = this->service();
  if (service == nullptr) return;
  const std::string_view label = request.route >= 0 ? kRoutes[request.route].label : "unmatched";
  service->metrics().CountHttp(label, request.method, status, seconds);
  if (config_.log_requests) spdlog::info("{} {} {} in {:.3f} s", request.method, label, status, seconds);  // never its text
}

void HttpRoutes::Handle(HttpRequest request, const std::shared_ptr<HttpExchange>& exchange) {
  Service* service = this->service();
  const Route& route = kRoutes[request.route];
  if (!route.post) return exchange->Respond(GetAnswer(route.action, request.path, service));
  if (service == nullptr) {
    return exchange->Respond(ErrorResponse({.code = ErrorCode::kLoading,
                                            .message = "The model is still being loaded; retry in a moment.",
                                            .retry_after_seconds = 2}));
  }
  HandlePost(std::make_shared<HttpRequest>(std::move(request)), exchange, service);
}

void HttpRoutes::LogUnknown(const std::vector<std::string>& fields) {
  std::lock_guard lock(mutex_);
  for (const std::string& field : fields) {
    if (logged_fields_.size() >= 100) return;
    if (std::find(logged_fields_.begin(), logged_fields_.end(), field) != logged_fields_.end()) continue;
    logged_fields_.push_back(field);
    std::string safe = field.substr(0, 64);
    for (char& c : safe) c = static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    spdlog::info("requests send the field \"{}\", which is not known here and is ignored (told once)", safe);
  }
}

void HttpRoutes::HandlePost(std::shared_ptr<HttpRequest> request, const std::shared_ptr<HttpExchange>& exchange,
                            Service* service) {
  const Action action = kRoutes[request->route].action;
  const bool generates = action == Action::kCompletions || action == Action::kChat;
  // What this makes of the body runs here, or on a worker when it may take long; what it returns runs on the I/O thread.
  auto parse = [this, request, exchange, service, action, generates]() -> std::function<void()> {
    const auto answer = [&exchange](HttpResponse response) {
      return [exchange, response = std::move(response)]() mutable { exchange->Respond(std::move(response)); };
    };
    Json body;
    if (ApiError error = ParseJson(request->body, config_.limits, &body); !error.ok()) return answer(ErrorResponse(error));
    if (!body.is_object()) {
      return answer(ErrorResponse({.code = ErrorCode::kInvalidRequest, .message = "The body must be a JSON object."}));
    }
    if (action == Action::kTokenize) return answer(Tokenize(body, service));
    if (action == Action::kDetokenize) return answer(Detokenize(body, service));
    if (action == Action::kRenderCompletion) return answer(RenderCompletion(body, service));
    if (!generates) return answer(Render(body, service, action == Action::kRender));
    auto parsed = std::make_shared<OpenAiRequest>();
    const ApiError error =
        action == Action::kChat
            ? ParseChatRequest(body, config_.limits, service->config().engine->config().limits.max_logprobs, parsed.get())
            : ParseCompletionRequest(body, config_.limits, parsed.get());
    if (!error.ok()) return answer(ErrorResponse(error));
    if (!parsed->unknown.empty()) LogUnknown(parsed->unknown);
    for (GenerateRequest& generate : parsed->generate) generate.tenant = request->tenant;
    return [exchange, service, parsed] { std::make_shared<OpenAiResponse>(service, exchange, std::move(*parsed))->Start(); };
  };
  if (const ApiError error = service->CheckReady(); !error.ok()) return exchange->Respond(ErrorResponse(error));
  const bool quick = request->body.size() <= (generates ? size_t{64} << 10 : config_.limits.inline_prompt_bytes) &&
                     action != Action::kRender && action != Action::kRenderText && action != Action::kRenderCompletion;
  if (quick) return parse()();
  const auto loop = exchange->loop();
  const bool taken = service->workers(request->body.size()).Post([parse = std::move(parse), loop] { loop->Post(parse()); });
  if (!taken) {
    exchange->Respond(ErrorResponse({.code = ErrorCode::kServerBusy,
                                     .message = "Too many long requests are being read; retry in a moment.",
                                     .retry_after_seconds = 2}));
  }
}

}  // namespace kvasir
