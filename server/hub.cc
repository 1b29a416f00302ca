#include "server/hub.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>
#include <thread>

#include "models/fs.h"
#include "models/strict_json.h"
#include "server/hub_blob.h"
#include "server/hub_http.h"

namespace kvasir {
namespace {

constexpr size_t kMaxListedFiles = 100'000;
constexpr size_t kMaxListingBytes = 32 << 20;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 42;          // 4 TiB
constexpr uint64_t kMaxUnannouncedBytes = uint64_t{64} << 20;  // of a file whose size nobody told
constexpr int kMaxRedirects = 8;
constexpr int kTries = 5;  // without a single byte of progress
constexpr int kLongestPauseSeconds = 300;

struct RemoteFile {
  std::string name, etag;
  std::optional<uint64_t> size;
};

// What a server says, for a message: short and harmless to a terminal.
std::string Shown(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, 200)) shown += c >= 0x20 && c < 0x7f ? c : '?';
  return shown;
}

std::optional<uint64_t> ParseNumber(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

bool TryAgain(int status) {
  return status == 408 || status == 429 || status == 500 || status == 502 || status == 503 || status == 504;
}

bool TryAgain(const Status& status) {
  return status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kDeadlineExceeded;
}

// Seconds or a date; 0 when there is none.
int64_t RetryAfterSeconds(const FetchReply& reply) {
  const std::string text(reply.Header("retry-after"));
  if (const auto seconds = ParseNumber(text)) return int64_t(std::min<uint64_t>(*seconds, 1'000'000));
  std::tm date{};
  if (text.empty() || strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &date) == nullptr) return 0;
  return std::max<int64_t>(0, int64_t(timegm(&date)) - int64_t(std::time(nullptr)));
}

class Puller {
 public:
  Puller(const HubSettings& settings, const RepoName& name, PullWhat what, const PullEvents& events)
      : settings_(settings),
        name_(name),
        what_(what),
        events_(events),
        folder_(settings.cache_dir, name.repo),
        client_({.ca_file = settings.ca_file,
                 .proxies = settings.proxies,
                 .connect_timeout = std::chrono::seconds(settings.timeout_seconds),
                 .idle_timeout = std::chrono::seconds(settings.timeout_seconds),
                 .keep_going = events.keep_going}) {}

  StatusOr<Pulled> Run() {
    const HubUrl& endpoint = settings_.endpoint;
    if (!settings_.token.empty() && !endpoint.tls && endpoint.host != "localhost" && !endpoint.host.starts_with("127."))
      Remark(fmt::format("HF_ENDPOINT is {}: the token of {} goes there unencrypted", endpoint.Text(), settings_.token_place));
    KVASIR_ASSIGN_OR_RETURN(const std::vector<std::string> listed, List());
    auto chosen = ChooseFiles(listed, what_);
    if (!chosen.ok()) return AtPlace(name_.Text(), chosen.status());
    KVASIR_RETURN_IF_ERROR(Fetch(*chosen));
    if (std::find(chosen->begin(), chosen->end(), kWeightsIndex) != chosen->end()) {
      KVASIR_ASSIGN_OR_RETURN(const std::vector<std::string> shards, Shards(listed));
      KVASIR_RETURN_IF_ERROR(Fetch(shards));
    }
    KVASIR_RETURN_IF_ERROR(WriteRef(folder_, name_.revision, pulled_.commit));
    pulled_.path = folder_.Snapshot(pulled_.commit);
    return pulled_;
  }

 private:
  HubUrl Url(const std::string& path) const {
    HubUrl url = settings_.endpoint;
    url.target += path;
    return url;
  }

  void Remark(const std::string& line) const {
    if (events_.remark) events_.remark(line);
  }

  Status Pause(int try_number, int64_t asked_seconds, const std::string& why) {
    if (asked_seconds > kLongestPauseSeconds)
      return Unavailable("{}; the hub asks to wait {} s: try again then", why, asked_seconds);
    const int64_t millis =
        std::max<int64_t>(asked_seconds * 1000, int64_t{settings_.retry_millis} << std::min(try_number - 1, 5));
    Remark(fmt::format("{}; trying again in {:.1f} s", why, double(millis) / 1000));
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(millis);
    while (std::chrono::steady_clock::now() < until) {
      if (events_.keep_going && !events_.keep_going()) return Cancelled("stopped");
      std::this_thread::sleep_for(
          std::min<std::chrono::nanoseconds>(std::chrono::milliseconds(100), until - std::chrono::steady_clock::now()));
    }
    return OkStatus();
  }

  // One request along its redirects. The hub's own answers on the way may carry the metadata of a file that lies elsewhere
  // (X-Linked-*, X-Repo-Commit): they are kept in the reply, and a HEAD ends where they are complete.
  StatusOr<FetchReply> Follow(FetchRequest request, const BodySink& sink) {
    std::map<std::string, std::string, std::less<>> linked;
    for (int step = 0; step <= kMaxRedirects; ++step) {
      std::erase_if(request.headers, [](const auto& header) { return header.first == "Authorization"; });
      if (!settings_.token.empty() && request.url.Origin() == settings_.endpoint.Origin())
        request.headers.emplace_back("Authorization", "Bearer " + settings_.token);
      KVASIR_ASSIGN_OR_RETURN(FetchReply reply, client_.Send(request, sink));
      for (const char* name : {"x-linked-etag", "x-linked-size", "x-repo-commit"}) {
        if (const auto value = reply.Header(name); !value.empty()) linked.emplace(name, std::string(value));
      }
      const bool redirect =
          reply.status == 301 || reply.status == 302 || reply.status == 303 || reply.status == 307 || reply.status == 308;
      const bool complete = request.verb == "HEAD" && linked.contains("x-linked-etag") && linked.contains("x-linked-size");
      if (!redirect || complete) {
        reply.headers.merge(linked);
        return reply;
      }
      KVASIR_ASSIGN_OR_RETURN(request.url, FollowLocation(request.url, reply.Header("location")));
    }
    return InvalidArgument("{}: more than {} redirects", request.url.Origin(), kMaxRedirects);
  }

  // A request without a body worth resuming, tried again while that may help. Other answers than 200 and redirects are errors.
  StatusOr<FetchReply> Ask(const FetchRequest& request, const std::string& thing) {
    for (int tries = 1;; ++tries) {
      auto reply = Follow(request, {});
      if (reply.ok() && !TryAgain(reply->status)) {
        if (reply->status < 400) return reply;
        return Refusal(*reply, thing);
      }
      if (!reply.ok() && !TryAgain(reply.status())) return AtPlace(thing, reply.status());
      const Status problem = reply.ok() ? Refusal(*reply, thing) : AtPlace(thing, reply.status());
      if (tries >= kTries) return problem;
      KVASIR_RETURN_IF_ERROR(Pause(tries, reply.ok() ? RetryAfterSeconds(*reply) : 0, Message(problem)));
    }
  }

  std::vector<std::pair<std::string, std::string>> Headers() const {
    return {{"User-Agent", "kvasir/" KVASIR_VERSION}, {"Accept-Encoding", "identity"}};
  }

  // What an answer of 4xx or 5xx means, and what to do.
  Status Refusal(const FetchReply& reply, const std::string& thing) const {
    const std::string_view code = reply.Header("x-error-code");
    const std::string page = settings_.endpoint.Text() + "/" + name_.repo;
    const std::string said = reply.Header("x-error-message").empty() ? "" : " (" + Shown(reply.Header("x-error-message")) + ")";
    if (code == "GatedRepo" || reply.status == 403) {
      if (settings_.token.empty())
        return InvalidArgument("{}: access is gated{}: accept the licence at {} and set HF_TOKEN to a token of that account",
                               thing, said, page);
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
    const std::string text =
        fmt::format("{}: {} answers with status {}{}", thing, settings_.endpoint.Origin(), reply.status, said);
    if (TryAgain(reply.status)) return Unavailable("{}", text);
    return InvalidArgument("{}", text);
  }

  StatusOr<std::vector<std::string>> List() {
    FetchRequest request{.url = Url(fmt::format("/api/models/{}/revision/{}", name_.repo, QuoteUrl(name_.revision))),
                         .headers = Headers(),
                         .body_limit = kMaxListingBytes};
    KVASIR_ASSIGN_OR_RETURN(const FetchReply reply, Ask(request, name_.Text()));
    const auto not_a_hub = [&](std::string_view why) {
      return InvalidArgument("{}: {} does not answer as a hub does: {}; check HF_ENDPOINT", name_.Text(),
                             settings_.endpoint.Text(), why);
    };
    const auto parsed = ParseStrictJson<nlohmann::json>(reply.body, {.depth = 64});
    if (!parsed.ok()) return not_a_hub(Message(parsed.status()));
    const auto sha = parsed->is_object() ? parsed->find("sha") : parsed->end();
    if (sha == parsed->end() || !sha->is_string() || !IsCommit(sha->get_ref<const std::string&>()))
      return not_a_hub("no commit in 'sha'");
    pulled_.commit = sha->get<std::string>();
    if (IsCommit(name_.revision) && pulled_.commit != name_.revision)
      return not_a_hub("it gives another commit than the one asked for");
    const auto siblings = parsed->find("siblings");
    if (siblings == parsed->end() || !siblings->is_array()) return not_a_hub("no list of files in 'siblings'");
    if (siblings->size() > kMaxListedFiles)
      return InvalidArgument("{}: lists {} files, more than {}", name_.Text(), siblings->size(), kMaxListedFiles);
    std::vector<std::string> names;
    for (const auto& sibling : *siblings) {
      const auto name = sibling.is_object() ? sibling.find("rfilename") : sibling.end();
      if (name == sibling.end() || !name->is_string()) return not_a_hub("a file without 'rfilename'");
      if (const Status status = CheckFileName(name->get_ref<const std::string&>()); !status.ok())
        return AtPlace(name_.Text(), status);
      names.push_back(name->get<std::string>());
    }
    return names;
  }

  StatusOr<std::vector<std::string>> Shards(const std::vector<std::string>& listed) {
    KVASIR_ASSIGN_OR_RETURN(const std::string text,
                            ReadText(RealFs(), folder_.Snapshot(pulled_.commit) + "/" + kWeightsIndex, kMaxUnannouncedBytes));
    auto shards = ShardsOfIndex(text);
    if (!shards.ok()) return AtPlace(name_.Text(), shards.status());
    for (const std::string& shard : *shards)
      if (std::find(listed.begin(), listed.end(), shard) == listed.end())
        return NotFound("{}: {} names {}, which the repository does not have", name_.Text(), kWeightsIndex, shard);
    return shards;
  }

  HubUrl FileUrl(const std::string& name) const {
    return Url(fmt::format("/{}/resolve/{}/{}", name_.repo, pulled_.commit, QuoteUrl(name, "/")));
  }

  StatusOr<RemoteFile> Inspect(const std::string& name) {
    const std::string thing = name_.repo + "/" + name;
    KVASIR_ASSIGN_OR_RETURN(const FetchReply reply, Ask({.verb = "HEAD", .url = FileUrl(name), .headers = Headers()}, thing));
    if (const auto commit = reply.Header("x-repo-commit"); !commit.empty() && commit != pulled_.commit)
      return InvalidArgument("{}: the hub gives commit {} for {}; check HF_ENDPOINT", thing, Shown(commit), pulled_.commit);
    const std::string_view linked = reply.Header("x-linked-etag");
    auto etag = NormalizeEtag(linked.empty() ? reply.Header("etag") : linked);
    if (!etag.ok()) return AtPlace(thing, etag.status());
    RemoteFile file{.name = name, .etag = std::move(etag).value(), .size = ParseNumber(reply.Header("x-linked-size"))};
    if (!file.size) file.size = ParseNumber(reply.Header("content-length"));
    if (file.size && *file.size > kMaxFileBytes)
      return InvalidArgument("{}: is said to have {} bytes; refused", thing, *file.size);
    return file;
  }

  bool InSnapshot(const std::string& name, uint64_t* size) const {
    struct stat info;
    if (stat((folder_.Snapshot(pulled_.commit) + "/" + name).c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return false;
    *size = uint64_t(info.st_size);
    return true;
  }

  // Brings the files into the snapshot; those that are there already are left alone, because a commit never changes.
  Status Fetch(const std::vector<std::string>& names) {
    std::vector<RemoteFile> wanted;
    uint64_t missing = 0;
    for (const std::string& name : names) {
      ++pulled_.files;
      if (uint64_t size = 0; InSnapshot(name, &size)) {
        pulled_.bytes += size;
        progress_.done += size;
        progress_.total += size;
        Tell(name, size, size, true, false);
        continue;
      }
      KVASIR_ASSIGN_OR_RETURN(RemoteFile file, Inspect(name));
      missing += file.size.value_or(0);
      wanted.push_back(std::move(file));
    }
    progress_.total += missing;
    KVASIR_RETURN_IF_ERROR(MakeFolders(folder_.path + "/blobs"));
    KVASIR_RETURN_IF_ERROR(CheckSpace(wanted, missing));
    for (const RemoteFile& file : wanted) {
      if (const Status status = Place(file); !status.ok()) return AtPlace(name_.repo + "/" + file.name, status);
      KVASIR_RETURN_IF_ERROR(LinkIntoSnapshot(folder_, pulled_.commit, file.name, file.etag));
    }
    return OkStatus();
  }

  Status CheckSpace(const std::vector<RemoteFile>& wanted, uint64_t missing) const {
    for (const RemoteFile& file : wanted) {
      for (const char* suffix : {"", ".incomplete"}) {
        struct stat info;
        if (stat((folder_.Blob(file.etag) + suffix).c_str(), &info) == 0)
          missing -= std::min({missing, uint64_t(info.st_size), file.size.value_or(0)});
      }
    }
    struct statvfs disk;
    if (statvfs(folder_.path.c_str(), &disk) != 0) return OkStatus();
    const uint64_t free = uint64_t(disk.f_bavail) * disk.f_frsize;
    if (missing <= free) return OkStatus();
    return ResourceExhausted("{}: {} more bytes are to come but {} has {} free; free space, or set HF_HUB_CACHE to another disk",
                             name_.Text(), missing, folder_.path, free);
  }

  void Tell(const std::string& name, uint64_t done, uint64_t size, bool finished, bool fetched) {
    progress_.file = name;
    progress_.file_done = done;
    progress_.file_size = size;
    progress_.finished = finished;
    progress_.fetched = fetched;
    if (events_.progress) events_.progress(progress_);
  }

  // Until blobs/ETAG is there: found, made by another process meanwhile, or downloaded.
  Status Place(const RemoteFile& file) {
    bool told = false;
    KVASIR_ASSIGN_OR_RETURN(const BlobLock lock, BlobLock::Take(folder_, file.etag, [&] {
                              if (!std::exchange(told, true))
                                Remark(fmt::format("waiting: another process is downloading {}", file.name));
                              return !events_.keep_going || events_.keep_going();
                            }));
    const uint64_t before = progress_.done;
    struct stat info;
    if (stat(folder_.Blob(file.etag).c_str(), &info) == 0 && (!file.size || uint64_t(info.st_size) == *file.size)) {
      progress_.done = before + uint64_t(info.st_size);
      pulled_.bytes += uint64_t(info.st_size);
      Tell(file.name, uint64_t(info.st_size), uint64_t(info.st_size), true, false);
      return OkStatus();
    }
    KVASIR_ASSIGN_OR_RETURN(BlobFile blob, BlobFile::Open(folder_.Blob(file.etag), file.etag, file.size));
    if (!blob.has_checksum())
      Remark(fmt::format("{}: the hub gives no checksum for it ({}); only its size is checked", file.name, file.etag));
    KVASIR_RETURN_IF_ERROR(Download(file, blob, before));
    progress_.done = before + blob.received();
    pulled_.bytes += blob.received();
    Tell(file.name, blob.received(), blob.received(), true, true);
    return OkStatus();
  }

  Status Download(const RemoteFile& file, BlobFile& blob, uint64_t before) {
    for (int tries = 1;;) {
      const uint64_t had = blob.received();
      int64_t retry_after = 0;
      Status status = file.size && had == *file.size ? OkStatus() : FetchBytes(file, blob, before, &retry_after);
      if (status.ok()) {
        const bool resumed = blob.resumed();
        status = blob.Commit();
        // Bytes of an earlier try may have been bad; fresh ones get one chance.
        if (status.code() != StatusCode::kDataLoss || !resumed) return status;
        Remark(fmt::format("{}: {}", file.name, "what an earlier try left is damaged; beginning anew"));
        KVASIR_ASSIGN_OR_RETURN(BlobFile fresh, BlobFile::Open(folder_.Blob(file.etag), file.etag, file.size));
        return Download(file, fresh, before);
      }
      if (!TryAgain(status)) return status;
      tries = blob.received() > had ? 1 : tries + 1;
      if (tries > kTries) return status;
      KVASIR_RETURN_IF_ERROR(Pause(tries, retry_after, fmt::format("{}: {}", file.name, Message(status))));
    }
  }

  // One GET from where the blob stands to its end.
  Status FetchBytes(const RemoteFile& file, BlobFile& blob, uint64_t before, int64_t* retry_after) {
    FetchRequest request{.url = FileUrl(file.name), .headers = Headers()};
    const uint64_t offset = blob.received();
    if (offset > 0) request.headers.emplace_back("Range", fmt::format("bytes={}-", offset));
    bool began = false;
    const auto reply = Follow(request, [&](const FetchReply& head, std::string_view piece) -> Status {
      if (!std::exchange(began, true)) KVASIR_RETURN_IF_ERROR(CheckBegin(head, offset, blob));
      if (!file.size && blob.received() + piece.size() > kMaxUnannouncedBytes)
        return InvalidArgument("more than {} bytes come for a file without a size; refused", kMaxUnannouncedBytes);
      KVASIR_RETURN_IF_ERROR(blob.Append(piece));
      pulled_.fetched_bytes += piece.size();
      progress_.done = before + blob.received();
      Tell(file.name, blob.received(), file.size.value_or(0), false, true);
      return OkStatus();
    });
    if (!reply.ok()) return reply.status();
    if (reply->status == 416) {  // what we have is not a beginning of it
      KVASIR_RETURN_IF_ERROR(blob.Restart());
      return Unavailable("the hub has nothing after byte {}", offset);
    }
    *retry_after = RetryAfterSeconds(*reply);
    if (reply->status != 200 && reply->status != 206) return Refusal(*reply, file.name);
    if (file.size && blob.received() != *file.size)
      return Unavailable("the answer ended after {} of {} bytes", blob.received(), *file.size);
    return OkStatus();
  }

  // The first bytes of an answer: do they belong where we are?
  static Status CheckBegin(const FetchReply& head, uint64_t offset, BlobFile& blob) {
    if (const auto coding = head.Header("content-encoding"); !coding.empty() && coding != "identity")
      return InvalidArgument("the bytes come encoded ({}) though that was not asked for", Shown(coding));
    if (head.status == 200) return offset > 0 ? blob.Restart() : OkStatus();  // the server does not do ranges
    const std::string_view range = head.Header("content-range");
    if (range.starts_with(fmt::format("bytes {}-", offset))) return OkStatus();
    KVASIR_RETURN_IF_ERROR(blob.Restart());
    return Unavailable("bytes from {} on were asked for but '{}' came", offset, Shown(range));
  }

  const HubSettings& settings_;
  const RepoName& name_;
  const PullWhat what_;
  const PullEvents& events_;
  const RepoFolder folder_;
  HttpFetcher client_;
  PullProgress progress_;
  Pulled pulled_;
};

}  // namespace

StatusOr<Pulled> PullSnapshot(const HubSettings& settings, const RepoName& name, PullWhat what, const PullEvents& events) {
  if (settings.offline)
    return Unavailable("{}: {} is set, so nothing is downloaded: unset it to pull", name.Text(), settings.offline_variable);
  return Puller(settings, name, what, events).Run();
}

}  // namespace kvasir
