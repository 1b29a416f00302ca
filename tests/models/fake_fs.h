// FakeFs: a file system in memory whose n-th operation can go wrong. For tests of everything that reads through Fs.
#pragma once

#include <atomic>
#include <cstring>
#include <map>

#include "models/fs.h"

namespace kvasir {

class FakeFs : public Fs {
 public:
  enum class Fault { kNone, kError, kTruncate };
  explicit FakeFs(std::map<std::string, std::string> files) : files_(std::move(files)) {}

  // The n-th operation from now on (0 = the next; List, Open and ReadAt count) fails, or finds its file cut in half.
  void FailAt(int64_t n, Fault fault) {
    fail_at_ = operations_ + n;
    fault_ = fault;
  }
  int64_t operations() const { return operations_; }

  StatusOr<std::vector<std::string>> List(const std::string& dir) const override {
    if (Strike() != Fault::kNone) return Unavailable("{}: injected failure of List", dir);
    std::vector<std::string> names;
    for (const auto& [path, text] : files_)
      if (path.starts_with(dir + "/")) names.push_back(path.substr(dir.size() + 1));
    return names;
  }
  StatusOr<std::unique_ptr<File>> Open(const std::string& path) const override {
    if (Strike() != Fault::kNone) return Unavailable("{}: injected failure of Open", path);
    const auto found = files_.find(path);
    if (found == files_.end()) return NotFound("{}: no such file", path);
    return std::make_unique<FakeFile>(this, path, found->second);
  }

 private:
  class FakeFile : public File {
   public:
    FakeFile(const FakeFs* fs, std::string path, const std::string& text)
        : fs_(fs), path_(std::move(path)), text_(text), left_(text.size()) {}
    uint64_t size() const override { return text_.size(); }
    Status ReadAt(uint64_t offset, void* out, size_t bytes) const override {
      const Fault fault = fs_->Strike();
      if (fault == Fault::kError) return Unavailable("{}: injected failure of ReadAt", path_);
      if (fault == Fault::kTruncate) left_ = offset + bytes / 2;
      const uint64_t left = left_;
      if (offset > left || bytes > left - offset) return DataLoss("{}: ends at byte {}", path_, left);
      std::memcpy(out, text_.data() + offset, bytes);
      return OkStatus();
    }

   private:
    const FakeFs* fs_;
    const std::string path_;
    const std::string& text_;
    mutable std::atomic<uint64_t> left_;
  };

  Fault Strike() const { return operations_++ == fail_at_ ? fault_ : Fault::kNone; }

  const std::map<std::string, std::string> files_;
  mutable std::atomic<int64_t> operations_ = 0;
  int64_t fail_at_ = -1;
  Fault fault_ = Fault::kNone;
};

}  // namespace kvasir
