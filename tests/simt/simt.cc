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
constexpr size_t kOuterFrames = 4 << 10;  // of a stack: more than FiberMain and what calls it take
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

struct Product {
  std::function<void()> compute;
  int group;
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // ASan's
  Place place;
  int index = 0;
  bool done = false;
  bool has_waited = false;              // for the kernel before
  const uint32_t* waits_for = nullptr;  // may go on when this is not waits_while any more
  uint32_t waits_while = 0;
  std::vector<Copy> copies;
  int open_group = 0;
  std::vector<Product> products;
  int open_products = 0;
};

struct Meeting {
  uint32_t generation = 0;
  int arrived = 0;
  const char* what = nullptr;
  Combine combine = nullptr;
  void* mine[128] = {};
};

// An mbarrier. It lies here, and only its address is of the kernel's shared memory.
struct Barrier {
  uint32_t phase = 0;
  int arrivals = 0, pending = 0, bytes = 0;
  void EndPhase() {
    if (pending > 0 || bytes != 0) return;
    ++phase;
    pending = arrivals;
  }
};
struct BulkCopy {
  Barrier* barrier;
  std::vector<Piece> pieces;
};

struct Machine {
  uint64_t seed = 0, runs = 0;
  int64_t products = 0;
  char* stacks = nullptr;
  std::vector<Fiber> fibers;
  Context main;
  void* main_fake_stack = nullptr;
  const void* main_stack_bottom = nullptr;
  size_t main_stack_size = 0;
  Fiber* running = nullptr;
  int block_threads = 0;
  std::vector<Meeting> warps, groups;
  Meeting block;
  std::map<int, Meeting> numbered;
  std::map<void*, Barrier> barriers;
  std::vector<BulkCopy> bulk;
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
  if (!machine.running->has_waited) Die("a kernel does not wait for the one before it", machine.running->index);
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
  machine.groups.assign((threads + 127) / 128, {});
  machine.block = {};
}

// Lands what was copied for this barrier, or for all.
bool LandBulk(const Barrier* barrier) {
  std::vector<BulkCopy> landing, kept;
  for (BulkCopy& copy : machine.bulk) (barrier == nullptr || copy.barrier == barrier ? landing : kept).push_back(std::move(copy));
  machine.bulk = std::move(kept);
  for (const BulkCopy& copy : landing) {
    for (const Piece& piece : copy.pieces) {
      std::memcpy(piece.to, piece.from, piece.bytes);
      copy.barrier->bytes -= int(piece.bytes);
    }
    copy.barrier->EndPhase();
  }
  return !landing.empty();
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
    fiber.has_waited = false;
    fiber.waits_for = nullptr;
    fiber.copies.clear();
    fiber.open_group = 0;
    fiber.products.clear();
    fiber.open_products = 0;
#if defined(__SANITIZE_ADDRESS__)
    // The last fiber here ended in FiberMain, whose frame ASan still guards; it left all others.
    __asan_unpoison_memory_region(fiber.stack + kStackBytes - kOuterFrames, kOuterFrames);
#endif
    MakeContext(fiber.context, fiber.stack, FiberMain);
  }
  // Shared memory of exactly the size asked for, NaN in every type of float, at the end of its allocation for ASan's sake.
  std::memset(machine.shared_begin, 0xff, machine.shared_bytes);
  machine.numbered.clear();
  machine.barriers.clear();
  machine.bulk.clear();
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
    if (!progressed && !LandBulk(nullptr)) {
      for (int i = 0; i < threads; ++i) {
        const Fiber& fiber = machine.fibers[i];
        if (!fiber.done && fiber.waits_for == &machine.warps[i / 32].generation)
          std::fprintf(stderr, "simt: thread %d waits for its warp in %s\n", i, machine.warps[i / 32].what);
        if (!fiber.done && fiber.waits_for == &machine.groups[i / 128].generation)
          std::fprintf(stderr, "simt: thread %d waits for its warpgroup in %s\n", i, machine.groups[i / 128].what);
      }
      Die("threads wait for others that have ended or wait elsewhere", 0);
    }
  }
  if (!machine.bulk.empty()) Die("a block ends before what it copies in bulk has landed", 0);
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
  constexpr unsigned kMostWide = 0x7fffffff, kMostHigh = 65535;
  if (grid.x > kMostWide || grid.y > kMostHigh || grid.z > kMostHigh)
    Die("a grid has 2^31 - 1 x 65535 x 65535 blocks at most", 0);
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

namespace {

void Meet(Meeting& meeting, int place, int lanes, const char* what, void* mine, Combine combine) {
  Fiber& fiber = *machine.running;
  if (meeting.arrived > 0 && meeting.combine != combine) {
    std::fprintf(stderr, "simt: %s meets %s\n", what, meeting.what);
    Die("lanes of a warp are at different warp-wide functions", fiber.index);
  }
  meeting.what = what;
  meeting.combine = combine;
  meeting.mine[place] = mine;
  if (++meeting.arrived < lanes) return WaitFor(meeting, meeting.generation);
  combine(meeting.mine, lanes);
  meeting.arrived = 0;
  ++meeting.generation;
}

}  // namespace

void MeetWarp(const char* what, void* mine, Combine combine) {
  const int index = machine.running->index;
  Meet(machine.warps[index / 32], index % 32, std::min(32, machine.block_threads - index / 32 * 32), what, mine, combine);
}

void MeetGroup(const char* what, void* mine, Combine combine) {
  const int index = machine.running->index;
  if (machine.block_threads < index / 128 * 128 + 128) Die("a warpgroup has less than 128 threads", index);
  Meet(machine.groups[index / 128], index % 128, 128, what, mine, combine);
}

void MeetBlock() {
  Meeting& meeting = machine.block;
  if (++meeting.arrived < machine.block_threads) return WaitFor(meeting, meeting.generation);
  meeting.arrived = 0;
  ++meeting.generation;
}

void MeetNumbered(int number, int threads) {
  Meeting& meeting = machine.numbered[number];
  if (++meeting.arrived < threads) return WaitFor(meeting, meeting.generation);
  meeting.arrived = 0;
  ++meeting.generation;
}

namespace {

Barrier& TheBarrier(void* at) {
  const auto found = machine.barriers.find(at);
  if (found == machine.barriers.end()) Die("there is no barrier at this address", machine.running->index);
  return found->second;
}

}  // namespace

void BarrierMake(void* at, int arrivals) {
  if (reinterpret_cast<uintptr_t>(at) % 8 != 0) Die("a barrier is not aligned", machine.running->index);
  if (!machine.barriers.emplace(at, Barrier{0, arrivals, arrivals, 0}).second)
    Die("a barrier is made twice", machine.running->index);
}

void BarrierArrive(void* at, int bytes) {
  Barrier& barrier = TheBarrier(at);
  if (barrier.pending == 0) Die("more arrive at a barrier than it was made for", machine.running->index);
  barrier.bytes += bytes;
  --barrier.pending;
  barrier.EndPhase();
}

void BarrierWait(void* at, int parity) {
  Barrier& barrier = TheBarrier(at);
  if (int(barrier.phase & 1) == parity) LandBulk(&barrier);
  Fiber& fiber = *machine.running;
  while (int(barrier.phase & 1) == parity) {
    fiber.waits_for = &barrier.phase;
    fiber.waits_while = barrier.phase;
    ToMain(false);
  }
  fiber.waits_for = nullptr;
}

void CopyBulkLater(void* at, std::vector<Piece> pieces) {
  machine.bulk.push_back({&TheBarrier(at), std::move(pieces)});
  if (machine.eager_copies) LandBulk(machine.bulk.back().barrier);
}

void MultiplyLater(std::function<void()> product) {
  ++machine.products;
  if (machine.eager_copies) return product();
  machine.running->products.push_back({std::move(product), machine.running->open_products});
}
int64_t ProductsStarted() {
  return machine.products;
}
void CloseProducts() {
  ++machine.running->open_products;
}
void FinishProducts(int pending) {
  Fiber& fiber = *machine.running;
  size_t done = 0;
  for (; done < fiber.products.size() && fiber.products[done].group < fiber.open_products - pending; ++done)
    fiber.products[done].compute();
  fiber.products.erase(fiber.products.begin(), fiber.products.begin() + std::ptrdiff_t(done));
}

void WaitForPrevious() {
  machine.running->has_waited = true;
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
