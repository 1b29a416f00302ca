#include "server/status.h"

#include <algorithm>
#include <iterator>

#include "models/unicode.h"
#include "server/json_text.h"

namespace kvasir {
namespace {

constexpr const char* kInvalidType = "invalid_request_error";

constexpr ErrorEntry kTable[] = {
    // code, error.code, error.type, HTTP, gRPC, should retry, Retry-After, closes
    {ErrorCode::kNone, "", "", 200, StatusCode::kOk, true, false, false},
    {ErrorCode::kInvalidJson, "invalid_json", kInvalidType, 400, StatusCode::kInvalidArgument, false, false, false},
    {ErrorCode::kInvalidRequest, "invalid_request_error", kInvalidType, 400, StatusCode::kInvalidArgument, false, false, false},
    {ErrorCode::kContextLengthExceeded, "context_length_exceeded", kInvalidType, 400, StatusCode::kInvalidArgument, false, false,
     false},
    {ErrorCode::kRequestTooLargeForPool, "request_too_large_for_pool", kInvalidType, 400, StatusCode::kInvalidArgument, false,
     false, false},
    {ErrorCode::kTemplateBudgetExceeded, "template_budget_exceeded", kInvalidType, 400, StatusCode::kInvalidArgument, false,
     false, false},
    {ErrorCode::kInvalidApiKey, "invalid_api_key", "authentication_error", 401, StatusCode::kUnauthenticated, false, false,
     false},
    {ErrorCode::kModelNotFound, "model_not_found", "not_found_error", 404, StatusCode::kNotFound, false, false, false},
    {ErrorCode::kRouteNotFound, "not_found", "not_found_error", 404, StatusCode::kUnimplemented, false, false, false},
    {ErrorCode::kMethodNotAllowed, "method_not_allowed", kInvalidType, 405, StatusCode::kUnimplemented, false, false, false},
    {ErrorCode::kRequestTimeout, "request_timeout", "timeout_error", 408, StatusCode::kDeadlineExceeded, true, false, false},
    {ErrorCode::kPayloadTooLarge, "payload_too_large", "request_too_large", 413, StatusCode::kResourceExhausted, false, false,
     true},
    {ErrorCode::kUriTooLong, "uri_too_long", "request_too_large", 414, StatusCode::kResourceExhausted, false, false, true},
    {ErrorCode::kHeadersTooLarge, "headers_too_large", "request_too_large", 431, StatusCode::kResourceExhausted, false, false,
     true},
    {ErrorCode::kQueueFull, "queue_full", "rate_limit_exceeded", 429, StatusCode::kResourceExhausted, true, true, false},
    {ErrorCode::kServerBusy, "server_busy", "service_unavailable", 503, StatusCode::kUnavailable, true, true, false},
    {ErrorCode::kLoading, "loading", "service_unavailable", 503, StatusCode::kUnavailable, true, true, false},
    {ErrorCode::kDraining, "draining", "service_unavailable", 503, StatusCode::kUnavailable, true, true, true},
    {ErrorCode::kEngineFailed, "engine_failed", "service_unavailable", 503, StatusCode::kUnavailable, true, true, false},
    {ErrorCode::kNotSupported, "not_supported", kInvalidType, 400, StatusCode::kInvalidArgument, false, false, false},
    {ErrorCode::kInternal, "internal_error", "internal_error", 500, StatusCode::kInternal, false, false, false},
    {ErrorCode::kCancelled, "cancelled", "cancelled", 499, StatusCode::kCancelled, false, false, true},
};

// The field that a message begins with, in backquotes.
std::string LeadingField(std::string_view message) {
  if (message.empty() || message[0] != '`') return {};
  const size_t end = message.find('`', 1);
  return end == std::string_view::npos ? std::string() : std::string(message.substr(1, end - 1));
}

}  // namespace

const ErrorEntry& Describe(ErrorCode code) {
  KVASIR_CHECK(size_t(code) < std::size(kTable) && kTable[size_t(code)].code == code, "the error table is out of order");
  return kTable[size_t(code)];
}

ApiError ToApiError(const Status& status) {
  ApiError error;
  error.message = Message(status);
  error.param = LeadingField(error.message);
  switch (status.code()) {
    case StatusCode::kOk:
      break;
    case StatusCode::kInvalidArgument:
      error.code = error.message.find("template budget exceeded") != std::string::npos ? ErrorCode::kTemplateBudgetExceeded
                                                                                       : ErrorCode::kInvalidRequest;
      break;
    case StatusCode::kOutOfRange:
      error.code = error.message.find("KV pool") != std::string::npos ? ErrorCode::kRequestTooLargeForPool
                                                                      : ErrorCode::kContextLengthExceeded;
      break;
    case StatusCode::kNotFound:
      error.code = ErrorCode::kModelNotFound;
      break;
    case StatusCode::kUnauthenticated:
      error.code = ErrorCode::kInvalidApiKey;
      break;
    case StatusCode::kResourceExhausted:
      error.code = ErrorCode::kQueueFull;
      break;
    case StatusCode::kUnavailable:
      error.code = ErrorCode::kServerBusy;
      break;
    case StatusCode::kUnimplemented:
      error.code = ErrorCode::kNotSupported;
      break;
    case StatusCode::kDeadlineExceeded:
      error.code = ErrorCode::kRequestTimeout;
      break;
    case StatusCode::kCancelled:
      error.code = ErrorCode::kCancelled;
      break;
    default:
      // What went wrong inside is for the log, not for the client.
      error = {.code = ErrorCode::kInternal,
               .message = "The server failed on this request; the same request would fail again. Please report it."};
  }
  return error;
}

Status ToStatus(const ApiError& error) {
  return Status(Describe(error.code).grpc, error.message);
}

void RenameParam(ApiError& error, std::string_view from, std::string_view to) {
  if (error.param == from) error.param = to;
  const std::string quoted = fmt::format("`{}`", from);
  for (size_t at = error.message.find(quoted); at != std::string::npos; at = error.message.find(quoted, at + to.size())) {
    error.message.replace(at + 1, from.size(), to);
  }
}

std::string ErrorBody(const ApiError& error) {
  // Messages quote what the client sent, cut to a length, which may be in the middle of a character.
  const auto append = [](std::string& out, std::string_view text) {
    std::string valid;
    AppendLossyUtf8(text, /*at_end=*/true, &valid);
    AppendJsonString(out, valid);
  };
  const ErrorEntry& entry = Describe(error.code);
  std::string out = "{\"error\":{\"message\":";
  append(out, error.message);
  out += ",\"type\":";
  AppendJsonString(out, entry.type);
  out += ",\"param\":";
  if (error.param.empty()) {
    out += "null";
  } else {
    append(out, error.param);
  }
  out += ",\"code\":";
  AppendJsonString(out, entry.name);
  out += "}}";
  return out;
}

}  // namespace kvasir
