#include "memory/prefix_tree.h"

#include <algorithm>
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

PrefixTree::PrefixTree(int64_t max_nodes, int num_groups, int block_tokens, std::string fingerprint, int hash_bits)
    : num_groups_(num_groups), block_tokens_(block_tokens), fingerprint_(std::move(fingerprint)), hash_bits_(hash_bits) {
  KVASIR_CHECK(max_nodes < int64_t{1} << 31, "{} nodes", max_nodes);  // an id leaves room for kRootBit
  nodes_.resize(size_t(max_nodes));
  later_blocks_.assign(size_t(max_nodes) * size_t(num_groups - 1), kNone);
  tokens_.resize(size_t(max_nodes) * size_t(block_tokens));
  free_nodes_.reserve(size_t(max_nodes));
  for (int64_t i = max_nodes - 1; i >= 0; --i) free_nodes_.push_back(uint32_t(i));
  slots_.resize(std::bit_ceil(size_t(max_nodes) * 2 + 2));
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
  for (uint64_t i = hash.low & slot_mask_; slots_[i].node != kNone; i = (i + 1) & slot_mask_) {
    if (slots_[i].tag != tag) continue;
    const uint32_t id = slots_[i].node;
    const Node& node = nodes_[id];
    if (node.hash != hash) continue;
    if (node.parent == cursor.parent &&
        std::memcmp(&tokens_[size_t{id} * block_tokens_], tokens, sizeof(int32_t) * size_t(block_tokens_)) == 0) {
      cursor = {id, hash};
      return id;
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

uint32_t PrefixTree::Insert(Cursor& cursor, const int32_t* tokens, std::span<const std::byte, 32> salt) {
  if (cursor.parent == kNone) {
    if (free_nodes_.empty() && dead_.empty()) return kNone;  // a root without children would never go
    cursor.parent = AddRoot(salt);
  }
  ++(cursor.parent & kRootBit ? roots_[cursor.parent & ~kRootBit].children : nodes_[cursor.parent].children);
  if (!dead_.empty()) Reap();  // after the parent has got its child: it may be a link itself
  if (free_nodes_.empty()) {
    DropChild(cursor.parent);
    return kNone;
  }
  const uint32_t id = free_nodes_.back();
  free_nodes_.pop_back();
  const ChainHash hash = Child(cursor.hash, tokens);
  nodes_[id] = {.hash = hash, .parent = cursor.parent};
  std::memcpy(&tokens_[size_t{id} * block_tokens_], tokens, sizeof(int32_t) * size_t(block_tokens_));
  uint64_t i = hash.low & slot_mask_;
  while (slots_[i].node != kNone) i = (i + 1) & slot_mask_;
  slots_[i] = {uint32_t(hash.low), id};
  ++size_;
  cursor = {id, hash};
  return id;
}

bool PrefixTree::IsDead(uint32_t id) const {
  const Node& node = nodes_[id];
  if (node.children > 0 || node.pins > 0 || node.block != kNone) return false;
  for (int group = 1; group < num_groups_; ++group) {
    if (block(id, group) != kNone) return false;
  }
  return true;
}

void PrefixTree::ClearBlock(uint32_t node, int group) {
  BlockOf(node, group) = kNone;
  if (!IsDead(node)) return;
  Remove(node);
  if (!dead_.empty()) Reap();
}

void PrefixTree::Unpin(uint32_t node) {
  KVASIR_CHECK(nodes_[node].pins > 0, "node {} has no pin", node);
  --nodes_[node].pins;
  if (!IsDead(node)) return;
  Remove(node);
  if (!dead_.empty()) Reap();
}

void PrefixTree::Remove(uint32_t node) {
  const uint32_t parent = nodes_[node].parent;
  EraseSlot(node);
  nodes_[node] = {};
  free_nodes_.push_back(node);
  --size_;
  DropChild(parent);
  if (!(parent & kRootBit) && IsDead(parent)) dead_.push_back(parent);
}

// Each call takes out more than any call adds, so a long chain of links goes while others are made, and never at once.
void PrefixTree::Reap() {
  constexpr int kAtOnce = 4;
  for (int i = 0; i < kAtOnce && !dead_.empty(); ++i) {
    const uint32_t node = dead_.back();
    dead_.pop_back();
    if (nodes_[node].parent != kNone && IsDead(node)) Remove(node);
  }
}

// Linear probing without tombstones: entries after the hole move back when their home lies at or before it.
void PrefixTree::EraseSlot(uint32_t node) {
  uint64_t hole = nodes_[node].hash.low & slot_mask_;
  while (slots_[hole].node != node) {
    KVASIR_CHECK(slots_[hole].node != kNone, "node {} is not in the hash table", node);
    hole = (hole + 1) & slot_mask_;
  }
  for (uint64_t i = (hole + 1) & slot_mask_; slots_[i].node != kNone; i = (i + 1) & slot_mask_) {
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

// A cache of a million blocks lies in DRAM, and giving up a block touches several places in it.
void PrefixTree::PrefetchRemoval(uint32_t id) const {
  const Node& node = nodes_[id];
  __builtin_prefetch(&slots_[node.hash.low & slot_mask_], 1);
  if (!(node.parent & kRootBit)) __builtin_prefetch(&nodes_[node.parent], 1);
}

Status PrefixTree::Check(std::span<const uint32_t> pins) const {
  std::vector<uint32_t> children(nodes_.size()), pinned(nodes_.size());
  std::unordered_map<uint32_t, uint32_t> root_children;
  for (const uint32_t node : pins) ++pinned[node];
  int64_t in_tree = 0, slots = 0;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    const Node& node = nodes_[n];
    if (node.parent == kNone) continue;
    ++in_tree;
    if (node.parent & kRootBit) {
      ++root_children[node.parent & ~kRootBit];
    } else {
      if (nodes_[node.parent].parent == kNone) return Internal("node {} outlives its parent {}", n, node.parent);
      ++children[node.parent];
    }
  }
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (children[n] != nodes_[n].children) return Internal("node {} has {} children, not {}", n, children[n], nodes_[n].children);
    if (pinned[n] != nodes_[n].pins) return Internal("node {} has {} pins, not {}", n, pinned[n], nodes_[n].pins);
    if (nodes_[n].parent == kNone || !IsDead(uint32_t(n))) continue;
    if (std::find(dead_.begin(), dead_.end(), uint32_t(n)) == dead_.end()) return Internal("node {} is a link to nothing", n);
  }
  for (size_t r = 0; r < roots_.size(); ++r) {
    const auto it = root_of_.find(roots_[r].salt);
    const bool alive = it != root_of_.end() && it->second == r;
    if (alive && root_children[uint32_t(r)] != roots_[r].children) return Internal("root {} counts its children wrongly", r);
    if (!alive && root_children[uint32_t(r)] != 0) return Internal("root {} is gone but has children", r);
  }
  if (in_tree != size_) return Internal("{} nodes are in the tree but {} are counted", in_tree, size_);
  if (size_ + int64_t(free_nodes_.size()) != max_nodes()) return Internal("{} nodes are lost", max_nodes() - size_);
  for (const Slot& slot : slots_) slots += slot.node != kNone;
  if (slots != size_) return Internal("{} hash slots for {} nodes", slots, size_);
  return OkStatus();
}

}  // namespace kvasir
