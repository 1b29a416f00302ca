#include "kernels/cuda/gemm.h"

#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {
namespace {

// --- float32 weights ------------------------------------------------------------------------------------------------------
// For tests and small models: on CUDA cores, one fused chain in the order of k for each output.

constexpr int kPlainRows = 32, kPlainTokens = 32, kPlainDepth = 32, kPlainThreads = 256;
struct PlainShared {
  float weights[kPlainDepth][kPlainRows + 1], inputs[kPlainDepth][kPlainTokens + 1];
};

struct PlainTask {
  const float* weight;
  const float* bias;
  const float* in;
  float* out;
};
// Products with matrices of one shape: task z, or `single`.
__global__ void __launch_bounds__(kPlainThreads)
    PlainLinearKernel(PlainTask single, const PlainTask* tasks, int64_t rows, int64_t cols, int tokens, int64_t in_stride,
                      int64_t out_stride) {
  gpu::WaitForPreviousKernel();
  KVASIR_SHARED(PlainShared, shared);
  const PlainTask task = tasks != nullptr ? tasks[blockIdx.z] : single;
  const int64_t row0 = int64_t(blockIdx.x) * kPlainRows;
  const int token0 = int(blockIdx.y) * kPlainTokens;
  // A thread has four outputs of one token; neighbours have neighbouring outputs.
  const int x = int(threadIdx.x) % 8, token = int(threadIdx.x) / 8;
  float sums[4] = {};
  for (int64_t k0 = 0; k0 < cols; k0 += kPlainDepth) {
    for (int i = int(threadIdx.x); i < kPlainDepth * kPlainRows; i += kPlainThreads) {
      const int k = i % kPlainDepth, r = i / kPlainDepth;
      const bool inside = k0 + k < cols;
      shared.weights[k][r] = inside && row0 + r < rows ? task.weight[(row0 + r) * cols + k0 + k] : 0;
      shared.inputs[k][r] = inside && token0 + r < tokens ? task.in[(token0 + r) * in_stride + k0 + k] : 0;
    }
    gpu::SyncBlock();
    const int depth = cols - k0 < kPlainDepth ? int(cols - k0) : kPlainDepth;
    for (int k = 0; k < depth; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = fmaf(shared.weights[k][x + 8 * i], shared.inputs[k][token], sums[i]);
    }
    gpu::SyncBlock();
  }
  if (token0 + token >= tokens) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = row0 + x + 8 * i;
    if (row < rows)
      task.out[(token0 + token) * out_stride + row] = task.bias != nullptr ? __fadd_rn(sums[i], task.bias[row]) : sums[i];
  }
}
static_assert(kPlainRows == kPlainTokens && kPlainThreads == 8 * kPlainTokens);

void RunPlain(CudaContext& context, const PlainTask& single, const PlainTask* tasks, int count, const Weight& weight, int tokens,
              int64_t in_stride, int64_t out_stride) {
  const dim3 grid(unsigned((weight.rows + kPlainRows - 1) / kPlainRows), unsigned((tokens + kPlainTokens - 1) / kPlainTokens),
                  unsigned(count));
  Launch(PlainLinearKernel, grid, kPlainThreads, sizeof(PlainShared), context.stream(), single, tasks, weight.rows, weight.cols,
         tokens, in_stride, out_stride);
  context.CheckLaunch("float32 product");
}

const int32_t* OrderOf(const Weight& weight, const LinearLayout& layout) {
  return weight.quant.ordered ? reinterpret_cast<const int32_t*>(static_cast<const std::byte*>(weight.packed) + layout.order)
                              : nullptr;
}

}  // namespace

void RunLinear(CudaContext& context, const LinearCall& call) {
  if (!context.status().ok()) return;
  if (call.warpgroups) return StartLinearHopper(context, call);
  const bool many = (call.typical_tokens > 0 ? call.typical_tokens : call.max_tokens) > kFewTokens;
  switch (call.layout.format) {
    case LinearFormat::kF16:
    case LinearFormat::kBF16:
      return StartLinearFloat16(context, call, many);
    case LinearFormat::kInt8:
    case LinearFormat::kInt4:
      return StartLinearInteger(context, call, many);
    case LinearFormat::kFp8:
    case LinearFormat::kMxfp4:
      return StartLinearFloat8(context, call, many);
    case LinearFormat::kF32:
      break;
  }
  KVASIR_CHECK(false, "float32 weights have a kernel of their own");
}

void CudaLinear(CudaContext& context, const float* in, int rows, const Weight& weight, const Weight* bias, float* out) {
  KVASIR_DCHECK(bias == nullptr || bias->cols == weight.rows, "bias of {} for {} outputs", bias->cols, weight.rows);
  const float* const biases = bias != nullptr ? static_cast<const float*>(bias->packed) : nullptr;
  if (rows == 0) return;
  LinearCall call = {.layout = LayoutOf(weight), .out_stride = weight.rows, .max_tokens = rows};
  if (call.layout.format == LinearFormat::kF32) {
    return RunPlain(context, {static_cast<const float*>(weight.packed), biases, in, out}, nullptr, 1, weight, rows, weight.cols,
                    weight.rows);
  }
  call.single = {static_cast<const std::byte*>(weight.packed), biases, out, 0, rows};
  call.warpgroups = context.warpgroups() && rows > kFewTokens && HopperTakes(call.layout.format);
  ConvertInputs(context, {.in = in, .stride = weight.cols, .tokens = rows}, OrderOf(weight, call.layout), call);
  RunLinear(context, call);
}

void CudaLinearHeads(CudaContext& context, const float* in, int rows, std::span<const Weight> weights, const HeadLinear& at,
                     float* out) {
  if (weights.empty() || rows == 0) return;
  const Weight& first = weights[0];
  const int heads = int(weights.size());
  LinearCall call = {.layout = LayoutOf(first), .out_stride = at.out_stride, .num_tasks = heads, .max_tokens = rows};
  bool alike = !first.quant.ordered;
  for (const Weight& weight : weights)
    alike = alike && weight.rows == first.rows && weight.cols == first.cols && weight.quant == first.quant &&
            weight.dtype == first.dtype;
  KVASIR_CHECK(alike, "the weights of heads differ in shape or format, or have orders of inputs");
  if (call.layout.format == LinearFormat::kF32) {
    std::vector<PlainTask> tasks;
    for (int h = 0; h < heads; ++h) {
      tasks.push_back({static_cast<const float*>(weights[size_t(h)].packed), nullptr, in + h * at.in_head_stride,
                       out + h * at.out_head_stride});
    }
    return RunPlain(context, {}, context.UploadAgain<PlainTask>(tasks), heads, first, rows, at.in_stride, at.out_stride);
  }
  std::vector<LinearTask> tasks;
  for (int h = 0; h < heads; ++h) {
    tasks.push_back({static_cast<const std::byte*>(weights[size_t(h)].packed), nullptr, out + h * at.out_head_stride,
                     h * TokenTiles(rows), rows});
  }
  call.tasks = context.UploadAgain<LinearTask>(tasks);
  ConvertInputs(context, {.in = in, .stride = at.in_stride, .tokens = rows, .batch = heads, .batch_stride = at.in_head_stride},
                nullptr, call);
  RunLinear(context, call);
}

}  // namespace kvasir
