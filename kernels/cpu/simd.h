// One vector of floats for the CPU kernels that are compiled once per ISA: 16 lanes with AVX-512, 8 with AVX2, 4 elsewhere.
// The compiler's vector types give + - * < and ?:, so only what they lack is here. Everything has internal linkage (see isa.h
// for why); include it only in sources compiled per ISA.
#pragma once

#include <stdint.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace kvasir::KVASIR_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
using Vec = __m512;
inline Vec Load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline void Store(float* p, Vec v) {
  _mm512_storeu_ps(p, v);
}
inline Vec Set(float x) {
  return _mm512_set1_ps(x);
}
inline Vec Fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Vec Max(Vec a, Vec b) {
  return _mm512_maskz_max_ps(0xffff, a, b);
}  // b when either is NaN
#elif defined(__AVX2__)
constexpr int kLanes = 8;
using Vec = __m256;
inline Vec Load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline void Store(float* p, Vec v) {
  _mm256_storeu_ps(p, v);
}
inline Vec Set(float x) {
  return _mm256_set1_ps(x);
}
inline Vec Fma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vec Max(Vec a, Vec b) {
  return _mm256_max_ps(a, b);
}
#else
constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
inline Vec Load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void Store(float* p, Vec v) {
  __builtin_memcpy(p, &v, sizeof(v));
}
inline Vec Set(float x) {
  return Vec{x, x, x, x};
}
inline Vec Fma(Vec a, Vec b, Vec c) {
  return a * b + c;
}
inline Vec Max(Vec a, Vec b) {
  return a > b ? a : b;
}
#endif

typedef int32_t IVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HVec __attribute__((vector_size(kLanes * 2)));

constexpr float kInfinity = __builtin_inff();

inline Vec Zero() {
  return Set(0.0f);
}
inline UVec SetBits(uint32_t x) {
  return UVec{} + x;
}

inline IVec LaneIndex() {
  IVec v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// The first `count` elements; zero in the lanes after them.
inline Vec LoadPart(const float* p, int64_t count) {
  alignas(64) float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return Load(lanes);
}
inline void StorePart(float* p, Vec v, int64_t count) {
  alignas(64) float lanes[kLanes];
  Store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// Lane i with lane i + half, then again: a fixed tree.
#if defined(__AVX2__)
inline float SumTree(__m256 a) {
  const __m128 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}
inline float MaxTree(__m256 a) {
  const __m128 b = _mm_max_ps(__builtin_shufflevector(a, a, 0, 1, 2, 3), __builtin_shufflevector(a, a, 4, 5, 6, 7));
  const __m128 c = _mm_max_ps(b, __builtin_shufflevector(b, b, 2, 3, 0, 1));
  return _mm_max_ps(c, __builtin_shufflevector(c, c, 1, 0, 3, 2))[0];
}
#endif
#if defined(__AVX512F__)
inline __m256 LowHalf(Vec v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
}
inline __m256 HighHalf(Vec v) {
  return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline float SumLanes(Vec v) {
  return SumTree(LowHalf(v) + HighHalf(v));
}
inline float MaxLanes(Vec v) {
  return MaxTree(_mm256_max_ps(LowHalf(v), HighHalf(v)));
}
#elif defined(__AVX2__)
inline float SumLanes(Vec v) {
  return SumTree(v);
}
inline float MaxLanes(Vec v) {
  return MaxTree(v);
}
#else
inline float SumLanes(Vec v) {
  return (v[0] + v[2]) + (v[1] + v[3]);
}
inline float MaxLanes(Vec v) {
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
#endif

// 2^x within 2 ulp for x in [-126, 127.5]; larger x as 127.5, smaller as -126; NaN stays NaN. x = n + f with f in [-1/2, 1/2];
// 2^f by a minimax polynomial (error 2e-9). The integer n comes out of the low mantissa bits of x + 1.5 * 2^23, biased by 127 for
// the exponent.
inline Vec Exp2Unchecked(Vec x) {
  const Vec magic = Set(12582912.0f + 127.0f);
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  const Vec two_n = (Vec)((UVec)shifted << 23);
  Vec y = Set(0x1.41fb62p-13f);
  y = Fma(y, f, Set(0x1.5f3e52p-10f));
  y = Fma(y, f, Set(0x1.3b2d4ep-7f));
  y = Fma(y, f, Set(0x1.c6aee8p-5f));
  y = Fma(y, f, Set(0x1.ebfbdcp-3f));
  y = Fma(y, f, Set(0x1.62e43p-1f));
  y = Fma(y, f, Set(1.0f));
  return y * two_n;
}

inline Vec Exp2(Vec x) {
  x = Max(Set(-126.0f), x);
  return Exp2Unchecked(x > Set(127.0f) ? Set(127.0f) : x);
}

// 2^x for x <= 0 that reaches zero: 0 for x < -126. NaN stays NaN.
inline Vec Exp2OfNegative(Vec x) {
  const Vec y = Exp2Unchecked(x);
  return x < Set(-126.0f) ? Zero() : y;
}

inline Vec Abs(Vec x) {
  return (Vec)((UVec)x & 0x7fffffffu);
}

// Within 2e-7 of the value: near zero a polynomial (1 - 2 / (1 + e^2x) would cancel), NaN stays NaN.
inline Vec Tanh(Vec x) {
  const Vec a = Abs(x), square = x * x;
  Vec y = Set(-0x1.8cc2a6p-8f);
  y = Fma(y, square, Set(0x1.57a13cp-6f));
  y = Fma(y, square, Set(-0x1.b91e24p-5f));
  y = Fma(y, square, Set(0x1.110e0ep-3f));
  y = Fma(y, square, Set(-0x1.555552p-2f));
  const Vec near = Fma(y * square, x, x);
  const Vec far = Set(1.0f) - Set(2.0f) / (Set(1.0f) + Exp2(a * Set(2.88539008177792681472f)));
  const Vec signed_far = (Vec)((UVec)far | ((UVec)x & 0x80000000u));
  return a < Set(0.625f) ? near : signed_far;
}

// kLanes pairs of bfloat16: the first and the second of each pair.
inline UVec LoadPairs(const uint16_t* p) {
  UVec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline Vec FirstOfPairs(UVec pairs) {
  return (Vec)(pairs << 16);
}
inline Vec SecondOfPairs(UVec pairs) {
  return (Vec)(pairs & 0xffff0000u);
}

// Round to nearest even, NaN kept NaN, as kvasir::F32ToBF16; the bits are in the low half of each lane.
inline UVec BF16Bits(Vec v) {
  const UVec bits = (UVec)v;
  const UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UVec quiet = (bits >> 16) | 0x40u;
  return v == v ? rounded : quiet;
}

#if !defined(__F16C__) && !defined(__AVX512F__)
// float16 by integers: shift the exponent by a multiplication, which also makes subnormals right.
inline Vec HalfToFloat(UVec half) {
  const UVec magnitude = (half & 0x7fffu) << 13;
  const Vec scaled = (Vec)magnitude * Set(0x1p112f);
  const UVec special = magnitude | 0x7f800000u;
  const UVec value = magnitude >= SetBits(0x7c00u << 13) ? special : (UVec)scaled;
  return (Vec)(value | ((half & 0x8000u) << 16));
}
#endif

inline Vec FromF16(HVec half) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, (__m256i)half);
#elif defined(__F16C__)
  return _mm256_cvtph_ps((__m128i)half);
#else
  return HalfToFloat(__builtin_convertvector(half, UVec));
#endif
}
inline Vec LoadF16(const uint16_t* p) {
  HVec half;
  __builtin_memcpy(&half, p, sizeof(half));
  return FromF16(half);
}

}  // namespace
}  // namespace kvasir::KVASIR_ISA
