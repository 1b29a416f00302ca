// Broken model folders: each gives an error that names what is wrong, in bounded time and memory, and nothing crashes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>

#include "models/model.h"
#include "tests/models/fake_fs.h"
#include "tests/models/model_runner.h"
#include "tests/models/test_folder.h"
#include "tests/slow.h"

namespace kvasir {
namespace {

using testing::HasSubstr;

Status LoadStatus(const Fs& fs, const std::string& dir = "m") {
  const auto device = MakeReferenceDevice();
  return Model::Load(dir, device.get(), {.max_step_tokens = 8, .max_logits_rows = 2, .fs = &fs}).status();
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Broken {
  std::string name;
  std::function<void(Files&)> breaks;
  std::vector<std::string> says;
  bool sharded = false;
};

// The header of model.safetensors with the data that follows it, edited as text; offsets in the header stay as they are.
std::function<void(Files&)> EditHeader(std::string from, std::string to) {
  return [=](Files& files) {
    std::string& file = files["m/model.safetensors"];
    uint64_t length;
    std::memcpy(&length, file.data(), 8);
    std::string header = file.substr(8, length);
    Replace(header, from, to);
    const std::string data = file.substr(8 + length);
    length = header.size();
    file.assign(reinterpret_cast<const char*>(&length), 8);
    file += header + data;
  };
}

std::function<void(Files&)> HeaderLength(uint64_t length) {
  return [=](Files& files) { std::memcpy(files["m/model.safetensors"].data(), &length, 8); };
}

std::function<void(Files&)> Tensors(std::function<void(std::vector<TestTensor>&)> edit) {
  return [=](Files& files) {
    std::vector<TestTensor> tensors = TestTensors();
    edit(tensors);
    files["m/model.safetensors"] = SafetensorsFile(tensors);
  };
}

std::function<void(Files&)> Config(std::string from, std::string to) {
  return [=](Files& files) { Replace(files["m/config.json"], from, to); };
}

std::function<void(Files&)> WholeHeader(std::string header, size_t data_bytes = 0) {
  return [=](Files& files) { files["m/model.safetensors"] = SafetensorsFile(header, data_bytes); };
}

std::string ManyTensors(int count) {
  std::string header = "{";
  for (int i = 0; i < count; ++i)
    header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i == 0 ? "" : ",", i);
  return header + "}";
}

const char kSafetensors[] = "model.safetensors";

std::vector<Broken> BrokenFiles() {
  return {
      {"no config", [](Files& f) { f.erase("m/config.json"); }, {"there is no config.json"}},
      {"config empty", [](Files& f) { f["m/config.json"] = ""; }, {"config.json", "not valid JSON"}},
      {"config cut", [](Files& f) { f["m/config.json"].resize(100); }, {"config.json", "not valid JSON at byte"}},
      {"config a list", [](Files& f) { f["m/config.json"] = "[]"; }, {"config.json", "wanted an object"}},
      {"config deep", [](Files& f) { f["m/config.json"] = std::string(1 << 20, '['); }, {"config.json", "nested deeper than 32"}},
      {"config huge", [](Files& f) { f["m/config.json"].resize(5 << 20, ' '); }, {"config.json", "limit is 4194304"}},
      {"config duplicate",
       Config("\"hidden_size\": 8", "\"hidden_size\": 8, \"hidden_size\": 8"),
       {"config.json", "'hidden_size' appears twice"}},
      {"no weights", [](Files& f) { f.erase("m/model.safetensors"); }, {"has neither model.safetensors nor"}},
      {"pickle only",
       [](Files& f) {
         f.erase("m/model.safetensors");
         f["m/pytorch_model.bin"] = "cos\nsystem\n(S'false'\ntR.";
         f["m/modeling_llama.py"] = "raise SystemExit";
       },
       {"found: pytorch_model.bin", "safe_serialization"}},
      {"file empty", [](Files& f) { f["m/model.safetensors"] = ""; }, {kSafetensors, "has 0 bytes"}},
      {"file of 7 bytes", [](Files& f) { f["m/model.safetensors"] = "1234567"; }, {kSafetensors, "has 7 bytes"}},
      {"header cut", [](Files& f) { f["m/model.safetensors"].resize(200); }, {kSafetensors, "header length", "fetch it again"}},
      {"data cut",
       [](Files& f) { f["m/model.safetensors"].resize(f["m/model.safetensors"].size() - 1); },
       {"lm_head.weight", "truncated"}},
      {"data cut to none",
       WholeHeader(R"({"model.embed_tokens.weight":{"dtype":"F32","shape":[11,8],"data_offsets":[0,352]}})"),
       {"model.embed_tokens.weight", "has only 0"}},
      {"trailing byte", [](Files& f) { f["m/model.safetensors"] += 'x'; }, {kSafetensors, "bytes belong to no tensor"}},
      {"header of 8 EB", HeaderLength(uint64_t{1} << 63), {kSafetensors, "9223372036854775808", "limit is 100000000"}},
      {"header of 2^64-1", HeaderLength(~uint64_t{0}), {kSafetensors, "18446744073709551615"}},
      {"header just over the limit", HeaderLength(100'000'001), {kSafetensors, "100000001"}},
      {"header at the limit but not in the file", HeaderLength(100'000'000), {kSafetensors, "the file has only"}},
      {"header length 0", HeaderLength(0), {kSafetensors, "does not start with '{'"}},
      {"header a list", WholeHeader("[]"), {kSafetensors, "does not start with '{'"}},
      {"header begins with a space", WholeHeader(" {}"), {"does not start with '{'"}},
      {"header not JSON", WholeHeader("{nonsense}"), {kSafetensors, "not valid JSON"}},
      {"header not UTF-8", WholeHeader("{\"\xff\xfe\":1}"), {kSafetensors, "not valid JSON"}},
      {"header with NUL", WholeHeader(std::string("{}\0junk", 7)), {kSafetensors, "NUL"}},
      {"header deep", WholeHeader("{\"a\":" + std::string(4 << 20, '[')), {kSafetensors, "tensor 'a' is an array"}},
      {"metadata deep", WholeHeader("{\"__metadata__\":{\"a\":{}}}"), {"__metadata__ 'a'", "an object"}},
      {"metadata twice", WholeHeader("{\"__metadata__\":{},\"__metadata__\":{}}"), {"'__metadata__' appears twice"}},
      {"metadata key twice", WholeHeader(R"({"__metadata__":{"a":"1","a":"2"}})"), {"'a' appears twice"}},
      {"too many tensors", WholeHeader(ManyTensors(200'001)), {"more than 200000 tensors"}},
      {"duplicate tensor", EditHeader("model.norm.weight", "lm_head.weight"), {"'lm_head.weight' appears twice"}},
      {"duplicate field", EditHeader("\"dtype\":\"F32\"", "\"dtype\":\"F32\",\"dtype\":\"F32\""), {"'dtype' appears twice"}},
      {"unknown field", EditHeader("\"dtype\":\"F32\"", "\"scale\":1,\"dtype\":\"F32\""), {"unknown field 'scale'"}},
      {"unknown dtype",
       EditHeader("\"dtype\":\"F32\"", "\"dtype\":\"F33\""),
       {"model.embed_tokens.weight", "unknown dtype 'F33'"}},
      {"no dtype", EditHeader("\"dtype\":\"F32\",", ""), {"model.embed_tokens.weight", "needs dtype"}},
      {"negative dim", EditHeader("[11,8]", "[-11,8]"), {"model.embed_tokens.weight", "shape holds the number -11"}},
      {"fractional dim", EditHeader("[11,8]", "[11.0,8]"), {"shape holds the number 11.0"}},
      {"dim beyond 64 bits", EditHeader("[11,8]", "[18446744073709551616,8]"), {"shape holds the number"}},
      {"shape product overflows to 4",
       EditHeader("[11,8]", "[4194305,4194305,211106198978564]"),
       {"model.embed_tokens.weight", "overflows"}},
      {"byte size overflows", EditHeader("[11,8]", "[4611686018427387905,1]"), {"model.embed_tokens.weight", "overflows"}},
      {"rank of 1000",
       EditHeader(
           "[11,8]", "[1" +
                         [] {
                           std::string s;
                           for (int i = 0; i < 999; ++i) s += ",1";
                           return s;
                         }() +
                         "]"),
       {"shape holds"}},
      {"offsets reversed", EditHeader("[0,352]", "[352,0]"), {"model.embed_tokens.weight"}},
      {"offsets overlap", EditHeader("[352,384]", "[320,352]"), {"input_layernorm.weight", "overlap"}},
      {"offsets gap", EditHeader("[352,384]", "[360,392]"), {"input_layernorm.weight", "gap"}},
      {"begin + length wraps", EditHeader("[352,384]", "[18446744073709551584,384]"), {"input_layernorm.weight"}},
      {"three offsets", EditHeader("[352,384]", "[352,384,400]"), {"input_layernorm.weight", "data_offsets holds"}},
      {"one offset", EditHeader("[352,384]", "[352]"), {"input_layernorm.weight", "data_offsets"}},
      {"size is not shape", EditHeader("\"shape\":[11,8]", "\"shape\":[11,7]"), {"model.embed_tokens.weight", "needs 308"}},
      {"no lm_head", Tensors([](auto& t) { t.pop_back(); }), {"'lm_head.weight' is missing", "tie_word_embeddings"}},
      {"two missing",
       Tensors([](auto& t) { t.erase(t.begin() + 2, t.begin() + 4); }),
       {"2 problems", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"}},
      {"wrong shape",
       Tensors([](auto& t) {
         t[2].shape = {8, 9};
       }),
       {"q_proj.weight", "shape [8, 9]", "asks for [8, 8]"}},
      {"transposed",
       Tensors([](auto& t) {
         t[9].shape = {6, 8};
       }),
       {"model.layers.0.mlp.down_proj.weight", "[6, 8]", "[8, 6]"}},
      {"norm as a matrix",
       Tensors([](auto& t) {
         t[1].shape = {1, 8};
       }),
       {"input_layernorm.weight", "[1, 8]"}},
      {"unusable dtype", Tensors([](auto& t) { t[2].dtype = "I32"; }), {"q_proj.weight", "dtype I32", "F32, F16, BF16"}},
      {"int8 weights", Tensors([](auto& t) { t[2].dtype = "I8", t[2].element_bytes = 1; }), {"q_proj.weight", "dtype I8"}},
      {"all wrong at once",
       Tensors([](auto& t) { t[1].shape = {9}, t[2].dtype = "I32", t.pop_back(); }),
       {"3 problems", "input_layernorm.weight", "q_proj.weight", "lm_head.weight"}},
      {"zero-size tensor where weights belong",
       Tensors([](auto& t) {
         t[0].shape = {0, 8};
       }),
       {"model.embed_tokens.weight", "[0, 8]"}},
      {"config asks for more layers",
       Config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
       {"9 problems", "model.layers.2."}},
      {"config asks for 1024 layers", Config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1024"), {"and 9158 more"}},
      {"config and weights wrong",
       [](Files& f) { Replace(f["m/config.json"], "silu", "mish"), f["m/model.safetensors"].resize(5); },
       {"2 problems", "hidden_act 'mish'", "has 5 bytes"}},
      {"generation config broken",
       [](Files& f) { f["m/generation_config.json"] = "{"; },
       {"generation_config.json", "not valid JSON"}},
      {"generation defaults",
       [](Files& f) { f["m/generation_config.json"] = R"({"top_p": 7})"; },
       {"generation_config.json", "top_p is 7"}},
      {"shard missing", [](Files& f) { f.erase("m/part-2.safetensors"); }, {"part-2.safetensors", "no such file"}, true},
      {"both shards broken",
       [](Files& f) { f.erase("m/part-2.safetensors"), f["m/part-1.safetensors"] = "x"; },
       {"2 problems", "part-1.safetensors", "part-2.safetensors"},
       true},
      {"index points up",
       [](Files& f) { Replace(f["m/model.safetensors.index.json"], "part-1.s", "../part-1.s"); },
       {"../part-1.safetensors", "plain name"},
       true},
      {"index points to a root",
       [](Files& f) { Replace(f["m/model.safetensors.index.json"], "part-1.s", "/etc/part-1.s"); },
       {"/etc/part-1", "plain name"},
       true},
      {"index points to other files",
       [](Files& f) { Replace(f["m/model.safetensors.index.json"], "part-1.safetensors", "config.json"); },
       {"config.json", "plain name"},
       true},
      {"index wrong shard",
       [](Files& f) { Replace(f["m/model.safetensors.index.json"], "part-1", "part-2"); },
       {"part-2.safetensors: has no tensor 'model.embed_tokens.weight'"},
       true},
      {"index without map", [](Files& f) { f["m/model.safetensors.index.json"] = "{}"; }, {"index.json", "weight_map"}, true},
      {"index map of numbers",
       [](Files& f) { f["m/model.safetensors.index.json"] = R"({"weight_map":{"a":1}})"; },
       {"index.json", "'a'"},
       true},
      {"index duplicate",
       [](Files& f) {
         Replace(f["m/model.safetensors.index.json"], "\"weight_map\": {",
                 "\"weight_map\": {\"lm_head.weight\": \"part-1.safetensors\", ");
       },
       {"index.json", "'lm_head.weight' appears twice"},
       true},
      {"tensor missing from the index",
       [](Files& f) { Replace(f["m/model.safetensors.index.json"], "model.norm.weight", "model.norm.wait"); },
       {"model.norm.wait"},
       true},
  };
}

constexpr std::chrono::seconds kPatience(kSanitized ? 60 : 5);

long PeakKilobytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

TEST(Load, BrokenFoldersAreRefusedByName) {
  for (const Broken& broken : BrokenFiles()) {
    SCOPED_TRACE(broken.name);
    Files files = broken.sharded ? ShardedTestFolder() : TestFolder();
    broken.breaks(files);
    size_t bytes = 0;
    for (const auto& [path, text] : files) bytes += text.size();
    const FakeFs fs(std::move(files));
    const long before = PeakKilobytes();
    const auto start = std::chrono::steady_clock::now();
    const Status status = LoadStatus(fs);
    EXPECT_LT(std::chrono::steady_clock::now() - start, kPatience);
    EXPECT_LT(PeakKilobytes() - before, 65536 + static_cast<long>(8 * bytes / 1024));
    ASSERT_FALSE(status.ok());
    for (const std::string& words : broken.says) EXPECT_THAT(Message(status), HasSubstr(words));
    EXPECT_LT(status.message().size(), 20000u);
  }
}

TEST(Load, WellFormedFoldersLoad) {
  EXPECT_EQ(LoadStatus(FakeFs(TestFolder())), OkStatus());
  EXPECT_EQ(LoadStatus(FakeFs(ShardedTestFolder())), OkStatus());
}

// Neither the split into shards nor the order in the file changes what a model is; one changed bit does.
TEST(Load, FingerprintIsOfTheWeights) {
  const auto fingerprint = [](Files files, LoadOptions options = {}) {
    const FakeFs fs(std::move(files));
    const auto device = MakeReferenceDevice();
    options.fs = &fs;
    const auto model = Model::Load("m", device.get(), options);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? (*model)->fingerprint() : "";
  };
  const std::string base = fingerprint(TestFolder());
  EXPECT_EQ(base.size(), 32u);
  EXPECT_EQ(base, fingerprint(TestFolder()));
  EXPECT_NE(base, fingerprint(TestFolder(), {.dtype = DType::kBF16}));
  Files files = TestFolder();
  files["m/model.safetensors"].back() ^= 1;
  EXPECT_NE(base, fingerprint(files));
  files = TestFolder();
  Replace(files["m/config.json"], "10000.0", "20000.0");
  EXPECT_NE(base, fingerprint(files));
}

TEST(Load, ExtraTensorsAreIgnored) {
  std::vector<TestTensor> tensors = TestTensors();
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {2}});
  tensors.push_back({"vision.weight", {3}, "I64", 8});
  Files files = TestFolder();
  files["m/model.safetensors"] = SafetensorsFile(tensors);
  EXPECT_EQ(LoadStatus(FakeFs(files)), OkStatus());
}

TEST(Load, ProgressRisesToOne) {
  const FakeFs fs(TestFolder());
  const auto device = MakeReferenceDevice();
  double last = 0;
  ASSERT_TRUE(Model::Load("m", device.get(),
                          {.fs = &fs,
                           .progress =
                               [&](double fraction, std::string_view what) {
                                 EXPECT_GE(fraction, last);
                                 EXPECT_FALSE(what.empty());
                                 last = fraction;
                                 return true;
                               }})
                  .ok());
  EXPECT_EQ(last, 1.0);
}

TEST(Load, ProgressMayStopIt) {
  const FakeFs fs(TestFolder());
  const auto device = MakeReferenceDevice();
  int told = 0;
  const auto model =
      Model::Load("m", device.get(), {.fs = &fs, .progress = [&](double, std::string_view) { return ++told < 3; }});
  EXPECT_EQ(model.status().code(), StatusCode::kCancelled);
  EXPECT_EQ(told, 3);
}

TEST(Load, OptionsAreChecked) {
  const FakeFs fs(TestFolder());
  const auto device = MakeReferenceDevice();
  const auto message = [&](LoadOptions options) {
    options.fs = &fs;
    return Message(Model::Load("m", device.get(), options).status());
  };
  EXPECT_THAT(message({.max_step_tokens = 0}), HasSubstr("max_step_tokens is 0"));
  EXPECT_THAT(message({.max_logits_rows = -1}), HasSubstr("max_logits_rows is -1"));
  EXPECT_THAT(message({.max_model_len = 33}), HasSubstr("max_model_len is 33 but the model holds at most 32"));
  EXPECT_EQ(message({.max_model_len = 16}), "");
}

// Whatever operation fails, or finds its file cut: an error that names the file, no crash, and the next load works.
TEST(Load, EveryFileOperationMayFail) {
  for (const auto& [folder, fault] :
       std::vector<std::pair<Files, FakeFs::Fault>>{{TestFolder(), FakeFs::Fault::kError},
                                                    {TestFolder(), FakeFs::Fault::kTruncate},
                                                    {ShardedTestFolder(), FakeFs::Fault::kError},
                                                    {ShardedTestFolder(), FakeFs::Fault::kTruncate}}) {
    FakeFs fs(folder);
    ASSERT_EQ(LoadStatus(fs), OkStatus());
    const int64_t operations = fs.operations();
    ASSERT_GT(operations, 20);
    for (int64_t n = 0; n < operations; ++n) {
      fs.FailAt(n, fault);
      const Status status = LoadStatus(fs);
      ASSERT_FALSE(status.ok()) << "operation " << n;
      ASSERT_THAT(Message(status), HasSubstr("m")) << n;
    }
    EXPECT_EQ(LoadStatus(fs), OkStatus());
  }
}

class RealFolder : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::temp_directory_path() / fmt::format("kvasir_load_test_{}", getpid());
    std::filesystem::create_directories(dir_);
    Write(TestFolder());
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  void Write(const Files& files) {
    for (const auto& [path, text] : files) std::ofstream(dir_ + path.substr(1), std::ios::binary) << text;
  }
  std::string dir_;
};

// Cuts a real file under the reader at its n-th read.
class CuttingFs : public Fs {
 public:
  explicit CuttingFs(int reads) : reads_left_(reads) {}
  StatusOr<std::vector<std::string>> List(const std::string& dir) const override { return RealFs().List(dir); }
  StatusOr<std::unique_ptr<File>> Open(const std::string& path) const override {
    auto file = RealFs().Open(path);
    if (!file.ok() || !path.ends_with(".safetensors")) return file;
    return std::make_unique<CuttingFile>(this, path, std::move(*file));
  }

 private:
  struct CuttingFile : File {
    CuttingFile(const CuttingFs* f, std::string p, std::unique_ptr<File> r) : fs(f), path(std::move(p)), real(std::move(r)) {}
    uint64_t size() const override { return real->size(); }
    Status ReadAt(uint64_t offset, void* out, size_t bytes) const override {
      if (--fs->reads_left_ < 0) {
        EXPECT_EQ(truncate(path.c_str(), static_cast<off_t>(offset + bytes / 2)), 0);
      }
      return real->ReadAt(offset, out, bytes);
    }
    const CuttingFs* fs;
    const std::string path;
    const std::unique_ptr<File> real;
  };
  mutable std::atomic<int> reads_left_;
};

TEST_F(RealFolder, FileCutWhileLoadingIsAnErrorNotASignal) {
  ASSERT_EQ(LoadStatus(RealFs(), dir_), OkStatus());
  for (int reads = 0; reads < 24; ++reads) {
    Write(TestFolder());
    const CuttingFs fs(reads);
    const Status status = LoadStatus(fs, dir_);
    ASSERT_FALSE(status.ok()) << reads;
    EXPECT_THAT(Message(status), HasSubstr("model.safetensors"));
    EXPECT_THAT(Message(status), HasSubstr("fetch it again"));
  }
}

TEST_F(RealFolder, OddPlacesAreRefused) {
  EXPECT_THAT(Message(LoadStatus(RealFs(), dir_ + "/nowhere")), HasSubstr("nowhere"));
  EXPECT_THAT(Message(LoadStatus(RealFs(), dir_ + "/config.json")), HasSubstr("config.json"));
  std::filesystem::remove(dir_ + "/model.safetensors");
  ASSERT_EQ(mkfifo((dir_ + "/model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(Message(LoadStatus(RealFs(), dir_)), HasSubstr("is not a plain file"));  // and does not hang
  std::filesystem::remove(dir_ + "/model.safetensors");
  std::filesystem::create_directory(dir_ + "/model.safetensors");
  EXPECT_THAT(Message(LoadStatus(RealFs(), dir_)), HasSubstr("is not a plain file"));
}

// A hole of 100 MB that claims to be a header is refused by its first byte, before memory is taken for it.
TEST_F(RealFolder, HeaderBombTakesNoMemory) {
  const std::string path = dir_ + "/model.safetensors";
  const uint64_t length = 100'000'000;
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(&length), 8);
  ASSERT_EQ(truncate(path.c_str(), 8 + 100'000'000), 0);
  const long before = PeakKilobytes();
  EXPECT_THAT(Message(LoadStatus(RealFs(), dir_)), HasSubstr("does not start with '{'"));
  EXPECT_LT(PeakKilobytes() - before, 20'000);
}

TEST(Forward, RefusesInputThatDoesNotFit) {
  const FakeFs fs(TestFolder());
  const auto device = MakeReferenceDevice();
  auto model = Model::Load("m", device.get(), {.max_step_tokens = 4, .max_logits_rows = 2, .fs = &fs});
  ASSERT_TRUE(model.ok()) << model.status();
  const KvLayout layout = (*model)->kv_groups(16, std::nullopt)[0].layout;
  auto memory = device->Allocate(layout.block_bytes() * 2, "kv");
  ASSERT_TRUE(memory.ok());
  const uint32_t blocks[2] = {0, 1};
  const SequenceTable table = {blocks, 2, nullptr};
  PagedKv kv = {static_cast<std::byte*>(*memory), layout.block_bytes(), layout, {&table, 1}};
  std::vector<int32_t> ids = {1, 2}, positions = {0, 1};
  std::vector<SequenceSlice> slices = {{0, 2, 0}};
  const auto forward = [&] { return Message((*model)->Forward({ids, positions, slices, {&kv, 1}})); };
  const int32_t row = 0;
  EXPECT_FALSE((*model)->Logits({&row, 1}).ok()) << "before any step";
  EXPECT_EQ(forward(), "");
  EXPECT_TRUE((*model)->Logits({&row, 1}).ok());
  ids[1] = 11;
  EXPECT_THAT(forward(), HasSubstr("token id 11"));
  EXPECT_FALSE((*model)->Logits({&row, 1}).ok()) << "after a refused step";
  ids[1] = -1;
  EXPECT_THAT(forward(), HasSubstr("token id -1"));
  ids[1] = 2;
  positions[1] = 32;
  EXPECT_THAT(forward(), HasSubstr("position 32"));
  positions[1] = 1;
  slices[0].num_rows = 1;
  EXPECT_THAT(forward(), HasSubstr("slices cover 1 of 2"));
  slices[0] = {0, 2, 1};
  EXPECT_THAT(forward(), HasSubstr("KV table 1"));
  slices[0] = {0, 2, 0};
  kv.layout.head_dim = 8;
  EXPECT_THAT(forward(), HasSubstr("another model"));
  kv.layout = layout;
  ids.assign(5, 1), positions.assign(5, 0);
  EXPECT_THAT(forward(), HasSubstr("5 tokens"));
  ids.clear(), positions.clear();
  EXPECT_THAT(forward(), HasSubstr("0 tokens"));
  device->Free(*memory);
}

// A folder of config.json alone, as --load-format dummy reads it.
TEST(DummyWeights, EveryFamilyComputes) {
  int families = 0;
  for (const auto& entry : std::filesystem::directory_iterator(KVASIR_SOURCE_DIR "/tests/data/families")) {
    if (!std::filesystem::exists(entry.path() / "config.json")) continue;
    SCOPED_TRACE(entry.path().filename());
    Files files;
    files["m/config.json"] = ReadFile(entry.path() / "config.json");
    const FakeFs fs(files);
    const LoadOptions options = {.format = LoadFormat::kDummy, .max_step_tokens = 16, .max_logits_rows = 1, .fs = &fs};
    std::vector<std::vector<float>> logits;
    std::string fingerprint;
    for (int load = 0; load < 2; ++load) {
      const auto device = *MakeCpuDevice({.threads = 1});
      auto model = Model::Load("m", device.get(), options);
      ASSERT_TRUE(model.ok()) << model.status();
      SequenceRunner runner(model->get(), device.get(), 20);
      const std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6, 7, 8, 9};
      ASSERT_TRUE(runner.Append(ids).ok());
      logits.push_back(runner.Logits(8));
      for (const float l : logits.back()) ASSERT_TRUE(std::isfinite(l));
      EXPECT_NE(logits.back()[0], logits.back()[1]);
      if (load == 1) {
        EXPECT_EQ(logits[0], logits[1]) << "made up anew";
        EXPECT_EQ((*model)->fingerprint(), fingerprint);
      }
      fingerprint = (*model)->fingerprint();
      ++families;
    }
  }
  EXPECT_GT(families, 60);
}

TEST(DummyWeights, QuantisedOnesAreRefused) {
  Files files;
  files["m/config.json"] = ReadFile(KVASIR_SOURCE_DIR "/tests/data/quantized/awq-int4/config.json");
  const FakeFs fs(files);
  const auto device = *MakeCpuDevice({.threads = 1});
  const auto model = Model::Load("m", device.get(), {.format = LoadFormat::kDummy, .fs = &fs});
  EXPECT_THAT(Message(model.status()), HasSubstr("quantization_config"));
}

}  // namespace
}  // namespace kvasir
