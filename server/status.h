// The error catalogue: the one table from which HTTP status, OpenAI error body, gRPC code and retry headers are made, for both
// fronts.
//
// Service and the fronts report ApiError; nothing else reaches a client. Messages say what is wrong and what to do; they never
// hold paths, addresses or text of other requests.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace kvasir {

enum class ErrorCode : uint8_t {
  kNone,  // not an error
  kInvalidJson,
  kInvalidRequest,
  kContextLengthExceeded,
  kRequestTooLargeForPool,
  kTemplateBudgetExceeded,
  kInvalidApiKey,
  kModelNotFound,
  kRouteNotFound,
  kMethodNotAllowed,
  kRequestTimeout,
  kPayloadTooLarge,
  kUriTooLong,
  kHeadersTooLarge,
  kQueueFull,
  kServerBusy,
  kLoading,
  kDraining,
  kEngineFailed,
  kNotSupported,
  kInternal,
  kCancelled,
};

struct ErrorEntry {
  ErrorCode code;
  const char* name;   // error.code
  const char* type;   // error.type
  int http;           // status
  StatusCode grpc;    // same numbers as gRPC's
  bool should_retry;  // false: x-should-retry: false
  bool retry_after;   // Retry-After is sent
  bool closes;        // Connection: close
};

const ErrorEntry& Describe(ErrorCode code);

struct ApiError {
  ErrorCode code = ErrorCode::kNone;
  std::string message;
  std::string param;            // dotted field, empty = null
  int retry_after_seconds = 1;  // where the table says so
  bool after_tokens = false;    // tokens of this request were already delivered

  bool ok() const { return code == ErrorCode::kNone; }
  int http_status() const { return Describe(code).http; }
};

// An InvalidArgument or OutOfRange that begins with a field in backquotes gives that field as param.
ApiError ToApiError(const Status& status);
// For gRPC: the table's code and the message.
Status ToStatus(const ApiError& error);
// Renames a field where a front calls it otherwise ("prompt" -> "messages"): in param and in the message's backquotes.
void RenameParam(ApiError& error, std::string_view from, std::string_view to);
// {"error":{"message":...,"type":...,"param":...,"code":...}}
std::string ErrorBody(const ApiError& error);

}  // namespace kvasir
