// Attention of a step cut into pieces of work for thread blocks. Made on the host once per step for all layers (StepTables), or
// for one op; used by the kernels of attention. How work is cut never changes a result: see attention_unit.cuh.
//
// The query rows of a KV head are packed: packed row p of a slice is token p / group and query head p % group of those that read
// the KV head, so that all of them share one pass over the pages. Packed rows are cut into tiles, and the slots that a tile sees
// into splits at multiples of a fixed number of slots. A unit is a tile and one split of it, whose result is a partial to be
// merged with the others, or a tile and all its splits one after another.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/kv_page.h"

namespace kvasir {

// The query rows of one sequence, with what is known of its runs.
struct StepSlice {
  int32_t first_row = 0;  // among the step's rows
  int32_t num_rows = 0;
  int32_t ragged = -1;  // index of the run of (layer 0, head 0), or -1: dense, and then
  int32_t entries = 0;  // index of its first page table entry
  int32_t num_slots = 0;
  int32_t max_slots = 0;  // of the longest run of any layer and head
};

// Read by kernels as it is.
struct alignas(16) AttentionUnit {
  StepSlice slice;
  int32_t first = 0;    // packed row
  int32_t count = 0;    // packed rows
  int32_t partial = 0;  // of the tile: row `partial + i * count + r` of a KV head's partials is packed row first + r in split i
  int32_t ordinal = 0;  // the unit's first split, counted from the first that the tile sees
  int32_t splits = 0;   // 1 or kAllSplits
};
inline constexpr int32_t kAllSplits = std::numeric_limits<int32_t>::max() / 2;

// How a kind of KV is worked on. Splits are part of the answer, the rest is not.
struct AttentionTiling {
  int short_rows = 0;  // packed rows of a tile where a slice has no more than these; 0: no such tiles
  int tall_rows = 0;   // ... where it has more
  int split_slots = 0;
  int partial_width = 0;  // floats between rows of partials
};
enum class AttentionKernel : uint8_t { kPlain, kTile, kLatent };
AttentionKernel KernelFor(const KvLayout& layout);
AttentionTiling TilingFor(const KvLayout& layout);

struct AttentionPlan {
  int group = 0;
  // Short units, then tall ones, each by ordinal; then a unit for each tile whose partials are to be merged.
  const AttentionUnit* units = nullptr;
  std::vector<int32_t> short_through, tall_through;  // [ordinal]: how many units have no larger one
  int32_t num_merges = 0;
  int64_t partial_rows = 0;  // of each KV head

  int32_t num_short() const { return short_through.empty() ? 0 : short_through.back(); }
  int32_t num_tall() const { return tall_through.empty() ? 0 : tall_through.back(); }
};

// Appends the plan's units to `units`. `group`: query heads per KV head. A device of fewer multiprocessors gets fewer pieces.
AttentionPlan PlanAttention(std::span<const StepSlice> slices, const KvLayout& layout, int group, int multiprocessors,
                            std::vector<AttentionUnit>& units);

// What an op needs to find or make its plan; host memory of StepTables.
struct StepAttention {
  KvLayout layout;
  std::vector<StepSlice> slices;
  std::vector<AttentionPlan> plans;  // on the device with the step's tables
  // Groups that ops have asked for: the next step is planned for them.
  struct Wanted {
    int num_kv_heads = 0, group = 0;
  };
  std::vector<Wanted>* wanted = nullptr;
};

}  // namespace kvasir
