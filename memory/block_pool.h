// BlockPool: whole blocks of the arena with reference counts. A block is free, held (count > 0) or cached (count 0, but in the
// prefix tree, which then owns it). A block held more than once, or published, is never written. Used by KvCache only.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/arena.h"

namespace kvasir {

class BlockPool {
 public:
  static constexpr uint32_t kNone = Arena::kNone;

  explicit BlockPool(int64_t num_blocks) : arena_(num_blocks, 1, {1}), references_(size_t(num_blocks)) {}

  // A block with one reference, or kNone.
  uint32_t Allocate() {
    const uint32_t block = arena_.Allocate(0);
    if (block != kNone) references_[block] = 1;
    return block;
  }
  // A block that the prefix tree gave back, straight to its next holder.
  void Reuse(uint32_t block) {
    KVASIR_CHECK(references_[block] == 0, "block {} reused with {} references", block, references_[block]);
    references_[block] = 1;
  }
  void Free(uint32_t block) {
    KVASIR_CHECK(references_[block] == 0, "block {} freed with {} references", block, references_[block]);
    arena_.Free(block, 0);
  }
  void AddReference(uint32_t block) { ++references_[block]; }
  // The count that is left.
  uint32_t DropReference(uint32_t block) {
    KVASIR_CHECK(references_[block] > 0, "block {} released more often than held", block);
    return --references_[block];
  }
  uint32_t references(uint32_t block) const { return references_[block]; }
  int64_t num_blocks() const { return int64_t(references_.size()); }
  int64_t free_blocks() const { return arena_.FreeObjects(0); }
  const Arena& arena() const { return arena_; }

 private:
  Arena arena_;
  std::vector<uint32_t> references_;
};

}  // namespace kvasir
