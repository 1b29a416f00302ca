// KvCache: the one facade of the memory room. It decides which part of the arena holds which tokens' KV; it never touches the
// bytes. Used by the scheduler, on the engine thread only (nothing here is locked).
//
// Two units. A *block* is block_tokens tokens of one group of layers: what is published, found and named in tables. An *extent*
// (kv_arena.h) is what is taken, held, counted and given up: one block where the model has one group, some consecutive blocks of
// a group whose blocks are small. Life of a sequence's KV:   Match -> (Grow -> the step computes -> Publish -> Trim)* -> Release
//  * Match   pins the longest usable prefix: every block of the groups that keep all, and of a group with a window those that
//            the next token reads. Whole blocks only, found by chain hash, confirmed by comparing tokens.
//  * Grow    makes room for more tokens: takes free extents, gives up the least recently used cached ones, and copies what is
//            shared before it is written (copy-on-write; the copies are for the device to do before the step). All or nothing.
//  * Publish puts blocks that are full and computed into the prefix tree, where later requests of the same salt find them.
//  * Trim    lets go of the blocks that lie wholly before the window of the next token. Published ones stay cached.
//  * Release drops the references; what is published stays cached until it is given up.
//  * Preemption is Publish + Release; resuming is Match. Fork shares all extents of a sequence (n > 1).
//
// Entries of a table stay as they are under its stamp (SequenceTable in kernels/kv_page.h), except that Trim lets go of some: who
// replaces one, or begins another table, renews it.
//
// Below the device's arena there may be a host's (host_blocks). What is given up on the device then moves there, and can still be
// found; what is found there is moved back by the Grow after the Match, into extents that it counts as any other. So preemption
// becomes a swap, and nothing that calls this knows. Extents of the host are named after the device's, and so are the granules of
// their blocks; a table has such entries only between Match and Grow. A block is in one place. What the host gives up is gone.
// Moves are BlockCopies, to be done in their order before the step: memory that one has left is what the next one fills. So that
// steps need not wait for what they give up, as much as they take is given up ahead (MoveOutAhead).
//
// What is given up first: the extent unused for longest, whatever its group. A sequence lets go of its windows before the groups
// that keep all, and deepest first. A block of a group that keeps all is useless without every block before it, and so goes
// before them; a window's block is needed only by a text that goes on right behind it, so any may go, and one that goes takes the
// use of the deeper blocks of its text with it: they are next in line anyway. What a long text's sliding window left behind is
// older than its end, so ends of texts (where the next turn begins) and prefixes that are met often outlive the middles.
// Invariants (Check): free + cached + in use == total; an extent's reference count == the tables that hold it; what is free is
// neither referenced nor published; a published block is full and never written.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "memory/kv_arena.h"

namespace kvasir {

// 128-bit chain hash: of the parent's hash and a block's tokens; the root is made from model fingerprint, KV format, policy and
// salt.
struct ChainHash {
  uint64_t low = 0, high = 0;
  bool operator==(const ChainHash&) const = default;
};

struct KvCacheConfig {
  int64_t num_blocks = 0;   // extents of the arena: with one group, its blocks
  int64_t host_blocks = 0;  // extents of the host's arena; 0 = there is none
  int block_tokens = 16;
  bool enable_prefix_caching = true;
  std::string fingerprint;            // model weights + KV format: differs => nothing is shared
  int hash_bits = 128;                // fewer only in tests: collisions may cost time, never a wrong answer
  std::vector<KvGroupConfig> groups;  // longest kept first, at most kMaxKvGroups; empty = one that keeps all
};

// The KV of one sequence. Owned by whoever runs the sequence; changed only by KvCache. Movable, and empty after Release.
struct SequenceKv {
  int32_t num_tokens = 0;         // slots reserved so far
  int32_t num_published = 0;      // leading blocks that are in the prefix tree (or were found there)
  int32_t next_trim = INT32_MAX;  // computed tokens at which Trim has something to do
  uint32_t shared_tails = 0;      // bit per group: what is written next may be shared with others
  // Per group: the table entry of each block in token order, kNoBlock where it was let go.
  std::array<std::vector<uint32_t>, kMaxKvGroups> tables;
  std::array<int32_t, kMaxKvGroups> released{};      // leading blocks let go
  std::array<uint32_t, kMaxKvGroups> last_extent{};  // of the last block, where an extent holds several
  std::array<int32_t, kMaxKvGroups> in_host{};       // extents that are still to be moved to the device
  uint64_t stamp = 0;                                // that of group g's table (SequenceTable) is stamp + g; 0 = none yet
  uint32_t tail_node = kNone;                        // prefix-tree node of the last published block
  ChainHash chain;                                   // hash of the published prefix

  bool empty() const { return tables[0].empty(); }
};

struct BlockCopy {
  uint32_t from = 0, to = 0;  // granules: of the device's arena, and after them those of the host's
  int64_t bytes = 0;
};

// Counted in extents; with one group an extent is a block.
struct KvCacheStats {
  int64_t total_blocks = 0, free_blocks = 0, cached_blocks = 0, used_blocks = 0;  // cached: not in use, can be given up
  int64_t queried_tokens = 0, hit_tokens = 0;                                     // over all Match calls that count
  int64_t evicted_blocks = 0, published_blocks = 0, copied_blocks = 0;            // blocks of a group; places in texts; copies
  // The host's part. Extents there are in use as long as something in them can be found.
  int64_t host_total_blocks = 0, host_used_blocks = 0;
  int64_t moved_out_blocks = 0, moved_in_blocks = 0;  // extents moved to the host and back
  int64_t host_hit_tokens = 0;                        // of hit_tokens, those whose first group's blocks came from the host
  int64_t collisions = 0;                             // hash equal, content not: compared and passed over
};

class PrefixTree;
class ExtentPool;

class KvCache {
 public:
  explicit KvCache(const KvCacheConfig& config);
  ~KvCache();

  // Pins the longest usable prefix of `tokens` and returns its length in tokens: a multiple of block_tokens, at most max_tokens
  // (callers pass size - 1, so that at least one token is computed for its logits). `count` says whether the statistics see it
  // (resuming after preemption does not count).
  int32_t Match(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens, bool count,
                SequenceKv& kv);
  // The length Match would return, changing nothing (for policies and admission).
  int32_t Peek(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens) const;

  // Reserves slots up to num_tokens in total; slots [first_write, num_tokens) are about to be written. False: not enough memory,
  // nothing changed.
  bool Grow(SequenceKv& kv, int32_t num_tokens, int32_t first_write, std::vector<BlockCopy>& copies);

  // Moves what has been unused for longest to the host, until as much is free as was taken since the last call: what the next
  // Grow will want. To be called when a step is planned: the copies may be done beside it, before the next one's.
  void MoveOutAhead(std::vector<BlockCopy>& copies);

  // Publishes the full blocks among the first `num_computed` tokens; tokens.size() >= num_computed, salt as given to Match.
  void Publish(SequenceKv& kv, std::span<const int32_t> tokens, int32_t num_computed, std::span<const std::byte, 32> salt);
  // The next token to compute is `num_computed`: lets go of what neither it nor any later one reads. To be called when
  // num_computed >= kv.next_trim, after Publish.
  void Trim(SequenceKv& kv, int32_t num_computed);
  // Child (empty) shares all that parent holds, of which num_computed tokens are computed.
  void Fork(SequenceKv& parent, SequenceKv& child, int32_t num_computed);
  void Release(SequenceKv& kv);
  void DropCached();  // forgets everything cached without users (reset_prefix_cache)
  // Room for the tables of num_tokens tokens, so that growing allocates nothing.
  void ReserveTables(SequenceKv& kv, int64_t num_tokens) const;
  // Granules from here on are the host's.
  uint32_t first_host_granule() const { return first_host_ * plan_.extent_granules; }

  int BlocksFor(int64_t tokens) const { return int((tokens + config_.block_tokens - 1) / config_.block_tokens); }
  int num_groups() const { return int(plan_.groups.size()); }
  const KvArenaPlan& plan() const { return plan_; }
  const std::vector<KvGroupShape>& shapes() const { return shapes_; }
  int64_t available_extents() const;                            // free + cached
  int64_t held_in_windows() const { return held_in_windows_; }  // extents in use by groups with a window, each counted once
  int64_t HeldExtents(const SequenceKv& kv, int group) const;   // of the device
  const KvCacheConfig& config() const { return config_; }
  KvCacheStats stats() const;

  // Verifies every invariant over `live` (all sequences that hold blocks). O(blocks); tests and debug builds.
  Status Check(std::span<const SequenceKv* const> live) const;

 private:
  struct Group {
    uint32_t granules = 1;  // of a block
    int32_t per_extent = 1;
    int32_t window_tokens = 0;
    int32_t window_blocks = 0;  // with a window: blocks before a block boundary that the token there reads
    int32_t found_blocks = 0;   // of these, how many a match must find: one at least where extents are continued
    int64_t block_bytes = 0;
    // Extents of the first n blocks, and the one that block i lies in, as an index within its text.
    int32_t ExtentsFor(int32_t blocks) const { return per_extent == 1 ? blocks : (blocks + per_extent - 1) / per_extent; }
    int32_t Run(int32_t block) const { return per_extent == 1 ? block : block / per_extent; }
    uint32_t Offset(int32_t block) const { return per_extent == 1 ? 0 : uint32_t(block % per_extent); }
  };
  uint32_t ExtentOf(uint32_t entry) const { return plan_.extent_granules == 1 ? entry : entry / plan_.extent_granules; }
  uint32_t Entry(uint32_t extent, uint32_t offset, const Group& group) const {
    return extent * plan_.extent_granules + offset * group.granules;
  }
  uint32_t RunExtent(const SequenceKv& kv, int group, int32_t run) const;
  static void Restamp(SequenceKv& kv);
  int32_t Walk(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens) const;
  void HoldPath(SequenceKv& kv, int group, int32_t blocks);
  bool IsHost(uint32_t extent) const { return extent >= first_host_; }
  ExtentPool& Pool(uint32_t extent) { return IsHost(extent) ? *host_ : *pool_; }
  const ExtentPool& Pool(uint32_t extent) const { return IsHost(extent) ? *host_ : *pool_; }
  void Hold(uint32_t extent);
  void LetGo(uint32_t extent);
  uint32_t Take(int group, std::vector<BlockCopy>& copies);  // of the device; the caller has made sure that there is one
  // kv_host.cc: between device and host.
  void Move(uint32_t from, uint32_t to, int group, std::vector<BlockCopy>& copies);
  bool MoveOut(uint32_t extent, std::vector<BlockCopy>& copies);
  void MoveIn(SequenceKv& kv, int group, std::vector<BlockCopy>& copies);
  void ForgetInHost(uint32_t node, int group);
  void Forget(uint32_t extent, uint32_t first_offset);
  void PrefetchEviction() const;
  bool NeedsCopy(const SequenceKv& kv, int group, int32_t run, int32_t first_block, bool last_resort) const;
  int64_t CopiesNeeded(const SequenceKv& kv, int32_t first_block, bool last_resort) const;
  void Unshare(SequenceKv& kv, int group, int32_t first_write, bool last_resort, std::vector<BlockCopy>& copies);
  void PublishBlock(SequenceKv& kv, int32_t index, uint32_t node);
  void SetNextTrim(SequenceKv& kv) const;
  Status CheckExtents(std::span<const SequenceKv* const> live) const;
  Status CheckTables(const SequenceKv& kv, std::vector<uint32_t>& held) const;
  Status CheckEvictionOrder(const ExtentPool& pool) const;
  Status CheckNodes() const;
  Status CheckHost() const;

  KvCacheConfig config_;
  KvArenaPlan plan_;
  std::vector<Group> groups_;
  std::vector<KvGroupShape> shapes_;
  bool plain_ = true;  // one group that keeps all
  bool has_windows_ = false;
  std::unique_ptr<ExtentPool> pool_, host_;  // host_: null without one
  uint32_t first_host_ = 0;                  // extents from here on are the host's
  std::unique_ptr<PrefixTree> tree_;
  std::vector<uint8_t> group_of_;       // by extent; empty with one group
  mutable std::vector<uint32_t> path_;  // nodes of a walk
  int64_t held_in_windows_ = 0;
  int64_t taken_ = 0;  // extents, since the last MoveOutAhead
  KvCacheStats stats_;
};

}  // namespace kvasir
