// From scanned rows to tokens: min_p, top_k and top_p as one threshold in the order of tokens, the draw, and logprobs. A block
// for each row. Logits that cannot be kept are left behind first, by the largest of each tile; the few others lie in shared
// memory, or where they are many, the row itself is walked.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sample_keys.cuh"

namespace kvasir {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / gpu::kWarp;
constexpr int kBins = 2048;
constexpr int kBinBits = 11;
constexpr int kMaxKept = 4096;

struct DrawShared {
  Sum64 bins[kBins];
  Sum64 warp_sums[kMaxWarps];
  Sum64 before;
  int32_t place;
  float values[kMaxKept];
  int32_t ids[kMaxKept];
};

KVASIR_DEVICE int Warps() {
  return int(blockDim.x) / gpu::kWarp;
}

// Logits by rising id: some that were collected, or all of a row. In shared or global memory.
struct Logits {
  const float* values;
  const int32_t* ids;  // nullptr: the place is the id
  int count;

  KVASIR_DEVICE int Id(int place) const { return ids != nullptr ? ids[place] : place; }
};

// The sum of the warps' values, for all threads. All threads of a warp give the same.
KVASIR_DEVICE Sum64 BlockTotal(Sum64 of_warp, DrawShared& shared) {
  if (gpu::Lane() == 0) shared.warp_sums[gpu::WarpIndex()] = of_warp;
  gpu::SyncBlock();
  Sum64 total = 0;
  for (int w = 0; w < Warps(); ++w) total += shared.warp_sums[w];
  gpu::SyncBlock();
  return total;
}
KVASIR_DEVICE Sum64 BlockLargest(Sum64 value, DrawShared& shared) {
  value = WarpLargest(value);
  if (gpu::Lane() == 0) shared.warp_sums[gpu::WarpIndex()] = value;
  gpu::SyncBlock();
  for (int w = 0; w < Warps(); ++w) value = shared.warp_sums[w] > value ? shared.warp_sums[w] : value;
  gpu::SyncBlock();
  return value;
}

template <typename Value>
KVASIR_DEVICE Sum64 SumOf(int count, DrawShared& shared, Value value) {
  Sum64 sum = 0;
#pragma unroll 4
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) sum += value(i);
  return BlockTotal(WarpTotal(sum), shared);
}

struct Crossing {
  int place;     // count: nowhere
  Sum64 before;  // sum of the places before
};

// The first place whose running sum exceeds the target. A warp for each of as many equal parts, then through one of them.
template <typename Value>
KVASIR_DEVICE Crossing FindCrossing(int count, Sum64 target, DrawShared& shared, Value value) {
  const int part = (count + Warps() * gpu::kWarp - 1) / (Warps() * gpu::kWarp) * gpu::kWarp;
  const int begin = gpu::WarpIndex() * part, end = begin + part < count ? begin + part : count;
  Sum64 sum = 0;
#pragma unroll 4
  for (int i = begin + gpu::Lane(); i < end; i += gpu::kWarp) sum += value(i);
  sum = WarpTotal(sum);
  if (gpu::Lane() == 0) shared.warp_sums[gpu::WarpIndex()] = sum;
  if (threadIdx.x == 0) shared.place = count;
  gpu::SyncBlock();
  Sum64 before = 0;
  for (int w = 0; w < gpu::WarpIndex(); ++w) before += shared.warp_sums[w];
  if (before <= target && before + sum > target) {  // one warp, all of it
    for (int first = begin;; first += gpu::kWarp) {
      const int i = first + gpu::Lane();
      const Sum64 mine = i < end ? value(i) : 0;
      Sum64 running = mine;
#pragma unroll
      for (int distance = 1; distance < gpu::kWarp; distance *= 2) {
        const Sum64 other = gpu::Shuffle(running, gpu::Lane() - distance);
        if (gpu::Lane() >= distance) running += other;
      }
      const uint32_t beyond = gpu::Ballot(before + running > target);
      if (beyond == 0) {
        before += gpu::Shuffle(running, gpu::kWarp - 1);
        continue;
      }
      if (gpu::Lane() == __ffs(beyond) - 1) shared.place = i, shared.before = before + running - mine;
      break;
    }
  }
  gpu::SyncBlock();
  const Crossing crossing = {shared.place, shared.before};
  gpu::SyncBlock();
  return crossing;
}

struct Threshold {
  uint32_t key;  // of the last that is needed
  Sum64 before;  // measure of all that is above
  bool found;
};

// Where the measure of logits, largest first, reaches `target` > 0. Keys between low and high are looked at: into bins of equally
// many keys, then the bin that matters into bins again.
template <typename Measure>
KVASIR_DEVICE Threshold FindThreshold(const Logits& logits, uint32_t low, uint32_t high, Sum64 target, DrawShared& shared,
                                      Measure measure) {
  Sum64 before = 0;
  for (;;) {
    const int bits = 32 - __clz(high - low), shift = bits > kBinBits ? bits - kBinBits : 0;
    const int bins = int((high - low) >> shift) + 1;
    for (int i = int(threadIdx.x); i < bins; i += int(blockDim.x)) shared.bins[i] = 0;
    gpu::SyncBlock();
    for (int i = int(threadIdx.x); i < logits.count; i += int(blockDim.x)) {
      const uint32_t key = OrderKey(logits.values[i]);
      if (key < low || key > high) continue;
      const Sum64 mine = measure(logits.values[i]);
      if (mine > 0) atomicAdd(&shared.bins[(high - key) >> shift], mine);
    }
    gpu::SyncBlock();
    const Crossing crossing = FindCrossing(bins, target - 1 - before, shared, [&](int i) { return shared.bins[i]; });
    if (crossing.place == bins) return {low, 0, false};
    before += crossing.before;
    high -= uint32_t(crossing.place) << shift;
    if (shift == 0) return {high, before, true};
    const uint32_t last = high - ((1u << shift) - 1);
    low = last > low && last < high ? last : low;
  }
}

// All logits of a row that are at least `least`, in shared memory; the whole row when they are too many.
KVASIR_DEVICE Logits Collect(const float* row, const float* tile_max, const SampleScan& scan, float least, DrawShared& shared) {
  const int part = (scan.tiles + Warps() - 1) / Warps();
  const int begin = gpu::WarpIndex() * part, end = begin + part < scan.tiles ? begin + part : scan.tiles;
  // visit(mask of lanes that keep theirs, id, logit), by rising id
  const auto walk = [&](auto visit) {
    for (int group = begin; group < end; group += gpu::kWarp) {
      const int mine = group + gpu::Lane();
      uint32_t wanted = gpu::Ballot(mine < end && tile_max[mine] >= least);
      for (; wanted != 0; wanted &= wanted - 1) {
        const int first = (group + __ffs(wanted) - 1) * kSampleTile + gpu::Lane();
        float x[kSampleTile / gpu::kWarp];
#pragma unroll
        for (int j = 0; j < kSampleTile / gpu::kWarp; ++j) {
          const int id = first + j * gpu::kWarp;
          x[j] = id < scan.vocab ? row[id] : 0;
        }
#pragma unroll
        for (int j = 0; j < kSampleTile / gpu::kWarp; ++j) {
          const int id = first + j * gpu::kWarp;
          visit(gpu::Ballot(id < scan.vocab && x[j] >= least), id, x[j]);
        }
      }
    }
  };
  int count = 0;
  walk([&](uint32_t kept, int, float) { count += __popc(kept); });
  const int total = int(BlockTotal(Sum64(count), shared));
  if (total > kMaxKept) return {row, nullptr, scan.vocab};
  if (gpu::Lane() == 0) shared.warp_sums[gpu::WarpIndex()] = Sum64(count);
  gpu::SyncBlock();
  int at = 0;
  for (int w = 0; w < gpu::WarpIndex(); ++w) at += int(shared.warp_sums[w]);
  walk([&](uint32_t kept, int id, float x) {
    if ((kept >> gpu::Lane() & 1) != 0) {
      const int place = at + __popc(kept & ((1u << gpu::Lane()) - 1));
      shared.ids[place] = id, shared.values[place] = x;
    }
    at += __popc(kept);
  });
  gpu::SyncBlock();
  return {shared.values, shared.ids, total};
}

// A logit that at least `wanted` of the row reach, by the largest of each tile; -Inf when there are too few tiles to say.
KVASIR_DEVICE float ReachedBy(const float* tile_max, const SampleScan& scan, int wanted, float max, DrawShared& shared) {
  const float lowest = __uint_as_float(0xff800000u);
  if (wanted > scan.tiles) return lowest;
  const Threshold threshold = FindThreshold({tile_max, nullptr, scan.tiles}, OrderKey(lowest), OrderKey(max), Sum64(wanted),
                                            shared, [](float) { return Sum64{1}; });
  return FromOrderKey(threshold.key);
}

// The smallest logit that min_p keeps.
KVASIR_DEVICE float MinPLeast(float max, double least) {
  const double bound = double(max) + least;
  if (bound <= double(kSampleLowest)) return kSampleLowest;
  uint32_t key = OrderKey(float(bound));
  const uint32_t lowest = OrderKey(kSampleLowest), highest = OrderKey(max);
  const auto kept = [&](uint32_t k) { return double(FromOrderKey(k)) - double(max) >= least; };
  while (key > lowest && kept(key - 1)) --key;
  while (key < highest && !kept(key)) ++key;
  return FromOrderKey(key);
}

KVASIR_DEVICE int DrawFromChunks(const SampleSpec& spec, const SampleScan& scan, float max, Sum64 total, DrawShared& shared) {
  const Sum64* const sums = scan.sums + int64_t{spec.item} * scan.chunks * 2;
  const Sum64 wanted = Sum64(spec.uniform * double(total)), target = wanted < total ? wanted : total - 1;
  const Crossing chunk = FindCrossing(scan.chunks, target, shared, [&](int c) { return sums[c * 2]; });
  const int first = chunk.place * kSampleChunk;
  const int count = scan.vocab - first < kSampleChunk ? scan.vocab - first : kSampleChunk;
  return first + FindCrossing(count, target - chunk.before, shared, [&](int i) {
                   return FixedWeight(spec.adjusted[first + i], max, spec.scale);
                 }).place;
}

KVASIR_DEVICE int Draw(const SampleSpec& spec, const SampleScan& scan, int best_id, float max, DrawShared& shared) {
  const float* const tile_max = scan.tile_max + int64_t{spec.item} * scan.tiles;
  const bool cut_k = spec.top_k > 0 && spec.top_k < scan.vocab, cut_p = spec.top_p < 1;
  float least = spec.cut_min != 0 ? MinPLeast(max, spec.least) : kSampleLowest;
  const auto weight = [&](float x) { return FixedWeight(x, max, spec.scale); };
  if (cut_k) {
    least = fmaxf(least, ReachedBy(tile_max, scan, spec.top_k, max, shared));
  } else if (spec.cut_min == 0) {
    const Sum64* const sums = scan.sums + int64_t{spec.item} * scan.chunks * 2;
    const Sum64 total = SumOf(scan.chunks, shared, [&](int c) { return sums[c * 2]; });
    if (!cut_p) return DrawFromChunks(spec, scan, max, total, shared);
    // Tokens lighter than (1 - top_p) * total / vocab weigh less than 1 - top_p together, so the nucleus is above them.
    const double share = 0.99 * (1 - double(spec.top_p)) * (double(total) * 0x1p-43) / scan.vocab;
    least = fmaxf(least, float(double(max) + log(share) * double(spec.temperature)));
  }
  const Logits logits = Collect(spec.adjusted, tile_max, scan, least, shared);
  const uint32_t low = OrderKey(least), high = OrderKey(max);

  // Kept are all above `last`, and of those equal to it the first `ties`.
  uint32_t last = low;
  Sum64 ties = ~0ull, total = 0;
  if (cut_k) {
    const Threshold threshold = FindThreshold(logits, low, high, Sum64(spec.top_k), shared, [](float) { return Sum64{1}; });
    if (threshold.found) last = threshold.key, ties = Sum64(spec.top_k) - threshold.before;
  }
  const auto sum_kept = [&] {
    const Sum64 above = SumOf(logits.count, shared, [&](int i) {
      const uint32_t key = OrderKey(logits.values[i]);
      return key > last || (key == last && ties == ~0ull) ? weight(logits.values[i]) : 0;
    });
    return ties == ~0ull ? above : above + ties * weight(FromOrderKey(last));
  };
  if (!cut_p || cut_k || spec.cut_min != 0) {
    total = sum_kept();
  } else {
    const Sum64* const sums = scan.sums + int64_t{spec.item} * scan.chunks * 2;
    total = SumOf(scan.chunks, shared, [&](int c) { return sums[c * 2]; });
  }
  if (cut_p) {
    const double share = ceil(double(spec.top_p) * double(total));
    const Sum64 wanted = share < 1 ? 1 : Sum64(share), target = wanted < total ? wanted : total;
    const Threshold threshold = FindThreshold(logits, last, high, target, shared, weight);
    if (threshold.found) {
      const Sum64 each = weight(FromOrderKey(threshold.key));
      const Sum64 needed = (target - threshold.before + each - 1) / each;
      ties = threshold.key == last && ties < needed ? ties : needed;
      last = threshold.key;
      total = sum_kept();
    }
  }
  int last_id = 0x7fffffff;
  if (ties != ~0ull) {
    const Crossing tie =
        FindCrossing(logits.count, ties - 1, shared, [&](int i) { return Sum64{OrderKey(logits.values[i]) == last}; });
    if (tie.place < logits.count) last_id = logits.Id(tie.place);
  }
  const Sum64 wanted = Sum64(spec.uniform * double(total)), target = wanted < total ? wanted : total - 1;
  const Crossing drawn = FindCrossing(logits.count, target, shared, [&](int i) {
    const uint32_t key = OrderKey(logits.values[i]);
    return key > last || (key == last && logits.Id(i) <= last_id) ? weight(logits.values[i]) : 0;
  });
  return drawn.place < logits.count ? logits.Id(drawn.place) : best_id;
}

// Logprob and rank of a token and the likeliest ones, of the logits as they came.
KVASIR_DEVICE void FillLogprobs(const SampleSpec& spec, const SampleScan& scan, int token, SampleAnswer& answer,
                                SampleAlternative* alternatives, DrawShared& shared) {
  const float* const tile_max = scan.tile_max + int64_t{spec.plain_item} * scan.tiles;
  const Sum64* const sums = scan.sums + int64_t{spec.plain_item} * scan.chunks * 2;
  const float max = RankedLogit(ItemBest(scan, spec.plain_item)), logit = spec.logits[token];
  const Sum64 total = SumOf(scan.chunks, shared, [&](int c) { return sums[c * 2 + 1]; });
  const double log_sum = double(max) + log(double(total) * 0x1p-43);
  Sum64 ahead = 0;
  for (int t = gpu::WarpIndex(); t < scan.tiles; t += Warps()) {
    if (tile_max[t] < logit) continue;
    for (int id = t * kSampleTile + gpu::Lane(); id < (t + 1) * kSampleTile && id < scan.vocab; id += gpu::kWarp) {
      const float x = spec.logits[id];
      ahead += x > logit || (x == logit && id < token);
    }
  }
  answer.rank = int(BlockTotal(WarpTotal(ahead), shared)) + 1;
  answer.logprob = float(double(logit) - log_sum);
  if (spec.num_top <= 0) return;
  const float least = ReachedBy(tile_max, scan, spec.num_top, max, shared);
  const Logits logits = Collect(spec.logits, tile_max, scan, least, shared);
  Sum64 below = kBadRow;
  for (int n = 0; n < spec.num_top; ++n) {
    Sum64 best = 0;
    for (int i = int(threadIdx.x); i < logits.count; i += int(blockDim.x)) {
      const Sum64 ranked = Ranked(logits.values[i], logits.Id(i));
      if (ranked < below && ranked > best) best = ranked;
    }
    below = BlockLargest(best, shared);
    if (threadIdx.x == 0) {
      const int id = RankedId(below);
      alternatives[spec.top_at + n] = {id, float(double(spec.logits[id]) - log_sum)};
    }
  }
}

__global__ void __launch_bounds__(kMaxThreads, 2) AnswerKernel(const SampleSpec* rows, SampleScan scan, SampleAnswer* answers,
                                                               SampleAlternative* alternatives, int32_t* tokens) {
  gpu::WaitForPreviousKernel();
  KVASIR_SHARED(DrawShared, shared);
  const SampleSpec spec = rows[blockIdx.x];
  SampleAnswer answer = {spec.given != 0 ? spec.token : 0, 0, 0, 0};
  const Sum64 best = ItemBest(scan, spec.item);
  const bool known = spec.given == 0 || (spec.token >= 0 && spec.token < scan.vocab);
  if (IsSound(best) && known) {  // the whole block
    answer.finite = 1;
    const int best_id = RankedId(best);
    if (spec.given == 0) answer.token = spec.greedy != 0 ? best_id : Draw(spec, scan, best_id, RankedLogit(best), shared);
    if (spec.plain_item >= 0) FillLogprobs(spec, scan, answer.token, answer, alternatives, shared);
  }
  if (threadIdx.x != 0) return;
  answers[blockIdx.x] = answer;
  if (tokens != nullptr) tokens[blockIdx.x] = answer.token;
}

}  // namespace

void AnswerSamples(CudaContext& context, const SampleSpec* rows, int count, const SampleScan& scan, SampleAnswer* answers,
                   SampleAlternative* alternatives, int32_t* tokens) {
  int threads = 2 * gpu::kWarp;
  while (threads < kMaxThreads && threads * 16 < scan.vocab) threads *= 2;
  Launch(AnswerKernel, dim3(count), threads, sizeof(DrawShared), context.stream(), rows, scan, answers, alternatives, tokens);
  context.CheckLaunch("sampling");
}

}  // namespace kvasir
