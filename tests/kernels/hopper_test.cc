// Kernels for Hopper leave the bits that the others leave: on an sm_90, where this also says whether both kinds of products of
// its tensor cores round alike, and in emulation (tests/simt).
#include <cstdlib>

#include "tests/kernels/kv_fixture.h"
#ifdef KVASIR_SIMT
#include "tests/simt/simt.h"
#endif

namespace kvasir::testing {
namespace {

// A device with the kernels or without; nullptr: there is no such GPU.
std::unique_ptr<Device> MakeHopper(bool with) {
  setenv("KVASIR_SIMT_ARCHITECTURE", "90", 1);
  setenv("KVASIR_CUDA_HOPPER", with ? "1" : "0", 1);
  auto device = MakeCudaDevice();
  if (device.ok() && (*device)->Info().name.find("sm_90") != std::string::npos) return std::move(*device);
  std::fprintf(stderr, "skipped: %s\n", device.ok() ? (*device)->Info().name.c_str() : Message(device.status()).c_str());
  return nullptr;
}

// Orders of what the emulation runs, and what tells which kernels it ran.
constexpr int kSeeds =
#ifdef KVASIR_SIMT
    3;
#else
    1;
#endif
void Seed([[maybe_unused]] uint64_t seed) {
#ifdef KVASIR_SIMT
  simt::Seed(seed);
#endif
}
int64_t ProductsOfWarpgroups() {
#ifdef KVASIR_SIMT
  return simt::ProductsStarted();
#else
  return 0;
#endif
}
void ExpectTaken([[maybe_unused]] int64_t products, [[maybe_unused]] bool taken) {
#ifdef KVASIR_SIMT
  EXPECT_EQ(products > 0, taken);
#endif
}

struct Attended {
  std::vector<std::vector<float>> out;
  int64_t products = 0;  // of warpgroups
};
Attended Attend(bool hopper, const KvShape& shape, const std::vector<int>& lengths, bool ragged,
                const std::vector<std::vector<KvFixture::Feed>>& steps, const KvFixture::Change& change) {
  const auto device = MakeHopper(hopper);
  KvFixture fixture(*device, shape, lengths, ragged, 3, change);
  Attended all;
  const int64_t before = ProductsOfWarpgroups();
  for (const auto& step : steps)
    for (auto& part : fixture.Step(step)) all.out.push_back(std::move(part));
  all.products = ProductsOfWarpgroups() - before;
  return all;
}

struct HopperCase {
  const char* what;
  KvShape shape;
  bool taken = true;  // by the kernel for Hopper
  bool ragged = false;
  KvFixture::Change change = nullptr;
  bool is_long = false;  // more than one split
};

TEST(Hopper, AttentionLeavesTheSameBits) {
  if (MakeHopper(true) == nullptr) GTEST_SKIP();
  const auto unfinite = [](std::vector<float>& row, bool key, int slot) {
    if (!key && slot >= 70 && slot % 9 == 0) row[size_t(slot) % row.size()] = slot % 2 == 0 ? HUGE_VALF : -HUGE_VALF;
    if (!key && slot == 150) row[3] = NAN;
  };
  const HopperCase cases[] = {
      {"splits", {DType::kBF16, 16, 1, 1, 1, 64}, true, false, nullptr, true},
      {"plain", {DType::kBF16, 16, 2, 2, 2, 128}},
      {"float16 in blocks of 32", {DType::kF16, 32, 1, 1, 7, 64}},
      {"blocks of a tile", {DType::kBF16, 64, 1, 2, 1, 64}},
      {"window", {DType::kBF16, 16, 1, 1, 3, 64, 70}},
      {"softcap and sinks", {DType::kBF16, 16, 1, 2, 2, 64, 0, 0, 3, true}},
      {"values that are not finite", {DType::kBF16, 16, 1, 1, 2, 64}, true, false, unfinite},
      {"and a window", {DType::kF16, 16, 1, 1, 2, 128, 40}, true, false, unfinite},
      {"ragged tables", {DType::kBF16, 16, 1, 2, 2, 64}, false, true},
      {"small blocks", {DType::kBF16, 8, 1, 2, 2, 64}, false},
      {"another head_dim", {DType::kBF16, 16, 1, 2, 2, 96}, false},
  };
  using Steps = std::vector<std::vector<KvFixture::Feed>>;
  const std::vector<int> lengths = {700, 220, 90};
  const Steps long_steps = {{{0, 150}, {1, 63}}, {{0, 500}, {1, 1}, {2, 90}}, {{0, 50}, {1, 136}}};
  const Steps short_steps = {{{1, 99}, {2, 3}}, {{1, 70}, {2, 40}}};
  for (const HopperCase& c : cases) {
    SCOPED_TRACE(c.what);
    Seed(0);
    const Steps& steps = c.is_long ? long_steps : short_steps;
    const Attended want = Attend(false, c.shape, lengths, c.ragged, steps, c.change);
    ExpectTaken(want.products, false);
    for (uint64_t seed = 0; seed < (c.taken ? kSeeds : 1); ++seed) {
      Seed(seed);
      const Attended got = Attend(true, c.shape, lengths, c.ragged, steps, c.change);
      ExpectTaken(got.products, c.taken);
      ASSERT_EQ(got.out.size(), want.out.size());
      for (size_t i = 0; i < got.out.size(); ++i) {
        ASSERT_EQ(got.out[i].size(), want.out[i].size());
        ASSERT_EQ(std::memcmp(got.out[i].data(), want.out[i].data(), 4 * got.out[i].size()), 0) << "seed " << seed;
      }
    }
    Seed(0);
  }
}

std::vector<float> Multiply(bool hopper, DType dtype, QuantFormat quant, int outputs, int cols, int tokens) {
  const auto device = MakeHopper(hopper);
  Rng rng(9);
  std::vector<float> values(size_t(outputs) * size_t(cols)), in(size_t(tokens) * size_t(cols)), bias(size_t(outputs), 0.5f);
  for (float& x : values) x = float(rng.Uniform()) - 0.5f;
  for (float& x : in) x = float(rng.Uniform()) * 4 - 2;
  in[5] = 1e6f;  // beyond float16
  const HostMatrix matrix = {values.data(), DType::kF32, outputs, cols, "weight"},
                   row = {bias.data(), DType::kF32, 1, outputs, "bias"};
  const Weight weight = device->PackLinear({&matrix, 1}, dtype, quant).value(), biases = device->PackVector({&row, 1}).value();
  float* const device_in = static_cast<float*>(device->Allocate(in.size() * 4, "in").value());
  std::vector<float> out(size_t(tokens) * size_t(outputs));
  float* const device_out = static_cast<float*>(device->Allocate(out.size() * 4, "out").value());
  device->CopyToDevice(device_in, in.data(), in.size() * 4);
  device->Linear(device_in, tokens, weight, &biases, device_out);
  device->CopyToHost(out.data(), device_out, out.size() * 4);
  return out;
}

TEST(Hopper, ProductsLeaveTheSameBits) {
  if (MakeHopper(true) == nullptr) GTEST_SKIP();
  struct Shape {
    DType dtype;
    int outputs, cols, tokens;
    bool taken = true;
  };
  const Shape shapes[] = {{DType::kBF16, 150, 600, 140},  // parts of tiles, chunks and blocks
                          {DType::kF16, 16, 1100, 65},    // more than two chunks
                          {DType::kBF16, 130, 30, 257},   // part of a stage
                          {DType::kBF16, 40, 100, 64, false}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(fmt::format("{} outputs of {} inputs, {} tokens", shape.outputs, shape.cols, shape.tokens));
    Seed(0);
    const auto run = [&](bool hopper) { return Multiply(hopper, shape.dtype, {}, shape.outputs, shape.cols, shape.tokens); };
    const std::vector<float> want = run(false);
    for (uint64_t seed = 0; seed < (shape.taken ? kSeeds : 1); ++seed) {
      Seed(seed);
      const int64_t before = ProductsOfWarpgroups();
      EXPECT_EQ(run(true), want) << "seed " << seed;
      ExpectTaken(ProductsOfWarpgroups() - before, shape.taken);
    }
    Seed(0);
  }
}

}  // namespace
}  // namespace kvasir::testing
