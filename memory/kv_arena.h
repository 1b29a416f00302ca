// How the KV of several groups of layers shares one device buffer. The buffer is cut into extents of one size, and every extent
// serves any group: it holds `blocks_per_extent` consecutive blocks of one group of one text. So there is no fixed split between
// groups, any extent that is given up can be used by any group at once, and memory is counted in one unit, the extent: what is
// promised to a sequence is exact, because no mixture of sizes can leave memory free but unusable. With one group an extent is a
// block. Used by KvCache and by whoever owns the buffer (scheduler/model_executor).
//
// Why not extents of different sizes: blocks of one size that live on would pin chunks which another size needs, so a promise
// ("this sequence can finish") could not be kept without moving blocks that are in use. The price here is that a sequence's last
// extent of a group with small blocks is partly empty: at most one extent for each such group.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

inline constexpr int kMaxKvGroups = 4;

// No extent, block or node, in links and tables; as an entry of a table it is kNoBlock (kernels/kv_page.h).
inline constexpr uint32_t kNone = UINT32_MAX;

// A group as memory sees it.
struct KvGroupConfig {
  int64_t block_bytes = 64;
  int32_t window_tokens = 0;  // a token is read only by itself and the window_tokens - 1 after it; 0 = as long as the text lives
};

struct KvArenaPlan {
  struct Group {
    int64_t block_bytes = 64;
    uint32_t granules = 1;           // of one block
    uint32_t blocks_per_extent = 1;  // consecutive blocks of one text
  };
  int64_t granule_bytes = 64;  // table entries count granules
  int64_t extent_bytes = 64;
  uint32_t extent_granules = 1;
  std::vector<Group> groups;

  // Extents that fit into `bytes`, with every granule's index below kNoBlock.
  int64_t ExtentsIn(int64_t bytes) const;
  // Largest part of an extent that a group's blocks leave unused.
  double waste() const;
};

// The granule is the greatest common divisor of the block sizes (they are multiples of 64 bytes). The extent is the smallest
// multiple of the largest block in which no group leaves 5 % or more unused; twenty times is always enough, and once is for the
// usual ratios of layers (1:1, 5:1).
KvArenaPlan PlanKvArena(std::span<const KvGroupConfig> groups);

// What accounting needs to know of a group: pure numbers, for scheduler/policies.
struct KvGroupShape {
  int32_t extent_tokens = 16;  // tokens one extent holds
  int32_t window_tokens = 0;   // 0 = all
};

}  // namespace kvasir
