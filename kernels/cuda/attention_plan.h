// Attention of a step cut into pieces of work for thread blocks. Planned on the host once per step for all layers (StepTables),
// or for one op; used by the kernels of attention. How work is cut never changes a result: see attention_unit.cuh.
//
// The query rows of a KV head are packed: packed row p of a slice is token p / group and query head p % group of those that read
// the KV head, so that all of them share one pass over the pages. Packed rows are cut into tiles, and the slots that a tile sees
// into splits at multiples of a fixed number of slots. A unit is a tile and one split of it, whose result is a partial to be
// merged with the others, or a tile and all its splits one after another. There are as many units as the texts are long, so the
// host plans ranges of them, a tile's consecutive splits, and the device writes the units itself (WriteStep).
//
// Sequences that decode and have the same blocks at the beginning of their tables, because their texts begin alike, share units
// ("cascade"): one for all their rows and a split that lies whole in those blocks, which is then read once. Its rows are members;
// their partials lie where they would without sharing, and are the same.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/cuda/shared_prefixes.h"
#include "kernels/kv_page.h"

namespace kvasir {

// The query rows of one sequence, with what is known of its runs.
struct StepSlice {
  const uint32_t* entries = nullptr;  // of the device: its page table, where it is dense
  int32_t first_row = 0;              // among the step's rows
  int32_t num_rows = 0;
  int32_t ragged = -1;  // index of the run of (layer 0, head 0), or -1: dense, and then
  int32_t num_slots = 0;
  bool operator==(const StepSlice&) const = default;
};
// The same for those that plan.
struct PlanSlice {
  StepSlice step;
  int32_t max_slots = 0;  // of the longest run of any layer and head
  PrefixTable table;      // dense
};

// Read by kernels as it is.
struct alignas(16) AttentionUnit {
  StepSlice slice;
  int32_t first = 0;    // packed row
  int32_t count = 0;    // packed rows; 0: nothing to do
  int32_t partial = 0;  // of the tile: row `partial + i * count + r` of a KV head's partials is packed row first + r in split i
  int32_t ordinal = 0;  // the unit's first split, counted from the first that the tile sees
  int32_t splits = 0;   // 1 or kAllSplits
  int32_t member =
      -1;  // shared by sequences: packed row r is query head r % group of member + r / group, and `slice` any of them
  bool operator==(const AttentionUnit&) const = default;
};
// Units that are written one behind another: `unit`, then those of the splits after it.
struct alignas(16) AttentionRange {
  AttentionUnit unit;
  int32_t at = 0;      // among units
  int32_t count = 0;   // of units
  int32_t merge = -1;  // where the tile is to stand among the units of merges; -1: not there
  bool operator==(const AttentionRange&) const = default;
};
// The one row of a sequence among those that share a unit.
struct AttentionMember {
  int32_t row = 0;      // among the step's rows
  int32_t partial = 0;  // of its own tile: see AttentionUnit
  bool operator==(const AttentionMember&) const = default;
};
inline constexpr int32_t kAllSplits = std::numeric_limits<int32_t>::max() / 2;

// How a kind of KV is worked on. Splits are part of the answer, the rest is not.
struct AttentionTiling {
  int short_rows = 0;     // packed rows of a tile where a slice has no more than these; 0: no such tiles
  int tall_rows = 0;      // ... where it has more
  int split_slots = 0;    // a power of two
  int partial_width = 0;  // floats between rows of partials
};
enum class AttentionKernel : uint8_t { kPlain, kTile, kLatent };
AttentionKernel KernelFor(const KvLayout& layout);
// `warpgroups`: tall tiles are those of LaunchHopperAttention, which HopperTakes.
AttentionTiling TilingFor(const KvLayout& layout, bool warpgroups);
bool HopperTakes(const KvLayout& layout);

struct AttentionPlan {
  int group = 0;   // query heads per KV head
  int window = 0;  // of the layers it is for; with one, nothing is shared
  // Short units, then tall ones, then one for each tile whose partials are to be merged. Some may be there only to fill up.
  const AttentionUnit* units = nullptr;
  const AttentionMember* members = nullptr;
  int32_t num_short = 0, num_tall = 0, num_merges = 0;
  int64_t partial_rows = 0;  // of each KV head

  int64_t num_units() const { return int64_t{num_short} + num_tall + num_merges; }
};

// What a plan is made of, and memory to work in.
struct AttentionPlanMemory {
  std::vector<AttentionRange> short_units, tall_units;  // units and merges count from 0 in each
  int32_t num_short = 0, num_tall = 0, num_merges = 0;
  std::vector<AttentionMember> members;
  // Sequences that decode and have whole splits before their last slot; the last split is always a sequence's own, so that its
  // tile is one whose partials are merged. In the order of SharedPrefixes.
  struct Sharer {
    int32_t tile = 0;    // among short_units
    int32_t whole = 0;   // splits
    int32_t alike = 0;   // splits in common with the one before
    int32_t shared = 0;  // splits in common with any
  };
  std::vector<Sharer> candidates, sharers;
  std::vector<PrefixTable> tables;  // of the candidates
  // Sharers from `first` on, as far as they have so many splits in common.
  struct Run {
    int32_t first = 0, splits = 0;
  };
  std::vector<Run> runs;
};

// Fills memory.short_units, .tall_units and .members. A device of fewer multiprocessors gets fewer pieces.
AttentionPlan PlanAttention(std::span<const PlanSlice> slices, SharedPrefixes& prefixes, const KvLayout& layout,
                            const AttentionTiling& tiling, int group, int window, int multiprocessors,
                            AttentionPlanMemory& memory);

// Appends the plan's ranges for units that begin at `first` and lie as `plan` counts them, which may be more than there are.
void AppendRanges(const AttentionPlan& plan, const AttentionPlanMemory& memory, int64_t first,
                  std::vector<AttentionRange>& ranges);

// What an op needs to find or make its plan; host memory of StepTables.
struct StepAttention {
  KvLayout layout;
  bool warpgroups = false;  // as of TilingFor
  std::vector<PlanSlice> slices;
  std::vector<AttentionPlan> plans;  // on the device with the step's tables
  SharedPrefixes prefixes;
  // Plans that ops have asked for: the next step is planned for them.
  struct Wanted {
    int num_kv_heads = 0, group = 0, window = 0;
  };
  std::vector<Wanted> wanted;
};

}  // namespace kvasir
