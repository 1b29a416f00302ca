// ExtentPool against a plain model: sets of extents that are free, held or cached, in random operations, Check after each.
#include "memory/extent_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "kernels/rng.h"

namespace kvasir {
namespace {

TEST(ExtentPoolTest, HandsOutEachExtentOnceThenNone) {
  ExtentPool pool(3, 1);
  EXPECT_EQ(pool.Allocate(), 0u);
  EXPECT_EQ(pool.Allocate(), 1u);
  EXPECT_EQ(pool.Allocate(), 2u);
  EXPECT_EQ(pool.Allocate(), kNone);
  EXPECT_TRUE(pool.DropReference(1));
  pool.Free(1);
  EXPECT_EQ(pool.free_extents(), 1);
  EXPECT_EQ(pool.Allocate(), 1u);
}

TEST(ExtentPoolTest, RandomOperationsAgreeWithAModel) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rng rng(seed);
    const int64_t total = rng.Between(1, 30);
    ExtentPool pool(total, 1);
    std::map<uint32_t, int> held;  // references
    std::deque<uint32_t> cached;   // least recently let go first
    for (int op = 0; op < 2000; ++op) {
      const int64_t free = total - int64_t(held.size() + cached.size());
      switch (rng.Below(4)) {
        case 0: {
          const uint32_t extent = pool.Allocate();
          ASSERT_EQ(extent == kNone, free == 0);
          if (extent != kNone) {
            ASSERT_TRUE(held.insert({extent, 1}).second);
            ASSERT_EQ(std::count(cached.begin(), cached.end(), extent), 0);
          }
          break;
        }
        case 1: {
          if (held.empty()) break;
          const auto at = std::next(held.begin(), int64_t(rng.Below(held.size())));
          ASSERT_EQ(pool.DropReference(at->first), at->second == 1);
          if (--at->second > 0) break;
          if (rng.Chance(0.5)) {
            pool.Cache(at->first);
            cached.push_back(at->first);
          } else {
            pool.Free(at->first);
          }
          held.erase(at);
          break;
        }
        case 2: {
          const uint32_t extent = pool.TakeOldest();
          ASSERT_EQ(extent, cached.empty() ? kNone : cached.front());
          if (!cached.empty()) {
            held[extent] = 1;
            cached.pop_front();
          }
          break;
        }
        default: {
          if (held.empty() && cached.empty()) break;
          const size_t pick = rng.Below(held.size() + cached.size());
          const bool was_held = pick < held.size();
          const uint32_t extent = was_held ? std::next(held.begin(), int64_t(pick))->first : cached[pick - held.size()];
          ASSERT_EQ(pool.AddReference(extent), !was_held);
          ++held[extent];
          std::erase(cached, extent);
        }
      }
      ASSERT_TRUE(pool.Check().ok()) << pool.Check();
      ASSERT_EQ(pool.cached_extents(), int64_t(cached.size()));
      ASSERT_EQ(pool.free_extents(), total - int64_t(held.size() + cached.size()));
    }
  }
}

TEST(ExtentPoolDeathTest, FreeingWhatIsNotOursIsOurBug) {
  ExtentPool pool(2, 1);
  const uint32_t extent = pool.Allocate();
  EXPECT_DEATH(pool.Free(extent), "with references");
  EXPECT_DEATH(pool.Free(1 - extent), "freed twice");
}

}  // namespace
}  // namespace kvasir
