// A conversation with one hub about one repository: requests with the token, along redirects, tried again while that may help,
// and refusals put into words that say what to do. Not for several threads: each download has its own. Used by server/hub.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "server/hub_cache.h"
#include "server/hub_http.h"
#include "server/hub_settings.h"

namespace kvasir {

// Whether the same request may do better later: cut, timed out, busy.
bool MayTryAgain(const Status& status);
bool MayTryAgain(int http_status);
// A whole number without sign, or nothing.
std::optional<uint64_t> ParseCount(std::string_view text);
// What a server says, for a message: short and harmless to a terminal.
std::string Quoted(std::string_view text);
// What an answer of 429 or 503 asks to wait, by Retry-After (seconds or a date) or RateLimit; 0 = nothing.
int64_t RetryAfterSeconds(const FetchReply& reply);

class HubSession {
 public:
  static constexpr int kTries = 5;  // of a request, or of a download without a single byte of progress

  // All outlive the session. `keep_going` and `remark` as in PullEvents; both set.
  HubSession(const HubSettings& settings, const RepoName& name, std::function<bool()> keep_going,
             std::function<void(const std::string&)> remark);

  // `path` begins with a slash; the endpoint's own path comes before it.
  FetchRequest Request(std::string verb, const std::string& path) const;

  // One request along its redirects. The hub's own answers on the way may carry the metadata of a file that lies elsewhere
  // (X-Linked-*, X-Repo-Commit): they are kept in the reply, and a HEAD ends where they are complete. The token goes to the
  // endpoint's origin only. Any status but a redirect's is ok().
  StatusOr<FetchReply> Follow(FetchRequest request, const BodySink& sink);
  // The same, gathered, tried again, and an error for statuses from 400 on. `thing` is what the messages are about.
  StatusOr<FetchReply> Ask(const FetchRequest& request, const std::string& thing);
  // What an answer that is not wanted means, and what to do. Those that may pass are Unavailable.
  Status Refusal(const FetchReply& reply, const std::string& thing) const;
  // Waits before try number `tries` + 1 of what failed because of `why`; asked_seconds is the server's wish, 0 = none.
  Status Pause(int tries, int64_t asked_seconds, const std::string& why);

 private:
  const HubSettings& settings_;
  const RepoName& name_;
  const std::function<bool()> keep_going_;
  const std::function<void(const std::string&)> remark_;
  HttpFetcher fetcher_;
};

}  // namespace kvasir
