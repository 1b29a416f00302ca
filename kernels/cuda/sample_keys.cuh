// Order and weights of logits as the sampler's kernels (sample_scan.cu, sample_draw.cu) use them.
#pragma once

#include "kernels/cuda/sample_kernels.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {

using Sum64 = unsigned long long;  // what atomics know

constexpr Sum64 kBadRow = ~0ull;
constexpr float kSampleLowest = -3.402823466e38f;  // of what is not masked

// Integers in the order of floats; -0 and 0 are equal.
KVASIR_DEVICE uint32_t OrderKey(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
KVASIR_DEVICE float FromOrderKey(uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}
// The larger logit first, ties to the lower id; never 0, and kBadRow for no logit that a row may have.
KVASIR_DEVICE Sum64 Ranked(float x, int id) {
  return Sum64{OrderKey(x)} << 32 | (0xffffffffu - uint32_t(id));
}
KVASIR_DEVICE float RankedLogit(Sum64 ranked) {
  return FromOrderKey(uint32_t(ranked >> 32));
}
KVASIR_DEVICE int RankedId(Sum64 ranked) {
  return int(0xffffffffu - uint32_t(ranked));
}
KVASIR_DEVICE bool IsBad(float x) {
  return !(x < __uint_as_float(0x7f800000u));  // NaN too
}

// 2^43 * 2^((x - max) * scale)
KVASIR_DEVICE Sum64 FixedWeight(float x, float max, float scale) {
  return Sum64(gpu::Exp2(__fmul_rn(__fsub_rn(x, max), scale)) * 0x1p43f);
}

KVASIR_DEVICE Sum64 WarpLargest(Sum64 value) {
  for (int mask = gpu::kWarp / 2; mask > 0; mask /= 2) {
    const Sum64 other = gpu::ShuffleXor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}
KVASIR_DEVICE Sum64 WarpTotal(Sum64 value) {
  for (int mask = gpu::kWarp / 2; mask > 0; mask /= 2) value += gpu::ShuffleXor(value, mask);
  return value;
}

// The best of an item's chunks, for every lane. Called by whole warps.
KVASIR_DEVICE Sum64 ItemBest(const SampleScan& scan, int item) {
  Sum64 best = 0;
  for (int c = gpu::Lane(); c < scan.chunks; c += gpu::kWarp) {
    const Sum64 other = scan.best[int64_t{item} * scan.chunks + c];
    best = other > best ? other : best;
  }
  return scan.bad[item] != 0 ? kBadRow : WarpLargest(best);
}
// Whether there is anything to draw: no NaN, no +Inf, not all masked.
KVASIR_DEVICE bool IsSound(Sum64 best) {
  return best != kBadRow && RankedLogit(best) >= kSampleLowest;
}

}  // namespace kvasir
