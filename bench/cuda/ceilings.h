// What this GPU can do at best, measured now: memory, the link to the host, launching, matrix products. Used by the CUDA
// benchmarks, which print these beside their results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/status.h"

namespace kvasir {

struct CudaCeilings {
  double read_bytes_per_second = 0;  // a sum over memory far larger than the L2 cache
  double copy_bytes_per_second = 0;  // device to device, bytes read + bytes written
  double gemm_bf16_flops = 0;        // cuBLASLt, 8192 x 8192 x 8192, random values; 0 = the library is not here
};
StatusOr<CudaCeilings> MeasureCudaCeilings();

enum class LinkDirection : uint8_t { kToDevice, kToHost, kBoth };
// Pinned memory, copies of `bytes` each, many under way; bytes per second, of both directions together.
StatusOr<double> MeasureLink(LinkDirection direction, size_t bytes);

// Seconds that a kernel which does nothing takes as a node of a graph of many in a row; with programmatic launch the next is
// started while one ends.
StatusOr<double> MeasureGraphGap(bool programmatic);

// Seconds of cuBLASLt's product [rows, cols] x [outs, cols]^T in bfloat16 with float32 sums, weights from memory every time: the
// best of the algorithms it suggests. Unavailable where the library is not.
StatusOr<double> MeasureCublasLt(int rows, int64_t outs, int64_t cols);

}  // namespace kvasir
