// ExtentPool: the extents of one arena (the device's, or the host's below it) with reference counts, and the order in which
// cached ones are given up. An extent is free, held (count > 0), or cached (count 0, but blocks inside it stand in the prefix
// tree). Used by KvCache only.
//
// Order of eviction: one list of all cached extents of all groups, least recently let go first. Every operation is O(1).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/status.h"
#include "memory/kv_arena.h"

namespace kvasir {

class ExtentPool {
 public:
  // Extents are named from `first` on; `blocks` is the most blocks an extent holds.
  ExtentPool(int64_t num_extents, int blocks, uint32_t first = 0)
      : records_(size_t(num_extents)),
        later_nodes_(size_t(num_extents) * size_t(blocks - 1), kNone),
        blocks_(uint32_t(blocks)),
        first_(first) {
    KVASIR_CHECK(num_extents < int64_t{kFree} - int64_t(first), "{} extents do not fit 32-bit names", num_extents);
    for (int64_t i = num_extents; i-- > 0;) Free(first + uint32_t(i));  // the first is handed out first
  }

  // An extent with one reference, or kNone. What was freed last comes first: it is the most likely to be in a cache.
  uint32_t Allocate() {
    const uint32_t extent = first_free_;
    if (extent == kNone) return kNone;
    Record& record = At(extent);
    first_free_ = record.next;
    --free_;
    record = {.references = 1};
    return extent;
  }
  void Free(uint32_t extent) {
    Record& record = At(extent);
    KVASIR_CHECK(record.references == 0 && record.prev != kFree, "extent {} freed {}", extent,
                 record.references > 0 ? "with references" : "twice");
    record.prev = kFree;
    record.next = first_free_;
    first_free_ = extent;
    ++free_;
  }
  // True for the first reference: it was cached.
  bool AddReference(uint32_t extent) {
    Record& record = At(extent);
    if (record.references++ > 0) return false;
    Unlink(record);
    return true;
  }
  // True for the last one: it must be cached or freed now.
  bool DropReference(uint32_t extent) {
    KVASIR_CHECK(At(extent).references > 0, "extent {} released more often than held", extent);
    return --At(extent).references == 0;
  }
  void Cache(uint32_t extent) {
    Record& record = At(extent);
    record.prev = tail_;
    record.next = kNone;
    (tail_ == kNone ? head_ : At(tail_).next) = extent;
    tail_ = extent;
    ++cached_;
  }
  // The extent that has been unused for longest, with one reference now; kNone when nothing is cached. The caller takes its
  // blocks out of the prefix tree.
  uint32_t TakeOldest() {
    const uint32_t extent = head_;
    if (extent == kNone) return kNone;
    Unlink(At(extent));
    At(extent).references = 1;
    return extent;
  }

  // The prefix tree's node for the block at `offset` of an extent, or kNone: it is not published.
  uint32_t node(uint32_t extent, uint32_t offset) const {
    return offset == 0 ? At(extent).node : later_nodes_[size_t(extent - first_) * (blocks_ - 1) + offset - 1];
  }
  void SetNode(uint32_t extent, uint32_t offset, uint32_t node) {
    (offset == 0 ? At(extent).node : later_nodes_[size_t(extent - first_) * (blocks_ - 1) + offset - 1]) = node;
  }
  bool IsPublished(uint32_t extent, uint32_t first_offset, uint32_t blocks) const {
    for (uint32_t offset = first_offset; offset < blocks; ++offset) {
      if (node(extent, offset) != kNone) return true;
    }
    return false;
  }

  uint32_t references(uint32_t extent) const { return At(extent).references; }
  uint32_t oldest() const { return head_; }
  uint32_t next_oldest(uint32_t extent) const { return At(extent).next; }
  void Prefetch(uint32_t extent) const { __builtin_prefetch(&At(extent), 1); }
  int64_t num_extents() const { return int64_t(records_.size()); }
  int64_t free_extents() const { return free_; }
  int64_t cached_extents() const { return cached_; }
  // The list of free extents is whole, and holds nothing that is in use or published. O(extents).
  Status Check() const {
    int64_t listed = 0;
    for (uint32_t e = first_free_; e != kNone; e = At(e).next) {
      const Record& record = At(e);
      if (record.prev != kFree || record.references != 0 || ++listed > free_) return Internal("free extent {} is in use", e);
    }
    return listed == free_ ? OkStatus() : Internal("{} extents are free, {} are listed", free_, listed);
  }

 private:
  struct alignas(16) Record {
    uint32_t references = 0;
    uint32_t prev = kNone, next = kNone;  // order of eviction; of a free extent kFree and the next free one
    uint32_t node = kNone;                // of the first block
  };
  static constexpr uint32_t kFree = UINT32_MAX - 1;
  Record& At(uint32_t extent) { return records_[extent - first_]; }
  const Record& At(uint32_t extent) const { return records_[extent - first_]; }
  void Unlink(Record& record) {
    (record.prev == kNone ? head_ : At(record.prev).next) = record.next;
    (record.next == kNone ? tail_ : At(record.next).prev) = record.prev;
    record.prev = record.next = kNone;
    --cached_;
  }

  std::vector<Record> records_;
  std::vector<uint32_t> later_nodes_;  // [extent, blocks - 1]: nodes of the blocks after the first
  uint32_t blocks_, first_;
  uint32_t head_ = kNone, tail_ = kNone;  // of the order of eviction
  uint32_t first_free_ = kNone;
  int64_t cached_ = 0, free_ = 0;
};

}  // namespace kvasir
