#include "memory/kv_cache.h"

#include <algorithm>

#include "memory/block_pool.h"
#include "memory/prefix_tree.h"

namespace kvasir {

KvCache::KvCache(const KvCacheConfig& config)
    : config_(config),
      pool_(std::make_unique<BlockPool>(config.num_blocks)),
      tree_(std::make_unique<PrefixTree>(config.num_blocks, config.block_tokens, config.fingerprint, config.hash_bits)) {
  KVASIR_CHECK(config.num_blocks > 0 && config.block_tokens > 0, "{} blocks of {} tokens", config.num_blocks,
               config.block_tokens);
}

KvCache::~KvCache() = default;

int32_t KvCache::Peek(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens) const {
  if (!config_.enable_prefix_caching) return 0;
  const int32_t limit = std::min<int32_t>(max_tokens, int32_t(tokens.size())) / config_.block_tokens;
  PrefixTree::Cursor cursor = tree_->Root(salt);
  int32_t found = 0;
  while (found < limit && tree_->Find(cursor, &tokens[size_t(found) * config_.block_tokens]) != PrefixTree::kNone) ++found;
  return found * config_.block_tokens;
}

int32_t KvCache::Match(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens, bool count,
                       SequenceKv& kv) {
  KVASIR_CHECK(kv.blocks.empty() && kv.num_published == 0, "Match needs an empty sequence");
  const int block_tokens = config_.block_tokens;
  if (config_.enable_prefix_caching) {
    const int32_t limit = std::min<int32_t>(max_tokens, int32_t(tokens.size())) / block_tokens;
    PrefixTree::Cursor cursor = tree_->Root(salt);
    for (int32_t i = 0; i < limit; ++i) {
      const uint32_t block = tree_->Find(cursor, &tokens[size_t(i) * block_tokens]);
      if (block == PrefixTree::kNone) break;
      Hold(block);
      kv.blocks.push_back(block);
      kv.tail_node = block;
      kv.chain = cursor.hash;
    }
  }
  kv.num_published = int32_t(kv.blocks.size());
  kv.num_tokens = kv.num_published * block_tokens;
  if (count) {
    stats_.queried_tokens += int64_t(tokens.size());
    stats_.hit_tokens += kv.num_tokens;
  }
  return kv.num_tokens;
}

void KvCache::Hold(uint32_t block) {
  if (tree_->IsEvictable(block)) tree_->MakeUnevictable(block);
  pool_->AddReference(block);
}

void KvCache::LetGo(uint32_t block) {
  if (pool_->DropReference(block) > 0) return;
  if (tree_->Contains(block)) {
    tree_->MakeEvictable(block);
  } else {
    pool_->Free(block);
  }
}

uint32_t KvCache::TakeBlock() {
  if (pool_->free_blocks() == 0) {
    const uint32_t victim = tree_->Evict();
    KVASIR_CHECK(victim != PrefixTree::kNone, "no block is free and none can be evicted");
    pool_->Reuse(victim);
    ++stats_.evicted_blocks;
    return victim;
  }
  return pool_->Allocate();
}

int64_t KvCache::available_blocks() const {
  return pool_->free_blocks() + tree_->evictable();
}
bool KvCache::CanAllocate(int64_t blocks) const {
  return blocks <= available_blocks();
}

bool KvCache::Grow(SequenceKv& kv, int32_t num_tokens, int32_t first_write, std::vector<BlockCopy>& copies) {
  const int block_tokens = config_.block_tokens;
  const size_t wanted = size_t(BlocksFor(num_tokens));
  const size_t held = kv.blocks.size();
  // Blocks about to be written must be ours alone. Usually that is one block at most: the shared last one of a fork.
  int64_t needed = wanted > held ? int64_t(wanted - held) : 0;
  const size_t first_block = size_t(first_write) / size_t(block_tokens);
  for (size_t b = first_block; b < std::min(held, wanted); ++b) needed += pool_->references(kv.blocks[b]) > 1;
  if (!CanAllocate(needed)) return false;
  for (size_t b = first_block; b < std::min(held, wanted); ++b) {
    const uint32_t shared = kv.blocks[b];
    KVASIR_CHECK(b >= size_t(kv.num_published), "block {} of the sequence is published and about to be written", b);
    if (pool_->references(shared) == 1) continue;
    kv.blocks[b] = TakeBlock();
    if (int64_t(b) * block_tokens < first_write) {  // it holds tokens we keep
      copies.push_back({shared, kv.blocks[b]});
      ++stats_.copied_blocks;
    }
    LetGo(shared);
  }
  while (kv.blocks.size() < wanted) kv.blocks.push_back(TakeBlock());
  kv.num_tokens = std::max(kv.num_tokens, num_tokens);
  return true;
}

void KvCache::Publish(SequenceKv& kv, std::span<const int32_t> tokens, int32_t num_computed,
                      std::span<const std::byte, 32> salt) {
  if (!config_.enable_prefix_caching) return;
  const int block_tokens = config_.block_tokens;
  const int32_t full = num_computed / block_tokens;
  if (full <= kv.num_published) return;
  KVASIR_CHECK(size_t(num_computed) <= tokens.size() && size_t(full) <= kv.blocks.size(),
               "{} tokens computed, {} known, {} blocks", num_computed, tokens.size(), kv.blocks.size());
  PrefixTree::Cursor cursor = kv.num_published == 0 ? tree_->Root(salt) : PrefixTree::Cursor{kv.tail_node, kv.chain};
  for (int32_t i = kv.num_published; i < full; ++i) {
    const int32_t* content = &tokens[size_t(i) * block_tokens];
    const uint32_t mine = kv.blocks[i];
    const uint32_t known = tree_->Find(cursor, content);
    if (known == PrefixTree::kNone) {
      tree_->Insert(cursor, content, mine, salt);
      ++stats_.published_blocks;
    } else if (known != mine) {
      // Somebody computed the same tokens meanwhile. The bytes are the same ("one answer"), so keep one copy.
      Hold(known);
      kv.blocks[i] = known;
      LetGo(mine);
    }
    kv.tail_node = kv.blocks[i];
  }
  kv.chain = cursor.hash;
  kv.num_published = full;
}

void KvCache::Fork(const SequenceKv& parent, SequenceKv& child) {
  KVASIR_CHECK(child.blocks.empty(), "Fork needs an empty child");
  child = parent;
  for (const uint32_t block : child.blocks) pool_->AddReference(block);
}

void KvCache::Release(SequenceKv& kv) {
  for (size_t i = kv.blocks.size(); i-- > 0;) LetGo(kv.blocks[i]);  // deepest first: see PrefixTree's order of eviction
  kv.blocks.clear();                                                // keeps its capacity
  kv.num_tokens = kv.num_published = 0;
  kv.chain = {};
  kv.tail_node = PrefixTree::kNone;
}

void KvCache::DropCached() {
  for (uint32_t block = tree_->Evict(); block != PrefixTree::kNone; block = tree_->Evict()) pool_->Free(block);
}

KvCacheStats KvCache::stats() const {
  KvCacheStats stats = stats_;
  stats.total_blocks = pool_->num_blocks();
  stats.free_blocks = pool_->free_blocks();
  stats.cached_blocks = tree_->evictable();
  stats.used_blocks = stats.total_blocks - stats.free_blocks - stats.cached_blocks;
  stats.collisions = tree_->collisions();
  return stats;
}

Status KvCache::Check(std::span<const SequenceKv* const> live) const {
  KVASIR_RETURN_IF_ERROR(AtPlace("arena", pool_->arena().Check()));
  KVASIR_RETURN_IF_ERROR(AtPlace("prefix tree", tree_->Check()));
  std::vector<uint32_t> held(size_t(config_.num_blocks));
  for (const SequenceKv* kv : live) {
    if (kv->num_tokens > int64_t(kv->blocks.size()) * config_.block_tokens) {
      return Internal("a sequence has {} tokens in {} blocks", kv->num_tokens, kv->blocks.size());
    }
    for (size_t i = 0; i < kv->blocks.size(); ++i) {
      ++held[kv->blocks[i]];
      if (int64_t(i) < kv->num_published && !tree_->Contains(kv->blocks[i])) {
        return Internal("block {} counts as published but is not in the tree", kv->blocks[i]);
      }
    }
  }
  int64_t used = 0;
  for (size_t b = 0; b < held.size(); ++b) {
    const uint32_t references = pool_->references(uint32_t(b));
    if (held[b] != references) return Internal("block {} has {} references but stands in {} tables", b, references, held[b]);
    if (references > 0 && tree_->IsEvictable(uint32_t(b))) return Internal("block {} is held and evictable", b);
    if (references == 0 && tree_->Contains(uint32_t(b)) && !tree_->IsEvictable(uint32_t(b))) {
      return Internal("block {} is cached without users but cannot be evicted", b);
    }
    used += references > 0;
  }
  if (used + pool_->free_blocks() + tree_->evictable() != pool_->num_blocks()) {
    return Internal("{} used + {} free + {} cached blocks != {}", used, pool_->free_blocks(), tree_->evictable(),
                    pool_->num_blocks());
  }
  return OkStatus();
}

}  // namespace kvasir
