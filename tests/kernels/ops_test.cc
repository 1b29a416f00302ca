// The ops of the decoder families on every ISA: against the reference device over random shapes, strides and types, and bit for
// bit over batch composition and thread counts. Attention and the KV pages have attention_test.
#include <gmock/gmock.h>

#include <functional>

#include "tests/kernels/kv_fixture.h"

namespace kvasir::testing {
namespace {

std::vector<float> Randoms(Rng& rng, int64_t n, float spread) {
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = float(rng.Uniform() * 2 - 1) * spread;
  return x;
}

float* Upload(Device& device, const std::vector<float>& x) {
  auto* p = static_cast<float*>(device.Allocate(std::max<size_t>(1, x.size()) * 4, "test").value());
  device.CopyToDevice(p, x.data(), x.size() * 4);
  return p;
}

std::vector<float> Download(Device& device, const float* p, int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  device.CopyToHost(x.data(), p, x.size() * 4);
  return x;
}

Weight Vector(Device& device, const std::vector<float>& x) {
  const HostMatrix m = {x.data(), DType::kF32, 1, int64_t(x.size()), "vector"};
  return device.PackVector({&m, 1}).value();
}

Weight Matrix(Device& device, const std::vector<float>& x, int64_t rows, int64_t cols, DType dtype) {
  const HostMatrix m = {x.data(), DType::kF32, rows, cols, "matrix"};
  return device.PackLinear({&m, 1}, dtype).value();
}

std::vector<float> Part(const std::vector<float>& x, int64_t first, int64_t count) {
  return {x.begin() + first, x.begin() + first + count};
}

// What an op makes of rows [first, first + rows) of the case's inputs, on a device. [rows, out_width]
using RunRows = std::function<std::vector<float>(Device& device, int first, int rows)>;

class OpsTest : public ::testing::TestWithParam<std::string> {
 protected:
  // Near the reference, relative to each row's largest value; and the same bits alone, batched and for any number of threads.
  void Expect(int rows, int out_width, double tolerance, const RunRows& run) {
    const std::vector<float> want = run(*reference_, 0, rows), got = run(*one_, 0, rows);
    ASSERT_EQ(want.size(), size_t(rows) * size_t(out_width));
    ASSERT_EQ(got.size(), want.size());
    for (int i = 0; i < rows; ++i) {
      double scale = 1e-30;
      for (int j = 0; j < out_width; ++j) scale = std::max(scale, std::abs(double(want[size_t(i) * out_width + j])));
      for (int j = 0; j < out_width; ++j) {
        const size_t at = size_t(i) * out_width + j;
        ASSERT_NEAR(got[at], want[at], tolerance * scale) << "row " << i << " of " << rows << ", column " << j;
      }
    }
    for (Device* device : {one_.get(), three_.get()}) {
      ExpectBits(run(*device, 0, rows), got, "whole");
      std::vector<float> pieces;
      for (int first = 0, size = 1; first < rows; first += size, size = size % 3 + 1) {
        const std::vector<float> piece = run(*device, first, std::min(size, rows - first));
        pieces.insert(pieces.end(), piece.begin(), piece.end());
      }
      ExpectBits(pieces, got, "in pieces");
    }
  }

  static void ExpectBits(const std::vector<float>& got, const std::vector<float>& want, const char* what) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i])) << what << ", element " << i;
    }
  }

  std::unique_ptr<Device> reference_ = MakeReferenceDevice();
  std::unique_ptr<Device> one_ = MakeDevice({GetParam(), 1});
  std::unique_ptr<Device> three_ = MakeDevice({GetParam(), 3});
};

constexpr int kWidths[] = {1, 3, 8, 15, 16, 17, 33, 64, 100, 576, 2100};

TEST_P(OpsTest, AddNorm) {
  Rng rng(21);
  for (int width : kWidths) {
    for (int variant = 0; variant < 16; ++variant) {
      SCOPED_TRACE(fmt::format("width {} variant {}", width, variant));
      const bool layer = variant & 1, with_delta = variant & 2, with_weight = variant & 4, with_bias = (variant & 8) && layer;
      const int rows = int(rng.Between(1, 9));
      const auto residual = Randoms(rng, int64_t{rows} * width, 3), delta = Randoms(rng, int64_t{rows} * width, 3);
      const auto weight = Randoms(rng, width, 2), bias = Randoms(rng, width, 2);
      Expect(rows, 2 * width, 4e-6, [&](Device& device, int first, int n) {
        const Weight w = Vector(device, weight), b = Vector(device, bias);
        const Norm norm = {layer ? NormKind::kLayer : NormKind::kRms, with_weight ? &w : nullptr, with_bias ? &b : nullptr,
                           1e-5f};
        float* r = Upload(device, Part(residual, int64_t{first} * width, int64_t{n} * width));
        float* d = Upload(device, Part(delta, int64_t{first} * width, int64_t{n} * width));
        float* out = with_delta ? Upload(device, std::vector<float>(size_t(n) * width)) : r;  // in place where it is allowed
        device.AddNorm(r, with_delta ? d : nullptr, 0.22f, norm, n, width, out);
        const auto sums = Download(device, r, int64_t{n} * width), normed = Download(device, out, int64_t{n} * width);
        std::vector<float> both;
        for (int i = 0; i < n; ++i) {
          both.insert(both.end(), sums.begin() + i * width, sums.begin() + (i + 1) * width);
          both.insert(both.end(), normed.begin() + i * width, normed.begin() + (i + 1) * width);
        }
        return both;
      });
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(OpsTest, LayerNormOfAConstantRowIsItsBias) {
  const Weight weight = Vector(*one_, {2, 3, 4}), bias = Vector(*one_, {7, 8, 9});
  float* x = Upload(*one_, {5, 5, 5});
  one_->AddNorm(x, nullptr, 1, {NormKind::kLayer, &weight, &bias, 1e-5f}, 1, 3, x);
  EXPECT_THAT(Download(*one_, x, 3), ::testing::ElementsAre(7, 8, 9));
}

TEST_P(OpsTest, NormAndRotateAndCopySlices) {
  Rng rng(22);
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(round);
    const int rows = int(rng.Between(1, 8)), width = int(rng.Between(1, 130)), groups = int(rng.Between(1, 5));
    const int64_t group_stride = width + rng.Below(20), offset = rng.Below(30);
    const int64_t stride = offset + groups * group_stride + rng.Below(20);
    const Slices slices = {stride, offset, groups, group_stride, width};
    const bool shared = rng.Chance(0.5), layer = rng.Chance(0.3);
    const auto data = Randoms(rng, rows * stride, 3), weight = Randoms(rng, shared ? width : width * groups, 2);
    Expect(rows, int(stride), 1e-5, [&](Device& device, int first, int n) {
      const Weight w = Vector(device, weight);
      float* x = Upload(device, Part(data, first * stride, n * stride));
      device.NormSlices(x, n, slices, {layer ? NormKind::kLayer : NormKind::kRms, &w, nullptr, 1e-3f});
      return Download(device, x, n * stride);
    });
    const int half = int(rng.Below(width / 2 + 1));
    const auto cos = Randoms(rng, 50 * half, 1), sin = Randoms(rng, 50 * half, 1);
    std::vector<int32_t> positions;
    for (int i = 0; i < rows; ++i) positions.push_back(int32_t(rng.Below(50)));
    Expect(rows, int(stride), 1e-6, [&](Device& device, int first, int n) {
      const RopeTable rope = half == 0 ? RopeTable{} : RopeTable{Upload(device, cos), Upload(device, sin), 2 * half, 50};
      float* x = Upload(device, Part(data, first * stride, n * stride));
      device.RotateSlices(x, n, slices, std::span(positions).subspan(first, n), rope);
      return Download(device, x, n * stride);
    });
    const Slices to = {int64_t{groups} * width + 3, 3, groups, width, width};
    Expect(rows, int(to.stride), 0, [&](Device& device, int first, int n) {
      float* x = Upload(device, Part(data, first * stride, n * stride));
      float* y = Upload(device, std::vector<float>(size_t(n * to.stride), 0.5f));
      device.CopySlices(x, slices, n, y, to);
      return Download(device, y, n * to.stride);
    });
    if (HasFatalFailure()) return;
  }
}

TEST_P(OpsTest, ActivationsOfEveryKind) {
  Rng rng(23);
  for (const Activation kind : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu,
                                Activation::kRelu2, Activation::kSwigluOai}) {
    for (bool gated : {false, true}) {
      if (kind == Activation::kSwigluOai && !gated) continue;
      for (int width : {1, 7, 16, 40, 5000}) {
        SCOPED_TRACE(fmt::format("kind {} gated {} width {}", int(kind), gated, width));
        const int rows = 5, in_width = gated ? 2 * width : width;
        const auto in = Randoms(rng, int64_t{rows} * in_width, 9);
        Expect(rows, width, 4e-6, [&](Device& device, int first, int n) {
          float* out = Upload(device, std::vector<float>(size_t(n) * width));
          device.Activate(kind, gated, Upload(device, Part(in, int64_t{first} * in_width, int64_t{n} * in_width)), n, width, out);
          return Download(device, out, int64_t{n} * width);
        });
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Each value by itself: near zero and far out, where a formula could cancel or overflow.
TEST_P(OpsTest, ActivationsHoldTheirDigits) {
  std::vector<float> values = {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-6f, -1e-6f, -200.0f, 200.0f, 1e18f, -1e18f};
  for (float x = -12; x <= 12; x += 0.0371f) values.push_back(x);
  const int n = int(values.size());
  for (const Activation kind : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    float* in = Upload(*one_, values);
    one_->Activate(kind, false, in, 1, n, in);
    std::vector<float> want(values.size());
    reference_->Activate(kind, false, values.data(), 1, n, want.data());
    const auto got = Download(*one_, in, n);
    for (int i = 0; i < n; ++i) {
      ASSERT_NEAR(got[i], want[i], 1e-5 * std::abs(want[i]) + 1e-20) << "kind " << int(kind) << " of " << values[i];
    }
  }
}

TEST_P(OpsTest, Elementwise) {
  Rng rng(24);
  for (int width : {1, 5, 16, 100, 9000}) {
    SCOPED_TRACE(width);
    const int rows = int(rng.Between(1, 6));
    const int64_t count = int64_t{rows} * width, gate_stride = width + 9;
    const auto data = Randoms(rng, count, 6), other = Randoms(rng, count, 6), gate = Randoms(rng, rows * gate_stride, 6);
    const auto part = [&](Device& device, const std::vector<float>& x, int first, int n, int64_t stride) {
      return Upload(device, Part(x, first * stride, n * stride));
    };
    Expect(rows, width, 1e-6, [&](Device& device, int first, int n) {
      float* x = part(device, data, first, n, width);
      device.Add(x, part(device, other, first, n, width), 0.3f, n, width);
      return Download(device, x, int64_t{n} * width);
    });
    Expect(rows, width, 1e-6, [&](Device& device, int first, int n) {
      float* x = part(device, data, first, n, width);
      device.AddGated(x, part(device, other, first, n, width), part(device, gate, first, n, 1), n, width);
      return Download(device, x, int64_t{n} * width);
    });
    for (const GateKind kind : {GateKind::kSigmoid, GateKind::kSilu}) {
      Expect(rows, width, 1e-6, [&](Device& device, int first, int n) {
        float* x = part(device, data, first, n, width);
        device.MultiplyGate(x, kind, part(device, gate, first, n, gate_stride), gate_stride, n, width);
        return Download(device, x, int64_t{n} * width);
      });
    }
    for (float softcap : {0.0f, 3.0f, 30.0f}) {
      Expect(rows, width, 1e-6, [&](Device& device, int first, int n) {
        float* x = part(device, data, first, n, width);
        device.ScaleRows(x, n, width, 0.7f, softcap);
        return Download(device, x, int64_t{n} * width);
      });
    }
    if (HasFatalFailure()) return;
  }
}

TEST_P(OpsTest, EmbedScales) {
  Rng rng(25);
  const int vocab = 30, width = 77;
  const auto table = Randoms(rng, vocab * width, 2);
  const std::vector<int32_t> ids = {3, 0, 29, 3, 11};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Expect(int(ids.size()), width, 1e-7, [&](Device& device, int first, int n) {
      const HostMatrix m = {table.data(), DType::kF32, vocab, width, "table"};
      float* out = Upload(device, std::vector<float>(size_t(n) * width));
      device.Embed(device.PackEmbedding(m, dtype).value(), std::span(ids).subspan(first, n), 8.774964f, out);
      return Download(device, out, int64_t{n} * width);
    });
  }
}

TEST_P(OpsTest, LinearHeads) {
  Rng rng(26);
  for (int round = 0; round < 30; ++round) {
    const DType dtype = DType(rng.Below(3));
    const int rows = int(rng.Between(1, 30)), heads = int(rng.Between(1, 6));
    const int64_t n = rng.Between(1, 90), k = rng.Chance(0.2) ? 256 : rng.Between(1, 90);
    HeadLinear at;
    at.in_head_stride = k + rng.Below(9);
    at.in_stride = rng.Chance(0.3) ? 2048 : heads * at.in_head_stride + rng.Below(9);
    at.out_head_stride = n + rng.Below(9);
    at.out_stride = heads * at.out_head_stride + rng.Below(9);
    SCOPED_TRACE(fmt::format("round {} {} rows {} heads {} [{}, {}]", round, Name(dtype), rows, heads, n, k));
    const auto in = Randoms(rng, rows * at.in_stride, 2);
    std::vector<std::vector<float>> values;
    for (int h = 0; h < heads; ++h) values.push_back(Randoms(rng, n * k, 1));
    // CUDA rounds inputs to the type of 16-bit weights, also to float16.
    const bool rounds = dtype == DType::kF16 && GetParam() == "cuda";
    Expect(rows, int(at.out_stride), rounds ? 2e-3 : 2e-6 * std::sqrt(double(k)), [&](Device& device, int first, int count) {
      std::vector<Weight> weights;
      for (const auto& v : values) weights.push_back(Matrix(device, v, n, k, dtype));
      float* out = Upload(device, std::vector<float>(size_t(count * at.out_stride), 0.25f));  // gaps must stay
      device.LinearHeads(Upload(device, Part(in, first * at.in_stride, count * at.in_stride)), count, weights, at, out);
      return Download(device, out, count * at.out_stride);
    });
    if (HasFatalFailure()) return;
  }
}

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routed RunRoute(Device& device, const std::vector<float>& logits, int rows, MoeRouting routing,
                const std::vector<float>& correction) {
  const Weight vector = correction.empty() ? Weight{} : Vector(device, correction);
  if (!correction.empty()) routing.correction = &vector;
  const size_t n = size_t(rows) * routing.top_k;
  auto* ids = static_cast<int32_t*>(device.Allocate(n * 4, "ids").value());
  auto* weights = static_cast<float*>(device.Allocate(n * 4, "weights").value());
  device.Route(Upload(device, logits), rows, routing, ids, weights);
  Routed routed = {std::vector<int32_t>(n), std::vector<float>(n)};
  device.CopyToHost(routed.ids.data(), ids, n * 4);
  device.CopyToHost(routed.weights.data(), weights, n * 4);
  return routed;
}

TEST_P(OpsTest, Route) {
  using Score = MoeRouting::Score;
  Rng rng(27);
  for (int round = 0; round < 80; ++round) {
    MoeRouting routing;
    routing.score = Score(rng.Below(3));
    routing.num_groups = rng.Chance(0.5) ? 1 : int(rng.Between(2, 8));
    routing.num_experts = routing.num_groups * int(rng.Between(2, 32));
    routing.top_groups = int(rng.Between(1, routing.num_groups));
    routing.top_k = int(rng.Between(1, std::min(10, routing.num_experts / routing.num_groups * routing.top_groups)));
    routing.group_score_top2 = rng.Chance(0.5);
    routing.normalize = rng.Chance(0.5);
    routing.scale = rng.Chance(0.5) ? 1 : 2.5f;
    const int rows = int(rng.Between(1, 50));
    const auto logits = Randoms(rng, int64_t{rows} * routing.num_experts, 4);
    const auto correction = rng.Chance(0.5) ? Randoms(rng, routing.num_experts, 0.5f) : std::vector<float>();
    SCOPED_TRACE(fmt::format("round {} score {} top {} of {}, groups {} of {}", round, int(routing.score), routing.top_k,
                             routing.num_experts, routing.top_groups, routing.num_groups));
    const Routed want = RunRoute(*reference_, logits, rows, routing, correction);
    const Routed got = RunRoute(*one_, logits, rows, routing, correction);
    ASSERT_EQ(got.ids, want.ids);
    for (size_t i = 0; i < want.weights.size(); ++i) ASSERT_NEAR(got.weights[i], want.weights[i], 2e-6 * routing.scale + 1e-9);
    ExpectBits(RunRoute(*three_, logits, rows, routing, correction).weights, got.weights, "three threads");
    for (int i = 0; i < rows; ++i) {
      const Routed row =
          RunRoute(*three_, Part(logits, int64_t{i} * routing.num_experts, routing.num_experts), 1, routing, correction);
      ExpectBits(row.weights, Part(got.weights, int64_t{i} * routing.top_k, routing.top_k), "one row");
    }
    if (HasFatalFailure()) return;
  }
}

TEST_P(OpsTest, RouteByHand) {
  for (Device* device : {reference_.get(), one_.get()}) {
    MoeRouting routing;
    routing.num_experts = 4;
    routing.top_k = 2;
    // Ties go to the lower id; the softmax of (0, 0, 0, ln 3) is (1, 1, 1, 3) / 6.
    Routed routed = RunRoute(*device, {0, 0, 0, std::log(3.0f)}, 1, routing, {});
    EXPECT_THAT(routed.ids, ::testing::ElementsAre(3, 0));
    EXPECT_THAT(routed.weights, ::testing::ElementsAre(::testing::FloatEq(0.5f), ::testing::FloatEq(1 / 6.0f)));
    routing.normalize = true;
    routed = RunRoute(*device, {0, 0, 0, std::log(3.0f)}, 1, routing, {});
    EXPECT_THAT(routed.weights, ::testing::ElementsAre(::testing::FloatEq(0.75f), ::testing::FloatEq(0.25f)));
    // The correction chooses but does not weigh.
    routing.score = MoeRouting::Score::kSigmoid;
    routing.normalize = false;
    routed = RunRoute(*device, {0, 5, 0, -5}, 1, routing, {0, -9, 1, 2});
    EXPECT_THAT(routed.ids, ::testing::ElementsAre(3, 2));
    EXPECT_NEAR(routed.weights[0], 1 / (1 + std::exp(5.0)), 1e-8);
    EXPECT_FLOAT_EQ(routed.weights[1], 0.5f);
    routing.normalize = true;  // scores that are all 0 divide by something
    routed = RunRoute(*device, {-200, -200, -200, -200}, 1, routing, {});
    EXPECT_THAT(routed.weights, ::testing::Each(::testing::AllOf(::testing::Ge(0.0f), ::testing::Le(1.0f))));
    routing.normalize = false;
    // Of two groups, the one with the best single expert, or with the best pair.
    routing.num_groups = 2;
    routed = RunRoute(*device, {4, -4, 2, 2}, 1, routing, {});
    EXPECT_THAT(routed.ids, ::testing::ElementsAre(0, 1));
    routing.group_score_top2 = true;
    routed = RunRoute(*device, {4, -4, 2, 2}, 1, routing, {});
    EXPECT_THAT(routed.ids, ::testing::ElementsAre(2, 3));
  }
}

// More pairs of rows and experts than are computed at a time: the sums go on where they stopped.
TEST_P(OpsTest, ExpertsOfManyRows) {
  Rng rng(29);
  const int rows = 1700, num_experts = 3, top_k = 3, width = 5, ffn = 4;
  const auto in = Randoms(rng, rows * width, 1), weights = Randoms(rng, rows * top_k, 1);
  const auto up = Randoms(rng, num_experts * 2 * ffn * width, 1), down = Randoms(rng, num_experts * width * ffn, 1);
  std::vector<float> outs[2];
  for (Device* device : {reference_.get(), three_.get()}) {
    std::vector<Weight> ups, downs;
    for (int e = 0; e < num_experts; ++e) {
      ups.push_back(Matrix(*device, Part(up, e * 2 * ffn * width, 2 * ffn * width), 2 * ffn, width, DType::kF32));
      downs.push_back(Matrix(*device, Part(down, e * width * ffn, width * ffn), width, ffn, DType::kF32));
    }
    std::vector<int32_t> ids;
    for (int i = 0; i < rows * top_k; ++i) ids.push_back((i + i / top_k) % top_k);
    auto* chosen = static_cast<int32_t*>(device->Allocate(ids.size() * 4, "ids").value());
    device->CopyToDevice(chosen, ids.data(), ids.size() * 4);
    float* out = Upload(*device, std::vector<float>(rows * width));
    device->Experts(Upload(*device, in), rows, {ups, downs, {}, {}}, Activation::kSilu, top_k, chosen, Upload(*device, weights),
                    out);
    outs[device == three_.get()] = Download(*device, out, rows * width);
  }
  for (int i = 0; i < rows * width; ++i) ASSERT_NEAR(outs[1][i], outs[0][i], 1e-5) << i;
}

TEST_P(OpsTest, Experts) {
  Rng rng(28);
  for (int round = 0; round < 30; ++round) {
    const DType dtype = DType(rng.Below(3));
    const int rows = int(rng.Between(1, 40)), num_experts = int(rng.Between(1, 9));
    const int top_k = int(rng.Between(1, std::min(4, num_experts)));
    const int64_t width = rng.Between(1, 100), ffn = rng.Between(1, 80);
    const bool biased = rng.Chance(0.5);
    const Activation activation = biased ? Activation::kSwigluOai : Activation::kSilu;
    SCOPED_TRACE(fmt::format("round {} {} rows {} experts {} of {} width {} ffn {}", round, Name(dtype), rows, top_k, num_experts,
                             width, ffn));
    const auto in = Randoms(rng, rows * width, 1), weights = Randoms(rng, int64_t{rows} * top_k, 1);
    std::vector<int32_t> ids;  // distinct in a row, in any order; some experts get no row
    for (int i = 0; i < rows; ++i) {
      std::vector<int32_t> all(num_experts);
      std::iota(all.begin(), all.end(), 0);
      for (int k = 0; k < top_k; ++k) {
        std::swap(all[k], all[k + rng.Below(num_experts - k)]);
        ids.push_back(all[k]);
      }
    }
    std::vector<std::vector<float>> up, down, up_bias, down_bias;
    for (int e = 0; e < num_experts; ++e) {
      up.push_back(Randoms(rng, 2 * ffn * width, 0.4f)), down.push_back(Randoms(rng, width * ffn, 0.4f));
      up_bias.push_back(Randoms(rng, 2 * ffn, 1)), down_bias.push_back(Randoms(rng, width, 1));
    }
    // CUDA rounds inputs to the type of 16-bit weights, also to float16.
    const bool rounds = dtype == DType::kF16 && GetParam() == "cuda";
    Expect(rows, int(width), dtype == DType::kBF16 ? 1e-2 : rounds ? 3e-3 : 1e-5, [&](Device& device, int first, int n) {
      std::vector<Weight> gate_up_w, down_w, gate_up_b, down_b;
      for (int e = 0; e < num_experts; ++e) {
        gate_up_w.push_back(Matrix(device, up[e], 2 * ffn, width, dtype));
        down_w.push_back(Matrix(device, down[e], width, ffn, dtype));
        if (biased) gate_up_b.push_back(Vector(device, up_bias[e])), down_b.push_back(Vector(device, down_bias[e]));
      }
      auto* chosen = static_cast<int32_t*>(device.Allocate(size_t(n) * top_k * 4, "ids").value());
      device.CopyToDevice(chosen, ids.data() + size_t(first) * top_k, size_t(n) * top_k * 4);
      float* out = Upload(device, std::vector<float>(size_t(n * width), 99.0f));
      device.Experts(Upload(device, Part(in, first * width, n * width)), n, {gate_up_w, down_w, gate_up_b, down_b}, activation,
                     top_k, chosen, Upload(device, Part(weights, int64_t{first} * top_k, int64_t{n} * top_k)), out);
      return Download(device, out, n * width);
    });
    if (HasFatalFailure()) return;
  }
}

// Some texts of a gated delta net in two layers, on shuffled blocks that begin as NaN.
class DeltaTexts {
 public:
  DeltaTexts(Rng& rng, const DeltaNet& net, int texts, int block_tokens) : net_(net), block_tokens_(block_tokens) {
    for (int i = 0; i < texts; ++i) {
      lengths_.push_back(int(rng.Between(1, 40)));
      total_ += lengths_.back();
      tables_.emplace_back();
      for (int t = 0; t < lengths_.back(); t += block_tokens) tables_.back().push_back(uint32_t(num_blocks_++));
    }
    std::vector<uint32_t> ids(static_cast<size_t>(num_blocks_));
    std::iota(ids.begin(), ids.end(), 0u);
    for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[rng.Below(i)]);
    for (auto& table : tables_) {
      for (uint32_t& entry : table) entry = ids[entry];
    }
    in_ = Randoms(rng, total_ * stride(), 2);
    conv_ = Randoms(rng, net.kernel * net.channels(), 1);
    a_log_ = Randoms(rng, net.value_heads, 2);
    dt_bias_ = Randoms(rng, net.value_heads, 25);  // also where softplus is linear
  }

  // The second layer's outputs of every text, then all states. With `cuts`, in steps of random parts of random texts.
  std::vector<float> Run(Device& device, Rng* cuts) const {
    const KvLayout layout = {.block_tokens = block_tokens_, .num_layers = 2, .state_floats = net_.state_floats()};
    const size_t bytes = layout.block_bytes() * size_t(num_blocks_);
    float* const base = Upload(device, std::vector<float>(bytes / 4, NAN));
    const Weight conv = Vector(device, conv_), a_log = Vector(device, a_log_), dt_bias = Vector(device, dt_bias_);
    std::vector<int> done(lengths_.size());
    std::vector<float> outs(size_t(total_ * net_.values()));
    for (int64_t left = total_; left > 0;) {
      std::vector<SequenceSlice> slices;
      std::vector<SequenceTable> tables;
      std::vector<float> rows;
      std::vector<int64_t> places;  // of each row among all texts' tokens
      int64_t first_of_text = 0;
      for (size_t i = 0; i < lengths_.size(); first_of_text += lengths_[i++]) {
        const int rest = lengths_[i] - done[i], n = cuts == nullptr ? rest : int(cuts->Between(0, std::min(rest, 11)));
        if (n == 0) continue;
        slices.push_back({int32_t(places.size()), n, int32_t(tables.size())});
        tables.push_back({tables_[i].data(), done[i] + n, nullptr});
        for (int t = 0; t < n; ++t) {
          places.push_back(first_of_text + done[i] + t);
          const auto row = in_.begin() + places.back() * stride();
          rows.insert(rows.end(), row, row + stride());
        }
        done[i] += n;
        left -= n;
      }
      if (slices.empty()) continue;
      const PagedKv kv = {reinterpret_cast<std::byte*>(base), layout.block_bytes(), layout, tables};
      const int64_t n = int64_t(places.size());
      float* const in = Upload(device, rows);
      float* const convolved = Upload(device, std::vector<float>(size_t(n * net_.channels()), NAN));
      float* const out = Upload(device, std::vector<float>(size_t(n * net_.values()), NAN));
      for (int layer = 0; layer < 2; ++layer) {
        device.CausalConv(in, stride(), net_, conv, layer, slices, kv, convolved);
        device.DeltaRule(convolved, in + net_.channels(), stride(), net_, a_log, dt_bias, layer, slices, kv, out);
      }
      const auto values = Download(device, out, n * net_.values());
      for (int64_t r = 0; r < n; ++r)
        std::copy_n(values.begin() + r * net_.values(), net_.values(), outs.begin() + places[size_t(r)] * net_.values());
    }
    // Only the floats of states: a block ends in padding that nobody writes.
    const auto memory = Download(device, base, int64_t(bytes / 4));
    const int64_t padded = int64_t(layout.state_bytes() / 4);
    for (int64_t i = 0; i < 2 * num_blocks_; ++i)
      outs.insert(outs.end(), memory.begin() + i * padded, memory.begin() + i * padded + net_.state_floats());
    return outs;
  }

 private:
  // channels for the convolution, then the gates, then something that is not read
  int64_t stride() const { return net_.channels() + 2 * net_.value_heads + 3; }

  const DeltaNet net_;
  const int block_tokens_;
  std::vector<int> lengths_;
  int64_t total_ = 0, num_blocks_ = 0;
  std::vector<std::vector<uint32_t>> tables_;
  std::vector<float> in_, conv_, a_log_, dt_bias_;
};

// Texts cut into steps at random places and computed together, against the reference, whole and alone: the same bits, and the
// state of a block once full stays as it was left.
TEST_P(OpsTest, DeltaNet) {
  Rng rng(31);
  for (int round = 0; round < 24; ++round) {
    const int shared = int(rng.Between(1, 3)), key_heads = int(rng.Between(1, 4));
    const DeltaNet net = {.key_heads = key_heads,
                          .value_heads = key_heads * shared,
                          .key_dim = int(rng.Between(1, 70)),
                          .value_dim = int(rng.Between(1, round % 4 == 0 ? 200 : 40)),
                          .kernel = int(rng.Between(1, 6))};
    SCOPED_TRACE(fmt::format("round {}: {} and {} heads of {} and {}, kernel {}", round, net.key_heads, net.value_heads,
                             net.key_dim, net.value_dim, net.kernel));
    DeltaTexts texts(rng, net, int(rng.Between(1, 4)), int(rng.Between(1, 9)));
    const std::vector<float> want = texts.Run(*reference_, nullptr), got = texts.Run(*one_, nullptr);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5 * std::max(1.0, std::abs(double(want[i])))) << i;
    for (Device* device : {one_.get(), three_.get()}) {
      ExpectBits(texts.Run(*device, nullptr), got, "whole");
      for (int cut = 0; cut < 3; ++cut) ExpectBits(texts.Run(*device, &rng), got, "in pieces");
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, OpsTest, ::testing::ValuesIn(DeviceNames()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kvasir::testing
