#include "kernels/cpu/thread_team.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/cpu/topology.h"
#include "kernels/status.h"

namespace kvasir {
namespace {

// How long a thread spins before it sleeps. Long enough to bridge the serial work between two regions of a step (sampling,
// building the next batch), short enough that a stolen or idle core costs little.
constexpr auto kSpinTime = std::chrono::microseconds(80);
constexpr int kPausesPerClockRead = 64;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void FutexWait(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void FutexWakeAll(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}

// Spins until done() or until it is time to sleep; the answer is done().
template <typename Done>
bool Spin(bool patient, Done done) {
  for (int i = 0; i < kPausesPerClockRead; ++i) {
    if (done()) return true;
    Pause();
  }
  if (!patient) return done();
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  while (true) {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (done()) return true;
      Pause();
    }
    if (std::chrono::steady_clock::now() >= deadline) return done();
  }
}

// Layout of state_: generation in the high half; below it finished and joined workers, and bit 31 for a closed region.
constexpr int kGenerationShift = 32, kFinishedShift = 15;
constexpr uint64_t kCountMask = 0x7fff, kOneJoined = 1, kOneFinished = 1 << kFinishedShift, kClosed = uint64_t{1} << 31;
uint64_t GenerationOf(uint64_t state) {
  return state >> kGenerationShift;
}
uint64_t JoinedOf(uint64_t state) {
  return state & kCountMask;
}
uint64_t FinishedOf(uint64_t state) {
  return state >> kFinishedShift & kCountMask;
}

}  // namespace

ThreadTeam::ThreadTeam(int threads, std::vector<std::vector<int>> processors)
    : size_(threads),
      spin_(threads <= UsableCpus()),
      processors_(std::move(processors)),
      workers_(new Worker[threads]),
      state_(kClosed) {
  KVASIR_CHECK(threads >= 1 && threads <= int(kCountMask), "a thread team of {}", threads);
  KVASIR_CHECK(processors_.empty() || int(processors_.size()) == threads, "processors of {} workers", processors_.size());
  threads_.reserve(size_ - 1);
  for (int worker = 1; worker < size_; ++worker) threads_.emplace_back([this, worker] { WorkerLoop(worker); });
}

ThreadTeam::~ThreadTeam() {
  stop_ = true;
  Open();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::Open() {
  const uint64_t generation = GenerationOf(state_.load(std::memory_order_relaxed)) + 1;
  // Sequentially consistent with a sleeper's increment and re-check: either it sees the new region, or we see it sleep.
  state_.store(generation << kGenerationShift, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0) {
    sleepers_.store(0, std::memory_order_seq_cst);
    wake_.fetch_add(1, std::memory_order_seq_cst);
    FutexWakeAll(wake_);
  }
}

// Where that is forbidden, threads run where the system likes.
void ThreadTeam::BindCaller() {
  bound_caller_ = std::this_thread::get_id();
  if (gettid() != getpid()) BindThread(processors_[0]);
}

void ThreadTeam::Region(Entry entry, const void* context, bool everyone) {
  if (!processors_.empty() && std::this_thread::get_id() != bound_caller_) BindCaller();
  entry_ = entry;
  context_ = context;
  Open();
  entry(context, 0);
  if (!everyone) state_.fetch_or(kClosed, std::memory_order_acq_rel);  // every piece is taken: whoever is not in need not come
  WaitUntilFinished(everyone);
}

bool ThreadTeam::IsFinished(bool everyone) const {
  const uint64_t state = state_.load(std::memory_order_seq_cst);
  return FinishedOf(state) == (everyone ? uint64_t(size_ - 1) : JoinedOf(state));
}

void ThreadTeam::WaitUntilFinished(bool everyone) {
  const auto finished = [&] { return IsFinished(everyone); };
  if (Spin(spin_, finished)) return;
  // A worker lost its core or has long work left: give ours away.
  caller_sleeps_.store(true, std::memory_order_seq_cst);
  while (true) {
    const uint32_t seen = finish_.load(std::memory_order_seq_cst);
    if (finished()) break;
    FutexWait(finish_, seen);
  }
  caller_sleeps_.store(false, std::memory_order_relaxed);
}

// The state of an open region after generation `seen`.
uint64_t ThreadTeam::AwaitRegion(uint32_t seen) {
  uint64_t state = 0;
  const auto opened = [&] {
    state = state_.load(std::memory_order_seq_cst);
    return GenerationOf(state) != seen && (state & kClosed) == 0;
  };
  while (!Spin(spin_, opened)) {
    const uint32_t word = wake_.load(std::memory_order_seq_cst);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    if (opened()) break;
    FutexWait(wake_, word);
  }
  return state;
}

void ThreadTeam::WorkerLoop(int worker) {
  if (!processors_.empty()) BindThread(processors_[worker]);
  uint32_t seen = 0;
  while (true) {
    uint64_t state = AwaitRegion(seen);
    if (!state_.compare_exchange_strong(state, state + kOneJoined, std::memory_order_acq_rel, std::memory_order_relaxed)) {
      continue;  // another worker joined first, or it is closed by now: look again
    }
    seen = uint32_t(GenerationOf(state));
    if (stop_) return;
    entry_(context_, worker);
    state_.fetch_add(kOneFinished, std::memory_order_seq_cst);
    if (caller_sleeps_.load(std::memory_order_seq_cst)) {
      finish_.fetch_add(1, std::memory_order_seq_cst);
      FutexWakeAll(finish_);
    }
  }
}

void ThreadTeam::Share(int64_t items, int64_t grain) {
  // Shares are whole pieces, so that pieces start at multiples of the grain whatever the number of threads.
  const int64_t pieces = (items + grain - 1) / grain;
  for (int worker = 0; worker < size_; ++worker) {
    workers_[worker].next.store(pieces * worker / size_ * grain, std::memory_order_relaxed);
    workers_[worker].end = std::min(items, pieces * (worker + 1) / size_ * grain);
  }
}

}  // namespace kvasir
