// Vocabulary files that stand in for tokenizer.json: SentencePiece models and tiktoken vocabularies, whole, cut off and broken.
// (What whole ones give is compared with the sentencepiece package and with transformers by tokenizer_golden_test.)
#include "models/sentencepiece_model.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "models/charsmap.h"
#include "models/tokenizer.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

using testing::HasSubstr;
using Ids = std::vector<int32_t>;

std::string ReadData(const std::string& name) {
  std::ifstream in(std::filesystem::path(KVASIR_SOURCE_DIR) / "tests/data/tokenizers" / name, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  EXPECT_FALSE(bytes.empty()) << name;
  return bytes;
}

std::string LoadError(std::string_view bytes, std::string_view name = "tokenizer.model", std::string_view config = {}) {
  const auto tokenizer = Tokenizer::ParseVocabularyFile(bytes, name, config);
  EXPECT_FALSE(tokenizer.ok());
  return tokenizer.ok() ? "" : Message(tokenizer.status());
}

// A message field of a protobuf.
std::string Field(int number, std::string_view bytes) {
  return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(bytes.size()) + std::string(bytes);
}
std::string PieceOf(std::string_view text, int type) {
  return Field(1, Field(1, text) + "\x18" + static_cast<char>(type));
}

TEST(SentencePieceModelTest, CutOffAnywhereIsAnErrorOrASmallerModel) {
  for (const char* name : {"sp_bpe/tokenizer.model", "sp_unigram/tokenizer.model"}) {
    const std::string bytes = ReadData(name);
    for (size_t size = 0; size < bytes.size(); size += size < 200 ? 1 : 331) {
      const auto tokenizer = Tokenizer::ParseVocabularyFile(std::string_view(bytes).substr(0, size), "tokenizer.model");
      if (tokenizer.ok()) (void)(*tokenizer)->Encode("Hello world", true);
    }
  }
}

TEST(SentencePieceModelTest, ChangedBytesNeverCrash) {
  const std::string whole = ReadData("sp_unigram/tokenizer.model");
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    std::string bytes = whole;
    for (int i = 0; i < 4; ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    const auto tokenizer = Tokenizer::ParseVocabularyFile(bytes, "tokenizer.model");
    if (!tokenizer.ok()) continue;
    const auto ids = (*tokenizer)->Encode("Hello \u00e9e\u0301 \uff21\u2460 world", true);
    if (ids.ok()) {
      EXPECT_EQ(FirstInvalidUtf8((*tokenizer)->Decode(*ids, false)), std::string::npos);
    }
  }
}

TEST(SentencePieceModelTest, RefusesByName) {
  EXPECT_THAT(LoadError(""), HasSubstr("it has no pieces"));
  EXPECT_THAT(LoadError("hello"), HasSubstr("not a SentencePiece model"));
  EXPECT_THAT(LoadError(Field(1, Field(1, ""))), HasSubstr("piece 0 has 0 bytes"));
  EXPECT_THAT(LoadError(PieceOf("\xff", 1)), HasSubstr("piece 0 is not valid UTF-8"));
  EXPECT_THAT(LoadError(PieceOf("a", 9)), HasSubstr("piece 0 has type 9"));
  EXPECT_THAT(LoadError(PieceOf("a", 1) + Field(2, "\x18\x03")), HasSubstr("type 3; supported: UNIGRAM (1), BPE (2)"));
  EXPECT_THAT(LoadError(PieceOf("a", 1) + PieceOf("a", 1) + Field(2, "\x18\x02")), HasSubstr("'a' is there twice"));
  EXPECT_THAT(LoadError(PieceOf("a", 1) + Field(3, Field(2, "charsmap"))), HasSubstr("charsmap"));
}

TEST(SentencePieceModelTest, SpecialTokensAndTheLeadingSpace) {
  const std::string model =
      PieceOf("<unk>", 2) + PieceOf("<s>", 3) + PieceOf("\u2581", 1) + PieceOf("a", 1) + PieceOf("<x>", 4) + Field(2, "\x18\x02");
  const auto encode = [&](std::string_view config) {
    const auto tokenizer = Tokenizer::ParseVocabularyFile(model, "tokenizer.model", config);
    EXPECT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
    return tokenizer.ok() ? (*tokenizer)->Encode("a<x>a", true).value_or(Ids{}) : Ids{};
  };
  // Folders with tokenizer code of their own: SentencePiece's rules.
  EXPECT_EQ(encode(R"({"auto_map": {}})"), (Ids{1, 2, 3, 4, 3}));
  EXPECT_EQ(encode(R"({"auto_map": {}, "legacy": true})"), (Ids{1, 2, 3, 4, 2, 3}));
  EXPECT_EQ(encode(R"({"auto_map": {}, "add_bos_token": false})"), (Ids{2, 3, 4, 3}));
  // The general components put no space before a text, the Llama ones before the first part or before each.
  EXPECT_EQ(encode(""), (Ids{3, 4, 3}));
  EXPECT_EQ(encode(R"({"add_bos_token": true})"), (Ids{1, 3, 4, 3}));
  EXPECT_EQ(encode(R"({"tokenizer_class": "LlamaTokenizer"})"), (Ids{2, 3, 4, 3}));
  EXPECT_EQ(encode(R"({"tokenizer_class": "LlamaTokenizerFast", "legacy": true})"), (Ids{2, 3, 4, 2, 3}));
  EXPECT_EQ(encode(R"({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": false})"), (Ids{3, 4, 3}));
}

TEST(SentencePieceModelTest, RefusesClassesThatItCannotFollow) {
  const std::string bpe = PieceOf("<unk>", 2) + PieceOf("a", 1) + Field(2, "\x18\x02"),
                    unigram = PieceOf("<unk>", 2) + PieceOf("a", 1);
  EXPECT_THAT(LoadError(unigram, "tokenizer.model", R"({"tokenizer_class": "XLMRobertaTokenizer"})"),
              HasSubstr("XLMRobertaTokenizer rearranges"));
  EXPECT_THAT(LoadError(unigram, "tokenizer.model", R"({"tokenizer_class": "LlamaTokenizer"})"), HasSubstr("needs a BPE model"));
  EXPECT_THAT(LoadError(bpe, "tokenizer.model", R"({"tokenizer_class": "T5Tokenizer"})"), HasSubstr("needs a UNIGRAM model"));
  EXPECT_THAT(LoadError(unigram, "tokenizer.model", R"({"tokenizer_class": "T5Tokenizer"})"),
              HasSubstr("needs the piece '</s>'"));
  EXPECT_THAT(LoadError(unigram, "tokenizer.model", R"({"extra_ids": 1000000})"), HasSubstr("extra_ids"));
  EXPECT_THAT(LoadError(unigram, "tokenizer.model", R"({"added_tokens_decoder": {"9": {"content": "<x>"}}})"),
              HasSubstr("the vocabulary makes it 2"));
}

TEST(TiktokenTest, RanksPatternAndSpecialTokens) {
  std::string file;
  for (const std::string_view token : {"a", "b", " ", "ab", " ab"})
    file += EncodeBase64(token) + " " + std::to_string(file.empty() ? 0 : std::count(file.begin(), file.end(), '\n')) + "\n";
  const std::string config =
      R"({"added_tokens_decoder": {"9": {"content": "<|end|>", "special": true}}, "tokenizer_class": "GPT2Tokenizer"})";
  const auto tokenizer = Tokenizer::ParseVocabularyFile(file, "tokenizer.model", config);
  ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  EXPECT_EQ((*tokenizer)->Encode("ab ab<|end|>ba", false).value_or(Ids{}), (Ids{3, 4, 9, 1, 0}));
  EXPECT_EQ((*tokenizer)->Decode(Ids{3, 4, 9, 1, 0}, true), "ab abba");
  EXPECT_THAT(LoadError(file, "x.tiktoken"), HasSubstr("names a known family: qwen"));
  EXPECT_THAT(LoadError(file, "tokenizer.model", R"({"auto_map": {}})"), HasSubstr("names a known family: qwen"));
  EXPECT_THAT(LoadError("YQ== 0\nYQ== 1\n", "gpt2.tiktoken"), HasSubstr("has a rank before"));
  EXPECT_THAT(LoadError("YQ== 0\nYg== 0\n", "gpt2.tiktoken"), HasSubstr("rank 0 is there twice"));
  EXPECT_THAT(LoadError("YQ== x\n", "gpt2.tiktoken"), HasSubstr("line 1: 'x' is not a rank"));
  EXPECT_THAT(LoadError("Y! 0\n", "gpt2.tiktoken"), HasSubstr("line 1: base64"));
}

}  // namespace
}  // namespace kvasir
