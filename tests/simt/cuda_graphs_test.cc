// Steps of decoding that are recorded and started again give the bits of steps that are started kernel by kernel, while texts and
// batches grow and shrink. Over the emulated GPU, whole small models.
#include <cstdlib>
#include <filesystem>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/rng.h"
#include "models/model.h"

namespace kvasir {
namespace {

constexpr int kBlockTokens = 16, kMostTokens = 96, kSequences = 3;

struct Graphs {
  explicit Graphs(bool on) { setenv("KVASIR_CUDA_GRAPHS", on ? "1" : "0", 1); }
  ~Graphs() { unsetenv("KVASIR_CUDA_GRAPHS"); }
};

// Some texts of a model on a device of its own.
class Texts {
 public:
  Texts(const std::string& folder, std::optional<DType> dtype, bool graphs) {
    const Graphs setting(graphs);
    device_ = std::make_unique<CudaDevice>(*CudaContext::Create(0));
    auto model = Model::Load(folder, device_.get(), {.dtype = dtype, .max_step_tokens = 64, .max_logits_rows = kSequences});
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
    const int blocks = kMostTokens / kBlockTokens;
    for (const KvGroup& group : model_->kv_groups(kBlockTokens, std::nullopt)) {
      const size_t bytes = group.layout.block_bytes();
      auto* const base = static_cast<std::byte*>(*device_->Allocate(bytes * kSequences * blocks, "kv"));
      kv_.push_back({base, bytes, group.layout, {}});
    }
    for (int s = 0; s < kSequences; ++s)
      for (int b = 0; b < blocks; ++b) blocks_[s].push_back(uint32_t(b * kSequences + (s + b) % kSequences));
  }
  // Appends some tokens to some texts and returns the logits behind each.
  std::vector<float> Step(const std::vector<std::pair<int, std::vector<int32_t>>>& feeds) {
    std::vector<int32_t> ids, positions, rows;
    std::vector<SequenceSlice> slices;
    std::vector<SequenceTable> tables;
    for (const auto& [sequence, tokens] : feeds) {
      slices.push_back({int32_t(ids.size()), int32_t(tokens.size()), int32_t(tables.size())});
      for (const int32_t token : tokens) ids.push_back(token), positions.push_back(length_[sequence]++);
      rows.push_back(int32_t(ids.size()) - 1);
      tables.push_back({blocks_[sequence].data(), length_[sequence], nullptr});
    }
    for (PagedKv& kv : kv_) kv.tables = tables;
    EXPECT_TRUE(model_->Forward({.token_ids = ids, .positions = positions, .slices = slices, .kv = kv_}).ok());
    const float* const logits = *model_->Logits(rows);
    std::vector<float> host(rows.size() * size_t(model_->config().vocab_size));
    device_->CopyToHost(host.data(), logits, host.size() * sizeof(float));
    EXPECT_TRUE(device_->Synchronize().ok());
    return host;
  }
  int64_t replayed() const { return device_->replayed_steps(); }
  int32_t vocab() const { return int32_t(model_->config().vocab_size); }

 private:
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<Model> model_;
  std::vector<PagedKv> kv_;
  std::vector<uint32_t> blocks_[kSequences];
  int32_t length_[kSequences] = {};
};

int64_t CompareSteps(const std::string& family, std::optional<DType> dtype) {
  const std::string folder = KVASIR_SOURCE_DIR "/tests/data/families/" + family;
  Texts recorded(folder, dtype, true), plain(folder, dtype, false);
  Rng rng(3);
  const auto step = [&](const std::vector<int>& sequences, const std::vector<int>& counts) {
    std::vector<std::pair<int, std::vector<int32_t>>> feeds;
    for (size_t i = 0; i < sequences.size(); ++i) {
      feeds.push_back({sequences[i], {}});
      for (int n = 0; n < counts[i]; ++n) feeds.back().second.push_back(int32_t(rng.Below(uint64_t(plain.vocab()))));
    }
    const std::vector<float> want = plain.Step(feeds), got = recorded.Step(feeds);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], want[i]) << "logit " << i;
  };
  step({0, 1, 2}, {5, 19, 33});
  for (int i = 0; i < 14 && !testing::Test::HasFatalFailure(); ++i) step({0, 1, 2}, {1, 1, 1});
  for (int i = 0; i < 6 && !testing::Test::HasFatalFailure(); ++i) step({2, 0}, {1, 1});
  step({1, 2}, {7, 1});  // a step of another kind between
  for (int i = 0; i < 12 && !testing::Test::HasFatalFailure(); ++i) step({1, 0, 2}, {1, 1, 1});
  EXPECT_EQ(plain.replayed(), 0);
  return recorded.replayed();
}

class CudaGraphs : public testing::TestWithParam<const char*> {};

TEST_P(CudaGraphs, GiveTheBitsOfSingleKernels) {
  EXPECT_GE(CompareSteps(GetParam(), DType::kBF16), 20);
}
INSTANTIATE_TEST_SUITE_P(Families, CudaGraphs,
                         testing::Values("smollm2", "gpt2", "gemma3", "gpt-oss", "deepseek-v2-lite", "qwen3-moe", "qwen3-next",
                                         "kv-owner-windows"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Experts of float32 read on the host how many rows each has: such a step cannot be recorded, and is computed all the same.
TEST(CudaGraphs, StepsThatCannotBeRecordedAreComputed) {
  EXPECT_EQ(CompareSteps("mixtral", DType::kF32), 0);
}

}  // namespace
}  // namespace kvasir
