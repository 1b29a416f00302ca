// Quantised linear layers: what codes mean, every ISA and CUDA against the reference, and the same bits alone, batched and on any
// number of threads.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "kernels/cpu/cpu_device.h"
#include "kernels/rng.h"
#include "tests/kernels/kv_fixture.h"

namespace kvasir {
namespace {

std::vector<float> Randoms(Rng& rng, int64_t n, float spread) {
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = float(rng.Uniform() * 2 - 1) * spread;
  return x;
}

constexpr QuantFormat kFormats[] = {{QuantFormat::Kind::kInt8, 32}, {QuantFormat::Kind::kInt8, 128},
                                    {QuantFormat::Kind::kInt8, 0},  {QuantFormat::Kind::kInt4, 32},
                                    {QuantFormat::Kind::kInt4, 64}, {QuantFormat::Kind::kInt4, 128},
                                    {QuantFormat::Kind::kFp8, 0},   {QuantFormat::Kind::kFp8, 128}};

TEST(QuantTest, NamesAreReadBack) {
  EXPECT_FALSE(*ParseQuantFormat("none"));
  EXPECT_EQ(*ParseQuantFormat("int8"), (QuantFormat{QuantFormat::Kind::kInt8, 0}));
  EXPECT_EQ(*ParseQuantFormat("int4"), (QuantFormat{QuantFormat::Kind::kInt4, 64}));
  for (const QuantFormat& format : kFormats) EXPECT_EQ(*ParseQuantFormat(Name(format)), format) << Name(format);
  for (const char* wrong :
       {"", "int3", "int8:", "int8:16", "int4:channel", "INT8", "int8:32:32", "int4:-32", "fp8:16", "mxfp4"}) {
    const auto format = ParseQuantFormat(wrong);
    ASSERT_FALSE(format.ok()) << wrong;
    EXPECT_NE(Message(format.status()).find("supported: none, int8, int4"), std::string::npos);
  }
}

TEST(QuantTest, CodesAreTheNearest) {
  Rng rng(1);
  for (int round = 0; round < 200; ++round) {
    const int64_t count = rng.Between(1, 130);
    const auto weights = Randoms(rng, count, float(std::pow(10.0, rng.Uniform() * 6 - 4)));
    std::vector<int8_t> codes(weights.size());
    for (const auto kind : {QuantFormat::Kind::kInt8, QuantFormat::Kind::kInt4}) {
      const QuantGroup group = QuantizeGroup(kind, weights.data(), count, codes.data());
      const double scale = F16ToF32(group.scale), low = F16ToF32(group.low);
      const bool int8 = kind == QuantFormat::Kind::kInt8;
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_GE(codes[i], int8 ? -127 : 0);
        ASSERT_LE(codes[i], int8 ? 127 : 15);
        // Half a step, and what rounding scale and low to float16 takes away at the ends.
        const double slack = (int8 ? 127 : 15) * (scale * 0x1p-11 + 0x1p-25) + std::abs(low) * 0x1p-11 + 0x1p-25;
        ASSERT_NEAR(scale * codes[i] + low, weights[i], scale / 2 + slack) << "round " << round;
      }
    }
  }
  std::vector<int8_t> codes(3);
  const float zeros[3] = {0, 0, 0};
  EXPECT_EQ(QuantizeGroup(QuantFormat::Kind::kInt8, zeros, 3, codes.data()).scale, 0);
  EXPECT_EQ(codes[0], 0);
}

TEST(QuantTest, Fp8IsTheNearestAndTiesAreEven) {
  for (int code = 0; code < 256; ++code) {
    const float value = Fp8E4M3ToF32(uint8_t(code));
    if (!std::isnan(value)) {
      ASSERT_EQ(F32ToFp8E4M3(value), code);
    }
  }
  // Between neighbours a and b: what lies nearer, and from the middle the even code.
  for (int code = 0; code < 0x7e; ++code) {
    const double a = Fp8E4M3ToF32(uint8_t(code)), b = Fp8E4M3ToF32(uint8_t(code + 1)), middle = (a + b) / 2;
    ASSERT_EQ(F32ToFp8E4M3(float(middle)), code % 2 == 0 ? code : code + 1) << code;
    ASSERT_EQ(F32ToFp8E4M3(std::nextafterf(float(middle), 0)), code);
    ASSERT_EQ(F32ToFp8E4M3(std::nextafterf(float(-middle), -1000)), 0x80 | (code + 1));
  }
  EXPECT_EQ(F32ToFp8E4M3(464), 0x7e);
  for (const float beyond : {464.001f, INFINITY, NAN}) EXPECT_EQ(F32ToFp8E4M3(beyond), 0x7f);
  uint8_t codes[3];
  const float weights[] = {-0.7f, 0.35f, 0}, zeros[] = {0, 0, 0};
  EXPECT_FLOAT_EQ(QuantizeFp8Group(weights, 3, codes), 0.7f / 448);
  EXPECT_EQ(codes[0], 0xfe);
  EXPECT_EQ(codes[1], 0x76);
  EXPECT_EQ(QuantizeFp8Group(zeros, 3, codes), 0);
  EXPECT_EQ(codes[0], 0);
}

TEST(QuantTest, BlocksOfActivations) {
  int8_t codes[kQuantBlock];
  const float x[] = {0.5f, -1.27f, 0.005f, 1.0f};
  EXPECT_FLOAT_EQ(QuantizeBlock(x, 4, codes), 0.01f);
  EXPECT_EQ(codes[0], 50);
  EXPECT_EQ(codes[1], -127);
  EXPECT_EQ(codes[31], 0);
  const float bad[] = {1, NAN, 2}, endless[] = {INFINITY, 1};
  EXPECT_TRUE(std::isnan(QuantizeBlock(bad, 3, codes)));
  EXPECT_TRUE(std::isnan(QuantizeBlock(endless, 2, codes)));
  const float tiny[] = {1e-44f};
  EXPECT_EQ(QuantizeBlock(tiny, 1, codes), 0);
}

class QuantOnDevice : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Device> Make(int threads) { return testing::MakeDevice({GetParam(), threads}); }
};

std::vector<float> RunLinear(Device& device, const std::vector<float>& weights, const std::vector<float>& bias, int64_t outs,
                             int64_t k, DType dtype, QuantFormat quant, const std::vector<float>& in) {
  const HostMatrix matrix = {weights.data(), DType::kF32, outs, k, "w"}, vector = {bias.data(), DType::kF32, 1, outs, "b"};
  const Weight weight = *device.PackLinear({&matrix, 1}, dtype, quant), b = *device.PackVector({&vector, 1});
  const int64_t rows = int64_t(in.size()) / k;
  auto* x = static_cast<float*>(*device.Allocate(in.size() * 4, "x"));
  auto* y = static_cast<float*>(*device.Allocate(size_t(rows * outs) * 4, "y"));
  device.CopyToDevice(x, in.data(), in.size() * 4);
  device.Linear(x, int(rows), weight, &b, y);
  std::vector<float> out(static_cast<size_t>(rows * outs));
  device.CopyToHost(out.data(), y, out.size() * 4);
  return out;
}

TEST_P(QuantOnDevice, LinearIsThatOfTheReferenceInEveryShape) {
  const auto reference = MakeReferenceDevice(), one = Make(1), three = Make(3);
  Rng rng(2);
  for (int round = 0; round < (IsEmulated(*one) ? 36 : 60); ++round) {
    const QuantFormat quant = kFormats[round % std::size(kFormats)];
    const int64_t outs = rng.Between(1, 100), k = rng.Chance(0.5) ? rng.Between(1, 300) : 32 * rng.Between(1, 12);
    const int64_t rows = round % 3 == 0 ? rng.Between(1, 130) : rng.Between(1, 14);
    const DType dtype = DType(rng.Below(3));
    SCOPED_TRACE(fmt::format("round {}: {} {} rows {} outs {} k {}", round, Name(quant), Name(dtype), rows, outs, k));
    const auto weights = Randoms(rng, outs * k, 0.3f), bias = Randoms(rng, outs, 1), in = Randoms(rng, rows * k, 2);
    const auto want = RunLinear(*reference, weights, bias, outs, k, dtype, quant, in);
    const auto got = RunLinear(*one, weights, bias, outs, k, dtype, quant, in);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5 * (1 + std::abs(want[i]))) << i;
    const auto threads = RunLinear(*three, weights, bias, outs, k, dtype, quant, in);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(threads[i])) << i;
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<float> alone(in.begin() + row * k, in.begin() + (row + 1) * k);
      const auto single = RunLinear(*one, weights, bias, outs, k, dtype, quant, alone);
      for (int64_t j = 0; j < outs; ++j)
        ASSERT_EQ(std::bit_cast<uint32_t>(single[j]), std::bit_cast<uint32_t>(got[row * outs + j])) << "row " << row << " alone";
    }
  }
}

TEST_P(QuantOnDevice, RowsAreQuantisedAsDefined) {
  const CpuKernels* kernels = KernelsFor(GetParam());
  if (kernels == nullptr) GTEST_SKIP() << "of the CPU's kernels only; EveryShape compares the products of other devices";
  Rng rng(3);
  for (int round = 0; round < 100; ++round) {
    const int64_t k = rng.Between(1, 200), blocks = (k + kQuantBlock - 1) / kQuantBlock;
    auto in = Randoms(rng, k, float(std::pow(10.0, rng.Uniform() * 12 - 6)));
    if (round % 10 == 0) in[rng.Below(in.size())] = NAN;
    if (round % 10 == 1) in[rng.Below(in.size())] = -INFINITY;
    if (round % 10 == 2) std::fill(in.begin(), in.end(), 0.0f);
    const int64_t stride = rng.Between(1, 3);
    std::vector<QuantBlock> row(static_cast<size_t>(blocks * stride));
    std::vector<float> sums(static_cast<size_t>(blocks * stride), 7);
    kernels->gemm->quant->quantize_row(in.data(), k, 2, stride, row.data(), sums.data());
    double group_sum = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      int8_t want[kQuantBlock];
      const float scale =
          QuantizeBlock(in.data() + b * kQuantBlock, int(std::min<int64_t>(kQuantBlock, k - b * kQuantBlock)), want);
      if (std::isnan(scale)) {
        ASSERT_TRUE(std::isnan(row[b * stride].scale)) << round;
        group_sum = NAN;
        continue;
      }
      ASSERT_EQ(std::bit_cast<uint32_t>(scale), std::bit_cast<uint32_t>(row[b * stride].scale)) << round;
      int sum = 0;
      for (int i = 0; i < kQuantBlock; ++i) {
        ASSERT_EQ(row[b * stride].codes[i], want[i]) << "round " << round << " block " << b << " at " << i;
        sum += want[i];
      }
      ASSERT_EQ(row[b * stride].correction, -128 * sum);
      group_sum = (b % 2 == 0 ? 0 : group_sum) + double(scale) * sum;
      if (b % 2 == 0 && b + 1 < blocks) continue;
      ASSERT_EQ(std::isnan(sums[b / 2 * stride]), std::isnan(group_sum));
      if (!std::isnan(group_sum)) {
        ASSERT_NEAR(sums[b / 2 * stride], group_sum, 1e-5 * std::abs(group_sum) + 1e-6 * scale);
      }
    }
  }
}

// Runs a weight of codes, without bias.
std::vector<float> RunCodes(Device& device, const HostMatrix& matrix, const std::vector<float>& in) {
  const Weight weight = *device.PackLinear({&matrix, 1}, DType::kBF16, matrix.quant);
  const int64_t rows = int64_t(in.size()) / matrix.cols;
  auto* x = static_cast<float*>(*device.Allocate(in.size() * 4, "x"));
  auto* y = static_cast<float*>(*device.Allocate(size_t(rows * matrix.rows) * 4, "y"));
  device.CopyToDevice(x, in.data(), in.size() * 4);
  device.Linear(x, int(rows), weight, nullptr, y);
  std::vector<float> out(static_cast<size_t>(rows * matrix.rows));
  device.CopyToHost(out.data(), y, out.size() * 4);
  return out;
}

TEST_P(QuantOnDevice, EveryFp8CodeIsDecoded) {
  const auto device = Make(1), reference = MakeReferenceDevice();
  std::vector<uint8_t> codes(256 * 2);
  for (int i = 0; i < 256; ++i) codes[size_t(2 * i)] = uint8_t(i), codes[size_t(2 * i + 1)] = uint8_t(255 - i);
  const std::vector<float> scales(256, 0.5f);
  const HostMatrix matrix = {codes.data(), DType::kF32, 256, 2, "w", {QuantFormat::Kind::kFp8, 0}, scales.data()};
  const std::vector<float> in = {1, 0, 0, 1};  // each column alone; zero times NaN is NaN
  for (Device* each : {device.get(), reference.get()}) {
    const auto out = RunCodes(*each, matrix, in);
    for (int i = 0; i < 256; ++i) {
      const float first = Fp8E4M3ToF32(uint8_t(i)), second = Fp8E4M3ToF32(uint8_t(255 - i));
      if (std::isnan(first) || std::isnan(second)) {
        ASSERT_TRUE(std::isnan(out[size_t(i)]) && std::isnan(out[size_t(256 + i)])) << i;
      } else {
        ASSERT_EQ(out[size_t(i)], first / 2) << i;
        ASSERT_EQ(out[size_t(256 + i)], second / 2) << i;
      }
    }
  }
}

// The same bits as a bfloat16 weight of the values it stands for.
TEST_P(QuantOnDevice, Mxfp4IsTheBfloat16WeightItStandsFor) {
  const auto one = Make(1), three = Make(3), reference = MakeReferenceDevice();
  Rng rng(5);
  for (int round = 0; round < (IsEmulated(*one) ? 10 : 30); ++round) {
    const int64_t outs = rng.Between(1, 100), k = round % 3 == 0 ? rng.Between(1, 200) : 32 * rng.Between(1, 20);
    const int64_t rows = round % 2 == 0 ? rng.Between(1, 120) : rng.Between(1, 13), groups = (k + 31) / 32;
    SCOPED_TRACE(fmt::format("round {}: rows {} outs {} k {}", round, rows, outs, k));
    std::vector<uint8_t> codes(static_cast<size_t>(outs * k));
    std::vector<float> scales(static_cast<size_t>(outs * groups)), values(codes.size());
    for (float& scale : scales) scale = std::ldexp(1.0f, int(rng.Between(-30, -2)));
    if (round % 5 == 0) scales[0] = 0x1p-127f;  // as good as zero
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = uint8_t(rng.Below(16));
      const float scale = scales[i / size_t(k) * size_t(groups) + i % size_t(k) / 32];
      values[i] = scale < 0x1p-126f ? 0 : scale * Fp4E2M1ToF32(codes[i]);
    }
    const HostMatrix coded = {codes.data(), DType::kF32, outs, k, "w", {QuantFormat::Kind::kMxfp4, 32}, scales.data()};
    const HostMatrix plain = {values.data(), DType::kF32, outs, k, "w"};
    const auto in = Randoms(rng, rows * k, 2);
    const auto got = RunCodes(*one, coded, in), want = RunCodes(*one, plain, in), threads = RunCodes(*three, coded, in);
    const auto exact = RunCodes(*reference, coded, in);
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i] + 0.0f), std::bit_cast<uint32_t>(want[i] + 0.0f)) << i;
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(threads[i])) << i;
      ASSERT_NEAR(got[i], exact[i], 1e-4 * (1 + std::abs(exact[i]))) << i;
    }
  }
}

TEST_P(QuantOnDevice, Mxfp4ScalesThatDoNotFitAreRefused) {
  const uint8_t codes[32] = {};
  for (Device* device : {Make(1).release(), MakeReferenceDevice().release()}) {
    for (const float scale : {0.0f, 3.0f, -1.0f, NAN, INFINITY, 0x1p126f}) {
      const HostMatrix matrix = {codes, DType::kF32, 1, 32, "w", {QuantFormat::Kind::kMxfp4, 32}, &scale};
      const auto weight = device->PackLinear({&matrix, 1}, DType::kBF16, matrix.quant);
      ASSERT_FALSE(weight.ok()) << scale;
      EXPECT_NE(Message(weight.status()).find("'w' has the mxfp4 scale"), std::string::npos);
    }
    const float values[32] = {};
    const HostMatrix plain = {values, DType::kF32, 1, 32, "w"};
    EXPECT_FALSE(device->PackLinear({&plain, 1}, DType::kBF16, {QuantFormat::Kind::kMxfp4, 32}).ok());
    delete device;
  }
}

// One bad activation makes its own row bad, and no other.
TEST_P(QuantOnDevice, NotFiniteStaysInItsRow) {
  const auto device = Make(2);
  Rng rng(4);
  const int64_t outs = 40, k = 96;
  const auto weights = Randoms(rng, outs * k, 1), bias = Randoms(rng, outs, 1);
  auto in = Randoms(rng, 3 * k, 1);
  in[k + 50] = INFINITY;
  for (const QuantFormat& quant : kFormats) {
    const auto out = RunLinear(*device, weights, bias, outs, k, DType::kF32, quant, in);
    for (int64_t j = 0; j < outs; ++j) {
      ASSERT_TRUE(std::isfinite(out[j]) && std::isfinite(out[2 * outs + j]));
      ASSERT_FALSE(std::isfinite(out[outs + j])) << Name(quant);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, QuantOnDevice, ::testing::ValuesIn(testing::DeviceNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kvasir
