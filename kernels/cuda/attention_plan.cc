#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <bit>

namespace kvasir {
namespace {

constexpr int kSplitSlots = 512;
constexpr int kLatentSplitSlots = 1024;  // partials of latent attention are as wide as its KV
// Partials of tall tiles beyond this are not worth the memory: then each tile goes through its splits by itself.
constexpr int64_t kMaxTallPartialBytes = int64_t{256} << 20;

using Memory = AttentionPlanMemory;

// The tiles of a slice, each a range of all splits that it sees.
void AppendTiles(const PlanSlice& slice, const AttentionTiling& tiling, int group, int window, Memory& memory) {
  const int packed = slice.step.num_rows * group;
  const bool is_short = packed <= tiling.short_rows;
  const int at_once = is_short ? tiling.short_rows : tiling.tall_rows;
  const int split_bits = std::countr_zero(unsigned(tiling.split_slots));
  for (int first = 0; first < packed; first += at_once) {
    AttentionRange& tile = (is_short ? memory.short_units : memory.tall_units).emplace_back();
    tile.unit.slice = slice.step;
    tile.unit.first = first;
    tile.unit.count = std::min(packed - first, at_once);
    tile.unit.splits = 1;
    // Without dividing where a sequence decodes: a step may have hundreds.
    const int first_token = first == 0 ? 0 : first / group;
    const int last_token = first + tile.unit.count == packed ? slice.step.num_rows - 1 : (first + tile.unit.count - 1) / group;
    const int slots = slice.max_slots - slice.step.num_rows + last_token + 1;  // that its last row sees
    tile.count = std::max(1, (slots + tiling.split_slots - 1) >> split_bits);
    if (window > 0) tile.count = std::min(tile.count, ((window + last_token - first_token - 1) >> split_bits) + 2);
  }
}

// Finds out which sequences begin with the same blocks.
void FindSharers(std::span<const PlanSlice> slices, SharedPrefixes& prefixes, int block_tokens, int most_short, Memory& memory) {
  memory.candidates.clear();
  memory.tables.clear();
  int32_t tile = 0;  // short slices have one each
  for (const PlanSlice& slice : slices) {
    if (slice.step.num_rows < 1 || slice.step.num_rows > most_short) continue;
    const bool decodes = slice.step.num_rows == 1 && slice.step.ragged < 0;
    const int32_t whole = decodes ? (slice.step.num_slots - 1) / kSplitSlots : 0;
    if (whole > 0) {
      memory.candidates.push_back({.tile = tile, .whole = whole});
      memory.tables.push_back(slice.table);
    }
    ++tile;
  }
  for (const SharedPrefixes::Neighbour& neighbour : prefixes.Update(memory.tables)) {
    Memory::Sharer sharer = memory.candidates[size_t(neighbour.table)];
    if (!memory.sharers.empty()) {
      Memory::Sharer& before = memory.sharers.back();
      sharer.alike = sharer.shared =
          std::min({int32_t(int64_t{neighbour.alike} * block_tokens / kSplitSlots), before.whole, sharer.whole});
      before.shared = std::max(before.shared, sharer.alike);
    }
    memory.sharers.push_back(sharer);
  }
}

// Units for the splits [from, to) that the sharers [first, last) have in common, as many rows at a time as a tile has.
void AppendShared(int32_t first, int32_t last, int32_t from, int32_t to, const AttentionTiling& tiling, int group,
                  Memory& memory) {
  const bool is_short = (last - first) * group <= tiling.short_rows;
  const int32_t at_once = (is_short ? tiling.short_rows : tiling.tall_rows) / group;
  for (int32_t member = first; member < last; member += at_once) {
    AttentionRange range = {.count = to - from};
    range.unit.slice = memory.short_units[size_t(memory.sharers[size_t(member)].tile)].unit.slice;
    range.unit.count = std::min(at_once, last - member) * group;
    range.unit.ordinal = from;
    range.unit.splits = 1;
    range.unit.member = member;
    (is_short ? memory.short_units : memory.tall_units).push_back(range);
  }
}

// Takes what sequences have in common out of their tiles. A run of sharers has its splits in common beyond those that it shares
// with a longer run around it.
void Share(const AttentionTiling& tiling, int group, Memory& memory) {
  const auto size = int32_t(memory.sharers.size());
  for (const Memory::Sharer& sharer : memory.sharers) {
    AttentionRange& tile = memory.short_units[size_t(sharer.tile)];
    memory.members.push_back({tile.unit.slice.first_row, tile.unit.partial});
    tile.unit.ordinal = sharer.shared;
    tile.count -= sharer.shared;
  }
  std::vector<Memory::Run>& runs = memory.runs;
  runs.clear();
  for (int32_t i = 1; i <= size; ++i) {
    const int32_t alike = i < size ? memory.sharers[size_t(i)].alike : 0;
    int32_t first = i - 1;
    while (!runs.empty() && runs.back().splits > alike) {
      const Memory::Run run = runs.back();
      runs.pop_back();
      const int32_t around = std::max(alike, runs.empty() ? 0 : runs.back().splits);
      AppendShared(run.first, i, around, run.splits, tiling, group, memory);
      first = run.first;
    }
    if (alike > (runs.empty() ? 0 : runs.back().splits)) runs.push_back({first, alike});
  }
}

int32_t Number(std::vector<AttentionRange>& ranges) {
  int32_t units = 0;
  for (AttentionRange& range : ranges) {
    range.at = units;
    units += range.count;
  }
  return units;
}

}  // namespace

AttentionKernel KernelFor(const KvLayout& layout) {
  if (layout.quant != KvQuant::kNone) return AttentionKernel::kTile;
  if (layout.dtype == DType::kF32) return AttentionKernel::kPlain;
  if (layout.head_dim <= 256) return AttentionKernel::kTile;
  const bool latent = layout.value_dim > 0 && layout.value_dim <= 512 && layout.head_dim <= 576 && layout.head_dim % 8 == 0;
  return latent ? AttentionKernel::kLatent : AttentionKernel::kPlain;
}

bool HopperTakes(const KvLayout& layout) {
  const int d = layout.head_dim, slots = layout.block_tokens;
  return KernelFor(layout) == AttentionKernel::kTile && layout.quant == KvQuant::kNone && layout.value_dim == 0 &&
         (d == 64 || d == 128) && (slots == 16 || slots == 32 || slots == 64);
}

AttentionTiling TilingFor(const KvLayout& layout, bool warpgroups) {
  AttentionTiling tiling;
  const AttentionKernel kernel = KernelFor(layout);
  tiling.short_rows = kernel == AttentionKernel::kLatent ? 0 : 16;
  tiling.tall_rows = warpgroups ? 128 : kernel == AttentionKernel::kPlain ? 16 : 64;
  tiling.split_slots = kernel == AttentionKernel::kLatent ? kLatentSplitSlots : kSplitSlots;
  tiling.partial_width = ((layout.value_dim > 0 ? layout.value_dim : layout.head_dim) + 3) / 4 * 4;
  return tiling;
}

AttentionPlan PlanAttention(std::span<const PlanSlice> slices, SharedPrefixes& prefixes, const KvLayout& layout,
                            const AttentionTiling& tiling, int group, int window, int multiprocessors,
                            AttentionPlanMemory& memory) {
  memory.short_units.clear();
  memory.tall_units.clear();
  memory.members.clear();
  memory.sharers.clear();
  for (const PlanSlice& slice : slices) AppendTiles(slice, tiling, group, window, memory);
  if (window == 0 && KernelFor(layout) == AttentionKernel::kTile && group <= tiling.short_rows)
    FindSharers(slices, prefixes, layout.block_tokens, tiling.short_rows / group, memory);
  // Tall tiles keep the device busy by their number, or else by their splits.
  int64_t tall_partial_rows = 0;
  for (const AttentionRange& tile : memory.tall_units) tall_partial_rows += int64_t{tile.unit.count} * tile.count;
  const int64_t tall_bytes = tall_partial_rows * layout.num_kv_heads * tiling.partial_width * int64_t{sizeof(float)};
  if (int64_t(memory.tall_units.size()) * layout.num_kv_heads >= multiprocessors || tall_bytes > kMaxTallPartialBytes) {
    // The longest first: what starts last should be over soon.
    std::stable_sort(memory.tall_units.begin(), memory.tall_units.end(),
                     [](const AttentionRange& a, const AttentionRange& b) { return a.count > b.count; });
    for (AttentionRange& tile : memory.tall_units) {
      tile.unit.splits = kAllSplits;
      tile.count = 1;
    }
  }
  AttentionPlan plan = {.group = group, .window = window};
  for (std::vector<AttentionRange>* const tiles : {&memory.short_units, &memory.tall_units}) {
    for (AttentionRange& tile : *tiles) {
      if (tile.count == 1) continue;
      tile.unit.partial = int32_t(plan.partial_rows);
      tile.merge = plan.num_merges++;
      plan.partial_rows += int64_t{tile.unit.count} * tile.count;
    }
  }
  if (std::any_of(memory.sharers.begin(), memory.sharers.end(), [](const auto& sharer) { return sharer.shared > 0; }))
    Share(tiling, group, memory);
  plan.num_short = memory.num_short = Number(memory.short_units);
  plan.num_tall = memory.num_tall = Number(memory.tall_units);
  memory.num_merges = plan.num_merges;
  return plan;
}

void AppendRanges(const AttentionPlan& plan, const AttentionPlanMemory& memory, int64_t first,
                  std::vector<AttentionRange>& ranges) {
  const int64_t tall = first + plan.num_short, merges = tall + plan.num_tall;
  const auto append = [&](const std::vector<AttentionRange>& from, int64_t at) {
    for (auto range = ranges.insert(ranges.end(), from.begin(), from.end()); range != ranges.end(); ++range) {
      range->at += int32_t(at);
      if (range->merge >= 0) range->merge += int32_t(merges);
    }
  };
  const auto fill = [&](int64_t at, int32_t units, int32_t room) {
    if (room > units) ranges.push_back({.at = int32_t(at) + units, .count = room - units});
  };
  append(memory.short_units, first);
  fill(first, memory.num_short, plan.num_short);
  append(memory.tall_units, tall);
  fill(tall, memory.num_tall, plan.num_tall);
  fill(merges, memory.num_merges, plan.num_merges);
}

}  // namespace kvasir
