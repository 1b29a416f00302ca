#include "server/hub_session.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <ctime>
#include <thread>

namespace kvasir {
namespace {

constexpr int kMaxRedirects = 8;
constexpr int kLongestPauseSeconds = 300;

}  // namespace

bool MayTryAgain(const Status& status) {
  return status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kDeadlineExceeded;
}

bool MayTryAgain(int http_status) {
  return http_status == 408 || http_status == 429 || http_status == 500 || (http_status >= 502 && http_status <= 504);
}

std::optional<uint64_t> ParseCount(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::string Quoted(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, 200)) shown += c >= 0x20 && c < 0x7f ? c : '?';
  return shown;
}

int64_t RetryAfterSeconds(const FetchReply& reply) {
  constexpr uint64_t kMost = 1'000'000;
  const std::string text(reply.Header("retry-after"));
  if (const auto seconds = ParseCount(text)) return int64_t(std::min(*seconds, kMost));
  std::tm date{};
  if (!text.empty() && strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &date) != nullptr)
    return std::clamp<int64_t>(int64_t(timegm(&date)) - int64_t(std::time(nullptr)), 0, int64_t(kMost));
  // The hub's own: RateLimit: "api";r=0;t=55 = nothing remains, for 55 s more.
  const std::string_view limit = reply.Header("ratelimit");
  const size_t time = limit.find(";t=");
  if (reply.status != 429 || limit.find(";r=0") == std::string_view::npos || time == std::string_view::npos) return 0;
  const std::string_view number = limit.substr(time + 3);
  return int64_t(std::min(ParseCount(number.substr(0, number.find(';'))).value_or(0), kMost));
}

HubSession::HubSession(const HubSettings& settings, const RepoName& name, std::function<bool()> keep_going,
                       std::function<void(const std::string&)> remark)
    : settings_(settings),
      name_(name),
      keep_going_(std::move(keep_going)),
      remark_(std::move(remark)),
      fetcher_({.ca_file = settings.ca_file,
                .proxies = settings.proxies,
                .connect_timeout = std::chrono::seconds(settings.timeout_seconds),
                .idle_timeout = std::chrono::seconds(settings.timeout_seconds),
                .keep_going = keep_going_}) {}

FetchRequest HubSession::Request(std::string verb, const std::string& path) const {
  FetchRequest request{.verb = std::move(verb),
                       .url = settings_.endpoint,
                       .headers = {{"User-Agent", "kvasir/" KVASIR_VERSION}, {"Accept-Encoding", "identity"}}};
  request.url.target += path;
  return request;
}

StatusOr<FetchReply> HubSession::Follow(FetchRequest request, const BodySink& sink) {
  std::map<std::string, std::string, std::less<>> linked;
  for (int step = 0; step <= kMaxRedirects; ++step) {
    std::erase_if(request.headers, [](const auto& header) { return header.first == "Authorization"; });
    if (!settings_.token.empty() && request.url.Origin() == settings_.endpoint.Origin())
      request.headers.emplace_back("Authorization", "Bearer " + settings_.token);
    KVASIR_ASSIGN_OR_RETURN(FetchReply reply, fetcher_.Send(request, sink));
    for (const char* name : {"x-linked-etag", "x-linked-size", "x-repo-commit"}) {
      if (const auto value = reply.Header(name); !value.empty()) linked.emplace(name, std::string(value));
    }
    const int status = reply.status;
    const bool redirect = (status >= 301 && status <= 303) || status == 307 || status == 308;
    const bool complete = request.verb == "HEAD" && linked.contains("x-linked-etag") && linked.contains("x-linked-size");
    if (!redirect || complete) {
      reply.headers.merge(linked);
      return reply;
    }
    KVASIR_ASSIGN_OR_RETURN(request.url, FollowLocation(request.url, reply.Header("location")));
  }
  return InvalidArgument("{}: more than {} redirects", request.url.Origin(), kMaxRedirects);
}

StatusOr<FetchReply> HubSession::Ask(const FetchRequest& request, const std::string& thing) {
  for (int tries = 1;; ++tries) {
    auto reply = Follow(request, {});
    if (reply.ok() && reply->status < 400) return reply;
    const Status problem = reply.ok() ? Refusal(*reply, thing) : AtPlace(thing, reply.status());
    if (!MayTryAgain(problem) || tries >= kTries) return problem;
    KVASIR_RETURN_IF_ERROR(Pause(tries, reply.ok() ? RetryAfterSeconds(*reply) : 0, Message(problem)));
  }
}

Status HubSession::Refusal(const FetchReply& reply, const std::string& thing) const {
  const std::string_view code = reply.Header("x-error-code");
  const std::string page = settings_.endpoint.Text() + "/" + name_.repo;
  const std::string said = reply.Header("x-error-message").empty() ? "" : " (" + Quoted(reply.Header("x-error-message")) + ")";
  if (code == "GatedRepo" || reply.status == 403) {
    if (settings_.token.empty())
      return InvalidArgument("{}: access is gated{}: accept the licence at {} and set HF_TOKEN to a token of that account", thing,
                             said, page);
    return InvalidArgument(
        "{}: the token of {} has no access{}: accept the licence at {} with its account, and see that the token may read gated "
        "models",
        thing, settings_.token_place, said, page);
  }
  if (code == "RevisionNotFound")
    return NotFound("{}: has no branch, tag or commit '{}': see {}/tree/main", name_.repo, name_.revision, page);
  if (code == "EntryNotFound") return NotFound("{}: the hub lists the file but does not have it; pull again", thing);
  // The hub answers 401 also for repositories that do not exist, so as not to tell which private ones do.
  if (reply.status == 401 || reply.status == 404 || code == "RepoNotFound") {
    const std::string remedy = settings_.token.empty()
                                   ? "if it is private or gated, set HF_TOKEN"
                                   : fmt::format("or the token of {} is not valid or may not read it", settings_.token_place);
    return NotFound("{}: {} has no such model{}: check the name ({}); {}", thing, settings_.endpoint.Origin(), said, page,
                    remedy);
  }
  const std::string text = fmt::format("{}: {} answers with status {}{}", thing, settings_.endpoint.Origin(), reply.status, said);
  return MayTryAgain(reply.status) ? Unavailable("{}", text) : InvalidArgument("{}", text);
}

Status HubSession::Pause(int tries, int64_t asked_seconds, const std::string& why) {
  if (asked_seconds > kLongestPauseSeconds)
    return ResourceExhausted("{}; the hub asks to wait {} s: try again then", why, asked_seconds);
  const int64_t millis = std::max<int64_t>(asked_seconds * 1000, int64_t{settings_.retry_millis} << std::min(tries - 1, 5));
  remark_(fmt::format("{}; trying again in {:.1f} s", why, double(millis) / 1000));
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(millis);
  for (auto now = std::chrono::steady_clock::now(); now < until; now = std::chrono::steady_clock::now()) {
    if (!keep_going_()) return Cancelled("stopped");
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(std::chrono::milliseconds(100), until - now));
  }
  return OkStatus();
}

}  // namespace kvasir
