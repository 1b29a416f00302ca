#include "tests/simt/simt.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/rng.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace kvasir::simt {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMaxThreads = 1024;

[[noreturn]] void Die(const char* what, int thread) {
  std::fprintf(stderr, "simt: %s (thread %d of a block)\n", what, thread);
  std::abort();
}

// --- switching stacks ---------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
struct Context {
  void* sp = nullptr;
};
extern "C" void kvasir_simt_switch(void** save, void* load);
asm(R"(
.text
.type kvasir_simt_switch, @function
kvasir_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kvasir_simt_switch, . - kvasir_simt_switch
)");
void SwitchContext(Context& from, Context& to) {
  kvasir_simt_switch(&from.sp, to.sp);
}
void MakeContext(Context& context, char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + kStackBytes - 64);
  *--top = nullptr;  // a return address for entry, which never returns
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.sp = top;
}
#else
struct Context {
  ucontext_t u;
};
void SwitchContext(Context& from, Context& to) {
  swapcontext(&from.u, &to.u);
}
void MakeContext(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.u);
  context.u.uc_stack = {.ss_sp = stack, .ss_flags = 0, .ss_size = kStackBytes};
  context.u.uc_link = nullptr;
  makecontext(&context.u, entry, 0);
}
#endif

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool valid;
  int group;
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // ASan's
  Place place;
  int index = 0;
  bool done = false;
  const uint32_t* waits_for = nullptr;  // may go on when this is not waits_while any more
  uint32_t waits_while = 0;
  std::vector<Copy> copies;
  int open_group = 0;
};

struct Meeting {
  uint32_t generation = 0;
  int arrived = 0;
  const char* what = nullptr;
  Combine combine = nullptr;
  void* mine[32] = {};
};

struct Machine {
  uint64_t seed = 0, runs = 0;
  char* stacks = nullptr;
  std::vector<Fiber> fibers;
  Context main;
  void* main_fake_stack = nullptr;
  const void* main_stack_bottom = nullptr;
  size_t main_stack_size = 0;
  Fiber* running = nullptr;
  int block_threads = 0;
  std::vector<Meeting> warps;
  Meeting block;
  const std::function<void()>* body = nullptr;
  bool eager_copies = false;
  std::unique_ptr<unsigned char[]> shared;
  unsigned char* shared_begin = nullptr;
  size_t shared_bytes = 0;
};
Machine machine;

void ToFiber(Fiber& fiber) {
  machine.running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.main_fake_stack, fiber.stack, kStackBytes);
#endif
  SwitchContext(machine.main, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.main_fake_stack, nullptr, nullptr);
#endif
}

void ToMain(bool last) {
  Fiber& fiber = *machine.running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fiber.fake_stack, machine.main_stack_bottom, machine.main_stack_size);
#else
  (void)last;
#endif
  SwitchContext(fiber.context, machine.main);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void FiberMain() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.main_stack_bottom, &machine.main_stack_size);
#endif
  (*machine.body)();
  machine.running->done = true;
  ToMain(true);
  std::abort();
}

void WaitFor(Meeting& meeting, uint32_t generation) {
  Fiber& fiber = *machine.running;
  fiber.waits_for = &meeting.generation;
  fiber.waits_while = generation;
  while (meeting.generation == generation) ToMain(false);
  fiber.waits_for = nullptr;
}

void MakeFibers(int threads) {
  if (threads < 1 || threads > kMaxThreads) Die("a block has 1 to 1024 threads", threads);
  if (machine.stacks == nullptr) {
    void* const stacks =
        mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) Die("no memory for stacks", threads);
    machine.stacks = static_cast<char*>(stacks);
    machine.fibers.resize(kMaxThreads);
  }
  machine.block_threads = threads;
  machine.warps.assign((threads + 31) / 32, {});
  machine.block = {};
}

void RunBlock(const Place& place, const std::vector<int>& warp_order) {
  const int threads = machine.block_threads;
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    fiber.stack = machine.stacks + kStackBytes * i;
    fiber.place = place;
    fiber.place.thread = dim3(unsigned(i), 0, 0);
    fiber.index = i;
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.copies.clear();
    fiber.open_group = 0;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
    MakeContext(fiber.context, fiber.stack, FiberMain);
  }
  // Shared memory of exactly the size asked for, NaN in every type of float, at the end of its allocation for ASan's sake.
  std::memset(machine.shared_begin, 0xff, machine.shared_bytes);
  for (int live = threads; live > 0;) {
    bool progressed = false;
    for (const int warp : warp_order) {
      for (int i = warp * 32; i < std::min(threads, warp * 32 + 32); ++i) {
        Fiber& fiber = machine.fibers[i];
        if (fiber.done || (fiber.waits_for != nullptr && *fiber.waits_for == fiber.waits_while)) continue;
        ToFiber(fiber);
        progressed = true;
        if (fiber.done) --live;
      }
    }
    if (!progressed) {
      for (int i = 0; i < threads; ++i) {
        const Fiber& fiber = machine.fibers[i];
        if (!fiber.done && fiber.waits_for != &machine.block.generation)
          std::fprintf(stderr, "simt: thread %d waits for its warp in %s\n", i, machine.warps[i / 32].what);
      }
      Die("threads wait for others that have ended or wait elsewhere", 0);
    }
  }
}

std::vector<int> Order(int count, Rng& rng, bool shuffled) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (shuffled)
    for (int i = count; i > 1; --i) std::swap(order[i - 1], order[rng.Below(uint64_t(i))]);
  return order;
}

void Land(const Copy& copy) {
  if (copy.valid)
    std::memcpy(copy.to, copy.from, copy.bytes);
  else
    std::memset(copy.to, 0, copy.bytes);
}

}  // namespace

void Seed(uint64_t seed) {
  machine.seed = seed;
  machine.runs = 0;
}

void Run(dim3 grid, int block, size_t shared, const std::function<void()>& body) {
  if (machine.running != nullptr) Die("a kernel cannot start kernels", 0);
  const OpenDeviceMemory open;
  Rng rng(machine.seed, machine.runs++);
  const bool shuffled = machine.seed != 0;
  machine.eager_copies = shuffled && rng.Chance(0.5);
  MakeFibers(block);
  machine.body = &body;
  machine.shared_bytes = shared;
  const size_t room = (shared + 1023) / 1024 * 1024;
  machine.shared.reset(new unsigned char[shared + 1024 + (room - shared)]);
  machine.shared_begin = machine.shared.get();
  while (reinterpret_cast<uintptr_t>(machine.shared_begin) % 1024 != 0) ++machine.shared_begin;
  const int blocks = int(grid.x * grid.y * grid.z);
  const std::vector<int> block_order = Order(blocks, rng, shuffled);
  const std::vector<int> warp_order = Order((block + 31) / 32, rng, shuffled);
  for (const int b : block_order) {
    const Place place = {.thread = {},
                         .block = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)),
                         .block_dim = dim3(unsigned(block)),
                         .grid_dim = grid};
    RunBlock(place, warp_order);
  }
  machine.running = nullptr;
}

const Place& Here() {
  return machine.running->place;
}
unsigned char* SharedMemory() {
  return machine.shared_begin;
}
size_t SharedBytes() {
  return machine.shared_bytes;
}

void MeetWarp(const char* what, void* mine, Combine combine) {
  Fiber& fiber = *machine.running;
  Meeting& meeting = machine.warps[fiber.index / 32];
  const int lanes = std::min(32, machine.block_threads - fiber.index / 32 * 32);
  if (meeting.arrived > 0 && meeting.combine != combine) {
    std::fprintf(stderr, "simt: %s meets %s\n", what, meeting.what);
    Die("lanes of a warp are at different warp-wide functions", fiber.index);
  }
  meeting.what = what;
  meeting.combine = combine;
  meeting.mine[fiber.index % 32] = mine;
  if (++meeting.arrived < lanes) return WaitFor(meeting, meeting.generation);
  combine(meeting.mine, lanes);
  meeting.arrived = 0;
  ++meeting.generation;
}

void MeetBlock() {
  Meeting& meeting = machine.block;
  if (++meeting.arrived < machine.block_threads) return WaitFor(meeting, meeting.generation);
  meeting.arrived = 0;
  ++meeting.generation;
}

void CopyLater(void* to, const void* from, size_t bytes, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || (valid && reinterpret_cast<uintptr_t>(from) % bytes != 0))
    Die("an asynchronous copy is not aligned", machine.running->index);
  Fiber& fiber = *machine.running;
  const Copy copy = {to, from, bytes, valid, fiber.open_group};
  if (machine.eager_copies)
    Land(copy);
  else
    fiber.copies.push_back(copy);
}
void CloseCopies() {
  ++machine.running->open_group;
}
void FinishCopies(int pending) {
  Fiber& fiber = *machine.running;
  size_t kept = 0;
  for (const Copy& copy : fiber.copies) {
    if (copy.group < fiber.open_group - pending)
      Land(copy);
    else
      fiber.copies[kept++] = copy;
  }
  fiber.copies.resize(kept);
}

}  // namespace kvasir::simt
