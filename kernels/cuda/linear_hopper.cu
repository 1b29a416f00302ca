// Products of many tokens on Hopper: 128 outputs by 128 tokens, two warpgroups of 64 outputs each that hold their weights in
// registers and read the tokens from shared memory by wgmma, and one thread that brings both in bulk. One order of sums with the
// other kernels (linear_layout.h), so that results are the same bits wherever the tensor cores' two kinds of products are.
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/linear_kernels.cuh"

namespace kvasir {
namespace {

constexpr int kRowTiles = 8, kComputing = 2 * gpu::kWarpgroup, kAllThreads = kComputing + gpu::kWarpgroup;
constexpr int kTokens = kBlockTiles * kTileTokens;

template <LinearFormat kFormat>
struct HopperLinear {
  static constexpr DType kType = kFormat == LinearFormat::kF16 ? DType::kF16 : DType::kBF16;
  static constexpr int kRuns = WeightRuns(kFormat), kStages = 6;
  struct Stage {
    alignas(128) uint4 weights[kRowTiles][kRuns][gpu::kWarp];
    alignas(128) uint16_t inputs[kStageCols / 8][kTokens][8];  // of 8 inputs, token after token
  };
  struct Shared {
    Stage stages[kStages];
    gpu::Barrier full[kStages], empty[kStages];
  };
};

template <typename T>
KVASIR_DEVICE void BringStages(const LinearCall& call, int first_row_tile, typename T::Shared& s) {
  const LinearLayout& layout = call.layout;
  const int row_tiles = min(kRowTiles, layout.row_tiles - first_row_tile);  // others compute what nobody keeps
  constexpr int kTileBytes = T::kRuns * gpu::kWarp * 16, kInputBytes = kStageCols * kTokens * 2;
  const std::byte* const inputs = call.inputs + int64_t{blockIdx.y} * layout.stages * kInputBytes;
  for (int stage = 0; stage < layout.stages; ++stage) {
    const int at = stage % T::kStages;
    gpu::Wait(s.empty[at], stage / T::kStages % 2 ^ 1);
    gpu::ArriveExpecting(s.full[at], row_tiles * kTileBytes + kInputBytes);
    gpu::CopyBulk(s.stages[at].inputs, inputs + int64_t{stage} * kInputBytes, kInputBytes, s.full[at]);
    for (int r = 0; r < row_tiles; ++r) {
      const int64_t from = (int64_t{first_row_tile + r} * layout.stages + stage) * kTileBytes;
      gpu::CopyBulk(s.stages[at].weights[r], call.single.weight + from, kTileBytes, s.full[at]);
    }
  }
}

// Adds a stage's products to `sums`, started. `a` is the warp's weights, which stay until they have been waited for.
template <LinearFormat kFormat>
KVASIR_DEVICE void StartStage(const LinearCall& call, int row_tile, int stage, typename HopperLinear<kFormat>::Shared& s,
                              uint32_t (&a)[4][4], float (&sums)[kTokens / 2]) {
  using T = HopperLinear<kFormat>;
  const typename T::Stage& from = s.stages[stage % T::kStages];
  const std::byte* const scales = call.single.weight + call.layout.scales;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    ChunkSums<kFormat, 1, 1>::Fragment(
        call.layout, scales, row_tile, stage, 0, i,
        [&](int, int run) { return from.weights[gpu::WarpIndex()][run][gpu::Lane()]; }, a[i]);
  }
  gpu::FenceProducts();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint64_t tokens = gpu::PlainMatrix(from.inputs[2 * i], int(sizeof(from.inputs[0])), 128);
    gpu::Multiply<T::kType, false>(sums, a[i], tokens, i > 0 || stage % kChunkStages != 0);
  }
  gpu::CommitProducts();
}

template <LinearFormat kFormat>
KVASIR_DEVICE void ComputeStages(const LinearCall& call, int row_tile, typename HopperLinear<kFormat>::Shared& s) {
  using T = HopperLinear<kFormat>;
  const int stages = call.layout.stages;
  float total[kTokens / 2], chunk[kTokens / 2];
  uint32_t a[2][4][4];  // in turn
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) total[i] = 0;
  const auto start = [&](int stage, uint32_t(&weights)[4][4]) {
    gpu::Wait(s.full[stage % T::kStages], stage / T::kStages % 2);
    StartStage<kFormat>(call, row_tile, stage, s, weights, chunk);
  };
  const auto release = [&](int stage) {
    gpu::SyncWarp();
    if (gpu::Lane() == 0) gpu::Arrive(s.empty[stage % T::kStages]);
  };
#pragma unroll 1
  for (int first = 0; first < stages; first += kChunkStages) {
    start(first, a[0]);
#pragma unroll
    for (int i = 1; i < kChunkStages; ++i) {
      if (first + i >= stages) break;
      start(first + i, a[i % 2]);
      gpu::WaitProducts<1>();
      release(first + i - 1);
    }
    gpu::WaitProducts<0>();
    gpu::KeepInPlace(chunk);
    release(min(first + kChunkStages, stages) - 1);
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) total[i] = __fadd_rn(total[i], chunk[i]);
  }
  const int lane = gpu::Lane(), first_token = int(blockIdx.y) * kTokens + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i)
    StoreOutput(call, call.single, first_token + i / 4 * 8 + i % 2, int64_t{row_tile} * kTileRows + lane / 4 + i / 2 % 2 * 8,
                total[i]);
}

template <LinearFormat kFormat>
__global__ void __launch_bounds__(kAllThreads, 1) HopperLinearKernel(LinearCall call) {
  using T = HopperLinear<kFormat>;
  KVASIR_SHARED(typename T::Shared, s);
  gpu::WaitForPreviousKernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      gpu::MakeBarrier(s.full[i], 1);
      gpu::MakeBarrier(s.empty[i], kComputing / gpu::kWarp);
    }
  }
  gpu::SyncBlock();
  const int first_row_tile = int(blockIdx.x) * kRowTiles;
  if (int(threadIdx.x) >= kComputing) {
    gpu::ShrinkRegisters<24>();
    if (int(threadIdx.x) == kComputing) BringStages<T>(call, first_row_tile, s);
  } else {
    gpu::GrowRegisters<240>();
    ComputeStages<kFormat>(call, first_row_tile + gpu::WarpIndex(), s);
  }
}

template <LinearFormat kFormat>
void Start(CudaContext& context, const LinearCall& call) {
  const dim3 grid(unsigned((call.layout.row_tiles + kRowTiles - 1) / kRowTiles),
                  unsigned((TokenTiles(call.max_tokens) + kBlockTiles - 1) / kBlockTiles));
  Launch(HopperLinearKernel<kFormat>, grid, kAllThreads, sizeof(typename HopperLinear<kFormat>::Shared), context.stream(), call);
  context.CheckLaunch("product on warpgroups");
}

}  // namespace

void StartLinearHopper(CudaContext& context, const LinearCall& call) {
  switch (call.layout.format) {
    case LinearFormat::kF16:
      return Start<LinearFormat::kF16>(context, call);
    case LinearFormat::kBF16:
      return Start<LinearFormat::kBF16>(context, call);
    case LinearFormat::kMxfp4:
      return Start<LinearFormat::kMxfp4>(context, call);
    default:
      KVASIR_CHECK(false, "no product on warpgroups for this format");
  }
}

}  // namespace kvasir
