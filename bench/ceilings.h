// What this machine can do at best, measured now: streaming reads from memory and multiply-add rates. Benchmarks print these
// beside their results, so that a figure comes with its ratio to the ceiling of the same minute. Used by `kvasir bench`.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/cpu/thread_team.h"

namespace kvasir {

struct Ceilings {
  int threads = 0;
  double stream_read_gbs = 0;  // 1e9 bytes per second, one sequential stream per thread
  double fma_f32_gflops =
      0;  // widest fused multiply-add the machine has (AVX-512, AVX2 or FMA), 2 operations each; 0 = not measured
  double dot_bf16_gflops = 0;  // vdpbf16ps, 4 operations per lane; 0 = the machine has none
  double dot_int8_gops = 0;    // vpdpbusd, 8 operations per lane; 0 = the machine has none
};

struct CeilingOptions {
  size_t stream_bytes =
      size_t{512} << 20;  // over all threads; well above the last-level cache, or of a working set to compare with
  double seconds = 0.3;   // for each figure; the best repetition counts
};

// Best of repeated runs on all threads of the team.
Ceilings MeasureCeilings(ThreadTeam& team, const CeilingOptions& options = {});

// One repetition of the streaming read over `data`, in bytes per second; for ratios taken side by side with a kernel.
double StreamReadOnce(ThreadTeam& team, const void* data, size_t bytes);

// Seconds for a word to another core and an answer back, by loads and stores of one cache line: what an empty region cannot beat
// by much. It is some 65 ns or some 300 ns on one virtual machine, as its CPUs are moved to one chiplet or two. 2 threads or
// more.
double RoundTripOnce(ThreadTeam& team);

std::string ToString(const Ceilings& ceilings);  // "2 threads: read 42.1 GB/s, fp32 228 GFLOP/s, bf16 407 GFLOP/s"

}  // namespace kvasir
