#include <gmock/gmock.h>

#include "tests/kernels/kv_fixture.h"

namespace kvasir::testing {
namespace {

std::vector<float> Randoms(Rng& rng, size_t n, float spread) {
  std::vector<float> x(n);
  for (float& v : x) v = float(rng.Uniform() * 2 - 1) * spread;
  return x;
}

class FusedTest : public ::testing::TestWithParam<DeviceChoice> {
 protected:
  float* Upload(const std::vector<float>& x) {
    auto* p = static_cast<float*>(device_->Allocate(std::max<size_t>(1, x.size()) * 4, "test").value());
    device_->CopyToDevice(p, x.data(), x.size() * 4);
    return p;
  }
  std::vector<float> Download(const float* p, size_t n) {
    std::vector<float> x(n);
    device_->CopyToHost(x.data(), p, n * 4);
    return x;
  }
  Weight Vector(const std::vector<float>& x) {
    const HostMatrix m = {x.data(), DType::kF32, 1, int64_t(x.size()), "norm"};
    return device_->PackVector({&m, 1}).value();
  }

  std::unique_ptr<Device> device_ = MakeDevice(GetParam());
};

TEST_P(FusedTest, NormOfAHandMadeRow) {
  // mean square of (1 + 2, 3 + 1) is 12.5; eps 0.
  float* residual = Upload({1, 3});
  float* delta = Upload({2, 1});
  float* out = Upload({0, 0});
  const Weight weight = Vector({2, 10});
  device_->AddNorm(residual, delta, 1, {.weight = &weight, .eps = 0}, 1, 2, out);
  EXPECT_THAT(Download(residual, 2), ::testing::ElementsAre(3, 4));
  EXPECT_THAT(Download(out, 2),
              ::testing::ElementsAre(::testing::FloatEq(6 / std::sqrt(12.5f)), ::testing::FloatEq(40 / std::sqrt(12.5f))));
}

TEST_P(FusedTest, NormEqualsItsDefinition) {
  Rng rng(11);
  for (int width : {1, 3, 8, 15, 16, 17, 64, 100, 576, 2048}) {
    for (int rows : {1, 2, 9}) {
      for (bool with_delta : {false, true}) {
        const auto residual = Randoms(rng, size_t(rows) * width, 3), delta = Randoms(rng, size_t(rows) * width, 3);
        const auto weight = Randoms(rng, width, 2);
        float* r = Upload(residual);
        float* out = Upload(residual);
        const Weight vector = Vector(weight);
        device_->AddNorm(r, with_delta ? Upload(delta) : nullptr, 1, {.weight = &vector, .eps = 1e-5f}, rows, width, out);
        const auto sum = Download(r, residual.size()), got = Download(out, residual.size());
        for (int i = 0; i < rows; ++i) {
          double square_sum = 0;
          for (int j = 0; j < width; ++j) {
            const size_t at = size_t(i) * width + j;
            ASSERT_EQ(sum[at], with_delta ? residual[at] + delta[at] : residual[at]);
            square_sum += double(sum[at]) * sum[at];
          }
          for (int j = 0; j < width; ++j) {
            const double want = sum[size_t(i) * width + j] / std::sqrt(square_sum / width + 1e-5) * weight[j];
            ASSERT_NEAR(got[size_t(i) * width + j], want, 1e-6 * std::abs(want) + 1e-9) << width << " " << rows;
          }
        }
      }
    }
  }
}

TEST_P(FusedTest, SiluIsAccurateAndTheSameAtEveryPlace) {
  // Every value at every place in a row, so in every lane and in every kind of tail.
  std::vector<float> values;
  for (float x = -90; x <= 90; x += 0.37f) values.push_back(x);
  for (float x : {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-6f, -200.0f, 200.0f, 3e38f}) values.push_back(x);
  const int n = int(values.size());
  std::vector<float> first;
  for (int width : {n, n + 1, n + 13, n + 21}) {
    const int shift = width - n;
    std::vector<float> in(2 * size_t(width), 1.0f);
    for (int i = 0; i < n; ++i) in[shift + i] = values[i];
    float* out = Upload(std::vector<float>(width));
    device_->Activate(Activation::kSilu, true, Upload(in), 1, width, out);
    const auto got = Download(out, width);
    for (int i = 0; i < n; ++i) {
      const double x = values[i], want = x / (1 + std::exp(-x));
      // A float holds the exponent's argument to |x| * 2^-24, whatever follows.
      ASSERT_NEAR(got[shift + i], want, (1e-6 + 6e-8 * std::abs(x)) * std::abs(want) + 1e-35) << values[i];
      if (shift == 0) {
        first.push_back(got[i]);
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(got[shift + i]), std::bit_cast<uint32_t>(first[i])) << values[i] << " at " << shift + i;
      }
    }
  }
}

TEST_P(FusedTest, SiluOfManyRows) {
  Rng rng(12);
  for (int width : {1, 24, 5000}) {
    const int rows = 7;
    const auto in = Randoms(rng, size_t(rows) * 2 * width, 8);
    float* out = Upload(std::vector<float>(size_t(rows) * width));
    device_->Activate(Activation::kSilu, true, Upload(in), rows, width, out);
    const auto got = Download(out, size_t(rows) * width);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < width; ++j) {
        const double g = in[size_t(i) * 2 * width + j], u = in[size_t(i) * 2 * width + width + j],
                     want = g / (1 + std::exp(-g)) * u;
        ASSERT_NEAR(got[size_t(i) * width + j], want, 2e-6 * std::abs(want) + 1e-30);
      }
    }
  }
}

// Rotated q against the formula; rotated k and v by reading them back through attention with a single visible slot (v) and
// by comparing scores (k): with one slot the output is v itself.
TEST_P(FusedTest, RopeRotatesHalvesAndAppends) {
  Rng rng(13);
  struct Case {
    DType dtype;
    int head_dim, rotary_dim, block_tokens;
  };
  for (const Case c : {Case{DType::kF32, 16, 16, 16},
                       {DType::kBF16, 64, 64, 16},
                       {DType::kF16, 80, 32, 1},
                       {DType::kBF16, 5, 4, 3},
                       {DType::kBF16, 128, 128, 64},
                       {DType::kF32, 48, 0, 16}}) {
    SCOPED_TRACE(fmt::format("{} head_dim {} rotary {} block {}", Name(c.dtype), c.head_dim, c.rotary_dim, c.block_tokens));
    const int hq = 4, hkv = 2, rows = 5, d = c.head_dim, half = c.rotary_dim / 2, width = (hq + 2 * hkv) * d;
    std::vector<float> cos, sin;
    for (int p = 0; p < 50; ++p) {
      for (int i = 0; i < half; ++i) {
        const double angle = p * std::pow(10000.0, -double(i) / half);
        cos.push_back(float(std::cos(angle)));
        sin.push_back(float(std::sin(angle)));
      }
    }
    cos.push_back(0), sin.push_back(0);
    const auto qkv = Randoms(rng, size_t(rows) * width, 2);
    const std::vector<int32_t> positions = {3, 4, 5, 40, 41};
    const KvLayout layout = {c.dtype, c.block_tokens, 1, hkv, d};
    const int blocks = (rows + c.block_tokens - 1) / c.block_tokens;
    auto* base = static_cast<std::byte*>(device_->Allocate(layout.block_bytes() * blocks, "kv").value());
    std::vector<uint32_t> table(blocks);
    for (int i = 0; i < blocks; ++i) table[i] = blocks - 1 - i;
    const SequenceTable sequence = {table.data(), rows, nullptr};
    const PagedKv kv = {base, layout.block_bytes(), layout, {&sequence, 1}};
    const SequenceSlice slice = {0, rows, 0};
    float* q = Upload(std::vector<float>(size_t(rows) * hq * d));
    device_->RopeAppend(Upload(qkv), positions, {Upload(cos), Upload(sin), c.rotary_dim, 50}, hq, 0, {&slice, 1}, kv, q);

    const auto rotated = [&](const float* in, int row, int j) -> double {
      if (j >= 2 * half) return in[j];
      const int i = j % half;
      const double angle = positions[row] * std::pow(10000.0, -double(i) / half);
      return j < half ? in[i] * std::cos(angle) - in[i + half] * std::sin(angle)
                      : in[i + half] * std::cos(angle) + in[i] * std::sin(angle);
    };
    const auto got_q = Download(q, size_t(rows) * hq * d);
    for (int r = 0; r < rows; ++r) {
      for (int h = 0; h < hq; ++h) {
        for (int j = 0; j < d; ++j) {
          ASSERT_NEAR(got_q[(size_t(r) * hq + h) * d + j], rotated(&qkv[size_t(r) * width + h * d], r, j), 1e-5)
              << r << " " << h << " " << j;
        }
      }
    }
    // v: window 1, so a row sees its own slot only. k: unit queries and a scale that makes the softmax of two slots readable.
    float* out = Upload(std::vector<float>(size_t(rows) * hq * d));
    device_->Attention(q, 0, {hq, 1, 1}, {&slice, 1}, kv, out);
    const auto got_v = Download(out, size_t(rows) * hq * d);
    for (int r = 0; r < rows; ++r) {
      for (int h = 0; h < hq; ++h) {
        for (int j = 0; j < d; ++j) {
          const float v = RoundTo(c.dtype, qkv[size_t(r) * width + (hq + hkv + h / 2) * d + j]);
          ASSERT_NEAR(got_v[(size_t(r) * hq + h) * d + j], v, 2e-6);
        }
      }
    }
    for (int j = 0; j < d; ++j) {  // row 4 sees slots 3 and 4; q = unit vector j
      std::vector<float> unit(size_t(rows) * hq * d, 0.0f);
      for (int h = 0; h < hq; ++h) unit[(size_t(4) * hq + h) * d + j] = 1;
      device_->Attention(Upload(unit), 0, {hq, 1, 2}, {&slice, 1}, kv, out);
      const auto got = Download(out, size_t(rows) * hq * d);
      for (int h = 0; h < hq; ++h) {
        const int kh = h / 2;
        const auto k = [&](int r) { return rotated(&qkv[size_t(r) * width + (hq + kh) * d], r, j); };
        const auto v = [&](int r) { return double(RoundTo(c.dtype, qkv[size_t(r) * width + (hq + hkv + kh) * d + j])); };
        const double w = 1 / (1 + std::exp(k(3) - k(4))), want = v(3) * (1 - w) + v(4) * w;
        ASSERT_NEAR(got[(size_t(4) * hq + h) * d + j], want, c.dtype == DType::kF32 ? 1e-5 : 3e-2) << h << " " << j;
      }
    }
    device_->Free(base);
  }
}

TEST_P(FusedTest, RowsDoNotDependOnTheirBatch) {
  Rng rng(14);
  const int width = 331, rows = 40;
  const auto residual = Randoms(rng, size_t(rows) * width, 3), delta = Randoms(rng, size_t(rows) * width, 3);
  const Weight weight = Vector(Randoms(rng, width, 2));
  float* out = Upload(residual);
  device_->AddNorm(Upload(residual), Upload(delta), 1, {.weight = &weight}, rows, width, out);
  const auto want = Download(out, residual.size());
  for (int i = 0; i < rows; ++i) {
    float* r = Upload({residual.begin() + i * width, residual.begin() + (i + 1) * width});
    float* one = Upload(std::vector<float>(width));
    device_->AddNorm(r, Upload({delta.begin() + i * width, delta.begin() + (i + 1) * width}), 1, {.weight = &weight}, 1, width,
                     one);
    const auto got = Download(one, width);
    for (int j = 0; j < width; ++j) ASSERT_EQ(got[j], want[size_t(i) * width + j]) << i << " " << j;
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, FusedTest, ::testing::ValuesIn(AllDevices()), ChoiceName);

}  // namespace
}  // namespace kvasir::testing
