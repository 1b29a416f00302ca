// The table of row scans that the CPU sampler is made of, for one ISA. Used by sample.cc and by sample_kernels.cc (compiled
// once per ISA): plain pointers only. n is the number of logits; blocks have kSampleBlock logits, the last may be shorter.
#pragma once

#include <stdint.h>

namespace kvasir {

constexpr int kSampleBlock = 256;

struct SampleKernels {
  // block_max[b] = the largest logit of block b, -Inf for none. Returns false when a logit is NaN or +Inf.
  bool (*scan)(const float* logits, int64_t n, float* block_max);
  // block_sum[b] = sum of exp((logit - max) * scale) over block b, summed as doubles in a fixed order.
  void (*exp_sums)(const float* logits, int64_t n, float max, float scale, double* block_sum);
  // weights[i] = exp((logits[i] - max) * scale)
  void (*weights)(const float* logits, int64_t n, float max, float scale, float* weights);
  // Appends id and logit of every logits[i] >= threshold, by rising id; ids count from first_id. Returns how many. ids and
  // values must have room for n + 16 more.
  int64_t (*collect)(const float* logits, int64_t n, float threshold, int32_t first_id, int32_t* ids, float* values);
  // How many logits are greater than, and equal to, `value`.
  int64_t (*count_greater)(const float* logits, int64_t n, float value);
  int64_t (*count_equal)(const float* logits, int64_t n, float value);
};

}  // namespace kvasir
