// HttpRoutes: which path does what, who may ask it, and the short answers (models, health, tokenize ...). Knows HTTP only as
// HttpRequest and HttpExchange. One path parser serves routing and authorization, so that they cannot disagree.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_keys.h"
#include "server/http_exchange.h"
#include "server/service.h"

namespace kvasir {

struct HttpRoutesConfig {
  std::vector<std::string> api_keys;  // empty = open to everyone
  std::vector<std::string> allowed_origins = {"*"};
  bool log_requests = false;
  ServerLimits limits;
};

// The path of a request target: without query, percent-decoded once. Nothing for what no client means: escapes of control
// characters, empty or dot segments, backslashes, a target that does not begin with '/'.
std::optional<std::string> CanonicalPath(std::string_view target);

class HttpRoutes {
 public:
  explicit HttpRoutes(HttpRoutesConfig config);

  // Before it is set, everything but the page answers 503 "loading". Outlives the server's threads.
  void SetService(Service* service) { service_.store(service); }

  // After the headers, before the body: fills path, tenant and route, or answers (400, 401, 404, 405, CORS preflight).
  std::optional<HttpResponse> CheckHead(HttpRequest& request) const;
  // The body is there. On the exchange's I/O thread.
  void Handle(HttpRequest request, const std::shared_ptr<HttpExchange>& exchange);

  // Access-Control-Allow-Origin and what goes with it; empty when the origin is not allowed or absent.
  HttpHeaders CorsHeaders(const HttpRequest& request) const;
  void Count(const HttpRequest& request, int status, double seconds) const;
  Service* service() const { return service_.load(); }
  const ServerLimits& limits() const { return config_.limits; }
  bool log_requests() const { return config_.log_requests; }

 private:
  void HandlePost(std::shared_ptr<HttpRequest> request, const std::shared_ptr<HttpExchange>& exchange, Service* service);
  void LogUnknown(const std::vector<std::string>& fields);

  const HttpRoutesConfig config_;
  const ApiKeys keys_;
  std::atomic<Service*> service_{nullptr};
  std::mutex mutex_;
  std::vector<std::string> logged_fields_ ABSL_GUARDED_BY(mutex_);  // told once; bounded
};

}  // namespace kvasir
