// Attention of prompts on Hopper: tiles of 128 rows, two warpgroups of 64 that multiply by wgmma, and one that brings keys and
// values by TMA, page after page. The arithmetic of a row is that of attention_tile.cuh, chain for chain, so that results are the
// same bits wherever the tensor cores' two kinds of products are (gpu_check tells).
//
// Products of a tile run beside what is computed between them: while weights times values of tile t are summed, the scores of
// tile t + 1 come and become weights.
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/hopper.cuh"

namespace kvasir {
namespace gpu {
namespace {

template <DType kTypeOf, int kDimOf, int kStagesOf>
struct HopperShape {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf, kValueDim = kDim, kStages = kStagesOf;
  static constexpr bool kLatent = false;
  static constexpr int kSlots = 64, kRowWarps = 8, kColumnWarps = 1, kRows = 16 * kRowWarps;
  static constexpr int kThreads = kWarp * kRowWarps, kAllThreads = kThreads + kWarpgroup;  // that compute; and those that bring
  static constexpr int kStride = kDim + 8;
  static constexpr int kSlotBlocks = kSlots / 8, kValueBlocks = kDim / 16;
  static constexpr int kBoxColumns = 64, kHalves = kDim / kBoxColumns;

  KVASIR_DEVICE static void Sync() { SyncThreads<1>(kThreads); }
  KVASIR_DEVICE static int ValueAt(int slot, int column) {
    const int piece = column % kBoxColumns / 8 ^ slot % 8;
    return (column / kBoxColumns * kSlots + slot) * kBoxColumns + piece * 8 + column % 8;
  }

  using Tile = uint16_t[kHalves][kSlots][kBoxColumns];  // swizzled rows of 128 bytes
  struct Shared {
    alignas(1024) Tile k[kStages];
    alignas(1024) Tile v[kStages];
    alignas(16) uint16_t q[kRows][kStride];
    float q_scale[kRows];
    SlotRange slots[kRows];
    RowState folded[kColumnWarps][kRows];
    UnitView view;
    int32_t unfinite[2];
    Barrier k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  };
};

// Which stage a tile uses, and which phase of its barriers: the same for keys and values, for who brings and who uses them.
template <typename T>
struct TilePlace {
  int stage, parity;
  KVASIR_DEVICE explicit TilePlace(int t) : stage(t % T::kStages), parity(t / T::kStages % 2) {}
};

// A warp brings the tiles: each lane one page of a tile. Pages that no row sees are left out; what lies there from before is
// masked.
template <typename T>
KVASIR_DEVICE void BringTiles(const AttentionArgs& args, const TensorMap& map, const UnitView& view, int first_tile,
                              int num_tiles, typename T::Shared& s) {
  const int page_slots = args.kv.block_tokens, pages = T::kSlots / page_slots;
  const int64_t row_bytes = args.kv.row_bytes;
  const auto page_of = [&](int t) { return (first_tile + t * T::kSlots) / page_slots + Lane(); };
  const auto is_seen = [&](int page) {
    return Lane() < pages && page * page_slots < view.end && (page + 1) * page_slots > view.begin;
  };
  const auto entry_of = [&](int t) {
    const int page = page_of(t);
    return t < num_tiles && is_seen(page) ? view.run.entries[page] : 0u;
  };
  uint32_t entry = entry_of(0);
  for (int t = 0; t < num_tiles; ++t) {
    const uint32_t next_entry = entry_of(t + 1);  // on its way while this tile's stage becomes free
    const TilePlace<T> place(t);
    const bool seen = is_seen(page_of(t));
    const int bytes = __popc(Ballot(seen)) * page_slots * int(row_bytes);
    const auto row = int32_t((int64_t(entry) * args.kv.granule_bytes + view.run.k_offset) / row_bytes);
    const auto bring = [&](typename T::Tile& to, Barrier& empty, Barrier& full, int32_t from) {
      Wait(empty, place.parity ^ 1);
      if (Lane() == 0) ArriveExpecting(full, bytes);
      SyncWarp();
      for (int half = 0; half < T::kHalves && seen; ++half)
        CopyBox(&to[half][Lane() * page_slots][0], map, half * T::kBoxColumns, from, full);
    };
    bring(s.k[place.stage], s.k_empty[place.stage], s.k_full[place.stage], row);
    bring(s.v[place.stage], s.v_empty[place.stage], s.v_full[place.stage], row + int32_t(args.kv.page_bytes / row_bytes));
    entry = next_entry;
  }
  // All that was brought has been used before the block ends.
}

// The warpgroup's share of the threads: the rows' keys times q, started.
template <typename T>
KVASIR_DEVICE void StartScores(const uint32_t (&q)[T::kDim / 16][4], const typename T::Tile& k,
                               float (&score)[T::kSlotBlocks][4]) {
  auto& flat = reinterpret_cast<float(&)[4 * T::kSlotBlocks]>(score);
  FenceProducts();
#pragma unroll
  for (int j = 0; j < T::kDim / 16; ++j) Multiply<T::kType, false>(flat, q[j], ColumnsInRows(&k[j / 4][0][j % 4 * 16]), j > 0);
  CommitProducts();
}

// Weights times values, started, and the weights added to l.
template <typename T>
KVASIR_DEVICE void StartValues(const uint32_t (&weight)[T::kSlotBlocks][2], const typename T::Tile& v,
                               const typename T::Shared& s, TileState<T>& state) {
  auto& flat = reinterpret_cast<float(&)[T::kDim / 2]>(state.o);
  FenceProducts();
#pragma unroll
  for (int k = 0; k < T::kSlots / 16; ++k) {
    uint32_t a[4];
    LoadWeights<T>(k, weight, s, state, a);
    Multiply<T::kType, true>(flat, a, DepthInRows(&v[0][k * 16][0], int(sizeof(v[0]))), true);
  }
  CommitProducts();
#pragma unroll
  for (int k = 0; k < T::kSlots / 16; ++k) {
    uint32_t a[4];
    LoadWeights<T>(k, weight, s, state, a);
    Mma<T::kType>(state.l, a, {kOnes<T::kType>, kOnes<T::kType>});
  }
}

// Makes a tile of values fit to be multiplied by weights of 0: slots that are not there become zeros, and what is not finite is
// added to the rows that see it, as in attention_tile.cuh. The same tiles for both warpgroups.
template <typename T>
KVASIR_DEVICE void PrepareValues(const AttentionArgs& args, const UnitView& view, int tile, uint16_t* v, typename T::Shared& s,
                                 TileState<T>& state) {
  const bool part = tile < view.begin || tile + T::kSlots > view.end;
  const bool mixed = view.Mixed(tile, T::kSlots);
  if (!part && !mixed) return;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < T::kSlots * T::kDim / 2 && part; i += T::kThreads) {
    const int slot = i / (T::kDim / 2), column = i % (T::kDim / 2) * 2;
    if (tile + slot < view.begin || tile + slot >= view.end) *reinterpret_cast<uint32_t*>(v + T::ValueAt(slot, column)) = 0;
  }
  T::Sync();
  if (mixed) FindUnfinite<T>(args, v, s);
  if (mixed && s.unfinite[1] > 0) TakeUnfinite<T>(v, tile, s, state);
  ShowToProducts();
  T::Sync();
}

template <typename T>
KVASIR_DEVICE void ComputeTiles(const AttentionArgs& args, const UnitView& view, int tile, typename T::Shared& s) {
  LoadQueries<T>(args, view, s);
  TileState<T> state;
  state.Reset();
  state.row = WarpIndex() * 16 + Lane() / 4;
  T::Sync();
  uint32_t q[T::kDim / 16][4];
#pragma unroll
  for (int j = 0; j < T::kDim / 16; ++j) LoadMatrices(q[j], &s.q[WarpIndex() * 16 + Lane() % 16][j * 16 + Lane() / 16 * 8]);

  float score[T::kSlotBlocks][4], scale[2], largest[2], rescale[2];
  uint32_t weight[T::kSlotBlocks][2], next[T::kSlotBlocks][2];
  const auto release = [&](Barrier& empty) {
    SyncWarp();
    if (Lane() == 0) Arrive(empty);
  };
  const auto mask_scores = [&](int tile) {
    MaskScores<T>(args, state, view.Masked(tile, T::kSlots), tile, s, scale, largest, score);
  };
  const auto take_values = [&](const TilePlace<T>& place, int tile) {
    Wait(s.v_full[place.stage], place.parity);
    PrepareValues<T>(args, view, tile, &s.v[place.stage][0][0][0], s, state);
  };
  Wait(s.k_full[0], 0);
  StartScores<T>(q, s.k[0], score);
  WaitProducts<0>();
  KeepInPlace(reinterpret_cast<float(&)[4 * T::kSlotBlocks]>(score));
  release(s.k_empty[0]);
  mask_scores(tile);
  Weigh<T>(scale, largest, score, state, weight, rescale);
  take_values(TilePlace<T>(0), tile);
  bool first = true;
  int t = 0;
#pragma unroll 1
  for (tile += T::kSlots; tile < view.end; ++t, tile += T::kSlots) {  // the one whose scores are computed
    const TilePlace<T> place(t), after(t + 1);
    const bool ends = tile % args.split_slots == 0;
    Wait(s.k_full[after.stage], after.parity);
    StartScores<T>(q, s.k[after.stage], score);
    StartValues<T>(weight, s.v[place.stage], s, state);
    WaitProducts<1>();
    KeepInPlace(reinterpret_cast<float(&)[4 * T::kSlotBlocks]>(score));
    release(s.k_empty[after.stage]);
    mask_scores(tile);
    if (!ends) Weigh<T>(scale, largest, score, state, next, rescale);
    WaitProducts<0>();
    KeepInPlace(reinterpret_cast<float(&)[T::kDim / 2]>(state.o));
    release(s.v_empty[place.stage]);
    if (ends) {
      EndSplit<T>(args, view, first, false, s, state);
      first = false;
      Weigh<T>(scale, largest, score, state, next, rescale);
    } else {
      Rescale<T>(rescale, state);
    }
#pragma unroll
    for (int n = 0; n < T::kSlotBlocks; ++n) weight[n][0] = next[n][0], weight[n][1] = next[n][1];
    take_values(after, tile);
  }
  StartValues<T>(weight, s.v[TilePlace<T>(t).stage], s, state);
  WaitProducts<0>();
  KeepInPlace(reinterpret_cast<float(&)[T::kDim / 2]>(state.o));
  EndSplit<T>(args, view, first, true, s, state);
}

template <typename T>
__global__ void __launch_bounds__(T::kAllThreads, 1) HopperKernel(AttentionArgs args, const KVASIR_GRID_CONSTANT TensorMap map) {
  KVASIR_SHARED(typename T::Shared, s);
  WaitForPreviousKernel();
  if (threadIdx.x == 0) {
    s.view = ViewUnit<true>(args, args.units[blockIdx.x], int(blockIdx.y));
    for (int i = 0; i < T::kStages; ++i) {
      MakeBarrier(s.k_full[i], 1);
      MakeBarrier(s.v_full[i], 1);
      MakeBarrier(s.k_empty[i], T::kRowWarps);
      MakeBarrier(s.v_empty[i], T::kRowWarps);
    }
  }
  SyncBlock();
  const UnitView& view = s.view;
  if (view.begin >= view.end) return;
  const int first_tile = view.begin / T::kSlots * T::kSlots, num_tiles = (view.end - first_tile + T::kSlots - 1) / T::kSlots;
  if (int(threadIdx.x) >= T::kThreads) {
    ShrinkRegisters<24>();
    if (WarpIndex() == T::kRowWarps) BringTiles<T>(args, map, view, first_tile, num_tiles, s);
  } else {
    GrowRegisters<240>();
    ComputeTiles<T>(args, view, first_tile, s);
  }
}

template <DType kType, int kDim, int kStages>
void StartHopper(CudaContext& context, const AttentionArgs& args, const TensorMap& map, int num_units) {
  using T = HopperShape<kType, kDim, kStages>;
  Launch(HopperKernel<T>, dim3(unsigned(num_units), unsigned(args.kv.num_kv_heads)), T::kAllThreads, sizeof(typename T::Shared),
         context.stream(), args, map);
  context.CheckLaunch("attention on warpgroups");
}

}  // namespace
}  // namespace gpu

void LaunchHopperAttention(CudaContext& context, const gpu::AttentionArgs& args, int num_units) {
  gpu::TensorMap map;
  if (!MakeTensorMap(args.kv.base, args.kv.head_dim, args.kv.block_tokens, map)) {
    context.Check(cudaErrorNotSupported, "a map of KV pages for the copy engine");
    return;
  }
  const bool bf16 = args.kv.dtype == DType::kBF16;
  if (args.kv.head_dim == 64) {
    bf16 ? gpu::StartHopper<DType::kBF16, 64, 4>(context, args, map, num_units)
         : gpu::StartHopper<DType::kF16, 64, 4>(context, args, map, num_units);
  } else {
    bf16 ? gpu::StartHopper<DType::kBF16, 128, 4>(context, args, map, num_units)
         : gpu::StartHopper<DType::kF16, 128, 4>(context, args, map, num_units);
  }
}

}  // namespace kvasir
