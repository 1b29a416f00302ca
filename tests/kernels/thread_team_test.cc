#include "kernels/cpu/thread_team.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "kernels/cpu/topology.h"

namespace kvasir {
namespace {

std::vector<int> MayRunOn() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  std::vector<int> ids;
  for (int id = 0; id < CPU_SETSIZE; ++id) {
    if (CPU_ISSET(id, &set)) ids.push_back(id);
  }
  return ids;
}

TEST(ThreadTeam, WorkersAreHeldToTheirProcessorsAndTheFirstThreadIsNot) {
  const std::vector<int> all = MayRunOn();
  ThreadTeam team(3, {{all.front()}, {all.back()}, {all.front(), all.back()}});
  std::vector<int> ran[3];
  team.Run([&](int worker) { ran[worker] = MayRunOn(); });
  EXPECT_EQ(ran[0], all);  // the process's first thread: its later threads would inherit it
  EXPECT_EQ(ran[1], std::vector<int>{all.back()});
  EXPECT_EQ(ran[2].front(), all.front());
  EXPECT_EQ(ran[2].back(), all.back());
  std::thread([&] { team.Run([&](int worker) { ran[worker] = MayRunOn(); }); }).join();
  EXPECT_EQ(ran[0], std::vector<int>{all.front()});
  EXPECT_EQ(MayRunOn(), all);
}

TEST(ThreadTeam, ProcessorsThatAreNotThereAreIgnored) {
  const std::vector<int> all = MayRunOn();
  ThreadTeam team(2, {{60000}, {60000}});
  std::vector<int> ran[2];
  team.Run([&](int worker) { ran[worker] = MayRunOn(); });
  EXPECT_EQ(ran[1], all);
}

TEST(ThreadTeam, RunCallsEveryWorkerOnceAndTheCallerIsWorkerZero) {
  for (int threads : {1, 2, 3, 4, 9}) {
    ThreadTeam team(threads);
    std::vector<int> calls(threads, 0);
    for (int round = 0; round < 200; ++round) {
      const auto caller = std::this_thread::get_id();
      team.Run([&](int worker) {
        ++calls[worker];
        if (worker == 0) {
          EXPECT_EQ(std::this_thread::get_id(), caller);
        }
      });
    }
    for (int worker = 0; worker < threads; ++worker) EXPECT_EQ(calls[worker], 200) << worker << " of " << threads;
  }
}

TEST(ThreadTeam, ParallelForCoversEveryItemOnceInPiecesOfTheGrain) {
  for (int threads : {1, 2, 3, 4, 7}) {
    ThreadTeam team(threads);
    for (int64_t items : {0, 1, 2, 3, 5, 16, 17, 100, 1001}) {
      for (int64_t grain : {1, 2, 3, 8, 64, 2000}) {
        std::vector<int> seen(items, 0);
        team.ParallelFor(items, grain, [&](int64_t begin, int64_t end, int worker) {
          EXPECT_GE(worker, 0);
          EXPECT_LT(worker, threads);
          EXPECT_LT(begin, end);
          if (threads > 1 && items > grain) {
            EXPECT_EQ(begin % grain, 0);
            EXPECT_LE(end - begin, grain);
          }
          for (int64_t i = begin; i < end; ++i) ++seen[i];  // no two workers have the same item
        });
        for (int64_t i = 0; i < items; ++i) ASSERT_EQ(seen[i], 1) << "item " << i << " of " << items << ", grain " << grain;
      }
    }
  }
}

TEST(ThreadTeam, OnePieceRunsOnTheCaller) {
  ThreadTeam team(3);
  const auto caller = std::this_thread::get_id();
  int calls = 0;
  team.ParallelFor(10, 10, [&](int64_t begin, int64_t end, int worker) {
    ++calls;
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(end, 10);
    EXPECT_EQ(worker, 0);
  });
  EXPECT_EQ(calls, 1);
}

TEST(ThreadTeam, WritesOfOneRegionAreSeenInTheNext) {
  ThreadTeam team(4);
  std::vector<int64_t> a(4, 0), b(4, 0);
  for (int round = 0; round < 2000; ++round) {
    team.Run([&](int worker) { a[worker] = b[(worker + 1) % 4] + 1; });
    team.Run([&](int worker) { b[worker] = a[(worker + 3) % 4] + 1; });
  }
  for (int64_t value : b) EXPECT_EQ(value, 4000);
}

TEST(ThreadTeam, SleepingWorkersWakeUp) {
  ThreadTeam team(4);
  std::atomic<int> calls{0};
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 2 == 0 ? 2 : 0));  // well past the spinning time
    team.Run([&](int) { calls.fetch_add(1); });
  }
  EXPECT_EQ(calls.load(), 80);
}

TEST(ThreadTeam, CallerSleepsThroughLongWorkOfOthers) {
  ThreadTeam team(3);
  for (int round = 0; round < 3; ++round) {
    std::atomic<int> done{0};
    team.Run([&](int worker) {
      if (worker != 0) std::this_thread::sleep_for(std::chrono::milliseconds(5 * worker));
      done.fetch_add(1);
    });
    EXPECT_EQ(done.load(), 3);
  }
}

TEST(ThreadTeam, MoreThreadsThanCoresMakeProgress) {
  ThreadTeam team(4 * UsableCpus() + 3);
  std::atomic<int64_t> sum{0};
  for (int round = 0; round < 300; ++round) {
    team.ParallelFor(64, 1, [&](int64_t begin, int64_t, int) { sum.fetch_add(begin, std::memory_order_relaxed); });
  }
  EXPECT_EQ(sum.load(), 300 * 64 * 63 / 2);
}

TEST(ThreadTeam, IdleTeamBurnsNothing) {
  ThreadTeam team(2);
  team.Run([](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // both are asleep by now
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const double seconds = double(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 0.05);
}

TEST(ThreadTeam, ManyTeamsComeAndGo) {
  for (int round = 0; round < 50; ++round) {
    ThreadTeam team(1 + round % 5);
    int first = -1;
    if (round % 2 == 0)
      team.Run([&](int worker) {
        if (worker == 0) first = 0;
      });
    EXPECT_EQ(first, round % 2 == 0 ? 0 : -1);
  }
}

// Informative: the price of an empty region, printed for the record.
TEST(ThreadTeam, PriceOfAnEmptyRegion) {
  ThreadTeam team(2);
  double best = 1e9;
  for (int round = 0; round < 200; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 100; ++i) team.Run([](int) {});
    best = std::min(best, std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / 100);
  }
  RecordProperty("empty_region_ns", static_cast<int>(best));
  std::printf("empty region, 2 threads: %.0f ns\n", best);
}

}  // namespace
}  // namespace kvasir
