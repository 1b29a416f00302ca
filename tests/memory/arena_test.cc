// Arena against a plain model: sets of granules per class, random operations, Check after each.
#include "memory/arena.h"

#include <gtest/gtest.h>

#include <set>

#include "kernels/rng.h"

namespace kvasir {
namespace {

TEST(ArenaTest, HandsOutEveryObjectOnceAndTakesItBack) {
  Arena arena(/*num_chunks=*/3, /*chunk_granules=*/8, {8, 3, 1});
  EXPECT_EQ(arena.FreeObjects(0), 3);
  EXPECT_EQ(arena.FreeObjects(1), 6);  // 2 of 3 granules in each chunk of 8
  EXPECT_EQ(arena.FreeObjects(2), 24);
  std::set<uint32_t> seen;
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(seen.insert(arena.Allocate(1)).second);
  EXPECT_EQ(arena.Allocate(1), Arena::kNone);
  EXPECT_EQ(arena.Allocate(0), Arena::kNone) << "all chunks belong to class 1";
  for (const uint32_t granule : seen) arena.Free(granule, 1);
  EXPECT_EQ(arena.free_chunks(), 3) << "an empty chunk serves every class again";
  EXPECT_TRUE(arena.Check().ok());
}

TEST(ArenaTest, RandomOperationsKeepObjectsApart) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed);
    const int chunk_granules = int(rng.Between(1, 40));
    std::vector<int> sizes;
    for (int c = 0; c < 4; ++c) sizes.push_back(int(rng.Between(1, chunk_granules)));
    Arena arena(rng.Between(1, 12), chunk_granules, sizes);
    std::vector<std::pair<uint32_t, int>> live;
    std::set<uint32_t> granules;
    for (int op = 0; op < 2000; ++op) {
      if (rng.Chance(0.55)) {
        const int size_class = int(rng.Below(4));
        const int64_t free = arena.FreeObjects(size_class);
        const uint32_t granule = arena.Allocate(size_class);
        ASSERT_EQ(granule == Arena::kNone, free == 0);
        if (granule == Arena::kNone) continue;
        for (int g = 0; g < sizes[size_class]; ++g) ASSERT_TRUE(granules.insert(granule + g).second) << "granule given twice";
        ASSERT_EQ(granule / chunk_granules, (granule + sizes[size_class] - 1) / chunk_granules) << "object crosses its chunk";
        live.push_back({granule, size_class});
      } else if (!live.empty()) {
        const size_t i = rng.Below(live.size());
        const auto [granule, size_class] = live[i];
        arena.Free(granule, size_class);
        for (int g = 0; g < sizes[size_class]; ++g) granules.erase(granule + g);
        live[i] = live.back();
        live.pop_back();
      }
      if (op % 16 == 0) {
        ASSERT_TRUE(arena.Check().ok()) << arena.Check();
      }
    }
    for (const auto& [granule, size_class] : live) arena.Free(granule, size_class);
    EXPECT_EQ(arena.free_chunks(), arena.num_chunks());
    EXPECT_TRUE(arena.Check().ok()) << arena.Check();
  }
}

TEST(ArenaDeathTest, FreeingWhatIsNotAllocatedIsOurBug) {
  Arena arena(2, 4, {4, 1});
  const uint32_t granule = arena.Allocate(1);
  EXPECT_DEATH(arena.Free(granule, 0), "freed as class 0");
  EXPECT_DEATH(arena.Free(granule + 4, 1), "CHECK failed");
}

}  // namespace
}  // namespace kvasir
