#include "models/fs.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace kvasir {
namespace {

Status ErrnoStatus(int error, const std::string& path, std::string_view what) {
  if (error == ENOENT || error == ENOTDIR) return NotFound("{}: no such file or folder", path);
  if (error == EACCES || error == EPERM) return InvalidArgument("{}: cannot {}: permission denied", path, what);
  return Unavailable("{}: cannot {}: {}", path, what, std::strerror(error));
}

class PosixFile : public File {
 public:
  PosixFile(std::string path, int fd, const struct stat& info)
      : path_(std::move(path)),
        fd_(fd),
        size_(static_cast<uint64_t>(info.st_size)),
        // The time of change counts renames and new permissions too, but nobody can set it back. The device's number is left out:
        // it is another one after every mount.
        identity_(fmt::format("inode {} size {} modified {}.{:09} changed {}.{:09}", info.st_ino, info.st_size,
                              info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_ctim.tv_sec, info.st_ctim.tv_nsec)) {}
  ~PosixFile() override { close(fd_); }
  uint64_t size() const override { return size_; }
  std::string identity() const override { return identity_; }

  Status ReadAt(uint64_t offset, void* out, size_t bytes) const override {
    char* next = static_cast<char*>(out);
    const uint64_t end = offset + bytes;
    while (bytes > 0) {
      const ssize_t got = pread(fd_, next, std::min<size_t>(bytes, size_t{1} << 30), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoStatus(errno, path_, "read");
      if (got == 0)
        return DataLoss(
            "{}: ends at byte {} but bytes up to {} are needed; the file was cut while it was read, or its download is "
            "incomplete: fetch it again",
            path_, offset, end);
      next += got;
      offset += got;
      bytes -= got;
    }
    return OkStatus();
  }

 private:
  const std::string path_;
  const int fd_;
  const uint64_t size_;
  const std::string identity_;
};

class PosixFs : public Fs {
 public:
  StatusOr<std::vector<std::string>> List(const std::string& dir) const override {
    DIR* stream = opendir(dir.c_str());
    if (stream == nullptr) return ErrnoStatus(errno, dir, "list the folder");
    std::vector<std::string> names;
    while (const dirent* entry = readdir(stream)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
    closedir(stream);
    std::sort(names.begin(), names.end());
    return names;
  }

  StatusOr<std::unique_ptr<File>> Open(const std::string& path) const override {
    // O_NONBLOCK: opening a FIFO left in the folder must not hang; it is refused below.
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return ErrnoStatus(errno, path, "open");
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
      close(fd);
      return InvalidArgument("{}: is not a plain file", path);
    }
    return std::make_unique<PosixFile>(path, fd, info);
  }
};

}  // namespace

const Fs& RealFs() {
  static const PosixFs fs;
  return fs;
}

StatusOr<std::string> ReadText(const Fs& fs, const std::string& path, uint64_t limit) {
  KVASIR_ASSIGN_OR_RETURN(std::unique_ptr<File> file, fs.Open(path));
  if (file->size() > limit)
    return InvalidArgument("{}: has {} bytes but the limit is {}; this is not the file its name says", path, file->size(), limit);
  std::string text(file->size(), '\0');
  KVASIR_RETURN_IF_ERROR(file->ReadAt(0, text.data(), text.size()));
  return text;
}

std::string JoinPath(const std::string& dir, const std::string& name) {
  return dir.empty() || dir.back() == '/' ? dir + name : dir + "/" + name;
}

}  // namespace kvasir
