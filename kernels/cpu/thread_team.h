// A persistent team of threads for short parallel regions (tens of nanoseconds to milliseconds). The calling thread is worker 0.
// Workers spin for a while between regions, then sleep, so an idle server burns nothing. A region takes no lock and no heap
// memory. Used by CpuDevice and the CPU kernels. One region at a time, started from one thread; regions do not nest.
//
// A ParallelFor waits only for workers that have taken a piece. A worker whose core was given to somebody else finds the region
// closed when it comes back, so on a busy machine a region costs what the remaining workers need, not a scheduler's time slice.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace kvasir {

class ThreadTeam {
 public:
  // threads >= 1, the caller included. processors: those each worker is held to (kernels/cpu/topology.h); empty: none is. The
  // caller is held when it first opens a region and stays so, unless it is the process's first thread: what that one starts later
  // (I/O threads) would inherit it.
  explicit ThreadTeam(int threads, std::vector<std::vector<int>> processors = {});
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }

  // Calls fn(worker) once on every worker, 0 <= worker < size(), and waits for all of them.
  template <typename F>
  void Run(F&& fn) {
    if (size_ == 1) {
      fn(0);
      return;
    }
    using Fn = std::remove_reference_t<F>;
    Region(Call<Fn>, &fn, /*everyone=*/true);
  }

  // Calls fn(begin, end, worker) over [0, items) cut in pieces of `grain` (the last one may be shorter). Each worker starts with
  // its own contiguous share, in order; who is done helps the others. No more than one piece: runs on the caller, nobody is
  // woken. Which worker gets a piece varies; results must not depend on it.
  template <typename F>
  void ParallelFor(int64_t items, int64_t grain, F&& fn) {
    if (items <= 0) return;
    if (size_ == 1 || items <= grain) {
      fn(int64_t{0}, items, 0);
      return;
    }
    Share(items, grain);
    const auto take_pieces = [&](int worker) {
      for (int i = 0; i < size_; ++i) {
        Worker& share = workers_[worker + i < size_ ? worker + i : worker + i - size_];
        while (true) {
          const int64_t begin = share.next.fetch_add(grain, std::memory_order_relaxed);
          if (begin >= share.end) break;
          fn(begin, begin + grain < share.end ? begin + grain : share.end, worker);
        }
      }
    };
    Region(Call<decltype(take_pieces)>, &take_pieces, /*everyone=*/false);
  }

 private:
  using Entry = void (*)(const void* context, int worker);

  template <typename Fn>
  static void Call(const void* context, int worker) {
    (*static_cast<Fn*>(const_cast<void*>(context)))(worker);
  }

  // The share of one worker in a ParallelFor; others may take from it too.
  struct alignas(64) Worker {
    std::atomic<int64_t> next{0};  // the first item nobody took
    int64_t end = 0;
  };

  void Region(Entry entry, const void* context, bool everyone);
  void Open();
  void WaitUntilFinished(bool everyone);
  bool IsFinished(bool everyone) const;
  void Share(int64_t items, int64_t grain);
  void BindCaller();
  void WorkerLoop(int worker);
  uint64_t AwaitRegion(uint32_t seen);

  const int size_;
  const bool spin_;  // false when there are more threads than CPUs: a spinning thread would hold the core another one needs
  const std::vector<std::vector<int>> processors_;
  std::thread::id bound_caller_;  // who called last, if workers are held
  std::unique_ptr<Worker[]> workers_;
  std::vector<std::thread> threads_;

  // Generation of the region, whether it is closed, how many workers joined and how many of those finished, in one word (layout
  // in the .cc), so that joining and closing cannot both succeed. The fields after it are written by the caller while nobody is
  // in a region, and read by workers that have joined.
  alignas(64) std::atomic<uint64_t> state_;
  Entry entry_ = nullptr;
  const void* context_ = nullptr;
  bool stop_ = false;

  alignas(64) std::atomic<int> sleepers_{0};  // workers that sleep or are about to; cleared by who wakes them
  std::atomic<uint32_t> wake_{0};             // futex word of sleeping workers
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<uint32_t> finish_{0};  // futex word of the sleeping caller
};

}  // namespace kvasir
