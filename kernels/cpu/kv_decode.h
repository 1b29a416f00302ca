// Codes of quantised KV (kernels/kv_quant.h) as float32, from the pages of the CPU device (layouts in attention_kernels.h). Part
// of attention_kernels.cc, compiled once per ISA (rules in isa.h). What comes out is exactly DequantizeKv, on every ISA: products
// of codes and scales are exact, and one sum is rounded.
#pragma once

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

using Bytes = const unsigned char*;

Bytes PageAt(const AttendTask& task, int64_t page) {
  return task.pages + size_t{task.entries[page]} * task.granule_bytes;
}

struct ScalesAt {
  const float *scale, *low;
};

// Scales of a step's slots; zero where there is none.
template <int kSlots>
struct SlotScales {
  alignas(64) float scale[kSlots] = {};
  alignas(64) float low[kSlots] = {};
  ScalesAt At(int slot) const { return {scale + slot, low + slot}; }

  void Convert(const uint32_t* pairs) {
    for (int i = 0; i < kSlots; i += kLanes) {
      UVec both;
      __builtin_memcpy(&both, pairs + i, sizeof(both));
      Store(scale + i, FromF16(__builtin_convertvector(both & 0xffffu, HVec)));
      Store(low + i, FromF16(__builtin_convertvector(both >> 16, HVec)));
    }
  }
};

template <int kSlots>
void LocateScales(const AttendTask& task, int64_t step, int low, int high, SlotScales<kSlots>& k, SlotScales<kSlots>& v) {
  if (task.codes == AttendCodes::kFp8) return;
  alignas(64) uint32_t keys[kSlots] = {}, values[kSlots] = {};
  for (int slot = low; slot < high;) {
    const int64_t page = (step + slot) / task.block_tokens, inside = step + slot - page * task.block_tokens;
    const int64_t left = task.block_tokens - inside;
    const int count = left < high - slot ? int(left) : high - slot;
    Bytes from = PageAt(task, page) + task.scales_offset + size_t(inside) * sizeof(uint32_t);
    __builtin_memcpy(keys + slot, from, size_t(count) * sizeof(uint32_t));
    __builtin_memcpy(values + slot, from + task.page_bytes, size_t(count) * sizeof(uint32_t));
    slot += count;
  }
  k.Convert(keys);
  v.Convert(values);
}

typedef uint8_t CodeVec __attribute__((vector_size(kLanes)));
typedef int8_t SignedVec __attribute__((vector_size(kLanes)));

// kLanes codes, of which the first `count` are there.
inline CodeVec LoadCodes(Bytes from, int count) {
  CodeVec codes = {};
  if (count >= kLanes) {
    __builtin_memcpy(&codes, from, sizeof(codes));
  } else if (count > 0) {
    alignas(16) uint8_t part[kLanes] = {};
    for (int i = 0; i < count; ++i) part[i] = from[i];
    __builtin_memcpy(&codes, part, sizeof(codes));
  }
  return codes;
}

// E4M3 by way of float16, whose exponent is biased by 8 more: its subnormals cost nothing there. 480 would be the NaN.
inline Vec FromFp8(CodeVec codes) {
#if defined(__AVX512F__)
  const HVec wide = (HVec)_mm256_cvtepu8_epi16((__m128i)codes);
#elif defined(__AVX2__)
  const HVec wide = (HVec)_mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)codes));
#else
  const HVec wide = __builtin_convertvector(codes, HVec);
#endif
  const Vec x = FromF16(((wide & 0x80) << 8) | ((wide & 0x7f) << 7)) * Set(256.0f);
  return Abs(x) > Set(448.0f) ? x * Set(__builtin_nanf("")) : x;
}
// Widened by instructions of their own: compilers take vectors of eight bytes apart.
inline IVec Widened(CodeVec codes, bool is_signed) {
#if defined(__AVX512F__)
  const __m128i bytes = (__m128i)codes;
  return (IVec)(is_signed ? _mm512_maskz_cvtepi8_epi32(0xffff, bytes) : _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_cvtsi64_si128((long long)codes);
  return (IVec)(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#else
  return is_signed ? __builtin_convertvector((SignedVec)codes, IVec) : __builtin_convertvector(codes, IVec);
#endif
}
inline Vec FromInts(IVec x) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtepi32_ps(0xffff, (__m512i)x);
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps((__m256i)x);
#else
  return __builtin_convertvector(x, Vec);
#endif
}
inline Vec FromInt8(CodeVec codes) {
  return FromInts(Widened(codes, true));
}

// Keys of a tile of kTile slots, of which [low, high) are used, to rows of `row` floats: out[dim * row + slot].
template <AttendCodes kKind, int kTile>
void DecodeKeys(const AttendTask& task, int64_t first, int low, int high, int bytes, int row, ScalesAt scales, float* out) {
  alignas(16) uint8_t gathered[kTile] = {};
  const bool whole = task.block_tokens % kTile == 0;
  Vec scale[kTile / kLanes], zero[kTile / kLanes];
  for (int i = 0; i < kTile / kLanes; ++i) {
    scale[i] = Load(scales.scale + i * kLanes);
    zero[i] = Load(scales.low + i * kLanes);
  }
  const int64_t page = first / task.block_tokens;
  Bytes codes = whole ? PageAt(task, page) + (first - page * task.block_tokens) : gathered;
  for (int j = 0; j < bytes; ++j) {
    if (!whole) {
      for (int slot = low; slot < high; ++slot) {
        const int64_t at = (first + slot) / task.block_tokens;
        gathered[slot] = PageAt(task, at)[int64_t{j} * task.block_tokens + (first + slot - at * task.block_tokens)];
      }
    }
    float* const to = out + int64_t{j} * row;
    for (int i = 0; i < kTile / kLanes; ++i) {
      const CodeVec x = LoadCodes(codes + i * kLanes, kLanes);
      if constexpr (kKind == AttendCodes::kFp8) {
        Store(to + i * kLanes, FromFp8(x));
      } else if constexpr (kKind == AttendCodes::kInt8) {
        Store(to + i * kLanes, FromInt8(x) * scale[i]);
      } else {
        const IVec wide = Widened(x, false);
        Store(to + i * kLanes, Fma(FromInts(wide & 15), scale[i], zero[i]));
        if (bytes + j < task.head_dim) Store(to + int64_t{bytes} * row + i * kLanes, Fma(FromInts(wide >> 4), scale[i], zero[i]));
      }
    }
    if (whole) codes += task.block_tokens;
  }
}

// One token's values, as a row of `padded` floats of which those after head_dim are anything. Writes up to kLanes floats more.
template <AttendCodes kKind>
void DecodeValues(Bytes row, int head_dim, int padded, float scale, float low, float* out) {
  if constexpr (kKind != AttendCodes::kInt4) {
    for (int j = 0; j < padded; j += kLanes) {
      const CodeVec x = LoadCodes(row + j, head_dim - j);
      Store(out + j, kKind == AttendCodes::kFp8 ? FromFp8(x) : FromInt8(x) * Set(scale));
    }
    return;
  }
  const int half = CodeBytes(true, head_dim);
  for (int shift = 0; shift <= 4; shift += 4) {  // the second pass overwrites what the first wrote beyond its half
    float* const to = out + (shift > 0 ? half : 0);
    for (int j = 0; j < half; j += kLanes) {
      const IVec wide = Widened(LoadCodes(row + j, half - j), false);
      Store(to + j, Fma(FromInts(wide >> shift & 15), Set(scale), Set(low)));
    }
  }
  for (int j = 2 * half; j < padded; ++j) out[j] = 0;
}

}  // namespace
}  // namespace kvasir::KVASIR_ISA
