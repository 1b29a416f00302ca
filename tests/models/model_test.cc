// Loading and the forward pass against golden outputs, on every device there is.
#include "models/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/kv_quant.h"
#include "tests/models/model_runner.h"
#include "tests/slow.h"

namespace kvasir {
namespace {

namespace stdfs = std::filesystem;
using nlohmann::json;

std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// "reference", an ISA of the CPU device, or "cuda": a GPU, or the emulated one of tests/simt.
std::unique_ptr<Device> MakeDevice(const std::string& name, int threads = 2) {
  if (name == "reference") return MakeReferenceDevice();
  if (name == "cuda") {
    auto cuda = MakeCudaDevice();
    EXPECT_TRUE(cuda.ok()) << cuda.status();
    return cuda.ok() ? std::move(*cuda) : nullptr;
  }
  auto cpu = MakeCpuDevice({.threads = threads, .isa = name});
  EXPECT_TRUE(cpu.ok()) << cpu.status();
  return cpu.ok() ? std::move(*cpu) : nullptr;
}

std::vector<std::string> DeviceNames() {
  std::vector<std::string> names = {"reference"};
  for (const std::string& isa : CpuIsaNames()) names.push_back(isa);
  if (HasCudaDevice()) names.push_back("cuda");
  return names;
}

// The GPU of tests/simt: it is slow, and whole checkpoints are tried in fewer ways on it.
bool Emulated(const std::string& device) {
  return device == "cuda" && IsEmulated(*MakeDevice(device));
}

std::string SharedModels() {
  if (const char* dir = std::getenv("KVASIR_TEST_MODELS")) return dir;
  return KVASIR_SOURCE_DIR "/../shared/models";
}
const std::string kTiny = KVASIR_SOURCE_DIR "/tests/data/tiny";
const std::string kFamilies = KVASIR_SOURCE_DIR "/tests/data/families";
const std::string kQuantizedFolder = KVASIR_SOURCE_DIR "/tests/data/quantized";

size_t ArgMax(const std::vector<float>& logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

// -log softmax(logits)[id]
double Nll(const std::vector<float>& logits, int32_t id) {
  double max = logits[ArgMax(logits)], sum = 0;
  for (const float l : logits) sum += std::exp(l - max);
  return max + std::log(sum) - logits[id];
}

struct Loaded {
  std::unique_ptr<Device> device;
  std::unique_ptr<Model> model;
};

void LoadOrFail(const std::string& dir, const std::string& device_name, LoadOptions options, Loaded* loaded, int threads = 2) {
  options.max_logits_rows = 1;
  loaded->device = MakeDevice(device_name, threads);
  ASSERT_NE(loaded->device, nullptr);
  auto model = Model::Load(dir, loaded->device.get(), options);
  ASSERT_TRUE(model.ok()) << model.status();
  loaded->model = std::move(*model);
}

class OnDevice : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Devices, OnDevice, testing::ValuesIn(DeviceNames()), [](const auto& info) { return info.param; });

struct Tolerance {
  double logit, nll, tie_margin;
};

// Greedy continuation of a prompt equals the golden one; from a step whose margin allows a tie on, the golden token is fed.
void ExpectGreedy(Loaded& loaded, std::vector<int32_t> prompt, const std::vector<int32_t>& golden,
                  const std::vector<double>& margins, double tie_margin, std::vector<float>* first_logits) {
  SequenceRunner runner(loaded.model.get(), loaded.device.get(), static_cast<int>(prompt.size() + golden.size()));
  ASSERT_TRUE(runner.Append(prompt).ok());
  std::vector<float> logits = runner.Logits(static_cast<int32_t>(prompt.size()) - 1);
  if (first_logits != nullptr) *first_logits = logits;
  for (size_t step = 0; step < golden.size(); ++step) {
    const int32_t token = static_cast<int32_t>(ArgMax(logits));
    if (margins[step] >= tie_margin) {
      ASSERT_EQ(token, golden[step]) << "step " << step;
    }
    if (step + 1 == golden.size()) break;
    ASSERT_TRUE(runner.Append({&golden[step], 1}).ok());
    logits = runner.Logits(0);
  }
}

void CheckSharedModel(const std::string& dir, const std::string& device_name) {
  SCOPED_TRACE(dir);
  const json golden = json::parse(Slurp(dir + "/golden.json"));
  Loaded loaded;
  ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, device_name, {}, &loaded));
  const bool f32 = golden["stored_dtype"] == "float32";
  EXPECT_EQ(Name(loaded.model->config().dtype), golden["stored_dtype"].get<std::string>());
  EXPECT_EQ(loaded.model->config().eos_token_ids, (std::vector<int32_t>{1, 2}));
  const Tolerance tolerance = f32 ? Tolerance{0.001, 0.0005, 0.001} : Tolerance{0.35, 0.02, 0.25};
  size_t prompts = 0;
  for (const json& prompt : golden["prompts"]) {
    if (device_name == "reference" && prompts++ == 1) break;  // it is slow, and the tiny checkpoints test it in full
    SCOPED_TRACE(prompt["prompt"].get<std::string>());
    std::vector<float> first;
    ExpectGreedy(loaded, prompt["prompt_ids"], prompt["greedy_ids"], prompt["greedy_margins"], tolerance.tie_margin, &first);
    if (testing::Test::HasFatalFailure()) return;
    for (const json& top : prompt["top10"])
      EXPECT_NEAR(first[top["id"].get<size_t>()], top["logit"].get<double>(), tolerance.logit);
  }
  if (device_name == "reference") return;
  const std::vector<int32_t> ids = golden["perplexity"]["ids"];
  SequenceRunner runner(loaded.model.get(), loaded.device.get(), static_cast<int>(ids.size()));
  const auto logits = runner.Run(ids, 64);
  ASSERT_EQ(logits.size(), ids.size());
  double nll = 0;
  for (size_t i = 1; i < ids.size(); ++i) nll += Nll(logits[i - 1], ids[i]);
  EXPECT_NEAR(nll / static_cast<double>(ids.size() - 1), golden["perplexity"]["mean_nll"].get<double>(), tolerance.nll);
}

// Why trained models are not tried; empty: they are.
std::string WhyNotTrained() {
  if (kSanitized) return "small checkpoints are computed by the same code";
  if (!stdfs::is_directory(SharedModels())) return fmt::format("no models at {}; set KVASIR_TEST_MODELS", SharedModels());
  return "";
}

TEST_P(OnDevice, TrainedModelsMatchTheirGoldens) {
  if (const std::string why = WhyNotTrained(); !why.empty()) GTEST_SKIP() << why;
  if (Emulated(GetParam())) GTEST_SKIP() << "millions of parameters are too many for an emulated GPU";
  int models = 0;
  for (const auto& entry : stdfs::directory_iterator(SharedModels())) {
    if (!stdfs::exists(entry.path() / "golden.json")) continue;
    CheckSharedModel(entry.path(), GetParam());
    ++models;
  }
  EXPECT_GT(models, 0) << SharedModels();
}

// What quantisation costs a trained model, beside its golden perplexity.
double MeanNll(const Loaded& loaded, const std::vector<int32_t>& ids, std::optional<KvFormat> kv = std::nullopt) {
  SequenceRunner runner(loaded.model.get(), loaded.device.get(), static_cast<int>(ids.size()), kv);
  const auto logits = runner.Run(ids, 64);
  double nll = 0;
  for (size_t i = 1; i < ids.size(); ++i) nll += Nll(logits[i - 1], ids[i]);
  return nll / static_cast<double>(ids.size() - 1);
}

TEST(TrainedModels, QuantisedAreNearlyAsGood) {
  if (const std::string why = WhyNotTrained(); !why.empty()) GTEST_SKIP() << why;
  for (const auto& entry : stdfs::directory_iterator(SharedModels())) {
    if (!stdfs::exists(entry.path() / "golden.json")) continue;
    const json golden = json::parse(Slurp(entry.path() / "golden.json"));
    const std::vector<int32_t> ids = golden["perplexity"]["ids"];
    const double full = golden["perplexity"]["mean_nll"];
    for (const auto& [format, most] : {std::pair{"int8", 0.01},
                                       {"int8:32", 0.01},
                                       {"fp8", 0.02},
                                       {"fp8:128", 0.02},
                                       {"int4:32", 0.1},
                                       {"int4", 0.15},
                                       {"int4:128", 0.25}}) {
      Loaded loaded;
      ASSERT_NO_FATAL_FAILURE(LoadOrFail(entry.path(), CpuIsaNames()[0], {.quantization = *ParseQuantFormat(format)}, &loaded));
      const double loss = MeanNll(loaded, ids) - full;
      std::printf("%s %s: mean NLL %+.4f over %.4f, perplexity %+.2f %%\n", entry.path().filename().c_str(), format, loss, full,
                  100 * (std::exp(loss) - 1));
      EXPECT_LT(loss, most) << entry.path() << " " << format;
    }
  }
}

// The same of quantised KV. Heads of 8 and 16 elements, and so few layers, say little of large models.
TEST(TrainedModels, QuantisedKvIsNearlyAsGood) {
  if (const std::string why = WhyNotTrained(); !why.empty()) GTEST_SKIP() << why;
  for (const auto& entry : stdfs::directory_iterator(SharedModels())) {
    if (!stdfs::exists(entry.path() / "golden.json")) continue;
    const std::vector<int32_t> ids = json::parse(Slurp(entry.path() / "golden.json"))["perplexity"]["ids"];
    Loaded loaded;
    ASSERT_NO_FATAL_FAILURE(LoadOrFail(entry.path(), CpuIsaNames()[0], {}, &loaded));
    const double full = MeanNll(loaded, ids, DType::kF32);
    for (const auto& [format, most] : {std::pair{"bfloat16", 0.001}, {"int8", 0.003}, {"fp8", 0.012}, {"int4", 0.45}}) {
      const double loss = MeanNll(loaded, ids, *ParseKvFormat(format)) - full;
      std::printf("%s, %s KV: mean NLL %+.5f over %.4f, perplexity %+.3f %%\n", entry.path().filename().c_str(), format, loss,
                  full, 100 * (std::exp(loss) - 1));
      EXPECT_LT(std::abs(loss), most) << entry.path() << " " << format;
    }
  }
}

// One golden variant: the prompt object itself, or its "fixed" member.
void CheckTinyPrompt(Loaded& loaded, const json& prompt, const json& golden, double logit_tolerance, bool check_greedy) {
  const std::vector<int32_t> ids = prompt["prompt_ids"];
  SequenceRunner runner(loaded.model.get(), loaded.device.get(), static_cast<int>(ids.size()));
  const auto logits = runner.Run(ids, ids.size());
  ASSERT_EQ(logits.size(), ids.size());
  for (const json& row : golden["logits"]) {
    const std::vector<double> values = row["values"];
    const auto& mine = logits[row["position"].get<size_t>()];
    ASSERT_EQ(values.size(), mine.size());
    for (size_t i = 0; i < values.size(); ++i)
      ASSERT_NEAR(mine[i], values[i], logit_tolerance) << "position " << row["position"] << " id " << i;
  }
  const std::vector<double> logprobs = golden["prompt_logprobs"];
  ASSERT_EQ(logprobs.size() + 1, ids.size());
  for (size_t i = 0; i < logprobs.size(); ++i) EXPECT_NEAR(-Nll(logits[i], ids[i + 1]), logprobs[i], logit_tolerance) << i;
  if (check_greedy) ExpectGreedy(loaded, ids, golden["greedy_ids"], golden["greedy_margins"], 0, nullptr);
}

// Rotations that change with the length of the text (dynamic NTK, LongRoPE) have two meanings: the published one for texts up to
// this length, and that of a server for longer ones, which uses one rotation for all ("fixed"). 0 = one meaning.
int64_t ContextSwitch(const std::string& dir, const json& golden) {
  return dir.ends_with("llama-rope-dynamic") ? 64 : golden.value("context_switch", int64_t{0});
}

// The prompts of a golden that are tried: all, of 1 to 110 tokens, or where computing is slow that of 40.
std::vector<json> PromptsToTry(const json& golden, const Device& device) {
  if (kSanitized || IsEmulated(device)) return {golden["prompts"][2]};
  return golden["prompts"];
}

// float32 arithmetic over 16-bit weights is what the goldens are of.
void CheckCheckpoint(const std::string& dir, const std::string& device_name) {
  SCOPED_TRACE(dir);
  const json golden = json::parse(Slurp(dir + "/golden.json"));
  const int64_t context_switch = ContextSwitch(dir, golden);
  Loaded loaded, longer;
  ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, device_name, {.dtype = DType::kF32, .max_model_len = context_switch}, &loaded));
  if (context_switch > 0) {
    ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, device_name, {.dtype = DType::kF32, .max_model_len = 256}, &longer));
  }
  for (const json& prompt : PromptsToTry(golden, *loaded.device)) {
    SCOPED_TRACE(prompt["length"].get<int>());
    if (context_switch == 0) {
      CheckTinyPrompt(loaded, prompt, prompt, 1e-3, true);
    } else {
      if (prompt["length"].get<int>() + 32 <= context_switch) CheckTinyPrompt(loaded, prompt, prompt, 1e-3, true);
      CheckTinyPrompt(longer, prompt, prompt["fixed"], 1e-3, true);
    }
    if (testing::Test::HasFatalFailure()) return;
  }
}

std::vector<std::string> Checkpoints() {
  std::vector<std::string> folders;
  for (const std::string& place : {kTiny, kFamilies}) {
    if (!stdfs::is_directory(place)) continue;
    for (const auto& entry : stdfs::directory_iterator(place))
      if (stdfs::exists(entry.path() / "golden.json")) folders.push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

TEST_P(OnDevice, SmallCheckpointsMatchTransformers) {
  EXPECT_GE(Checkpoints().size(), 9u);
  for (const std::string& dir : Checkpoints()) CheckCheckpoint(dir, GetParam());
}

// Quantised weights mean the same on every device. A rounding difference before an activation is quantised can move its code by
// one, so logits agree within what that does, not within rounding.
TEST_P(OnDevice, QuantisedCheckpointsAgreeWithTheReference) {
  if (GetParam() == "reference") GTEST_SKIP() << "the reference itself";
  const std::vector<std::string> formats = {"int8", "int4", "int8:32", "int4:128", "int8:64", "int4:32"};
  constexpr size_t kEvery = kSanitized ? 7 : 1;  // the reference is slow there; together the formats are still all met
  const std::vector<std::string> folders = Checkpoints();
  for (size_t i = 0, folder = 0; folder < folders.size(); folder += kEvery) {
    const std::string& dir = folders[folder];
    const LoadOptions options = {
        .dtype = DType::kF32, .quantization = *ParseQuantFormat(formats[i++ % formats.size()]), .max_model_len = 128};
    SCOPED_TRACE(dir + " " + Name(*options.quantization));
    const json golden = json::parse(Slurp(dir + "/golden.json"));
    const std::vector<int32_t> ids = golden["prompts"][2]["prompt_ids"];
    Loaded reference, loaded;
    ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, "reference", options, &reference));
    ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, GetParam(), options, &loaded));
    EXPECT_LT(loaded.model->weight_bytes(), loaded.model->config().parameter_count() * 4);
    SequenceRunner expected(reference.model.get(), reference.device.get(), static_cast<int>(ids.size()));
    SequenceRunner runner(loaded.model.get(), loaded.device.get(), static_cast<int>(ids.size()));
    const auto want = expected.Run(ids, ids.size()), got = runner.Run(ids, 7);
    double worst = 0, squares = 0, count = 0;
    for (size_t row = 0; row < want.size(); ++row) {
      const auto [low, high] = std::minmax_element(want[row].begin(), want[row].end());
      for (size_t j = 0; j < want[row].size(); ++j) {
        const double difference = std::abs(got[row][j] - want[row][j]) / (*high - *low);
        worst = std::max(worst, difference);
        squares += difference * difference, ++count;
      }
    }
    EXPECT_LT(worst, 0.05);
    EXPECT_LT(std::sqrt(squares / count), 0.005);
  }
}

// Checkpoints that come quantised, and what their linear weights become.
const std::map<std::string, std::string> kQuantized = {
    {"gptq-int4", "int4:32 (from gptq)"},
    {"gptq-int4-128", "int4:128 (from gptq)"},
    {"gptq-int4-actorder", "int4:32 act-order (from gptq)"},
    {"gptq-int4-moe", "int4:32 in 12, int4:128 in 8 linear weights (from gptq)"},
    {"gptq-v2-channel", "int4:128 (from gptq)"},
    {"gptq-int8", "int8:channel in 6, int8:64 in 2 linear weights (from gptq)"},
    {"gptq-int8-asym", "float32 (from gptq)"},
    {"awq-int4", "int4:32 in 7, float32 in 1 linear weights (from awq)"},
    {"awq-int4-64", "int4:128 in 6, float32 in 2 linear weights (from awq)"},
    {"compressed-w4a16", "int4:32 in 7, float32 in 1 linear weights (from compressed-tensors)"},
    {"compressed-w4a16-actorder", "float32 in 4, int4:32 act-order in 4 linear weights (from compressed-tensors)"},
    {"compressed-w4a16-channel", "int4:128 (from compressed-tensors)"},
    {"compressed-w4a16-16", "float32 (from compressed-tensors)"},
    {"compressed-w8a16", "int8:channel (from compressed-tensors)"},
    {"compressed-w8a8", "int8:channel (from compressed-tensors)"},
    {"compressed-w8a8-asym", "float32 (from compressed-tensors)"},
    {"compressed-fp8", "fp8:channel (from compressed-tensors)"},
    {"compressed-fp8-tensor", "fp8:channel (from compressed-tensors)"},
    {"compressed-fp8-block", "fp8:32 (from compressed-tensors)"},
    {"fp8", "fp8:channel (from fp8)"},
    {"fp8-block", "float32 (from fp8)"},
    {"fbgemm-fp8", "fp8:channel in 7, bfloat16 in 1 linear weights (from fbgemm_fp8)"},
};

// As values they are what transformers computes from the same values, and as codes no further off than activations of 8 bits, or
// of bfloat16 where the codes are floats, make them: the weights themselves are exact.
TEST_P(OnDevice, QuantizedCheckpointsMatchTransformers) {
  size_t folders = 0;
  for (const auto& entry : stdfs::directory_iterator(kQuantizedFolder)) folders += stdfs::is_directory(entry);
  EXPECT_EQ(folders, kQuantized.size());
  for (const auto& [name, formats] : kQuantized) {
    SCOPED_TRACE(name);
    const std::string dir = kQuantizedFolder + "/" + name;
    const json golden = json::parse(Slurp(dir + "/golden.json"));
    Loaded plain, stored;
    ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, GetParam(), {.dtype = DType::kF32, .quantization = QuantFormat()}, &plain));
    EXPECT_TRUE(plain.model->formats().starts_with("float32 (from ")) << plain.model->formats();
    for (const json& prompt : PromptsToTry(golden, *plain.device)) {
      SCOPED_TRACE(prompt["length"].get<int>());
      ASSERT_NO_FATAL_FAILURE(CheckTinyPrompt(plain, prompt, prompt, 1e-3, true));
    }
    const DType dtype = formats.find("fp8:") != std::string::npos ? DType::kBF16 : DType::kF32;
    ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, GetParam(), {.dtype = dtype}, &stored));
    EXPECT_EQ(stored.model->formats(), formats);
    EXPECT_NE(stored.model->fingerprint(), formats.starts_with("float32 (") ? "" : plain.model->fingerprint());
    const json& prompt = golden["prompts"][2];
    const std::vector<int32_t> ids = prompt["prompt_ids"];
    SequenceRunner runner(stored.model.get(), stored.device.get(), static_cast<int>(ids.size()));
    const auto logits = runner.Run(ids, 7);
    double worst = 0, squares = 0, count = 0;
    for (const json& row : prompt["logits"]) {
      const std::vector<double> want = row["values"];
      const auto [low, high] = std::minmax_element(want.begin(), want.end());
      for (size_t j = 0; j < want.size(); ++j) {
        const double difference = std::abs(logits[row["position"].get<size_t>()][j] - want[j]) / (*high - *low);
        worst = std::max(worst, difference);
        squares += difference * difference, ++count;
      }
    }
    std::printf("%s: %s, worst %.2g, rms %.2g of the range\n", name.c_str(), formats.c_str(), worst, std::sqrt(squares / count));
    const bool exact = formats.starts_with("float32 (");
    EXPECT_LT(worst, exact ? 1e-4 : 0.05);
    EXPECT_LT(std::sqrt(squares / count), exact ? 1e-5 : 0.01);
  }
}

// The experts of gpt-oss stay MXFP4 in a model of bfloat16, and nothing changes by it; in another type they become values.
TEST_P(OnDevice, Mxfp4ExpertsStayAsTheyAre) {
  const std::string dir = KVASIR_SOURCE_DIR "/tests/data/families/gpt-oss-mxfp4";
  Loaded kept, values, wide;
  ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, GetParam(), {.dtype = DType::kBF16}, &kept));
  ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, GetParam(), {.dtype = DType::kBF16, .quantization = QuantFormat()}, &values));
  ASSERT_NO_FATAL_FAILURE(LoadOrFail(dir, GetParam(), {.dtype = DType::kF32}, &wide));
  EXPECT_NE(kept.model->formats().find("mxfp4 in "), std::string::npos) << kept.model->formats();
  EXPECT_EQ(values.model->formats(), "bfloat16");
  EXPECT_EQ(wide.model->formats(), "float32");
  const json golden = json::parse(Slurp(dir + "/golden.json"));
  const std::vector<int32_t> ids = golden["prompts"][2]["prompt_ids"];
  SequenceRunner a(kept.model.get(), kept.device.get(), static_cast<int>(ids.size())),
      b(values.model.get(), values.device.get(), static_cast<int>(ids.size()));
  EXPECT_EQ(a.Run(ids, 7), b.Run(ids, 7));
}

// Both spellings of config.json are the same model.
TEST(TinyCheckpoints, OldAndNewConfigSpellingsAgree) {
  for (const std::string& dir : Checkpoints()) {
    if (!stdfs::exists(dir + "/config.v4.json")) continue;
    SCOPED_TRACE(dir);
    const auto a = ParseModelConfig(Slurp(dir + "/config.json"), "");
    const auto b = ParseModelConfig(Slurp(dir + "/config.v4.json"), "");
    ASSERT_TRUE(a.ok()) << a.status();
    ASSERT_TRUE(b.ok()) << b.status();
    ASSERT_EQ(a->ropes.size(), b->ropes.size());
    for (size_t r = 0; r < a->ropes.size(); ++r) {
      EXPECT_EQ(a->ropes[r].theta, b->ropes[r].theta);
      EXPECT_EQ(a->ropes[r].rotary_dim, b->ropes[r].rotary_dim);
      EXPECT_EQ(a->ropes[r].scaling.kind, b->ropes[r].scaling.kind);
      EXPECT_EQ(a->ropes[r].scaling.factor, b->ropes[r].scaling.factor);
      EXPECT_EQ(a->ropes[r].scaling.attention_factor, b->ropes[r].scaling.attention_factor);
      EXPECT_EQ(a->ropes[r].scaling.low_freq_factor, b->ropes[r].scaling.low_freq_factor);
      EXPECT_EQ(a->ropes[r].scaling.high_freq_factor, b->ropes[r].scaling.high_freq_factor);
      EXPECT_EQ(a->ropes[r].scaling.original_max_position, b->ropes[r].scaling.original_max_position);
    }
    ASSERT_EQ(a->layers.size(), b->layers.size());
    for (size_t l = 0; l < a->layers.size(); ++l) {
      EXPECT_EQ(a->layers[l].window, b->layers[l].window);
      EXPECT_EQ(a->layers[l].rope, b->layers[l].rope);
      EXPECT_EQ(a->layers[l].experts, b->layers[l].experts);
    }
    EXPECT_EQ(a->dtype, b->dtype);
    EXPECT_EQ(a->head_dim, b->head_dim);
    EXPECT_EQ(a->tie_word_embeddings, b->tie_word_embeddings);
    EXPECT_EQ(a->attention_scale, b->attention_scale);
    EXPECT_EQ(a->qkv_bias, b->qkv_bias);
    EXPECT_EQ(a->mlp_bias, b->mlp_bias);
    EXPECT_EQ(a->parameter_count(), b->parameter_count());
  }
}

// "One answer": how a prompt is cut into steps, and with how many threads it is computed, changes no bit.
TEST_P(OnDevice, ChunksAndThreadsChangeNoBit) {
  const bool emulated = Emulated(GetParam()), slow = emulated || kSanitized;
  size_t number = 0;
  for (const std::string& dir : Checkpoints()) {
    if (slow && number++ % 4 != 0) continue;
    SCOPED_TRACE(dir);
    const json golden = json::parse(Slurp(dir + "/golden.json"));
    const std::vector<int32_t> ids = golden["prompts"].back()["prompt_ids"];
    std::vector<std::vector<float>> whole;
    for (const int threads : {2, 1}) {
      Loaded loaded;
      ASSERT_NO_FATAL_FAILURE(
          LoadOrFail(dir, GetParam(), {.max_model_len = ContextSwitch(dir, golden) > 0 ? 256 : 0}, &loaded, threads));
      for (const size_t chunk : {ids.size(), size_t{7}, size_t{1}, size_t{16}}) {
        if (slow && chunk == 1) break;
        SequenceRunner runner(loaded.model.get(), loaded.device.get(), static_cast<int>(ids.size()));
        const auto logits = runner.Run(ids, chunk);
        if (whole.empty()) whole = logits;
        ASSERT_EQ(whole.size(), logits.size());
        for (size_t i = 0; i < ids.size(); ++i)
          ASSERT_EQ(0, std::memcmp(whole[i].data(), logits[i].data(), whole[i].size() * sizeof(float)))
              << "threads " << threads << " chunk " << chunk << " position " << i;
      }
      if (GetParam() == "reference" || emulated) break;
    }
  }
}

// The KV cache may have another type than the weights: a little less exact, still the same model.
TEST_P(OnDevice, NarrowKvStaysClose) {
  const json golden = json::parse(Slurp(kTiny + "/llama-f32/golden.json"));
  Loaded loaded;
  ASSERT_NO_FATAL_FAILURE(LoadOrFail(kTiny + "/llama-f32", GetParam(), {}, &loaded));
  const std::vector<int32_t> ids = golden["prompts"][2]["prompt_ids"];
  const auto run = [&](KvFormat kv) {
    SequenceRunner runner(loaded.model.get(), loaded.device.get(), static_cast<int>(ids.size()), kv);
    return runner.Run(ids, ids.size()).back();
  };
  const std::vector<float> exact = run(DType::kF32);
  const std::pair<KvFormat, double> limits[] = {
      {DType::kF16, 0.02}, {DType::kBF16, 0.1}, {KvQuant::kInt8, 0.2}, {KvQuant::kFp8, 0.5}, {KvQuant::kInt4, 2.0}};
  for (const auto& [kv, limit] : limits) {
    const std::vector<float> rounded = run(kv);
    double difference = 0;
    for (size_t i = 0; i < exact.size(); ++i) difference = std::max(difference, std::fabs(double{exact[i]} - rounded[i]));
    EXPECT_GT(difference, 0) << Name(kv);
    EXPECT_LT(difference, limit) << Name(kv);
    RecordProperty(fmt::format("{}_{}", GetParam(), Name(kv)), fmt::format("{:.4f}", difference));
  }
}

}  // namespace
}  // namespace kvasir
