#include "kernels/cuda/attention_plan.h"

#include <algorithm>

namespace kvasir {
namespace {

constexpr int kSplitSlots = 512;
constexpr int kLatentSplitSlots = 1024;  // partials of latent attention are as wide as its KV
// Partials of tall tiles beyond this are not worth the memory: then each tile goes through its splits by itself.
constexpr int64_t kMaxTallPartialBytes = int64_t{256} << 20;

int Ceil(int64_t a, int64_t b) {
  return int((a + b - 1) / b);
}

struct Tile {
  AttentionUnit unit;
  int splits;
};

// Appends units by ordinal.
std::vector<int32_t> AppendUnits(std::span<const Tile> tiles, bool whole, std::vector<AttentionUnit>& units) {
  std::vector<int32_t> through;
  int most = 0;
  for (const Tile& tile : tiles) most = std::max(most, whole ? 1 : tile.splits);
  for (int ordinal = 0; ordinal < most; ++ordinal) {
    for (const Tile& tile : tiles) {
      if (!whole && ordinal >= tile.splits) continue;
      AttentionUnit unit = tile.unit;
      unit.ordinal = ordinal;
      unit.splits = whole ? kAllSplits : 1;
      units.push_back(unit);
    }
    through.push_back(int32_t(units.size()));
  }
  return through;
}

}  // namespace

AttentionKernel KernelFor(const KvLayout& layout) {
  if (layout.dtype == DType::kF32) return AttentionKernel::kPlain;
  if (layout.head_dim <= 256) return AttentionKernel::kTile;
  const bool latent = layout.value_dim > 0 && layout.value_dim <= 512 && layout.head_dim <= 576 && layout.head_dim % 8 == 0;
  return latent ? AttentionKernel::kLatent : AttentionKernel::kPlain;
}

AttentionTiling TilingFor(const KvLayout& layout) {
  AttentionTiling tiling;
  const AttentionKernel kernel = KernelFor(layout);
  tiling.short_rows = kernel == AttentionKernel::kLatent ? 0 : 16;
  tiling.tall_rows = kernel == AttentionKernel::kPlain ? 16 : 64;
  tiling.split_slots = kernel == AttentionKernel::kLatent ? kLatentSplitSlots : kSplitSlots;
  tiling.partial_width = ((layout.value_dim > 0 ? layout.value_dim : layout.head_dim) + 3) / 4 * 4;
  return tiling;
}

AttentionPlan PlanAttention(std::span<const StepSlice> slices, const KvLayout& layout, int group, int multiprocessors,
                            std::vector<AttentionUnit>& units) {
  const AttentionTiling tiling = TilingFor(layout);
  AttentionPlan plan;
  plan.group = group;
  std::vector<Tile> short_tiles, tall_tiles;
  int64_t tall_partial_rows = 0;
  for (const StepSlice& slice : slices) {
    const int packed = slice.num_rows * group;
    const bool is_short = packed <= tiling.short_rows;
    for (int first = 0; first < packed; first += is_short ? tiling.short_rows : tiling.tall_rows) {
      const int count = std::min(packed - first, is_short ? tiling.short_rows : tiling.tall_rows);
      const int last_token = (first + count - 1) / group;
      const int slots = slice.max_slots - slice.num_rows + last_token + 1;  // that its last row sees
      const Tile tile = {{slice, first, count, 0, 0, 0}, std::max(1, Ceil(slots, tiling.split_slots))};
      (is_short ? short_tiles : tall_tiles).push_back(tile);
      if (!is_short) tall_partial_rows += int64_t{count} * tile.splits;
    }
  }
  // Tall tiles keep the device busy by their number, or else by their splits.
  const int64_t tall_bytes = tall_partial_rows * layout.num_kv_heads * tiling.partial_width * int64_t{sizeof(float)};
  const bool whole = int64_t(tall_tiles.size()) * layout.num_kv_heads >= multiprocessors || tall_bytes > kMaxTallPartialBytes;
  if (whole) {  // the longest first: what starts last should be over soon
    std::stable_sort(tall_tiles.begin(), tall_tiles.end(), [](const Tile& a, const Tile& b) { return a.splits > b.splits; });
  }
  std::vector<const Tile*> merges;
  for (std::vector<Tile>* tiles : {&short_tiles, &tall_tiles}) {
    if (tiles == &tall_tiles && whole) continue;
    for (Tile& tile : *tiles) {
      if (tile.splits == 1) continue;
      tile.unit.partial = int32_t(plan.partial_rows);
      plan.partial_rows += int64_t{tile.unit.count} * tile.splits;
      merges.push_back(&tile);
    }
  }
  std::vector<AttentionUnit> own;
  plan.short_through = AppendUnits(short_tiles, false, own);
  plan.tall_through = AppendUnits(tall_tiles, whole, own);
  for (int32_t& through : plan.tall_through) through -= plan.num_short();
  for (const Tile* tile : merges) own.push_back(tile->unit);
  plan.num_merges = int32_t(merges.size());
  units.insert(units.end(), own.begin(), own.end());
  return plan;
}

}  // namespace kvasir
