// The packed cache: a second load maps what the first one packed and computes the same bits; nothing that is damaged, of other
// files or of other settings is ever used; what cannot be kept costs a remark and nothing else.
#define XXH_INLINE_ALL
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "kernels/rng.h"
#include "models/model.h"
#include "tests/models/model_runner.h"

namespace kvasir {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string ReadBytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteBytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class PackedCacheTest : public testing::Test {
 protected:
  PackedCacheTest() {
    std::string name = (fs::temp_directory_path() / "packed_cache_test.XXXXXX").string();
    KVASIR_CHECK(mkdtemp(name.data()) != nullptr);
    root_ = name;
    auto device = MakeCpuDevice({.threads = 2});
    KVASIR_CHECK(device.ok());
    device_ = *std::move(device);
  }
  ~PackedCacheTest() override { fs::remove_all(root_); }

  // A copy, whose files can be changed.
  std::string CopyModel(const std::string& name) {
    const fs::path to = root_ / "model";
    fs::remove_all(to);
    fs::copy(fs::path(KVASIR_SOURCE_DIR "/tests/data") / name, to, fs::copy_options::recursive);
    return to.string();
  }

  PackedCacheOptions Cache() {
    return {.dir = (root_ / "cache").string(),
            .limit_bytes = uint64_t{1} << 30,
            .least_bytes = 0,
            .niceness = 0,
            .remark = [this](const std::string& text) {
              const std::lock_guard lock(mutex_);
              remarks_.push_back(text);
            }};
  }
  // The remarks so far, which are then forgotten.
  std::string Remarks() {
    const std::lock_guard lock(mutex_);
    std::string all;
    for (const std::string& remark : std::exchange(remarks_, {})) all += remark + "\n";
    return all;
  }
  std::string WaitForRemark() {
    for (int i = 0; i < 6000; ++i) {
      if (std::string all = Remarks(); !all.empty()) return all;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return "";
  }

  std::unique_ptr<Model> Load(const std::string& dir, LoadOptions options = {}) {
    options.max_step_tokens = 64;
    options.max_logits_rows = 8;
    if (options.packed_cache.dir.empty()) options.packed_cache = Cache();
    auto model = Model::Load(dir, device_.get(), options);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *std::move(model) : nullptr;
  }
  // Loads what is not there yet and waits until it is kept.
  fs::path Fill(const std::string& dir, const LoadOptions& options = {}) {
    const std::vector<fs::path> before = Kept();
    const auto model = Load(dir, options);
    EXPECT_FALSE(model->weights_mapped());
    EXPECT_THAT(WaitForRemark(), HasSubstr("kept for the next start"));
    for (const fs::path& path : Kept())
      if (std::ranges::find(before, path) == before.end()) return path;
    ADD_FAILURE() << "nothing was kept";
    return {};
  }
  std::vector<fs::path> Kept() const {
    std::vector<fs::path> files;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(root_ / "cache", error)) files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
  }
  std::vector<std::vector<float>> Compute(Model* model) {
    SequenceRunner runner(model, device_.get(), 64);
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 21; ++i) ids.push_back(3 + i * 7 % 40);
    return runner.Run(ids, 8);
  }

  fs::path root_;
  std::unique_ptr<Device> device_;
  std::mutex mutex_;
  std::vector<std::string> remarks_;
};

TEST_F(PackedCacheTest, TheSecondLoadMapsAndComputesTheSameBits) {
  for (const char* name : {"tiny/llama-bf16", "tiny/llama-sharded", "tiny/llama-f32", "families/gpt2", "families/qwen3-moe"}) {
    for (const char* quantization : {"none", "int8", "int4:32"}) {
      SCOPED_TRACE(std::string(name) + " " + quantization);
      const std::string dir = CopyModel(name);
      const LoadOptions options = {.quantization = *ParseQuantFormat(quantization)};
      const auto first = Load(dir, options);
      ASSERT_NE(first, nullptr);
      EXPECT_THAT(WaitForRemark(), HasSubstr("kept for the next start"));
      EXPECT_FALSE(first->weights_mapped());
      const auto second = Load(dir, options);
      ASSERT_NE(second, nullptr);
      EXPECT_TRUE(second->weights_mapped());
      EXPECT_EQ(Remarks(), "");
      EXPECT_EQ(second->fingerprint(), first->fingerprint());
      EXPECT_EQ(second->weight_bytes(), first->weight_bytes());
      EXPECT_EQ(second->linear_bytes(), first->linear_bytes());
      EXPECT_EQ(Compute(second.get()), Compute(first.get()));
      fs::remove_all(root_ / "cache");  // what is mapped stays
      EXPECT_EQ(Compute(second.get()), Compute(first.get()));
    }
  }
}

// Formats are mixed there: some weights are codes, some are values.
TEST_F(PackedCacheTest, QuantisedCheckpointsAreKeptAsTheyAreStored) {
  for (const char* name : {"quantized/gptq-int4-moe", "quantized/awq-int4", "quantized/fp8-block"}) {
    SCOPED_TRACE(name);
    const std::string dir = CopyModel(name);
    const auto first = Load(dir);
    ASSERT_NE(first, nullptr);
    EXPECT_THAT(WaitForRemark(), HasSubstr("kept for the next start"));
    const auto second = Load(dir);
    ASSERT_NE(second, nullptr);
    EXPECT_TRUE(second->weights_mapped());
    EXPECT_EQ(second->formats(), first->formats());
    EXPECT_EQ(second->fingerprint(), first->fingerprint());
    EXPECT_EQ(Compute(second.get()), Compute(first.get()));
    const auto plain = Load(dir, {.quantization = QuantFormat()});
    EXPECT_FALSE(plain->weights_mapped());
    EXPECT_THAT(WaitForRemark(), HasSubstr("kept for the next start"));
  }
}

TEST_F(PackedCacheTest, OtherFilesAndOtherSettingsAreOtherWeights) {
  const std::string dir = CopyModel("tiny/llama-bf16");
  Fill(dir);
  EXPECT_TRUE(Load(dir)->weights_mapped());
  Fill(dir, {.dtype = DType::kF32});
  Fill(dir, {.quantization = *ParseQuantFormat("int8:32")});
  EXPECT_EQ(Kept().size(), 3u);
  EXPECT_TRUE(Load(dir)->weights_mapped());

  // The same bytes written anew may be other bytes: they are read again. So do others of the same size and time.
  const fs::path weights = fs::path(dir) / "model.safetensors";
  std::string bytes = ReadBytes(weights);
  const auto modified = fs::last_write_time(weights);
  bytes.back() = char(bytes.back() ^ 1);
  WriteBytes(weights, bytes);
  fs::last_write_time(weights, modified);
  Fill(dir);
  EXPECT_TRUE(Load(dir)->weights_mapped());
  std::ofstream(fs::path(dir) / "config.json", std::ios::app) << "\n";
  Fill(dir);
  EXPECT_EQ(Kept().size(), 5u);
}

TEST_F(PackedCacheTest, ADamagedFileIsNotUsed) {
  const std::string dir = CopyModel("tiny/llama-bf16");
  const fs::path path = Fill(dir);
  const std::string whole = ReadBytes(path);
  const auto expected = Compute(Load(dir).get());
  Rng rng(20261123);
  for (int i = 0; i < 60; ++i) {
    std::string bytes = whole;
    std::string what;
    if (i % 4 == 0) {
      bytes.resize(rng.Below(bytes.size()));
      what = fmt::format("cut to {}", bytes.size());
    } else {
      // The head and its lists more often than their size would have it. Padding before the data is under the checksum too.
      const size_t at = i % 4 == 1 ? rng.Below(256) : i % 4 == 2 ? rng.Below(4096) : rng.Below(bytes.size());
      bytes[at] = char(bytes[at] ^ (1 << rng.Below(8)));
      what = fmt::format("byte {} flipped", at);
    }
    SCOPED_TRACE(what);
    fs::remove(path);
    WriteBytes(path, bytes);
    fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
    const auto model = Load(dir);
    ASSERT_NE(model, nullptr);
    EXPECT_FALSE(model->weights_mapped());
    const std::string remark = WaitForRemark();
    EXPECT_TRUE(remark.find("not used") != std::string::npos || remark.find("kept") != std::string::npos) << remark;
    EXPECT_EQ(Compute(model.get()), expected);
  }
}

TEST_F(PackedCacheTest, AFileThatOthersCanWriteIsNotUsed) {
  const std::string dir = CopyModel("tiny/llama-bf16");
  const fs::path path = Fill(dir);
  fs::permissions(path, fs::perms::group_write, fs::perm_options::add);
  const auto model = Load(dir);
  EXPECT_FALSE(model->weights_mapped());
  EXPECT_THAT(WaitForRemark(), HasSubstr("only its owner"));
}

TEST_F(PackedCacheTest, TheLongestUnusedGoFirst) {
  const std::string dir = CopyModel("tiny/llama-bf16");
  const fs::path a = Fill(dir), b = Fill(dir, {.dtype = DType::kF32});
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(a, now - std::chrono::hours(3));
  fs::last_write_time(b, now - std::chrono::hours(2));
  EXPECT_TRUE(Load(dir)->weights_mapped());  // a is now the one used last
  PackedCacheOptions tight = Cache();
  tight.limit_bytes = fs::file_size(a) + fs::file_size(b) + 1;
  const fs::path c = Fill(dir, {.dtype = DType::kF16, .packed_cache = tight});
  EXPECT_EQ(Kept().size(), 2u);
  EXPECT_TRUE(fs::exists(a) && fs::exists(c) && !fs::exists(b));
  tight.limit_bytes = 100;
  Load(dir, {.quantization = *ParseQuantFormat("int8"), .packed_cache = tight});
  EXPECT_THAT(WaitForRemark(), HasSubstr("more than --packed-cache-limit 100"));
  EXPECT_EQ(Kept().size(), 2u);
}

TEST_F(PackedCacheTest, WhatDeadWritersLeftIsRemoved) {
  const std::string dir = CopyModel("tiny/llama-bf16");
  fs::create_directory(root_ / "cache");
  const fs::path old_part = root_ / "cache/0123.kvpack.9-0.part", new_part = root_ / "cache/0124.kvpack.9-0.part",
                 foreign = root_ / "cache/notes.txt";
  for (const fs::path& path : {old_part, new_part, foreign}) WriteBytes(path, "x");
  const auto long_ago = fs::file_time_type::clock::now() - std::chrono::hours(48);
  fs::last_write_time(old_part, long_ago);
  fs::last_write_time(foreign, long_ago);
  Fill(dir);
  EXPECT_TRUE(!fs::exists(old_part) && fs::exists(new_part) && fs::exists(foreign));
}

TEST_F(PackedCacheTest, AnImpossibleFolderCostsARemark) {
  const std::string dir = CopyModel("tiny/llama-bf16");
  WriteBytes(root_ / "file", "x");
  PackedCacheOptions cache = Cache();
  cache.dir = (root_ / "file/below").string();
  const auto model = Load(dir, {.packed_cache = cache});
  ASSERT_NE(model, nullptr);
  EXPECT_THAT(WaitForRemark(), HasSubstr("not kept"));
  // Too small to be worth it, and no cache at all: nothing happens and nothing is said.
  cache = Cache();
  cache.least_bytes = uint64_t{1} << 30;
  PackedKeeper(cache, "key", "hash", {}).WaitUntilDone();
  const auto reference = MakeReferenceDevice();
  EXPECT_TRUE(Model::Load(dir, reference.get(), {.packed_cache = Cache()}).ok());
  EXPECT_EQ(Remarks(), "");
  EXPECT_EQ(Kept().size(), 0u);
}

TEST_F(PackedCacheTest, WritingStopsWhenAskedAndLeavesNothing) {
  std::vector<std::byte> bytes(3 * kPackedChunk + 100);
  const Weight weight = {DType::kF32, 1, int64_t(bytes.size() / 4), bytes.data(), {}};
  int asked = 0;
  const Status status =
      WritePackedFile((root_ / "x.kvpack").string(), "key", std::string(32, 'h'),
                      std::vector<PackedWeight>{{PackingKind::kVector, weight, bytes.size()}}, [&] { return ++asked < 3; });
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_TRUE(fs::is_empty(root_));
}

TEST_F(PackedCacheTest, BytesComeBackWhateverTheirSizes) {
  Rng rng(7);
  for (int round = 0; round < 8; ++round) {
    std::vector<std::vector<std::byte>> buffers;
    std::vector<PackedWeight> weights;
    for (uint64_t i = 0, count = rng.Below(30); i < count; ++i) {
      auto& buffer = buffers.emplace_back(rng.Below(i % 7 == 0 ? 2 * kPackedChunk + 5 : 300));
      for (std::byte& byte : buffer) byte = std::byte(rng.Below(256));
    }
    for (const auto& buffer : buffers) {
      const Weight weight = {DType::kBF16, int64_t(rng.Below(100)), int64_t(rng.Below(100)),
                             const_cast<std::byte*>(buffer.data()), *ParseQuantFormat("int4:32")};
      weights.push_back({PackingKind::kEmbedding, weight, buffer.size()});
    }
    const std::string path = (root_ / "x.kvpack").string(), key = fmt::format("round {}", round), hash(32, char('a' + round));
    ASSERT_TRUE(WritePackedFile(path, key, hash, weights, [] { return true; }).ok());
    EXPECT_EQ(PackedFile::Open(path, "another").status().code(), StatusCode::kNotFound);
    const auto file = PackedFile::Open(path, key);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->weights_hash(), hash);
    ASSERT_EQ((*file)->weights().size(), weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      const PackedWeight& back = (*file)->weights()[i];
      EXPECT_EQ(uintptr_t(back.weight.packed) % 64, 0u);
      EXPECT_EQ(back.kind, weights[i].kind);
      EXPECT_EQ(back.weight.rows, weights[i].weight.rows);
      EXPECT_EQ(back.weight.cols, weights[i].weight.cols);
      EXPECT_EQ(back.weight.dtype, weights[i].weight.dtype);
      EXPECT_EQ(back.weight.quant, weights[i].weight.quant);
      ASSERT_EQ(back.bytes, weights[i].bytes);
      EXPECT_TRUE(std::equal(buffers[i].begin(), buffers[i].end(), static_cast<const std::byte*>(back.weight.packed)));
    }
  }
}

// The hash of everything packed from files that never change. When it changes, packing or loading has changed, and files kept
// earlier hold other weights: raise the number in CpuDevice::PackingName, or kRevision in packed_cache.cc, and write the new
// hashes here.
TEST_F(PackedCacheTest, TheSameFilesGiveTheSameBytes) {
  const std::tuple<const char*, const char*, uint64_t> cases[] = {
      {"tiny/llama-bf16", "none", 17156771479611107211u},   {"tiny/llama-f16", "none", 6223621046583206998u},
      {"tiny/llama-bf16", "int8", 9626420317802022888u},    {"tiny/llama-bf16", "int4", 18100846775844824966u},
      {"tiny/llama-f32", "int8:32", 11788458001663172901u}, {"families/gpt2", "none", 13951666887830172981u},
      {"families/gemma", "none", 17533712385320496903u},    {"families/qwen3-moe", "none", 12749984066562665931u},
  };
  for (const auto& [name, quantization, expected] : cases) {
    const std::string bytes = ReadBytes(Fill(CopyModel(name), {.quantization = *ParseQuantFormat(quantization)}));
    uint64_t data_begin;  // the fifth number of the head
    std::memcpy(&data_begin, bytes.data() + 32, sizeof(data_begin));
    ASSERT_LT(data_begin, bytes.size());
    EXPECT_EQ(XXH3_64bits(bytes.data() + data_begin, bytes.size() - data_begin), expected) << name << " " << quantization;
  }
}

}  // namespace
}  // namespace kvasir
