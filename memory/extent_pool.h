// ExtentPool: the extents of the arena with reference counts, and the order in which cached ones are given up. An extent is free,
// held (count > 0), or cached (count 0, but blocks inside it stand in the prefix tree). Used by KvCache only.
//
// Order of eviction: one list of all cached extents of all groups, least recently let go first. Every operation is O(1).
#pragma once

#include <cstdint>
#include <vector>

#include "memory/arena.h"

namespace kvasir {

class ExtentPool {
 public:
  static constexpr uint32_t kNone = Arena::kNone;

  // `blocks` is the most blocks an extent holds.
  ExtentPool(int64_t num_extents, int blocks)
      : arena_(num_extents, 1, {1}),
        records_(size_t(num_extents)),
        later_nodes_(size_t(num_extents) * size_t(blocks - 1), kNone),
        blocks_(uint32_t(blocks)) {}

  // An extent with one reference, or kNone.
  uint32_t Allocate() {
    const uint32_t extent = arena_.Allocate(0);
    if (extent != kNone) records_[extent].references = 1;
    return extent;
  }
  void Free(uint32_t extent) {
    KVASIR_CHECK(records_[extent].references == 0, "extent {} freed with {} references", extent, records_[extent].references);
    arena_.Free(extent, 0);
  }
  // True for the first reference: it was cached.
  bool AddReference(uint32_t extent) {
    Record& record = records_[extent];
    if (record.references++ > 0) return false;
    Unlink(record);
    return true;
  }
  // True for the last one: it must be cached or freed now.
  bool DropReference(uint32_t extent) {
    KVASIR_CHECK(records_[extent].references > 0, "extent {} released more often than held", extent);
    return --records_[extent].references == 0;
  }
  void Cache(uint32_t extent) {
    Record& record = records_[extent];
    record.prev = tail_;
    record.next = kNone;
    (tail_ == kNone ? head_ : records_[tail_].next) = extent;
    tail_ = extent;
    ++cached_;
  }
  // The extent that has been unused for longest, with one reference now; kNone when nothing is cached. The caller takes its
  // blocks out of the prefix tree.
  uint32_t TakeOldest() {
    const uint32_t extent = head_;
    if (extent == kNone) return kNone;
    Unlink(records_[extent]);
    records_[extent].references = 1;
    return extent;
  }

  // The prefix tree's node for the block at `offset` of an extent, or kNone: it is not published.
  uint32_t node(uint32_t extent, uint32_t offset) const {
    return offset == 0 ? records_[extent].node : later_nodes_[size_t(extent) * (blocks_ - 1) + offset - 1];
  }
  void SetNode(uint32_t extent, uint32_t offset, uint32_t node) {
    (offset == 0 ? records_[extent].node : later_nodes_[size_t(extent) * (blocks_ - 1) + offset - 1]) = node;
  }
  bool IsPublished(uint32_t extent, uint32_t first_offset, uint32_t blocks) const {
    for (uint32_t offset = first_offset; offset < blocks; ++offset) {
      if (node(extent, offset) != kNone) return true;
    }
    return false;
  }

  uint32_t references(uint32_t extent) const { return records_[extent].references; }
  uint32_t oldest() const { return head_; }
  uint32_t next_oldest(uint32_t extent) const { return records_[extent].next; }
  void Prefetch(uint32_t extent) const { __builtin_prefetch(&records_[extent], 1); }
  int64_t num_extents() const { return int64_t(records_.size()); }
  int64_t free_extents() const { return arena_.FreeObjects(0); }
  int64_t cached_extents() const { return cached_; }
  const Arena& arena() const { return arena_; }

 private:
  struct alignas(16) Record {
    uint32_t references = 0;
    uint32_t prev = kNone, next = kNone;  // order of eviction
    uint32_t node = kNone;                // of the first block
  };
  void Unlink(Record& record) {
    (record.prev == kNone ? head_ : records_[record.prev].next) = record.next;
    (record.next == kNone ? tail_ : records_[record.next].prev) = record.prev;
    record.prev = record.next = kNone;
    --cached_;
  }

  Arena arena_;
  std::vector<Record> records_;
  std::vector<uint32_t> later_nodes_;  // [extent, blocks - 1]: nodes of the blocks after the first
  uint32_t blocks_;
  uint32_t head_ = kNone, tail_ = kNone;
  int64_t cached_ = 0;
};

}  // namespace kvasir
