// Quantised linear weights: what the stored numbers mean. Used by every device's PackLinear and Linear, so that all of them
// compute the same thing, and by model loading.
//
// Weights are quantised along the input (K), in groups that share a scale:
//   int8: w ~ scale * q,        q in -127..127, scale = max |w| / 127
//   int4: w ~ scale * q + low,  q in 0..15, low = min w, scale = (max w - min w) / 15
//   fp8:   w ~ scale * q,        q an 8-bit float E4M3 (no infinities, 0x7f and 0xff are NaN), scale = max |w| / 448
//   mxfp4: w = scale * q,        q a 4-bit float E2M1, scale a power of two (OCP microscaling; never made here, only kept)
// scale and low of int8 and int4 are float16, scales of fp8 and mxfp4 float32; q is rounded to the nearest by the stored scale.
// Weights that come quantised (HostMatrix::quant) bring their own scale, low and q, and q may then be -128.
//
// With fp8 and mxfp4 weights activations are rounded to bfloat16, as with bfloat16 weights, and
//   out = sum over groups of  scale * (sum of q * x)       mxfp4: scale * q is a bfloat16, and the sum is that of such a weight.
// With int8 and int4 they are quantised on the fly, each row by itself, kQuantBlock values together:
//   x ~ scale * q, q in -127..127, scale = max |x| / 127 in float32, q = x * (1 / scale) rounded to nearest, ties to even.
// So a product is exact in integers within a block, and the only float32 sums are those over blocks, in order:
//   out = sum over groups of  wscale * (sum over its blocks of xscale * (sum of wq * xq))  + for int4: low * (sum of xscale * xq)
// A row that holds a NaN or an infinity gives NaN.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace kvasir {

inline constexpr int kQuantBlock = 32;

struct QuantFormat {
  enum class Kind : uint8_t { kNone, kInt8, kInt4, kFp8, kMxfp4 } kind = Kind::kNone;
  int32_t group = 0;  // inputs that share a scale: a multiple of kQuantBlock; 0 = all of a row (one scale per output channel)
  // The groups are of inputs in another order (GPTQ's act-order), which belongs to the weight: activations are taken in that
  // order before they are quantised.
  bool ordered = false;

  bool operator==(const QuantFormat&) const = default;
  explicit operator bool() const { return kind != Kind::kNone; }
  bool integer() const { return kind == Kind::kInt8 || kind == Kind::kInt4; }
  int bits() const { return kind == Kind::kInt8 || kind == Kind::kFp8 ? 8 : 4; }
  size_t scale_bytes() const { return integer() ? sizeof(uint16_t) : sizeof(float); }  // of HostMatrix::scales
  // The group's size for rows of `cols` inputs.
  int64_t GroupSize(int64_t cols) const {
    const int64_t padded = (cols + kQuantBlock - 1) / kQuantBlock * kQuantBlock;
    return group == 0 || group > padded ? padded : group;
  }
  int64_t Groups(int64_t cols) const { return (cols + GroupSize(cols) - 1) / GroupSize(cols); }
  // Of codes, scales and lows of a matrix, without a device's padding.
  size_t Bytes(int64_t rows, int64_t cols) const {
    const size_t group_bytes = kind == Kind::kInt8 ? 2 : kind == Kind::kMxfp4 ? 1 : 4;
    return size_t(rows) * (size_t((cols * bits() + 7) / 8) + size_t(Groups(cols)) * group_bytes);
  }
};

// "none", "int8" (per channel), "int4" (groups of 64), "fp8" (per channel), or with a group: "int8:32", "int4:128", "fp8:128".
StatusOr<QuantFormat> ParseQuantFormat(std::string_view text);
std::string Name(QuantFormat format);  // as parsed, in full: "int8:channel", "int4:64"

float Fp8E4M3ToF32(uint8_t bits);
uint8_t F32ToFp8E4M3(float value);  // nearest, ties to even; beyond 448 NaN, as NaN
float Fp4E2M1ToF32(uint8_t bits);   // of the low four bits

// One group of `count` weights as fp8. Returns the scale.
float QuantizeFp8Group(const float* weights, int64_t count, uint8_t* codes);

// One group of `count` weights. Codes of int8 are signed, those of int4 are 0..15.
struct QuantGroup {
  uint16_t scale = 0, low = 0;  // float16 bits; low is 0 for int8
};
QuantGroup QuantizeGroup(QuantFormat::Kind kind, const float* weights, int64_t count, int8_t* codes);

// One block of activations; count <= kQuantBlock, the rest of the codes are 0. Returns the scale.
float QuantizeBlock(const float* x, int count, int8_t* codes);

}  // namespace kvasir
