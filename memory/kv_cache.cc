#include "memory/kv_cache.h"

#include <algorithm>
#include <atomic>

#include "memory/extent_pool.h"
#include "memory/mutations.h"
#include "memory/prefix_tree.h"

namespace kvasir {
namespace {

// Where the first group has a window, its text is longer than the blocks kept of it: so many times as many links.
constexpr int64_t kLinksPerBlock = 8;

int64_t MaxNodes(int64_t extents, int64_t blocks_per_extent, bool first_has_window) {
  const int64_t nodes = extents * blocks_per_extent * (first_has_window ? kLinksPerBlock : 1);
  return std::min<int64_t>(nodes, (int64_t{1} << 31) - 1);
}

}  // namespace

#ifdef KVASIR_MUTATIONS
Mutation active_mutation = Mutation::kNone;
#endif

KvCache::KvCache(const KvCacheConfig& config) : config_(config) {
  KVASIR_CHECK(config.num_blocks > 0 && config.block_tokens > 0, "{} blocks of {} tokens", config.num_blocks,
               config.block_tokens);
  if (config_.groups.empty()) config_.groups.push_back({});
  plan_ = PlanKvArena(config_.groups);
  uint32_t most_blocks = 1;
  for (size_t g = 0; g < config_.groups.size(); ++g) {
    const KvArenaPlan::Group& planned = plan_.groups[g];
    const int32_t window = config_.groups[g].window_tokens;
    groups_.push_back({.granules = planned.granules,
                       .per_extent = int32_t(planned.blocks_per_extent),
                       .window_tokens = window,
                       .window_blocks = window == 0 ? 0 : BlocksFor(window - 1),
                       .found_blocks = std::max(BlocksFor(std::max(0, window - 1)), planned.blocks_per_extent > 1 ? 1 : 0),
                       .block_bytes = planned.block_bytes});
    shapes_.push_back({int32_t(planned.blocks_per_extent) * config_.block_tokens, window});
    most_blocks = std::max(most_blocks, planned.blocks_per_extent);
    has_windows_ = has_windows_ || window > 0;
  }
  plain_ = groups_.size() == 1 && !has_windows_;
  const int64_t extents = config.num_blocks + config.host_blocks;
  KVASIR_CHECK(extents * plan_.extent_granules < int64_t{kNone}, "{} + {} extents of {} granules do not fit 32-bit names",
               config.num_blocks, config.host_blocks, plan_.extent_granules);
  if (groups_.size() > 1) group_of_.resize(size_t(extents));
  first_host_ = uint32_t(config.num_blocks);
  pool_ = std::make_unique<ExtentPool>(config.num_blocks, int(most_blocks));
  if (config.host_blocks > 0) host_ = std::make_unique<ExtentPool>(config.host_blocks, int(most_blocks), first_host_);
  tree_ = std::make_unique<PrefixTree>(MaxNodes(extents, most_blocks, groups_[0].window_tokens > 0), num_groups(),
                                       config.block_tokens, config.fingerprint, config.hash_bits);
}

KvCache::~KvCache() = default;

// Stamps are never used again, not by another cache on the same device either.
void KvCache::Restamp(SequenceKv& kv) {
  static std::atomic<uint64_t> next = 1;
  kv.stamp = next.fetch_add(kMaxKvGroups, std::memory_order_relaxed);
}

// --- references ---------------------------------------------------------------------------------------------------------

void KvCache::Hold(uint32_t extent) {
  if (!Pool(extent).AddReference(extent) || !has_windows_ || IsHost(extent)) return;
  if (groups_[group_of_.empty() ? 0 : group_of_[extent]].window_tokens > 0) ++held_in_windows_;
}

void KvCache::LetGo(uint32_t extent) {
  ExtentPool& pool = Pool(extent);
  if (!pool.DropReference(extent)) return;
  const Group& group = groups_[group_of_.empty() ? 0 : group_of_[extent]];
  if (group.window_tokens > 0 && !IsHost(extent)) --held_in_windows_;
  if (pool.IsPublished(extent, 0, uint32_t(group.per_extent))) {
    pool.Cache(extent);
  } else {
    pool.Free(extent);
  }
}

// Takes the blocks from first_offset on out of the tree.
void KvCache::Forget(uint32_t extent, uint32_t first_offset) {
  const int g = group_of_.empty() ? 0 : group_of_[extent];
  ExtentPool& pool = Pool(extent);
  for (uint32_t offset = first_offset; offset < uint32_t(groups_[g].per_extent); ++offset) {
    const uint32_t node = pool.node(extent, offset);
    if (node == kNone) continue;
    pool.SetNode(extent, offset, kNone);
    tree_->ClearBlock(node, g);
    ++stats_.evicted_blocks;
  }
}

// When a prompt takes many blocks at once, what the next evictions touch arrives while this one is being used: the next one's
// hash slot, the node of the one after it, and the record of the one after that.
void KvCache::PrefetchEviction() const {
  const uint32_t next = pool_->oldest();
  if (next == kNone) return;
  if (const uint32_t node = pool_->node(next, 0); node != kNone) tree_->PrefetchRemoval(node);
  const uint32_t second = pool_->next_oldest(next);
  if (second == kNone) return;
  if (const uint32_t node = pool_->node(second, 0); node != kNone) tree_->PrefetchNode(node);
  if (const uint32_t third = pool_->next_oldest(second); third != kNone) pool_->Prefetch(third);
}

uint32_t KvCache::Take(int group, std::vector<BlockCopy>& copies) {
  uint32_t extent;
  if (pool_->free_extents() > 0) {
    extent = pool_->Allocate();
  } else {
    extent = pool_->TakeOldest();
    KVASIR_CHECK(extent != kNone, "no memory is free and nothing can be given up");
    if (!MoveOut(extent, copies) && !KVASIR_MUTATED(kForgetToUnpublish)) Forget(extent, 0);
    PrefetchEviction();
  }
  if (!group_of_.empty()) group_of_[extent] = uint8_t(group);
  if (groups_[group].window_tokens > 0) ++held_in_windows_;
  ++taken_;
  return extent;
}

int64_t KvCache::available_extents() const {
  return pool_->free_extents() + pool_->cached_extents();
}

// The extent of a sequence's run of blocks. The last block of a run is let go together with its extent, so it names it.
uint32_t KvCache::RunExtent(const SequenceKv& kv, int group, int32_t run) const {
  const Group& g = groups_[group];
  const int32_t last = (run + 1) * g.per_extent - 1;
  const std::vector<uint32_t>& table = kv.tables[group];
  return last < int32_t(table.size()) ? ExtentOf(table[size_t(last)]) : kv.last_extent[group];
}

int64_t KvCache::HeldExtents(const SequenceKv& kv, int group) const {
  return groups_[group].ExtentsFor(int32_t(kv.tables[group].size())) - groups_[group].Run(kv.released[group]) - kv.in_host[group];
}

// --- finding ------------------------------------------------------------------------------------------------------------

// The usable prefix in blocks; path_ holds its nodes (and maybe more).
int32_t KvCache::Walk(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens) const {
  const int32_t limit = std::min<int32_t>(max_tokens, int32_t(tokens.size())) / config_.block_tokens;
  PrefixTree::Cursor cursor = tree_->Root(salt);
  std::array<int32_t, kMaxKvGroups> run{};  // blocks in a row up to here
  int32_t usable = 0;
  path_.clear();
  for (int32_t i = 0; i < limit; ++i) {
    const uint32_t node = tree_->Find(cursor, &tokens[size_t(i) * config_.block_tokens]);
    if (node == kNone) break;
    path_.push_back(node);
    bool fits = true;
    for (int g = 0; g < num_groups(); ++g) {
      run[g] = tree_->block(node, g) == kNone ? 0 : run[g] + 1;
      if (groups_[g].window_tokens == 0 && run[g] == 0) return usable;
      const int32_t read = groups_[g].window_tokens == 0 ? i + 1 : std::min(i + 1, groups_[g].found_blocks);
      fits = fits && (run[g] >= read || (KVASIR_MUTATED(kMatchWithoutWindow) && groups_[g].window_tokens > 0));
    }
    if (fits) usable = i + 1;
  }
  return usable;
}

int32_t KvCache::Peek(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens) const {
  if (!config_.enable_prefix_caching) return 0;
  return Walk(tokens, salt, max_tokens) * config_.block_tokens;
}

int32_t KvCache::Match(std::span<const int32_t> tokens, std::span<const std::byte, 32> salt, int32_t max_tokens, bool count,
                       SequenceKv& kv) {
  KVASIR_CHECK(kv.empty() && kv.num_published == 0, "Match needs an empty sequence");
  if (!KVASIR_MUTATED(kReuseStamp) || kv.stamp == 0) Restamp(kv);
  if (config_.enable_prefix_caching) {
    const int32_t found = Walk(tokens, salt, max_tokens);
    for (int g = 0; g < num_groups(); ++g) HoldPath(kv, g, found);
    if (found > 0) {
      kv.tail_node = path_[size_t(found) - 1];
      kv.chain = tree_->hash(kv.tail_node);
      tree_->Pin(kv.tail_node);
    }
    kv.num_published = found;
    kv.num_tokens = found * config_.block_tokens;
    if (count) stats_.host_hit_tokens += std::min<int64_t>(kv.in_host[0] * shapes_[0].extent_tokens, kv.num_tokens);
  }
  if (has_windows_) SetNextTrim(kv);
  if (count) {
    stats_.queried_tokens += int64_t(tokens.size());
    stats_.hit_tokens += kv.num_tokens;
  }
  return kv.num_tokens;
}

// The extent that holds a text's deepest published block of a run holds all of the run's blocks before it that can be read: who
// published it had them there, computed or copied. So each run of a match is taken from one extent.
void KvCache::HoldPath(SequenceKv& kv, int group, int32_t blocks) {
  const Group& g = groups_[group];
  std::vector<uint32_t>& table = kv.tables[group];
  int32_t first = g.window_tokens == 0 ? 0 : std::max(0, blocks - g.window_blocks);
  kv.released[group] = first;
  if (g.per_extent == 1) {
    table.assign(size_t(first), kNone);
    for (int32_t i = first; i < blocks; ++i) {
      const uint32_t entry = tree_->block(path_[size_t(i)], group);
      if (KVASIR_MUTATED(kMatchWithoutWindow) && entry == kNone) {
        table.assign(size_t(i) + 1, kNone);
        kv.released[group] = i + 1;
        continue;
      }
      Hold(ExtentOf(entry));
      kv.in_host[group] += IsHost(ExtentOf(entry));
      table.push_back(entry);
    }
    return;
  }
  table.assign(size_t(blocks), kNone);
  // The last run goes on in its extent even where nothing in it is read any more.
  for (int32_t run = g.Run(first); run < g.ExtentsFor(blocks); ++run) {
    const int32_t end = std::min(blocks, (run + 1) * g.per_extent);
    const uint32_t entry = tree_->block(path_[size_t(end) - 1], group);
    if (KVASIR_MUTATED(kMatchWithoutWindow) && entry == kNone) {
      kv.released[group] = first = end;
      kv.last_extent[group] = 0;
      continue;
    }
    const uint32_t extent = ExtentOf(entry);
    Hold(extent);
    kv.in_host[group] += IsHost(extent);
    kv.last_extent[group] = extent;
    for (; first < end; ++first) table[size_t(first)] = Entry(extent, g.Offset(first), g);
  }
  if (g.Offset(blocks) != 0) kv.shared_tails |= 1u << group;
}

// --- growing ------------------------------------------------------------------------------------------------------------

// Whether a run that is about to be written from first_block on must be replaced by one's own. Another one may hold it, or what
// is published behind first_block would be lost; the latter is given up as a last resort.
bool KvCache::NeedsCopy(const SequenceKv& kv, int group, int32_t run, int32_t first_block, bool last_resort) const {
  const Group& g = groups_[group];
  const uint32_t extent = RunExtent(kv, group, run);
  if (Pool(extent).references(extent) > 1) return true;
  if (g.per_extent == 1 || last_resort || run != g.Run(first_block)) return false;
  return Pool(extent).IsPublished(extent, g.Offset(first_block), uint32_t(g.per_extent));
}

int64_t KvCache::CopiesNeeded(const SequenceKv& kv, int32_t first_block, bool last_resort) const {
  int64_t copies = 0;
  for (int g = 0; g < num_groups(); ++g) {
    if (!(kv.shared_tails >> g & 1)) continue;
    const int32_t runs = groups_[g].ExtentsFor(int32_t(kv.tables[g].size()));
    for (int32_t run = groups_[g].Run(first_block); run < runs; ++run) copies += NeedsCopy(kv, g, run, first_block, last_resort);
  }
  return copies;
}

// Makes all runs from first_write on the sequence's own; the blocks of the first that hold tokens before it are copied.
void KvCache::Unshare(SequenceKv& kv, int group, int32_t first_write, bool last_resort, std::vector<BlockCopy>& copies) {
  const Group& g = groups_[group];
  std::vector<uint32_t>& table = kv.tables[group];
  const int32_t held = int32_t(table.size()), first_block = first_write / config_.block_tokens;
  const int32_t kept_end = BlocksFor(first_write);  // blocks before it hold tokens we keep
  for (int32_t run = g.Run(first_block); run < g.ExtentsFor(held); ++run) {
    const uint32_t shared = RunExtent(kv, group, run);
    if (!NeedsCopy(kv, group, run, first_block, last_resort)) {
      if (last_resort && run == g.Run(first_block)) Forget(shared, g.Offset(first_block));
      continue;
    }
    const uint32_t mine = Take(group, copies);
    const int32_t begin = std::max(run * g.per_extent, kv.released[group]), end = std::min(held, (run + 1) * g.per_extent);
    if (const int32_t blocks = std::min(end, kept_end) - begin; blocks > 0) {
      const uint32_t offset = g.Offset(begin);
      const int64_t bytes = KVASIR_MUTATED(kCopyTooLittle) && blocks > 1 ? g.block_bytes : blocks * g.block_bytes;
      copies.push_back({Entry(shared, offset, g), Entry(mine, offset, g), bytes});
      ++stats_.copied_blocks;
    }
    for (int32_t i = begin; i < end; ++i) table[size_t(i)] = Entry(mine, g.Offset(i), g);
    if (!KVASIR_MUTATED(kCopyUnderStamp)) Restamp(kv);
    if (end == held) kv.last_extent[group] = mine;
    LetGo(shared);
  }
}

bool KvCache::Grow(SequenceKv& kv, int32_t num_tokens, int32_t first_write, std::vector<BlockCopy>& copies) {
  const int32_t wanted = BlocksFor(num_tokens), first_block = first_write / config_.block_tokens;
  KVASIR_CHECK(first_block >= std::min({kv.num_published, wanted, int32_t(kv.tables[0].size())}),
               "block {} of the sequence is published and about to be written", first_block);
  if (kv.stamp == 0) Restamp(kv);
  int64_t needed = 0;
  for (int g = 0; g < num_groups(); ++g) {
    const int32_t held = int32_t(kv.tables[g].size());
    needed += kv.in_host[g];
    if (wanted > held) needed += groups_[g].ExtentsFor(wanted) - groups_[g].ExtentsFor(held);
  }
  bool last_resort = false;
  if (kv.shared_tails != 0) {
    const int64_t available = available_extents() - needed;
    last_resort = CopiesNeeded(kv, first_block, false) > available;
    if (last_resort && CopiesNeeded(kv, first_block, true) > available) return false;
  }
  if (needed > available_extents()) return false;
  for (int g = 0; g < num_groups() && host_ != nullptr; ++g)
    if (kv.in_host[g] > 0) MoveIn(kv, g, copies);
  if (kv.shared_tails != 0) {
    for (int g = 0; g < num_groups(); ++g) {
      if (kv.shared_tails >> g & 1) Unshare(kv, g, first_write, last_resort, copies);
    }
    kv.shared_tails = 0;
  }
  for (int g = 0; g < num_groups(); ++g) {
    const Group& group = groups_[g];
    std::vector<uint32_t>& table = kv.tables[g];
    while (int32_t(table.size()) < wanted) {
      const uint32_t offset = group.Offset(int32_t(table.size()));
      if (offset == 0) kv.last_extent[g] = Take(g, copies);
      table.push_back(Entry(kv.last_extent[g], offset, group));
    }
  }
  kv.num_tokens = std::max(kv.num_tokens, num_tokens);
  return true;
}

void KvCache::ReserveTables(SequenceKv& kv, int64_t num_tokens) const {
  for (int g = 0; g < num_groups(); ++g) kv.tables[g].reserve(size_t(BlocksFor(num_tokens)) + 1);
}

// --- publishing and letting go ------------------------------------------------------------------------------------------

void KvCache::Publish(SequenceKv& kv, std::span<const int32_t> tokens, int32_t num_computed,
                      std::span<const std::byte, 32> salt) {
  if (!config_.enable_prefix_caching) return;
  const int block_tokens = config_.block_tokens;
  const int32_t full = num_computed / block_tokens;
  if (full <= kv.num_published) return;
  KVASIR_CHECK(size_t(num_computed) <= tokens.size() && size_t(full) <= kv.tables[0].size(),
               "{} tokens computed, {} known, {} blocks", num_computed, tokens.size(), kv.tables[0].size());
  PrefixTree::Cursor cursor = kv.num_published == 0 ? tree_->Root(salt) : PrefixTree::Cursor{kv.tail_node, kv.chain};
  const uint32_t stood_on = kv.tail_node;
  for (; kv.num_published < full; ++kv.num_published) {
    const int32_t* content = &tokens[size_t(kv.num_published) * block_tokens];
    uint32_t node = tree_->Find(cursor, content);
    if (node == kNone) {
      node = tree_->Insert(cursor, content, salt);
      if (node == kNone) break;  // no more links: the rest is tried again with the next block
      ++stats_.published_blocks;
    }
    PublishBlock(kv, kv.num_published, node);
    kv.tail_node = node;
    kv.chain = cursor.hash;
  }
  if (kv.tail_node == stood_on) return;
  tree_->Pin(kv.tail_node);
  if (stood_on != kNone) tree_->Unpin(stood_on);
}

void KvCache::PublishBlock(SequenceKv& kv, int32_t index, uint32_t node) {
  for (int g = 0; g < num_groups(); ++g) {
    const Group& group = groups_[g];
    std::vector<uint32_t>& table = kv.tables[g];
    const uint32_t mine = table[size_t(index)], known = tree_->block(node, g);
    if (mine == kNone || mine == known) continue;  // let go before it could be published; or published by ourselves
    const bool in_host = known != kNone && IsHost(ExtentOf(known));  // computed again where it was not to be matched
    if (in_host) ForgetInHost(node, g);
    if (known == kNone || in_host) {
      tree_->SetBlock(node, g, mine);
      pool_->SetNode(ExtentOf(mine), group.Offset(index), node);
      continue;
    }
    // Somebody computed the same tokens meanwhile. The bytes are the same ("one answer"), so keep one copy, as soon as the extent
    // is full.
    if (group.Offset(index + 1) != 0) continue;
    const uint32_t theirs = ExtentOf(known);
    Hold(theirs);
    const int32_t begin = std::max(kv.released[g], index + 1 - group.per_extent);
    for (int32_t i = begin; i <= index; ++i) table[size_t(i)] = Entry(theirs, group.Offset(i), group);
    if (!KVASIR_MUTATED(kPublishUnderStamp)) Restamp(kv);
    LetGo(ExtentOf(mine));
    if (index + 1 == int32_t(table.size())) kv.last_extent[g] = theirs;
  }
}

void KvCache::SetNextTrim(SequenceKv& kv) const {
  kv.next_trim = INT32_MAX;
  for (int g = 0; g < num_groups(); ++g) {
    if (groups_[g].window_tokens == 0) continue;
    const int64_t next = (int64_t{kv.released[g]} + 1) * config_.block_tokens + groups_[g].window_tokens - 1;
    kv.next_trim = int32_t(std::min<int64_t>(kv.next_trim, next));
  }
}

void KvCache::Trim(SequenceKv& kv, int32_t num_computed) {
  for (int g = 0; g < num_groups(); ++g) {
    const Group& group = groups_[g];
    if (group.window_tokens == 0) continue;
    int32_t first = std::max(0, num_computed - group.window_tokens + 1) / config_.block_tokens;
    if (KVASIR_MUTATED(kTrimTooFar)) first = std::min(first + 1, num_computed / config_.block_tokens);
    std::vector<uint32_t>& table = kv.tables[g];
    for (int32_t& i = kv.released[g]; i < first; ++i) {
      const uint32_t extent = ExtentOf(table[size_t(i)]);
      table[size_t(i)] = kNone;
      if (group.Offset(i + 1) == 0 && !KVASIR_MUTATED(kTrimForgets)) LetGo(extent);
    }
  }
  SetNextTrim(kv);
}

void KvCache::Fork(SequenceKv& parent, SequenceKv& child, int32_t num_computed) {
  KVASIR_CHECK(child.empty(), "Fork needs an empty child");
  KVASIR_CHECK(parent.in_host == decltype(parent.in_host){}, "a match is to be grown before it is forked");
  for (int g = 0; g < num_groups(); ++g) {
    const Group& group = groups_[g];
    const int32_t runs = group.ExtentsFor(int32_t(parent.tables[g].size()));
    if (runs > group.Run(num_computed / config_.block_tokens)) parent.shared_tails |= 1u << g;
    for (int32_t run = group.Run(parent.released[g]); run < runs; ++run) Hold(RunExtent(parent, g, run));
  }
  child = parent;
  if (!KVASIR_MUTATED(kForkStamp)) Restamp(child);
  if (child.tail_node != kNone) tree_->Pin(child.tail_node);
}

void KvCache::Release(SequenceKv& kv) {
  const auto let_go = [&](int g) {
    const int32_t first = groups_[g].Run(kv.released[g]);
    for (int32_t run = groups_[g].ExtentsFor(int32_t(kv.tables[g].size())); run-- > first;) LetGo(RunExtent(kv, g, run));
    kv.tables[g].clear();  // keeps its capacity
  };
  // Windows first, and deepest first: see the order in which things are given up.
  for (int g = 0; g < num_groups(); ++g) {
    if (groups_[g].window_tokens > 0) let_go(g);
  }
  for (int g = 0; g < num_groups(); ++g) {
    if (groups_[g].window_tokens == 0) let_go(g);
  }
  if (kv.tail_node != kNone) tree_->Unpin(kv.tail_node);
  kv.released = {};
  kv.in_host = {};
  kv.num_tokens = kv.num_published = 0;
  kv.next_trim = INT32_MAX;
  kv.shared_tails = 0;
  if (!KVASIR_MUTATED(kReuseStamp)) kv.stamp = 0;
  kv.chain = {};
  kv.tail_node = kNone;
}

void KvCache::DropCached() {
  for (ExtentPool* pool : {pool_.get(), host_.get()}) {
    if (pool == nullptr) continue;
    for (uint32_t extent = pool->TakeOldest(); extent != kNone; extent = pool->TakeOldest()) {
      Forget(extent, 0);
      pool->DropReference(extent);
      pool->Free(extent);
    }
  }
}

KvCacheStats KvCache::stats() const {
  KvCacheStats stats = stats_;
  stats.total_blocks = pool_->num_extents();
  stats.free_blocks = pool_->free_extents();
  stats.cached_blocks = pool_->cached_extents();
  stats.used_blocks = stats.total_blocks - stats.free_blocks - stats.cached_blocks;
  stats.collisions = tree_->collisions();
  if (host_ != nullptr) {
    stats.host_total_blocks = host_->num_extents();
    stats.host_used_blocks = host_->num_extents() - host_->free_extents();
  }
  return stats;
}

}  // namespace kvasir
