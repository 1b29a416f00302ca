// KvCache: the one facade of the memory room. It decides which block of the arena holds which tokens' KV; it never touches the
// bytes. Used by the scheduler, on the engine thread only (nothing here is locked).
//
// Life of a sequence's KV:   Match -> (Grow -> the step computes -> Publish)* -> Release
//  * Match   pins the longest cached prefix of a prompt. Whole blocks only, found by chain hash, confirmed by comparing tokens.
//  * Grow    makes room for more tokens: takes free blocks, evicts least recently used cached leaves, and copies a shared last
//            block before it is written (copy-on-write; the copies are for the device to do before the step). All or nothing.
//  * Publish puts blocks that are full and computed into the prefix tree, where later requests of the same salt find them.
//  * Release drops the references; published blocks stay cached until they are evicted.
//  * Preemption is Publish + Release; resuming is Match. Fork shares all blocks of a sequence (n > 1).
// Invariants (Check): free + cached + in use == total; a block's reference count == the tables that hold it; no block is both
// free and referenced; a published block is full and never written; a parent outlives its children in the tree.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

// 128-bit chain hash: of the parent's hash and a block's tokens; the root is made from model fingerprint, KV format, policy and
// salt.
struct ChainHash {
  uint64_t low = 0, high = 0;
  bool operator==(const ChainHash&) const = default;
};

struct KvCacheConfig {
  int64_t num_blocks = 0;
  int block_tokens = 16;
  bool enable_prefix_caching = true;
  std::string fingerprint;  // model weights + KV format: differs => nothing is shared
  int hash_bits = 128;      // fewer only in tests: collisions may cost time, never a wrong answer
};

// The KV of one sequence. Owned by whoever runs the sequence; changed only by KvCache. Movable, and empty after Release.
struct SequenceKv {
  std::vector<uint32_t> blocks;     // block ids in token order; these are the table entries (a granule is one block)
  int32_t num_tokens = 0;           // slots reserved so far
  int32_t num_published = 0;        // leading blocks that are in the prefix tree (or were found there)
  ChainHash chain;                  // hash of the published prefix
  uint32_t tail_node = UINT32_MAX;  // prefix-tree node of the last published block
};

struct BlockCopy {
  uint32_t from = 0, to = 0;  // block ids
};

struct KvCacheStats {
  int64_t total_blocks = 0, free_blocks = 0, cached_blocks = 0, used_blocks = 0;  // cached: evictable, no user
  int64_t queried_tokens = 0, hit_tokens = 0;                                     // over all Match calls that count
  int64_t evicted_blocks = 0, published_blocks = 0, copied_blocks = 0;
  int64_t collisions = 0;  // hash equal, content not: compared and passed over
};

class PrefixTree;
class BlockPool;

class KvCache {
 public:
  explicit KvCache(const KvCacheConfig& config);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Fills an empty `kv` with the longest cached prefix of `tokens` under `salt` and returns its length in tokens: a multiple of
  // block_tokens, at most max_tokens (callers pass size - 1, so that at least one token is computed for its logits). `count` says
  // whether the statistics see it (resuming after preemption does not count).
  int32_t Match(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens, bool count,
                SequenceKv& kv);
  // The length Match would return, changing nothing (for policies and admission).
  int32_t Peek(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens) const;

  // Reserves slots up to num_tokens in total; slots [first_write, num_tokens) are about to be written. False: not enough blocks,
  // nothing changed.
  bool Grow(SequenceKv& kv, int32_t num_tokens, int32_t first_write, std::vector<BlockCopy>& copies);
  // True if Grow would succeed for `blocks` more blocks.
  bool CanAllocate(int64_t blocks) const;

  // Publishes the full blocks among the first `num_computed` tokens; tokens.size() >= num_computed, salt as given to Match.
  void Publish(SequenceKv& kv, std::span<const int32_t> tokens, int32_t num_computed, std::span<const std::byte, 32> salt);
  void Fork(const SequenceKv& parent, SequenceKv& child);  // child must be empty
  void Release(SequenceKv& kv);
  void DropCached();  // forgets every cached block without users (reset_prefix_cache)

  int BlocksFor(int64_t tokens) const { return int((tokens + config_.block_tokens - 1) / config_.block_tokens); }
  int64_t available_blocks() const;  // free + evictable
  const KvCacheConfig& config() const { return config_; }
  KvCacheStats stats() const;

  // Verifies every invariant over `live` (all sequences that hold blocks). O(blocks); tests and debug builds.
  Status Check(std::span<const SequenceKv* const> live) const;

 private:
  void Hold(uint32_t block);
  void LetGo(uint32_t block);
  uint32_t TakeBlock();  // the caller has made sure that there is one

  KvCacheConfig config_;
  std::unique_ptr<BlockPool> pool_;
  std::unique_ptr<PrefixTree> tree_;
  KvCacheStats stats_;
};

}  // namespace kvasir
