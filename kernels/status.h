// Status and checks: how every room reports errors.
//
// absl::Status/StatusOr cross module boundaries; our code throws nothing. A message names the thing, the value,
// the limit and the remedy. KVASIR_CHECK is for our own bugs only and is never reachable from input; it stays on in
// release builds. Used by every room; this is the lowest header of the project.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvasir {

using absl::OkStatus;
using absl::Status;
using absl::StatusCode;
using absl::StatusOr;

// Each builds a Status from an fmt format string, e.g. InvalidArgument("n is {} but the limit is {}", n, limit).
#define KVASIR_STATUS_MAKER(Name, code)                                    \
  template <typename... Args>                                              \
  Status Name(fmt::format_string<Args...> format, Args&&... args) {        \
    return Status(code, fmt::format(format, std::forward<Args>(args)...)); \
  }
KVASIR_STATUS_MAKER(InvalidArgument, StatusCode::kInvalidArgument)      // the input is wrong: HTTP 400, exit 2
KVASIR_STATUS_MAKER(NotFound, StatusCode::kNotFound)                    // HTTP 404
KVASIR_STATUS_MAKER(OutOfRange, StatusCode::kOutOfRange)                // longer than the context: HTTP 400
KVASIR_STATUS_MAKER(ResourceExhausted, StatusCode::kResourceExhausted)  // queue or memory full: HTTP 429
KVASIR_STATUS_MAKER(Unavailable, StatusCode::kUnavailable)              // loading, draining, engine dead: HTTP 503
KVASIR_STATUS_MAKER(Unimplemented, StatusCode::kUnimplemented)          // known but not built: HTTP 501
KVASIR_STATUS_MAKER(Unauthenticated, StatusCode::kUnauthenticated)      // HTTP 401
KVASIR_STATUS_MAKER(DeadlineExceeded, StatusCode::kDeadlineExceeded)    // HTTP 408
KVASIR_STATUS_MAKER(Cancelled, StatusCode::kCancelled)                  // the client left
KVASIR_STATUS_MAKER(Internal, StatusCode::kInternal)                    // our bug: HTTP 500
KVASIR_STATUS_MAKER(DataLoss, StatusCode::kDataLoss)                    // a file is corrupt or truncated
#undef KVASIR_STATUS_MAKER

// The message as a std::string (absl::string_view is not std::string_view in Debian's build).
inline std::string Message(const Status& status) {
  return std::string(status.message());
}

// The same error with `place` put before the message: "config.json: ...".
inline Status AtPlace(std::string_view place, const Status& status) {
  if (status.ok()) return status;
  return Status(status.code(), fmt::format("{}: {}", place, Message(status)));
}

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& detail);

}  // namespace kvasir

#define KVASIR_CHECK(condition, ...)                                                                       \
  do {                                                                                                     \
    if (!(condition)) [[unlikely]]                                                                         \
      ::kvasir::CheckFailed(__FILE__, __LINE__, #condition, ::kvasir::internal::CheckDetail(__VA_ARGS__)); \
  } while (0)

#ifdef NDEBUG
#define KVASIR_DCHECK(condition, ...) \
  do {                                \
  } while (0)
#else
#define KVASIR_DCHECK(condition, ...) KVASIR_CHECK(condition, ##__VA_ARGS__)
#endif

#define KVASIR_RETURN_IF_ERROR(expression)                                                           \
  do {                                                                                               \
    if (::kvasir::Status kvasir_status_ = (expression); !kvasir_status_.ok()) return kvasir_status_; \
  } while (0)

#define KVASIR_CONCAT_INNER(a, b) a##b
#define KVASIR_CONCAT(a, b) KVASIR_CONCAT_INNER(a, b)
// KVASIR_ASSIGN_OR_RETURN(auto x, F());  (write types with commas behind an alias)
#define KVASIR_ASSIGN_OR_RETURN(lhs, expression) \
  KVASIR_ASSIGN_OR_RETURN_IMPL(KVASIR_CONCAT(kvasir_or_, __LINE__), lhs, expression)
#define KVASIR_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expression) \
  auto tmp = (expression);                                 \
  if (!tmp.ok()) return tmp.status();                      \
  lhs = std::move(tmp).value()

namespace kvasir::internal {
inline std::string CheckDetail() {
  return {};
}
template <typename... Args>
std::string CheckDetail(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}
}  // namespace kvasir::internal
