#include <gmock/gmock.h>

#include <array>
#include <limits>

#include "tests/kernels/kv_fixture.h"
#include "tests/slow.h"

namespace kvasir::testing {
namespace {

using Outputs = std::vector<std::vector<float>>;  // [sequence][tokens * q_heads * out_dim]

// With vdpbf16ps, and on tensor cores, q and the weights are rounded to the KV's type too, and codes are multiplied as float16
// there; all else keeps float accuracy.
double Tolerance(const std::string& device, KvFormat format) {
  const bool quantised = format.quant != KvQuant::kNone;
  if (device == "cuda" && (quantised || format.dtype == DType::kF16)) return 2e-3;
  return (device == "avx512_bf16" || device == "cuda") && !quantised && format.dtype == DType::kBF16 ? 1e-2 : 1e-5;
}

constexpr KvQuant kQuants[] = {KvQuant::kFp8, KvQuant::kInt8, KvQuant::kInt4};

// Feeds every sequence to its end, `chunk` tokens at a time; all sequences in one step when `together`.
Outputs FeedAll(KvFixture& fixture, int sequences, int chunk, bool together) {
  Outputs out(sequences);
  const auto feed = [&](std::vector<int> which) {
    while (true) {
      std::vector<KvFixture::Feed> feeds;
      for (int s : which) {
        const int rows = std::min(chunk, fixture.Length(s) - fixture.Fed(s));
        if (rows > 0) feeds.push_back({s, rows});
      }
      if (feeds.empty()) return;
      const auto parts = fixture.Step(feeds);
      for (size_t i = 0; i < feeds.size(); ++i) {
        auto& all = out[feeds[i].sequence];
        all.insert(all.end(), parts[i].begin(), parts[i].end());
      }
    }
  };
  std::vector<int> all(sequences);
  std::iota(all.begin(), all.end(), 0);
  if (together) {
    feed(all);
  } else {
    for (int s : all) feed({s});
  }
  return out;
}

void ExpectOracle(const KvFixture& fixture, const KvShape& shape, const Outputs& out, int every, double tolerance) {
  const int width = shape.q_heads() * shape.out_dim();
  for (size_t s = 0; s < out.size(); ++s) {
    const int tokens = int(out[s].size()) / width;
    ASSERT_EQ(tokens, fixture.Length(int(s)));
    for (int t = 0; t < tokens; t = t + 1 == tokens ? tokens : std::min(t + every, tokens - 1)) {
      const std::vector<double> want = fixture.Oracle(int(s), t);
      // Rounded weights err by the size of values, however small their sum is.
      double scale = tolerance > 1e-4 ? 0.5 : 0;
      for (double w : want) scale = std::max(scale, std::abs(w));
      for (int j = 0; j < width; ++j) {
        ASSERT_NEAR(out[s][size_t(t) * width + j], want[j], tolerance * scale)
            << shape.Describe() << " sequence " << s << " token " << t << " element " << j;
      }
    }
  }
}

void ExpectSameBits(const Outputs& a, const Outputs& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t s = 0; s < a.size(); ++s) {
    ASSERT_EQ(a[s].size(), b[s].size()) << what;
    for (size_t i = 0; i < a[s].size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(a[s][i]), std::bit_cast<uint32_t>(b[s][i]))
          << what << " sequence " << s << " element " << i << ": " << a[s][i] << " and " << b[s][i];
    }
  }
}

class AttentionTest : public ::testing::TestWithParam<DeviceChoice> {};

TEST_P(AttentionTest, EqualsDenseAttentionOverRandomShapes) {
  const auto device = MakeDevice(GetParam());
  constexpr int kBlocks[] = {1, 3, 8, 16, 32, 64}, kGroups[] = {1, 2, 3, 4, 7, 8}, kDims[] = {1, 7, 8, 16, 48, 64, 80, 128};
  constexpr int kWindows[] = {0, 0, 1, 5, 16, 33, 100};
  for (uint64_t seed = 1; seed <= (IsEmulated(*device) ? 90 : 140) / (kSanitized ? 3 : 1); ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    KvShape shape;
    shape.dtype = DType(rng.Below(3));
    shape.block_tokens = kBlocks[rng.Below(std::size(kBlocks))];
    shape.layers = int(rng.Between(1, 2));
    shape.kv_heads = int(rng.Between(1, 3));
    shape.group = kGroups[rng.Below(std::size(kGroups))];
    shape.head_dim = kDims[rng.Below(std::size(kDims))];
    shape.window = kWindows[rng.Below(std::size(kWindows))];
    if (rng.Chance(0.5)) {
      shape.quant = kQuants[rng.Below(3)];
    } else if (rng.Chance(0.3)) {
      shape.kv_heads = 1;
      shape.value_dim = int(rng.Between(1, shape.head_dim));
      if (rng.Chance(0.2)) shape.group = 40;
    }
    if (rng.Chance(0.3)) shape.softcap = 2;
    shape.sinks = rng.Chance(0.3);
    std::vector<int> lengths;
    for (int s = int(rng.Between(1, 4)); s > 0; --s) lengths.push_back(int(rng.Between(1, 70)));
    const bool ragged = rng.Chance(0.4);
    KvFixture fixture(*device, shape, lengths, ragged, seed);
    const Outputs out = FeedAll(fixture, int(lengths.size()), int(rng.Between(1, 40)), rng.Chance(0.5));
    ExpectOracle(fixture, shape, out, 7, Tolerance(GetParam().name, shape.format()));
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, EqualsDenseAttentionOverLongContexts) {
  const auto device = MakeDevice(GetParam());
  const KvFormat formats[] = {DType::kF32, DType::kF16, DType::kBF16, KvQuant::kFp8, KvQuant::kInt8, KvQuant::kInt4};
  for (const KvFormat format : formats) {
    for (int window : {0, 600}) {
      const bool slow = GetParam().name == "reference" || IsEmulated(*device);
      KvShape shape{format.dtype, 16, 1, 1, IsEmulated(*device) ? 1 : 4, 32, window};
      shape.quant = format.quant;
      KvFixture fixture(*device, shape, {slow && kSanitized ? 620 : slow ? 1100 : 1700}, false, 5);
      ExpectOracle(fixture, shape, FeedAll(fixture, 1, 512, true), 211, Tolerance(GetParam().name, format));
      if (HasFatalFailure()) return;
    }
  }
  const KvShape latent{DType::kBF16, 16, 1, 1, 1, 272, 0, 256};
  KvFixture fixture(*device, latent, {1100}, false, 5);
  ExpectOracle(fixture, latent, FeedAll(fixture, 1, 400, true), 211, Tolerance(GetParam().name, latent.format()));
}

// Sequences that begin with the same blocks, in every way of sharing them: their splits are computed together, and nobody's bits
// depend on whom with.
TEST_P(AttentionTest, SharedPrefixesChangeNoBit) {
  const auto device = MakeDevice(GetParam());
  constexpr int kBlocks[] = {16, 16, 16, 32, 48, 256}, kGroups[] = {1, 2, 4, 7, 70}, kDims[] = {16, 20, 64};
  constexpr uint64_t kSeeds = kSanitized ? 4 : 24;
  const bool slow = GetParam().name == "reference";
  for (uint64_t seed = 1; seed <= (slow ? 2 : IsEmulated(*device) && !kSanitized ? 10 : kSeeds); ++seed) {
    Rng rng(seed);
    KvLayout layout = {.dtype = DType(rng.Below(3)), .block_tokens = kBlocks[rng.Below(std::size(kBlocks))], .num_layers = 2};
    layout.num_kv_heads = int(rng.Between(1, 2));
    layout.head_dim = kDims[rng.Below(std::size(kDims))];
    const int group = kGroups[rng.Below(std::size(kGroups))], heads = group * layout.num_kv_heads;
    if (rng.Chance(0.4)) {
      layout.quant = kQuants[rng.Below(3)];
    } else if (layout.num_kv_heads == 1 && rng.Chance(0.3)) {
      layout.value_dim = layout.head_dim / 2;
    }
    SCOPED_TRACE(fmt::format("seed {} block {} group {} {}", seed, layout.block_tokens, group, Name(layout.format())));

    // A tree of texts: each begins with a part of an earlier one, cut at a block, and has at least one slot of its own.
    const int texts = int(rng.Between(2, 9));
    std::vector<std::vector<uint32_t>> blocks(texts);
    std::vector<int> slots(texts), rows(texts);
    uint32_t next = 0;
    for (int t = 0; t < texts; ++t) {
      const int whole = int(rng.Below(2300 / layout.block_tokens));
      if (t > 0 && rng.Chance(0.85)) {
        const int from = int(rng.Below(t));
        const size_t kept =
            std::min<size_t>(blocks[from].size() - 1, rng.Chance(0.5) ? 1u << 20 : rng.Below(2300 / layout.block_tokens));
        blocks[t].assign(blocks[from].begin(), blocks[from].begin() + int64_t(kept));
      }
      while (int(blocks[t].size()) < whole) blocks[t].push_back(next++);
      blocks[t].push_back(next++);
      const int own = int(rng.Between(1, layout.block_tokens));
      slots[t] = int(blocks[t].size() - 1) * layout.block_tokens + own;
      rows[t] = rng.Chance(0.7) ? 1 : int(rng.Between(1, std::min(own, 40)));
    }
    const size_t bytes = layout.block_bytes() * next;
    auto* const base = static_cast<std::byte*>(device->Allocate(bytes, "test KV").value());
    std::vector<std::byte> pages(bytes);
    for (size_t at = 0; layout.quant != KvQuant::kNone && at < bytes; ++at) {  // any code but NaN, scales of about 1/1000
      const size_t inside = at % layout.page_bytes();
      const bool scale = layout.scaled() && inside >= layout.scales_offset();
      pages[at] = std::byte(scale ? inside % 2 == 1 ? 0x14 : rng.Below(256) : rng.Below(256) & 0xf7);
    }
    for (size_t at = 0; layout.quant == KvQuant::kNone && at + 4 <= bytes; at += SizeOf(layout.dtype)) {
      const float x = float(rng.Uniform() - 0.5);
      const uint16_t half = layout.dtype == DType::kF16 ? F32ToF16(x) : F32ToBF16(x);
      std::memcpy(&pages[at], layout.dtype == DType::kF32 ? static_cast<const void*>(&x) : &half, SizeOf(layout.dtype));
    }
    device->CopyToDevice(base, pages.data(), bytes);
    std::vector<SequenceTable> tables;
    std::vector<SequenceSlice> slices;
    int all_rows = 0;
    for (int t = 0; t < texts; ++t) {
      tables.push_back({blocks[t].data(), slots[t], nullptr});
      slices.push_back({all_rows, rows[t], t});
      all_rows += rows[t];
    }
    const PagedKv kv = {base, layout.block_bytes(), layout, tables};
    const int out_dim = layout.value_dim > 0 ? layout.value_dim : layout.head_dim;
    std::vector<float> host(size_t(all_rows) * heads * layout.head_dim), together(size_t(all_rows) * heads * out_dim),
        alone = together;
    for (float& x : host) x = float(rng.Uniform() * 4 - 2);
    float* const q = static_cast<float*>(device->Allocate(host.size() * 4, "q").value());
    float* const out = static_cast<float*>(device->Allocate(together.size() * 4, "out").value());
    device->CopyToDevice(q, host.data(), host.size() * 4);
    const AttentionParams params = {.num_q_heads = heads, .scale = 0.25f, .softcap = rng.Chance(0.3) ? 3.0f : 0.0f};
    device->Attention(q, 1, params, slices, kv, out);
    device->CopyToHost(together.data(), out, together.size() * 4);
    for (const SequenceSlice& slice : slices) device->Attention(q, 1, params, {&slice, 1}, kv, out);
    device->CopyToHost(alone.data(), out, alone.size() * 4);
    EXPECT_EQ(std::memcmp(together.data(), alone.data(), alone.size() * 4), 0);
    // In a step that is known beforehand. What the first one asks for the second one brings.
    for (int step = 0; step < 2; ++step) {
      device->StartStep({.slices = slices, .kv = {&kv, 1}}, all_rows);
      device->Attention(q, 1, params, slices, kv, out);
      EXPECT_TRUE(device->FinishStep());
    }
    device->CopyToHost(together.data(), out, together.size() * 4);
    EXPECT_EQ(std::memcmp(together.data(), alone.data(), alone.size() * 4), 0);
    for (void* buffer : {static_cast<void*>(base), static_cast<void*>(q), static_cast<void*>(out)}) device->Free(buffer);
  }
}

TEST_P(AttentionTest, WideHeadsAndLatentKeys) {
  const auto device = MakeDevice(GetParam());
  const KvShape shapes[] = {{DType::kBF16, 16, 1, 1, 70, 576, 0, 512},          {DType::kF32, 16, 1, 1, 3, 1024, 20},
                            {DType::kF16, 32, 1, 1, 40, 80, 30, 64, 0, true},   {DType::kBF16, 7, 2, 1, 33, 48, 0, 33, 5, false},
                            {DType::kF32, 64, 1, 1, 34, 192, 0, 128, 0, false}, {DType::kBF16, 16, 1, 2, 4, 64, 0, 0, 30, true}};
  for (const KvShape& shape : shapes) {
    KvFixture fixture(*device, shape, {90, 13}, false, 6);
    ExpectOracle(fixture, shape, FeedAll(fixture, 2, 31, true), 23, Tolerance(GetParam().name, shape.format()));
    if (HasFatalFailure()) return;
  }
}

// Attention over codes is attention over what they stand for: of float32 KV on the CPU, of float16 KV on the GPU, bit for bit.
TEST_P(AttentionTest, QuantisedKvIsWhatItsCodesStandFor) {
  const auto device = MakeDevice(GetParam());
  const DType type = GetParam().name == "cuda" ? DType::kF16 : DType::kF32;
  for (const KvQuant quant : kQuants) {
    for (const int d : {64, 80, 96, 128, 20, 33, 160, 256}) {
      for (const auto& [block_tokens, group, window] : {std::array{16, 4, 0}, {48, 1, 40}, {7, 3, 0}, {32, 20, 0}}) {
        if (d != 64 && d != 128 && (group == 20) != (d == 80) && (IsEmulated(*device) || kSanitized)) continue;
        if (kSanitized && d != 64 && d != 80 && group != 4) continue;  // every size, but not in every way
        KvShape shape{type, block_tokens, 1, 2, group, d, window};
        SCOPED_TRACE(fmt::format("{} {}", Name(KvFormat(quant)), shape.Describe()));
        const std::vector<int> lengths = {75, 1, 18};
        KvFixture values(*device, shape, lengths, group == 3, 21,
                         [&](std::vector<float>& row, bool, int) { row = Stored(quant, row.data(), d); });
        shape.quant = quant;
        KvFixture codes(*device, shape, lengths, group == 3, 21);
        ExpectSameBits(FeedAll(codes, 3, 31, true), FeedAll(values, 3, 31, true), "codes and values");
        if (HasFatalFailure()) return;
      }
    }
  }
}

// NaN, infinities and values that are too large become what kv_quant.h says.
TEST_P(AttentionTest, QuantisedKvOfBadTokens) {
  const auto device = MakeDevice(GetParam());
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const KvQuant quant : kQuants) {
    for (const float bad : {nan, inf, -inf, 1e30f}) {
      SCOPED_TRACE(fmt::format("{} {}", Name(KvFormat(quant)), bad));
      const KvShape shape{DType::kF32, 16, 1, 1, 2, 64, 1, 0, 0, false, quant};  // window 1: a token sees its own value
      KvFixture fixture(*device, shape, {40}, false, 3, [&](std::vector<float>& row, bool key, int slot) {
        if (!key && slot == 20) row[5] = bad;
      });
      const Outputs out = FeedAll(fixture, 1, 40, true);
      const int width = shape.q_heads() * shape.out_dim();
      const bool whole = quant != KvQuant::kFp8 && !(std::abs(bad) < inf);
      for (int t = 0; t < 40; ++t) {
        for (int j = 0; j < width; ++j) {
          const float got = out[0][size_t(t * width + j)];
          if (t == 20 && (whole || (std::isnan(bad) && j % 64 == 5))) {
            ASSERT_TRUE(std::isnan(got)) << j;
          } else if (t == 20 && j % 64 == 5) {
            ASSERT_EQ(got, std::copysign(quant == KvQuant::kFp8 ? 448.0f : got, bad));
            if (quant != KvQuant::kFp8) {
              ASSERT_NEAR(std::abs(got), kKvLargest, 64);
            }
          } else if (t == 20 || !std::isnan(bad * 0)) {  // on the CPU a NaN may reach the rows of its own chunk
            ASSERT_TRUE(std::isfinite(got)) << t << " " << j;
          }
        }
      }
    }
  }
}

TEST_P(AttentionTest, OneHugeScoreTakesAll) {
  const auto device = MakeDevice(GetParam());
  // A query far longer than the keys: weights become 0 and 1, and must not overflow on the way.
  KvLayout layout = {DType::kF32, 16, 1, 1, 64};
  auto* base = static_cast<std::byte*>(device->Allocate(layout.block_bytes(), "kv").value());
  auto* buffer = static_cast<float*>(device->Allocate(16 * 192 * 4, "qkv").value());
  auto* q = static_cast<float*>(device->Allocate(16 * 64 * 4, "q").value());
  auto* out = static_cast<float*>(device->Allocate(16 * 64 * 4, "out").value());
  std::vector<float> host(16 * 192);
  for (int r = 0; r < 16; ++r) {
    for (int j = 0; j < 64; ++j) {
      host[r * 192 + j] = 1e4f;
      host[r * 192 + 64 + j] = r == 5 ? 50.0f : -50.0f;
      host[r * 192 + 128 + j] = float(r);
    }
  }
  device->CopyToDevice(buffer, host.data(), host.size() * 4);
  const uint32_t block = 0;
  const SequenceTable table = {&block, 16, nullptr};
  const PagedKv kv = {base, layout.block_bytes(), layout, {&table, 1}};
  const SequenceSlice slice = {0, 16, 0};
  const float one = 1;
  const std::vector<int32_t> positions(16, 0);
  device->RopeAppend(buffer, positions, {&one, &one, 0, 1}, 1, 0, {&slice, 1}, kv, q);
  device->Attention(q, 0, {1, 0.125f, 0}, {&slice, 1}, kv, out);
  std::vector<float> got(16 * 64);
  device->CopyToHost(got.data(), out, got.size() * 4);
  for (int r = 0; r < 16; ++r) {
    for (int j = 0; j < 64; ++j) {
      ASSERT_FLOAT_EQ(got[r * 64 + j], r >= 5 ? 5.0f : float(r) / 2) << r;
    }
  }
}

// Tokens of one sequence, appended and attended to `chunk` at a time. [tokens * heads * head_dim]
std::vector<float> AttendInChunks(Device& device, const KvLayout& layout, int heads, int window, std::span<const float> qkv,
                                  int chunk) {
  const int d = layout.head_dim, width = (heads + 2) * d, tokens = int(qkv.size()) / width;
  std::vector<uint32_t> blocks(size_t(tokens + layout.block_tokens - 1) / size_t(layout.block_tokens));
  std::iota(blocks.begin(), blocks.end(), 0u);
  auto* const base = static_cast<std::byte*>(device.Allocate(layout.block_bytes() * blocks.size(), "kv").value());
  auto* const in = static_cast<float*>(device.Allocate(size_t(chunk) * width * 4, "qkv").value());
  auto* const q = static_cast<float*>(device.Allocate(size_t(chunk) * heads * d * 4, "q").value());
  auto* const out = static_cast<float*>(device.Allocate(size_t(chunk) * heads * d * 4, "out").value());
  std::vector<float> result(size_t(tokens) * heads * d);
  for (int t = 0; t < tokens; t += chunk) {
    const int rows = std::min(chunk, tokens - t);
    const SequenceTable table = {blocks.data(), t + rows, nullptr};
    const PagedKv kv = {base, layout.block_bytes(), layout, {&table, 1}};
    const SequenceSlice slice = {0, rows, 0};
    device.CopyToDevice(in, &qkv[size_t(t) * width], size_t(rows) * width * 4);
    device.RopeAppend(in, std::vector<int32_t>(rows, 0), {nullptr, nullptr, 0, 1}, heads, 0, {&slice, 1}, kv, q);
    device.Attention(q, 0, {.num_q_heads = heads, .scale = 0.2f, .window = window}, {&slice, 1}, kv, out);
    device.CopyToHost(&result[size_t(t) * heads * d], out, size_t(rows) * heads * d * 4);
  }
  for (void* buffer : {static_cast<void*>(base), static_cast<void*>(in), static_cast<void*>(q), static_cast<void*>(out)})
    device.Free(buffer);
  return result;
}

// An infinity or NaN in the query, key or value of a token changes no row that does not see it, not even in its own chunk.
TEST_P(AttentionTest, UnfiniteTokensTouchOnlyRowsThatSeeThem) {
  if (GetParam().name != "reference" && GetParam().name != "cuda") GTEST_SKIP() << "not promised";
  const auto device = MakeDevice(GetParam());
  const int heads = 4, tokens = 50, bad = 21;
  for (const KvFormat format : {KvFormat(DType::kBF16), KvFormat(DType::kF16), KvFormat(DType::kF32), KvFormat(KvQuant::kFp8),
                                KvFormat(KvQuant::kInt4)}) {
    for (const int window : {0, 9}) {
      const KvLayout layout = {format.dtype, 16, 1, 1, 24, 0, 0, format.quant};
      const int d = layout.head_dim, width = (heads + 2) * d;
      Rng rng(4);
      std::vector<float> clean(size_t(tokens) * width);
      for (float& x : clean) x = float(rng.Uniform() * 2 - 1);
      for (const int part : {0, heads, heads + 1}) {  // a head of q, k, v
        for (const int chunk : {1, 4, 50}) {
          SCOPED_TRACE(fmt::format("{} window {} part {} chunk {}", Name(format), window, part, chunk));
          std::vector<float> dirty = clean;
          dirty[size_t(bad) * width + part * d + 3] = INFINITY;
          dirty[size_t(bad) * width + part * d + 20] = NAN;
          const std::vector<float> want = AttendInChunks(*device, layout, heads, window, clean, chunk);
          const std::vector<float> got = AttendInChunks(*device, layout, heads, window, dirty, chunk);
          for (int t = 0; t < tokens; ++t) {
            const bool sees = part == 0 ? t == bad : t >= bad && (window == 0 || t < bad + window);
            const size_t at = size_t(t) * heads * d;
            ASSERT_EQ(std::memcmp(&got[at], &want[at], size_t(heads) * d * 4) == 0, !sees) << t;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, AttentionTest, ::testing::ValuesIn(AllDevices()), ChoiceName);

class OneAnswerTest : public ::testing::TestWithParam<DeviceChoice> {};

TEST_P(OneAnswerTest, BitsDoNotDependOnBatchChunkOrThreads) {
  struct Case {
    KvShape shape;
    std::vector<int> lengths;
    bool ragged;
  };
  const Case cases[] = {
      {{DType::kBF16, 16, 1, 2, 4, 64, 0}, {1, 17, 530, 64}, false},
      {{DType::kBF16, 16, 1, 1, 3, 48, 100}, {5, 300, 129}, true},
      {{DType::kF32, 16, 2, 2, 1, 32, 0}, {90, 3}, true},
      {{DType::kF16, 8, 1, 1, 8, 24, 37}, {140, 66}, false},
      {{DType::kF32, 1, 1, 1, 5, 7, 0}, {75, 80}, false},
      {{DType::kBF16, 64, 1, 1, 40, 16, 0}, {100, 13}, false},
      {{DType::kBF16, 16, 1, 1, 70, 48, 0, 32}, {100, 13, 530}, false},
      {{DType::kF32, 16, 1, 1, 36, 48, 70, 16, 20, true}, {100, 13}, true},
      {{DType::kF16, 5, 1, 2, 3, 24, 0, 0, 4, true}, {60, 530}, false},
      {{DType::kF16, 16, 1, 1, 2, 256, 0}, {70}, false},
      {{DType::kBF16, 16, 1, 1, 3, 160, 50, 0, 0, true}, {70, 20}, true},
      {{DType::kBF16, 16, 1, 1, 20, 576, 0, 512}, {40, 33}, false},
      {{DType::kF32, 16, 1, 2, 4, 128, 0, 0, 0, false, KvQuant::kFp8}, {1, 17, 530}, false},
      {{DType::kF32, 16, 1, 2, 3, 64, 100, 0, 0, false, KvQuant::kInt8}, {5, 300, 129}, true},
      {{DType::kF32, 32, 1, 1, 8, 128, 0, 0, 4, true, KvQuant::kInt4}, {90, 530}, false},
      {{DType::kF32, 5, 2, 1, 7, 80, 33, 0, 0, true, KvQuant::kInt4}, {60, 20}, true},
      {{DType::kF32, 48, 1, 1, 2, 256, 0, 0, 0, false, KvQuant::kInt8}, {70, 9}, false},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.shape.Describe());
    std::vector<int> lengths = c.lengths;
    if (kSanitized && &c != cases) {  // the first has splits
      for (int& length : lengths) length = std::min(length, 140);
    }
    const int n = int(lengths.size());
    const auto run = [&](int threads, int chunk, bool together) {
      const auto device = MakeDevice({GetParam().name, threads});
      KvFixture fixture(*device, c.shape, lengths, c.ragged, 9);
      return FeedAll(fixture, n, chunk, together);
    };
    const bool emulated = IsEmulated(*MakeDevice(GetParam()));
    const Outputs want = run(1, 1, false);
    for (int threads : {1, 2, 3}) {
      if (GetParam().name == "cuda" && threads > 1) continue;  // it has none
      for (int chunk : {1, 7, 16, 512}) {
        for (bool together : {false, true}) {
          if (emulated && (chunk == 1 || chunk == 16 || together != (chunk == 512))) continue;
          if (kSanitized && (threads == 2 || chunk == 1 || chunk == 16)) continue;
          ExpectSameBits(want, run(threads, chunk, together),
                         fmt::format("{} threads, chunk {}, together {}", threads, chunk, together));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(OneAnswerTest, SplitPiecesGiveTheBitsOfWholeItems) {
  // One sequence, one head, several splits: cut among many threads; on one thread: merged on the way.
  const KvShape shape{DType::kBF16, 16, 1, 1, 2, 64, 0};
  Outputs one, many;
  for (int threads : {1, 8}) {
    const auto device = MakeDevice({GetParam().name, threads});
    KvFixture fixture(*device, shape, {2100}, false, 3);
    fixture.Step({{0, 2047}});
    for (int i = 0; i < 3; ++i) (threads == 1 ? one : many).push_back(fixture.Step({{0, i + 1}})[0]);
  }
  ExpectSameBits(one, many, "8 threads");
}

// The reference sums in double and promises no bits.
std::vector<DeviceChoice> DevicesOfOneAnswer() {
  std::vector<DeviceChoice> all = AllDevices();
  std::erase_if(all, [](const DeviceChoice& choice) { return choice.name == "reference"; });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Devices, OneAnswerTest, ::testing::ValuesIn(DevicesOfOneAnswer()), ChoiceName);

}  // namespace
}  // namespace kvasir::testing
