// Linear over weights of plain types on every device: against the reference in every shape, and the same bits for a row alone, in
// any batch and for any number of threads. Quantised weights have quant_test, the CPU's own layouts gemm_test.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "kernels/rng.h"
#include "tests/kernels/kv_fixture.h"

namespace kvasir::testing {
namespace {

std::vector<float> Randoms(Rng& rng, int64_t n, float spread) {
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = float(rng.Uniform() * 2 - 1) * spread;
  return x;
}

class LinearTest : public ::testing::TestWithParam<std::string> {
 protected:
  // A device with weights made of two parts of other types, packed once.
  struct Layer {
    std::unique_ptr<Device> device;
    Weight weight, bias;
  };
  Layer Make(int threads, DType dtype, const std::vector<float>& values, const std::vector<float>& bias, int64_t k,
             bool reference = false) const {
    Layer layer = {reference ? MakeReferenceDevice() : MakeDevice({GetParam(), threads}), {}, {}};
    const int64_t outs = int64_t(bias.size()), first = outs / 3;
    std::vector<uint16_t> halves;
    for (int64_t i = 0; i < first * k; ++i) halves.push_back(F32ToBF16(values[size_t(i)]));
    const HostMatrix parts[] = {{halves.data(), DType::kBF16, first, k, "first"},
                                {values.data() + first * k, DType::kF32, outs - first, k, "rest"}};
    layer.weight = *layer.device->PackLinear(first > 0 ? std::span(parts) : std::span(parts).subspan(1), dtype);
    const HostMatrix vector = {bias.data(), DType::kF32, 1, outs, "bias"};
    layer.bias = *layer.device->PackVector({&vector, 1});
    return layer;
  }

  static std::vector<float> Run(const Layer& layer, std::span<const float> in, bool biased) {
    Device& device = *layer.device;
    const int64_t rows = int64_t(in.size()) / layer.weight.cols, outs = layer.weight.rows;
    auto* const x = static_cast<float*>(*device.Allocate(in.size_bytes(), "x"));
    auto* const y = static_cast<float*>(*device.Allocate(size_t(rows * outs) * 4, "y"));
    device.CopyToDevice(x, in.data(), in.size_bytes());
    device.Linear(x, int(rows), layer.weight, biased ? &layer.bias : nullptr, y);
    std::vector<float> out(static_cast<size_t>(rows * outs));
    device.CopyToHost(out.data(), y, out.size() * 4);
    device.Free(x);
    device.Free(y);
    return out;
  }
};

void ExpectBits(std::span<const float> got, std::span<const float> want, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i])) << what << ", element " << i;
}

TEST_P(LinearTest, IsThatOfTheReferenceAndOneAnswerInEveryBatch) {
  Rng rng(12);
  constexpr int kRowCounts[] = {1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 130};
  for (int round = 0; round < 30; ++round) {
    const DType dtype = DType(round % 3);
    // Also longer than one chunk of what a device sums at a time.
    const int64_t outs = rng.Between(1, 150), k = round % 5 == 0 ? rng.Between(500, 2100) : rng.Between(1, 300);
    const int rows = round % 4 == 0 ? 130 : kRowCounts[rng.Below(std::size(kRowCounts))];
    const bool biased = rng.Chance(0.5);
    SCOPED_TRACE(fmt::format("round {}: {} rows {} outs {} k {} biased {}", round, Name(dtype), rows, outs, k, biased));
    const auto values = Randoms(rng, outs * k, 0.5f), bias = Randoms(rng, outs, 1), in = Randoms(rng, rows * k, 2);
    const Layer one = Make(1, dtype, values, bias, k), three = Make(3, dtype, values, bias, k),
                reference = Make(1, dtype, values, bias, k, true);
    if (IsEmulated(*one.device) && outs * k * rows > 12000000) continue;
    const auto want = Run(reference, in, biased), got = Run(one, in, biased);
    // CUDA rounds inputs to the type of 16-bit weights, also to float16.
    const double rounding = dtype == DType::kF16 && GetParam() == "cuda" ? 4e-4 : 0;
    const double tolerance = (3e-6 + rounding) * std::sqrt(double(k)) + 1e-5;
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << i;
    ExpectBits(Run(three, in, biased), got, "three threads");
    for (const int size : kRowCounts) {
      if (size >= rows) break;
      const int first = int(rng.Below(uint64_t(rows - size + 1)));
      ExpectBits(Run(one, std::span(in).subspan(size_t(first * k), size_t(size * k)), biased),
                 std::span(got).subspan(size_t(first * outs), size_t(size * outs)), "some rows");
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(LinearTest, NotFiniteStaysInItsRow) {
  Rng rng(13);
  const int64_t outs = 40, k = 200;
  const auto values = Randoms(rng, outs * k, 0.5f), bias = Randoms(rng, outs, 1);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const Layer layer = Make(2, dtype, values, bias, k);
    for (const int rows : {3, 20, 70}) {
      auto in = Randoms(rng, rows * k, 1);
      in[size_t(k + 77)] = NAN;
      in[size_t(2 * k - 1)] = INFINITY;
      const auto out = Run(layer, in, true);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < outs; ++j) ASSERT_EQ(std::isfinite(out[size_t(i * outs + j)]), i != 1) << i << " " << j;
      }
    }
  }
}

// Values far beyond float16 in one row, ordinary ones in its neighbours.
TEST_P(LinearTest, HugeActivationsKeepTheirDigits) {
  Rng rng(14);
  const int64_t outs = 17, k = 90;
  const int rows = 4;
  const auto values = Randoms(rng, outs * k, 0.5f), bias = Randoms(rng, outs, 0);
  auto in = Randoms(rng, rows * k, 1);
  for (int64_t j = 0; j < k; ++j) in[size_t(k + j)] *= 1e9f;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const Layer layer = Make(1, dtype, values, bias, k), reference = Make(1, dtype, values, bias, k, true);
    const auto got = Run(layer, in, false), want = Run(reference, in, false);
    for (size_t i = 0; i < got.size(); ++i) {
      const double scale = i / size_t(outs) == 1 ? 1e9 : 1;
      ASSERT_NEAR(got[i], want[i], scale * 5e-3) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, LinearTest, ::testing::ValuesIn(DeviceNames()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kvasir::testing
