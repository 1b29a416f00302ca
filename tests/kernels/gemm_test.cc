// Linear on every ISA this machine has: against the definition in double, and bit for bit over row counts, tile shapes and
// threads.
#include "kernels/cpu/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/pack.h"
#include "kernels/device.h"

namespace kvasir {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

std::vector<float> Random(std::mt19937& rng, int64_t count, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return values;
}

float Rounded(float value, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return value;
    case DType::kF16:
      return F16ToF32(F32ToF16(value));
    case DType::kBF16:
      return BF16ToF32(F32ToBF16(value));
  }
  return 0;
}

// A packed weight with its memory.
struct Packed {
  std::vector<std::byte> memory;
  Weight weight;
};

Packed Pack(ThreadTeam& team, const std::vector<float>& values, int64_t n, int64_t k, DType dtype) {
  Packed packed;
  const size_t bytes = size_t(PanelsOf(n) * PanelBytes(k, dtype, {}));
  packed.memory.assign(bytes + 64, std::byte{0});
  void* at = packed.memory.data() + (64 - reinterpret_cast<uintptr_t>(packed.memory.data()) % 64);
  const HostMatrix matrix{values.data(), DType::kF32, n, k, "w"};
  PackPanels(team, {&matrix, 1}, dtype, {}, at);
  packed.weight = {dtype, n, k, at};
  return packed;
}

struct Case {
  std::string isa;
  DType dtype;
};

class GemmTest : public testing::TestWithParam<Case> {
 protected:
  const GemmKernels& kernels() { return *KernelsFor(GetParam().isa)->gemm; }

  std::vector<float> Linear(ThreadTeam& team, const std::vector<float>& in, int64_t rows, const Weight& weight,
                            const float* bias) {
    std::vector<float> out(rows * weight.rows + 1, 12345.0f);
    PanelLinear(kernels(), team, scratch_, in.data(), rows, weight, bias, out.data());
    EXPECT_EQ(out.back(), 12345.0f) << "wrote past the end";
    out.pop_back();
    return out;
  }

  void ExpectDefinition(std::mt19937& rng, ThreadTeam& team, int64_t m, int64_t n, int64_t k, bool with_bias) {
    SCOPED_TRACE(testing::Message() << "m " << m << " n " << n << " k " << k << " bias " << with_bias);
    const DType dtype = GetParam().dtype;
    const std::vector<float> in = Random(rng, m * k), w = Random(rng, n * k, 0.5f), bias = Random(rng, n);
    const Packed packed = Pack(team, w, n, k, dtype);
    const std::vector<float> out = Linear(team, in, m, packed.weight, with_bias ? bias.data() : nullptr);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = with_bias ? bias[j] : 0, magnitude = std::abs(sum);
        for (int64_t l = 0; l < k; ++l) {
          const double x = dtype == DType::kBF16 ? Rounded(in[i * k + l], dtype) : in[i * k + l];
          const double product = x * Rounded(w[j * k + l], dtype);
          sum += product;
          magnitude += std::abs(product);
        }
        ASSERT_NEAR(out[i * n + j], sum, 1e-30 + magnitude * double(k + 3) * 0x1p-24) << "row " << i << " column " << j;
      }
    }
  }

  GemmScratch scratch_;
};

TEST_P(GemmTest, AgreesWithTheDefinition) {
  std::mt19937 rng(20240501);
  for (int threads : {1, 2}) {
    ThreadTeam team(threads);
    for (const auto [m, n, k] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                    {1, 1, 2},
                                                                    {2, 1, 3},
                                                                    {1, 31, 1},
                                                                    {5, 32, 2},
                                                                    {3, 33, 1},
                                                                    {13, 65, 7},
                                                                    {12, 64, 64},
                                                                    {25, 172, 64},
                                                                    {7, 64, 172},
                                                                    {4, 96, 128},
                                                                    {3, 288, 288},
                                                                    {2, 768, 192},
                                                                    {9, 100, 768},
                                                                    {6, 40, 1024},
                                                                    {17, 34, 2048},
                                                                    {1, 17, 4097}}) {
      ExpectDefinition(rng, team, m, n, k, false);
      ExpectDefinition(rng, team, m, n, k, true);
    }
  }
}

TEST_P(GemmTest, AgreesWithTheDefinitionOnRandomShapes) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 rng(seed);
  ThreadTeam team(3);
  for (int round = 0; round < 25; ++round) {
    ExpectDefinition(rng, team, 1 + rng() % 40, 1 + rng() % 150, 1 + rng() % 300, rng() % 2);
  }
}

// The promise of device.h: a row's result is the same bits alone or among others, whatever the tiles and threads.
TEST_P(GemmTest, RowsAreBitIdenticalAloneAndBatched) {
  std::mt19937 rng(7);
  for (const auto [n, k] : std::vector<std::array<int64_t, 2>>{{1, 1}, {33, 31}, {64, 64}, {95, 172}, {160, 333}, {40, 1024}}) {
    ThreadTeam alone(1);
    const int64_t most = 70;
    const std::vector<float> in = Random(rng, most * k), w = Random(rng, n * k), bias = Random(rng, n);
    const Packed packed = Pack(alone, w, n, k, GetParam().dtype);
    std::vector<float> one_by_one(most * n);
    for (int64_t i = 0; i < most; ++i) {
      const std::vector<float> row(in.begin() + i * k, in.begin() + (i + 1) * k);
      const std::vector<float> out = Linear(alone, row, 1, packed.weight, bias.data());
      std::copy(out.begin(), out.end(), one_by_one.begin() + i * n);
    }
    for (int threads = 1; threads <= 4; ++threads) {
      ThreadTeam team(threads);
      for (int64_t m = 1; m <= most; ++m) {
        const std::vector<float> out = Linear(team, in, m, packed.weight, bias.data());
        ASSERT_EQ(std::memcmp(out.data(), one_by_one.data(), size_t(m * n) * sizeof(float)), 0)
            << "m " << m << " n " << n << " k " << k << " threads " << threads;
      }
    }
  }
}

TEST_P(GemmTest, NaNAndInfinityStayInTheirRow) {
  std::mt19937 rng(3);
  ThreadTeam team(2);
  const int64_t m = 14, n = 45, k = 33;
  std::vector<float> in = Random(rng, m * k);
  const Packed packed = Pack(team, Random(rng, n * k), n, k, GetParam().dtype);
  const std::vector<float> clean = Linear(team, in, m, packed.weight, nullptr);
  in[3 * k + 32] = std::numeric_limits<float>::quiet_NaN();
  in[9 * k] = std::numeric_limits<float>::infinity();
  const std::vector<float> out = Linear(team, in, m, packed.weight, nullptr);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (i == 3) {
        ASSERT_TRUE(std::isnan(out[i * n + j]));
      } else if (i == 9) {
        ASSERT_TRUE(std::isinf(out[i * n + j]));
      } else {
        ASSERT_EQ(out[i * n + j], clean[i * n + j]);
      }
    }
  }
}

TEST_P(GemmTest, RoundsActivationsAsTensorSays) {
  const std::vector<float> special = {0.0f,
                                      -0.0f,
                                      1.0f,
                                      1.00390625f,
                                      1.01171875f,
                                      3.4028235e38f,
                                      -3.4028235e38f,
                                      1e-39f,
                                      -1.4e-45f,
                                      1e-41f,
                                      65504.0f,
                                      -1.5f,
                                      std::numeric_limits<float>::infinity(),
                                      std::numeric_limits<float>::quiet_NaN(),
                                      2.0f,
                                      3.0f,
                                      0.333333f};
  for (size_t k = 1; k <= special.size(); ++k) {
    std::vector<std::byte> rounded((k + 1) / 2 * 2 * kernels().bf16_bytes + 1, std::byte{0xcd});
    kernels().round_bf16(special.data(), int64_t(k), rounded.data());
    EXPECT_EQ(rounded.back(), std::byte{0xcd}) << "wrote past the end";
    for (size_t i = 0; i < (k + 1) / 2 * 2; ++i) {
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<std::byte*>(&bits) + (4 - kernels().bf16_bytes), rounded.data() + i * kernels().bf16_bytes,
                  kernels().bf16_bytes);
      EXPECT_EQ(bits >> 16, i < k ? F32ToBF16(special[i]) : 0) << "element " << i << " of " << k;
    }
  }
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const std::string& isa : CpuIsaNames()) {
    for (DType dtype : kDTypes) cases.push_back({isa, dtype});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(AllIsas, GemmTest, testing::ValuesIn(AllCases()), [](const testing::TestParamInfo<Case>& info) {
  return info.param.isa + "_" + std::string(Name(info.param.dtype));
});

TEST(Pack, PanelLayoutIsAsDocumented) {
  ThreadTeam team(2);
  const int64_t n = 37, k = 5;
  std::vector<float> w(n * k);
  for (size_t i = 0; i < w.size(); ++i) w[i] = float(i % 128);  // exact in every type
  const Packed f32 = Pack(team, w, n, k, DType::kF32), f16 = Pack(team, w, n, k, DType::kF16),
               bf16 = Pack(team, w, n, k, DType::kBF16);
  for (int64_t j = 0; j < n; ++j) {
    const int64_t panel = j / 32, column = j % 32;
    for (int64_t i = 0; i < k; ++i) {
      const float value = w[j * k + i];
      EXPECT_EQ(static_cast<const float*>(f32.weight.packed)[(panel * k + i) * 32 + column], value);
      EXPECT_EQ(static_cast<const uint16_t*>(f16.weight.packed)[(panel * k + i) * 32 + column], F32ToF16(value));
      EXPECT_EQ(static_cast<const uint16_t*>(bf16.weight.packed)[((panel * 3 + i / 2) * 32 + column) * 2 + i % 2],
                F32ToBF16(value));
    }
    EXPECT_EQ(static_cast<const uint16_t*>(bf16.weight.packed)[((panel * 3 + 2) * 32 + column) * 2 + 1], 0);
  }
}

TEST(Pack, ConvertsEveryPairOfTypesFromUnalignedMemoryAsTensorSays) {
  std::mt19937 rng(11);
  ThreadTeam team(2);
  const int64_t count = 4099;
  for (DType from : kDTypes) {
    std::vector<std::byte> source(count * SizeOf(from) + 1);
    for (std::byte& b : source) b = std::byte(rng());  // all kinds of values: subnormals, infinities, NaN
    const std::byte* data = source.data() + 1;
    const auto value = [&](int64_t i) {
      if (from == DType::kF32) {
        float v;
        std::memcpy(&v, data + i * 4, 4);
        return v;
      }
      uint16_t bits;
      std::memcpy(&bits, data + i * 2, 2);
      return from == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
    };
    for (DType to : kDTypes) {
      std::vector<std::byte> out(count * SizeOf(to));
      PackRows(team, {data, from, 1, count, "m"}, to, out.data());
      for (int64_t i = 0; i < count; ++i) {
        if (from == to) {
          ASSERT_EQ(std::memcmp(out.data() + i * SizeOf(to), data + i * SizeOf(from), SizeOf(to)), 0);
          continue;
        }
        if (to == DType::kF32) {
          const float expected = value(i);
          ASSERT_EQ(std::memcmp(&expected, out.data() + i * 4, 4), 0) << i;
        } else {
          const uint16_t expected = to == DType::kF16 ? F32ToF16(value(i)) : F32ToBF16(value(i));
          ASSERT_EQ(std::memcmp(&expected, out.data() + i * 2, 2), 0) << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvasir
