#include "kernels/cuda/experts.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/fused.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / gpu::kWarp;

// The pairs of rows and experts in the order they are computed: the tokens of each expert one after another by rising row, from a
// whole tile on. All is made on the device, where the routing is: the host knows only how many there can be at most.
struct ExpertOrder {
  int32_t* counts;   // [experts]: tokens
  int32_t* slots;    // [rows, top_k]: where the pair is computed
  int32_t* rows_of;  // [max_slots]: whose row it is, -1: nobody's
};

// A warp for each expert.
__global__ void CountKernel(const int32_t* ids, int pairs, int experts, ExpertOrder order) {
  gpu::WaitForPreviousKernel();
  const int e = int(blockIdx.x) * kWarps + gpu::WarpIndex();
  if (e >= experts) return;  // a whole warp
  int count = 0;
  for (int first = 0; first < pairs; first += gpu::kWarp) {
    const int i = first + gpu::Lane();
    count += __popc(gpu::Ballot(i < pairs && ids[i] == e));
  }
  if (gpu::Lane() == 0) order.counts[e] = count;
}

// A warp for each expert again, now that all counts are there: where its tokens begin, and each of them.
__global__ void PlaceKernel(const int32_t* ids, int pairs, int top_k, int experts, ExpertOrder order, LinearTask* up,
                            LinearTask* down, const LinearTask* weights, float* up_out, int64_t up_width, float* down_out,
                            int64_t down_width) {
  gpu::WaitForPreviousKernel();
  const int e = int(blockIdx.x) * kWarps + gpu::WarpIndex();
  if (e >= experts) return;  // a whole warp
  int tiles = 0;
  for (int other = gpu::Lane(); other < e; other += gpu::kWarp) tiles += (order.counts[other] + kTileTokens - 1) / kTileTokens;
  for (int mask = gpu::kWarp / 2; mask > 0; mask /= 2) tiles += gpu::ShuffleXor(tiles, mask);
  int slot = tiles * kTileTokens;
  if (gpu::Lane() == 0) {
    up[e] = weights[e];
    up[e].out = up_out + slot * up_width;
    up[e].first_tile = tiles;
    up[e].tokens = order.counts[e];
    down[e] = weights[experts + e];
    down[e].out = down_out + slot * down_width;
    down[e].first_tile = tiles;
    down[e].tokens = order.counts[e];
  }
  for (int first = 0; first < pairs; first += gpu::kWarp) {
    const int i = first + gpu::Lane();
    const bool mine = i < pairs && ids[i] == e;
    const uint32_t all = gpu::Ballot(mine);
    if (mine) {
      const int at = slot + __popc(all & ((1u << gpu::Lane()) - 1));
      order.slots[i] = at;
      order.rows_of[at] = i / top_k;
    }
    slot += __popc(all);
  }
}

// out[row] = sum over the row's experts, by rising id, of weight * down[slot]
__global__ void CombineKernel(const int32_t* ids, const float* weights, const int32_t* slots, int top_k, const float* down,
                              int width, float* out) {
  gpu::WaitForPreviousKernel();
  const int64_t row = blockIdx.x;
  for (int j = int(blockIdx.y * blockDim.x + threadIdx.x); j < width; j += int(gridDim.y * blockDim.x)) {
    float sum = 0;
    int last = -1;
    for (int n = 0; n < top_k; ++n) {
      int next = -1;  // the smallest id above the last one: top_k is small
      for (int k = 0; k < top_k; ++k) {
        const int id = ids[row * top_k + k];
        if (id > last && (next < 0 || id < ids[row * top_k + next])) next = k;
      }
      if (next < 0) break;
      last = ids[row * top_k + next];
      sum = fmaf(weights[row * top_k + next], down[int64_t{slots[row * top_k + next]} * width + j], sum);
    }
    out[row * width + j] = sum;
  }
}

// --- experts of float32 ---------------------------------------------------------------------------------------------------

// One expert after another over all its rows is what small models in tests can afford: the rows are gathered, and CudaLinear is
// used as it is.
__global__ void GatherSlotsKernel(const float* in, const int32_t* rows_of, int64_t width, float* out) {
  gpu::WaitForPreviousKernel();
  const int row = rows_of[blockIdx.x];
  for (int64_t j = threadIdx.x; j < width; j += blockDim.x) out[blockIdx.x * width + j] = row < 0 ? 0 : in[row * width + j];
}

struct Plan {
  int experts, pairs, top_k, rows, max_slots;
  ExpertOrder order;
  LinearTask *up, *down;
  float *gate_up, *activated, *results;
};

void Order(CudaContext& context, const MoeWeights& experts, const int32_t* ids, const Plan& plan) {
  std::vector<LinearTask> weights;
  for (const auto& [matrices, biases] : {std::pair{experts.gate_up, experts.gate_up_bias}, {experts.down, experts.down_bias}}) {
    for (size_t e = 0; e < matrices.size(); ++e) {
      weights.push_back({static_cast<const std::byte*>(matrices[e].packed),
                         biases.empty() ? nullptr : static_cast<const float*>(biases[e].packed), nullptr, 0, 0});
    }
  }
  const LinearTask* const uploaded = context.UploadAgain<LinearTask>(weights);
  if (uploaded == nullptr) return;
  const int blocks = (plan.experts + kWarps - 1) / kWarps;
  context.Check(cudaMemsetAsync(plan.order.rows_of, 0xff, size_t(plan.max_slots) * sizeof(int32_t), context.stream()),
                "clearing");
  Launch(CountKernel, dim3(blocks), kThreads, 0, context.stream(), ids, plan.pairs, plan.experts, plan.order);
  context.CheckLaunch("counting tokens of experts");
  Launch(PlaceKernel, dim3(blocks), kThreads, 0, context.stream(), ids, plan.pairs, plan.top_k, plan.experts, plan.order, plan.up,
         plan.down, uploaded, plan.gate_up, experts.gate_up[0].rows, plan.results, experts.down[0].rows);
  context.CheckLaunch("placing tokens of experts");
}

// One of the two products, for the slots of all experts.
void Multiply(CudaContext& context, std::span<const Weight> weights, const InputSource& source, const LinearTask* tasks,
              const Plan& plan) {
  KVASIR_CHECK(!weights[0].quant.ordered, "experts whose inputs have an order");
  LinearCall call = {.layout = LayoutOf(weights[0]),
                     .out_stride = weights[0].rows,
                     .tasks = tasks,
                     .num_tasks = plan.experts,
                     .max_tokens = plan.rows,
                     .typical_tokens = std::max(1, plan.pairs / plan.experts)};
  ConvertInputs(context, source, nullptr, call);
  RunLinear(context, call);
}

// Each expert over all slots, of which only its own are kept: float32 weights are for tests.
void MultiplyPlain(CudaContext& context, std::span<const Weight> weights, std::span<const Weight> biases, const float* in,
                   std::span<const LinearTask> tasks, float* out) {
  for (size_t e = 0; e < weights.size(); ++e) {
    const LinearTask& task = tasks[e];
    CudaLinear(context, in + int64_t{task.first_tile} * kTileTokens * weights[e].cols, task.tokens, weights[e],
               biases.empty() ? nullptr : &biases[e], out + int64_t{task.first_tile} * kTileTokens * weights[e].rows);
  }
}

}  // namespace

namespace {

// Some of the rows of a call.
void RunExperts(CudaContext& context, const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation,
                int top_k, const int32_t* ids, const float* weights, float* out) {
  using Scratch = CudaContext::Scratch;
  const int count = int(experts.gate_up.size()), pairs = rows * top_k;
  const int64_t width = experts.down[0].rows, ffn = experts.down[0].cols, up_width = experts.gate_up[0].rows;
  // Every expert's last tile may be nearly empty.
  const int max_slots = pairs + std::min(count, pairs) * (kTileTokens - 1);
  Plan plan = {.experts = count, .pairs = pairs, .top_k = top_k, .rows = rows, .max_slots = max_slots};
  int32_t* const numbers = context.Temporary<int32_t>(Scratch::kExpertIds, size_t(count) + size_t(pairs) + size_t(max_slots));
  plan.order = {numbers, numbers + count, numbers + count + pairs};
  LinearTask* const tasks = context.Temporary<LinearTask>(Scratch::kRows, size_t(count) * 2);
  plan.up = tasks;
  plan.down = tasks + count;
  const bool plain = LayoutOf(experts.gate_up[0]).format == LinearFormat::kF32;
  float* const floats = context.Temporary<float>(
      Scratch::kExperts, size_t(max_slots) * size_t(up_width + ffn + width + (plain ? experts.gate_up[0].cols : 0)));
  plan.gate_up = floats;
  plan.activated = plan.gate_up + int64_t{max_slots} * up_width;
  plan.results = plan.activated + int64_t{max_slots} * ffn;
  if (!context.status().ok()) return;
  Order(context, experts, ids, plan);
  if (plain) {
    float* const gathered = plan.results + int64_t{max_slots} * width;
    Launch(GatherSlotsKernel, dim3(max_slots), kThreads, 0, context.stream(), in, static_cast<const int32_t*>(plan.order.rows_of),
           width, gathered);
    context.CheckLaunch("gathering tokens of experts");
    std::vector<LinearTask> host(static_cast<size_t>(count));
    context.Download(host.data(), plan.up, host.size() * sizeof(LinearTask));
    MultiplyPlain(context, experts.gate_up, experts.gate_up_bias, gathered, host, plan.gate_up);
    CudaActivate(context, activation, true, plan.gate_up, max_slots, int(ffn), plan.activated);
    MultiplyPlain(context, experts.down, experts.down_bias, plan.activated, host, plan.results);
  } else {
    Multiply(context, experts.gate_up, {.in = in, .stride = width, .tokens = max_slots, .gather = plan.order.rows_of}, plan.up,
             plan);
    CudaActivate(context, activation, true, plan.gate_up, max_slots, int(ffn), plan.activated);
    Multiply(context, experts.down, {.in = plan.activated, .stride = ffn, .tokens = max_slots}, plan.down, plan);
  }
  const dim3 grid(rows, unsigned(std::clamp<int64_t>(width / kThreads, 1, 16)));
  Launch(CombineKernel, grid, kThreads, 0, context.stream(), ids, weights, static_cast<const int32_t*>(plan.order.slots), top_k,
         static_cast<const float*>(plan.results), int(width), out);
  context.CheckLaunch("combining experts");
}

}  // namespace

void CudaExperts(CudaContext& context, const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation,
                 int top_k, const int32_t* ids, const float* weights, float* out) {
  // What lies between the products is memory that the KV cache could not count on: rows are taken as many at a time as bring it
  // to this, which is enough for every expert to have work.
  constexpr int64_t kMostBytes = int64_t{512} << 20;
  const int64_t width = experts.down[0].rows, ffn = experts.down[0].cols;
  const int64_t row_bytes = top_k * (3 * ffn + width) * int64_t{sizeof(float)};
  const int most = int(std::clamp<int64_t>(kMostBytes / std::max<int64_t>(1, row_bytes), 64, std::max(64, rows)));
  for (int first = 0; first < rows && top_k > 0; first += most) {
    RunExperts(context, in + first * width, std::min(most, rows - first), experts, activation, top_k,
               ids + int64_t{first} * top_k, weights + int64_t{first} * top_k, out + first * width);
  }
}

}  // namespace kvasir
