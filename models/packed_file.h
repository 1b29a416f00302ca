// A file of packed weights, as one kind of device lays them out: written once, later mapped and used in place. Used by the packed
// cache only (models/packed_cache.h).
//
// Layout: PackedHead; the key; one PackedEntry per weight; one XXH3-64 per kPackedChunk bytes of data; then, from a page boundary
// on, the data, each weight at a multiple of 64 bytes. The head carries a checksum of everything before the data. Numbers are
// those of this machine (little-endian); a file of another kind of machine fails its magic.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace kvasir {

inline constexpr uint64_t kPackedChunk = uint64_t{4} << 20;

struct PackedWeight {
  PackingKind kind = PackingKind::kLinear;
  Weight weight;  // `packed` points at its bytes in host memory
  size_t bytes = 0;
};

// Maps the file and checks all of it with a few threads. The memory stays valid and unchanged while the object lives (the file is
// never written in place, so removing it does no harm). NotFound when there is none, or its key is another one; DataLoss says
// what is wrong with it.
class PackedFile {
 public:
  static StatusOr<std::shared_ptr<const PackedFile>> Open(const std::string& path, const std::string& key);
  ~PackedFile();
  PackedFile(const PackedFile&) = delete;
  PackedFile& operator=(const PackedFile&) = delete;

  std::span<const PackedWeight> weights() const { return weights_; }
  const std::string& weights_hash() const { return weights_hash_; }
  uint64_t bytes() const { return mapped_bytes_; }

 private:
  PackedFile() = default;
  std::vector<PackedWeight> weights_;
  std::string weights_hash_;
  const std::byte* data_ = nullptr;  // mapped
  uint64_t mapped_bytes_ = 0;
};

// Bytes the file will have, but for a few kilobytes.
uint64_t PackedFileBytes(std::span<const PackedWeight> weights);

// Writes under another name beside `path`, then renames. keep_going is asked for every chunk; false is Cancelled, and what was
// written is removed then, as on every error.
Status WritePackedFile(const std::string& path, const std::string& key, const std::string& weights_hash,
                       std::span<const PackedWeight> weights, const std::function<bool()>& keep_going);

}  // namespace kvasir
