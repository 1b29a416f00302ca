#include "server/hub.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "models/fs.h"
#include "models/strict_json.h"
#include "server/hub_blob.h"
#include "server/hub_session.h"

namespace kvasir {
namespace {

constexpr size_t kMaxListedFiles = 100'000;
constexpr size_t kMaxListingBytes = 32 << 20;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 42;          // 4 TiB
constexpr uint64_t kMaxUnannouncedBytes = uint64_t{64} << 20;  // of a file whose size nobody told

struct RemoteFile {
  std::string name, etag;
  std::optional<uint64_t> size;
};

// What the downloads of one pull share: what is shown, how far they are, whether to go on. Calls the events one at a time.
class Shared {
 public:
  explicit Shared(const PullEvents& events) : events_(events) {}

  bool KeepGoing() {
    const std::lock_guard lock(mutex_);
    return !failed_ && (!events_.keep_going || events_.keep_going());
  }
  void Remark(const std::string& line) {
    const std::lock_guard lock(mutex_);
    if (events_.remark) events_.remark(line);
  }
  // The others stop; the first failure is the one to tell.
  void Fail(const Status& status) {
    const std::lock_guard lock(mutex_);
    if (!std::exchange(failed_, true)) failure_ = status;
  }
  Status failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  void AddTotal(uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    progress_.total += bytes;
  }
  // `change` more bytes of the file are there than were told before (fewer after a new beginning).
  void Tell(const std::string& name, uint64_t file_done, uint64_t file_size, int64_t change, bool finished, bool fetched) {
    const std::lock_guard lock(mutex_);
    progress_.done = uint64_t(int64_t(progress_.done) + change);
    progress_.file = name;
    progress_.file_done = file_done;
    progress_.file_size = file_size;
    progress_.finished = finished;
    progress_.fetched = fetched;
    if (events_.progress) events_.progress(progress_);
  }

 private:
  const PullEvents& events_;
  mutable std::mutex mutex_;
  PullProgress progress_;
  bool failed_ = false;
  Status failure_ = OkStatus();
};

// One file on its way into the cache, over one session.
class Download {
 public:
  Download(HubSession& session, Shared& shared, const RepoFolder& folder, const RemoteFile& file, std::string path)
      : session_(session), shared_(shared), folder_(folder), file_(file), path_(std::move(path)) {}

  // Until blobs/ETAG is there: found, made by another process meanwhile, or fetched.
  Status Run() {
    bool told = false;
    const auto waiting = [&] {
      if (!std::exchange(told, true)) shared_.Remark(fmt::format("{}: waiting for another download of it", file_.name));
      return shared_.KeepGoing();
    };
    KVASIR_ASSIGN_OR_RETURN(const BlobLock lock, BlobLock::Take(folder_, file_.etag, waiting));
    struct stat info;
    if (stat(folder_.Blob(file_.etag).c_str(), &info) == 0 && (!file_.size || uint64_t(info.st_size) == *file_.size)) {
      Tell(uint64_t(info.st_size), true, false);
      return OkStatus();
    }
    KVASIR_ASSIGN_OR_RETURN(BlobFile blob, BlobFile::Open(folder_.Blob(file_.etag), file_.etag, file_.size));
    if (!blob.has_checksum())
      shared_.Remark(fmt::format("{}: the hub gives no checksum for it ({}); only its size is checked", file_.name, file_.etag));
    KVASIR_RETURN_IF_ERROR(Complete(blob));
    Tell(blob.received(), true, true);
    return OkStatus();
  }

  uint64_t bytes() const { return told_; }
  uint64_t fetched_bytes() const { return fetched_; }

 private:
  void Tell(uint64_t done, bool finished, bool fetched) {
    shared_.Tell(file_.name, done, finished ? done : file_.size.value_or(0), int64_t(done) - int64_t(told_), finished, fetched);
    told_ = done;
  }

  Status Complete(BlobFile& blob) {
    for (int tries = 1;;) {
      const uint64_t had = blob.received();
      int64_t retry_after = 0;
      Status status = file_.size && had == *file_.size ? OkStatus() : FetchBytes(blob, &retry_after);
      if (status.ok()) {
        const bool resumed = blob.resumed();
        status = blob.Commit();
        // Bytes of an earlier try may have been bad; fresh ones get one chance.
        if (status.code() != StatusCode::kDataLoss || !resumed) return status;
        shared_.Remark(fmt::format("{}: what an earlier try left is damaged; beginning anew", file_.name));
        KVASIR_ASSIGN_OR_RETURN(BlobFile fresh, BlobFile::Open(folder_.Blob(file_.etag), file_.etag, file_.size));
        return Complete(fresh);  // not resumed, so this is the last time
      }
      if (!MayTryAgain(status)) return status;
      tries = blob.received() > had ? 1 : tries + 1;
      if (tries > HubSession::kTries) return status;
      KVASIR_RETURN_IF_ERROR(session_.Pause(tries, retry_after, fmt::format("{}: {}", file_.name, Message(status))));
    }
  }

  // One GET from where the blob stands to its end.
  Status FetchBytes(BlobFile& blob, int64_t* retry_after) {
    FetchRequest request = session_.Request("GET", path_);
    const uint64_t offset = blob.received();
    if (offset > 0) request.headers.emplace_back("Range", fmt::format("bytes={}-", offset));
    bool began = false;
    const auto reply = session_.Follow(request, [&](const FetchReply& head, std::string_view piece) -> Status {
      if (!std::exchange(began, true)) KVASIR_RETURN_IF_ERROR(CheckBegin(head, offset, blob));
      if (!file_.size && blob.received() + piece.size() > kMaxUnannouncedBytes)
        return InvalidArgument("more than {} bytes come for a file without a size; refused", kMaxUnannouncedBytes);
      KVASIR_RETURN_IF_ERROR(blob.Append(piece));
      fetched_ += piece.size();
      Tell(blob.received(), false, true);
      return OkStatus();
    });
    if (!reply.ok()) return reply.status();
    if (reply->status == 416) {  // what we have is not a beginning of it
      KVASIR_RETURN_IF_ERROR(blob.Restart());
      return Unavailable("the hub has nothing after byte {}", offset);
    }
    *retry_after = RetryAfterSeconds(*reply);
    if (reply->status != 200 && reply->status != 206) return session_.Refusal(*reply, file_.name);
    if (file_.size && blob.received() != *file_.size)
      return Unavailable("the answer ended after {} of {} bytes", blob.received(), *file_.size);
    return OkStatus();
  }

  // The first bytes of an answer: do they belong where we are?
  static Status CheckBegin(const FetchReply& head, uint64_t offset, BlobFile& blob) {
    if (const auto coding = head.Header("content-encoding"); !coding.empty() && coding != "identity")
      return InvalidArgument("the bytes come encoded ({}) though that was not asked for", Quoted(coding));
    if (head.status == 200) return offset > 0 ? blob.Restart() : OkStatus();  // the server does not do ranges
    const std::string_view range = head.Header("content-range");
    if (range.starts_with(fmt::format("bytes {}-", offset))) return OkStatus();
    KVASIR_RETURN_IF_ERROR(blob.Restart());
    return Unavailable("bytes from {} on were asked for but '{}' came", offset, Quoted(range));
  }

  HubSession& session_;
  Shared& shared_;
  const RepoFolder& folder_;
  const RemoteFile& file_;
  const std::string path_;
  uint64_t told_ = 0, fetched_ = 0;
};

class Puller {
 public:
  Puller(const HubSettings& settings, const RepoName& name, PullWhat what, const PullEvents& events)
      : settings_(settings), name_(name), what_(what), folder_(settings.cache_dir, name.repo), shared_(events) {}

  StatusOr<Pulled> Run() {
    const HubUrl& endpoint = settings_.endpoint;
    if (!settings_.token.empty() && !endpoint.tls && endpoint.host != "localhost" && !endpoint.host.starts_with("127."))
      shared_.Remark(
          fmt::format("HF_ENDPOINT is {}: the token of {} goes there unencrypted", endpoint.Text(), settings_.token_place));
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
  std::unique_ptr<HubSession> NewSession() {
    return std::make_unique<HubSession>(
        settings_, name_, [this] { return shared_.KeepGoing(); }, [this](const std::string& line) { shared_.Remark(line); });
  }

  StatusOr<std::vector<std::string>> List() {
    const auto session = NewSession();
    FetchRequest request =
        session->Request("GET", fmt::format("/api/models/{}/revision/{}", name_.repo, QuoteUrl(name_.revision)));
    request.body_limit = kMaxListingBytes;
    KVASIR_ASSIGN_OR_RETURN(const FetchReply reply, session->Ask(request, name_.Text()));
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

  StatusOr<std::vector<std::string>> Shards(const std::vector<std::string>& listed) const {
    KVASIR_ASSIGN_OR_RETURN(const std::string text,
                            ReadText(RealFs(), folder_.Snapshot(pulled_.commit) + "/" + kWeightsIndex, kMaxUnannouncedBytes));
    auto shards = ShardsOfIndex(text);
    if (!shards.ok()) return AtPlace(name_.Text(), shards.status());
    for (const std::string& shard : *shards)
      if (std::find(listed.begin(), listed.end(), shard) == listed.end())
        return NotFound("{}: {} names {}, which the repository does not have", name_.Text(), kWeightsIndex, shard);
    return shards;
  }

  std::string FilePath(const std::string& name) const {
    return fmt::format("/{}/resolve/{}/{}", name_.repo, pulled_.commit, QuoteUrl(name, "/"));
  }

  StatusOr<RemoteFile> Inspect(HubSession& session, const std::string& name) const {
    const std::string thing = name_.repo + "/" + name;
    KVASIR_ASSIGN_OR_RETURN(const FetchReply reply, session.Ask(session.Request("HEAD", FilePath(name)), thing));
    if (const auto commit = reply.Header("x-repo-commit"); !commit.empty() && commit != pulled_.commit)
      return InvalidArgument("{}: the hub gives commit {} for {}; check HF_ENDPOINT", thing, Quoted(commit), pulled_.commit);
    const std::string_view linked = reply.Header("x-linked-etag");
    auto etag = NormalizeEtag(linked.empty() ? reply.Header("etag") : linked);
    if (!etag.ok()) return AtPlace(thing, etag.status());
    RemoteFile file{.name = name, .etag = std::move(etag).value(), .size = ParseCount(reply.Header("x-linked-size"))};
    if (!file.size && linked.empty()) file.size = ParseCount(reply.Header("content-length"));
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

  // Runs work(session, i) for every i below count, several at a time, each thread with its own session; the first failure.
  template <typename Work>
  Status InParallel(size_t count, const Work& work) {
    std::atomic<size_t> next{0};
    const auto run = [&] {
      const auto session = NewSession();
      for (size_t i = next++; i < count; i = next++) {
        const Status status = work(*session, i);
        if (status.ok()) continue;
        shared_.Fail(status);
        return;
      }
    };
    std::vector<std::thread> threads;
    for (size_t i = 1; i < std::min(count, size_t(settings_.parallel_files)); ++i) threads.emplace_back(run);
    run();
    for (std::thread& thread : threads) thread.join();
    return shared_.failure();
  }

  // Brings the files into the snapshot; those that are there already are left alone, because a commit never changes.
  Status Fetch(const std::vector<std::string>& names) {
    pulled_.files += names.size();
    std::vector<std::string> missing;
    for (const std::string& name : names) {
      uint64_t size = 0;
      if (!InSnapshot(name, &size)) {
        missing.push_back(name);
        continue;
      }
      pulled_.bytes += size;
      shared_.AddTotal(size);
      shared_.Tell(name, size, size, int64_t(size), true, false);
    }
    std::vector<RemoteFile> files(missing.size());
    KVASIR_RETURN_IF_ERROR(InParallel(missing.size(), [&](HubSession& session, size_t i) -> Status {
      KVASIR_ASSIGN_OR_RETURN(files[i], Inspect(session, missing[i]));
      return OkStatus();
    }));
    KVASIR_RETURN_IF_ERROR(MakeFolders(folder_.path + "/blobs"));
    KVASIR_RETURN_IF_ERROR(CheckSpace(files));
    for (const RemoteFile& file : files) shared_.AddTotal(file.size.value_or(0));
    std::mutex mutex;
    return InParallel(files.size(), [&](HubSession& session, size_t i) {
      Download download(session, shared_, folder_, files[i], FilePath(files[i].name));
      Status status = download.Run();
      if (status.ok()) status = LinkIntoSnapshot(folder_, pulled_.commit, files[i].name, files[i].etag);
      const std::lock_guard lock(mutex);
      pulled_.bytes += download.bytes();
      pulled_.fetched_bytes += download.fetched_bytes();
      return AtPlace(name_.repo + "/" + files[i].name, status);
    });
  }

  Status CheckSpace(const std::vector<RemoteFile>& files) const {
    uint64_t missing = 0;  // no overflow: at most kMaxListedFiles of kMaxFileBytes
    for (const RemoteFile& file : files) {
      uint64_t there = 0;
      for (const char* suffix : {"", ".incomplete"}) {
        struct stat info;
        if (stat((folder_.Blob(file.etag) + suffix).c_str(), &info) == 0) there = std::max(there, uint64_t(info.st_size));
      }
      missing += file.size.value_or(0) - std::min(there, file.size.value_or(0));
    }
    struct statvfs disk;
    if (statvfs(folder_.path.c_str(), &disk) != 0) return OkStatus();
    const uint64_t free = uint64_t(disk.f_bavail) * disk.f_frsize;
    if (missing <= free) return OkStatus();
    return ResourceExhausted("{}: {} more bytes are to come but {} has {} free; free space, or set HF_HUB_CACHE to another disk",
                             name_.Text(), missing, folder_.path, free);
  }

  const HubSettings& settings_;
  const RepoName& name_;
  const PullWhat what_;
  const RepoFolder folder_;
  Shared shared_;
  Pulled pulled_;
};

}  // namespace

StatusOr<Pulled> PullSnapshot(const HubSettings& settings, const RepoName& name, PullWhat what, const PullEvents& events) {
  if (settings.offline)
    return Unavailable("{}: {} is set, so nothing is downloaded: unset it to pull", name.Text(), settings.offline_variable);
  return Puller(settings, name, what, events).Run();
}

}  // namespace kvasir
