// IncrementalDetokenizer: the pieces of a stream always add up to Decode, and no piece holds half a character.
#include <gtest/gtest.h>

#include "models/detokenizer.h"

#include <nlohmann/json.hpp>
#include <random>

#include "models/tokenizer.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

using Ids = std::vector<int32_t>;

std::unique_ptr<Tokenizer> Family(const std::string& name) {
  auto tokenizer = Tokenizer::Load(std::string(KVASIR_SOURCE_DIR) + "/tests/data/tokenizers/" + name);
  EXPECT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  return *std::move(tokenizer);
}

// The text streamed for `answer` after `prompt`; every piece must be valid UTF-8 on its own.
std::string Stream(const Tokenizer& tokenizer, const Ids& prompt, const Ids& answer, bool skip) {
  IncrementalDetokenizer detokenizer(&tokenizer, skip, prompt);
  std::string text;
  for (const int32_t id : answer) {
    const std::string piece = detokenizer.Append(id);
    EXPECT_EQ(FirstInvalidUtf8(piece), std::string_view::npos);
    text += piece;
  }
  const std::string rest = detokenizer.Finish();
  EXPECT_EQ(FirstInvalidUtf8(rest), std::string_view::npos);
  return text + rest;
}

TEST(DetokenizerTest, HoldsBackUnfinishedCharacters) {
  const auto t = Family("llama2");
  const auto id = [&](const char* piece) { return *t->TokenId(piece); };
  IncrementalDetokenizer d(t.get(), true, Ids{id("a")});
  EXPECT_EQ(d.Append(id("<0xF0>")), "");
  EXPECT_EQ(d.Append(id("<0x9F>")), "");
  EXPECT_EQ(d.Append(id("<0x91>")), "");
  EXPECT_EQ(d.Append(id("<0x8D>")), "👍");
  EXPECT_EQ(d.Append(id("<0xE4>")), "");
  EXPECT_EQ(d.Append(id("a")), "\uFFFDa");  // it can no longer become a character
  EXPECT_EQ(d.Append(id("<0xE4>")), "");
  EXPECT_EQ(d.Append(id("<0xBD>")), "");
  EXPECT_EQ(d.Finish(), "\uFFFD");
  EXPECT_EQ(d.Finish(), "");
}

TEST(DetokenizerTest, LeadingSpaceDependsOnThePrompt) {
  const auto t = Family("llama2");
  const int32_t bos = *t->TokenId("<s>"), the = *t->TokenId("▁the");
  EXPECT_EQ(Stream(*t, {}, {the, the}, true), "the the");
  EXPECT_EQ(Stream(*t, {bos}, {the, the}, true), "the the");  // <s> is skipped, so the text still starts here
  EXPECT_EQ(Stream(*t, {bos, the}, {the}, true), " the");
  EXPECT_EQ(Stream(*t, {bos}, {the}, false), " the");
  EXPECT_EQ(Stream(*t, {the}, {bos, the}, true), " the");
  const auto m = Family("metaspace");
  const int32_t word = *m->TokenId("▁the");
  EXPECT_EQ(Stream(*m, {}, {word, word}, true), "the the");
  EXPECT_EQ(Stream(*m, {word}, {word, word}, true), " the the");
}

TEST(DetokenizerTest, PromptMayEndInsideACharacter) {
  const auto t = Family("qwen2");
  const auto whole = t->Encode("👍", false);
  ASSERT_TRUE(whole.ok());
  ASSERT_GT(whole->size(), 1u);
  const Ids prompt(whole->begin(), whole->begin() + 1), answer(whole->begin() + 1, whole->end());
  EXPECT_EQ(Stream(*t, prompt, answer, true), "👍");
}

TEST(DetokenizerTest, UnknownIdsAndReplacementCharactersPass) {
  const auto t = Family("qwen2");
  EXPECT_EQ(Stream(*t, {}, {-1, 1 << 30}, true), "");
  // A U+FFFD that the model really wrote is not held back.
  const auto ids = t->Encode("a\uFFFD", false);
  IncrementalDetokenizer d(t.get(), true, {});
  std::string text;
  for (const int32_t id : *ids) text += d.Append(id);
  EXPECT_EQ(text, "a\uFFFD");
}

class DetokenizerPropertyTest : public testing::TestWithParam<const char*> {};

// Random tokens, cut at every place into prompt and answer.
TEST_P(DetokenizerPropertyTest, EqualsDecode) {
  const auto t = Family(GetParam());
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 rng(seed);
  const auto draw = [&](int n) { return static_cast<int32_t>(rng() % static_cast<unsigned>(n)); };
  int compared = 0;
  for (int round = 0; round < 400; ++round) {
    Ids ids(1 + draw(12));
    for (int32_t& id : ids) id = draw(4) == 0 ? draw(std::min(t->vocab_size(), 300)) : draw(t->vocab_size() + 2);
    const bool skip = draw(2) == 0;
    const std::string whole = t->Decode(ids, skip);
    // A run of byte tokens that is not valid as a whole: Decode blanks it, a stream cannot (see detokenizer.h).
    const bool byte_tokens = std::any_of(ids.begin(), ids.end(), [&](int32_t id) { return t->TokenText(id).starts_with("<0x"); });
    if (byte_tokens && whole.find("\uFFFD") != std::string::npos) continue;
    for (size_t cut = 0; cut <= ids.size(); ++cut) {
      const Ids prompt(ids.begin(), ids.begin() + cut), answer(ids.begin() + cut, ids.end());
      const std::string before = t->Decode(prompt, skip);
      if (before.ends_with("\uFFFD") || !whole.starts_with(before)) continue;  // the cut goes through a character
      ++compared;
      ASSERT_EQ(before + Stream(*t, prompt, answer, skip), whole) << nlohmann::json(ids).dump() << " cut at " << cut << " skip " << skip;
    }
  }
  EXPECT_GT(compared, 300);
}

INSTANTIATE_TEST_SUITE_P(Families, DetokenizerPropertyTest,
                         testing::Values("llama2", "no_byte_fallback", "mistral", "gemma", "qwen2", "llama3", "gpt2", "falcon", "metaspace", "metaspace_old",
                                         "added_tokens", "splits"));

TEST(DetokenizerTest, LossyStreamEqualsDecodeForByteLevel) {
  const auto t = Family("llama3");
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 rng(seed);
  for (int round = 0; round < 500; ++round) {
    Ids ids(200);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 260);  // single bytes: nearly all of it malformed
    ASSERT_EQ(Stream(*t, {}, ids, false), t->Decode(ids, false));
  }
}

TEST(DetokenizerTest, EndlessMalformedBytesCostNothingExtra) {
  const auto t = Family("llama2");
  IncrementalDetokenizer d(t.get(), true, {});
  const int32_t byte = *t->TokenId("<0x80>");
  std::string text;
  for (int i = 0; i < 200000; ++i) text += d.Append(byte);
  EXPECT_EQ(text.size(), 200000u * 3);
}

}  // namespace
}  // namespace kvasir
