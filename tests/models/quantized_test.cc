// Checkpoints that come quantised: their config, the unpacking of each form against a plain reading of its definition, and what
// is refused. That whole models are right is model_test's.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/rng.h"
#include "models/model.h"
#include "models/quantized_config.h"
#include "models/quantized_tensors.h"
#include "tests/models/fake_fs.h"
#include "tests/models/test_folder.h"

namespace kvasir {
namespace {

using nlohmann::json;

// --- numbers --------------------------------------------------------------------------------------------------------------

TEST(QuantizedTensors, Fp8IsWhatItsDefinitionSays) {
  for (int bits = 0; bits < 256; ++bits) {
    SCOPED_TRACE(bits);
    const double sign = bits >= 128 ? -1 : 1;
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float e4m3 = Fp8E4M3ToF32(uint8_t(bits));
    if ((bits & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(e4m3));
    } else if (exponent == 0) {
      EXPECT_EQ(e4m3, sign * mantissa / 8.0 * std::pow(2, -6));
    } else {
      EXPECT_EQ(e4m3, sign * (1 + mantissa / 8.0) * std::pow(2, exponent - 7));
    }
    const int wide = bits >> 2 & 31, two = bits & 3;
    const float e5m2 = Fp8E5M2ToF32(uint8_t(bits));
    if (wide == 31) {
      EXPECT_EQ(std::isnan(e5m2), two != 0);
      if (two == 0) {
        EXPECT_EQ(e5m2, sign * INFINITY);
      }
    } else {
      EXPECT_EQ(e5m2, wide == 0 ? sign * two / 4.0 * std::pow(2, -14) : sign * (1 + two / 4.0) * std::pow(2, wide - 15));
    }
  }
  EXPECT_TRUE(std::signbit(Fp8E4M3ToF32(0x80)));
  EXPECT_EQ(Fp8E4M3ToF32(0x7e), 448);
  EXPECT_EQ(Fp8E5M2ToF32(0x7b), 57344);
}

// Codes, zeros and scales of a random weight, and its tensors laid out number by number.
struct Layout {
  StoredQuant stored;
  std::vector<int> codes, zeros;  // [n, k], [n, groups]
  std::vector<float> scales;      // [n, groups]
  std::vector<std::byte> code_bytes, zero_bytes, scale_bytes;
};

// Number `index` of `bits` bits in a run of 32-bit words.
void PutBits(std::vector<std::byte>& bytes, int64_t word, int64_t nibble, int bits, int value) {
  uint32_t at;
  std::memcpy(&at, bytes.data() + word * 4, 4);
  at |= uint32_t(value) << (nibble * bits);
  std::memcpy(bytes.data() + word * 4, &at, 4);
}

Layout RandomLayout(Rng& rng, CodeForm form, int bits, bool act_order) {
  constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  Layout made;
  StoredQuant& s = made.stored;
  const int64_t n = 8 * rng.Between(1, 20), k = 8 * rng.Between(1, 24), per_word = 32 / bits;
  s = {.form = form, .bits = bits, .rows = n, .cols = k, .zeros = true, .zeros_minus_one = rng.Chance(0.5)};
  s.group = int64_t{8} << rng.Below(5);
  s.groups = (k + s.group - 1) / s.group;
  if (act_order)
    for (int64_t i = 0; i < k; ++i) s.group_of.push_back(int32_t(rng.Below(uint64_t(s.groups))));
  for (int64_t i = 0; i < n * k; ++i) made.codes.push_back(int(rng.Below(1u << bits)));
  for (int64_t i = 0; i < n * s.groups; ++i) {
    made.zeros.push_back(int(rng.Below(1u << bits)));
    made.scales.push_back(float(rng.Uniform() + 0.01));
  }
  s.scale_type = ScaleType::kF32;
  made.scale_bytes.resize(size_t(n * s.groups) * 4);
  made.code_bytes.resize(size_t(n * k) * size_t(bits) / 8);
  made.zero_bytes.resize(size_t((n + 7) / 8 * 8 * s.groups) * 4);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      const int code = made.codes[size_t(row * k + i)];
      if (form == CodeForm::kGptq) PutBits(made.code_bytes, i / per_word * n + row, i % per_word, bits, code);
      if (form == CodeForm::kPacked) PutBits(made.code_bytes, row * (k / per_word) + i / per_word, i % per_word, bits, code);
      if (form == CodeForm::kInt8) made.code_bytes[size_t(row * k + i)] = std::byte(code - 128);
      for (int nibble = 0; form == CodeForm::kAwq && nibble < 8; ++nibble)
        if (kAwqOrder[nibble] == row % 8) PutBits(made.code_bytes, i * (n / 8) + row / 8, nibble, 4, code);
    }
    for (int64_t g = 0; g < s.groups; ++g) {
      const int zero = made.zeros[size_t(row * s.groups + g)];
      const int less = s.zeros_minus_one ? (zero + (1 << bits) - 1) % (1 << bits) : zero;
      if (form == CodeForm::kGptq) PutBits(made.zero_bytes, g * (n / per_word) + row / per_word, row % per_word, bits, less);
      if (form == CodeForm::kPacked) PutBits(made.zero_bytes, row / per_word * s.groups + g, row % per_word, bits, zero);
      if (form == CodeForm::kInt8) made.zero_bytes[size_t(row * s.groups + g)] = std::byte(zero - 128);
      for (int nibble = 0; form == CodeForm::kAwq && nibble < 8; ++nibble)
        if (kAwqOrder[nibble] == row % 8) PutBits(made.zero_bytes, g * (n / 8) + row / 8, nibble, 4, zero);
      const int64_t at = s.by_input() ? g * n + row : row * s.groups + g;
      std::memcpy(made.scale_bytes.data() + at * 4, &made.scales[size_t(row * s.groups + g)], 4);
    }
  }
  if (form == CodeForm::kInt8) s.zeros_packed = false;
  return made;
}

TEST(QuantizedTensors, EveryFormIsReadAsItsDefinitionSays) {
  struct Case {
    CodeForm form;
    int bits;
  };
  Rng rng(11);
  for (int round = 0; round < 120; ++round) {
    const Case cases[] = {{CodeForm::kGptq, 4},   {CodeForm::kGptq, 8},   {CodeForm::kAwq, 4},
                          {CodeForm::kPacked, 4}, {CodeForm::kPacked, 8}, {CodeForm::kInt8, 8}};
    const auto [form, bits] = cases[round % 6];
    const Layout made = RandomLayout(rng, form, bits, round % 4 == 3);
    const StoredQuant& s = made.stored;
    SCOPED_TRACE(
        fmt::format("seed 11, round {}: form {} bits {} [{}, {}] groups of {}", round, int(form), bits, s.rows, s.cols, s.group));
    const int64_t first = int64_t(rng.Below(uint64_t(s.rows))), rows = rng.Between(1, s.rows - first);
    const std::byte* codes = made.code_bytes.data() + (s.by_input() ? 0 : first * s.cols * bits / 8);
    const UnpackedQuant unpacked = Unpack(s, {codes, made.scale_bytes.data(), made.zero_bytes.data()}, first, rows);
    std::vector<float> values(size_t(rows * s.cols));
    WriteValues(s, unpacked, DType::kF32, reinterpret_cast<std::byte*>(values.data()));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < s.cols; ++i) {
        const int64_t group = s.group_of.empty() ? i / s.group : s.group_of[size_t(i)];
        const size_t at = size_t((first + row) * s.groups + group);
        ASSERT_EQ(values[size_t(row * s.cols + i)],
                  made.scales[at] * float(made.codes[size_t((first + row) * s.cols + i)] - made.zeros[at]))
            << row << " " << i;
      }
    }
  }
}

// Codes of the kernels' formats stand for the values, within what rounding of scale and low to float16 moves them.
TEST(QuantizedTensors, CodesStandForTheValues) {
  Rng rng(12);
  int written = 0;
  for (int round = 0; round < 200; ++round) {
    const bool int4 = round % 2 == 0;
    Layout made = RandomLayout(rng, int4 ? CodeForm::kAwq : CodeForm::kPacked, int4 ? 4 : 8, false);
    StoredQuant& s = made.stored;
    if (!int4) s.zeros = false;
    if (round % 3 == 0) {  // act-order: groups of equal size, shuffled
      for (int64_t i = 0; i < s.cols; ++i) s.group_of.push_back(int32_t(i / s.group));
      for (size_t i = s.group_of.size() - 1; i > 0; --i) std::swap(s.group_of[i], s.group_of[rng.Below(i + 1)]);
    }
    const std::vector<int32_t> input_order = InputOrder(s);
    ASSERT_EQ(input_order.empty(), s.group_of.empty());
    const QuantFormat format = ExactFormat(s);
    if (!format) {
      EXPECT_NE(s.group % 32, 0);
      continue;
    }
    ++written;
    const UnpackedQuant unpacked =
        Unpack(s, {made.code_bytes.data(), made.scale_bytes.data(), made.zero_bytes.data()}, 0, s.rows);
    std::vector<float> values(size_t(s.rows * s.cols));
    WriteValues(s, unpacked, DType::kF32, reinterpret_cast<std::byte*>(values.data()));
    std::vector<int32_t> order;
    for (int i = 0; i < 5; ++i) order.push_back(int32_t(rng.Below(uint64_t(s.rows))));
    for (const int32_t narrow : {format.group, int32_t{32}}) {
      const QuantFormat chosen = {format.kind, narrow, format.ordered};
      ASSERT_TRUE(Holds(chosen, format));
      const size_t groups = size_t(chosen.Groups(s.cols));
      std::vector<int8_t> codes(order.size() * size_t(s.cols));
      std::vector<uint16_t> scales(order.size() * groups), lows(scales.size());
      ASSERT_TRUE(WriteCodes(s, unpacked, chosen, input_order, order, codes.data(), scales.data(), lows.data()).ok());
      for (size_t row = 0; row < order.size(); ++row) {
        for (int64_t i = 0; i < s.cols; ++i) {
          const size_t g = row * groups + size_t(i / chosen.GroupSize(s.cols));
          const float got = F16ToF32(scales[g]) * codes[row * size_t(s.cols) + size_t(i)] + (int4 ? F16ToF32(lows[g]) : 0);
          const float want = values[size_t(order[row] * s.cols + (input_order.empty() ? i : input_order[size_t(i)]))];
          ASSERT_NEAR(got, want, F16ToF32(scales[g]) * (int4 ? 0.02 : 0.07)) << round;
        }
      }
    }
  }
  EXPECT_GT(written, 50);
}

TEST(QuantizedTensors, Mxfp4IsReadFromTheRowsAskedFor) {
  // Two rows of 64 are there, the second is asked for, and only its scales were read: 2^0 and 2^-9.
  StoredQuant stored = {
      .form = CodeForm::kMxfp4, .bits = 4, .rows = 2, .cols = 64, .group = 32, .groups = 2, .scale_type = ScaleType::kE8M0};
  std::vector<std::byte> blocks(32);
  const std::byte scales[] = {std::byte{127}, std::byte{118}};
  for (int i = 0; i < 32; ++i) blocks[size_t(i)] = std::byte(((2 * i + 1) % 16) << 4 | (2 * i) % 16);
  const UnpackedQuant unpacked = Unpack(stored, {blocks.data(), scales, nullptr, 1}, 1, 1);
  const float values[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  float out[64];
  WriteValues(stored, unpacked, DType::kF32, reinterpret_cast<std::byte*>(out));
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(out[i], values[i % 16] * (i < 32 ? 1.0f : 0x1p-9f)) << i;
    EXPECT_EQ(std::signbit(out[i]), i % 16 >= 8) << i;
  }
  ASSERT_EQ(ExactFormat(stored), (QuantFormat{QuantFormat::Kind::kMxfp4, 32}));
  int8_t codes[64];
  float written[2];
  ASSERT_EQ(WriteCodes(stored, unpacked, ExactFormat(stored), {}, {}, codes, written, nullptr), OkStatus());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(codes[i], i % 16);
  EXPECT_EQ(written[0], 1);
  EXPECT_EQ(written[1], 0x1p-9f);
}

TEST(QuantizedTensors, ScalesThatDoNotFitAreRefused) {
  const StoredQuant stored = {.form = CodeForm::kInt8, .rows = 1, .cols = 4};
  int8_t codes[4];
  uint16_t scale, low;
  for (const float bad : {1e6f, INFINITY, NAN}) {
    const UnpackedQuant unpacked = {.codes = {1, 2, 3, 4}, .scales = {bad}, .zeros = {128}};
    const Status status = WriteCodes(stored, unpacked, {QuantFormat::Kind::kInt8, 0}, {}, {}, codes, &scale, &low);
    EXPECT_NE(Message(status).find("--quantization none"), std::string::npos) << status;
  }
}

TEST(QuantizedTensors, FormatsAndWhatTheyHold) {
  const QuantFormat channel = {QuantFormat::Kind::kInt8, 0}, eight = {QuantFormat::Kind::kInt8, 64};
  const QuantFormat four = {QuantFormat::Kind::kInt4, 64}, finer = {QuantFormat::Kind::kInt4, 32};
  EXPECT_TRUE(Holds(eight, channel) && Holds(finer, four) && Holds(four, four));
  EXPECT_FALSE(Holds(channel, eight) || Holds(four, finer) || Holds(four, eight) || Holds({}, four) || Holds(four, {}));
  StoredQuant stored = {.form = CodeForm::kGptq, .bits = 4, .rows = 64, .cols = 512, .group = 256, .groups = 2};
  EXPECT_EQ(Name(ExactFormat(stored)), "int4:128");
  stored.group = 96;
  EXPECT_EQ(Name(ExactFormat(stored)), "int4:32");
  stored.group = 48;
  EXPECT_FALSE(ExactFormat(stored));
  stored.bits = 8, stored.groups = 1;
  EXPECT_EQ(Name(ExactFormat(stored)), "int8:channel");
  stored.zeros = true;
  EXPECT_FALSE(ExactFormat(stored));
  StoredQuant shuffled = {.form = CodeForm::kGptq, .bits = 4, .rows = 8, .cols = 96, .group = 64, .groups = 2};
  for (int i = 0; i < 96; ++i) shuffled.group_of.push_back(i % 3 == 0 ? 1 : 0);
  EXPECT_EQ(Name(ExactFormat(shuffled)), "int4:64 act-order");
  EXPECT_FALSE(Holds({QuantFormat::Kind::kInt4, 64}, ExactFormat(shuffled)));
  shuffled.group_of[0] = 0;  // 65 inputs in a group of 64
  EXPECT_TRUE(InputOrder(shuffled).empty());
  EXPECT_FALSE(ExactFormat(shuffled));
}

// --- config ---------------------------------------------------------------------------------------------------------------

TEST(QuantizedConfig, MethodsAreNamed) {
  const auto parse = [](const char* text) { return ParseQuantizedConfig(json::parse(text), false); };
  EXPECT_TRUE(parse(R"({"quant_method": "gptq", "bits": 4, "group_size": 128})")->zeros_minus_one);
  EXPECT_FALSE(
      parse(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"})")->zeros_minus_one);
  EXPECT_EQ(parse(R"({"quant_method": "fp8", "weight_block_size": [128, 64]})")->block_cols, 64);
  EXPECT_EQ(parse(R"({"config_groups": {}, "format": "pack-quantized"})")->method, QuantMethod::kCompressedTensors);
  const std::pair<const char*, const char*> refused[] = {
      {R"({"quant_method": "bitsandbytes", "load_in_4bit": true})", "quant_method 'bitsandbytes'"},
      {R"({"quant_method": "hqq"})", "supported: gptq and awq"},
      {R"({"quant_method": "exl2"})", "quant_method 'exl2'"},
      {R"({"quant_method": "mxfp4"})", "quant_method 'mxfp4'"},
      {R"({})", "no quant_method"},
      {R"([])", "wanted an object"},
      {R"({"quant_method": "gptq", "bits": 2})", "bits is 2; supported: 4, 8"},
      {R"({"quant_method": "gptq", "bits": 4, "group_size": 0})", "group_size is 0"},
      {R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"})", "checkpoint_format 'marlin'"},
      {R"({"quant_method": "awq", "bits": 4, "version": "gemv"})", "version 'gemv'"},
      {R"({"quant_method": "awq", "bits": 3})", "bits is 3"},
      {R"({"quant_method": "fp8", "weight_block_size": [128]})", "weight_block_size"},
      {R"({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"})", "format 'nvfp4-pack-quantized'"},
      {R"({"quant_method": "compressed-tensors", "format": "marlin-24"})", "format 'marlin-24'"},
      {R"({"quant_method": "compressed-tensors", "config_groups": []})", "config_groups is a list"},
      {R"({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 3}}}})", "num_bits is 3"},
      {R"({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}}})",
       "num_bits is 4; supported: 8"},
      {R"({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}})", "sparse-24-bitmask"},
      {R"({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}})", "transform_config"},
  };
  for (const auto& [text, message] : refused) {
    const auto config = parse(text);
    ASSERT_FALSE(config.ok()) << text;
    EXPECT_NE(Message(config.status()).find(message), std::string::npos) << text << "\n" << config.status();
  }
}

// --- tensors that do not fit ------------------------------------------------------------------------------------------------

// kTestConfig with widths of which GPTQ can pack words; every projection quantised.
Files QuantizedFolder(std::string_view quantization, const std::function<void(std::vector<TestTensor>&)>& change = nullptr) {
  std::string config = kTestConfig;
  Replace(config, R"("hidden_size": 8)", R"("hidden_size": 32)");
  Replace(config, R"("intermediate_size": 6)", R"("intermediate_size": 32)");
  Replace(config, R"("num_attention_heads": 2)",
          fmt::format(R"("head_dim": 16, "quantization_config": {}, "num_attention_heads": 2)", quantization));
  std::vector<TestTensor> tensors;
  const bool gptq = quantization.find("gptq") != std::string_view::npos;
  for (TestTensor tensor : TestTensors()) {
    for (uint64_t& dim : tensor.shape) dim = dim == 11 ? 11 : 32;
    if (tensor.name.find("k_proj") != std::string::npos || tensor.name.find("v_proj") != std::string::npos) tensor.shape[0] = 16;
    if (tensor.name.find("_proj.weight") == std::string::npos) {
      tensors.push_back(tensor);
      continue;
    }
    const std::string base = tensor.name.substr(0, tensor.name.size() - 7);
    const uint64_t n = tensor.shape[0], k = tensor.shape[1];
    if (gptq) {
      const uint64_t per_word = quantization.find("8") == std::string_view::npos ? 8 : 4;
      tensors.push_back({base + ".qweight", {k / per_word, n}, "I32", 4});
      tensors.push_back({base + ".qzeros", {1, n / per_word}, "I32", 4});
      tensors.push_back({base + ".scales", {1, n}});
    } else {
      tensors.push_back({base + ".weight", {n, k}, "F8_E4M3", 1});
      tensors.push_back({base + ".weight_scale_inv", {n / 16, k / 16}, "F32", 4});
    }
  }
  if (change) change(tensors);
  return {{"m/config.json", config}, {"m/model.safetensors", SafetensorsFile(tensors)}};
}

constexpr char kGptq[] = R"({"quant_method": "gptq", "bits": 4, "group_size": 32})";
constexpr char kGptq8[] = R"({"quant_method": "gptq", "bits": 8, "group_size": 32})";  // whose zero points are read to be judged
constexpr char kFp8[] = R"({"quant_method": "fp8", "weight_block_size": [16, 16]})";

Status LoadStatus(const Files& files) {
  const FakeFs fs(files);
  const auto device = MakeReferenceDevice();
  return Model::Load("m", device.get(), {.fs = &fs}).status();
}

TestTensor& Find(std::vector<TestTensor>& tensors, const std::string& name) {
  for (TestTensor& tensor : tensors)
    if (tensor.name == name) return tensor;
  KVASIR_CHECK(false, "no tensor {}", name);
}

TEST(QuantizedLoading, WhatIsMissingOrDoesNotFitIsListed) {
  for (const char* config : {kGptq, kGptq8, kFp8}) EXPECT_EQ(LoadStatus(QuantizedFolder(config)), OkStatus());
  using Tensors = std::vector<TestTensor>;
  const std::string down = "model.layers.0.mlp.down_proj", up = "model.layers.1.mlp.up_proj";
  struct Case {
    const char* config;
    std::function<void(Tensors&)> change;
    std::vector<std::string> messages;
  };
  const Case cases[] = {
      {kGptq,
       [&](Tensors& t) {
         Find(t, down + ".scales").name = "elsewhere";
         Find(t, up + ".qzeros").shape = {1, 3};
       },
       {"tensor 'model.layers.0.mlp.down_proj.scales' is missing", "'model.layers.1.mlp.up_proj.qzeros' has shape [1, 3]"}},
      {kGptq,
       [&](Tensors& t) {
         Find(t, down + ".qweight").shape = {5, 32};
       },
       {"has shape [5, 32]", "[4, 32] or [8, 32]"}},
      {kGptq, [&](Tensors& t) { Find(t, down + ".qweight").dtype = "F32"; }, {"has dtype F32; wanted I32, U32"}},
      {kGptq,
       [&](Tensors& t) {
         Find(t, down + ".scales").shape = {5, 32};
         Find(t, down + ".qzeros").shape = {5, 4};
       },
       {"has 5 groups of scales for 32 inputs"}},
      {kGptq,
       [&](Tensors& t) {
         t.push_back({down + ".g_idx", {31}, "I32", 4});
       },
       {"'model.layers.0.mlp.down_proj.g_idx' has shape [31]"}},
      {kGptq,
       [&](Tensors& t) {
         t.push_back({down + ".g_idx", {32}, "I32", 4});
       },
       {"g_idx' says", "the weight has 1 groups"}},
      {kFp8,
       [&](Tensors& t) {
         Find(t, up + ".weight_scale_inv").shape = {2, 3};
       },
       {"has shape [2, 3]", "weight_block_size"}},
      {kFp8,
       [&](Tensors& t) { Find(t, up + ".weight_scale_inv").dtype = "I32"; },
       {"has dtype I32; wanted F32, F16, BF16, F8_E8M0"}},
      {kFp8, [&](Tensors& t) { Find(t, up + ".weight_scale_inv").name = "x"; }, {"up_proj.weight_scale' is missing"}},
      {kFp8,
       [&](Tensors& t) {
         Find(t, up + ".weight").shape = {32, 16};
       },
       {"has shape [32, 16]", "ask for [32, 32]"}},
      {kFp8, [&](Tensors& t) { Find(t, up + ".weight").name = up + ".qweight"; }, {"is of gptq or awq, but quant_method is fp8"}},
  };
  for (const Case& c : cases) {
    const Status status = LoadStatus(QuantizedFolder(c.config, c.change));
    for (const std::string& message : c.messages)
      EXPECT_NE(Message(status).find(message), std::string::npos) << message << "\n" << status;
  }
}

// Every operation on the files may fail, and every file may end early: an error, never a crash or a model.
TEST(QuantizedLoading, FailuresOfTheFileSystemAreErrors) {
  const auto device = MakeReferenceDevice();
  const auto status = [&](const FakeFs& fs) { return Model::Load("m", device.get(), {.fs = &fs}).status(); };
  for (const char* config : {kGptq, kFp8, kGptq8}) {
    for (const FakeFs::Fault fault : {FakeFs::Fault::kError, FakeFs::Fault::kTruncate}) {
      FakeFs fs(QuantizedFolder(config));
      ASSERT_EQ(status(fs), OkStatus());
      const int64_t operations = fs.operations();
      for (int64_t n = 0; n < operations; ++n) {
        fs.FailAt(n, fault);
        ASSERT_FALSE(status(fs).ok()) << config << ": operation " << n << " of " << operations;
      }
    }
  }
}

// A part that is quantised already and is to be packed as something else.
TEST(QuantizedLoading, DevicesRefuseAnotherFormat) {
  const int8_t codes[32] = {};
  const uint16_t scales[1] = {0x3c00};
  const HostMatrix matrix = {codes, DType::kF32, 1, 32, "w", {QuantFormat::Kind::kInt8, 0}, scales};
  std::vector<std::unique_ptr<Device>> devices;
  devices.push_back(MakeReferenceDevice());
  devices.push_back(*MakeCpuDevice({.threads = 1}));
  for (const auto& device : devices) {
    EXPECT_FALSE(device->PackLinear({&matrix, 1}, DType::kF32).ok());
    EXPECT_FALSE(device->PackLinear({&matrix, 1}, DType::kF32, {QuantFormat::Kind::kInt8, 32}).ok());
    EXPECT_TRUE(device->PackLinear({&matrix, 1}, DType::kF32, {QuantFormat::Kind::kInt8, 0}).ok());
    EXPECT_FALSE(device->PackLinear({&matrix, 1}, DType::kF32, {QuantFormat::Kind::kInt8, 0, true}).ok());
    int32_t order[32], other[32];
    for (int i = 0; i < 32; ++i) order[i] = i, other[i] = 31 - i;
    HostMatrix parts[2] = {matrix, matrix};
    for (HostMatrix& part : parts) part.quant.ordered = true, part.order = order;
    EXPECT_TRUE(device->PackLinear(parts, DType::kF32, parts[0].quant).ok());
    parts[1].order = other;
    EXPECT_FALSE(device->PackLinear(parts, DType::kF32, parts[0].quant).ok());
  }
}

}  // namespace
}  // namespace kvasir
