#include "kernels/cpu/thread_team.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

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

// CPUs the cgroup's quota allows, rounded up; 0 when there is no quota. Version 2 first, then version 1.
int CgroupCpus() {
  double quota = 0, period = 0;
  std::string text;
  if (std::ifstream max("/sys/fs/cgroup/cpu.max"); max >> text >> period) {
    if (text == "max") return 0;
    quota = std::strtod(text.c_str(), nullptr);
  } else {
    std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(quota_file >> quota) || !(period_file >> period)) return 0;
  }
  if (quota <= 0 || period <= 0) return 0;
  return std::max(1, static_cast<int>(quota / period + 0.999));
}

}  // namespace

int UsableCpus() {
  int cpus = 1;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    cpus = CPU_COUNT(&set);
  } else {
    cpus = static_cast<int>(std::thread::hardware_concurrency());  // more than 1024 CPUs
  }
  if (const int quota = CgroupCpus(); quota > 0) cpus = std::min(cpus, quota);
  return std::max(1, cpus);
}

ThreadTeam::ThreadTeam(int threads)
    : size_(threads), spin_(threads <= UsableCpus()), workers_(new Worker[threads]) {
  KVASIR_CHECK(threads >= 1, "a thread team of {}", threads);
  threads_.reserve(size_ - 1);
  for (int worker = 1; worker < size_; ++worker) threads_.emplace_back([this, worker] { WorkerLoop(worker); });
}

ThreadTeam::~ThreadTeam() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_seq_cst);
  FutexWakeAll(generation_);
  for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::RunErased(Entry entry, const void* context) {
  entry_ = entry;
  context_ = context;
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  // Sequentially consistent with the sleeper's increment and re-check: either it sees the new generation, or we see it sleep.
  generation_.store(generation, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0) FutexWakeAll(generation_);
  entry(context, 0);
  for (int worker = 1; worker < size_; ++worker) WaitForWorker(workers_[worker], generation);
}

void ThreadTeam::WaitForWorker(Worker& worker, uint32_t generation) {
  const auto done = [&] { return worker.done.load(std::memory_order_acquire) == generation; };
  if (Spin(spin_, done)) return;
  // The worker lost its core or has long work left: give ours away.
  while (true) {
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    const uint32_t seen = worker.done.load(std::memory_order_seq_cst);
    if (seen == generation) break;
    FutexWait(worker.done, seen);
  }
  caller_sleeps_.store(false, std::memory_order_relaxed);
}

void ThreadTeam::WorkerLoop(int worker) {
  Worker& self = workers_[worker];
  uint32_t seen = 0;
  while (true) {
    const auto moved = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!Spin(spin_, moved)) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      while (generation_.load(std::memory_order_seq_cst) == seen) FutexWait(generation_, seen);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    ++seen;  // a worker takes part in every generation, so it is never more than one behind
    if (stop_) return;
    entry_(context_, worker);
    self.done.store(seen, std::memory_order_seq_cst);
    if (caller_sleeps_.load(std::memory_order_seq_cst)) FutexWakeAll(self.done);
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
