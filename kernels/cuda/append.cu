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

// --- codes (kernels/kv_quant.h): the same steps, so the same codes ------------------------------------------------------------
constexpr int kMaxCodedDim = 256;
struct AppendShared {
  float rows[kAppendWarps][kMaxCodedDim];  // a head for each warp
};
KVASIR_DEVICE float* CodedRow() {
  KVASIR_SHARED(AppendShared, s);
  return s.rows[WarpIndex()];
}

KVASIR_DEVICE uint32_t EncodeFp8(float x) {
  const uint32_t bits = __float_as_uint(x), size = bits & 0x7fffffffu;
  const uint32_t finite = size < 0x43e00000u ? size : 0x43e00000u;  // 448
  const uint32_t normal = ((finite + 0x7ffffu + (finite >> 20 & 1u)) >> 20) - (120u << 3);
  const uint32_t subnormal = __float_as_uint(__fadd_rn(__uint_as_float(finite), 0x1p14f)) - 0x46800000u;
  const uint32_t code = finite < 0x3c800000u ? subnormal : normal;
  return (bits >> 24 & 0x80u) | (size > 0x7f800000u ? 0x7fu : code);
}
KVASIR_DEVICE uint32_t HalfBits(float x) {
  return PackF16(x, 0) & 0xffffu;
}
KVASIR_DEVICE uint32_t ScaleFor(float range, float steps) {
  const uint32_t scale = HalfBits(__fdiv_rn(range, steps));
  return __fmul_rn(F16ToFloat(uint16_t(scale)), steps) < range ? scale + 1 : scale;
}
KVASIR_DEVICE int Quantised(float x, float scale, float low, float high) {
  const float rounded = __fsub_rn(__fadd_rn(__fdiv_rn(x, scale), 12582912.0f), 12582912.0f);
  return int(fminf(fmaxf(rounded, low), high));
}

// Scale and low of a head, as they lie in a page. All lanes of the warp.
KVASIR_DEVICE uint32_t FindScale(KvQuant quant, const float* x, int d) {
  constexpr float kLargest = 65024;
  float most = -kLargest, least = kLargest;
  bool bad = false;
  for (int j = Lane(); j < d; j += kWarp) {
    const float v = quant == KvQuant::kInt8 ? fabsf(x[j]) : x[j];
    bad |= !(fabsf(v) < __uint_as_float(0x7f800000u));
    most = fmaxf(most, v);
    least = fminf(least, v);
  }
  if (Ballot(bad) != 0) return 0x7e00u;  // NaN
  most = fminf(fmaxf(WarpMax(most), -kLargest), kLargest);
  least = fminf(fmaxf(-WarpMax(-least), -kLargest), kLargest);
  if (quant == KvQuant::kInt8) return ScaleFor(most, 127);
  uint32_t low = HalfBits(least);
  if (F16ToFloat(uint16_t(low)) > least) low += (low & 0x8000u) != 0 ? 1u : ~0u;
  return ScaleFor(__fsub_rn(most, F16ToFloat(uint16_t(low))), 15) | low << 16;
}

// A head's row of a page as codes. int4: element e of a word's eight is nibble e / 2 + e % 2 * 4, so that pairs lie 16 bits
// apart.
KVASIR_DEVICE void StoreCodes(const StepKv& kv, const float* x, int inside, std::byte* page) {
  SyncWarp();
  const int d = kv.head_dim;
  uint32_t pair = 0;
  if (kv.quant != KvQuant::kFp8) {
    pair = FindScale(kv.quant, x, d);
    if (Lane() == 0) reinterpret_cast<uint32_t*>(page + kv.scales_offset)[inside] = pair;
  }
  const float scale = F16ToFloat(uint16_t(pair)), low = F16ToFloat(uint16_t(pair >> 16));
  const bool none = (pair & 0xffffu) == 0 || (pair & 0xffffu) > 0x7c00u;  // codes are 0 then
  auto* const words = reinterpret_cast<uint32_t*>(page + inside * kv.row_bytes);
  const int per_word = kv.quant == KvQuant::kInt4 ? 8 : 4;
  for (int w = Lane(); w < kv.row_bytes / 4; w += kWarp) {
    uint32_t word = 0;
    for (int e = 0; e < per_word && w * per_word + e < d; ++e) {
      const float v = x[w * per_word + e];
      if (kv.quant == KvQuant::kFp8) {
        word |= EncodeFp8(v) << 8 * e;
      } else if (none) {
        continue;
      } else if (kv.quant == KvQuant::kInt8) {
        word |= (uint32_t(Quantised(v, scale, -127, 127)) & 0xffu) << 8 * e;
      } else {
        word |= uint32_t(Quantised(__fsub_rn(v, low), scale, 0, 15)) << 4 * (e / 2 + e % 2 * 4);
      }
    }
    words[w] = word;
  }
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
  std::byte* const to = value ? kv.VPage(run, page) : kv.KPage(run, page);
  const int inside = slot - page * kv.block_tokens;
  if (kv.quant != KvQuant::kNone) {
    float* const x = CodedRow();
    RotateHead(
        in, d, half, cos, sin, [&](int i, float v) { x[i] = v; },
        [&](int i, float2 v) { *reinterpret_cast<float2*>(x + i) = v; });
    StoreCodes(kv, x, inside, to);
    return;
  }
  std::byte* const out = to + inside * kv.row_bytes;
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
  std::byte* const out = kv.KPage(run, page) + (slot - page * kv.block_tokens) * kv.row_bytes;
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
  const bool coded = kv.quant != KvQuant::kNone;
  KVASIR_CHECK(!coded || kv.head_dim <= gpu::kMaxCodedDim, "heads of {} elements as codes", kv.head_dim);
  Launch(gpu::RopeAppendKernel, dim3(unsigned(kv.num_rows), unsigned((heads + gpu::kAppendWarps - 1) / gpu::kAppendWarps)),
         gpu::kAppendWarps * gpu::kWarp, coded ? sizeof(gpu::AppendShared) : 0, context.stream(), args);
  context.CheckLaunch("RopeAppend");
}

void CudaAppendLatent(CudaContext& context, const float* latent, int layer, const StepKv& kv) {
  if (!context.status().ok()) return;
  KVASIR_CHECK(kv.quant == KvQuant::kNone, "latent keys are not quantised");
  KVASIR_CHECK(kv.num_kv_heads == 1, "{} KV heads of latent keys", kv.num_kv_heads);
  const gpu::AppendArgs args = {.kv = kv, .in = latent, .layer = layer};
  Launch(gpu::AppendLatentKernel, dim3(unsigned((kv.num_rows + gpu::kAppendWarps - 1) / gpu::kAppendWarps)),
         gpu::kAppendWarps * gpu::kWarp, 0, context.stream(), args);
  context.CheckLaunch("AppendLatent");
}

}  // namespace kvasir
