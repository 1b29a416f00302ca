// How attention of a step is cut into units: every query row and split is computed exactly once, and sequences that begin with
// the same blocks share.
#include "kernels/cuda/attention_plan.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <optional>

#include "kernels/rng.h"

namespace kvasir {
namespace {

constexpr int kSplit = 512, kBlock = 16;
const KvLayout kLayout = {.dtype = DType::kBF16, .block_tokens = kBlock, .num_layers = 2, .num_kv_heads = 8, .head_dim = 128};

struct Step {
  std::vector<PlanSlice> slices;
  std::deque<std::vector<uint32_t>> tables;
  int rows = 0;
  // A sequence of `slots`, the first `shared` blocks of which are those of `like`.
  void Add(int slots, int num_rows, int like = -1, int shared = 0) {
    std::vector<uint32_t>& blocks = tables.emplace_back();
    for (int i = 0; i * kBlock < slots; ++i)
      blocks.push_back(i < shared ? tables[size_t(like)][size_t(i)] : uint32_t(1000 * tables.size()) + uint32_t(i));
    const auto index = uint32_t(slices.size());
    slices.push_back({.step = {.first_row = rows, .num_rows = num_rows, .num_slots = slots},
                      .max_slots = slots,
                      .table = {blocks.data(), int32_t(blocks.size()), index, index + 1}});
    rows += num_rows;
  }
};

struct Planned {
  AttentionPlan plan;
  AttentionPlanMemory memory;
  std::vector<AttentionUnit> units;
  int shared_units = 0;
  std::map<std::tuple<int, int, int>, int> covered;  // (row of the step, query head, split): how often
};

// What the device makes of ranges.
std::vector<AttentionUnit> Write(std::span<const AttentionRange> ranges, int64_t count) {
  std::vector<AttentionUnit> units(size_t(count), AttentionUnit{.ordinal = -1});
  const auto write = [&](int at, const AttentionUnit& unit) {
    ASSERT_EQ(units.at(size_t(at)).ordinal, -1) << "unit " << at << " is written twice";
    units[size_t(at)] = unit;
  };
  for (const AttentionRange& range : ranges) {
    for (int i = 0; i < range.count; ++i) {
      AttentionUnit unit = range.unit;
      unit.ordinal += i;
      write(range.at + i, unit);
    }
    if (range.merge >= 0) write(range.merge, range.unit);
  }
  for (const AttentionUnit& unit : units) EXPECT_GE(unit.ordinal, 0);
  return units;
}

void CheckUnits(Planned& planned, int group) {
  const int units = planned.plan.num_short + planned.plan.num_tall;
  for (int i = 0; i < units; ++i) {
    const AttentionUnit& unit = planned.units[size_t(i)];
    EXPECT_LE(unit.count, i < planned.plan.num_short ? 16 : 64);
    planned.shared_units += unit.member >= 0;
    for (int r = 0; r < unit.count; ++r) {
      const AttentionMember* const member = unit.member >= 0 ? &planned.memory.members[size_t(unit.member + r / group)] : nullptr;
      const int row = member != nullptr ? member->row : unit.slice.first_row + (unit.first + r) / group;
      const int head = (member != nullptr ? r : unit.first + r) % group;
      const int splits = (unit.slice.num_slots + kSplit - 1) / kSplit;
      for (int s = unit.ordinal; s < std::min(splits, unit.ordinal + unit.splits); ++s) ++planned.covered[{row, head, s}];
      if (member == nullptr) continue;
      // Its partials lie where those of its own tile do, which are merged.
      bool merged = false;
      for (int m = units; m < int(planned.units.size()); ++m) {
        const AttentionUnit& merge = planned.units[size_t(m)];
        merged = merged || (merge.slice.first_row == row && merge.partial == member->partial && merge.count == group);
      }
      EXPECT_TRUE(merged) << "row " << row;
    }
  }
}

Planned Plan(const Step& step, int group, int window = 0) {
  Planned planned;
  SharedPrefixes prefixes;
  planned.plan = PlanAttention(step.slices, prefixes, kLayout, TilingFor(kLayout, false), group, window, 132, planned.memory);
  std::vector<AttentionRange> ranges;
  AppendRanges(planned.plan, planned.memory, 0, ranges);
  planned.units = Write(ranges, planned.plan.num_units());
  CheckUnits(planned, group);
  if (window > 0) return planned;
  for (const PlanSlice& slice : step.slices) {
    for (int row = 0; row < slice.step.num_rows; ++row) {
      const int seen = slice.step.num_slots - slice.step.num_rows + row + 1;
      for (int i = 0; i < group * ((seen + kSplit - 1) / kSplit); ++i) {
        const int head = i % group, split = i / group;
        EXPECT_EQ((planned.covered[{slice.step.first_row + row, head, split}]), 1)
            << "row " << slice.step.first_row + row << " head " << head << " split " << split;
      }
    }
  }
  return planned;
}

TEST(AttentionPlan, SharesWhatManyTextsBeginWith) {
  Step step;
  step.Add(8192 + 256, 1);
  for (int i = 1; i < 32; ++i) step.Add(8192 + 256, 1, 0, 8192 / kBlock);
  const Planned planned = Plan(step, 4);
  // 128 packed rows are two tall tiles: 16 splits of each, and each sequence's last split.
  EXPECT_EQ(planned.shared_units, 2 * 16);
  EXPECT_EQ(planned.plan.num_tall, 2 * 16);
  EXPECT_EQ(planned.plan.num_short, 32);
  EXPECT_EQ(Plan(step, 4, 3000).shared_units, 0) << "a window begins where it begins";
}

TEST(AttentionPlan, TwoShareAShortUnit) {
  Step step;
  step.Add(1500, 1);
  step.Add(1100, 1, 0, 1024 / kBlock);
  const Planned planned = Plan(step, 4);
  EXPECT_EQ(planned.shared_units, 2);
  EXPECT_EQ(planned.plan.num_short, 2 + 1 + 1);
  EXPECT_EQ(planned.plan.num_tall, 0);
}

TEST(AttentionPlan, DoesNotShareWhatOnlyLooksAlike) {
  Step step;
  step.Add(1025, 1);
  step.Add(1024, 1, 0, 1024 / kBlock);  // its last slot is its own: one split is whole and shared
  step.Add(513, 1, 0, 500 / kBlock);    // the first split is not wholly the same
  step.Add(1400, 3, 0, 1024 / kBlock);  // a part of a prompt
  EXPECT_EQ(Plan(step, 2).shared_units, 1);
  EXPECT_EQ(Plan(step, 20).shared_units, 0) << "more query heads than a short tile has rows";
  for (std::vector<uint32_t>& table : step.tables) std::fill(table.begin(), table.end(), kNoBlock);
  EXPECT_EQ(Plan(step, 2).shared_units, 0);
}

TEST(AttentionPlan, TreesOfTexts) {
  int64_t shared = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    Step step;
    const int texts = int(rng.Between(1, 40));
    for (int t = 0; t < texts; ++t) {
      const int slots = int(rng.Between(1, 4000)), rows = rng.Chance(0.8) ? 1 : int(rng.Between(1, std::min(slots, 90)));
      const int like = t == 0 ? -1 : int(rng.Below(uint64_t(t)));
      const int common = like < 0 ? 0 : (std::min(slots, step.slices[size_t(like)].step.num_slots) - 1) / kBlock;
      step.Add(slots, rows, like, rng.Chance(0.7) ? common : int(rng.Below(uint64_t(common) + 1)));
    }
    shared += Plan(step, int(rng.Between(1, 16))).shared_units;
  }
  EXPECT_GT(shared, 1000);
}

// A window's tiles have as many units as its splits can be, wherever it lies.
TEST(AttentionPlan, WindowsSeeFewSplits) {
  Step step;
  step.Add(40000, 1);
  step.Add(700, 1);
  const Planned planned = Plan(step, 4, 128);
  EXPECT_EQ(planned.plan.num_short, 2 + 2);
  EXPECT_EQ(planned.plan.num_merges, 2);
  EXPECT_EQ(Plan(step, 4, 513).plan.num_short, 3 + 2) << "slots 511, 512 .. 1023";
}

TEST(AttentionPlan, FillsUpWithUnitsThatDoNothing) {
  Step step;
  step.Add(1025, 1);
  step.Add(300, 40);
  SharedPrefixes prefixes;
  AttentionPlanMemory memory;
  AttentionPlan plan = PlanAttention(step.slices, prefixes, kLayout, TilingFor(kLayout, false), 4, 0, 132, memory);
  const int num_short = plan.num_short, num_tall = plan.num_tall, num_merges = plan.num_merges;
  plan.num_short += 5, plan.num_tall += 1, plan.num_merges += 2;
  std::vector<AttentionRange> ranges;
  AppendRanges(plan, memory, 100, ranges);
  for (AttentionRange& range : ranges) {
    range.at -= 100;
    if (range.merge >= 0) range.merge -= 100;
  }
  const std::vector<AttentionUnit> units = Write(ranges, plan.num_units());
  for (int i = 0; i < int(units.size()); ++i) {
    const bool there = i < num_short || (i >= plan.num_short && i < plan.num_short + num_tall) ||
                       (i >= plan.num_short + plan.num_tall && i < plan.num_short + plan.num_tall + num_merges);
    EXPECT_EQ(units[size_t(i)].count > 0, there) << i;
  }
}

// Texts that grow, fork, are replaced, leave for some steps and come back: what is known from step to step gives the plan that is
// made from nothing.
class TextHistory {
 public:
  explicit TextHistory(uint64_t seed) : rng_(seed) {}
  Step Next() {
    Change();
    Step step;
    for (uint32_t row = 0; row < texts_.size(); ++row) {
      if (!texts_[row] || rng_.Chance(0.1)) continue;
      Text& text = *texts_[row];
      const int rows = rng_.Chance(0.9) ? 1 : int(rng_.Between(2, 30));
      step.slices.push_back({.step = {.first_row = step.rows, .num_rows = rows, .num_slots = text.slots},
                             .max_slots = text.slots,
                             .table = {text.blocks.data(), Blocks(text.slots), row, text.stamp}});
      step.rows += rows;
    }
    return step;
  }

 private:
  struct Text {
    std::vector<uint32_t> blocks;
    int slots = 0;
    uint64_t stamp = 0;
  };
  static int Blocks(int slots) { return (slots + kBlock - 1) / kBlock; }
  void Grow(Text& text, int slots) {
    text.slots = slots;
    // The block that is written is nobody else's, as a rule.
    while (int(text.blocks.size()) < Blocks(slots)) text.blocks.push_back(rng_.Chance(0.95) ? next_block_++ : 1);
  }
  void Change() {
    if (texts_.size() < 24 && rng_.Chance(0.3)) {
      Text text = {.stamp = ++stamps_};
      const size_t like = texts_.empty() ? 0 : size_t(rng_.Below(texts_.size()));
      if (!texts_.empty() && texts_[like] && rng_.Chance(0.7)) {
        const std::vector<uint32_t>& blocks = texts_[like]->blocks;
        text.blocks.assign(blocks.begin(), blocks.begin() + int64_t(rng_.Below(blocks.size() + 1)));
      }
      Grow(text, std::max(int(text.blocks.size()) * kBlock, 1) + int(rng_.Below(1500)));
      auto free = std::find(texts_.begin(), texts_.end(), std::nullopt);
      if (free == texts_.end()) free = texts_.insert(free, std::nullopt);
      *free = text;
    }
    for (std::optional<Text>& text : texts_) {
      if (!text) continue;
      Grow(*text, text->slots + int(rng_.Below(40)));
      if (rng_.Chance(0.02)) text->blocks[rng_.Below(text->blocks.size())] = next_block_++, text->stamp = ++stamps_;
      if (rng_.Chance(0.02)) text.reset();
    }
  }
  friend bool operator==(const Text& a, const Text& b) { return a.stamp == b.stamp; }

  Rng rng_;
  std::vector<std::optional<Text>> texts_;
  uint64_t stamps_ = 0;
  uint32_t next_block_ = 2;
};

TEST(AttentionPlan, WhatIsKeptFromStepToStepChangesNoPlan) {
  int64_t shared = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    TextHistory history(seed);
    SharedPrefixes kept;
    AttentionPlanMemory memory;
    for (int i = 0; i < 120 && !testing::Test::HasFailure(); ++i) {
      const Step step = history.Next();
      const AttentionPlan plan = PlanAttention(step.slices, kept, kLayout, TilingFor(kLayout, false), 4, 0, 132, memory);
      SharedPrefixes none;
      AttentionPlanMemory fresh;
      const AttentionPlan other = PlanAttention(step.slices, none, kLayout, TilingFor(kLayout, false), 4, 0, 132, fresh);
      std::vector<AttentionRange> ranges, others;
      AppendRanges(plan, memory, 0, ranges);
      AppendRanges(other, fresh, 0, others);
      EXPECT_TRUE(ranges == others);
      EXPECT_TRUE(memory.members == fresh.members);
      if (i % 10 == 0) shared += Plan(step, 4).shared_units;
    }
  }
  EXPECT_GT(shared, 500);
}

}  // namespace
}  // namespace kvasir
