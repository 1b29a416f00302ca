// The oracle itself, against values worked out by hand; everything else is tested against the oracle.
#include "kernels/reference.h"

#include <gmock/gmock.h>

#include <cmath>

#include "kernels/device.h"
#include "kernels/rng.h"

namespace kvasir {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::HasSubstr;

HostMatrix Matrix(const std::vector<float>& values, int64_t rows, int64_t cols, std::string name = "w") {
  return {values.data(), DType::kF32, rows, cols, std::move(name)};
}

TEST(ReferenceTest, PacksMatricesUnderOneAnother) {
  const auto device = MakeReferenceDevice();
  const std::vector<float> a = {1, 2, 3, 4}, b = {5, 6};
  const HostMatrix parts[] = {Matrix(a, 2, 2), Matrix(b, 1, 2)};
  const Weight weight = device->PackLinear(parts, DType::kF32).value();
  EXPECT_EQ(weight.rows, 3);
  EXPECT_EQ(weight.cols, 2);
  const float in[] = {10, 1};
  float out[3];
  device->Linear(in, 1, weight, nullptr, out);
  EXPECT_THAT(out, ElementsAre(12, 34, 56));
  const std::vector<float> bias = {1, 1, 1};
  const HostMatrix bias_part = Matrix(bias, 1, 3);
  const Weight packed_bias = device->PackVector({&bias_part, 1}).value();
  device->Linear(in, 1, weight, &packed_bias, out);
  EXPECT_THAT(out, ElementsAre(13, 35, 57));
}

TEST(ReferenceTest, LinearRoundsInputsOfBFloat16WeightsOnly) {
  const auto device = MakeReferenceDevice();
  const std::vector<float> one = {1};
  const HostMatrix part = Matrix(one, 1, 1);
  const float in = 1.001f;  // between the bfloat16 numbers 1 and 1.0078125
  float out = 0;
  device->Linear(&in, 1, device->PackLinear({&part, 1}, DType::kBF16).value(), nullptr, &out);
  EXPECT_EQ(out, 1.0f);
  for (DType dtype : {DType::kF32, DType::kF16}) {
    device->Linear(&in, 1, device->PackLinear({&part, 1}, dtype).value(), nullptr, &out);
    EXPECT_EQ(out, 1.001f);
  }
}

TEST(ReferenceTest, RefusesWhatCannotBePacked) {
  const auto device = MakeReferenceDevice();
  EXPECT_FALSE(device->PackLinear({}, DType::kF32).ok());
  const std::vector<float> a = {1, 2, 3, 4};
  const HostMatrix parts[] = {Matrix(a, 2, 2, "q_proj"), Matrix(a, 1, 3, "k_proj")};
  const auto weight = device->PackLinear(parts, DType::kF32);
  EXPECT_EQ(weight.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(weight.status()), HasSubstr("k_proj"));
}

TEST(ReferenceTest, AllocationsAreZeroedAlignedAndBounded) {
  const auto device = MakeReferenceDevice();
  for (size_t bytes : {0, 1, 64, 1000}) {
    auto* p = static_cast<unsigned char*>(device->Allocate(bytes, "test").value());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 64, 0u);
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(p[i], 0);
    device->Free(p);
  }
  device->Free(nullptr);
  const auto too_much = device->Allocate(size_t{1} << 60, "the KV pool");
  EXPECT_EQ(too_much.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(too_much.status()), HasSubstr("the KV pool"));
}

TEST(ReferenceTest, EmbedGatherNormAndSilu) {
  const auto device = MakeReferenceDevice();
  const std::vector<float> table = {0, 1, 10, 11, 20, 21};
  const Weight embedding = device->PackEmbedding(Matrix(table, 3, 2), DType::kBF16).value();
  const int32_t ids[] = {2, 0, 2};
  float out[6];
  device->Embed(embedding, ids, 1, out);
  EXPECT_THAT(out, ElementsAre(20, 21, 0, 1, 20, 21));
  float gathered[2];
  const int32_t row = 1;
  device->GatherRows(out, {&row, 1}, 2, gathered);
  EXPECT_THAT(gathered, ElementsAre(0, 1));

  const std::vector<float> ones = {1, 1};
  const HostMatrix part = Matrix(ones, 1, 2);
  float residual[] = {3, 4};
  const Weight weight = device->PackVector({&part, 1}).value();
  device->AddNorm(residual, nullptr, 1, {.weight = &weight, .eps = 0}, 1, 2, gathered);
  EXPECT_THAT(gathered, ElementsAre(FloatEq(3 / std::sqrt(12.5f)), FloatEq(4 / std::sqrt(12.5f))));

  const float gate_up[] = {0, std::log(3.0f), 5, 2};  // silu(0) = 0; silu(ln 3) = 0.75 ln 3
  device->Activate(Activation::kSilu, true, gate_up, 1, 2, gathered);
  EXPECT_THAT(gathered, ElementsAre(0, FloatEq(1.5f * std::log(3.0f))));
}

TEST(ReferenceTest, RopeAndAttentionOfTwoTokens) {
  const auto device = MakeReferenceDevice();
  const KvLayout layout = {DType::kF32, 4, 1, 1, 2};
  std::vector<float> pages(layout.block_bytes() / 4, -1.0f);
  const uint32_t block = 0;
  const SequenceTable table = {&block, 2, nullptr};
  const PagedKv kv = {reinterpret_cast<std::byte*>(pages.data()), layout.block_bytes(), layout, {&table, 1}};
  const SequenceSlice slice = {0, 2, 0};
  // Position 1 turns by a quarter: (x, y) -> (-y, x).
  const float cos[] = {1, 0}, sin[] = {0, 1};
  const float qkv[] = {1, 0, 1, 0, 7, 8,   // token 0: q, k, v
                       0, 2, 3, 0, 9, 6};  // token 1: q -> (-2, 0), k -> (0, 3)
  const int32_t positions[] = {0, 1};
  float q[4];
  device->RopeAppend(qkv, positions, {cos, sin, 2, 2}, 1, 0, {&slice, 1}, kv, q);
  EXPECT_THAT(q, ElementsAre(1, 0, -2, 0));
  EXPECT_THAT(std::vector<float>(pages.begin(), pages.begin() + 5), ElementsAre(1, 0, 0, 3, -1));  // plain [slot][head_dim]
  EXPECT_THAT(std::vector<float>(pages.begin() + 16, pages.begin() + 21), ElementsAre(7, 8, 9, 6, -1));
  float out[4];
  device->Attention(q, 0, {1, 1, 0}, {&slice, 1}, kv, out);
  const float w = 1 / (1 + std::exp(-2.0f));  // scores of token 1: -2 and 0
  EXPECT_THAT(out, ElementsAre(7, 8, FloatEq(7 * (1 - w) + 9 * w), FloatEq(8 * (1 - w) + 6 * w)));
  device->Attention(q, 0, {1, 1, 1}, {&slice, 1}, kv, out);
  EXPECT_THAT(out, ElementsAre(7, 8, 9, 6));
}

TEST(ReferenceTest, DrawWalksTheTokensByRisingId) {
  // Two even tokens: below one half gives the first.
  const float logits[] = {0, -1e30f, 0};
  SamplingParams params;
  int first = 0;
  for (uint64_t counter = 0; counter < 100; ++counter) {
    params.seed = 42;
    SampleResult result;
    ReferenceSample(logits, 3, {&params, {}, {}, {}, 0, counter}, result);
    EXPECT_EQ(result.token, UniformDouble(42, 0, counter) < 0.5 ? 0 : 2);
    first += result.token == 0;
  }
  EXPECT_GT(first, 30);
  EXPECT_LT(first, 70);
}

}  // namespace
}  // namespace kvasir
