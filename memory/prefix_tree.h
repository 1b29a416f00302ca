// PrefixTree: published blocks, found by what they hold. A node stands for one block's place in one text: its tokens after its
// parent's. It carries the block of each group of layers, or kNone where that group's block was given up. A 128-bit chain hash
// finds a node; parent and tokens are then compared, so a collision costs time, never a wrong answer. Children of a tenant's root
// are kept apart by the root, which is compared by its full 32-byte salt.
//
// A node lives as long as it has a block, a child, or a pin (a sequence whose published text ends there). One without a block is
// only a link to what follows; the last node of a text goes with its last block. Links that nothing follows any more go a few
// at a time, so every operation is O(1). Used by KvCache only; which blocks may be given up is decided there.
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
  using Salt = std::array<std::byte, 32>;

  // hash_bits < 128 weakens the hash, for tests of collisions.
  PrefixTree(int64_t max_nodes, int num_groups, int block_tokens, std::string fingerprint, int hash_bits);

  // Where a walk begins: the parent node and chain hash of a salt's root. The root need not exist yet (then nothing can be
  // found).
  struct Cursor {
    uint32_t parent = kNone;  // node, or a root id (kRootBit set), or kNone: nothing below
    ChainHash hash;
  };
  Cursor Root(std::span<const std::byte, 32> salt) const;
  // The node under `cursor` that holds `tokens` (block_tokens of them), or kNone; on success the cursor moves there.
  uint32_t Find(Cursor& cursor, const int32_t* tokens) const;
  ChainHash Child(const ChainHash& parent, const int32_t* tokens) const;

  // Adds a node under the cursor and moves the cursor to it; kNone when there are max_nodes already. It must get a block, a child
  // or a pin before anything else is taken out. The salt is used when the cursor is at a root that does not exist yet.
  uint32_t Insert(Cursor& cursor, const int32_t* tokens, std::span<const std::byte, 32> salt);

  // The table entry of a group's block, or kNone.
  uint32_t block(uint32_t node, int group) const {
    return group == 0 ? nodes_[node].block : later_blocks_[size_t(node) * size_t(num_groups_ - 1) + size_t(group - 1)];
  }
  void SetBlock(uint32_t node, int group, uint32_t entry) { BlockOf(node, group) = entry; }
  void ClearBlock(uint32_t node, int group);
  void Pin(uint32_t node) { ++nodes_[node].pins; }
  void Unpin(uint32_t node);

  int64_t size() const { return size_; }
  int64_t collisions() const { return collisions_; }
  ChainHash hash(uint32_t node) const { return nodes_[node].hash; }
  uint32_t parent(uint32_t node) const { return nodes_[node].parent; }
  bool IsRoot(uint32_t parent) const { return (parent & kRootBit) != 0; }
  bool Contains(uint32_t node) const { return node < nodes_.size() && nodes_[node].parent != kNone; }
  int64_t max_nodes() const { return int64_t(nodes_.size()); }
  // What is touched when this node loses its last block: for a caller who knows which one is next.
  void PrefetchNode(uint32_t node) const { __builtin_prefetch(&nodes_[node], 1); }
  void PrefetchRemoval(uint32_t node) const;

  // `pins`: the node of each sequence that stands on one. O(nodes).
  Status Check(std::span<const uint32_t> pins) const;

 private:
  static constexpr uint32_t kRootBit = 0x80000000u;
  struct alignas(32) Node {  // half a cache line, so that a node is one memory access
    ChainHash hash;
    uint32_t parent = kNone;  // kNone: the node is free
    uint32_t children = 0;
    uint32_t pins = 0;
    uint32_t block = kNone;  // of group 0; the others' lie in later_blocks_
  };
  struct Tenant {
    Salt salt;
    uint32_t children = 0;
  };
  struct Slot {
    uint32_t tag = 0;  // low half of the hash's low word: says where the entry's home is without a look at its node
    uint32_t node = kNone;
  };
  struct SaltHash {
    size_t operator()(const Salt& salt) const;
  };
  ChainHash RootHash(std::span<const std::byte, 32> salt) const;
  ChainHash Weaken(ChainHash hash) const;
  uint32_t& BlockOf(uint32_t node, int group) {
    return group == 0 ? nodes_[node].block : later_blocks_[size_t(node) * size_t(num_groups_ - 1) + size_t(group - 1)];
  }
  bool IsDead(uint32_t node) const;
  void Remove(uint32_t node);
  void Reap();
  void EraseSlot(uint32_t node);
  uint32_t AddRoot(std::span<const std::byte, 32> salt);
  void DropChild(uint32_t parent);

  int num_groups_;
  int block_tokens_;
  std::string fingerprint_;
  int hash_bits_;
  std::vector<Node> nodes_;
  std::vector<uint32_t> later_blocks_;  // [node, num_groups - 1]
  std::vector<int32_t> tokens_;         // [node, block_tokens]
  std::vector<uint32_t> free_nodes_;    // a stack
  std::vector<uint32_t> dead_;          // links that nothing follows; looked at again before they go
  std::vector<Slot> slots_;             // open addressing, linear probing; a power of two, at most half full
  uint64_t slot_mask_ = 0;
  std::vector<Tenant> roots_;
  std::vector<uint32_t> free_roots_;
  std::unordered_map<Salt, uint32_t, SaltHash> root_of_;
  int64_t size_ = 0;
  mutable int64_t collisions_ = 0;
};

}  // namespace kvasir
