// Rotary frequencies against values computed by transformers 5.23 (LlamaConfig, ROPE_INIT_FUNCTIONS, float32).
#include "models/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kvasir {
namespace {

constexpr int kSampled[7] = {0, 1, 20, 30, 35, 40, 63};

Rope MakeRope(RopeScaling scaling, double theta) {
  return {.theta = theta, .rotary_dim = 128, .scaling = std::move(scaling)};
}

void ExpectFrequencies(const std::vector<double>& mine, const double (&golden)[7]) {
  ASSERT_EQ(mine.size(), 64u);
  for (int i = 0; i < 7; ++i) EXPECT_NEAR(mine[kSampled[i]] / golden[i], 1.0, 5e-6) << kSampled[i];
}

TEST(Rope, Llama3) {
  const Rope rope = MakeRope({.kind = RopeScaling::Kind::kLlama3,
                              .factor = 8.0,
                              .low_freq_factor = 1.0,
                              .high_freq_factor = 4.0,
                              .original_max_position = 8192},
                             500000.0);
  ExpectFrequencies(RopeFrequencies(rope, 131072),
                    {1, 0.814617217, 0.0165604409, 0.00137189368, 9.55621217e-05, 3.42810235e-05, 3.06892588e-07});
}

TEST(Rope, Linear) {
  const Rope rope = MakeRope({.kind = RopeScaling::Kind::kLinear, .factor = 4.0, .original_max_position = 4096}, 10000.0);
  ExpectFrequencies(RopeFrequencies(rope, 4096),
                    {0.25, 0.216491088, 0.0140585322, 0.00333380373, 0.00162345415, 0.000790569466, 2.88695483e-05});
}

TEST(Rope, DynamicBeyondTheOriginalLength) {
  const Rope rope = MakeRope({.kind = RopeScaling::Kind::kDynamic, .factor = 4.0, .original_max_position = 4096}, 10000.0);
  ExpectFrequencies(RopeFrequencies(rope, 16384),
                    {1, 0.831415951, 0.0249096267, 0.00393143203, 0.00156186172, 0.000620489416, 8.88293835e-06});
}

TEST(Rope, DynamicWithin) {
  const Rope rope = MakeRope({.kind = RopeScaling::Kind::kDynamic, .factor = 4.0, .original_max_position = 4096}, 10000.0);
  ExpectFrequencies(RopeFrequencies(rope, 100),
                    {1, 0.865964353, 0.0562341288, 0.0133352149, 0.00649381662, 0.00316227786, 0.000115478193});
}

TEST(Rope, DynamicDependsOnTheModelLengthOnly) {
  const Rope rope = MakeRope({.kind = RopeScaling::Kind::kDynamic, .factor = 4.0, .original_max_position = 4096}, 10000.0);
  EXPECT_EQ(RopeFrequencies(rope, 4096), RopeFrequencies(rope, 100));
  EXPECT_EQ(RopeFrequencies(rope, 4096), RopeFrequencies(MakeRope({}, 10000.0), 4096));
  EXPECT_NE(RopeFrequencies(rope, 4097), RopeFrequencies(rope, 4096));
}

TEST(Rope, TablesAreExactAtAnyStart) {
  const std::vector<double> frequencies = RopeFrequencies(MakeRope({}, 10000.0), 4096);
  std::vector<float> cos(300 * 64), sin(300 * 64), cos_part(100 * 64), sin_part(100 * 64);
  FillRope(frequencies, 1.0, 0, 300, cos.data(), sin.data());
  FillRope(frequencies, 1.0, 200, 100, cos_part.data(), sin_part.data());
  for (int i = 0; i < 100 * 64; ++i) {
    EXPECT_EQ(cos[200 * 64 + i], cos_part[i]);
    EXPECT_EQ(sin[200 * 64 + i], sin_part[i]);
  }
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(cos[i], 1.0f);
    EXPECT_EQ(sin[i], 0.0f);
    EXPECT_EQ(cos[64 + i], static_cast<float>(std::cos(frequencies[i])));
  }
}

}  // namespace
}  // namespace kvasir
