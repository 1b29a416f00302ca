// Quantised KV: what the stored numbers mean. Used by every device's append and attention, so that all of them hold the same
// numbers.
//
// The K (or V) of one token and head is quantised by itself when it is appended, so neither chunks nor batches change it:
//   fp8:  x ~ q,                q an 8-bit float E4M3, nearest, ties to even; beyond 448 it saturates, also infinities; NaN stays
//   NaN int8: x ~ scale * q,        q in -127..127, scale = max |x| / 127 int4: x ~ scale * q + low,  q in 0..15, low = min x,
//   scale = (max x - low) / 15
// scale and low are float16, low rounded down and scale up: every x lies within scale / 2 of what is stored for it. q is rounded
// to the nearest, ties to even. What x goes beyond kKvLargest saturates, so that what is stored always is a finite float16; a
// vector that holds a NaN or an infinity is NaN as a whole (int8 and int4).
//
// Attention takes scale * q + low as it is, or rounded to the type it multiplies in; it never sees x, not even of the step's own
// tokens.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/kv_page.h"
#include "kernels/status.h"

namespace kvasir {

inline constexpr float kKvLargest = 65024;  // 127 * 512

// Of one token and head, as it lies in a page: float16 bits. int8 has no low, fp8 neither.
struct KvScale {
  uint16_t scale = 0, low = 0;
};

// Codes take a byte each, those of int8 as two's complement.
KvScale QuantizeKv(KvQuant quant, const float* x, int count, uint8_t* codes);
float DequantizeKv(KvQuant quant, uint8_t code, KvScale scale);

// "float32", "float16", "bfloat16", "fp8", "int8", "int4".
StatusOr<KvFormat> ParseKvFormat(std::string_view text);
std::string_view Name(KvFormat format);

}  // namespace kvasir
