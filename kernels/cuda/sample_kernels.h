// What the host side of the CUDA sampler (sample.cu) and its kernels (sample_scan.cu, sample_draw.cu) share. Used by nobody else.
//
// A row is looked at in tiles and chunks at fixed places, and sums of weights are integers: weight 1 is 2^43. So the order of a
// sum does not matter, and a token depends neither on the other rows nor on how many threads took part.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"

namespace kvasir {

inline constexpr int kSampleTile = 256;          // ids whose largest logit is kept
inline constexpr int kSampleChunk = 4096;        // ids of a block of the scans
inline constexpr int kMaxSampleVocab = 1 << 20;  // as many weights of 1 fit into 64 bits

// A row of logits that is scanned: as it came, or adjusted.
struct SampleItem {
  const float* logits = nullptr;
  float scale = 0;           // > 0: sums of exp2((l - max) * scale) are wanted
  int32_t plain_sum = 0;     // and of exp(l - max)
  int32_t same_as_came = 1;  // 0: adjusted; what came was looked through by AdjustSamples
};

// Masks, biases and penalties of one row; ranges are of the ids that were uploaded with it.
struct SampleAdjust {
  const float* logits = nullptr;
  float* adjusted = nullptr;
  uint32_t* counts = nullptr;  // [vocab], any content
  int32_t allowed_only = 0;
  int32_t allowed = 0, suppressed = 0, biased = 0, prompt = 0, output = 0, end = 0;  // each begins where the one before ends
  int32_t biases = 0;                                                                // of the values
  float repetition = 1, frequency = 0, presence = 0;
  int32_t item = 0;  // marked bad when what came is
};

// What is to be answered for one row. Item numbers are < 0 where there is no need.
struct SampleSpec {
  const float* logits = nullptr;    // as it came
  const float* adjusted = nullptr;  // what is drawn from; may be the same
  int32_t item = 0, plain_item = -1;
  int32_t given = 0;  // a token is given, not to be drawn
  int32_t token = 0;
  int32_t greedy = 0, top_k = 0, cut_min = 0;
  float top_p = 1, temperature = 1, scale = 0;
  double least = 0;  // min_p keeps l - max >= least
  double uniform = 0;
  int32_t num_top = 0, top_at = 0;  // where its alternatives begin
};

struct SampleAnswer {
  int32_t token, finite;
  float logprob;
  int32_t rank;
};
struct SampleAlternative {
  int32_t token;
  float logprob;
};

// Of all items of a call, item by item.
struct SampleScan {
  float* tile_max = nullptr;           // [items, tiles]
  unsigned long long* best = nullptr;  // [items, chunks]: key and id of the largest logit; kBadRow where one is NaN or +Inf
  unsigned long long* sums = nullptr;  // [items, chunks, 2]: of weights at the item's scale, and plain
  uint32_t* bad = nullptr;             // [items]: by AdjustSamples
  int32_t tiles = 0, chunks = 0, vocab = 0;
};

void AdjustSamples(CudaContext& context, const SampleAdjust* rows, int count, const int32_t* ids, const float* values,
                   const SampleScan& scan);
// Largest logits of all items, and, when any item wants them, sums.
void ScanSamples(CudaContext& context, const SampleItem* items, int count, bool sums, const SampleScan& scan);
// tokens: [count], of the answers, or nullptr.
void AnswerSamples(CudaContext& context, const SampleSpec* rows, int count, const SampleScan& scan, SampleAnswer* answers,
                   SampleAlternative* alternatives, int32_t* tokens);

}  // namespace kvasir
