// Attention on the emulated GPU under other orders of blocks, warps and copies: the same bits, so no barrier is missing that the
// order of warps could show.
#include <gtest/gtest.h>

#include "tests/kernels/kv_fixture.h"
#include "tests/simt/simt.h"

namespace kvasir::testing {
namespace {

std::vector<std::vector<float>> AttendTwice(const KvShape& shape, const std::vector<KvFixture::Feed>& first,
                                            const std::vector<KvFixture::Feed>& second) {
  const auto device = MakeCudaDevice().value();
  KvFixture fixture(*device, shape, {600, 90}, false, 3);
  auto out = fixture.Step(first);
  for (auto& part : fixture.Step(second)) out.push_back(std::move(part));
  return out;
}

TEST(AttentionOrder, ChangesNoBit) {
  const KvShape shapes[] = {{DType::kBF16, 16, 1, 2, 4, 40, 0},
                            {DType::kF16, 5, 1, 1, 3, 72, 70, 0, 3, true},
                            {DType::kBF16, 16, 1, 1, 18, 64, 0, 48},
                            {DType::kF32, 16, 1, 1, 2, 20, 0, 0, 0, true}};
  for (const KvShape& shape : shapes) {
    SCOPED_TRACE(shape.Describe());
    simt::Seed(0);
    const auto want = AttendTwice(shape, {{0, 580}, {1, 60}}, {{0, 1}, {1, 30}});
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      simt::Seed(seed);
      EXPECT_EQ(want, AttendTwice(shape, {{0, 580}, {1, 60}}, {{0, 1}, {1, 30}})) << "seed " << seed;
    }
    simt::Seed(0);
  }
}

}  // namespace
}  // namespace kvasir::testing
