// PrefixTree: published blocks, found by what they hold. One node per block: its tokens, its parent block, and its place in the
// order of eviction. A 128-bit chain hash finds a node; parent and tokens are then compared, so a collision costs time, never a
// wrong answer. Children of a tenant's root are kept apart by the root, which is compared by its full 32-byte salt.
//
// Order of eviction: a list of all nodes without users, least recently used first. A sequence that lets go of its blocks does so
// deepest first, and holds every ancestor of a block it holds, so a child without users always stands before its parent: the
// head of the list is always a leaf, and a parent outlives its children. Every operation is O(1) per block.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/status.h"
#include "memory/kv_cache.h"

namespace kvasir {

class PrefixTree {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;
  using Salt = std::array<std::byte, 32>;

  // hash_bits < 128 weakens the hash, for tests of collisions.
  PrefixTree(int64_t num_blocks, int block_tokens, std::string fingerprint, int hash_bits);

  // Where a walk begins: the parent id and chain hash of a salt's root. The root need not exist yet (then nothing can be found).
  struct Cursor {
    uint32_t parent = kNone;  // block id, or a root id (kRootBit set), or kNone: nothing below
    ChainHash hash;
  };
  Cursor Root(std::span<const std::byte, 32> salt) const;
  // The block under `cursor` that holds `tokens` (block_tokens of them), or kNone; on success the cursor moves there.
  uint32_t Find(Cursor& cursor, const int32_t* tokens) const;
  ChainHash Child(const ChainHash& parent, const int32_t* tokens) const;

  // Adds `block` under the cursor and moves the cursor to it. The salt is used when the cursor is at a root that does not exist
  // yet.
  void Insert(Cursor& cursor, const int32_t* tokens, uint32_t block, std::span<const std::byte, 32> salt);
  bool Contains(uint32_t block) const { return nodes_[block].in_tree; }

  void MakeEvictable(uint32_t block);    // its last user left: goes to the most recently used end
  void MakeUnevictable(uint32_t block);  // it got a user again
  // Takes the least recently used block out of the tree, or kNone.
  uint32_t Evict();

  int64_t evictable() const { return evictable_; }
  int64_t size() const { return size_; }
  int64_t collisions() const { return collisions_; }
  ChainHash hash(uint32_t block) const { return nodes_[block].hash; }
  uint32_t parent(uint32_t block) const { return nodes_[block].parent; }
  bool IsEvictable(uint32_t block) const { return nodes_[block].evictable; }
  Status Check() const;  // O(blocks)

 private:
  static constexpr uint32_t kRootBit = 0x80000000u;
  struct alignas(32) Node {  // half a cache line, so that a node is one memory access
    ChainHash hash;
    uint32_t parent = kNone;
    uint32_t prev = kNone, next = kNone;  // order of eviction
    uint32_t children : 30 = 0;
    uint32_t in_tree : 1 = false;
    uint32_t evictable : 1 = false;
  };
  struct Tenant {
    Salt salt;
    uint32_t children = 0;
  };
  struct Slot {
    uint32_t tag = 0;  // low half of the hash's low word: says where the entry's home is without a look at its node
    uint32_t block = kNone;
  };
  struct SaltHash {
    size_t operator()(const Salt& salt) const;
  };
  ChainHash RootHash(std::span<const std::byte, 32> salt) const;
  ChainHash Weaken(ChainHash hash) const;
  void EraseSlot(uint32_t block);
  void PrefetchEviction() const;
  uint32_t AddRoot(std::span<const std::byte, 32> salt);
  void DropChild(uint32_t parent);

  int block_tokens_;
  std::string fingerprint_;
  int hash_bits_;
  std::vector<Node> nodes_;      // by block id
  std::vector<int32_t> tokens_;  // [block id, block_tokens]
  std::vector<Slot> slots_;      // open addressing, linear probing; a power of two, at most half full
  uint64_t slot_mask_ = 0;
  std::vector<Tenant> roots_;
  std::vector<uint32_t> free_roots_;
  std::unordered_map<Salt, uint32_t, SaltHash> root_of_;
  uint32_t head_ = kNone, tail_ = kNone;
  int64_t evictable_ = 0, size_ = 0;
  mutable int64_t collisions_ = 0;
};

}  // namespace kvasir
