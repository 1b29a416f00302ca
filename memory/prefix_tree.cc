#include "memory/prefix_tree.h"

#include <bit>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvasir {
namespace {

ChainHash ToChainHash(XXH128_hash_t h) {
  return {h.low64, h.high64};
}

}  // namespace

size_t PrefixTree::SaltHash::operator()(const Salt& salt) const {
  return XXH3_64bits(salt.data(), salt.size());
}

PrefixTree::PrefixTree(int64_t num_blocks, int block_tokens, std::string fingerprint, int hash_bits)
    : block_tokens_(block_tokens), fingerprint_(std::move(fingerprint)), hash_bits_(hash_bits) {
  KVASIR_CHECK(num_blocks < int64_t{1} << 30, "{} blocks", num_blocks);  // so the children fit, and a tag tells the home
  nodes_.resize(size_t(num_blocks));
  tokens_.resize(size_t(num_blocks) * size_t(block_tokens));
  slots_.resize(std::bit_ceil(size_t(num_blocks) * 2 + 2));
  slot_mask_ = slots_.size() - 1;
}

ChainHash PrefixTree::Weaken(ChainHash hash) const {
  if (hash_bits_ >= 128) return hash;
  return {hash.low & ((uint64_t{1} << std::min(hash_bits_, 63)) - 1), 0};
}

ChainHash PrefixTree::RootHash(std::span<const std::byte, 32> salt) const {
  return ToChainHash(XXH3_128bits_withSeed(salt.data(), salt.size(), XXH3_64bits(fingerprint_.data(), fingerprint_.size())));
}

ChainHash PrefixTree::Child(const ChainHash& parent, const int32_t* tokens) const {
  // The parent's hash is both seed and, through its upper half, secret-like mixing: 128 bits of the parent enter the child.
  const XXH128_hash_t h =
      XXH3_128bits_withSeed(tokens, sizeof(int32_t) * size_t(block_tokens_), parent.low ^ std::rotl(parent.high, 32));
  return Weaken({h.low64 + parent.high, h.high64 ^ parent.low});
}

PrefixTree::Cursor PrefixTree::Root(std::span<const std::byte, 32> salt) const {
  Salt key;
  std::memcpy(key.data(), salt.data(), key.size());
  const auto it = root_of_.find(key);
  return {it == root_of_.end() ? kNone : it->second | kRootBit, RootHash(salt)};
}

uint32_t PrefixTree::Find(Cursor& cursor, const int32_t* tokens) const {
  if (cursor.parent == kNone) return kNone;
  const ChainHash hash = Child(cursor.hash, tokens);
  const uint32_t tag = uint32_t(hash.low);
  for (uint64_t i = hash.low & slot_mask_; slots_[i].block != kNone; i = (i + 1) & slot_mask_) {
    if (slots_[i].tag != tag) continue;
    const uint32_t block = slots_[i].block;
    const Node& node = nodes_[block];
    if (node.hash != hash) continue;
    if (node.parent == cursor.parent &&
        std::memcmp(&tokens_[size_t{block} * block_tokens_], tokens, sizeof(int32_t) * size_t(block_tokens_)) == 0) {
      cursor = {block, hash};
      return block;
    }
    ++collisions_;
  }
  return kNone;
}

uint32_t PrefixTree::AddRoot(std::span<const std::byte, 32> salt) {
  Salt key;
  std::memcpy(key.data(), salt.data(), key.size());
  uint32_t root;
  if (free_roots_.empty()) {
    root = uint32_t(roots_.size());
    roots_.push_back({});
  } else {
    root = free_roots_.back();
    free_roots_.pop_back();
  }
  roots_[root] = {key, 0};
  root_of_.emplace(key, root);
  return root | kRootBit;
}

void PrefixTree::Insert(Cursor& cursor, const int32_t* tokens, uint32_t block, std::span<const std::byte, 32> salt) {
  KVASIR_CHECK(!nodes_[block].in_tree, "block {} is published already", block);
  if (cursor.parent == kNone) cursor.parent = AddRoot(salt);
  const ChainHash hash = Child(cursor.hash, tokens);
  nodes_[block] = {.hash = hash, .parent = cursor.parent, .in_tree = true};
  std::memcpy(&tokens_[size_t{block} * block_tokens_], tokens, sizeof(int32_t) * size_t(block_tokens_));
  if (cursor.parent & kRootBit) {
    ++roots_[cursor.parent & ~kRootBit].children;
  } else {
    ++nodes_[cursor.parent].children;
  }
  uint64_t i = hash.low & slot_mask_;
  while (slots_[i].block != kNone) i = (i + 1) & slot_mask_;
  slots_[i] = {uint32_t(hash.low), block};
  ++size_;
  cursor = {block, hash};
}

// Linear probing without tombstones: entries after the hole move back when their home lies at or before it.
void PrefixTree::EraseSlot(uint32_t block) {
  uint64_t hole = nodes_[block].hash.low & slot_mask_;
  while (slots_[hole].block != block) {
    KVASIR_CHECK(slots_[hole].block != kNone, "block {} is not in the hash table", block);
    hole = (hole + 1) & slot_mask_;
  }
  for (uint64_t i = (hole + 1) & slot_mask_; slots_[i].block != kNone; i = (i + 1) & slot_mask_) {
    const uint64_t home = slots_[i].tag & slot_mask_;
    if (((i - home) & slot_mask_) >= ((i - hole) & slot_mask_)) {
      slots_[hole] = slots_[i];
      hole = i;
    }
  }
  slots_[hole] = {};
}

void PrefixTree::DropChild(uint32_t parent) {
  if (!(parent & kRootBit)) {
    --nodes_[parent].children;
    return;
  }
  Tenant& root = roots_[parent & ~kRootBit];
  if (--root.children == 0) {
    root_of_.erase(root.salt);
    free_roots_.push_back(parent & ~kRootBit);
  }
}

void PrefixTree::MakeEvictable(uint32_t block) {
  Node& node = nodes_[block];
  KVASIR_DCHECK(node.in_tree && !node.evictable, "block {}", block);
  node.evictable = true;
  node.prev = tail_;
  node.next = kNone;
  (tail_ == kNone ? head_ : nodes_[tail_].next) = block;
  tail_ = block;
  ++evictable_;
}

void PrefixTree::MakeUnevictable(uint32_t block) {
  Node& node = nodes_[block];
  KVASIR_DCHECK(node.evictable, "block {}", block);
  (node.prev == kNone ? head_ : nodes_[node.prev].next) = node.next;
  (node.next == kNone ? tail_ : nodes_[node.next].prev) = node.prev;
  node.prev = node.next = kNone;
  node.evictable = false;
  --evictable_;
}

// A cache of a million blocks lies in DRAM, and evicting a block touches four places in it. The next one's are asked for now:
// when a prompt takes many blocks at once, they arrive while this one is being used.
void PrefixTree::PrefetchEviction() const {
  if (head_ == kNone) return;
  const Node& node = nodes_[head_];
  __builtin_prefetch(&slots_[node.hash.low & slot_mask_], 1);
  if (node.next != kNone) __builtin_prefetch(&nodes_[node.next], 1);
  if (!(node.parent & kRootBit)) __builtin_prefetch(&nodes_[node.parent], 1);
}

uint32_t PrefixTree::Evict() {
  const uint32_t block = head_;
  if (block == kNone) return kNone;
  KVASIR_CHECK(nodes_[block].children == 0, "block {} has {} children but is first to be evicted", block,
               uint32_t(nodes_[block].children));
  MakeUnevictable(block);
  EraseSlot(block);
  DropChild(nodes_[block].parent);
  nodes_[block] = {};
  --size_;
  PrefetchEviction();
  return block;
}

Status PrefixTree::Check() const {
  std::vector<uint32_t> children(nodes_.size());
  std::unordered_map<uint32_t, uint32_t> root_children;
  int64_t in_tree = 0;
  for (size_t b = 0; b < nodes_.size(); ++b) {
    const Node& node = nodes_[b];
    if (!node.in_tree) continue;
    ++in_tree;
    if (node.parent & kRootBit) {
      ++root_children[node.parent & ~kRootBit];
    } else {
      if (!nodes_[node.parent].in_tree) return Internal("block {} outlives its parent {}", b, node.parent);
      if (!node.evictable && nodes_[node.parent].evictable)
        return Internal("block {} is held but its parent {} is not", b, node.parent);
      ++children[node.parent];
    }
  }
  for (size_t b = 0; b < nodes_.size(); ++b) {
    if (children[b] != nodes_[b].children)
      return Internal("block {} has {} children, not {}", b, children[b], uint32_t(nodes_[b].children));
  }
  for (size_t r = 0; r < roots_.size(); ++r) {
    const auto it = root_of_.find(roots_[r].salt);
    const bool alive = it != root_of_.end() && it->second == r;
    if (alive && root_children[uint32_t(r)] != roots_[r].children) return Internal("root {} counts its children wrongly", r);
    if (!alive && root_children[uint32_t(r)] != 0) return Internal("root {} is gone but has children", r);
  }
  if (in_tree != size_) return Internal("{} blocks are in the tree but {} are counted", in_tree, size_);
  int64_t listed = 0, slots = 0;
  std::vector<char> passed(nodes_.size());
  for (uint32_t b = head_; b != kNone; b = nodes_[b].next) {
    if (!nodes_[b].evictable || ++listed > evictable_) return Internal("the order of eviction is torn at block {}", b);
    passed[b] = 1;
    if (!(nodes_[b].parent & kRootBit) && passed[nodes_[b].parent])
      return Internal("block {} would be evicted after its parent", b);
  }
  if (listed != evictable_) return Internal("{} evictable blocks listed, {} counted", listed, evictable_);
  for (const Slot& slot : slots_) slots += slot.block != kNone;
  if (slots != size_) return Internal("{} hash slots for {} blocks", slots, size_);
  return OkStatus();
}

}  // namespace kvasir
