// Tokenizer: what is refused and how it is said, the files beside tokenizer.json, and time linear in the text.
#include "models/tokenizer.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "models/text_regex.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

using Json = nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using Ids = std::vector<int32_t>;

// A byte-fallback-free BPE over a few letters that every test below changes in one place.
Json Small() {
  return Json::parse(R"({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "unk_token": null, "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, " ": 5}, "merges": ["a b", ["ab", "c"]]}})");
}

std::string LoadError(const Json& json, std::string_view config = {}) {
  const auto tokenizer = Tokenizer::Parse(json.dump(), config);
  EXPECT_FALSE(tokenizer.ok()) << json.dump();
  return tokenizer.ok() ? "" : Message(tokenizer.status());
}

std::unique_ptr<Tokenizer> ParseOrFail(const Json& json, std::string_view config = {}) {
  auto tokenizer = Tokenizer::Parse(json.dump(), config);
  EXPECT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

Ids Encode(const Tokenizer& tokenizer, std::string_view text, bool special = false) {
  auto ids = tokenizer.Encode(text, special);
  EXPECT_TRUE(ids.ok()) << Message(ids.status());
  return ids.ok() ? *ids : Ids{};
}

TEST(TokenizerTest, MergesByRank) {
  const auto t = ParseOrFail(Small());
  EXPECT_EQ(Encode(*t, "abcab ba"), (Ids{4, 3, 5, 1, 0}));
  EXPECT_EQ(t->Decode(Ids{4, 3, 99, -1, 5}, false), "abcab ");
  EXPECT_EQ(t->vocab_size(), 6);
  EXPECT_EQ(t->TokenId("ab"), 3);
  EXPECT_EQ(t->TokenId("zz"), std::nullopt);
  EXPECT_EQ(t->TokenText(4), "abc");
  EXPECT_EQ(t->TokenText(77), "");
  EXPECT_TRUE(Encode(*t, "").empty());
}

TEST(TokenizerTest, RefusesInvalidUtf8NamingTheByte) {
  const auto t = ParseOrFail(Small());
  for (const auto& [text, byte] : std::vector<std::pair<std::string, std::string>>{
           {"ab\xff", "byte 2"}, {"\xc0\x80", "byte 0"}, {"a\xed\xa0\x80", "byte 1"}, {"abc\xe4\xbd", "byte 3"}, {"\xf4\x90\x80\x80", "byte 0"}}) {
    const auto ids = t->Encode(text, true);
    ASSERT_FALSE(ids.ok());
    EXPECT_EQ(ids.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(ids.status()), AllOf(HasSubstr("UTF-8"), HasSubstr(byte)));
  }
}

TEST(TokenizerTest, RefusesUnknownComponentsByName) {
  const std::vector<std::pair<const char*, const char*>> places = {{"normalizer", "normalizers"}, {"pre_tokenizer", "pretokenizers"},
                                                                   {"post_processor", "processors"}, {"decoder", "decoders"}};
  for (const auto& [place, list] : places) {
    Json json = Small();
    json[place] = {{"type", "Foo"}};
    EXPECT_THAT(LoadError(json), HasSubstr(fmt::format("tokenizer.json: {}.type 'Foo' is not supported; supported: ", place)));
    json[place] = {{"type", "Sequence"}, {list, {{{"type", "Sequence"}, {list, {{{"type", "Bar"}}}}}}}};
    EXPECT_THAT(LoadError(json), HasSubstr(fmt::format("{}.{}[0].{}[0].type 'Bar' is not supported", place, list, list)));
    json[place] = {{"no_type", 1}};
    EXPECT_THAT(LoadError(json), HasSubstr(fmt::format("{}.type is missing", place)));
    json[place] = "text";
    EXPECT_THAT(LoadError(json), HasSubstr(place));
    Json deep = {{"type", "Sequence"}, {list, Json::array()}};
    for (int i = 0; i < 40; ++i) deep = {{"type", "Sequence"}, {list, Json::array({deep})}};
    json[place] = deep;
    EXPECT_THAT(LoadError(json), HasSubstr("nested deeper than 16"));
  }
  Json json = Small();
  json["model"]["type"] = "WordLevel";
  EXPECT_THAT(LoadError(json), HasSubstr("model.type 'WordLevel' is not supported; supported: BPE, Unigram, WordPiece"));
}

TEST(TokenizerTest, RefusesBadParts) {
  const auto with = [](const char* pointer, Json value) {
    Json json = Small();
    json[Json::json_pointer(pointer)] = std::move(value);
    return LoadError(json);
  };
  EXPECT_THAT(with("/model/merges/0", "a b c"), HasSubstr("model.merges[0]"));
  EXPECT_THAT(with("/model/merges/0", "a"), HasSubstr("separated by one space"));
  EXPECT_THAT(with("/model/merges/0", "a x"), HasSubstr("names 'x', which is not in the vocabulary"));
  EXPECT_THAT(with("/model/merges/0", "c c"), HasSubstr("makes 'cc', which is not in the vocabulary"));
  EXPECT_THAT(with("/model/merges/0", 7), HasSubstr("model.merges[0] must be"));
  EXPECT_THAT(with("/model/merges", 7), HasSubstr("model.merges is 7"));
  EXPECT_THAT(with("/model/vocab/a", -1), HasSubstr("token 'a' has id -1"));
  EXPECT_THAT(with("/model/vocab/a", 1), HasSubstr("belongs to both"));
  EXPECT_THAT(with("/model/vocab/a", 4000000000u), HasSubstr("from 0 to"));
  EXPECT_THAT(with("/model/vocab/a", 1.5), HasSubstr("integer"));
  EXPECT_THAT(with("/model/vocab", Json::array()), HasSubstr("model.vocab"));
  EXPECT_THAT(with("/model/unk_token", "<none>"), HasSubstr("unk_token"));
  EXPECT_THAT(with("/model/fuse_unk", "yes"), HasSubstr("true or false"));
  EXPECT_THAT(with("/added_tokens", 3), HasSubstr("added_tokens"));
  EXPECT_THAT(with("/added_tokens", Json::array({{{"id", 9}, {"content", "<x>"}}})), HasSubstr("has id 9, but the vocabulary makes it 6"));
  EXPECT_THAT(with("/added_tokens", Json::array({{{"id", 9}}})), HasSubstr("added_tokens[0].content is missing"));
  EXPECT_THAT(with("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}}), HasSubstr("does not compile"));
  EXPECT_THAT(with("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "[a&&b]"}}}, {"behavior", "Isolated"}}), HasSubstr("&&"));
  EXPECT_THAT(with("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", ","}}}, {"behavior", "Exploded"}}), HasSubstr("Contiguous"));
  EXPECT_THAT(with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "__"}}), HasSubstr("one character"));
  EXPECT_THAT(with("/pre_tokenizer", {{"type", "Metaspace"}, {"prepend_scheme", "last"}}), HasSubstr("always, first, never"));
  EXPECT_THAT(with("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}}), HasSubstr("non-empty"));
  EXPECT_THAT(with("/decoder", {{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}}), HasSubstr("0 or more"));
  EXPECT_THAT(with("/post_processor", {{"type", "TemplateProcessing"}, {"single", Json::array()}}), HasSubstr("Sequence"));
}

TEST(TokenizerTest, RefusesWhatIsNoJson) {
  for (const std::string text : {"", "{", "[]", "null", "7", "\xff", "{\"model\": 3}", "{}", "{\"model\": {}}"}) {
    const auto tokenizer = Tokenizer::Parse(text);
    ASSERT_FALSE(tokenizer.ok()) << text;
    EXPECT_THAT(Message(tokenizer.status()), HasSubstr("tokenizer.json"));
  }
  EXPECT_FALSE(Tokenizer::Parse(std::string(1000000, '[')).ok());
  // Every cut of a good file is refused, none crashes.
  const std::string good = Small().dump();
  for (size_t n = 0; n < good.size(); ++n) EXPECT_FALSE(Tokenizer::Parse(good.substr(0, n)).ok());
  EXPECT_THAT(LoadError(Small(), "{\"bos_token\": 7}"), HasSubstr("tokenizer_config.json: bos_token is 7"));
  EXPECT_THAT(LoadError(Small(), "[1]"), HasSubstr("tokenizer_config.json"));
  EXPECT_THAT(LoadError(Small(), R"({"chat_template": [{"name": "x"}]})"), HasSubstr("chat_template[0].template is missing"));
  EXPECT_THAT(LoadError(Small(), R"({"added_tokens_decoder": {"x1": {"content": "<q>"}}})"), HasSubstr("token id"));
}

TEST(TokenizerTest, ReadsConfig) {
  Json json = Small();
  json["added_tokens"] = Json::array({{{"id", 6}, {"content", "<s>"}, {"special", true}, {"normalized", false}}});
  const auto t = ParseOrFail(json, R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "model_max_length": 4096,
    "chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}],
    "added_tokens_decoder": {"6": {"content": "<s>", "special": true, "normalized": false}, "7": {"content": "</s>", "special": true}}})");
  ASSERT_NE(t, nullptr);
  EXPECT_EQ(t->bos_id(), 6);
  EXPECT_EQ(t->eos_id(), 7);
  EXPECT_EQ(t->pad_id(), std::nullopt);
  EXPECT_EQ(t->bos_token(), "<s>");
  EXPECT_EQ(t->model_max_length(), 4096);
  EXPECT_EQ(t->chat_templates().at("default"), "A");
  EXPECT_EQ(t->chat_templates().at("tool_use"), "B");
  EXPECT_FALSE(t->adds_bos());
  EXPECT_TRUE(t->IsSpecial(7));
  EXPECT_FALSE(t->IsSpecial(0));
  EXPECT_EQ(t->vocab_size(), 8);
  EXPECT_EQ(Encode(*t, "ab</s>c", true), (Ids{3, 7, 2}));
  EXPECT_EQ(Encode(*t, "ab", false), (Ids{3}));
  EXPECT_EQ(t->Decode(Ids{6, 3, 7}, true), "ab");
  EXPECT_EQ(t->Decode(Ids{6, 3, 7}, false), "<s>ab</s>");
  // The "very large" default of transformers is no limit.
  EXPECT_EQ(ParseOrFail(json, R"({"model_max_length": 1000000000000000019884624838656})")->model_max_length(), std::nullopt);
}

TEST(TokenizerTest, PostProcessorDecidesAloneAsInTransformers5) {
  Json json = Small();
  json["added_tokens"] = Json::array({{{"id", 6}, {"content", "<s>"}, {"special", true}, {"normalized", false}}});
  json["post_processor"] = Json::parse(R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [6], "tokens": ["<s>"]}}})");
  EXPECT_EQ(Encode(*ParseOrFail(json, R"({"bos_token": "<s>"})"), "a", true), (Ids{6, 0}));
  EXPECT_EQ(Encode(*ParseOrFail(json, R"({"bos_token": "<s>", "add_bos_token": true})"), "a", true), (Ids{6, 0}));
  EXPECT_EQ(Encode(*ParseOrFail(json, R"({"bos_token": "<s>", "add_bos_token": false})"), "a", true), (Ids{6, 0}));
  EXPECT_EQ(Encode(*ParseOrFail(json, R"({"eos_token": "<s>", "add_eos_token": true})"), "a", true), (Ids{6, 0}));
}

TEST(TokenizerTest, LoadsFolderWithTemplateFile) {
  const auto dir = std::filesystem::temp_directory_path() / fmt::format("kvasir_tokenizer_{}", ::getpid());
  std::filesystem::create_directories(dir);
  EXPECT_EQ(Tokenizer::Load(dir.string()).status().code(), StatusCode::kNotFound);
  std::ofstream(dir / "tokenizer.json") << Small().dump();
  std::ofstream(dir / "tokenizer_config.json") << R"({"chat_template": "old"})";
  std::ofstream(dir / "special_tokens_map.json") << R"({"eos_token": {"content": "abc"}})";
  auto t = Tokenizer::Load(dir.string());
  ASSERT_TRUE(t.ok()) << Message(t.status());
  EXPECT_EQ((*t)->chat_templates().at("default"), "old");
  EXPECT_EQ((*t)->eos_id(), 4);
  std::ofstream(dir / "chat_template.jinja") << "new";
  EXPECT_EQ((*Tokenizer::Load(dir.string()))->chat_templates().at("default"), "new");
  std::filesystem::remove_all(dir);
}

TEST(TokenizerTest, TokenBytes) {
  const std::string data = std::string(KVASIR_SOURCE_DIR) + "/tests/data/tokenizers/";
  const auto sp = *Tokenizer::Load(data + "llama2");
  EXPECT_EQ(sp->TokenBytes(*sp->TokenId("<0xE4>")), "\xE4");
  EXPECT_EQ(sp->TokenBytes(*sp->TokenId("▁the")), " the");
  EXPECT_EQ(sp->TokenText(*sp->TokenId("▁the")), "▁the");
  const auto level = *Tokenizer::Load(data + "qwen2");
  EXPECT_EQ(level->TokenBytes(*level->TokenId("Ġthe")), " the");
  EXPECT_EQ(level->TokenBytes(*level->TokenId("Ċ")), "\n");
  EXPECT_EQ(level->TokenBytes(*level->TokenId("ā")), std::string("\x01"));
  EXPECT_EQ(level->TokenBytes(*level->TokenId("<|im_end|>")), "<|im_end|>");
}

// Seconds for `bytes` of `unit` repeated.
double EncodeSeconds(const Tokenizer& tokenizer, std::string_view unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  const auto start = std::chrono::steady_clock::now();
  const auto ids = tokenizer.Encode(text + "x", false);
  EXPECT_TRUE(ids.ok()) << Message(ids.status());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Hostile text takes time in proportion to its length (0.02 to 0.4 seconds for 1 MB in a release build). The bounds leave room for
// sanitizers and busy machines; a quadratic step over 1 MB would take hours, over 32 KB half a minute.
TEST(TokenizerTest, TakesLinearTimeOnHostileText) {
  const std::string data = std::string(KVASIR_SOURCE_DIR) + "/tests/data/tokenizers/";
  for (const char* family : {"llama2", "qwen2"}) {
    const auto t = *Tokenizer::Load(data + family);
    for (const char* unit : {" ", "a", "7"}) EXPECT_LT(EncodeSeconds(*t, unit, size_t{1} << 20), 30) << family << " on 1 MB of '" << unit << "'";
  }
  const char* units[] = {" ", "A", "7", "\n", "\t \n", "\u0301\u0316", "▁", "你", "👍", "<|im_", "[INS", "'", "aB", "\u3000", "- ", ". \n"};
  for (const char* family : {"mistral", "gemma", "gpt2", "phi2", "falcon", "smollm", "o200k", "cl100k", "deepseek3", "metaspace", "added_tokens", "splits"}) {
    const auto t = *Tokenizer::Load(data + family);
    for (const char* unit : units) EXPECT_LT(EncodeSeconds(*t, unit, size_t{1} << 15), 10) << family << " on 32 KB of " << Json(unit).dump();
  }
}

TEST(TokenizerTest, RunawayPatternIsAnErrorNotAHang) {
  Json json = Small();
  json["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(?:a|aa)+$"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const auto t = ParseOrFail(json);
  const auto ids = t->Encode(std::string(60, 'a') + "b", false);
  ASSERT_FALSE(ids.ok());
  EXPECT_THAT(Message(ids.status()), HasSubstr("gave up at byte"));
}

TEST(TokenizerTest, ThreadsShareOneTokenizer) {
  const auto t = *Tokenizer::Load(std::string(KVASIR_SOURCE_DIR) + "/tests/data/tokenizers/qwen2");
  const std::string text = "Once upon a time there was a house, 1234 and so on.\n\n  Don't 你好 👍 <|im_end|>";
  const Ids expected = Encode(*t, text);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 200; ++n) {
        const auto ids = t->Encode(text, false);
        if (!ids.ok() || *ids != expected || t->Decode(*ids, false) != text) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(TextRegexTest, TranslatesWhatDiffersBetweenTheEngines) {
  EXPECT_EQ(*TranslateOniguruma(R"(\d{2,3}+|x)"), R"((?:\d{2,3})+|x)");
  EXPECT_EQ(*TranslateOniguruma(R"(\d{1,3}+|x{1}+|[ab]{1,}+|x{1}?)"), R"(\d+|x+|[ab]+|x{1}?)");
  EXPECT_EQ(*TranslateOniguruma(R"((?:ab){2}+)"), R"((?:(?:ab){2})+)");
  EXPECT_EQ(*TranslateOniguruma(R"([a-z]{2,}?)"), R"([a-z]{2,}?)");
  EXPECT_EQ(*TranslateOniguruma(R"((?m:.)\h)"), R"((?s:.)[0-9a-fA-F])");
  EXPECT_EQ(*TranslateOniguruma("\\u4e00{"), "\\x{4e00}\\{");
  EXPECT_EQ(*TranslateOniguruma("[]a]"), "[\\]a]");
  for (const char* bad : {"[a[b]]", "[a&&b]", "(*UTF)", "(?#x)", "a)", "\\", "[\\W]", "\\u12"}) EXPECT_FALSE(TranslateOniguruma(bad).ok()) << bad;
  std::vector<Span> spans;
  // Oniguruma's \w takes superscripts and fractions of Latin-1, but [\w] does not.
  ASSERT_TRUE(TextRegex::Compile(R"(\w)")->Cut("\u00b2", &spans).ok());
  EXPECT_TRUE(spans[0].is_match);
  ASSERT_TRUE(TextRegex::Compile(R"([\w])")->Cut("\u00b2", &spans).ok());
  EXPECT_FALSE(spans[0].is_match);
  // Letters, digits and symbols of Unicode 15 and 16 (U+31350, U+11F50, U+1FAE8), which the reference's engine knows.
  for (const auto& [pattern, matches] : {std::pair{R"(\p{L})", 1}, {R"([\p{L}\p{N}])", 2}, {R"(\P{L})", 2}, {R"([^\s\p{L}])", 2}, {R"(\p{S})", 1}}) {
    ASSERT_TRUE(TextRegex::Compile(pattern)->Cut("\U00031350\U00011f50\U0001fae8", &spans).ok());
    EXPECT_EQ(std::count_if(spans.begin(), spans.end(), [](const Span& span) { return span.is_match; }), matches) << pattern;
  }
  ASSERT_TRUE(TextRegex::Compile(R"(\s+)")->Cut("a\u180eb\u0085c", &spans).ok());  // U+180E is no white space, U+0085 is
  ASSERT_EQ(spans.size(), 3);
  EXPECT_EQ(spans[1].begin, 5);
}

TEST(UnicodeTest, PunctuationIsThatOfTheReference) {
  for (const char32_t c : {U'!', U'_', U'\u3002', U'\u166d', U'\u2e42', U'\u2e50', U'\u2e51', U'\U000111c9'}) {
    const bool symbol_or_young = c == U'\u2e50' || c == U'\u2e51';  // So
    EXPECT_EQ(IsPunctuation(c), !symbol_or_young) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {U'a', U'\u061d', U'\u09fd', U'\u2e43', U'\u2e4f', U'\u2e5d', U'\U0001e95f'}) {
    EXPECT_FALSE(IsPunctuation(c)) << static_cast<uint32_t>(c);
  }
}

TEST(UnicodeTest, NormalFormsAndLossyDecoding) {
  EXPECT_EQ(Normalize("e\u0301 \u1100\u1161\u11a8 \u212b", NormalForm::kNfc), "\u00e9 \uac01 \u00c5");
  EXPECT_EQ(Normalize("\u00e9", NormalForm::kNfd), "e\u0301");
  EXPECT_EQ(Normalize("\ufb01\u00bd", NormalForm::kNfkc), "fi1\u20442");
  EXPECT_EQ(Normalize("a\u0301\u0316", NormalForm::kNfd), "a\u0316\u0301");
  EXPECT_EQ(Lowercase("\u0130A\u03a3"), "i\u0307a\u03c3");
  std::string out;
  EXPECT_EQ(AppendLossyUtf8("a\xF0\x9F\x98", false, &out), 1u);
  EXPECT_EQ(AppendLossyUtf8("\xE1\x80X\xE0\x80\xF0\x9F\x98", true, &out), 8u);
  EXPECT_EQ(out, "a\uFFFDX\uFFFD\uFFFD\uFFFD");
}

}  // namespace
}  // namespace kvasir
