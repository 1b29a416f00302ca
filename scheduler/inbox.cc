#include "scheduler/inbox.h"

#include <algorithm>
#include <tuple>

namespace kvasir {
namespace {

constexpr size_t kSmallestCompaction = 4096;

}  // namespace

void InboxContents::Clear() {
  submissions.clear();
  cancellations.clear();
  reset_cache = false;
  end_all.reset();
  closed = false;
}

Inbox::Inbox(int64_t max_waiting) : max_waiting_(std::max<int64_t>(1, max_waiting)), compact_at_(kSmallestCompaction) {}

void Inbox::Signal() {
  pending_.store(true, std::memory_order_release);
  changed_.notify_one();
}

StatusOr<RequestId> Inbox::Submit(ValidatedRequest params, std::shared_ptr<TokenSink> sink) {
  std::lock_guard lock(mutex_);
  if (closed_reason_) return *closed_reason_;
  const int64_t waiting = int64_t(contents_.submissions.size()) + scheduler_waiting_.load(std::memory_order_relaxed);
  if (waiting >= max_waiting_) {
    return ResourceExhausted("{} requests are waiting and the limit is {}; retry later or raise --max-waiting-requests", waiting,
                             max_waiting_);
  }
  const RequestId id = next_id_++;
  contents_.submissions.push_back({id, std::move(params), std::move(sink)});
  Signal();
  return id;
}

void Inbox::Cancel(RequestId id, int choice) {
  std::lock_guard lock(mutex_);
  if (id == 0 || id >= next_id_) return;
  auto& list = contents_.cancellations;
  list.push_back({id, choice < 0 ? -1 : choice});
  // A caller that repeats itself while a step runs must not fill memory: what is left after removing repeats is bounded by the
  // number of choices in flight.
  if (list.size() >= compact_at_) {
    const auto key = [](const Cancellation& c) { return std::tuple(c.id, c.choice); };
    std::sort(list.begin(), list.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
    list.erase(std::unique(list.begin(), list.end(), [&](const auto& a, const auto& b) { return key(a) == key(b); }), list.end());
    compact_at_ = std::max(kSmallestCompaction, list.size() * 2);
  }
  Signal();
}

void Inbox::ResetCache() {
  std::lock_guard lock(mutex_);
  contents_.reset_cache = true;
  Signal();
}

void Inbox::EndAll(const Status& status) {
  std::lock_guard lock(mutex_);
  contents_.end_all = status;
  Signal();
}

void Inbox::Close(const Status& reason) {
  std::lock_guard lock(mutex_);
  if (!closed_reason_) closed_reason_ = reason;
  Signal();
}

void Inbox::Wake() {
  std::lock_guard lock(mutex_);
  woken_ = true;
  changed_.notify_one();
}

bool Inbox::Take(InboxContents& out) {
  out.Clear();
  if (!pending_.load(std::memory_order_acquire)) return false;
  std::lock_guard lock(mutex_);
  std::swap(out, contents_);
  out.closed = closed_reason_.has_value();
  pending_.store(false, std::memory_order_relaxed);
  // Until the scheduler reports its new count, those taken are still counted.
  scheduler_waiting_.fetch_add(int64_t(out.submissions.size()), std::memory_order_relaxed);
  return true;
}

void Inbox::Wait(int64_t timeout_micros) {
  std::unique_lock lock(mutex_);
  const auto ready = [&] { return woken_ || pending_.load(std::memory_order_relaxed); };
  if (timeout_micros < 0) {
    changed_.wait(lock, ready);
  } else {
    changed_.wait_for(lock, std::chrono::microseconds(timeout_micros), ready);
  }
  woken_ = false;
}

int64_t Inbox::waiting() const {
  std::lock_guard lock(mutex_);
  return int64_t(contents_.submissions.size()) + scheduler_waiting_.load(std::memory_order_relaxed);
}

}  // namespace kvasir
