#include "kernels/kv_quant.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/rng.h"

namespace kvasir {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Kept {
  KvScale scale;
  std::vector<uint8_t> codes;
  std::vector<float> values;
};
Kept Keep(KvQuant quant, const std::vector<float>& x) {
  Kept kept{{}, std::vector<uint8_t>(x.size()), {}};
  kept.scale = QuantizeKv(quant, x.data(), int(x.size()), kept.codes.data());
  for (const uint8_t code : kept.codes) kept.values.push_back(DequantizeKv(quant, code, kept.scale));
  return kept;
}

// Vectors of every size of values, as they come: around zero, far from it, with an outlier.
std::vector<float> RandomVector(Rng& rng) {
  std::vector<float> x(size_t(rng.Between(1, 200)));
  const float size = float(std::exp2(rng.Uniform() * 44 - 30)),
              offset = rng.Chance(0.3) ? size * float(rng.Uniform() * 20 - 10) : 0;
  for (float& v : x) v = offset + size * float(rng.Uniform() * 2 - 1);
  if (rng.Chance(0.2)) x[rng.Below(x.size())] *= 30;
  return x;
}

TEST(KvQuantTest, ErrorsAreHalfAScale) {
  Rng rng(1);
  for (int i = 0; i < 20000; ++i) {
    const std::vector<float> x = RandomVector(rng);
    for (const KvQuant quant : {KvQuant::kInt8, KvQuant::kInt4}) {
      const Kept kept = Keep(quant, x);
      const double scale = F16ToF32(kept.scale.scale), limit = quant == KvQuant::kInt8 ? 127 : 15;
      double range = 0;
      for (size_t j = 0; j < x.size(); ++j) {
        range = std::max(range, double{std::min(std::abs(x[j]), kKvLargest)} * (quant == KvQuant::kInt8 ? 1 : 2));
        if (std::abs(x[j]) > kKvLargest) continue;
        // The sums that make and read a code are rounded.
        const double rounding = 1e-6 * (std::abs(x[j]) + limit * scale);
        ASSERT_LE(std::abs(double{kept.values[j]} - x[j]), scale / 2 + rounding) << i << " " << Name(KvFormat(quant)) << " " << j;
      }
      // No scale is much larger than it has to be: float16 has 11 bits, and its smallest number is 2^-24.
      ASSERT_LE(scale, range / limit * 1.002 + 0x1p-23) << i;
    }
  }
}

TEST(KvQuantTest, Fp8IsTheNearestE4M3AndSaturates) {
  Rng rng(2);
  std::vector<float> x = {0,     -0.0f,    448,        449,     464,       465,        1e9f, -1e9f, kInf,
                          -kInf, 0x1p-10f, 0x1.8p-10f, 0x1p-9f, 0x1.fp-7f, 0x1.ffp-7f, 17,   19};
  for (int code = 0; code < 0x7e; ++code) {  // halfway between neighbours, and just beside
    const float middle = (Fp8E4M3ToF32(uint8_t(code)) + Fp8E4M3ToF32(uint8_t(code + 1))) / 2;
    for (const float v : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, kInf)}) x.insert(x.end(), {v, -v});
  }
  for (int i = 0; i < 100000; ++i) x.push_back(std::bit_cast<float>(uint32_t(rng.Below(1ull << 32))));
  const Kept kept = Keep(KvQuant::kFp8, x);
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      ASSERT_TRUE(std::isnan(kept.values[i]));
      continue;
    }
    const float held = std::clamp(x[i], -448.0f, 448.0f);
    ASSERT_EQ(kept.codes[i], F32ToFp8E4M3(held)) << x[i];
    ASSERT_EQ(std::signbit(kept.values[i]), std::signbit(x[i]));
    ASSERT_LE(std::abs(kept.values[i] - held), std::max(std::abs(held) * 0x1p-4f, 0x1p-10f)) << x[i];
  }
}

TEST(KvQuantTest, ZeroAndConstantVectors) {
  for (const KvQuant quant : {KvQuant::kFp8, KvQuant::kInt8, KvQuant::kInt4}) {
    for (const float value : Keep(quant, std::vector<float>(64)).values) ASSERT_EQ(value, 0);
  }
  for (const float c : {1.0f, -0.75f, 3.14159f, -1e-3f, 1e-9f, -1e-9f, 65000.0f, -65024.0f}) {
    const Kept eight = Keep(KvQuant::kInt8, std::vector<float>(64, c)), four = Keep(KvQuant::kInt4, std::vector<float>(64, c));
    const float float16_step = std::abs(c) * 0x1p-10f + 0x1p-24f;
    for (size_t i = 0; i < 64; ++i) {
      ASSERT_NEAR(eight.values[i], c, std::max(float16_step, F16ToF32(eight.scale.scale) / 2)) << c;
      ASSERT_NEAR(four.values[i], c, float16_step) << c;
    }
    if (F16ToF32(F32ToF16(c)) == c) {
      EXPECT_EQ(four.values[0], c);
    }
  }
}

TEST(KvQuantTest, WhatIsTooLargeSaturatesAndWhatIsNoNumberMakesAllNan) {
  for (const KvQuant quant : {KvQuant::kInt8, KvQuant::kInt4}) {
    std::vector<float> x(32, 1.0f);
    x[3] = 1e20f;
    x[4] = -1e20f;
    const Kept kept = Keep(quant, x);
    EXPECT_NEAR(kept.values[3], kKvLargest, 64);
    EXPECT_NEAR(kept.values[4], -kKvLargest, 64);
    for (const float value : kept.values) EXPECT_TRUE(std::isfinite(F16ToF32(F32ToF16(value)))) << "a float16 holds it";
    for (const float bad : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()}) {
      x[3] = bad;
      for (const float value : Keep(quant, x).values) ASSERT_TRUE(std::isnan(value));
    }
  }
}

TEST(KvQuantTest, Names) {
  for (const char* name : {"float32", "float16", "bfloat16", "fp8", "int8", "int4"}) EXPECT_EQ(Name(*ParseKvFormat(name)), name);
  EXPECT_EQ(Message(ParseKvFormat("int3").status()),
            "KV cache format 'int3' is not supported; supported: float32, float16, bfloat16, fp8, int8, int4");
}

// Llama-3-8B: 32 layers of 8 heads of 128.
TEST(KvQuantTest, BytesOfATokenAndPagesThatHoldTheirScales) {
  KvLayout layout = {.dtype = DType::kBF16, .num_layers = 32, .num_kv_heads = 8, .head_dim = 128};
  EXPECT_EQ(layout.token_bytes(), 131072u);
  layout.quant = KvQuant::kFp8;
  EXPECT_EQ(layout.token_bytes(), 65536u);
  layout.quant = KvQuant::kInt8;
  EXPECT_EQ(layout.token_bytes(), 67584u);
  layout.quant = KvQuant::kInt4;
  EXPECT_EQ(layout.token_bytes(), 34816u);
  for (const int block : {1, 3, 16, 256}) {
    for (const int d : {1, 7, 20, 64, 80, 128}) {
      layout = {.block_tokens = block, .num_layers = 1, .num_kv_heads = 1, .head_dim = d, .quant = KvQuant::kInt4};
      EXPECT_GE(layout.scales_offset(), size_t(block) * size_t((d + 1) / 2));
      EXPECT_GE(layout.page_bytes(), layout.scales_offset() + size_t(block) * sizeof(KvScale));
      EXPECT_EQ(layout.page_bytes() % 64, 0u);
    }
  }
}

}  // namespace
}  // namespace kvasir
