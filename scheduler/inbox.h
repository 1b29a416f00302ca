// Inbox: the one way into the engine, and one of the two objects that threads share. Fronts push from any thread; the engine
// thread takes all that is there once per step and sleeps here when it has nothing to do. Bounded: what waits here and in the
// scheduler together never exceeds max_waiting. Every accepted submission is taken exactly once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "scheduler/request.h"

namespace kvasir {

struct Submission {
  RequestId id = 0;
  ValidatedRequest params;
  std::shared_ptr<TokenSink> sink;
};

struct Cancellation {
  RequestId id = 0;
  int32_t choice = -1;  // < 0 = all
};

// What one Take hands over. In the order in which the engine must apply it.
struct InboxContents {
  std::vector<Submission> submissions;
  std::vector<Cancellation> cancellations;
  bool reset_cache = false;
  std::optional<Status> end_all;  // end every open request with this
  bool closed = false;            // no submission will follow

  void Clear();
};

class Inbox {
 public:
  explicit Inbox(int64_t max_waiting);

  // ResourceExhausted when full; the status given to Close once closed.
  StatusOr<RequestId> Submit(ValidatedRequest params, std::shared_ptr<TokenSink> sink);
  void Cancel(RequestId id, int choice);
  void ResetCache();
  void EndAll(const Status& status);
  void Close(const Status& reason);  // the first reason stays
  void Wake();                       // makes a Wait return

  // Engine thread. Swaps the contents into `out` (cleared first); false when there is nothing. A few nanoseconds when empty.
  bool Take(InboxContents& out);
  // Sleeps until something is there, Wake, or timeout_micros (< 0 = for ever).
  void Wait(int64_t timeout_micros);
  // Requests that wait in the scheduler: they count against the limit.
  void SetWaiting(int64_t waiting) { scheduler_waiting_.store(waiting, std::memory_order_relaxed); }
  int64_t waiting() const;  // here and in the scheduler

 private:
  void Signal() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t max_waiting_;
  std::atomic<int64_t> scheduler_waiting_{0};
  std::atomic<bool> pending_{false};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  InboxContents contents_ ABSL_GUARDED_BY(mutex_);
  std::optional<Status> closed_reason_ ABSL_GUARDED_BY(mutex_);
  RequestId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  size_t compact_at_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvasir
