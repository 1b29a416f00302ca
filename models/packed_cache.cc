#include "models/packed_cache.h"

#define XXH_INLINE_ALL
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <system_error>
#include <thread>

namespace kvasir {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".kvpack", kPartial = ".part";
// Raise it when loading computes other values from the same files (PackedCacheTest.TheSameFilesGiveTheSameBytes knows).
constexpr int kRevision = 2;

void Remark(const PackedCacheOptions& options, const std::string& text) {
  if (options.remark) options.remark(text);
}

std::string PathOf(const PackedCacheOptions& options, const std::string& key) {
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  return (fs::path(options.dir) / fmt::format("{:016x}{:016x}{}", hash.high64, hash.low64, kSuffix)).string();
}

struct CachedFile {
  fs::path path;
  uint64_t bytes = 0;
  fs::file_time_type used;
};

// Files of ours in the folder, longest unused first. Leftovers of writers that died are removed on the way.
std::vector<CachedFile> ListCache(const std::string& dir) {
  std::vector<CachedFile> files;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code failed;
    if (name.find(kSuffix) == std::string::npos || !it->is_regular_file(failed) || failed) continue;
    CachedFile file{it->path(), it->file_size(failed), it->last_write_time(failed)};
    if (failed) continue;
    if (name.ends_with(kPartial)) {
      if (fs::file_time_type::clock::now() - file.used > std::chrono::hours(1)) fs::remove(file.path, failed);
    } else {
      files.push_back(std::move(file));
    }
  }
  std::ranges::sort(files, {}, &CachedFile::used);
  return files;
}

// Removes old files until `bytes` more are within the limit, and leaves a twentieth of the disk free. False, with a remark, when
// that cannot be.
bool MakeRoom(const PackedCacheOptions& options, uint64_t bytes) {
  if (bytes > options.limit_bytes) {
    Remark(options,
           fmt::format("packed weights not kept: {} bytes are more than --packed-cache-limit {}", bytes, options.limit_bytes));
    return false;
  }
  std::vector<CachedFile> files = ListCache(options.dir);
  uint64_t held = 0;
  for (const CachedFile& file : files) held += file.bytes;
  for (const CachedFile& file : files) {
    if (held + bytes <= options.limit_bytes) break;
    std::error_code error;
    fs::remove(file.path, error);
    held -= file.bytes;
  }
  std::error_code error;
  const fs::space_info space = fs::space(options.dir, error);
  if (error || (space.available >= bytes && space.available - bytes >= space.capacity / 20)) return true;
  Remark(options,
         fmt::format("packed weights not kept: {} has {} bytes free and they need {} (a twentieth of the disk stays free); "
                     "--packed-cache names another folder",
                     options.dir, space.available, bytes));
  return false;
}

}  // namespace

std::string PackedCacheKey(const Checkpoint& checkpoint, std::string_view config_text, std::string_view numerics,
                           const Device& device) {
  const std::string packing = device.PackingName();
  if (packing.empty()) return "";
  const XXH128_hash_t config = XXH3_128bits(config_text.data(), config_text.size());
  std::string key = fmt::format("kvasir {} revision {}\npacking {}\nnumerics {}\nconfig {:016x}{:016x}\n", KVASIR_VERSION,
                                kRevision, packing, numerics, config.high64, config.low64);
  for (const auto& shard : checkpoint.shards) {
    const std::string identity = shard->file->identity();
    if (identity.empty()) return "";
    key += fmt::format("shard {} {}\n", shard->name, identity);
  }
  return key;
}

std::shared_ptr<const PackedFile> FindPacked(const PackedCacheOptions& options, const std::string& key) {
  if (options.dir.empty() || key.empty()) return nullptr;
  const std::string path = PathOf(options, key);
  auto file = PackedFile::Open(path, key);
  if (file.ok()) {
    utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);  // now: it is the last to go
    return *std::move(file);
  }
  if (file.status().code() != StatusCode::kNotFound) {
    Remark(options, fmt::format("packed weights not used: {}", Message(file.status())));
    if (file.status().code() == StatusCode::kDataLoss) unlink(path.c_str());
  }
  return nullptr;
}

struct PackedKeeper::State {
  PackedCacheOptions options;
  std::string key, hash;
  std::vector<PackedWeight> weights;
  std::atomic<bool> stop = false;
  std::thread thread;

  void Run() {
    setpriority(PRIO_PROCESS, id_t(gettid()), options.niceness);  // this thread's only, on Linux
    const uint64_t bytes = PackedFileBytes(weights);
    if (bytes < options.least_bytes) return;
    std::error_code error;
    fs::create_directories(options.dir, error);
    if (error) return Remark(options, fmt::format("packed weights not kept: {}: {}", options.dir, error.message()));
    if (!MakeRoom(options, bytes)) return;
    const std::string path = PathOf(options, key);
    const Status status = WritePackedFile(path, key, hash, weights, [this] { return !stop; });
    if (status.ok()) return Remark(options, fmt::format("packed weights kept for the next start: {} ({} bytes)", path, bytes));
    if (status.code() != StatusCode::kCancelled) Remark(options, fmt::format("packed weights not kept: {}", Message(status)));
  }
};

PackedKeeper::PackedKeeper(const PackedCacheOptions& options, std::string key, std::string weights_hash,
                           std::vector<PackedWeight> weights)
    : state_(new State{options, std::move(key), std::move(weights_hash), std::move(weights)}) {
  state_->thread = std::thread([state = state_.get()] { state->Run(); });
}

PackedKeeper::~PackedKeeper() {
  state_->stop = true;
  if (state_->thread.joinable()) state_->thread.join();
}

void PackedKeeper::WaitUntilDone() {
  if (state_->thread.joinable()) state_->thread.join();
}

}  // namespace kvasir
