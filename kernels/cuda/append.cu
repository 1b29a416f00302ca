// Keys and values into pages.

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.cuh"

namespace kvasir {
namespace gpu {
namespace {

constexpr int kAppendWarps = 8;  // heads of a block

struct AppendArgs {
  StepKv kv;
  const float* in = nullptr;  // rows of `width` floats
  float* q_out = nullptr;
  const int32_t* positions = nullptr;
  const float *cos = nullptr, *sin = nullptr;
  int32_t half = 0;  // of the rotated elements
  int32_t width = 0;
  int32_t layer = 0, num_q_heads = 0;
};

KVASIR_DEVICE void StoreKv(std::byte* row, DType dtype, int at, float value) {
  if (dtype == DType::kF32)
    reinterpret_cast<float*>(row)[at] = value;
  else
    reinterpret_cast<uint16_t*>(row)[at] = uint16_t(dtype == DType::kF16 ? PackF16(value, 0) : PackBf16(value, 0));
}
KVASIR_DEVICE void StoreKv2(std::byte* row, DType dtype, int at, float2 value) {  // an even place
  if (dtype == DType::kF32)
    *reinterpret_cast<float2*>(reinterpret_cast<float*>(row) + at) = value;
  else
    *reinterpret_cast<uint32_t*>(reinterpret_cast<uint16_t*>(row) + at) =
        dtype == DType::kF16 ? PackF16(value.x, value.y) : PackBf16(value.x, value.y);
}

// Element i of a rotated pair, and element i + half.
KVASIR_DEVICE float2 RotatePair(float low, float high, float cos, float sin) {
  return make_float2(fmaf(low, cos, -__fmul_rn(high, sin)), fmaf(high, cos, __fmul_rn(low, sin)));
}

// One warp copies or rotates one head of one row to where `store` and `store2` put it.
template <typename Store, typename Store2>
KVASIR_DEVICE void RotateHead(const float* in, int head_dim, int half, const float* cos, const float* sin, Store store,
                              Store2 store2) {
  if (head_dim % 2 == 0 && half % 2 == 0) {
    for (int i = 2 * Lane(); i < half; i += 2 * kWarp) {
      const float2 low = *reinterpret_cast<const float2*>(in + i), high = *reinterpret_cast<const float2*>(in + i + half);
      const float2 c = *reinterpret_cast<const float2*>(cos + i), s = *reinterpret_cast<const float2*>(sin + i);
      const float2 first = RotatePair(low.x, high.x, c.x, s.x), second = RotatePair(low.y, high.y, c.y, s.y);
      store2(i, make_float2(first.x, second.x));
      store2(i + half, make_float2(first.y, second.y));
    }
    for (int i = 2 * half + 2 * Lane(); i < head_dim; i += 2 * kWarp) store2(i, *reinterpret_cast<const float2*>(in + i));
  } else {
    for (int i = Lane(); i < half; i += kWarp) {
      const float2 rotated = RotatePair(in[i], in[i + half], cos[i], sin[i]);
      store(i, rotated.x);
      store(i + half, rotated.y);
    }
    for (int i = 2 * half + Lane(); i < head_dim; i += kWarp) store(i, in[i]);
  }
}

// Block (row, heads): a warp for each head of q, k and v.
__global__ void __launch_bounds__(kAppendWarps* kWarp) RopeAppendKernel(AppendArgs args) {
  WaitForPreviousKernel();
  const StepKv& kv = args.kv;
  const int row = int(blockIdx.x), head = int(blockIdx.y) * kAppendWarps + WarpIndex(), d = kv.head_dim;
  if (head >= args.num_q_heads + 2 * kv.num_kv_heads) return;
  const StepRow place = kv.rows[row];
  if (place.kv < 0) return;
  const float* const in = args.in + int64_t(row) * args.width + int64_t(head) * d;
  const bool rotated = head < args.num_q_heads + kv.num_kv_heads && args.half > 0;
  const int64_t angle = rotated ? int64_t(args.positions[row]) * args.half : 0;
  const float *const cos = args.cos + angle, *const sin = args.sin + angle;
  const int half = rotated ? args.half : 0;
  if (head < args.num_q_heads) {
    float* const out = args.q_out + (int64_t(row) * args.num_q_heads + head) * d;
    RotateHead(
        in, d, half, cos, sin, [&](int i, float x) { out[i] = x; },
        [&](int i, float2 x) { *reinterpret_cast<float2*>(out + i) = x; });
    return;
  }
  const bool value = head >= args.num_q_heads + kv.num_kv_heads;
  const StepRun run = kv.Run(place.kv, args.layer, head - args.num_q_heads - (value ? kv.num_kv_heads : 0));
  const int slot = run.num_slots - 1 - place.rows_after, page = slot / kv.block_tokens;
  std::byte* const out = (value ? kv.VPage(run, page) : kv.KPage(run, page)) +
                         (slot - page * kv.block_tokens) * d * (kv.dtype == DType::kF32 ? 4 : 2);
  RotateHead(
      in, d, half, cos, sin, [&](int i, float x) { StoreKv(out, kv.dtype, i, x); },
      [&](int i, float2 x) { StoreKv2(out, kv.dtype, i, x); });
}

// Block (rows): a warp for each row.
__global__ void __launch_bounds__(kAppendWarps* kWarp) AppendLatentKernel(AppendArgs args) {
  WaitForPreviousKernel();
  const StepKv& kv = args.kv;
  const int row = int(blockIdx.x) * kAppendWarps + WarpIndex(), d = kv.head_dim;
  if (row >= kv.num_rows || kv.rows[row].kv < 0) return;
  const StepRow place = kv.rows[row];
  const StepRun run = kv.Run(place.kv, args.layer, 0);
  const int slot = run.num_slots - 1 - place.rows_after, page = slot / kv.block_tokens;
  std::byte* const out = kv.KPage(run, page) + (slot - page * kv.block_tokens) * d * (kv.dtype == DType::kF32 ? 4 : 2);
  RotateHead(
      args.in + int64_t(row) * d, d, 0, nullptr, nullptr, [&](int i, float x) { StoreKv(out, kv.dtype, i, x); },
      [&](int i, float2 x) { StoreKv2(out, kv.dtype, i, x); });
}

}  // namespace
}  // namespace gpu

void CudaRopeAppend(CudaContext& context, const float* qkv, std::span<const int32_t> positions,
                    const int32_t* positions_on_device, const RopeTable& rope, int num_q_heads, int layer, const StepKv& kv,
                    float* q_out) {
  if (!context.status().ok()) return;
  KVASIR_CHECK(kv.value_dim == 0, "RopeAppend stores keys and values, these pages hold latent keys");
  KVASIR_CHECK(rope.rotary_dim <= kv.head_dim && rope.rotary_dim % 2 == 0, "{} rotated elements of {}", rope.rotary_dim,
               kv.head_dim);
  KVASIR_CHECK(int64_t(positions.size()) >= kv.own_rows, "{} positions for {} rows", positions.size(), kv.own_rows);
  gpu::AppendArgs args = {.kv = kv, .in = qkv, .q_out = q_out, .layer = layer, .num_q_heads = num_q_heads};
  args.half = rope.rotary_dim / 2;
  args.width = (num_q_heads + 2 * kv.num_kv_heads) * kv.head_dim;
  if (args.half > 0) {
    for (const int32_t position : positions) {
      KVASIR_CHECK(position >= 0 && position < rope.num_positions, "position {} but the rotary table has {}", position,
                   rope.num_positions);
    }
    args.positions = positions_on_device;
    args.cos = rope.cos;
    args.sin = rope.sin;
    if (args.positions == nullptr) return;  // no rows, or the context has failed
  }
  const int heads = num_q_heads + 2 * kv.num_kv_heads;
  Launch(gpu::RopeAppendKernel, dim3(unsigned(kv.num_rows), unsigned((heads + gpu::kAppendWarps - 1) / gpu::kAppendWarps)),
         gpu::kAppendWarps * gpu::kWarp, 0, context.stream(), args);
  context.CheckLaunch("RopeAppend");
}

void CudaAppendLatent(CudaContext& context, const float* latent, int layer, const StepKv& kv) {
  if (!context.status().ok()) return;
  KVASIR_CHECK(kv.num_kv_heads == 1, "{} KV heads of latent keys", kv.num_kv_heads);
  const gpu::AppendArgs args = {.kv = kv, .in = latent, .layer = layer};
  Launch(gpu::AppendLatentKernel, dim3(unsigned((kv.num_rows + gpu::kAppendWarps - 1) / gpu::kAppendWarps)),
         gpu::kAppendWarps * gpu::kWarp, 0, context.stream(), args);
  context.CheckLaunch("AppendLatent");
}

}  // namespace kvasir
