// The scheduler's decisions as tables: order, packing, admission, what is owed, waiting time.
#include "scheduler/policies.h"

#include <numeric>

#include "gtest/gtest.h"
#include "kernels/rng.h"

namespace kvasir {
namespace {

TEST(RankTest, OrderIsArrivalOrPriorityThenArrival) {
  const auto fcfs = [](int32_t priority, uint64_t arrival) { return MakeRank(OrderPolicy::kFcfs, priority, arrival, 0, 0, 8); };
  const auto priority = [](int32_t p, uint64_t arrival) { return MakeRank(OrderPolicy::kPriority, p, arrival, 0, 0, 8); };
  EXPECT_LT(fcfs(9, 1), fcfs(0, 2));
  EXPECT_LT(priority(0, 2), priority(9, 1));
  EXPECT_LT(priority(-1, 7), priority(0, 1));
  EXPECT_LT(priority(1, 1), priority(1, 2));
}

TEST(RankTest, APinnedSequenceIsNeverAheadOfTheQueueOfVictims) {
  const Rank pinned = MakeRank(OrderPolicy::kPriority, 100, 1000, 3, 8, 8);
  const Rank other = MakeRank(OrderPolicy::kPriority, -100, 1, 0, 7, 8);
  EXPECT_LT(pinned, other) << "victims are taken from the largest rank";
}

TEST(PackTest, DecodeRowsFirstThenPromptsInOrder) {
  std::vector<PackItem> items = {{.remaining = 100}, {.remaining = 1}, {.remaining = 5}, {.remaining = 1}};
  EXPECT_EQ(PackTokens(items, {.budget = 10}), 10);
  EXPECT_EQ(items[0].granted, 8);
  EXPECT_EQ(items[1].granted, 1);
  EXPECT_EQ(items[2].granted, 0);
  EXPECT_EQ(items[3].granted, 1);
  EXPECT_EQ(PackTokens(items, {.budget = 10, .max_chunk = 6}), 10);
  EXPECT_EQ(items[0].granted, 6);
  EXPECT_EQ(items[2].granted, 2);
}

TEST(PackTest, NeverOverBudgetAndNothingLeftIdle) {
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    Rng rng(seed);
    std::vector<PackItem> items(rng.Below(20));
    for (PackItem& item : items) item.remaining = int32_t(rng.Chance(0.5) ? 1 : rng.Between(1, 50));
    const PackLimits limits = {.budget = int32_t(rng.Between(1, 60)), .max_chunk = int32_t(rng.Below(10))};
    const int32_t granted = PackTokens(items, limits);
    int32_t sum = 0, most = 0;
    for (const PackItem& item : items) {
      sum += item.granted;
      EXPECT_LE(item.granted, item.remaining) << "seed " << seed;
      if (limits.max_chunk > 0) EXPECT_LE(item.granted, limits.max_chunk) << "seed " << seed;
      most += limits.max_chunk > 0 ? std::min(item.remaining, limits.max_chunk) : item.remaining;
    }
    EXPECT_EQ(sum, granted) << "seed " << seed;
    EXPECT_EQ(granted, std::min(most, limits.budget)) << "seed " << seed;
  }
}

TEST(AdmissionTest, CountsWhatIsPromisedToOthers) {
  AdmissionState state = {
      .running = 2, .max_running = 4, .available_extents = 20, .promised_extents = 8, .needed_extents = 10, .total_extents = 64};
  EXPECT_TRUE(MayAdmit(state));
  state.needed_extents = 11;  // the two running ones' next blocks would be gone
  EXPECT_FALSE(MayAdmit(state));
  state.reserve_to_finish = true;  // what they need is in promised_extents already
  EXPECT_TRUE(MayAdmit(state));
  state.needed_extents = 13;
  EXPECT_FALSE(MayAdmit(state));
  state.running = 0;
  EXPECT_TRUE(MayAdmit(state)) << "a request alone always runs";
}

TEST(AdmissionTest, ForksNeedAPlaceAtOnceOnlyUnderReserve) {
  AdmissionState state = {.running = 3, .max_running = 4, .new_sequences = 2, .available_extents = 100, .total_extents = 100};
  EXPECT_TRUE(MayAdmit(state));
  state.reserve_to_finish = true;
  EXPECT_FALSE(MayAdmit(state));
}

TEST(OwedTest, ForksShareFullBlocksOfThePromptOnly) {
  const KvGroupShape group = {.extent_tokens = 16};
  OwedState state = {.groups = {&group, 1}, .known_tokens = 20, .final_tokens = 40, .prompt_tokens = 20, .unforked_choices = 2};
  EXPECT_EQ(OwedExtents(state), 2);
  state.reserve_to_finish = true;
  EXPECT_EQ(OwedExtents(state),
            3 + 2 * 2 + 1);  // one's own; two forks with all but the full block; the parent's copy of the partial one
  state = {.groups = {&group, 1},
           .held = {2},
           .shared_tails = 1,
           .known_tokens = 20,
           .final_tokens = 40,
           .prompt_tokens = 20,
           .reserve_to_finish = true};
  EXPECT_EQ(3 * OwedExtents(state), 6) << "after the fork the three together are owed no more than was promised";
}

TEST(OwedTest, AWindowOwesNoMoreThanItsCap) {
  const KvGroupShape groups[] = {{.extent_tokens = 16}, {.extent_tokens = 16, .window_tokens = 64}};
  OwedState state = {.groups = groups, .known_tokens = 1000, .final_tokens = 2000, .chunk_tokens = 32};
  // 63 tokens before the chunk's first and 32 of the chunk touch at most 7 blocks of 16.
  EXPECT_EQ(ExtentsAtOnce(groups[1], 1000, 32), 7);
  EXPECT_EQ(OwedExtents(state), 63 + 7);
  state.reserve_to_finish = true;
  EXPECT_EQ(OwedExtents(state), 125 + 7);
  state.unforked_choices = 1;
  state.prompt_tokens = 1000;
  EXPECT_EQ(OwedExtents(state), 125 + 7 + (125 - 62) + 1 + 5) << "a fork has its own window";
}

TEST(OwedTest, ExtentsAtOnceIsTheMostThatAnySpanTouches) {
  for (int extent = 1; extent <= 9; ++extent) {
    for (int window = 1; window <= 20; ++window) {
      for (int chunk = 1; chunk <= 12; ++chunk) {
        int64_t most = 0;
        for (int first = 0; first < 40; ++first) {
          const int begin = std::max(0, first - window + 1) / extent, end = (first + chunk + extent - 1) / extent;
          most = std::max<int64_t>(most, end - begin);
        }
        EXPECT_EQ(ExtentsAtOnce({extent, window}, 1000, chunk), most) << extent << " " << window << " " << chunk;
      }
    }
  }
}

TEST(OwedTest, TheLongestTextFitsAndOneTokenMoreDoesNot) {
  const KvGroupShape groups[] = {{.extent_tokens = 80}, {.extent_tokens = 16, .window_tokens = 64}};
  EXPECT_EQ(LongestText({groups, 1}, 10, 32, 1 << 20), 800);
  EXPECT_EQ(LongestText(groups, 10, 32, 1 << 20), 240) << "three extents of 80, and seven for the window";
  EXPECT_EQ(LongestText({groups + 1, 1}, 10, 32, 1 << 20), 1 << 20) << "a window alone has no end";
  EXPECT_EQ(LongestText({groups + 1, 1}, 3, 32, 1 << 20), 48);
}

TEST(WaitTest, FollowsQueueAndRateWithinBounds) {
  EXPECT_EQ(PredictWaitSeconds({.waiting = 0, .completions_per_second = 1}), 0);
  EXPECT_DOUBLE_EQ(PredictWaitSeconds({.waiting = 100, .completions_per_second = 5}), 20);
  EXPECT_GT(PredictWaitSeconds({.waiting = 100, .running = 10, .oldest_running_seconds = 3}), 1);
  EXPECT_EQ(RetryAfterSeconds(0), 1);
  EXPECT_EQ(RetryAfterSeconds(1.5), 2);
  EXPECT_EQ(RetryAfterSeconds(1e9), 60);
  EXPECT_EQ(RetryAfterSeconds(std::numeric_limits<double>::quiet_NaN()), 1);
}

}  // namespace
}  // namespace kvasir
