// A blocking HTTP/1.1 client over TCP and TLS, for downloading from a hub. It does one request at a time, keeps its connection
// while the origin stays the same, goes through a proxy where told, verifies certificates, and trusts nothing that comes back:
// every wait has a limit, headers and gathered bodies have one too. Redirects, retries and tokens are the caller's
// (server/hub.h). Used by the hub client only; the one file that includes Beast for it is hub_http.cc.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "server/hub_url.h"

namespace kvasir {

struct FetchOptions {
  std::string ca_file;  // PEM; empty = the system's store
  ProxySettings proxies;
  std::chrono::milliseconds connect_timeout{10'000};  // also for the TLS handshake
  std::chrono::milliseconds idle_timeout{10'000};     // between two pieces of an answer
  std::function<bool()> keep_going;                   // asked several times a second; false ends the request with Cancelled
};

struct FetchRequest {
  std::string verb = "GET";  // GET or HEAD
  HubUrl url;
  std::vector<std::pair<std::string, std::string>> headers;  // without Host; values must hold no control characters
  size_t body_limit = 64 << 10;                              // of an answer that is gathered
};

struct FetchReply {
  int status = 0;
  std::map<std::string, std::string, std::less<>> headers;  // names in lower case
  std::string body;                                         // empty where a sink took it

  // "" where there is none.
  std::string_view Header(std::string_view name) const;
};

// Takes pieces of the body of an answer with status 200 or 206; what it returns ends the request.
using BodySink = std::function<Status(const FetchReply& head, std::string_view piece)>;

class HttpFetcher {
 public:
  explicit HttpFetcher(FetchOptions options);
  ~HttpFetcher();
  HttpFetcher(const HttpFetcher&) = delete;
  HttpFetcher& operator=(const HttpFetcher&) = delete;

  // Any answer that arrived whole is ok(), whatever its status. Errors: Unavailable and DeadlineExceeded where another try may do
  // better (refused, cut, too slow); NotFound when the host has no address; InvalidArgument for certificates that cannot be
  // verified, proxies that are not supported and answers that are not HTTP; Cancelled; and what the sink said.
  StatusOr<FetchReply> Send(const FetchRequest& request, const BodySink& sink = {});

 private:
  class Wire;
  std::unique_ptr<Wire> wire_;
};

}  // namespace kvasir
