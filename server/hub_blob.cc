#include "server/hub_blob.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace kvasir {
namespace {

const EVP_MD* HashOfName(std::string_view etag) {
  if (etag.find_first_not_of("0123456789abcdef") != std::string_view::npos) return nullptr;
  return etag.size() == 64 ? EVP_sha256() : etag.size() == 40 ? EVP_sha1() : nullptr;
}

}  // namespace

BlobFile::BlobFile(std::string path, std::string etag, std::optional<uint64_t> size)
    : path_(std::move(path)), etag_(std::move(etag)), size_(size), md_(HashOfName(etag_)) {}

BlobFile::BlobFile(BlobFile&& other) noexcept
    : path_(std::move(other.path_)),
      etag_(std::move(other.etag_)),
      size_(other.size_),
      fd_(std::exchange(other.fd_, -1)),
      received_(other.received_),
      resumed_(other.resumed_),
      md_(other.md_),
      hash_(std::move(other.hash_)) {}

BlobFile::~BlobFile() {
  if (fd_ >= 0) close(fd_);
}

Status BlobFile::Failed(int error) const {
  if (error == ENOSPC || error == EDQUOT)
    return ResourceExhausted(
        "{}: {} after {} bytes; free space (what has arrived is kept and used), or set HF_HUB_CACHE to another disk", path_,
        strerror(error), received_);
  return InvalidArgument("{}: cannot be written: {}; set HF_HUB_CACHE to a folder that can be", Incomplete(), strerror(error));
}

StatusOr<BlobFile> BlobFile::Open(std::string path, std::string etag, std::optional<uint64_t> size) {
  BlobFile file(std::move(path), std::move(etag), size);
  // O_NOFOLLOW: a link left there must not lead the bytes elsewhere.
  file.fd_ = open(file.Incomplete().c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  struct stat info;
  if (file.fd_ < 0 || fstat(file.fd_, &info) != 0) return file.Failed(errno);
  file.received_ = uint64_t(info.st_size);
  if (size && file.received_ > *size) KVASIR_RETURN_IF_ERROR(file.Restart());
  file.resumed_ = file.received_ > 0;
  KVASIR_RETURN_IF_ERROR(file.HashStored());
  return file;
}

// git hashes "blob SIZE" and a zero byte before the bytes, so its hash can only begin when the size is known.
void BlobFile::StartHash(uint64_t size) {
  hash_.reset(EVP_MD_CTX_new());
  EVP_DigestInit_ex(hash_.get(), md_, nullptr);
  if (md_ != EVP_sha1()) return;
  const std::string head = fmt::format("blob {}", size);
  EVP_DigestUpdate(hash_.get(), head.c_str(), head.size() + 1);
}

Status BlobFile::HashStored() {
  hash_.reset();
  if (md_ == nullptr || (md_ == EVP_sha1() && !size_)) return OkStatus();
  StartHash(size_.value_or(0));
  std::string piece(1 << 20, '\0');
  for (uint64_t at = 0; at < received_;) {
    const ssize_t got = pread(fd_, piece.data(), std::min<uint64_t>(piece.size(), received_ - at), off_t(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return DataLoss("{}: cannot be read at byte {}; remove it and pull again", Incomplete(), at);
    EVP_DigestUpdate(hash_.get(), piece.data(), size_t(got));
    at += uint64_t(got);
  }
  return OkStatus();
}

Status BlobFile::Restart() {
  if (ftruncate(fd_, 0) != 0) return Failed(errno);
  received_ = 0;
  resumed_ = false;
  return HashStored();
}

Status BlobFile::Append(std::string_view bytes) {
  if (size_ && bytes.size() > *size_ - received_) return DataLoss("the server sends more than the {} bytes it announced", *size_);
  if (hash_ != nullptr) EVP_DigestUpdate(hash_.get(), bytes.data(), bytes.size());
  while (!bytes.empty()) {
    const ssize_t put = pwrite(fd_, bytes.data(), bytes.size(), off_t(received_));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Failed(errno);
    received_ += uint64_t(put);
    bytes.remove_prefix(size_t(put));
  }
  return OkStatus();
}

Status BlobFile::Commit() {
  if (size_ && received_ != *size_) return Unavailable("only {} of {} bytes have arrived", received_, *size_);
  if (md_ != nullptr && hash_ == nullptr) {
    size_ = received_;
    KVASIR_RETURN_IF_ERROR(HashStored());
  }
  if (md_ != nullptr) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    EVP_DigestFinal_ex(hash_.get(), digest, &length);
    hash_.reset();
    std::string text;
    for (unsigned int i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
    if (text != etag_) {
      const uint64_t bytes = received_;
      KVASIR_RETURN_IF_ERROR(Restart());
      unlink(Incomplete().c_str());
      return DataLoss("the {} bytes that arrived have checksum {} but the hub says {}; they have been removed: pull again", bytes,
                      text, etag_);
    }
  }
  if (fdatasync(fd_) != 0) return Failed(errno);
  if (rename(Incomplete().c_str(), path_.c_str()) != 0) return Failed(errno);
  return OkStatus();
}

}  // namespace kvasir
