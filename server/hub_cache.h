// The cache of downloaded models on disk, in the layout of huggingface_hub, shared with every tool that uses it:
//   CACHE/models--ORG--NAME/blobs/ETAG             the bytes, once for all revisions; ETAG.incomplete while they arrive
//   CACHE/models--ORG--NAME/snapshots/COMMIT/FILE  links to ../../blobs/ETAG
//   CACHE/models--ORG--NAME/refs/REVISION          the commit a branch or tag pointed to
//   CACHE/.locks/models--ORG--NAME/ETAG.lock       held (flock) while a blob is downloaded
// Files appear whole: each is made beside its place and renamed. Used by the hub client and by the commands that take --model.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

struct RepoName {
  std::string repo;               // "ORG/NAME", or "NAME" for the old models without an owner
  std::string revision = "main";  // branch, tag or commit

  std::string Text() const { return revision == "main" ? repo : repo + "@" + revision; }
};

// "ORG/NAME[@REVISION]"; `revision` is that of a flag, or "". The rules are the hub's own. InvalidArgument says what is wrong.
StatusOr<RepoName> ParseRepoName(std::string_view text, std::string_view revision);
bool IsCommit(std::string_view text);  // 40 hex digits in lower case

struct RepoFolder {
  std::string path;   // CACHE/models--ORG--NAME
  std::string locks;  // CACHE/.locks/models--ORG--NAME

  RepoFolder(const std::string& cache_dir, const std::string& repo);
  std::string Blob(std::string_view etag) const;
  std::string Snapshot(std::string_view commit) const;
  std::string Ref(std::string_view revision) const;
  // The commit a revision meant when it was last pulled; the revision itself when it is a commit. NotFound says where it looked.
  StatusOr<std::string> CommitOf(const std::string& revision) const;
};

// An ETag names a file in blobs/, so it is checked as one: 1 to 200 letters, digits, '-', '_', '.'; not beginning with a dot.
// Quotes and a leading W/ are taken off.
StatusOr<std::string> NormalizeEtag(std::string_view header);

// Links snapshots/COMMIT/NAME to the blob, replacing what is there unless it is that link already.
Status LinkIntoSnapshot(const RepoFolder& folder, const std::string& commit, const std::string& name, const std::string& etag);
Status WriteRef(const RepoFolder& folder, const std::string& revision, const std::string& commit);
Status MakeFolders(const std::string& path);

// The lock of one blob, as huggingface_hub takes it; let go when destroyed.
class BlobLock {
 public:
  // Waits while another process has it. `waiting` is called several times a second; false gives up with Cancelled.
  static StatusOr<BlobLock> Take(const RepoFolder& folder, const std::string& etag, const std::function<bool()>& waiting);
  BlobLock(BlobLock&& other) noexcept;
  BlobLock& operator=(BlobLock&&) = delete;
  ~BlobLock();

 private:
  explicit BlobLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace kvasir
