// Weights stored as small floats, turned into the pairs of bfloat16 that the bf16 tile reads: exactly, for every such value is a
// bfloat16. Part of gemm_kernels.cc, compiled once per ISA (rules in isa.h); layouts in gemm_kernels.h.
#pragma once

#include "kernels/cpu/simd.h"

namespace kvasir::KVASIR_ISA {
namespace {

#if defined(__AVX512BW__)
constexpr int kDecodeLanes = 32;
#else
constexpr int kDecodeLanes = 16;
#endif
typedef uint16_t DecodeVec __attribute__((vector_size(2 * kDecodeLanes)));
typedef uint8_t DecodeBytes __attribute__((vector_size(kDecodeLanes)));
typedef uint8_t DecodeHalf __attribute__((vector_size(kDecodeLanes / 2)));
typedef uint32_t DecodePairs __attribute__((vector_size(2 * kDecodeLanes)));

#if defined(__AVX512VBMI__)
// Bytes of the bfloat16 values of the 128 codes without a sign: first the low ones, then the high ones.
struct Fp8Table {
  alignas(64) uint8_t low[128], high[128];
};
constexpr Fp8Table MakeFp8Table() {
  Fp8Table table = {};
  for (int code = 0; code < 128; ++code) {
    int bits = (code << 4) + (120 << 7);  // exponents are biased by 7 there and by 127 here
    if (code < 8) {                       // code * 2^-9
      int top = 0;
      while (code >> top > 1) ++top;
      bits = code == 0 ? 0 : ((118 + top) << 7) + ((code << (7 - top)) & 127);
    } else if (code == 127) {
      bits = 0x7fc0;
    }
    table.low[code] = (uint8_t)(bits & 255);
    table.high[code] = (uint8_t)(bits >> 8);
  }
  return table;
}
constexpr Fp8Table kFp8Table = MakeFp8Table();

// A row of 32 pairs in registers. The bytes of low and high are put side by side within lanes of 16: so eight codes of the first
// half and eight of the second come into each.
inline __attribute__((always_inline)) void DecodeFp8Row(const uint8_t* from, __m512i (&pairs)[2]) {
  const __m512i low0 = _mm512_load_si512(kFp8Table.low), low1 = _mm512_load_si512(kFp8Table.low + 64);
  const __m512i high0 = _mm512_load_si512(kFp8Table.high), high1 = _mm512_load_si512(kFp8Table.high + 64);
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), signs = _mm512_set1_epi8((char)0x80);
  const __m512i codes = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_loadu_si512(from));
  const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1);
  const __m512i high =
      _mm512_ternarylogic_epi64(codes, signs, _mm512_permutex2var_epi8(high0, codes, high1), 0xea);  // codes & signs | high
  pairs[0] = _mm512_maskz_unpacklo_epi8(~0ull, low, high);
  pairs[1] = _mm512_maskz_unpackhi_epi8(~0ull, low, high);
}

// [pairs][32][2] codes to as many bfloat16.
inline void DecodeFp8(const uint8_t* from, int64_t pairs, uint16_t* to) {
  for (int64_t i = 0; i < pairs; ++i, from += 64, to += 64) {
    __m512i row[2];
    DecodeFp8Row(from, row);
    _mm512_storeu_si512(to, row[0]);
    _mm512_storeu_si512(to + 32, row[1]);
  }
}
#else
inline void DecodeFp8(const uint8_t* from, int64_t pairs, uint16_t* to) {
  const DecodeVec zero = {};
  for (int64_t i = 0; i < pairs * 64; i += kDecodeLanes) {
    DecodeBytes bytes;
    __builtin_memcpy(&bytes, from + i, sizeof(bytes));
    const DecodeVec code = __builtin_convertvector(bytes, DecodeVec), size = code & 0x7f;
    DecodeVec value = (DecodeVec)(size << 4) + 0x3c00;  // exponents are biased by 7 there and by 127 here
    // The codes below 8 are multiples of 2^-9, without a leading one.
    DecodeVec small = (DecodeVec)((size - 4) << 5) + 0x3c00;
    small = size < 4 ? (DecodeVec)((size - 2) << 6) + 0x3b80 : small;
    small = size < 2 ? (DecodeVec)(size * 0x3b00) : small;
    value = size < 8 ? small : value;
    value = size == 0x7f ? zero + 0x7fc0 : value;
    value |= (DecodeVec)((code & 0x80) << 8);
    __builtin_memcpy(to + i, &value, sizeof(value));
  }
}
#endif

// kDecodeLanes / 2 bytes, a pair of codes each. more: what the scales of their columns add to the exponents' bits.
inline __attribute__((always_inline)) void DecodeMxfp4Row(const uint8_t* from, const DecodeVec& more, DecodeVec& value) {
  const DecodeVec zero = {};
  DecodeHalf bytes;
  __builtin_memcpy(&bytes, from, sizeof(bytes));
  const DecodePairs both = __builtin_convertvector(bytes, DecodePairs);
  const DecodeVec code = (DecodeVec)((both & 15) | (both & 0xf0) << 12), size = code & 7;
#if defined(__AVX512BW__)
  const __m512i table = _mm512_maskz_broadcast_i64x4(
      0xff, _mm256_setr_epi16(0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, (short)0x8000, (short)0xbf00,
                              (short)0xbf80, (short)0xbfc0, (short)0xc000, (short)0xc040, (short)0xc080, (short)0xc0c0));
  value = (DecodeVec)_mm512_maskz_permutexvar_epi16(0xffffffffu, (__m512i)code, table);
#else
  value = (DecodeVec)(size << 6) + 0x3f00;
  value = size < 2 ? (DecodeVec)(size * 0x3f00) : value;  // zero and one half have no leading one
  value |= (DecodeVec)((code & 8) << 12);
#endif
  value += size == 0 ? zero : more;
}

// [pairs][32] bytes to [pairs][32][2] bfloat16. add: for each bfloat16 of a row of 32 pairs.
inline void DecodeMxfp4(const uint8_t* from, int64_t pairs, const uint16_t* add, uint16_t* to) {
  constexpr int kColumns = kDecodeLanes / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    for (int column = 0; column < 32; column += kColumns, from += kColumns, to += kDecodeLanes) {
      DecodeVec more, value;
      __builtin_memcpy(&more, add + 2 * column, sizeof(more));
      DecodeMxfp4Row(from, more, value);
      __builtin_memcpy(to, &value, sizeof(value));
    }
  }
}

}  // namespace
}  // namespace kvasir::KVASIR_ISA
