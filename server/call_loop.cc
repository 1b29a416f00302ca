#include "server/call_loop.h"

#include "server/call.h"

namespace kvasir {

void CallLoop::Push(std::shared_ptr<Call> call, TokenEvent&& event) {
  std::lock_guard lock(mutex_);
  if (!closed_) events_.emplace_back(std::move(call), std::move(event));
}

void CallLoop::Wake() {
  {
    std::lock_guard lock(mutex_);
    if (woken_ || events_.empty()) return;
    woken_ = true;
  }
  post_([self = shared_from_this()] { self->Deliver(); });
}

void CallLoop::Close() {
  std::vector<std::pair<std::shared_ptr<Call>, TokenEvent>> dropped;  // outside of the lock: calls may end with them
  std::lock_guard lock(mutex_);
  closed_ = true;
  dropped.swap(events_);
}

void CallLoop::Deliver() {
  {
    std::lock_guard lock(mutex_);
    woken_ = false;
    delivering_.swap(events_);
  }
  for (auto& [call, event] : delivering_) {
    call->touched = true;
    call->Deliver(std::move(event));
  }
  // What one wake brought for a call leaves as one delta for each choice: a thread that lags behind catches up.
  for (auto& [call, event] : delivering_) {
    if (!call->touched) continue;
    call->touched = false;
    call->Flush();
  }
  delivering_.clear();
}

LoopThread::LoopThread() {
  loop_ = std::make_shared<CallLoop>([queue = queue_](std::function<void()> function) {
    {
      std::lock_guard lock(queue->mutex);
      queue->functions.push_back(std::move(function));
    }
    queue->changed.notify_one();
  });
  thread_ = std::thread([queue = queue_] { Run(*queue); });
}

LoopThread::~LoopThread() {
  {
    std::lock_guard lock(queue_->mutex);
    queue_->stop = true;
  }
  queue_->changed.notify_one();
  thread_.join();
  loop_->Close();
}

void LoopThread::Run(Queue& queue) {
  std::vector<std::function<void()>> functions;
  std::unique_lock lock(queue.mutex);
  for (;;) {
    while (queue.functions.empty() && !queue.stop) queue.changed.wait(lock);
    if (queue.functions.empty()) return;
    functions.swap(queue.functions);
    lock.unlock();
    for (auto& function : functions) function();
    functions.clear();
    lock.lock();
  }
}

}  // namespace kvasir
