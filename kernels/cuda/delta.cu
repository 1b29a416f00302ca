#include "kernels/cuda/delta.h"

#include <cmath>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {
namespace {

constexpr int kMaxKernel = 16;  // tokens a convolution may see; models have 4

// Where the tokens of a slice are in their text, and when its state is read and kept: at the first token of the step from the
// block before or this one, after the last of each block and of the step.
struct Walk {
  int64_t start;
  int32_t rows, first_row, kv;

  KVASIR_DEVICE Walk(const StepKv& kv_step, int slice_index) {
    const SequenceSlice slice = kv_step.slices[slice_index];
    start = int64_t{kv_step.runs[~kv_step.first_run[slice.kv]].num_slots} - slice.num_rows;
    rows = slice.num_rows;
    first_row = slice.first_row;
    kv = slice.kv;
  }
  // The state before the first token; nullptr: zeros.
  KVASIR_DEVICE const float* Before(const StepKv& step, int layer) const {
    if (start == 0) return nullptr;
    return step.State(kv, layer, (start - 1) / step.block_tokens);
  }
  // Where the state after token i of the step is kept; nullptr: it is not.
  KVASIR_DEVICE float* After(const StepKv& step, int layer, int i) const {
    const int64_t position = start + i;
    if (i + 1 < rows && (position + 1) % step.block_tokens != 0) return nullptr;
    return step.State(kv, layer, position / step.block_tokens);
  }
};

// One thread for each channel of a text: the inputs it sees lie in registers.
__global__ void ConvKernel(StepKv step, const float* in, int64_t in_stride, const float* weight, int kernel, int64_t channels,
                           int64_t state_at, int layer, float* out) {
  gpu::WaitForPreviousKernel();
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  const Walk walk(step, int(blockIdx.y));
  const int kept = kernel - 1;
  float seen[kMaxKernel], factor[kMaxKernel];  // seen: at the end, the newest last
  const float* const before = walk.Before(step, layer);
#pragma unroll
  for (int j = 0; j < kMaxKernel; ++j) {
    const int from = j - (kMaxKernel - kernel);  // of the kernel's taps; the array's end is what counts
    factor[j] = from >= 0 ? weight[from * channels + c] : 0;
    const int tap = from - 1;  // the token now taken as the newest of the kept ones moves one up before it is used
    seen[j] = from >= 1 && before != nullptr ? before[state_at + tap * channels + c] : 0;
  }
  for (int i = 0; i < walk.rows; ++i) {
    const int64_t row = walk.first_row + i;
#pragma unroll
    for (int j = 0; j + 1 < kMaxKernel; ++j) seen[j] = seen[j + 1];
    seen[kMaxKernel - 1] = in[row * in_stride + c];
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kMaxKernel; ++j) {
      if (j >= kMaxKernel - kernel) sum = fmaf(factor[j], seen[j], sum);
    }
    out[row * channels + c] = sum / (1 + expf(-sum));
    float* const after = walk.After(step, layer, i);
    if (after == nullptr) continue;
#pragma unroll
    for (int j = 0; j < kMaxKernel; ++j) {
      const int tap = j - (kMaxKernel - kept);
      if (tap >= 0) after[state_at + tap * channels + c] = seen[j];
    }
  }
}

// Lengths taken out of q and k, once for all heads and columns that use them: a warp for each of a row's key heads.
// qk [rows, 2, key_heads, padded]: q, then k; elements from key_dim to padded are zero.
__global__ void NormalizeKernel(const float* qkv, int64_t channels, int key_heads, int key_dim, int padded, int64_t count,
                                float* qk) {
  gpu::WaitForPreviousKernel();
  const int64_t item = int64_t(blockIdx.x) * (blockDim.x / gpu::kWarp) + gpu::WarpIndex();  // [row, q or k, head]
  if (item >= count) return;                                                                // a whole warp
  const int64_t row = item / (2 * key_heads), vector = item % (2 * key_heads);
  const float* const x = qkv + row * channels + vector * key_dim;
  float squares = 0;
  for (int i = gpu::Lane(); i < key_dim; i += gpu::kWarp) squares = fmaf(x[i], x[i], squares);
  float scale = 1 / sqrtf(gpu::WarpSum(squares) + kDeltaNormEps);
  if (vector < key_heads) scale *= 1 / sqrtf(float(key_dim));
  for (int i = gpu::Lane(); i < padded; i += gpu::kWarp) qk[item * padded + i] = i < key_dim ? x[i] * scale : 0;
}

// [rows, value_heads]: decay and beta.
__global__ void GatesKernel(const float* gates, int64_t gate_stride, const float* a_log, const float* dt_bias, int value_heads,
                            int64_t count, float2* out) {
  gpu::WaitForPreviousKernel();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / value_heads;
  const int h = int(i % value_heads);
  // In doubles: exponents of exponents, and few of them.
  const double b = gates[row * gate_stride + h], x = double(gates[row * gate_stride + value_heads + h]) + dt_bias[h];
  const double decay = exp(-exp(double(a_log[h])) * (x > 20 ? x : log1p(exp(x))));
  out[i] = make_float2(float(decay), float(1 / (1 + exp(-b))));
}

// Columns of a head's state do not know one another. kLanes lanes share one: lane p has the rows 4 (kLanes i + p) .. + 3 of it,
// at most 32, in registers through all tokens of the step.
constexpr int kDeltaThreads = 128;
constexpr int DeltaLanes(int key_dim) {
  return key_dim <= 128 ? 4 : key_dim / 32;
}

template <int kKeyDim>
__global__ void __launch_bounds__(kDeltaThreads)
    DeltaKernel(StepKv step, const float* qkv, const float* qk, const float2* gates, DeltaNet net, int layer, float* out) {
  gpu::WaitForPreviousKernel();
  constexpr int kLanes = DeltaLanes(kKeyDim), kStride = 4 * kLanes, kParts = kKeyDim / kStride;  // parts of four rows
  const int part = int(threadIdx.x) % kLanes, h = int(blockIdx.y);
  const int column = int(blockIdx.x) * (kDeltaThreads / kLanes) + int(threadIdx.x) / kLanes;
  const bool real = column < net.value_dim;  // the others go along for the shuffles
  const int key_head = h / (net.value_heads / net.key_heads);
  const Walk walk(step, int(blockIdx.z));
  const int64_t state_at = int64_t{h} * net.key_dim * net.value_dim + column, channels = net.channels();
  float s[kParts * 4];
  const float* const before = walk.Before(step, layer);
#pragma unroll
  for (int i = 0; i < kParts * 4; ++i) {
    const int d = i / 4 * kStride + part * 4 + i % 4;
    s[i] = real && before != nullptr && d < net.key_dim ? before[state_at + int64_t{d} * net.value_dim] : 0;
  }
  for (int token = 0; token < walk.rows; ++token) {
    const int64_t row = walk.first_row + token;
    const float* const q = qk + ((row * 2) * net.key_heads + key_head) * kKeyDim + part * 4;
    const float* const k = q + int64_t{net.key_heads} * kKeyDim;
    const float2 gate = gates[row * net.value_heads + h];
    const float v = real ? qkv[row * channels + 2 * net.queries() + int64_t{h} * net.value_dim + column] : 0;
    float found = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float4 key = *reinterpret_cast<const float4*>(k + i * kStride);
      found = fmaf(s[i * 4], key.x, found);
      found = fmaf(s[i * 4 + 1], key.y, found);
      found = fmaf(s[i * 4 + 2], key.z, found);
      found = fmaf(s[i * 4 + 3], key.w, found);
    }
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) found = __fadd_rn(found, gpu::ShuffleXor(found, mask));
    const float change = __fmul_rn(gate.y, __fsub_rn(v, __fmul_rn(gate.x, found)));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float4 key = *reinterpret_cast<const float4*>(k + i * kStride);
      const float4 query = *reinterpret_cast<const float4*>(q + i * kStride);
      s[i * 4] = fmaf(key.x, change, __fmul_rn(gate.x, s[i * 4]));
      s[i * 4 + 1] = fmaf(key.y, change, __fmul_rn(gate.x, s[i * 4 + 1]));
      s[i * 4 + 2] = fmaf(key.z, change, __fmul_rn(gate.x, s[i * 4 + 2]));
      s[i * 4 + 3] = fmaf(key.w, change, __fmul_rn(gate.x, s[i * 4 + 3]));
      sum = fmaf(query.x, s[i * 4], sum);
      sum = fmaf(query.y, s[i * 4 + 1], sum);
      sum = fmaf(query.z, s[i * 4 + 2], sum);
      sum = fmaf(query.w, s[i * 4 + 3], sum);
    }
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) sum = __fadd_rn(sum, gpu::ShuffleXor(sum, mask));
    if (real && part == 0) out[row * net.values() + int64_t{h} * net.value_dim + column] = sum;
    float* const after = walk.After(step, layer, token);
    if (after == nullptr || !real) continue;
#pragma unroll
    for (int i = 0; i < kParts * 4; ++i) {
      const int d = i / 4 * kStride + part * 4 + i % 4;
      if (d < net.key_dim) after[state_at + int64_t{d} * net.value_dim] = s[i];
    }
  }
}

int Blocks(int64_t count, int64_t each) {
  return int((count + each - 1) / each);
}

}  // namespace

void CudaCausalConv(CudaContext& context, const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight,
                    int layer, const StepKv& kv, float* out) {
  KVASIR_CHECK(net.kernel >= 1 && net.kernel <= kMaxKernel, "a convolution over {} tokens; CUDA kernels are made for 1 to {}",
               net.kernel, kMaxKernel);
  constexpr int kThreads = 128;
  Launch(ConvKernel, dim3(Blocks(net.channels(), kThreads), kv.num_slices), kThreads, 0, context.stream(), kv, in, in_stride,
         static_cast<const float*>(weight.packed), net.kernel, net.channels(), net.matrix_floats(), layer, out);
  context.CheckLaunch("causal convolution");
}

void CudaDeltaRule(CudaContext& context, const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net,
                   const Weight& a_log, const Weight& dt_bias, int layer, const StepKv& kv, float* out) {
  constexpr int kMaxKeyDim = 256, kThreads = 128;
  KVASIR_CHECK(net.key_dim <= kMaxKeyDim, "keys of {} elements; CUDA kernels are made for at most {}", net.key_dim, kMaxKeyDim);
  const int padded = net.key_dim <= 64 ? 64 : net.key_dim <= 128 ? 128 : kMaxKeyDim;
  const int64_t vectors = int64_t{kv.num_rows} * 2 * net.key_heads, heads = int64_t{kv.num_rows} * net.value_heads;
  float* const qk = context.Temporary<float>(CudaContext::Scratch::kRows, size_t(vectors * padded));
  float2* const decays = context.Temporary<float2>(CudaContext::Scratch::kScales, size_t(heads));
  if (!context.status().ok()) return;
  Launch(NormalizeKernel, dim3(Blocks(vectors, kThreads / gpu::kWarp)), kThreads, 0, context.stream(), qkv, net.channels(),
         net.key_heads, net.key_dim, padded, vectors, qk);
  context.CheckLaunch("normalising keys");
  Launch(GatesKernel, dim3(Blocks(heads, kThreads)), kThreads, 0, context.stream(), gates, gate_stride,
         static_cast<const float*>(a_log.packed), static_cast<const float*>(dt_bias.packed), net.value_heads, heads, decays);
  context.CheckLaunch("gates of the delta rule");
  const dim3 grid(Blocks(net.value_dim, kDeltaThreads / DeltaLanes(padded)), net.value_heads, kv.num_slices);
  const auto kernel = padded == 64 ? DeltaKernel<64> : padded == 128 ? DeltaKernel<128> : DeltaKernel<kMaxKeyDim>;
  Launch(kernel, grid, kDeltaThreads, 0, context.stream(), kv, qkv, static_cast<const float*>(qk),
         static_cast<const float2*>(decays), net, layer, out);
  context.CheckLaunch("delta rule");
}

}  // namespace kvasir
