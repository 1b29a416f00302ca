// kvasir tokenize, as a user meets it: lines in, lines out, on folders that hold nothing but tokenizer files.
#include "server/tokenize_command.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace kvasir {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;

fs::path Data(const std::string& name) {
  return fs::path(KVASIR_SOURCE_DIR) / "tests/data/tokenizers" / name;
}

// A folder that is deleted again, with copies of some files.
class Folder {
 public:
  explicit Folder(const std::vector<fs::path>& files) {
    std::string made = (fs::path(testing::TempDir()) / "tokenize_XXXXXX").string();
    KVASIR_CHECK(mkdtemp(made.data()) != nullptr, "cannot make {}", made);
    path_ = made;
    for (const fs::path& file : files) fs::copy_file(file, path_ / file.filename());
  }
  ~Folder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// What the command writes for `lines`, one answer a line.
std::vector<json> Answers(const fs::path& folder, const std::string& lines, bool decode = false) {
  TokenizeOptions options;
  options.model = folder.string();
  options.decode = decode;
  std::istringstream in(lines);
  std::ostringstream out;
  const Status status = RunTokenize(options, in, out);
  EXPECT_TRUE(status.ok()) << Message(status);
  std::vector<json> answers;
  std::istringstream written(out.str());
  for (std::string line; std::getline(written, line);) {
    answers.push_back(json::parse(line, nullptr, false));
    EXPECT_TRUE(answers.back().is_object()) << line;
  }
  return answers;
}

std::string Refusal(const fs::path& folder) {
  TokenizeOptions options;
  options.model = folder.string();
  std::istringstream in("{\"text\": \"a\"}\n");
  std::ostringstream out;
  const Status status = RunTokenize(options, in, out);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(out.str(), "");
  return Message(status);
}

TEST(TokenizeCommandTest, EqualsTheReferenceBothWays) {
  for (const char* name : {"llama2", "llama3", "t5", "bert"}) {
    SCOPED_TRACE(name);
    const Folder folder({Data(name) / "tokenizer.json"});
    const json texts = json::parse(std::ifstream(Data("texts.json"))),
               golden = json::parse(std::ifstream(Data(name) / "golden.json"));
    std::string lines, back;
    for (const json& text : texts) {
      lines += json{{"text", text}, {"add_special_tokens", false}}.dump() + "\n";
      lines += json{{"text", text}}.dump() + "\n";
    }
    const auto answers = Answers(folder.path(), lines);
    ASSERT_EQ(answers.size(), 2 * texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      SCOPED_TRACE(texts[i].dump());
      const json& ids = golden["cases"][i]["ids"];
      EXPECT_EQ(answers[2 * i]["ids"], ids);
      EXPECT_EQ(answers[2 * i]["pieces"].size(), ids.size());
      json whole = golden["prefix"];
      for (const json& id : ids) whole.push_back(id);
      for (const json& id : golden["suffix"]) whole.push_back(id);
      EXPECT_EQ(answers[2 * i + 1]["ids"], whole);
      back += json{{"ids", ids}, {"skip_special_tokens", true}}.dump() + "\n" + json{{"ids", ids}}.dump() + "\n";
    }
    const auto decoded = Answers(folder.path(), back, true);
    ASSERT_EQ(decoded.size(), 2 * texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      const json& expected = golden["cases"][i];
      EXPECT_EQ(decoded[2 * i], (json{{"text", expected.value("skipped", texts[i].get<std::string>())}}));
      EXPECT_EQ(decoded[2 * i + 1], (json{{"text", expected.value("decoded", texts[i].get<std::string>())}}));
    }
  }
}

TEST(TokenizeCommandTest, PiecesAreWrittenAsTheVocabularyHasThem) {
  const Folder folder({Data("llama2") / "tokenizer.json"});
  const auto answers = Answers(folder.path(), "{\"text\": \"a \\u00fe\\ud83d\\udc7b</s>\"}\n");
  ASSERT_EQ(answers.size(), 1);
  const auto pieces = answers[0]["pieces"].get<std::vector<std::string>>();
  ASSERT_EQ(pieces.size(), answers[0]["ids"].size());
  EXPECT_EQ(pieces.front(), "<s>");
  EXPECT_EQ(pieces[1], "\u2581a");
  EXPECT_EQ(pieces.back(), "</s>");
  EXPECT_THAT(answers[0]["pieces"].dump(), HasSubstr("<0xF0>"));
}

TEST(TokenizeCommandTest, WorksOnAFolderWithOnlyAVocabularyFile) {
  const Folder folder({Data("sp_bpe") / "tokenizer.model"});
  const auto answers = Answers(folder.path(), "{\"text\": \"Hello\"}\n");
  ASSERT_EQ(answers.size(), 1);
  const auto back = Answers(folder.path(), json{{"ids", answers[0]["ids"]}}.dump() + "\n", true);
  EXPECT_EQ(back, (std::vector<json>{{{"text", "Hello"}}}));
}

TEST(TokenizeCommandTest, BadLinesAreAnsweredAndTheNextOnesToo) {
  const Folder folder({Data("gpt2") / "tokenizer.json"});
  const std::pair<const char*, const char*> lines[] = {
      {"{\"text\": \"a\"", ""},
      {"[1]", "must be a JSON object, not array"},
      {"\"text\"", "must be a JSON object, not string"},
      {"{}", "text is missing"},
      {"{\"text\": 1}", "text must be a string, not number"},
      {"{\"text\": \"a\", \"add_special_tokens\": 1}", "add_special_tokens must be true or false, not number"},
      {"{\"text\": \"\xff\"}", ""},
      {"{\"text\": \"\\ud800\"}", ""},
      {"{\"ids\": [1]}", "text is missing"}};
  std::string input;
  for (const auto& [line, error] : lines) input += std::string(line) + "\n{\"text\": \"ok\"}\n\n";
  const auto answers = Answers(folder.path(), input);
  ASSERT_EQ(answers.size(), 2 * std::size(lines));  // empty lines are skipped
  for (size_t i = 0; i < std::size(lines); ++i) {
    SCOPED_TRACE(lines[i].first);
    ASSERT_TRUE(answers[2 * i].contains("error")) << answers[2 * i].dump();
    EXPECT_THAT(answers[2 * i]["error"].get<std::string>(), HasSubstr(lines[i].second));
    EXPECT_TRUE(answers[2 * i + 1].contains("ids"));
  }
}

TEST(TokenizeCommandTest, DecodeNamesTheBadId) {
  const Folder folder({Data("gpt2") / "tokenizer.json"});
  const std::pair<const char*, const char*> lines[] = {
      {"{}", "ids is missing"},
      {"{\"ids\": 1}", "ids must be an array, not number"},
      {"{\"ids\": [1, -1]}", "ids[1] is -1; a token id is an integer from 0 to "},
      {"{\"ids\": [99999999]}", "ids[0] is 99999999"},
      {"{\"ids\": [0, 1.5]}", "ids[1] is 1.5"},
      {"{\"ids\": [\"a\"]}", "ids[0] is \"a\""},
      {"{\"ids\": [1], \"skip_special_tokens\": \"no\"}", "skip_special_tokens must be true or false, not string"}};
  std::string input;
  for (const auto& [line, error] : lines) input += std::string(line) + "\n";
  const auto answers = Answers(folder.path(), input, true);
  ASSERT_EQ(answers.size(), std::size(lines));
  for (size_t i = 0; i < std::size(lines); ++i) {
    SCOPED_TRACE(lines[i].first);
    EXPECT_THAT(answers[i].value("error", ""), StartsWith(lines[i].second));
  }
  EXPECT_EQ(Answers(folder.path(), "{\"ids\": []}\n", true), (std::vector<json>{{{"text", ""}}}));
}

TEST(TokenizeCommandTest, AnswersTheLastLineWithoutANewline) {
  const Folder folder({Data("gpt2") / "tokenizer.json"});
  EXPECT_EQ(Answers(folder.path(), "{\"text\": \"a\"}\r\n{\"text\": \"b\"}").size(), 2);
  EXPECT_EQ(Answers(folder.path(), "").size(), 0);
}

TEST(TokenizeCommandTest, AFolderWithoutATokenizerIsRefused) {
  const Folder empty({});
  EXPECT_THAT(Refusal(empty.path()), HasSubstr("tokenizer.json"));
  const Folder broken({});
  std::ofstream(broken.path() / "tokenizer.json") << "{\"model\": {\"type\": \"WordLevel\"}}";
  EXPECT_THAT(Refusal(broken.path()), HasSubstr("WordLevel"));
}

}  // namespace
}  // namespace kvasir
