// Steps of decoding that are recorded and started again, over tables that stay on the device, give the bits of steps that are
// started kernel by kernel and bring their tables, while texts and batches grow and shrink and blocks are replaced. Over the
// emulated GPU, whole small models.
#include <cstdlib>
#include <filesystem>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/rng.h"
#include "models/model.h"

namespace kvasir {
namespace {

constexpr int kBlockTokens = 16, kMostTokens = 96, kSequences = 3, kBlocks = kSequences * kMostTokens / kBlockTokens;

struct Graphs {
  explicit Graphs(bool on) { setenv("KVASIR_CUDA_GRAPHS", on ? "1" : "0", 1); }
  ~Graphs() { unsetenv("KVASIR_CUDA_GRAPHS"); }
};

// Some texts of a model on a device of its own. With graphs, logits are computed in steps that want those of all rows.
class Texts {
 public:
  Texts(const std::string& folder, std::optional<DType> dtype, bool graphs) : with_logits_(graphs), stamped_(graphs) {
    const Graphs setting(graphs);
    device_ = std::make_unique<CudaDevice>(*CudaContext::Create(0));
    auto model = Model::Load(folder, device_.get(), {.dtype = dtype, .max_step_tokens = 64, .max_logits_rows = kSequences});
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
    for (const KvGroup& group : model_->kv_groups(kBlockTokens, std::nullopt)) {
      const size_t bytes = group.layout.block_bytes();
      auto* const base = static_cast<std::byte*>(*device_->Allocate(bytes * 2 * kBlocks, "kv"));
      kv_.push_back({base, bytes, group.layout, {}});
    }
    for (int s = 0; s < kSequences; ++s) {
      for (int b = 0; b < kMostTokens / kBlockTokens; ++b) blocks_[s].push_back(uint32_t(b * kSequences + (s + b) % kSequences));
      Restamp(s);
    }
  }
  // Puts a text from a block on somewhere else, as a copy before a write does.
  void Replace(int sequence, int first_block) {
    for (size_t b = size_t(first_block); b < blocks_[sequence].size(); ++b) {
      uint32_t& block = blocks_[sequence][b];
      const uint32_t other = (block + kBlocks) % (2 * kBlocks);
      for (const PagedKv& kv : kv_)
        device_->CopyOnDevice(kv.base + other * kv.granule_bytes, kv.base + block * kv.granule_bytes, kv.granule_bytes);
      block = other;
    }
    Restamp(sequence);
  }
  // Appends some tokens to some texts and returns the logits behind each.
  std::vector<float> Step(const std::vector<std::pair<int, std::vector<int32_t>>>& feeds) {
    std::vector<int32_t> ids, positions, rows;
    std::vector<SequenceSlice> slices;
    std::vector<std::vector<SequenceTable>> tables(kv_.size());
    for (const auto& [sequence, tokens] : feeds) {
      slices.push_back({int32_t(ids.size()), int32_t(tokens.size()), int32_t(slices.size())});
      for (const int32_t token : tokens) ids.push_back(token), positions.push_back(length_[sequence]++);
      rows.push_back(int32_t(ids.size()) - 1);
      for (size_t g = 0; g < kv_.size(); ++g)
        tables[g].push_back({blocks_[sequence].data(), length_[sequence], nullptr, stamped_ ? stamps_[sequence] + g : 0});
    }
    for (size_t g = 0; g < kv_.size(); ++g) kv_[g].tables = tables[g];
    const ForwardInput input = {.token_ids = ids, .positions = positions, .slices = slices, .kv = kv_};
    EXPECT_TRUE(model_->Forward(input, with_logits_ && rows.size() == ids.size()).ok());
    const float* const logits = *model_->Logits(rows);
    std::vector<float> host(rows.size() * size_t(model_->config().vocab_size));
    device_->CopyToHost(host.data(), logits, host.size() * sizeof(float));
    EXPECT_TRUE(device_->Synchronize().ok());
    return host;
  }
  int64_t replayed() const { return device_->replayed_steps(); }
  int32_t vocab() const { return int32_t(model_->config().vocab_size); }

 private:
  void Restamp(int sequence) {
    stamps_[sequence] = next_stamp_;
    next_stamp_ += kv_.size();
  }

  const bool with_logits_, stamped_;
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<Model> model_;
  std::vector<PagedKv> kv_;
  std::vector<uint32_t> blocks_[kSequences];
  int32_t length_[kSequences] = {};
  uint64_t stamps_[kSequences] = {}, next_stamp_ = 1;
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
  const auto replace = [&](int sequence, int first_block) {
    for (Texts* const texts : {&recorded, &plain}) texts->Replace(sequence, first_block);
  };
  replace(0, 1);
  for (int i = 0; i < 6 && !testing::Test::HasFatalFailure(); ++i) step({2, 0}, {1, 1});
  replace(1, 0);
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
