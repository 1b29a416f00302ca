#include "kernels/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/rng.h"

namespace kvasir {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kMostScale = 1e38f;  // 1 / temperature stays finite, so that 0 * scale is 0

// A row of logits with what every step needs at hand.
struct Row {
  const SampleKernels& kernels;
  SampleScratch& scratch;
  const float* logits;
  int vocab;
  int64_t blocks() const { return (vocab + kSampleBlock - 1) / kSampleBlock; }
};

void Prepare(SampleScratch& scratch, int vocab) {
  if (scratch.counts.size() >= size_t(vocab)) return;
  const size_t blocks = (size_t(vocab) + kSampleBlock - 1) / kSampleBlock;
  scratch.adjusted.resize(vocab);
  scratch.block_max.resize(blocks);
  scratch.block_order.resize(blocks);
  scratch.block_sum.resize(blocks);
  scratch.ids.resize(vocab + 16);
  scratch.values.resize(vocab + 16);
  scratch.weights.resize(std::max(vocab, kSampleBlock) + 16);
  scratch.order.resize(vocab + 16);
  scratch.bucket_sum.resize(SampleScratch::kBuckets);
  scratch.counts.resize(vocab, 0);
}

bool Penalized(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.frequency_penalty != 0 || params.presence_penalty != 0;
}

bool NeedsAdjusting(const SampleRow& row) {
  const SamplingParams& params = *row.params;
  return !params.allowed_token_ids.empty() || !row.suppressed.empty() || !params.logit_bias.empty() || Penalized(params);
}

// Visits prompt and output once with the occurrence counts of the output in scratch.counts, then leaves the counts at zero.
void Penalize(const SampleRow& row, int vocab, SampleScratch& scratch, float* adjusted) {
  constexpr int32_t kSeen = 1 << 30;
  const SamplingParams& params = *row.params;
  int32_t* counts = scratch.counts.data();
  const auto valid = [vocab](int32_t id) { return id >= 0 && id < vocab; };
  for (int32_t id : row.output) {
    if (valid(id)) ++counts[id];
  }
  if (params.repetition_penalty != 1) {
    for (std::span<const int32_t> tokens : {row.prompt, row.output}) {
      for (int32_t id : tokens) {
        if (!valid(id) || (counts[id] & kSeen)) continue;
        counts[id] |= kSeen;
        const float l = adjusted[id];
        adjusted[id] = l > 0 ? l / params.repetition_penalty : l * params.repetition_penalty;
      }
    }
  }
  for (int32_t id : row.output) {
    if (!valid(id)) continue;
    const int32_t count = counts[id] & ~kSeen;
    counts[id] &= kSeen;
    if (count == 0) continue;
    adjusted[id] -= params.frequency_penalty * float(count);
    adjusted[id] -= params.presence_penalty;
  }
  for (std::span<const int32_t> tokens : {row.prompt, row.output}) {
    for (int32_t id : tokens) {
      if (valid(id)) counts[id] = 0;
    }
  }
}

const float* Adjust(const float* logits, int vocab, const SampleRow& row, SampleScratch& scratch) {
  const SamplingParams& params = *row.params;
  float* adjusted = scratch.adjusted.data();
  const auto valid = [vocab](int32_t id) { return id >= 0 && id < vocab; };
  if (params.allowed_token_ids.empty()) {
    std::copy_n(logits, vocab, adjusted);
  } else {
    std::fill_n(adjusted, vocab, kMasked);
    for (int32_t id : params.allowed_token_ids) {
      if (valid(id)) adjusted[id] = logits[id];
    }
  }
  for (int32_t id : row.suppressed) {
    if (valid(id)) adjusted[id] = kMasked;
  }
  for (const auto& [id, bias] : params.logit_bias) {
    if (valid(id)) adjusted[id] += bias;
  }
  if (Penalized(params)) Penalize(row, vocab, scratch, adjusted);
  return adjusted;
}

int32_t ArgMax(const Row& row) {
  const float* block_max = row.scratch.block_max.data();
  const int64_t block = std::max_element(block_max, block_max + row.blocks()) - block_max;
  const float* begin = row.logits + block * kSampleBlock;
  const float* end = row.logits + std::min<int64_t>(row.vocab, (block + 1) * kSampleBlock);
  return int32_t(std::find(begin, end, block_max[block]) - row.logits);
}

// A logit that at least k logits reach: the k-th largest block maximum, or -Inf when there are fewer blocks.
float ReachedBy(const Row& row, int64_t k) {
  if (k > row.blocks()) return kMasked;
  float* order = row.scratch.block_order.data();
  std::copy_n(row.scratch.block_max.data(), row.blocks(), order);
  std::nth_element(order, order + k - 1, order + row.blocks(), std::greater<float>());
  return order[k - 1];
}

int64_t Collect(const Row& row, float threshold) {
  return row.kernels.collect(row.logits, row.vocab, threshold, 0, row.scratch.ids.data(), row.scratch.values.data());
}

// The order of tokens among collected ones: since ids rise with the index, a tie goes to the lower index.
struct Before {
  const float* values;
  bool operator()(int32_t a, int32_t b) const { return values[a] > values[b] || (values[a] == values[b] && a < b); }
};

// Keeps, still by rising id, the collected tokens up to and including index `last` in the order.
int64_t KeepThrough(SampleScratch& scratch, int64_t count, int32_t last) {
  const float last_value = scratch.values[last];
  int64_t kept = 0;
  for (int32_t i = 0; i < count; ++i) {
    const float value = scratch.values[i];
    if (value < last_value || (value == last_value && i > last)) continue;
    scratch.ids[kept] = scratch.ids[i];
    scratch.values[kept] = value;
    scratch.weights[kept++] = scratch.weights[i];
  }
  return kept;
}

int64_t KeepTopK(SampleScratch& scratch, int64_t count, int64_t k) {
  if (count <= k) return count;
  int32_t* order = scratch.order.data();
  std::iota(order, order + count, 0);
  std::nth_element(order, order + k - 1, order + count, Before{scratch.values.data()});
  return KeepThrough(scratch, count, order[k - 1]);
}

// Length of the shortest prefix of `order` whose weights, added to `sum`, reach `target`: bisection by weight, sorting only the
// last few.
int64_t PrefixReaching(const SampleScratch& scratch, int32_t* order, int64_t count, double sum, double target) {
  constexpr int64_t kSortBelow = 64;
  const Before before{scratch.values.data()};
  int64_t low = 0, high = count;  // the length is in (low, high]
  while (high - low > kSortBelow) {
    const int64_t middle = (low + high) / 2;
    std::nth_element(order + low, order + middle, order + high, before);
    double part = 0;
    for (int64_t i = low; i < middle; ++i) part += scratch.weights[order[i]];
    if (sum + part >= target) {
      high = middle;
    } else {
      sum += part;
      low = middle;
    }
  }
  std::sort(order + low, order + high, before);
  int64_t length = low;
  do {
    sum += scratch.weights[order[length++]];
  } while (length < high && sum < target);
  return length;
}

// Keeps the shortest prefix of the order whose weights reach `target`. Tokens are dealt to buckets of falling logits; only the
// bucket in which the target falls is put in order.
int64_t KeepTopP(SampleScratch& scratch, int64_t count, float max, double target) {
  constexpr int kBuckets = SampleScratch::kBuckets;
  const float* values = scratch.values.data();
  const float least = *std::min_element(values, values + count);
  const float per_logit = max > least ? std::min(float(kBuckets - 1) / (max - least), 1e30f) : 0;
  const auto bucket_of = [=](float value) { return std::min(int((max - value) * per_logit), kBuckets - 1); };
  double* bucket_sum = scratch.bucket_sum.data();
  std::fill_n(bucket_sum, kBuckets, 0.0);
  int32_t* order = scratch.order.data();
  for (int64_t i = 0; i < count; ++i) order[i] = bucket_of(values[i]);
  for (int64_t i = 0; i < count; ++i) bucket_sum[order[i]] += scratch.weights[i];
  double sum = 0;
  int32_t last = 0;  // the bucket that reaches the target, or else the last one that holds anything
  double before = 0;
  for (int bucket = 0; bucket < kBuckets && (bucket == 0 || sum < target); ++bucket) {
    if (bucket > 0 && bucket_sum[bucket] == 0) continue;
    last = bucket;
    before = sum;
    sum += bucket_sum[bucket];
  }
  int64_t inside = 0;
  for (int32_t i = 0; i < count; ++i) {
    const bool hit = order[i] == last;  // order[i] is read before order[inside <= i] is written
    order[inside] = i;
    inside += hit;
  }
  return KeepThrough(scratch, count, order[PrefixReaching(scratch, order, inside, before, target) - 1]);
}

// The least float that min_p keeps, by the very comparison of the definition.
float MinPThreshold(float max, float temperature, float min_p) {
  const double least = double(temperature) * std::log(double(min_p));
  const auto kept = [&](float l) { return double(l) - max >= least; };
  float threshold = std::max(kLowest, float(max + least));
  while (threshold > kLowest && kept(std::nextafter(threshold, kLowest))) threshold = std::nextafter(threshold, kLowest);
  while (threshold < max && !kept(threshold)) threshold = std::nextafter(threshold, max);
  return threshold;
}

// Four chains: one addition waits for the one before it.
double Sum(const float* weights, int64_t count) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int chain = 0; chain < 4; ++chain) sums[chain] += weights[i + chain];
  }
  for (; i < count; ++i) sums[0] += weights[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Inverse CDF over the whole row by block sums; only the drawn block's weights are computed one by one.
int32_t DrawFromRow(const Row& row, float max, float scale, double uniform) {
  SampleScratch& scratch = row.scratch;
  const double total = std::accumulate(scratch.block_sum.begin(), scratch.block_sum.begin() + row.blocks(), 0.0);
  const double target = uniform * total;
  double sum = 0;
  int64_t drawn = 0;  // the last block with weight, should rounding leave the target out of reach
  double before = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (scratch.block_sum[block] <= 0) continue;
    drawn = block;
    before = sum;
    sum += scratch.block_sum[block];
    if (sum > target) break;
  }
  const int64_t begin = drawn * kSampleBlock, size = std::min<int64_t>(kSampleBlock, row.vocab - begin);
  row.kernels.weights(row.logits + begin, size, max, scale, scratch.weights.data());
  int64_t token = begin;
  for (int64_t i = 0; i < size; ++i) {
    if (scratch.weights[i] <= 0) continue;
    token = begin + i;
    before += scratch.weights[i];
    if (before > target) break;
  }
  return int32_t(token);
}

// The same over collected tokens: whole chunks first, then the tokens of the chunk.
int32_t DrawFromCollected(const SampleScratch& scratch, int64_t count, double uniform) {
  constexpr int64_t kChunk = 256;
  const float* weights = scratch.weights.data();
  const auto chunk_sum = [&](int64_t at) { return Sum(weights + at, std::min(kChunk, count - at)); };
  double total = 0;
  for (int64_t at = 0; at < count; at += kChunk) total += chunk_sum(at);
  const double target = uniform * total;
  double sum = 0;
  int64_t i = 0;
  for (; i + kChunk < count; i += kChunk) {
    const double part = chunk_sum(i);
    if (sum + part > target) break;
    sum += part;
  }
  int32_t token = scratch.ids[i];
  for (; i < count; ++i) {
    if (weights[i] <= 0) continue;
    token = scratch.ids[i];
    sum += weights[i];
    if (sum > target) break;
  }
  return token;
}

int32_t Draw(const Row& row, const SampleRow& request, float max) {
  const SamplingParams& params = *request.params;
  SampleScratch& scratch = row.scratch;
  const float scale = std::min(1 / params.temperature, kMostScale);
  const double uniform = UniformDouble(params.seed, request.stream, request.counter);
  const bool cut_k = params.top_k > 0 && params.top_k < row.vocab, cut_p = params.top_p<1, cut_min = params.min_p> 0;
  const float floor = cut_min ? MinPThreshold(max, params.temperature, params.min_p) : kLowest;

  int64_t count = 0;
  double total = 0;
  if (cut_k) {
    count = KeepTopK(scratch, Collect(row, std::max(floor, ReachedBy(row, params.top_k))), params.top_k);
  } else if (cut_min) {
    count = Collect(row, floor);
  } else {
    row.kernels.exp_sums(row.logits, row.vocab, max, scale, scratch.block_sum.data());
    if (!cut_p) return DrawFromRow(row, max, scale, uniform);
    // Tokens lighter than (1 - top_p) * total / vocab weigh less than 1 - top_p together, so the nucleus is above them.
    total = std::accumulate(scratch.block_sum.begin(), scratch.block_sum.begin() + row.blocks(), 0.0);
    const double least = 0.99 * (1 - double(params.top_p)) * total / row.vocab;
    count = Collect(row, std::max(kLowest, float(max + std::log(least) * params.temperature)));
  }
  row.kernels.weights(scratch.values.data(), count, max, scale, scratch.weights.data());
  if (cut_p) {
    const double collected = Sum(scratch.weights.data(), count);
    if (total == 0) total = collected;
    const double target = params.top_p * total;
    if (collected < target) {  // rounding at top_p next to 1
      count = Collect(row, floor);
      row.kernels.weights(scratch.values.data(), count, max, scale, scratch.weights.data());
    }
    count = KeepTopP(scratch, count, max, target);
  }
  return DrawFromCollected(scratch, count, uniform);
}

// `row` holds the raw logits and their block maxima.
void FillLogprobs(const Row& row, int32_t token, int32_t num_top, SampleResult& result) {
  SampleScratch& scratch = row.scratch;
  const float max = *std::max_element(scratch.block_max.begin(), scratch.block_max.begin() + row.blocks());
  row.kernels.exp_sums(row.logits, row.vocab, max, 1, scratch.block_sum.data());
  const double log_sum =
      max + std::log(std::accumulate(scratch.block_sum.begin(), scratch.block_sum.begin() + row.blocks(), 0.0));
  const float logit = row.logits[token];
  result.logprob = float(logit - log_sum);
  result.rank =
      int32_t(row.kernels.count_greater(row.logits, row.vocab, logit) + row.kernels.count_equal(row.logits, token, logit)) + 1;
  const int64_t wanted = std::min(num_top, row.vocab);
  if (wanted <= 0) return;
  const int64_t count = Collect(row, ReachedBy(row, wanted));
  int32_t* order = scratch.order.data();
  std::iota(order, order + count, 0);
  std::partial_sort(order, order + wanted, order + count, Before{scratch.values.data()});
  result.top.reserve(wanted);
  for (int64_t i = 0; i < wanted; ++i) {
    result.top.push_back({scratch.ids[order[i]], float(scratch.values[order[i]] - log_sum)});
  }
}

void Reset(SampleResult& result, int32_t token) {
  result.token = token;
  result.finite = false;
  result.logprob = 0;
  result.rank = 0;
  result.top.clear();
}

void SampleOne(const SampleKernels& kernels, SampleScratch& scratch, const float* logits, int vocab, const SampleRow& request,
               SampleResult& result) {
  Reset(result, 0);
  Prepare(scratch, vocab);
  if (!kernels.scan(logits, vocab, scratch.block_max.data())) return;
  const bool adjusted = NeedsAdjusting(request);
  const Row row{kernels, scratch, adjusted ? Adjust(logits, vocab, request, scratch) : logits, vocab};
  if (adjusted && !kernels.scan(row.logits, vocab, scratch.block_max.data())) return;
  const int32_t best = ArgMax(row);
  if (row.logits[best] == kMasked) return;
  result.finite = true;
  result.token = request.params->temperature > 0 ? Draw(row, request, row.logits[best]) : best;
  if (request.params->num_logprobs < 0) return;
  if (adjusted) kernels.scan(logits, vocab, scratch.block_max.data());
  FillLogprobs({kernels, scratch, logits, vocab}, result.token, request.params->num_logprobs, result);
}

void ScoreOne(const SampleKernels& kernels, SampleScratch& scratch, const float* logits, int vocab, int32_t token,
              int32_t num_top, SampleResult& result) {
  Reset(result, token);
  Prepare(scratch, vocab);
  if (token < 0 || token >= vocab || !kernels.scan(logits, vocab, scratch.block_max.data())) return;
  const Row row{kernels, scratch, logits, vocab};
  if (row.logits[ArgMax(row)] == kMasked) return;
  result.finite = true;
  FillLogprobs(row, token, num_top, result);
}

}  // namespace

void CpuSample(const SampleKernels& kernels, ThreadTeam& team, SampleWorkspace& workspace, const float* logits, int vocab,
               std::span<const SampleRow> rows, std::span<SampleResult> results) {
  if (workspace.threads.size() < size_t(team.size())) workspace.threads.resize(team.size());
  team.ParallelFor(int64_t(rows.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      SampleOne(kernels, workspace.threads[worker], logits + i * vocab, vocab, rows[i], results[i]);
    }
  });
}

void CpuScoreTokens(const SampleKernels& kernels, ThreadTeam& team, SampleWorkspace& workspace, const float* logits, int vocab,
                    std::span<const int32_t> tokens, std::span<const int32_t> num_top, std::span<SampleResult> results) {
  if (workspace.threads.size() < size_t(team.size())) workspace.threads.resize(team.size());
  team.ParallelFor(int64_t(tokens.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      ScoreOne(kernels, workspace.threads[worker], logits + i * vocab, vocab, tokens[i], num_top[i], results[i]);
    }
  });
}

}  // namespace kvasir
