#include "server/worker_pool.h"

#include <sys/resource.h>
#include <unistd.h>

namespace kvasir {

WorkerPool::WorkerPool(int threads, size_t max_queue, int niceness) : max_queue_(max_queue) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this, niceness] {
      const id_t self = id_t(gettid());  // on Linux, a priority is a thread's
      if (niceness != 0 && niceness > getpriority(PRIO_PROCESS, self)) setpriority(PRIO_PROCESS, self, niceness);
      Run();
    });
  }
}

WorkerPool::~WorkerPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::Post(std::function<void()> work) {
  {
    std::lock_guard lock(mutex_);
    if (queue_.size() >= max_queue_ || stop_) return false;
    queue_.push_back(std::move(work));
  }
  changed_.notify_one();
  return true;
}

void WorkerPool::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;  // what it captured is freed without the lock
    lock.lock();
  }
}

}  // namespace kvasir
