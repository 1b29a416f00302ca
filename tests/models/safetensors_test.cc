// The safetensors format by itself; broken files in a model folder are in load_test.cc, arbitrary bytes in tests/fuzz.
#include "models/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/models/fake_fs.h"
#include "tests/models/test_folder.h"

namespace kvasir {
namespace {

using testing::HasSubstr;

StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)));
}

TEST(Safetensors, ReadsTensorsMetadataAndScalars) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"none":{"dtype":"I64","shape":[3,0],"data_offsets":[4,4]}}   )";
  const auto parsed = Parse(SafetensorsFile(header, 12));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->tensors.size(), 3u);
  EXPECT_EQ(parsed->metadata.at("format"), "pt");
  const StoredTensor* b = parsed->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->begin, 8 + header.size() + 4);
  EXPECT_EQ(b->end, 8 + header.size() + 12);
  EXPECT_EQ(b->type->usable, DType::kBF16);
  EXPECT_EQ(b->ShapeText(), "[2, 2]");
  EXPECT_TRUE(parsed->Find("a")->shape.empty());
  EXPECT_FALSE(parsed->Find("none")->type->usable.has_value());
  EXPECT_EQ(parsed->Find("c"), nullptr);
}

TEST(Safetensors, EveryStoredTypeHasItsSize) {
  const std::vector<std::pair<std::string, int>> bytes_of_8 = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},    {"F8_E5M2", 8},
      {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16}, {"BF16", 16}, {"I32", 32},
      {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},    {"I64", 64}, {"U64", 64}};
  for (const auto& [dtype, bytes] : bytes_of_8) {
    const std::string header = fmt::format(R"({{"a":{{"dtype":"{}","shape":[8],"data_offsets":[0,{}]}}}})", dtype, bytes);
    EXPECT_TRUE(Parse(SafetensorsFile(header, bytes)).ok()) << dtype;
  }
  EXPECT_EQ(FindStoredType("F16")->usable, DType::kF16);
  EXPECT_EQ(FindStoredType("f16"), nullptr);
}

TEST(Safetensors, SubByteTypesFillWholeBytes) {
  const auto file = [](int count, int bytes) {
    return SafetensorsFile(fmt::format(R"({{"a":{{"dtype":"F4","shape":[{}],"data_offsets":[0,{}]}}}})", count, bytes), bytes);
  };
  EXPECT_TRUE(Parse(file(4, 2)).ok());
  EXPECT_THAT(Message(Parse(file(3, 2)).status()), HasSubstr("no whole number of bytes"));
}

// Every field of the header matters: after any one-byte change the file is refused, or is another well-formed file.
TEST(Safetensors, EveryByteOfTheHeaderIsChecked) {
  const std::string file = SafetensorsFile(TestTensors());
  const auto original = Parse(file);
  ASSERT_TRUE(original.ok());
  uint64_t length;
  std::memcpy(&length, file.data(), 8);
  int refused = 0;
  for (size_t at = 0; at < 8 + length; at += 1) {
    for (const char replacement : {'\0', '0', '"', '\xff'}) {
      if (file[at] == replacement) continue;
      std::string changed = file;
      changed[at] = replacement;
      const auto parsed = Parse(changed);
      refused += !parsed.ok();
      if (!parsed.ok()) continue;
      // Only names can change without contradiction.
      ASSERT_EQ(parsed->tensors.size(), original->tensors.size()) << at;
      for (size_t i = 0; i < parsed->tensors.size(); ++i) {
        ASSERT_EQ(parsed->tensors[i].begin, original->tensors[i].begin) << at;
        ASSERT_EQ(parsed->tensors[i].end, original->tensors[i].end) << at;
      }
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string file = SafetensorsFile(std::vector<TestTensor>{{"a", {2, 3}}, {"b", {4}}});
  ASSERT_TRUE(Parse(file).ok());
  for (size_t size = 0; size < file.size(); ++size) EXPECT_FALSE(Parse(file.substr(0, size)).ok()) << size;
}

TEST(Safetensors, ReadsFromAFileWhatItReadsFromMemory) {
  const FakeFs fs(TestFolder());
  const auto file = fs.Open("m/model.safetensors");
  ASSERT_TRUE(file.ok());
  const auto header = ReadSafetensorsHeader(**file);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors.size(), TestTensors().size());
}

}  // namespace
}  // namespace kvasir
