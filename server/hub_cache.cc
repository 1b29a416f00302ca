#include "server/hub_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "models/fs.h"
#include "server/hub_files.h"

namespace kvasir {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxRefBytes = 256;

Status CannotWrite(const std::string& path, int error) {
  if (error == ENOSPC || error == EDQUOT)
    return ResourceExhausted("{}: {}; free space, or set HF_HUB_CACHE to another disk", path, strerror(error));
  return InvalidArgument("{}: cannot be written: {}; set HF_HUB_CACHE (or HF_HOME) to a folder that can be", path,
                         strerror(error));
}

// A name beside `path` that no other process uses.
std::string Beside(const std::string& path) {
  static std::atomic<int> count{0};
  return fmt::format("{}.{}.{}.tmp", path, getpid(), count.fetch_add(1));
}

Status RenameInto(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) == 0) return OkStatus();
  const int error = errno;
  unlink(from.c_str());
  return CannotWrite(to, error);
}

Status CheckRevision(std::string_view revision) {
  const bool good = CheckFileName(revision).ok() && revision.size() <= 255 && revision.front() != '-' &&
                    std::none_of(revision.begin(), revision.end(), [](char c) { return strchr(" ~^:?*[", c) != nullptr; });
  if (good) return OkStatus();
  return InvalidArgument("the revision '{}' is not the name of a branch or tag, or a commit",
                         std::string(revision.substr(0, 80)));
}

}  // namespace

bool IsCommit(std::string_view text) {
  return text.size() == 40 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

StatusOr<RepoName> ParseRepoName(std::string_view text, std::string_view revision) {
  RepoName name;
  const size_t at = std::min(text.find('@'), text.size());
  name.repo = std::string(text.substr(0, at));
  if (at < text.size()) {
    name.revision = std::string(text.substr(at + 1));
    if (!revision.empty() && revision != name.revision)
      return InvalidArgument("'{}' names one revision and --revision another, '{}': leave one out", text.substr(0, 200),
                             revision);
  } else if (!revision.empty()) {
    name.revision = std::string(revision);
  }
  KVASIR_RETURN_IF_ERROR(CheckRevision(name.revision));
  const auto wrong = [&](std::string_view why) {
    return InvalidArgument("'{}' is not the name of a model on a hub (ORG/NAME): {}", std::string(text.substr(0, 120)), why);
  };
  if (name.repo.empty() || name.repo.size() > 96) return wrong("it must have 1 to 96 characters");
  if (std::count(name.repo.begin(), name.repo.end(), '/') > 1) return wrong("it has more than one '/'");
  for (const char c : name.repo)
    if (!(std::isalnum(uint8_t(c)) && uint8_t(c) < 0x80) && c != '-' && c != '_' && c != '.' && c != '/')
      return wrong("only letters, digits, '-', '_' and '.' are allowed");
  for (size_t begin = 0; begin <= name.repo.size();) {
    const size_t end = std::min(name.repo.find('/', begin), name.repo.size());
    const std::string_view part = std::string_view(name.repo).substr(begin, end - begin);
    if (part.empty() || strchr("-.", part.front()) != nullptr || strchr("-.", part.back()) != nullptr)
      return wrong("each part must begin and end with a letter, a digit or '_'");
    begin = end + 1;
  }
  if (name.repo.find("--") != std::string::npos || name.repo.find("..") != std::string::npos)
    return wrong("'--' and '..' are not allowed");
  if (name.repo.ends_with(".git")) return wrong("it must not end with .git");
  return name;
}

RepoFolder::RepoFolder(const std::string& cache_dir, const std::string& repo) {
  std::string folder = "models--";
  for (const char c : repo) folder += c == '/' ? std::string("--") : std::string(1, c);
  path = JoinPath(cache_dir, folder);
  locks = JoinPath(JoinPath(cache_dir, ".locks"), folder);
}

std::string RepoFolder::Blob(std::string_view etag) const {
  return path + "/blobs/" + std::string(etag);
}

std::string RepoFolder::Snapshot(std::string_view commit) const {
  return path + "/snapshots/" + std::string(commit);
}

std::string RepoFolder::Ref(std::string_view revision) const {
  return path + "/refs/" + std::string(revision);
}

StatusOr<std::string> RepoFolder::CommitOf(const std::string& revision) const {
  if (IsCommit(revision)) return revision;
  auto text = ReadText(RealFs(), Ref(revision), kMaxRefBytes);
  if (!text.ok()) return text.status();
  while (!text->empty() && std::isspace(uint8_t(text->back()))) text->pop_back();
  if (!IsCommit(*text))
    return InvalidArgument("{}: does not hold a commit (40 hex digits); remove the file and pull again", Ref(revision));
  return text;
}

StatusOr<std::string> NormalizeEtag(std::string_view header) {
  if (header.starts_with("W/")) header.remove_prefix(2);
  if (header.size() >= 2 && header.front() == '"' && header.back() == '"') header = header.substr(1, header.size() - 2);
  const auto plain = [](char c) { return (std::isalnum(uint8_t(c)) && uint8_t(c) < 0x80) || c == '-' || c == '_' || c == '.'; };
  if (header.empty() || header.size() > 200 || header.front() == '.' || !std::all_of(header.begin(), header.end(), plain))
    return InvalidArgument("the ETag has {} bytes and is not one that a hub gives (letters and digits): is HF_ENDPOINT a hub?",
                           header.size());
  return std::string(header);
}

Status MakeFolders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  return error ? CannotWrite(path, error.value()) : OkStatus();
}

Status LinkIntoSnapshot(const RepoFolder& folder, const std::string& commit, const std::string& name, const std::string& etag) {
  const fs::path link = fs::path(folder.Snapshot(commit)) / name;
  KVASIR_RETURN_IF_ERROR(MakeFolders(link.parent_path().string()));
  std::string target = "../../";
  for (const char c : name) target += c == '/' ? "../" : "";
  target += "blobs/" + etag;
  std::error_code error;
  if (fs::read_symlink(link, error) == target && !error) return OkStatus();
  const std::string temporary = Beside(link.string());
  if (symlink(target.c_str(), temporary.c_str()) != 0) return CannotWrite(temporary, errno);
  return RenameInto(temporary, link.string());
}

Status WriteRef(const RepoFolder& folder, const std::string& revision, const std::string& commit) {
  if (IsCommit(revision)) return OkStatus();
  if (const auto now = folder.CommitOf(revision); now.ok() && *now == commit) return OkStatus();
  const std::string path = folder.Ref(revision);
  KVASIR_RETURN_IF_ERROR(MakeFolders(fs::path(path).parent_path().string()));
  const std::string temporary = Beside(path);
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return CannotWrite(temporary, errno);
  const bool written = write(fd, commit.data(), commit.size()) == ssize_t(commit.size());
  const int error = errno;
  close(fd);
  if (!written) {
    unlink(temporary.c_str());
    return CannotWrite(temporary, error);
  }
  return RenameInto(temporary, path);
}

StatusOr<BlobLock> BlobLock::Take(const RepoFolder& folder, const std::string& etag, const std::function<bool()>& waiting) {
  KVASIR_RETURN_IF_ERROR(MakeFolders(folder.locks));
  const std::string path = folder.locks + "/" + etag + ".lock";
  while (true) {
    BlobLock lock(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0664));
    if (lock.fd_ < 0) return CannotWrite(path, errno);
    if (flock(lock.fd_, LOCK_EX | LOCK_NB) == 0) {
      // Some tools remove the file when they are done: then the one we hold is nobody else's, and we begin again.
      struct stat held, named;
      if (fstat(lock.fd_, &held) == 0 && stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino) return lock;
      continue;
    }
    if (errno != EWOULDBLOCK && errno != EINTR) return lock;  // a file system without locks: downloads are checked all the same
    if (waiting && !waiting()) return Cancelled("stopped while another process was downloading {}", etag);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

BlobLock::BlobLock(BlobLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

BlobLock::~BlobLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace kvasir
