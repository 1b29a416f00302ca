// What tiles of many strips have in common: sums kept in memory between steps, what is fetched for the next step, and writing
// out. Part of gemm_kernels.cc and quant_kernels.cc, compiled once per ISA (rules in isa.h).
#pragma once

#include "kernels/cpu/quant_kernels.h"
#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

// What the strips of a step fetch for the next one, each its share, some lines at a time. Left to itself the processor stops
// fetching a panel while the strips after the first work in the cache.
struct Ahead {
  const char* from = nullptr;
  int lines = 0;
  inline __attribute__((always_inline)) void Fetch() {
    for (int i = 0; i < lines; ++i, from += 64) __builtin_prefetch(from);
  }
};

// The first `count` columns of a vector that reaches over the weight's last column.
__attribute__((noinline)) void StoreTail(Vec v, const float* bias, float* out, int count) {
  float part[kLanes];
  Store(part, v);
  for (int j = 0; j < count; ++j) out[j] = bias != nullptr ? part[j] + bias[j] : part[j];
}

template <int MR, int NV>
inline __attribute__((always_inline)) void LoadSums(Vec (&sums)[MR][NV], const float* acc) {
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sums[r][v] = Load(acc + r * kPanelColumns + v * kLanes);
  }
}

template <int MR, int NV>
inline __attribute__((always_inline)) void StoreSums(const Vec (&sums)[MR][NV], float* acc) {
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) Store(acc + r * kPanelColumns + v * kLanes, sums[r][v]);
  }
}

// Adds the bias and writes rows out.
void Finish(const float* acc, int rows, const float* bias, float* out, int64_t out_stride, int columns) {
  for (int r = 0; r < rows; ++r, acc += kPanelColumns, out += out_stride) {
    for (int j = 0; j < columns; j += kLanes) {
      const int left = columns - j;
      if (left >= kLanes) {
        Store(out + j, bias != nullptr ? Load(acc + j) + Load(bias + j) : Load(acc + j));
      } else {
        StoreTail(Load(acc + j), bias != nullptr ? bias + j : nullptr, out + j, left);
      }
    }
  }
}

}  // namespace
}  // namespace kvasir::KVASIR_ISA
