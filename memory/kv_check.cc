// KvCache::Check: every invariant, the slow way.
#include <algorithm>

#include "memory/extent_pool.h"
#include "memory/kv_cache.h"
#include "memory/prefix_tree.h"

namespace kvasir {

Status KvCache::Check(std::span<const SequenceKv* const> live) const {
  KVASIR_RETURN_IF_ERROR(AtPlace("extents", pool_->Check()));
  std::vector<uint32_t> pins;
  for (const SequenceKv* kv : live) {
    if (kv->tail_node != kNone) pins.push_back(kv->tail_node);
  }
  KVASIR_RETURN_IF_ERROR(AtPlace("prefix tree", tree_->Check(pins)));
  KVASIR_RETURN_IF_ERROR(CheckExtents(live));
  KVASIR_RETURN_IF_ERROR(CheckEvictionOrder(*pool_));
  if (host_ != nullptr) {
    KVASIR_RETURN_IF_ERROR(AtPlace("host", CheckHost()));
    KVASIR_RETURN_IF_ERROR(AtPlace("host", CheckEvictionOrder(*host_)));
  }
  return CheckNodes();
}

// Between steps what is in the host is there because it can be found, and nobody holds it.
Status KvCache::CheckHost() const {
  KVASIR_RETURN_IF_ERROR(host_->Check());
  int64_t listed = 0;
  for (uint32_t e = host_->oldest(); e != kNone; e = host_->next_oldest(e)) {
    if (++listed > host_->cached_extents()) return Internal("the order of eviction is torn at extent {}", e);
    const int g = group_of_.empty() ? 0 : group_of_[e];
    const uint32_t blocks = uint32_t(groups_[g].per_extent);
    if (host_->references(e) > 0 || !host_->IsPublished(e, 0, blocks)) return Internal("extent {} is kept for nothing", e);
    for (uint32_t offset = 0; offset < blocks; ++offset) {
      const uint32_t node = host_->node(e, offset);
      if (node != kNone && (!tree_->Contains(node) || tree_->block(node, g) != Entry(e, offset, groups_[g]))) {
        return Internal("extent {} says that node {} is in it, which it is not", e, node);
      }
    }
  }
  if (listed != host_->cached_extents() || listed + host_->free_extents() != host_->num_extents()) {
    return Internal("{} extents listed, {} counted, {} free of {}", listed, host_->cached_extents(), host_->free_extents(),
                    host_->num_extents());
  }
  return OkStatus();
}

// One sequence: its entries lie in extents of their group, at their offset, and what counts as published can be found.
Status KvCache::CheckTables(const SequenceKv& kv, std::vector<uint32_t>& held) const {
  for (int g = 0; g < num_groups(); ++g) {
    const Group& group = groups_[g];
    const std::vector<uint32_t>& table = kv.tables[g];
    if (kv.num_tokens > int64_t(table.size()) * config_.block_tokens || table.size() != kv.tables[0].size()) {
      return Internal("a sequence has {} tokens in {} blocks of group {}", kv.num_tokens, table.size(), g);
    }
    for (int32_t i = 0; i < int32_t(table.size()); ++i) {
      if ((table[size_t(i)] == kNone) != (i < kv.released[g])) {
        return Internal("group {}: block {} is {}, {} were let go", g, i, table[size_t(i)], kv.released[g]);
      }
      if (i < kv.released[g]) continue;
      const uint32_t extent = RunExtent(kv, g, group.Run(i));
      if (extent >= held.size() || table[size_t(i)] != Entry(extent, group.Offset(i), group)) {
        return Internal("group {}: block {} at {} is not at its place in extent {}", g, i, table[size_t(i)], extent);
      }
      if (!group_of_.empty() && group_of_[extent] != g) return Internal("extent {} is not of group {}", extent, g);
    }
    for (int32_t run = group.Run(kv.released[g]); run < group.ExtentsFor(int32_t(table.size())); ++run) {
      ++held[RunExtent(kv, g, run)];
    }
  }
  uint32_t node = kv.tail_node;
  for (int32_t i = kv.num_published; i-- > 0; node = tree_->parent(node)) {
    if (tree_->IsRoot(node) || !tree_->Contains(node)) return Internal("block {} counts as published but is not in the tree", i);
    for (int g = 0; g < num_groups(); ++g) {
      const bool ends_run = groups_[g].Offset(i + 1) == 0;
      if (ends_run && i >= kv.released[g] && tree_->block(node, g) != kv.tables[g][size_t(i)]) {
        return Internal("group {}: block {} counts as published but the tree has {} for {}", g, i, tree_->block(node, g),
                        kv.tables[g][size_t(i)]);
      }
    }
  }
  return OkStatus();
}

Status KvCache::CheckExtents(std::span<const SequenceKv* const> live) const {
  std::vector<uint32_t> held(size_t(pool_->num_extents()));
  for (const SequenceKv* kv : live) KVASIR_RETURN_IF_ERROR(CheckTables(*kv, held));
  std::vector<char> cached(held.size());
  int64_t listed = 0;
  for (uint32_t e = pool_->oldest(); e != kNone; e = pool_->next_oldest(e)) {
    if (cached[e] || ++listed > pool_->cached_extents()) return Internal("the order of eviction is torn at extent {}", e);
    cached[e] = 1;
  }
  int64_t used = 0, in_windows = 0;
  for (uint32_t e = 0; e < held.size(); ++e) {
    const uint32_t references = pool_->references(e);
    const int g = group_of_.empty() ? 0 : group_of_[e];
    const uint32_t blocks = uint32_t(groups_[g].per_extent);
    if (held[e] != references) return Internal("extent {} has {} references but stands in {} tables", e, references, held[e]);
    if (references > 0 && cached[e]) return Internal("extent {} is held and evictable", e);
    const bool published = pool_->IsPublished(e, 0, blocks);
    if (references == 0 && published != (cached[e] != 0)) {
      return Internal("extent {} is {} but {}", e, published ? "published without users" : "not published",
                      cached[e] ? "can be evicted" : "cannot be evicted");
    }
    for (uint32_t offset = 0; offset < blocks; ++offset) {
      const uint32_t node = pool_->node(e, offset);
      if (node != kNone && (!tree_->Contains(node) || tree_->block(node, g) != Entry(e, offset, groups_[g]))) {
        return Internal("extent {} says that node {} is in it, which it is not", e, node);
      }
    }
    used += references > 0;
    in_windows += references > 0 && groups_[g].window_tokens > 0;
  }
  if (listed != pool_->cached_extents()) return Internal("{} cached extents listed, {} counted", listed, pool_->cached_extents());
  if (in_windows != held_in_windows_) return Internal("{} extents held in windows, {} counted", in_windows, held_in_windows_);
  if (used + pool_->free_extents() + pool_->cached_extents() != pool_->num_extents()) {
    return Internal("{} used + {} free + {} cached extents != {}", used, pool_->free_extents(), pool_->cached_extents(),
                    pool_->num_extents());
  }
  return OkStatus();
}

// Where an extent is a block: of a group that keeps all, a block goes before its parent's.
Status KvCache::CheckEvictionOrder(const ExtentPool& pool) const {
  std::vector<char> passed(size_t(first_host_) + (host_ != nullptr ? size_t(host_->num_extents()) : 0));
  for (uint32_t e = pool.oldest(); e != kNone; e = pool.next_oldest(e)) {
    passed[e] = 1;
    const int g = group_of_.empty() ? 0 : group_of_[e];
    if (groups_[g].window_tokens > 0 || groups_[g].per_extent > 1) continue;
    const uint32_t parent = tree_->parent(pool.node(e, 0));
    if (tree_->IsRoot(parent) || tree_->block(parent, g) == kNone) continue;
    if (passed[ExtentOf(tree_->block(parent, g))]) return Internal("extent {} would be evicted after its parent's", e);
  }
  return OkStatus();
}

// Every block a node has is there.
Status KvCache::CheckNodes() const {
  for (uint32_t node = 0; node < uint32_t(tree_->max_nodes()); ++node) {
    if (!tree_->Contains(node)) continue;
    for (int g = 0; g < num_groups(); ++g) {
      const uint32_t entry = tree_->block(node, g);
      if (entry == kNone) continue;
      const uint32_t extent = ExtentOf(entry);
      const uint32_t offset = (entry - extent * plan_.extent_granules) / groups_[g].granules;
      if ((!group_of_.empty() && group_of_[extent] != g) || Pool(extent).node(extent, offset) != node) {
        return Internal("node {} has block {} of group {}, which is not its own", node, entry, g);
      }
      const uint32_t parent = tree_->parent(node);
      if (groups_[g].window_tokens > 0 || groups_[g].per_extent > 1 || tree_->IsRoot(parent)) continue;
      const uint32_t before = tree_->block(parent, g);
      if (before == kNone) return Internal("group {}: block {} outlives its parent's", g, entry);
      if (Pool(extent).references(extent) > 0 && Pool(ExtentOf(before)).references(ExtentOf(before)) == 0) {
        return Internal("group {}: block {} is held but its parent's {} is not", g, entry, before);
      }
      if (IsHost(ExtentOf(before)) && !IsHost(extent))
        return Internal("group {}: block {} was left behind by its parent's", g, entry);
    }
  }
  return OkStatus();
}

}  // namespace kvasir
