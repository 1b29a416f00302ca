// Passes over whole rows of logits: adjusting them, and what is largest and how much they weigh, in fixed tiles and chunks.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/sample_keys.cuh"

namespace kvasir {
namespace {

constexpr int kScanThreads = 256;
constexpr int kPerLane = kSampleTile / gpu::kWarp;

// A lane's logits of the tile at `first`, -Inf past the end. Lane l has ids first + 4 l .. + 3 and 128 more.
KVASIR_DEVICE void LoadTile(const float* logits, int first, int vocab, bool aligned, float (&x)[kPerLane]) {
  if (aligned && first + kSampleTile <= vocab) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 v = *reinterpret_cast<const float4*>(logits + first + half * 128 + 4 * gpu::Lane());
      x[half * 4] = v.x, x[half * 4 + 1] = v.y, x[half * 4 + 2] = v.z, x[half * 4 + 3] = v.w;
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int id = first + j / 4 * 128 + 4 * gpu::Lane() + j % 4;
    x[j] = id < vocab ? logits[id] : __uint_as_float(0xff800000u);
  }
}

KVASIR_DEVICE bool Aligned(const float* logits) {
  return reinterpret_cast<uintptr_t>(logits) % 16 == 0;
}

struct WarpBests {
  Sum64 best[kScanThreads / gpu::kWarp];
  Sum64 plain[kScanThreads / gpu::kWarp];
};

// A block for each chunk of each item, a warp for each tile.
__global__ void __launch_bounds__(kScanThreads) ScanKernel(const SampleItem* items, SampleScan scan) {
  gpu::WaitForPreviousKernel();
  KVASIR_SHARED(WarpBests, shared);
  const int item = int(blockIdx.y), chunk = int(blockIdx.x), warps = int(blockDim.x) / gpu::kWarp;
  const float* const logits = items[item].logits;
  const bool aligned = Aligned(logits);
  Sum64 best = 0;
  bool bad = false;
#pragma unroll 2
  for (int t = gpu::WarpIndex(); t < kSampleChunk / kSampleTile; t += warps) {
    const int first = chunk * kSampleChunk + t * kSampleTile;
    if (first >= scan.vocab) break;
    float x[kPerLane];
    LoadTile(logits, first, scan.vocab, aligned, x);
    Sum64 tile = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      bad |= IsBad(x[j]);
      const Sum64 ranked = Ranked(x[j], first + j / 4 * 128 + 4 * gpu::Lane() + j % 4);
      tile = ranked > tile ? ranked : tile;
    }
    tile = WarpLargest(tile);
    if (gpu::Lane() == 0) scan.tile_max[int64_t{item} * scan.tiles + first / kSampleTile] = RankedLogit(tile);
    best = tile > best ? tile : best;
  }
  if (gpu::Ballot(bad) != 0) best = kBadRow;
  if (gpu::Lane() == 0) shared.best[gpu::WarpIndex()] = best;
  gpu::SyncBlock();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < warps; ++w) best = shared.best[w] > best ? shared.best[w] : best;
  scan.best[int64_t{item} * scan.chunks + chunk] = best;
}

__global__ void __launch_bounds__(kScanThreads) SumKernel(const SampleItem* items, SampleScan scan) {
  gpu::WaitForPreviousKernel();
  KVASIR_SHARED(WarpBests, shared);
  const int item = int(blockIdx.y), chunk = int(blockIdx.x), warps = int(blockDim.x) / gpu::kWarp;
  const SampleItem at = items[item];
  if (at.scale <= 0 && at.plain_sum == 0) return;  // the whole block
  const Sum64 row_best = ItemBest(scan, item);
  if (!IsSound(row_best)) return;
  const float max = RankedLogit(row_best);
  const bool aligned = Aligned(at.logits);
  constexpr float kLog2E = 1.44269504088896340736f;
  Sum64 scaled = 0, plain = 0;
  for (int t = gpu::WarpIndex(); t < kSampleChunk / kSampleTile; t += warps) {
    const int first = chunk * kSampleChunk + t * kSampleTile;
    if (first >= scan.vocab) break;
    float x[kPerLane];
    LoadTile(at.logits, first, scan.vocab, aligned, x);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (at.scale > 0) scaled += FixedWeight(x[j], max, at.scale);
      if (at.plain_sum != 0) plain += FixedWeight(x[j], max, kLog2E);
    }
  }
  scaled = WarpTotal(scaled), plain = WarpTotal(plain);
  if (gpu::Lane() == 0) shared.best[gpu::WarpIndex()] = scaled, shared.plain[gpu::WarpIndex()] = plain;
  gpu::SyncBlock();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < warps; ++w) scaled += shared.best[w], plain += shared.plain[w];
  Sum64* const out = scan.sums + (int64_t{item} * scan.chunks + chunk) * 2;
  out[0] = scaled, out[1] = plain;
}

// A block for each row. What several threads write at one time is the same value; a token's penalties are left to the one thread
// that takes its count.
__global__ void AdjustKernel(const SampleAdjust* rows, const int32_t* ids, const float* values, SampleScan scan) {
  gpu::WaitForPreviousKernel();
  const SampleAdjust row = rows[blockIdx.x];
  const int first = int(threadIdx.x), step = int(blockDim.x);
  const float masked = __uint_as_float(0xff800000u);
  bool bad = false;
#pragma unroll 4
  for (int i = first; i < scan.vocab; i += step) {
    const float x = row.logits[i];
    bad |= IsBad(x);
    row.adjusted[i] = row.allowed_only != 0 ? masked : x;
  }
  if (bad) scan.bad[row.item] = 1;
  gpu::SyncBlock();
  for (int i = row.allowed + first; i < row.suppressed; i += step) row.adjusted[ids[i]] = row.logits[ids[i]];
  for (int i = row.prompt + first; i < row.end; i += step) row.counts[ids[i]] = 0;
  gpu::SyncBlock();
  for (int i = row.suppressed + first; i < row.biased; i += step) row.adjusted[ids[i]] = masked;
  constexpr uint32_t kSeen = 0x80000000u;
  for (int i = row.prompt + first; i < row.output; i += step) row.counts[ids[i]] = kSeen;
  gpu::SyncBlock();
  // Sorted by id, those of an id as they were asked for: one thread for each id.
  for (int i = row.biased + first; i < row.prompt; i += step) {
    if (i > row.biased && ids[i - 1] == ids[i]) continue;
    float x = row.adjusted[ids[i]];
    for (int j = i; j < row.prompt && ids[j] == ids[i]; ++j) x = __fadd_rn(x, values[row.biases + j - row.biased]);
    row.adjusted[ids[i]] = x;
  }
  for (int i = row.output + first; i < row.end; i += step) atomicAdd(&row.counts[ids[i]], 1u);
  gpu::SyncBlock();
  for (int i = row.prompt + first; i < row.end; i += step) {
    const uint32_t count = atomicExch(&row.counts[ids[i]], 0u);
    if (count == 0) continue;
    const uint32_t in_output = count & ~kSeen;
    float x = row.adjusted[ids[i]];
    x = x > 0 ? __fdiv_rn(x, row.repetition) : __fmul_rn(x, row.repetition);
    if (in_output > 0) {
      x = __fsub_rn(x, __fmul_rn(row.frequency, float(in_output)));
      x = __fsub_rn(x, row.presence);
    }
    row.adjusted[ids[i]] = x;
  }
}

// Small rows need few threads; nothing depends on their number.
int ThreadsFor(int vocab, int each, int most) {
  int threads = gpu::kWarp;
  while (threads < most && threads * each < vocab) threads *= 2;
  return threads;
}

}  // namespace

void AdjustSamples(CudaContext& context, const SampleAdjust* rows, int count, const int32_t* ids, const float* values,
                   const SampleScan& scan) {
  Launch(AdjustKernel, dim3(count), ThreadsFor(scan.vocab, 16, 1024), 0, context.stream(), rows, ids, values, scan);
  context.CheckLaunch("adjusting logits");
}

void ScanSamples(CudaContext& context, const SampleItem* items, int count, bool sums, const SampleScan& scan) {
  const dim3 grid(scan.chunks, count);
  const int threads = ThreadsFor(std::min(scan.vocab, kSampleChunk), kPerLane, kScanThreads);
  Launch(ScanKernel, grid, threads, sizeof(WarpBests), context.stream(), items, scan);
  context.CheckLaunch("scanning logits");
  if (!sums) return;
  Launch(SumKernel, grid, threads, sizeof(WarpBests), context.stream(), items, scan);
  context.CheckLaunch("weighing logits");
}

}  // namespace kvasir
