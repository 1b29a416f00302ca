#include "bench/ceilings.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "fmt/format.h"
#include "kernels/cpu/isa.h"
#include "kernels/status.h"

namespace kvasir {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Sums 64-byte lines with four independent accumulators; the sum keeps the compiler from dropping the loads.
using Line = uint64_t __attribute__((vector_size(64), aligned(1), may_alias));

#if defined(__x86_64__)
__attribute__((target("avx512f,prefer-vector-width=512")))
#endif
uint64_t
ReadWide(const std::byte* data, size_t bytes) {
  Line a{}, b{}, c{}, d{};
  const Line* line = reinterpret_cast<const Line*>(data);
  const Line* end = line + bytes / 256 * 4;
  for (; line != end; line += 4) {
    a += line[0];
    b += line[1];
    c += line[2];
    d += line[3];
  }
  a += b + c + d;
  uint64_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += a[i];
  return sum;
}

uint64_t ReadNarrow(const std::byte* data, size_t bytes) {
  uint64_t sums[4] = {};
  const uint64_t* word = reinterpret_cast<const uint64_t*>(data);
  for (size_t i = 0; i + 4 <= bytes / 8; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += word[i + j];
  }
  return sums[0] + sums[1] + sums[2] + sums[3];
}

// Sixteen independent chains, in assembly so that no accumulator can be spilled. Each returns the operations it did.
#if defined(__x86_64__)
#define KVASIR_X16(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define KVASIR_ZERO(n) "vpxord %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n"
#define KVASIR_FMA512(n) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define KVASIR_DOT512(n) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define KVASIR_CLOBBER(n) "xmm" #n,

__attribute__((target("avx512f"))) double Fma512(int64_t rounds) {
  int64_t left = rounds;
  asm volatile(KVASIR_X16(KVASIR_ZERO) "vpxord %%zmm30, %%zmm30, %%zmm30\nvpxord %%zmm31, %%zmm31, %%zmm31\n"
               "1:\n" KVASIR_X16(KVASIR_FMA512) "dec %0\njnz 1b\n"
               : "+r"(left)
               :
               : KVASIR_X16(KVASIR_CLOBBER) "xmm30", "xmm31", "cc");
  return double(rounds) * 16 * 32;
}

__attribute__((target("avx512f,avx512bf16"))) double Dot512(int64_t rounds) {
  int64_t left = rounds;
  asm volatile(KVASIR_X16(KVASIR_ZERO) "vpxord %%zmm30, %%zmm30, %%zmm30\nvpxord %%zmm31, %%zmm31, %%zmm31\n"
               "1:\n" KVASIR_X16(KVASIR_DOT512) "dec %0\njnz 1b\n"
               : "+r"(left)
               :
               : KVASIR_X16(KVASIR_CLOBBER) "xmm30", "xmm31", "cc");
  return double(rounds) * 16 * 64;
}

#define KVASIR_DOTINT8(n) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n"
__attribute__((target("avx512f,avx512vnni"))) double DotInt8(int64_t rounds) {
  int64_t left = rounds;
  asm volatile(KVASIR_X16(KVASIR_ZERO) "vpxord %%zmm30, %%zmm30, %%zmm30\nvpxord %%zmm31, %%zmm31, %%zmm31\n"
               "1:\n" KVASIR_X16(KVASIR_DOTINT8) "dec %0\njnz 1b\n"
               : "+r"(left)
               :
               : KVASIR_X16(KVASIR_CLOBBER) "xmm30", "xmm31", "cc");
  return double(rounds) * 16 * 128;
}

#define KVASIR_X12(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)
#define KVASIR_ZERO256(n) "vxorps %%ymm" #n ", %%ymm" #n ", %%ymm" #n "\n"
#define KVASIR_FMA256(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n"
__attribute__((target("avx2,fma"))) double Fma256(int64_t rounds) {
  int64_t left = rounds;
  asm volatile(KVASIR_X16(KVASIR_ZERO256) "1:\n" KVASIR_X12(KVASIR_FMA256) "dec %0\njnz 1b\nvzeroupper\n"
               : "+r"(left)
               :
               : KVASIR_X16(KVASIR_CLOBBER) "cc");
  return double(rounds) * 12 * 16;
}
#endif

// Best rate of `work(rounds)` on all threads at once, in operations per second.
double BestRate(ThreadTeam& team, double seconds, double (*work)(int64_t)) {
  constexpr int64_t kRounds =
      200 * 1000;  // a fraction of a millisecond to a millisecond: short enough to fit between interruptions
  double best = 0;
  const auto start = Clock::now();
  do {
    const auto begin = Clock::now();
    team.Run([&](int) { work(kRounds); });
    const double elapsed = Seconds(begin);
    const double operations = work(1) / 1 * kRounds;
    best = std::max(best, operations * team.size() / elapsed);
  } while (Seconds(start) < seconds);
  return best;
}

}  // namespace

double StreamReadOnce(ThreadTeam& team, const void* data, size_t bytes) {
  static const bool wide = KernelsFor("avx512") != nullptr;
  const size_t share = bytes / size_t(team.size()) / 256 * 256;
  std::atomic<uint64_t> sink{0};
  const auto begin = Clock::now();
  team.Run([&](int worker) {
    const std::byte* from = static_cast<const std::byte*>(data) + share * size_t(worker);
    sink.fetch_add(wide ? ReadWide(from, share) : ReadNarrow(from, share), std::memory_order_relaxed);
  });
  return double(share) * team.size() / Seconds(begin);
}

double RoundTripOnce(ThreadTeam& team) {
  constexpr int kTrips = 20000;
  struct alignas(128) Line {
    std::atomic<int> there{0}, back{0};
  } line;
  double seconds = 0;
  const auto wait_for = [](const std::atomic<int>& word, int value) {
    while (word.load() != value) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  };
  team.Run([&](int worker) {
    const auto start = Clock::now();
    for (int i = 1; i <= kTrips && worker == 0; ++i) {
      line.there.store(i);
      wait_for(line.back, i);
    }
    for (int i = 1; i <= kTrips && worker == 1; ++i) {
      wait_for(line.there, i);
      line.back.store(i);
    }
    if (worker == 0) seconds = Seconds(start) / kTrips;
  });
  return seconds;
}

Ceilings MeasureCeilings(ThreadTeam& team, const CeilingOptions& options) {
  Ceilings ceilings;
  ceilings.threads = team.size();
  const size_t bytes = std::max<size_t>(options.stream_bytes, size_t(team.size()) * 4096);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data != MAP_FAILED) {
    madvise(data, bytes, MADV_HUGEPAGE);
    std::memset(data, 1, bytes);  // pages that were never written all map to one page of zeros
    const auto start = Clock::now();
    do {
      ceilings.stream_read_gbs = std::max(ceilings.stream_read_gbs, StreamReadOnce(team, data, bytes) / 1e9);
    } while (Seconds(start) < options.seconds);
    munmap(data, bytes);
  }
#if defined(__x86_64__)
  if (KernelsFor("avx512") != nullptr) {
    ceilings.fma_f32_gflops = BestRate(team, options.seconds, Fma512) / 1e9;
  } else if (KernelsFor("avx2") != nullptr) {
    ceilings.fma_f32_gflops = BestRate(team, options.seconds, Fma256) / 1e9;
  }
  if (KernelsFor("avx512_bf16") != nullptr) {
    ceilings.dot_bf16_gflops = BestRate(team, options.seconds, Dot512) / 1e9;
    ceilings.dot_int8_gops = BestRate(team, options.seconds, DotInt8) / 1e9;
  }
#endif
  return ceilings;
}

std::string ToString(const Ceilings& c) {
  std::string text = fmt::format("{} thread{}: read {:.1f} GB/s", c.threads, c.threads == 1 ? "" : "s", c.stream_read_gbs);
  if (c.fma_f32_gflops > 0) text += fmt::format(", fp32 {:.0f} GFLOP/s", c.fma_f32_gflops);
  if (c.dot_bf16_gflops > 0) text += fmt::format(", bf16 {:.0f} GFLOP/s", c.dot_bf16_gflops);
  if (c.dot_int8_gops > 0) text += fmt::format(", int8 {:.0f} GOP/s", c.dot_int8_gops);
  return text;
}

}  // namespace kvasir
