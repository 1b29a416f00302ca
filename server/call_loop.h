// CallLoop: the way from the engine thread to a thread of a front. A front makes one for each of its I/O threads and gives it to
// every call it starts; all events of an engine step wake such a thread once. LoopThread is a ready-made thread for fronts
// without one.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "scheduler/request.h"

namespace kvasir {

class Call;

class CallLoop : public std::enable_shared_from_this<CallLoop> {
 public:
  // `post` runs a function on the loop's thread, later, in order; callable from any thread; must not throw.
  explicit CallLoop(std::function<void(std::function<void()>)> post) : post_(std::move(post)) {}

  void Post(std::function<void()> function) { post_(std::move(function)); }
  // Engine thread (or a worker): queues an event; nobody is woken yet.
  void Push(std::shared_ptr<Call> call, TokenEvent&& event);
  void Wake();
  // The loop's thread is gone: drops what waits and what still comes. A call holds its loop, so an event left in the queue would
  // keep both for ever.
  void Close();

 private:
  void Deliver();  // on the loop's thread

  const std::function<void(std::function<void()>)> post_;
  std::mutex mutex_;
  std::vector<std::pair<std::shared_ptr<Call>, TokenEvent>> events_ ABSL_GUARDED_BY(mutex_);
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::pair<std::shared_ptr<Call>, TokenEvent>> delivering_;  // loop thread only; keeps its capacity
};

class LoopThread {
 public:
  LoopThread();
  ~LoopThread();  // runs what was posted, then joins
  const std::shared_ptr<CallLoop>& loop() const { return loop_; }

 private:
  // Shared with the loop, which calls in flight may keep longer than the thread lives.
  struct Queue {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::function<void()>> functions ABSL_GUARDED_BY(mutex);
    bool stop ABSL_GUARDED_BY(mutex) = false;
  };
  static void Run(Queue& queue);
  std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
  std::shared_ptr<CallLoop> loop_;
  std::thread thread_;
};

}  // namespace kvasir
