#include "server/worker_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <future>

namespace kvasir {
namespace {

int Niceness() {
  return getpriority(PRIO_PROCESS, id_t(gettid()));
}

TEST(WorkerPool, ThreadsHaveTheirNicenessAndNobodyElse) {
  const int before = Niceness();
  WorkerPool pool(2, 8), patient(2, 8, 10);
  std::promise<int> usual, nice;
  ASSERT_TRUE(pool.Post([&] { usual.set_value(Niceness()); }));
  ASSERT_TRUE(patient.Post([&] { nice.set_value(Niceness()); }));
  EXPECT_EQ(usual.get_future().get(), before);
  EXPECT_EQ(nice.get_future().get(), std::max(before, 10));
  EXPECT_EQ(Niceness(), before);
}

TEST(WorkerPool, RefusesWhenFullAndFinishesWhatItTook) {
  std::atomic<int> done{0};
  std::promise<void> go;
  const std::shared_future<void> gone = go.get_future().share();
  int taken = 0;
  {
    WorkerPool pool(1, 3);
    std::promise<void> started;
    ASSERT_TRUE(pool.Post([&, gone] {
      started.set_value();
      gone.wait();
      ++done;
    }));
    started.get_future().wait();  // the only thread is busy now
    for (int i = 0; i < 5; ++i) taken += pool.Post([&] { ++done; });
    EXPECT_EQ(taken, 3);
    go.set_value();
  }
  EXPECT_EQ(done.load(), 4);
}

}  // namespace
}  // namespace kvasir
