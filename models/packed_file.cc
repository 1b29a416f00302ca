#include "models/packed_file.h"

#define XXH_INLINE_ALL
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; older ones refuse it, which costs only time
#endif

namespace kvasir {
namespace {

constexpr char kMagic[8] = {'K', 'V', 'P', 'A', 'C', 'K', '0', '1'};
constexpr uint64_t kPage = 4096, kAlign = 64;
constexpr uint64_t kMaxHead = 64 << 20;  // of everything before the data

struct PackedHead {
  char magic[8];
  uint64_t key_bytes, entries, chunks, data_begin, data_bytes;
  char weights_hash[32];
  uint64_t checksum;
};

struct PackedEntry {
  int64_t rows, cols;
  uint64_t offset, bytes;  // in the data
  int32_t group;
  uint8_t kind, dtype, quant, ordered;
};

uint64_t RoundUp(uint64_t value, uint64_t to) {
  return (value + to - 1) / to * to;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

bool ReadAll(int fd, void* out, uint64_t bytes) {
  auto* next = static_cast<std::byte*>(out);
  for (uint64_t at = 0; at < bytes;) {
    const ssize_t got = pread(fd, next + at, bytes - at, off_t(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += uint64_t(got);
  }
  return true;
}

bool WriteAll(int fd, const void* data, uint64_t bytes, uint64_t offset) {
  const auto* next = static_cast<const std::byte*>(data);
  for (uint64_t at = 0; at < bytes;) {
    const ssize_t put = pwrite(fd, next + at, bytes - at, off_t(offset + at));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    at += uint64_t(put);
  }
  return true;
}

// Of everything before the data, but for the place where this number stands.
uint64_t ChecksumOfHead(PackedHead head, std::span<const std::byte> all) {
  head.checksum = 0;
  const std::span rest = all.subspan(sizeof(head));
  return XXH3_64bits_withSeed(rest.data(), rest.size(), XXH3_64bits(&head, sizeof(head)));
}

// Reads and checks what comes before the data.
StatusOr<std::vector<std::byte>> ReadHead(int fd, uint64_t file_bytes, const std::string& path) {
  PackedHead head;
  if (file_bytes < sizeof(head) || !ReadAll(fd, &head, sizeof(head)) || std::memcmp(head.magic, kMagic, sizeof(kMagic)) != 0)
    return DataLoss("{}: is not a file of packed weights", path);
  const bool sane = head.key_bytes <= kMaxHead && head.entries <= kMaxHead / sizeof(PackedEntry) && head.chunks <= kMaxHead / 8 &&
                    head.data_begin % kPage == 0 && head.data_begin <= file_bytes &&
                    head.data_bytes == file_bytes - head.data_begin &&
                    head.chunks == (head.data_bytes + kPackedChunk - 1) / kPackedChunk;
  const uint64_t used = sizeof(head) + head.key_bytes + head.entries * sizeof(PackedEntry) + head.chunks * sizeof(uint64_t);
  if (!sane || used > head.data_begin || head.data_begin > kMaxHead) return DataLoss("{}: was cut, or its head is damaged", path);
  std::vector<std::byte> bytes(head.data_begin);
  if (!ReadAll(fd, bytes.data(), bytes.size())) return DataLoss("{}: cannot be read: {}", path, std::strerror(errno));
  if (ChecksumOfHead(head, bytes) != head.checksum) return DataLoss("{}: its head is damaged (checksum)", path);
  return bytes;
}

StatusOr<std::vector<PackedWeight>> ReadEntries(const PackedHead& head, const std::byte* entries, const std::byte* data,
                                                const std::string& path) {
  std::vector<PackedWeight> weights;
  for (uint64_t i = 0; i < head.entries; ++i) {
    PackedEntry entry;
    std::memcpy(&entry, entries + i * sizeof(entry), sizeof(entry));
    if (entry.offset % kAlign != 0 || entry.offset > head.data_bytes || entry.bytes > head.data_bytes - entry.offset)
      return DataLoss("{}: weight {} lies outside the file", path, i);
    PackedWeight& packed = weights.emplace_back();
    packed.kind = PackingKind(entry.kind);
    packed.weight = {
        DType(entry.dtype), entry.rows, entry.cols, nullptr, {QuantFormat::Kind(entry.quant), entry.group, entry.ordered != 0}};
    packed.weight.packed = const_cast<std::byte*>(data + entry.offset);  // weights are only read
    packed.bytes = entry.bytes;
  }
  return weights;
}

// The index of the first damaged chunk, or -1.
int64_t FindDamage(const std::byte* data, uint64_t bytes, std::span<const uint64_t> sums) {
  std::atomic<uint64_t> next = 0;
  std::atomic<int64_t> damaged = -1;
  const auto check = [&] {
    for (uint64_t i; (i = next.fetch_add(1)) < sums.size() && damaged < 0;) {
      const uint64_t begin = i * kPackedChunk, count = std::min(kPackedChunk, bytes - begin);
      madvise(const_cast<std::byte*>(data + begin), count, MADV_POPULATE_READ);  // many pages in one go; faults do it otherwise
      if (XXH3_64bits(data + begin, count) != sums[i]) damaged = int64_t(i);
    }
  };
  std::vector<std::thread> threads;
  const size_t count = std::min<size_t>({std::max(std::thread::hardware_concurrency(), 1u), 8, sums.size()});
  for (size_t i = 1; i < count; ++i) threads.emplace_back(check);
  check();
  for (std::thread& thread : threads) thread.join();
  return damaged;
}

std::vector<PackedEntry> PlaceEntries(std::span<const PackedWeight> weights, uint64_t* data_bytes) {
  std::vector<PackedEntry> entries;
  uint64_t offset = 0;
  for (const PackedWeight& packed : weights) {
    const Weight& weight = packed.weight;
    entries.push_back({weight.rows, weight.cols, offset, packed.bytes, weight.quant.group, uint8_t(packed.kind),
                       uint8_t(weight.dtype), uint8_t(weight.quant.kind), uint8_t(weight.quant.ordered)});
    offset += RoundUp(packed.bytes, kAlign);
  }
  *data_bytes = offset;
  return entries;
}

// Fills a chunk of the data from the weights that lie in it, with zeros between them.
void GatherChunk(std::span<const PackedWeight> weights, std::span<const PackedEntry> entries, uint64_t begin,
                 std::span<std::byte> out) {
  std::ranges::fill(out, std::byte{0});
  const uint64_t end = begin + out.size();
  const auto first = std::ranges::partition_point(entries, [&](const PackedEntry& e) { return e.offset + e.bytes <= begin; });
  for (size_t i = size_t(first - entries.begin()); i < entries.size() && entries[i].offset < end; ++i) {
    const uint64_t from = std::max(begin, entries[i].offset), to = std::min(end, entries[i].offset + entries[i].bytes);
    std::memcpy(out.data() + (from - begin), static_cast<const std::byte*>(weights[i].weight.packed) + (from - entries[i].offset),
                to - from);
  }
}

Status WriteTo(int fd, const std::string& path, const std::string& key, const std::string& weights_hash,
               std::span<const PackedWeight> weights, const std::function<bool()>& keep_going) {
  PackedHead head{};
  std::memcpy(head.magic, kMagic, sizeof(kMagic));
  std::memcpy(head.weights_hash, weights_hash.data(), std::min(weights_hash.size(), sizeof(head.weights_hash)));
  const std::vector<PackedEntry> entries = PlaceEntries(weights, &head.data_bytes);
  head.key_bytes = key.size();
  head.entries = entries.size();
  head.chunks = (head.data_bytes + kPackedChunk - 1) / kPackedChunk;
  const uint64_t entries_at = sizeof(head) + key.size(), sums_at = entries_at + entries.size() * sizeof(PackedEntry);
  head.data_begin = RoundUp(sums_at + head.chunks * sizeof(uint64_t), kPage);
  const auto failed = [&] { return Unavailable("{}: cannot be written: {}", path, std::strerror(errno)); };
  // Asks for the room first: a full disk is met here, not after gigabytes. Not every file system can.
  if (fallocate(fd, 0, 0, off_t(head.data_begin + head.data_bytes)) != 0 && errno == ENOSPC) return failed();

  std::vector<uint64_t> sums;
  std::vector<std::byte> chunk(kPackedChunk);
  for (uint64_t begin = 0; begin < head.data_bytes; begin += kPackedChunk) {
    if (!keep_going()) return Cancelled("{}: stopped", path);
    const std::span<std::byte> part(chunk.data(), std::min(kPackedChunk, head.data_bytes - begin));
    GatherChunk(weights, entries, begin, part);
    sums.push_back(XXH3_64bits(part.data(), part.size()));
    if (!WriteAll(fd, part.data(), part.size(), head.data_begin + begin)) return failed();
  }
  std::vector<std::byte> bytes(head.data_begin);
  std::memcpy(bytes.data() + sizeof(head), key.data(), key.size());
  if (!entries.empty()) std::memcpy(bytes.data() + entries_at, entries.data(), entries.size() * sizeof(PackedEntry));
  if (!sums.empty()) std::memcpy(bytes.data() + sums_at, sums.data(), sums.size() * sizeof(uint64_t));
  head.checksum = ChecksumOfHead(head, bytes);
  std::memcpy(bytes.data(), &head, sizeof(head));
  return WriteAll(fd, bytes.data(), bytes.size(), 0) ? OkStatus() : failed();
}

}  // namespace

namespace {

// Maps part of a file so that an address and its place in the file are equal modulo the size of huge pages: where the page cache
// keeps the file in huge pages (ext4 and XFS do) they are mapped whole, and weights read as fast as from anonymous ones.
void* MapForHugePages(int fd, uint64_t offset, uint64_t bytes) {
  constexpr uint64_t kHuge = uint64_t{2} << 20;
  const uint64_t room = bytes + kHuge;
  void* const reserved = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return MAP_FAILED;
  const auto begin = reinterpret_cast<uintptr_t>(reserved);
  const uint64_t skipped = (offset % kHuge + kHuge - begin % kHuge) % kHuge;
  void* const mapped =
      mmap(reinterpret_cast<void*>(begin + skipped), bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, off_t(offset));
  const uint64_t page = uint64_t(sysconf(_SC_PAGESIZE)), end = (skipped + bytes + page - 1) / page * page;
  if (mapped == MAP_FAILED) {
    munmap(reserved, room);
    return MAP_FAILED;
  }
  if (skipped > 0) munmap(reserved, skipped);
  if (end < room) munmap(reinterpret_cast<void*>(begin + end), room - end);
  madvise(mapped, bytes, MADV_HUGEPAGE);  // when it is read from disk, in huge pages; refused where there are none
  return mapped;
}

}  // namespace

StatusOr<std::shared_ptr<const PackedFile>> PackedFile::Open(const std::string& path, const std::string& key) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat info;
  if (file.get() < 0 || fstat(file.get(), &info) != 0) return NotFound("{}: {}", path, std::strerror(errno));
  // What another user could have written is not trusted with being our weights.
  if (!S_ISREG(info.st_mode) || (info.st_uid != geteuid() && info.st_uid != 0) || (info.st_mode & 022) != 0)
    return DataLoss("{}: is not a plain file that only its owner, this user or root, can write", path);
  const uint64_t bytes = uint64_t(info.st_size);
  KVASIR_ASSIGN_OR_RETURN(const std::vector<std::byte> front, ReadHead(file.get(), bytes, path));
  PackedHead head;
  std::memcpy(&head, front.data(), sizeof(head));
  if (std::string_view(reinterpret_cast<const char*>(front.data()) + sizeof(head), head.key_bytes) != key)
    return NotFound("{}: is of other weights", path);

  std::shared_ptr<PackedFile> packed(new PackedFile());
  if (head.data_bytes > 0) {
    void* mapped = MapForHugePages(file.get(), head.data_begin, head.data_bytes);
    if (mapped == MAP_FAILED) return ResourceExhausted("{}: cannot be mapped: {}", path, std::strerror(errno));
    packed->data_ = static_cast<const std::byte*>(mapped);
    packed->mapped_bytes_ = head.data_bytes;
  }
  const std::byte* entries = front.data() + sizeof(head) + head.key_bytes;
  KVASIR_ASSIGN_OR_RETURN(packed->weights_, ReadEntries(head, entries, packed->data_, path));
  std::vector<uint64_t> sums(head.chunks);
  if (!sums.empty()) std::memcpy(sums.data(), entries + head.entries * sizeof(PackedEntry), sums.size() * sizeof(uint64_t));
  if (const int64_t damaged = FindDamage(packed->data_, head.data_bytes, sums); damaged >= 0)
    return DataLoss("{}: bytes near {} are damaged (checksum)", path, head.data_begin + uint64_t(damaged) * kPackedChunk);
  packed->weights_hash_.assign(head.weights_hash, sizeof(head.weights_hash));
  return std::shared_ptr<const PackedFile>(std::move(packed));
}

PackedFile::~PackedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), mapped_bytes_);
}

uint64_t PackedFileBytes(std::span<const PackedWeight> weights) {
  uint64_t bytes = 0;
  PlaceEntries(weights, &bytes);
  return bytes;
}

Status WritePackedFile(const std::string& path, const std::string& key, const std::string& weights_hash,
                       std::span<const PackedWeight> weights, const std::function<bool()>& keep_going) {
  static std::atomic<uint64_t> count = 0;
  const std::string partial = fmt::format("{}.{}-{}.part", path, getpid(), count.fetch_add(1));
  const Descriptor file(open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file.get() < 0) return Unavailable("{}: cannot be made: {}", partial, std::strerror(errno));
  Status status = WriteTo(file.get(), partial, key, weights_hash, weights, keep_going);
  if (status.ok() && rename(partial.c_str(), path.c_str()) != 0)
    status = Unavailable("{}: cannot be renamed: {}", partial, std::strerror(errno));
  if (!status.ok()) unlink(partial.c_str());
  return status;
}

}  // namespace kvasir
