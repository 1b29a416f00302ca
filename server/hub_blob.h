// One blob on its way from a hub to disk: bytes gather in ETAG.incomplete, where another process may go on later, are hashed as
// they come, and become ETAG only when size and checksum are right. Hubs name a blob by its checksum: 64 hex digits are the
// SHA-256 of the bytes (large files), 40 are git's SHA-1 of a blob. Other names (some mirrors) leave only the size to check.
#pragma once

#include <openssl/evp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace kvasir {

class BlobFile {
 public:
  // `path` is that of the finished blob; its lock is held by the caller. What an earlier try left counts as received.
  static StatusOr<BlobFile> Open(std::string path, std::string etag, std::optional<uint64_t> size);
  BlobFile(BlobFile&& other) noexcept;
  BlobFile& operator=(BlobFile&&) = delete;
  ~BlobFile();  // what was received stays for the next try

  uint64_t received() const { return received_; }
  bool resumed() const { return resumed_; }  // some of it came from an earlier try
  bool has_checksum() const { return md_ != nullptr; }
  Status Restart();  // forgets what was received
  // DataLoss when there are more bytes than the size; ResourceExhausted when the disk is full.
  Status Append(std::string_view bytes);
  // Checks, and renames into place. DataLoss: the bytes are wrong and have been removed.
  Status Commit();

 private:
  struct FreeHash {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  BlobFile(std::string path, std::string etag, std::optional<uint64_t> size);
  std::string Incomplete() const { return path_ + ".incomplete"; }
  void StartHash(uint64_t size);
  Status HashStored();  // starts anew with the bytes on disk
  Status Failed(int error) const;

  std::string path_, etag_;
  std::optional<uint64_t> size_;
  int fd_ = -1;
  uint64_t received_ = 0;
  bool resumed_ = false;
  const EVP_MD* md_ = nullptr;                  // null: nothing to compare with
  std::unique_ptr<EVP_MD_CTX, FreeHash> hash_;  // of the received bytes; null where it is computed at the end
};

}  // namespace kvasir
