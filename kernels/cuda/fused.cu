#include "kernels/cuda/fused.h"

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {
namespace {

constexpr int kThreads = 256;

int Blocks(int64_t count, int64_t each) {
  return int((count + each - 1) / each);
}

const float* Floats(const Weight* vector) {
  return vector != nullptr ? static_cast<const float*>(vector->packed) : nullptr;
}

// Whether rows of this width at these addresses can be taken in 16 bytes.
template <typename... Pointers>
bool InFours(int64_t width, Pointers... pointers) {
  return width % 4 == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// --- rows of their own ----------------------------------------------------------------------------------------------------

// out[i, :] = table[ids[i], :] * scale
template <typename Bits>
__global__ void EmbedKernel(const Bits* table, bool half, const int32_t* ids, int64_t width, float scale, float* out) {
  gpu::WaitForPreviousKernel();
  const Bits* const row = table + int64_t{ids[blockIdx.x]} * width;
  for (int64_t j = int64_t(blockIdx.y) * blockDim.x + threadIdx.x; j < width; j += int64_t(gridDim.y) * blockDim.x) {
    float value;
    if constexpr (sizeof(Bits) == 4) {
      value = row[j];
    } else {
      value = half ? gpu::F16ToFloat(row[j]) : gpu::Bf16ToFloat(row[j]);
    }
    out[int64_t(blockIdx.x) * width + j] = value * scale;
  }
}

__global__ void GatherKernel(const float* in, const int32_t* rows, int64_t width, float* out) {
  gpu::WaitForPreviousKernel();
  const float* const from = in + int64_t{rows[blockIdx.x]} * width;
  for (int64_t j = int64_t(blockIdx.y) * blockDim.x + threadIdx.x; j < width; j += int64_t(gridDim.y) * blockDim.x)
    out[int64_t(blockIdx.x) * width + j] = from[j];
}

// --- norms ----------------------------------------------------------------------------------------------------------------

struct NormSpec {
  bool layer;
  const float* weight;
  const float* bias;
  float eps;
};

struct WarpSums {
  float sums[kThreads / gpu::kWarp];
};

// The sum over the block, for all threads: a butterfly in each warp, then the warps in order.
KVASIR_DEVICE float BlockSum(float value, WarpSums& shared) {
  value = gpu::WarpSum(value);
  if (gpu::Lane() == 0) shared.sums[gpu::WarpIndex()] = value;
  gpu::SyncBlock();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / gpu::kWarp; ++i) sum = __fadd_rn(sum, shared.sums[i]);
  gpu::SyncBlock();  // the next sum may overwrite
  return sum;
}

// A vector of `width` floats whose elements a thread visits are first, first + step, ...: sums of all threads by `add`.
template <int kWide, typename Sum>
KVASIR_DEVICE void NormVector(const float* x, float* out, int width, const NormSpec& norm, int first, int step, Sum add) {
  using Vector = std::conditional_t<kWide == 4, float4, float>;
  const int count = width / kWide;
  const auto in = reinterpret_cast<const Vector*>(x);
  const auto each = [](const Vector& v, auto work) {
    if constexpr (kWide == 4) {
      work(v.x), work(v.y), work(v.z), work(v.w);
    } else {
      work(v);
    }
  };
  float mean = 0;
  if (norm.layer) {
    float sum = 0;
    for (int i = first; i < count; i += step) each(in[i], [&](float v) { sum = __fadd_rn(sum, v); });
    mean = add(sum) / float(width);
  }
  float squares = 0;
  for (int i = first; i < count; i += step) {
    each(in[i], [&](float v) {
      const float d = __fsub_rn(v, mean);
      squares = fmaf(d, d, squares);
    });
  }
  const float scale = 1 / sqrtf(add(squares) / float(width) + norm.eps);
  const auto apply = [&](float v, int j) {
    float y = __fmul_rn(__fsub_rn(v, mean), scale);
    if (norm.weight != nullptr) y = __fmul_rn(y, norm.weight[j]);
    return norm.bias != nullptr ? __fadd_rn(y, norm.bias[j]) : y;
  };
  for (int i = first; i < count; i += step) {
    if constexpr (kWide == 4) {
      const float4 v = in[i];
      reinterpret_cast<float4*>(out)[i] =
          make_float4(apply(v.x, 4 * i), apply(v.y, 4 * i + 1), apply(v.z, 4 * i + 2), apply(v.w, 4 * i + 3));
    } else {
      out[i] = apply(in[i], i);
    }
  }
}

// A block for each row. Every thread reads again only what it wrote itself.
template <int kWide>
__global__ void __launch_bounds__(kThreads)
    AddNormKernel(float* residual, const float* delta, float scale, NormSpec norm, int width, float* out) {
  gpu::WaitForPreviousKernel();
  KVASIR_SHARED(WarpSums, shared);
  float* const row = residual + int64_t(blockIdx.x) * width;
  if (delta != nullptr) {
    const float* const added = delta + int64_t(blockIdx.x) * width;
    for (int i = int(threadIdx.x); i < width / kWide; i += kThreads) {
      if constexpr (kWide == 4) {
        float4 v = reinterpret_cast<float4*>(row)[i];
        const float4 d = reinterpret_cast<const float4*>(added)[i];
        v = make_float4(fmaf(scale, d.x, v.x), fmaf(scale, d.y, v.y), fmaf(scale, d.z, v.z), fmaf(scale, d.w, v.w));
        reinterpret_cast<float4*>(row)[i] = v;
      } else {
        row[i] = fmaf(scale, added[i], row[i]);
      }
    }
  }
  NormVector<kWide>(row, out + int64_t(blockIdx.x) * width, width, norm, int(threadIdx.x), kThreads,
                    [&](float value) { return BlockSum(value, shared); });
}

// A warp for each slice of a row: heads are narrow.
__global__ void NormSlicesKernel(float* data, Slices slices, NormSpec norm, bool weights_shared, int64_t count) {
  gpu::WaitForPreviousKernel();
  const int64_t item = int64_t(blockIdx.x) * (blockDim.x / gpu::kWarp) + gpu::WarpIndex();
  if (item >= count) return;  // a whole warp
  const int64_t row = item / slices.groups;
  const int group = int(item % slices.groups);
  if (!weights_shared) {
    if (norm.weight != nullptr) norm.weight += int64_t{group} * slices.width;
    if (norm.bias != nullptr) norm.bias += int64_t{group} * slices.width;
  }
  float* const x = data + row * slices.stride + slices.offset + group * slices.group_stride;
  NormVector<1>(x, x, slices.width, norm, gpu::Lane(), gpu::kWarp, [](float value) { return gpu::WarpSum(value); });
}

// --- slices ---------------------------------------------------------------------------------------------------------------

__global__ void CopySlicesKernel(const float* in, Slices from, float* out, Slices to) {
  gpu::WaitForPreviousKernel();
  const float* const source = in + int64_t(blockIdx.x) * from.stride + from.offset;
  float* const target = out + int64_t(blockIdx.x) * to.stride + to.offset;
  for (int i = int(blockIdx.y * blockDim.x + threadIdx.x); i < from.groups * from.width; i += int(gridDim.y * blockDim.x)) {
    const int group = i / from.width, j = i % from.width;
    target[group * to.group_stride + j] = source[group * from.group_stride + j];
  }
}

__global__ void RotateSlicesKernel(float* data, Slices slices, const int32_t* positions, RopeTable rope) {
  gpu::WaitForPreviousKernel();
  const int half = rope.rotary_dim / 2;
  const int64_t position = positions[blockIdx.x];
  float* const row = data + int64_t(blockIdx.x) * slices.stride + slices.offset;
  for (int i = int(blockIdx.y * blockDim.x + threadIdx.x); i < slices.groups * half; i += int(gridDim.y * blockDim.x)) {
    const int group = i / half, j = i % half;
    float* const x = row + group * slices.group_stride;
    const float c = rope.cos[position * half + j], s = rope.sin[position * half + j], a = x[j], b = x[j + half];
    x[j] = fmaf(a, c, -__fmul_rn(b, s));
    x[j + half] = fmaf(b, c, __fmul_rn(a, s));
  }
}

// --- element by element ---------------------------------------------------------------------------------------------------

KVASIR_DEVICE float Sigmoid(float x) {
  return 1 / (1 + expf(-x));
}

// exp(-(c1 x + c3 x^3)) for tanh-GELU, 1.5957691... and 0.0713548... times: the exponent is carried in two floats, since its
// rounding counts as many times as the exponent is long.
KVASIR_DEVICE float GeluExp(float x) {
  constexpr double kC1 = 1.5957691216057308, kC3 = 0.07135481282551306;
  constexpr float kC1High = float(kC1), kC1Low = float(kC1 - kC1High), kC3High = float(kC3), kC3Low = float(kC3 - kC3High);
  const float square = __fmul_rn(x, x), square_low = fmaf(x, x, -square);
  const float factor = fmaf(square, kC3High, kC1High);
  const float factor_low =
      fmaf(square, kC3Low, fmaf(square_low, kC3High, fmaf(square, kC3High, __fsub_rn(kC1High, factor)) + kC1Low));
  const float y = __fmul_rn(x, factor), y_low = fmaf(x, factor_low, fmaf(x, factor, -y));
  const float e = expf(-y);
  return fabsf(y) < 80 ? fmaf(-y_low, e, e) : e;
}

KVASIR_DEVICE float Activated(const ActivationParams& activation, float x, float up) {
  switch (activation.kind) {
    case Activation::kSilu:
      return x / (1 + expf(-x)) * up;
    case Activation::kGelu:
      return x * 0.5f * erfcf(x * -0.70710678f) * up;
    case Activation::kGeluTanh:  // (1 + tanh(y)) / 2 = sigmoid(2 y)
      return x / (1 + GeluExp(x)) * up;
    case Activation::kRelu:
      return (x < 0 ? 0 : x) * up;
    case Activation::kRelu2:
      return (x < 0 ? 0 : x) * (x < 0 ? 0 : x) * up;
    case Activation::kSwigluOai: {
      const float gate = x > activation.limit ? activation.limit : x;
      const float value = up > activation.limit ? activation.limit : up < -activation.limit ? -activation.limit : up;
      return gate * Sigmoid(activation.alpha * gate) * (value + 1);
    }
  }
  return 0;
}

// Rows of `width`, a column of blocks for each: a grid can be much longer than it is high.
__global__ void ActivateKernel(ActivationParams activation, bool gated, const float* in, int width, float* out) {
  gpu::WaitForPreviousKernel();
  const float* const row = in + int64_t(blockIdx.x) * (gated ? 2 : 1) * width;
  for (int j = int(blockIdx.y * blockDim.x + threadIdx.x); j < width; j += int(gridDim.y * blockDim.x))
    out[int64_t(blockIdx.x) * width + j] = Activated(activation, row[j], gated ? row[width + j] : 1);
}

__global__ void AddKernel(float* residual, const float* delta, float scale, int64_t count) {
  gpu::WaitForPreviousKernel();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    residual[i] = fmaf(scale, delta[i], residual[i]);
}

__global__ void ScaleKernel(float* data, float scale, float softcap, int64_t count) {
  gpu::WaitForPreviousKernel();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    const float x = __fmul_rn(scale, data[i]);
    data[i] = softcap > 0 ? softcap * tanhf(x / softcap) : x;
  }
}

__global__ void AddGatedKernel(float* residual, const float* in, const float* gate, int width) {
  gpu::WaitForPreviousKernel();
  const float factor = Sigmoid(gate[blockIdx.x]);
  for (int j = int(blockIdx.y * blockDim.x + threadIdx.x); j < width; j += int(gridDim.y * blockDim.x)) {
    const int64_t at = int64_t(blockIdx.x) * width + j;
    residual[at] = fmaf(factor, in[at], residual[at]);
  }
}

__global__ void MultiplyGateKernel(float* data, bool silu, const float* gate, int64_t gate_stride, int width) {
  gpu::WaitForPreviousKernel();
  for (int j = int(blockIdx.y * blockDim.x + threadIdx.x); j < width; j += int(gridDim.y * blockDim.x)) {
    const float x = gate[int64_t(blockIdx.x) * gate_stride + j];
    data[int64_t(blockIdx.x) * width + j] *= (silu ? x : 1) / (1 + expf(-x));
  }
}

// Blocks for rows of `width`: one thread for each element, as long as rows are not enough to fill the device.
dim3 RowGrid(const CudaContext& context, int64_t rows, int64_t width) {
  const int64_t wanted = Blocks(width, kThreads),
                most = std::max<int64_t>(1, 16LL * context.multiprocessors() / std::max<int64_t>(1, rows));
  return dim3(unsigned(rows), unsigned(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(most, 4))));
}

int FlatGrid(const CudaContext& context, int64_t count) {
  return int(std::min<int64_t>(Blocks(count, kThreads), 16LL * context.multiprocessors()));
}

NormSpec Spec(const Norm& norm) {
  return {norm.kind == NormKind::kLayer, Floats(norm.weight), Floats(norm.bias), norm.eps};
}

}  // namespace

void CudaEmbed(CudaContext& context, const Weight& table, const int32_t* ids, int rows, float scale, float* out) {
  if (rows == 0 || ids == nullptr) return;
  const dim3 grid = RowGrid(context, rows, table.cols);
  if (table.dtype == DType::kF32) {
    Launch(EmbedKernel<float>, grid, kThreads, 0, context.stream(), static_cast<const float*>(table.packed), false, ids,
           table.cols, scale, out);
  } else {
    Launch(EmbedKernel<uint16_t>, grid, kThreads, 0, context.stream(), static_cast<const uint16_t*>(table.packed),
           table.dtype == DType::kF16, ids, table.cols, scale, out);
  }
  context.CheckLaunch("embedding");
}

void CudaGatherRows(CudaContext& context, const float* in, std::span<const int32_t> row_ids, int width, float* out) {
  const int32_t* const uploaded = context.Upload(row_ids);
  if (uploaded == nullptr) return;
  Launch(GatherKernel, RowGrid(context, int64_t(row_ids.size()), width), kThreads, 0, context.stream(), in, uploaded,
         int64_t{width}, out);
  context.CheckLaunch("gathering rows");
}

void CudaAddNorm(CudaContext& context, float* residual, const float* delta, float delta_scale, const Norm& norm, int rows,
                 int width, float* out) {
  const auto kernel = InFours(width, residual, delta, out) ? AddNormKernel<4> : AddNormKernel<1>;
  Launch(kernel, dim3(rows), kThreads, sizeof(WarpSums), context.stream(), residual, delta, delta_scale, Spec(norm), width, out);
  context.CheckLaunch("norm");
}

void CudaAdd(CudaContext& context, float* residual, const float* delta, float scale, int rows, int width) {
  const int64_t count = int64_t{rows} * width;
  Launch(AddKernel, dim3(FlatGrid(context, count)), kThreads, 0, context.stream(), residual, delta, scale, count);
  context.CheckLaunch("addition");
}

void CudaAddGated(CudaContext& context, float* residual, const float* in, const float* gate, int rows, int width) {
  Launch(AddGatedKernel, RowGrid(context, rows, width), kThreads, 0, context.stream(), residual, in, gate, width);
  context.CheckLaunch("gated addition");
}

void CudaNormSlices(CudaContext& context, float* data, int rows, const Slices& slices, const Norm& norm) {
  constexpr int kWarps = kThreads / gpu::kWarp;
  const int64_t count = int64_t{rows} * slices.groups;
  const bool weights_shared = norm.weight == nullptr || norm.weight->cols == slices.width;
  Launch(NormSlicesKernel, dim3(Blocks(count, kWarps)), kThreads, 0, context.stream(), data, slices, Spec(norm), weights_shared,
         count);
  context.CheckLaunch("norm of slices");
}

void CudaRotateSlices(CudaContext& context, float* data, int rows, const Slices& slices, std::span<const int32_t> positions,
                      const int32_t* positions_on_device, const RopeTable& rope) {
  if (rope.rotary_dim < 2) return;
  for (const int32_t position : positions)
    KVASIR_CHECK(position >= 0 && position < rope.num_positions, "position {} but the table has {}", position,
                 rope.num_positions);
  if (positions_on_device == nullptr) return;
  Launch(RotateSlicesKernel, RowGrid(context, rows, int64_t{slices.groups} * (rope.rotary_dim / 2)), kThreads, 0,
         context.stream(), data, slices, positions_on_device, rope);
  context.CheckLaunch("rotation");
}

void CudaCopySlices(CudaContext& context, const float* in, const Slices& from, int rows, float* out, const Slices& to) {
  Launch(CopySlicesKernel, RowGrid(context, rows, int64_t{from.groups} * from.width), kThreads, 0, context.stream(), in, from,
         out, to);
  context.CheckLaunch("copy of slices");
}

void CudaActivate(CudaContext& context, const ActivationParams& activation, bool gated, const float* in, int rows, int width,
                  float* out) {
  Launch(ActivateKernel, RowGrid(context, rows, width), kThreads, 0, context.stream(), activation, gated, in, width, out);
  context.CheckLaunch("activation");
}

void CudaScaleRows(CudaContext& context, float* data, int rows, int width, float scale, float softcap) {
  const int64_t count = int64_t{rows} * width;
  Launch(ScaleKernel, dim3(FlatGrid(context, count)), kThreads, 0, context.stream(), data, scale, softcap, count);
  context.CheckLaunch("scaling");
}

void CudaMultiplyGate(CudaContext& context, float* data, GateKind kind, const float* gate, int64_t gate_stride, int rows,
                      int width) {
  Launch(MultiplyGateKernel, RowGrid(context, rows, width), kThreads, 0, context.stream(), data, kind == GateKind::kSilu, gate,
         gate_stride, width);
  context.CheckLaunch("gate");
}

}  // namespace kvasir
