// Stored matrices into packed ones: orders of rows, transposition, and MXFP4.
#include "models/tensor_rearrange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

namespace kvasir {
namespace {

using testing::ElementsAre;

template <typename T>
std::vector<T> Apply(const Rearrange& rearrange, const std::vector<T>& in, DType dtype, int64_t rows, int64_t cols,
                     size_t out_size) {
  std::vector<T> out(out_size);
  ApplyRearrange(rearrange, reinterpret_cast<const std::byte*>(in.data()), dtype, rows, cols,
                 reinterpret_cast<std::byte*>(out.data()));
  return out;
}

TEST(Rearrange, TransposesThenPicksRows) {
  const std::vector<float> in = {0, 1, 2, 10, 11, 12};
  EXPECT_THAT(Apply({.transpose = true}, in, DType::kF32, 2, 3, 6), ElementsAre(0, 10, 1, 11, 2, 12));
  EXPECT_THAT(Apply({.rows = {1, 0}}, in, DType::kF32, 2, 3, 6), ElementsAre(10, 11, 12, 0, 1, 2));
  EXPECT_THAT(Apply({.transpose = true, .rows = {2, 0}}, in, DType::kF32, 2, 3, 4), ElementsAre(2, 12, 0, 10));
  const std::vector<uint16_t> half = {1, 2, 3, 4};
  EXPECT_THAT(Apply({.transpose = true}, half, DType::kBF16, 2, 2, 4), ElementsAre(1, 3, 2, 4));
}

TEST(Rearrange, ReadsUnalignedData) {
  const std::vector<float> values = {0, 1, 2, 10, 11, 12};
  std::vector<std::byte> raw(1 + values.size() * 4);
  std::memcpy(raw.data() + 1, values.data(), values.size() * 4);
  std::vector<float> out(6);
  ApplyRearrange({.transpose = true}, raw.data() + 1, DType::kF32, 2, 3, reinterpret_cast<std::byte*>(out.data()));
  EXPECT_THAT(out, ElementsAre(0, 10, 1, 11, 2, 12));
}

TEST(Rearrange, AddsOneInFloat32) {
  const std::vector<uint16_t> in = {F32ToBF16(0.0078125f), F32ToBF16(-1.0f)};
  std::vector<float> out(2);
  ApplyRearrange({.plus_one = true}, reinterpret_cast<const std::byte*>(in.data()), DType::kBF16, 2, 1,
                 reinterpret_cast<std::byte*>(out.data()));
  EXPECT_THAT(out, ElementsAre(1.0078125f, 0.0f)) << "the sum does not fit bfloat16";
}

TEST(RowOrders, HalvesOfTheRotatedPart) {
  EXPECT_THAT(HalfSplitRows(2, 4, 0, 4), ElementsAre(0, 2, 1, 3, 4, 6, 5, 7));
  EXPECT_THAT(HalfSplitRows(1, 7, 1, 4), ElementsAre(0, 1, 3, 2, 4, 5, 6));
  std::vector<int32_t> order = HalfSplitRows(3, 10, 2, 8);
  std::sort(order.begin(), order.end());
  for (int i = 0; i < 30; ++i) EXPECT_EQ(order[i], i) << "every row once";
}

TEST(RowOrders, HeadwiseAndAlternating) {
  EXPECT_THAT(HeadwiseQkvRows(2, 1), ElementsAre(0, 3, 1, 4, 2, 5));
  EXPECT_THAT(AlternatingRows(3), ElementsAre(0, 2, 4, 1, 3, 5));
}

}  // namespace
}  // namespace kvasir
