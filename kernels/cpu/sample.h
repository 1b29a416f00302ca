// The sampler of the CPU device: the definition of reference.h without a sort of the vocabulary. A few vector scans find the
// maximum and per-block maxima; top-k and top-p then select among the few logits that can matter, exactly. Rows run in
// parallel and do not touch each other. Called by CpuDevice.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/sample_kernels.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/sampling.h"

namespace kvasir {

// Scratch of one thread; grows to the vocabulary and is then reused. All vectors but `counts` are overwritten at each use.
struct SampleScratch {
  static constexpr int kBuckets = 4096;

  std::vector<float> adjusted;     // [vocab] logits after masks, bias and penalties
  std::vector<float> block_max;    // [blocks]
  std::vector<float> block_order;  // [blocks]
  std::vector<double> block_sum;   // [blocks]
  std::vector<int32_t> ids;        // [vocab + 16] tokens that pass a threshold, by rising id
  std::vector<float> values;       // [vocab + 16] their logits
  std::vector<float> weights;      // [vocab + 16] their weights
  std::vector<int32_t> order;      // [vocab + 16] indices into ids, for selection
  std::vector<double> bucket_sum;  // [kBuckets]
  std::vector<int32_t> counts;     // [vocab] occurrences of a token; zero between rows
};

struct SampleWorkspace {
  std::vector<SampleScratch> threads;
};

// Device::Sample and Device::ScoreTokens. logits [rows, vocab].
void CpuSample(const SampleKernels& kernels, ThreadTeam& team, SampleWorkspace& workspace, const float* logits, int vocab,
               std::span<const SampleRow> rows, std::span<SampleResult> results);
void CpuScoreTokens(const SampleKernels& kernels, ThreadTeam& team, SampleWorkspace& workspace, const float* logits, int vocab,
                    std::span<const int32_t> tokens, std::span<const int32_t> num_top, std::span<SampleResult> results);

}  // namespace kvasir
