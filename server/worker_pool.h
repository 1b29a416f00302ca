// WorkerPool: a few threads for work that would hold up an I/O thread: chat templates, tokenization and parsing of long input.
// The queue is bounded; when it is full, Post refuses and the caller answers "server busy".
// A pool for work that takes many milliseconds is made with a niceness: on a machine where all CPUs compute, one client that
// sends long texts would otherwise take as much from the streams of all others as the scheduler finds fair.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"

namespace kvasir {

class WorkerPool {
 public:
  WorkerPool(int threads, size_t max_queue, int niceness = 0);
  ~WorkerPool();  // finishes what is queued
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // False when the queue is full; `work` was not taken then.
  [[nodiscard]] bool Post(std::function<void()> work);

 private:
  void Run();

  const size_t max_queue_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace kvasir
