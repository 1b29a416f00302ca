// KvCache between the device's arena and the host's below it.
#include <utility>

#include "memory/extent_pool.h"
#include "memory/kv_cache.h"
#include "memory/mutations.h"
#include "memory/prefix_tree.h"

namespace kvasir {

// All that is published in an extent goes with it. Both are held; what was there is to be let go by the caller.
void KvCache::Move(uint32_t from, uint32_t to, int group, std::vector<BlockCopy>& copies) {
  const Group& g = groups_[group];
  uint32_t first = kNone, last = 0;
  for (uint32_t offset = 0; offset < uint32_t(g.per_extent); ++offset) {
    const uint32_t node = Pool(from).node(from, offset);
    Pool(to).SetNode(to, offset, node);
    if (node == kNone) continue;
    Pool(from).SetNode(from, offset, kNone);
    tree_->SetBlock(node, group, Entry(to, offset, g));
    first = std::min(first, offset);
    last = offset;
  }
  if (!group_of_.empty()) group_of_[to] = uint8_t(group);
  if (first == kNone) return;
  // The blocks of a run before the first that is published may be read through it (HoldPath).
  if (!KVASIR_MUTATED(kForgetMove)) copies.push_back({Entry(from, 0, g), Entry(to, 0, g), int64_t{last + 1} * g.block_bytes});
}

// What is given up goes to the host, in the place of what has been there unused for longest. False: there is no host, or no room.
bool KvCache::MoveOut(uint32_t extent, std::vector<BlockCopy>& copies) {
  if (host_ == nullptr) return false;
  const int group = group_of_.empty() ? 0 : group_of_[extent];
  uint32_t place;
  if (host_->free_extents() > 0) {
    place = host_->Allocate();
  } else {
    place = host_->TakeOldest();
    if (place == kNone) return false;  // all are being moved in
    Forget(place, 0);
  }
  Move(extent, place, group, copies);
  LetGo(place);
  ++stats_.moved_out_blocks;
  return true;
}

void KvCache::MoveOutAhead(std::vector<BlockCopy>& copies) {
  if (host_ == nullptr) return;
  constexpr int64_t kLeast = 16, kPart = 8;  // one in so many at most: what is cached on the device is worth more there
  const int64_t wanted = std::min(std::max(std::exchange(taken_, 0), kLeast), pool_->num_extents() / kPart);
  while (pool_->free_extents() < wanted && host_->free_extents() + host_->cached_extents() > 0) {
    const uint32_t extent = pool_->TakeOldest();
    if (extent == kNone) return;
    KVASIR_CHECK(MoveOut(extent, copies), "the host has room and takes nothing");
    pool_->DropReference(extent);
    pool_->Free(extent);
  }
}

// Brings what a match has found in the host to the device. The caller has made sure that there is room.
void KvCache::MoveIn(SequenceKv& kv, int group, std::vector<BlockCopy>& copies) {
  const Group& g = groups_[group];
  std::vector<uint32_t>& table = kv.tables[group];
  const int32_t held = int32_t(table.size());
  for (int32_t run = g.Run(kv.released[group]); run < g.ExtentsFor(held); ++run) {
    const uint32_t in_host = RunExtent(kv, group, run);
    if (!IsHost(in_host)) continue;
    const uint32_t mine = Take(group, copies);
    Move(in_host, mine, group, copies);
    LetGo(in_host);
    const int32_t begin = std::max(run * g.per_extent, kv.released[group]), end = std::min(held, (run + 1) * g.per_extent);
    for (int32_t i = begin; i < end; ++i) table[size_t(i)] = Entry(mine, g.Offset(i), g);
    Restamp(kv);
    if (end == held) kv.last_extent[group] = mine;
    --kv.in_host[group];
    ++stats_.moved_in_blocks;
  }
  KVASIR_CHECK(kv.in_host[group] == 0, "{} extents of a match are in the host and cannot be found", kv.in_host[group]);
}

// A block that is in the host was computed again: the new one is kept.
void KvCache::ForgetInHost(uint32_t node, int group) {
  const Group& g = groups_[group];
  const uint32_t entry = tree_->block(node, group), extent = ExtentOf(entry);
  const uint32_t offset = (entry - extent * plan_.extent_granules) / g.granules;
  host_->SetNode(extent, offset, kNone);
  if (host_->references(extent) > 0 || host_->IsPublished(extent, 0, uint32_t(g.per_extent))) return;
  host_->AddReference(extent);  // takes it out of the order of eviction
  host_->DropReference(extent);
  host_->Free(extent);
}

}  // namespace kvasir
