// Products on tensor cores for every stored format: what a warp does with one stage, and the two kernels around it, for few
// tokens (weights read once, K over the warps of a block) and for many (tiles of 128 tokens through shared memory). See
// linear_layout.h for the layouts and for the one order of sums that both keep.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {

inline constexpr int kLinearThreads = 256, kLinearWarps = kLinearThreads / 32;

// Four E4M3 or eight E2M1 codes as bfloat16 are exact products of their bits with a power of two.
KVASIR_DEVICE float DecodeFp8(uint32_t code) {
  const float magnitude = __fmul_rn(__uint_as_float((code & 0x7fu) << 20), 0x1p120f);
  const float value = (code & 0x7fu) == 0x7fu ? __uint_as_float(0x7fc00000u) : magnitude;
  return code & 0x80u ? -value : value;
}
KVASIR_DEVICE float DecodeMxfp4(uint32_t code, float scale) {
  const float magnitude = __fmul_rn(__fmul_rn(__uint_as_float((code & 7u) << 22), 0x1p126f), scale);
  return code & 8u ? -magnitude : magnitude;
}

KVASIR_DEVICE uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The sums of a warp: R tiles of outputs by T tiles of tokens, over one chunk.
template <LinearFormat kFormat, int R, int T>
struct ChunkSums {
  static constexpr bool kInteger = IsInteger(kFormat), kFp8 = kFormat == LinearFormat::kFp8,
                        kInt4 = kFormat == LinearFormat::kInt4;
  static constexpr int kPieceR = kInteger || kFp8 ? R : 1, kPieceT = kInteger || kFp8 ? T : 1;

  float chunk[R][T][4];
  float piece[kPieceR][kPieceT][4];  // of the group under way, not scaled yet
  float lows[kInt4 ? T : 1][2];      // int4: sums of the group's activations, for tokens 2t and 2t + 1
  int group = 0, left = 0;           // blocks left in it

  KVASIR_DEVICE void Begin(const LinearLayout& layout, int first_block) {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int t = 0; t < T; ++t)
#pragma unroll
        for (int j = 0; j < 4; ++j) chunk[r][t][j] = 0;
    group = first_block / layout.blocks_per_group;
    left = layout.blocks_per_group - first_block % layout.blocks_per_group;
    ClearPiece();
  }
  KVASIR_DEVICE void ClearPiece() {
    if constexpr (kInteger || kFp8) {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int t = 0; t < T; ++t)
#pragma unroll
          for (int j = 0; j < 4; ++j) piece[r][t][j] = 0;
    }
    if constexpr (kInt4) {
#pragma unroll
      for (int t = 0; t < T; ++t) lows[t][0] = lows[t][1] = 0;
    }
  }

  // Scales of the group for rows g and g + 8 of a tile.
  KVASIR_DEVICE static float2 Scales(const LinearLayout& layout, const std::byte* scales, int row_tile, int group, float2* low) {
    const int64_t at = (int64_t{row_tile} * layout.groups + group) * 8 + gpu::Lane() / 4;
    if constexpr (kFp8) return reinterpret_cast<const float2*>(scales)[at];
    if constexpr (kInt4) {
      const uint2 both = reinterpret_cast<const uint2*>(scales)[at];
      *low = make_float2(gpu::F16ToFloat(uint16_t(both.x >> 16)), gpu::F16ToFloat(uint16_t(both.y >> 16)));
      return make_float2(gpu::F16ToFloat(uint16_t(both.x)), gpu::F16ToFloat(uint16_t(both.y)));
    }
    const uint32_t both = reinterpret_cast<const uint32_t*>(scales)[at];
    return make_float2(gpu::F16ToFloat(uint16_t(both)), gpu::F16ToFloat(uint16_t(both >> 16)));
  }

  // Scales the piece into the chunk.
  KVASIR_DEVICE void Flush(const LinearLayout& layout, const std::byte* scales, int row_tile) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (row_tile + r >= layout.row_tiles) continue;
      float2 low = make_float2(0, 0);
      const float2 scale = Scales(layout, scales, row_tile + r, group, &low);
#pragma unroll
      for (int t = 0; t < T; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          chunk[r][t][j] = fmaf(j < 2 ? scale.x : scale.y, piece[r][t][j], chunk[r][t][j]);
          if constexpr (kInt4) chunk[r][t][j] = fmaf(j < 2 ? low.x : low.y, lows[t][j % 2], chunk[r][t][j]);
        }
      }
    }
    ClearPiece();
  }

  // The A fragment of one m16n8k16 (sixteenth i of the stage), from the lane's runs.
  template <typename Weights>
  KVASIR_DEVICE static void Fragment(const LinearLayout& layout, const std::byte* scales, int row_tile, int stage, int r, int i,
                                     const Weights& weights, uint32_t (&a)[4]) {
    if constexpr (kFp8) {
      const uint4 run = weights(r, i / 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t pair = Word(run, i % 2 * 2 + j / 2) >> j % 2 * 16;
        a[j] = gpu::PackBf16(DecodeFp8(pair & 0xffu), DecodeFp8(pair >> 8 & 0xffu));
      }
    } else if constexpr (kFormat == LinearFormat::kMxfp4) {
      const int block = stage * 2 + i / 2;
      float2 scale = make_float2(0, 0);
      if (block < layout.blocks && row_tile + r < layout.row_tiles) {
        const int64_t at = (int64_t{row_tile + r} * layout.groups + block / layout.blocks_per_group) * 8 + gpu::Lane() / 4;
        const uint32_t both = reinterpret_cast<const uint16_t*>(scales)[at];
        const auto power = [](uint32_t e) { return __uint_as_float(e == 0 ? 0x400000u : e << 23); };
        scale = make_float2(power(both & 0xffu), power(both >> 8));
      }
      const uint32_t word = Word(weights(r, 0), i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t pair = word >> 8 * j;
        const float s = j % 2 == 0 ? scale.x : scale.y;
        a[j] = gpu::PackBf16(DecodeMxfp4(pair & 15u, s), DecodeMxfp4(pair >> 4 & 15u, s));
      }
    } else {
      const uint4 run = weights(r, i);
      a[0] = run.x, a[1] = run.y, a[2] = run.z, a[3] = run.w;
    }
  }

  // One stage. weights(r, run) and inputs(t, run) give the lane's 16 bytes; tokens' scales start at tile 0 of the T.
  template <typename Weights, typename Inputs>
  KVASIR_DEVICE void Step(const LinearCall& call, const std::byte* scales, const float* token_scales, const float* token_sums,
                          int row_tile, int stage, const Weights& weights, const Inputs& inputs) {
    const LinearLayout& layout = call.layout;
    if constexpr (kInteger) {
      StepInteger(layout, scales, token_scales, token_sums, row_tile, stage, weights, inputs);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t b[T][2];
#pragma unroll
        for (int t = 0; t < T; ++t) {
          const uint4 run = inputs(t, i / 2);
          b[t][0] = i % 2 == 0 ? run.x : run.z;
          b[t][1] = i % 2 == 0 ? run.y : run.w;
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
          uint32_t a[4];
          Fragment(layout, scales, row_tile, stage, r, i, weights, a);
#pragma unroll
          for (int t = 0; t < T; ++t) {
            if constexpr (kFormat == LinearFormat::kF16) {
              gpu::MmaF16(chunk[r][t], a, b[t]);
            } else if constexpr (kFp8) {
              gpu::MmaBf16(piece[r][t], a, b[t]);
            } else {
              gpu::MmaBf16(chunk[r][t], a, b[t]);
            }
          }
        }
        if constexpr (kFp8) {
          if (i % 2 == 1 && stage * 2 + i / 2 < layout.blocks) EndBlock(layout, scales, row_tile);
        }
      }
    }
  }

  template <typename Weights, typename Inputs>
  KVASIR_DEVICE void StepInteger(const LinearLayout& layout, const std::byte* scales, const float* token_scales,
                                 const float* token_sums, int row_tile, int stage, const Weights& weights, const Inputs& inputs) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int block = stage * 2 + h;
      if (block >= layout.blocks) return;
      float2 token_scale[T];
#pragma unroll
      for (int t = 0; t < T; ++t) {
        const int64_t at = ((int64_t{t} * layout.blocks + block) * kTileTokens + gpu::Lane() % 4 * 2) / 2;
        token_scale[t] = reinterpret_cast<const float2*>(token_scales)[at];
        if constexpr (kInt4) {
          const float2 sum = reinterpret_cast<const float2*>(token_sums)[at];
          lows[t][0] = __fadd_rn(lows[t][0], sum.x);
          lows[t][1] = __fadd_rn(lows[t][1], sum.y);
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        uint32_t a[4];
        if constexpr (kInt4) {
          const uint4 run = weights(r, 0);
#pragma unroll
          for (int j = 0; j < 4; ++j) a[j] = Word(run, j) >> 4 * h & 0x0f0f0f0fu;
        } else {
          const uint4 run = weights(r, h);
          a[0] = run.x, a[1] = run.y, a[2] = run.z, a[3] = run.w;
        }
#pragma unroll
        for (int t = 0; t < T; ++t) {
          const uint4 run = inputs(t, 0);
          const uint32_t b[2] = {h == 0 ? run.x : run.z, h == 0 ? run.y : run.w};
          int32_t sum[4] = {0, 0, 0, 0};
          gpu::MmaS8(sum, a, b);
#pragma unroll
          for (int j = 0; j < 4; ++j)
            piece[r][t][j] = fmaf(j % 2 == 0 ? token_scale[t].x : token_scale[t].y, float(sum[j]), piece[r][t][j]);
        }
      }
      EndBlock(layout, scales, row_tile);
    }
  }

  KVASIR_DEVICE void EndBlock(const LinearLayout& layout, const std::byte* scales, int row_tile) {
    if (--left > 0) return;
    Flush(layout, scales, row_tile);
    ++group;
    left = layout.blocks_per_group;
  }
  // What a group has so far belongs to this chunk.
  KVASIR_DEVICE void End(const LinearLayout& layout, const std::byte* scales, int row_tile) {
    if constexpr (kInteger || kFp8) {
      if (left < layout.blocks_per_group && group < layout.groups) Flush(layout, scales, row_tile);
    }
  }
};

KVASIR_DEVICE void StoreOutput(const LinearCall& call, const LinearTask& task, int token, int64_t row, float sum) {
  if (token >= task.tokens || row >= call.layout.rows) return;
  if (call.token_factors != nullptr) sum *= call.token_factors[int64_t{task.first_tile} * kTileTokens + token];
  if (task.bias != nullptr) sum = __fadd_rn(sum, task.bias[row]);
  task.out[int64_t{token} * call.out_stride + row] = sum;
}

inline constexpr int kMostFewTiles = 4;
struct FewShared {
  float sums[kLinearWarps][kMostFewTiles * 128];  // of the warps' chunks
};

// A block for each tile of 16 outputs and T tiles of tokens; its warps take the chunks of K in turn, so that many bytes are under
// way, and the block adds them in their order.
template <LinearFormat kFormat, int T>
__global__ void __launch_bounds__(kLinearThreads) FewTokensKernel(LinearCall call) {
  gpu::WaitForPreviousKernel();
  constexpr int kRuns = WeightRuns(kFormat), kIn = InputRuns(kFormat), kOutputs = T * 128;
  KVASIR_SHARED(FewShared, shared);
  const LinearLayout& layout = call.layout;
  const LinearTask task = call.tasks != nullptr ? call.tasks[blockIdx.z] : call.single;
  const int tile = int(blockIdx.y) * T, row_tile = int(blockIdx.x), lane = gpu::Lane(), warp = gpu::WarpIndex();
  if (tile * kTileTokens >= task.tokens) return;  // the whole block
  const auto* const weights = reinterpret_cast<const uint4*>(task.weight) + int64_t{row_tile} * layout.stages * kRuns * 32 + lane;
  const std::byte* const scales = task.weight + layout.scales;
  const int64_t first = task.first_tile + tile;
  const auto* const inputs = reinterpret_cast<const uint4*>(call.inputs) + first * layout.stages * kIn * 32 + lane;
  const int64_t token_at = first * layout.blocks * kTileTokens;
  float total[(kOutputs + kLinearThreads - 1) / kLinearThreads] = {};
  const int chunks = (layout.stages + kChunkStages - 1) / kChunkStages;
  for (int round = 0; round < chunks; round += kLinearWarps) {
    const int begin = (round + warp) * kChunkStages, end = min(begin + kChunkStages, layout.stages);
    if (begin < end) {
      ChunkSums<kFormat, 1, T> sums;
      sums.Begin(layout, begin * 2);
      uint4 w[kRuns], x[T][kIn];
      const auto load = [&](int stage, uint4(&w)[kRuns], uint4(&x)[T][kIn]) {
#pragma unroll
        for (int i = 0; i < kRuns; ++i) w[i] = gpu::LoadStreamed(weights + (int64_t{stage} * kRuns + i) * 32);
#pragma unroll
        for (int t = 0; t < T; ++t)
#pragma unroll
          for (int i = 0; i < kIn; ++i) x[t][i] = inputs[((int64_t{t} * layout.stages + stage) * kIn + i) * 32];
      };
      load(begin, w, x);
#pragma unroll 2
      for (int stage = begin; stage < end; ++stage) {
        uint4 next_w[kRuns], next_x[T][kIn];
        load(min(stage + 1, end - 1), next_w, next_x);  // under way while this stage is computed
        sums.Step(
            call, scales, call.scales + token_at, call.sums + token_at, row_tile, stage, [&](int, int i) { return w[i]; },
            [&](int t, int i) { return x[t][i]; });
#pragma unroll
        for (int i = 0; i < kRuns; ++i) w[i] = next_w[i];
#pragma unroll
        for (int t = 0; t < T; ++t)
#pragma unroll
          for (int i = 0; i < kIn; ++i) x[t][i] = next_x[t][i];
      }
      sums.End(layout, scales, row_tile);
#pragma unroll
      for (int t = 0; t < T; ++t)
#pragma unroll
        for (int j = 0; j < 4; ++j) shared.sums[warp][(t * 4 + j) * 32 + lane] = sums.chunk[0][t][j];
    }
    gpu::SyncBlock();
    const int here = min(chunks - round, kLinearWarps);
    for (int i = 0, at = int(threadIdx.x); at < kOutputs; ++i, at += kLinearThreads)
      for (int c = 0; c < here; ++c) total[i] = __fadd_rn(total[i], shared.sums[c][at]);
    gpu::SyncBlock();
  }
  for (int i = 0, at = int(threadIdx.x); at < kOutputs; ++i, at += kLinearThreads) {
    const int t = at / 128, j = at / 32 % 4, source = at % 32;
    StoreOutput(call, task, (tile + t) * kTileTokens + source % 4 * 2 + j % 2,
                int64_t{row_tile} * kTileRows + source / 4 + j / 2 * 8, total[i]);
  }
}

// Tiles of 32 R outputs by 128 tokens; 2 x 4 warps of R tiles of outputs by 4 tiles of tokens.
inline constexpr int kManyStages = 3, kManyTokenTiles = 16;
template <LinearFormat kFormat, int R>
struct ManyShared {
  struct Stage {
    uint4 weights[2 * R][WeightRuns(kFormat)][32];
    uint4 inputs[kManyTokenTiles][InputRuns(kFormat)][32];
  };
  Stage stages[kManyStages];
};

template <LinearFormat kFormat, int R>
__global__ void __launch_bounds__(kLinearThreads) ManyTokensKernel(LinearCall call) {
  gpu::WaitForPreviousKernel();
  constexpr int kRuns = WeightRuns(kFormat), kIn = InputRuns(kFormat), kT = kManyTokenTiles / 4;
  using Shared = ManyShared<kFormat, R>;
  KVASIR_SHARED(Shared, shared);
  const LinearLayout& layout = call.layout;
  const LinearTask task = call.tasks != nullptr ? call.tasks[blockIdx.z] : call.single;
  const int tile = int(blockIdx.y) * kManyTokenTiles, lane = gpu::Lane();
  if (tile * kTileTokens >= task.tokens) return;  // the whole block
  const int block_row_tile = int(blockIdx.x) * 2 * R, my_row = gpu::WarpIndex() / 4 * R, my_tile = gpu::WarpIndex() % 4 * kT;
  const std::byte* const scales = task.weight + layout.scales;
  const int tiles = (task.tokens + kTileTokens - 1) / kTileTokens - tile;  // that are real
  const auto load = [&](int stage) {
    typename Shared::Stage& to = shared.stages[stage % kManyStages];
    for (int i = int(threadIdx.x); i < 2 * R * kRuns * 32; i += kLinearThreads) {
      const int r = i / (kRuns * 32), rest = i % (kRuns * 32);
      const bool real = block_row_tile + r < layout.row_tiles;
      const int64_t at = (int64_t{real ? block_row_tile + r : 0} * layout.stages + stage) * kRuns * 32 + rest;
      gpu::CopyAsync16(&to.weights[r][0][0] + rest, reinterpret_cast<const uint4*>(task.weight) + at, real);
    }
    for (int i = int(threadIdx.x); i < kManyTokenTiles * kIn * 32; i += kLinearThreads) {
      const int t = i / (kIn * 32), rest = i % (kIn * 32);
      const bool real = t < tiles;
      const int64_t at = (int64_t{task.first_tile + tile + (real ? t : 0)} * layout.stages + stage) * kIn * 32 + rest;
      gpu::CopyAsync16(&to.inputs[t][0][0] + rest, reinterpret_cast<const uint4*>(call.inputs) + at, real);
    }
  };
  const int64_t token_at = int64_t{task.first_tile + tile + (my_tile < tiles ? my_tile : 0)} * layout.blocks * kTileTokens;
  float total[R][kT][4] = {};
  ChunkSums<kFormat, R, kT> sums;
#pragma unroll
  for (int i = 0; i < kManyStages - 1; ++i) {
    if (i < layout.stages) load(i);
    gpu::CommitCopies();
  }
  for (int stage = 0; stage < layout.stages; ++stage) {
    gpu::WaitCopies<kManyStages - 2>();
    gpu::SyncBlock();
    if (stage + kManyStages - 1 < layout.stages) load(stage + kManyStages - 1);
    gpu::CommitCopies();
    if (stage % kChunkStages == 0) sums.Begin(layout, stage * 2);
    const typename Shared::Stage& from = shared.stages[stage % kManyStages];
    sums.Step(
        call, scales, call.scales + token_at, call.sums + token_at, block_row_tile + my_row, stage,
        [&](int r, int i) { return from.weights[my_row + r][i][lane]; },
        [&](int t, int i) { return from.inputs[my_tile + t][i][lane]; });
    if (stage % kChunkStages != kChunkStages - 1 && stage + 1 < layout.stages) continue;
    sums.End(layout, scales, block_row_tile + my_row);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int t = 0; t < kT; ++t)
#pragma unroll
        for (int j = 0; j < 4; ++j) total[r][t][j] = __fadd_rn(total[r][t][j], sums.chunk[r][t][j]);
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int t = 0; t < kT; ++t)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        StoreOutput(call, task, (tile + my_tile + t) * kTileTokens + lane % 4 * 2 + j % 2,
                    int64_t{block_row_tile + my_row + r} * kTileRows + lane / 4 + j / 2 * 8, total[r][t][j]);
}

template <LinearFormat kFormat, int T>
void StartFewTokens(CudaContext& context, const LinearCall& call) {
  const dim3 grid(call.layout.row_tiles, (TokenTiles(call.max_tokens) + T - 1) / T, call.num_tasks);
  Launch(FewTokensKernel<kFormat, T>, grid, kLinearThreads, sizeof(FewShared), context.stream(), call);
  context.CheckLaunch("product");
}

// R: tiles of outputs of a warp of the kernel for many tokens; integer and fp8 sums need more registers each.
template <LinearFormat kFormat, int R>
void StartLinear(CudaContext& context, const LinearCall& call, bool many) {
  const int tiles = TokenTiles(call.max_tokens);
  if (many) {
    const dim3 grid((call.layout.row_tiles + 2 * R - 1) / (2 * R), (tiles + kManyTokenTiles - 1) / kManyTokenTiles,
                    call.num_tasks);
    Launch(ManyTokensKernel<kFormat, R>, grid, kLinearThreads, sizeof(ManyShared<kFormat, R>), context.stream(), call);
    context.CheckLaunch("product");
  } else if (tiles <= 1) {
    StartFewTokens<kFormat, 1>(context, call);
  } else if (tiles == 2) {
    StartFewTokens<kFormat, 2>(context, call);
  } else {
    StartFewTokens<kFormat, kMostFewTiles>(context, call);
  }
}

}  // namespace kvasir
