// Which sampling defaults and end tokens hold, for every way to name them.
#include "server/generation_defaults.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace kvasir {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Optional;

std::string FolderWith(const std::string& name, const std::string& text) {
  const std::string dir = fmt::format("{}kvasir_generation_{}_{}", testing::TempDir(), getpid(), name);
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/generation_config.json") << text;
  return dir;
}

GenerationDefaults OfModel() {
  GenerationDefaults defaults;
  defaults.temperature = 0.6f;
  defaults.top_k = 20;
  defaults.max_new_tokens = 100;
  return defaults;
}

TEST(GenerationDefaultsTest, AutoTakesTheModels) {
  const auto choice = ReadGenerationChoice("auto", "");
  ASSERT_TRUE(choice.ok()) << choice.status();
  const GenerationDefaults defaults = choice->Defaults(OfModel());
  EXPECT_THAT(defaults.temperature, Optional(0.6f));
  EXPECT_THAT(defaults.top_k, Optional(20));
  EXPECT_THAT(defaults.max_new_tokens, Optional(100));
  EXPECT_EQ(defaults.top_p, std::nullopt);
  EXPECT_THAT(choice->EndTokens({5, 3, 5}, std::nullopt, 100), ElementsAre(5, 3));
}

TEST(GenerationDefaultsTest, VllmTakesNoneButTheEndTokens) {
  const auto choice = ReadGenerationChoice("vllm", R"({"top_p": 0.5})");
  ASSERT_TRUE(choice.ok()) << choice.status();
  const GenerationDefaults defaults = choice->Defaults(OfModel());
  EXPECT_EQ(defaults.temperature, std::nullopt);
  EXPECT_EQ(defaults.max_new_tokens, std::nullopt);
  EXPECT_THAT(defaults.top_p, Optional(0.5f));
  EXPECT_THAT(choice->EndTokens({5}, 7, 100), ElementsAre(5, 7));
}

TEST(GenerationDefaultsTest, AFolderReplacesTheModels) {
  const auto choice =
      ReadGenerationChoice(FolderWith("folder", R"({"min_p": 0.1, "do_sample": false, "eos_token_id": [8, 9]})"), "");
  ASSERT_TRUE(choice.ok()) << choice.status();
  const GenerationDefaults defaults = choice->Defaults(OfModel());
  EXPECT_EQ(defaults.temperature, std::nullopt);
  EXPECT_THAT(defaults.min_p, Optional(0.1f));
  EXPECT_THAT(choice->EndTokens({5}, 7, 100), ElementsAre(8, 9, 7));
  const auto without = ReadGenerationChoice(FolderWith("without", R"({"eos_token_id": null})"), "");
  ASSERT_TRUE(without.ok());
  EXPECT_THAT(without->EndTokens({5}, 7, 100), ElementsAre(5, 7));
}

TEST(GenerationDefaultsTest, OverrideIsLaidOver) {
  const auto choice =
      ReadGenerationChoice("auto", R"({"temperature": 0.9, "top_k": null, "repetition_penalty": 1.1, "max_new_tokens": 7})");
  ASSERT_TRUE(choice.ok()) << choice.status();
  const GenerationDefaults defaults = choice->Defaults(OfModel());
  EXPECT_THAT(defaults.temperature, Optional(0.9f));
  EXPECT_EQ(defaults.top_k, std::nullopt);
  EXPECT_THAT(defaults.repetition_penalty, Optional(1.1f));
  EXPECT_THAT(defaults.max_new_tokens, Optional(7));
}

TEST(GenerationDefaultsTest, EndTokensAreOfTheVocabulary) {
  const auto choice = ReadGenerationChoice("auto", "");
  ASSERT_TRUE(choice.ok());
  EXPECT_THAT(choice->EndTokens({}, 7, 100), ElementsAre(7));
  EXPECT_THAT(choice->EndTokens({5}, 5, 100), ElementsAre(5));
  EXPECT_THAT(choice->EndTokens({5}, 100, 100), ElementsAre(5));
}

TEST(GenerationDefaultsTest, MistakesAreNamed) {
  const auto message = [](const std::string& config, const std::string& text) {
    return Message(ReadGenerationChoice(config, text).status());
  };
  EXPECT_THAT(message("Auto", ""), AllOf(HasSubstr("--generation-config Auto"), HasSubstr("auto, vllm, or a folder")));
  EXPECT_THAT(message("auto", "{"), HasSubstr("--override-generation-config: not valid JSON"));
  EXPECT_THAT(message("auto", "3"), HasSubstr("JSON object"));
  EXPECT_THAT(message("auto", R"({"top_P": 0.5})"), AllOf(HasSubstr("'top_P'"), HasSubstr("top_p")));
  EXPECT_THAT(message("auto", R"({"temperature": -1})"), HasSubstr("--override-generation-config: temperature is -1"));
  EXPECT_THAT(message("auto", R"({"temperature": "hot"})"), HasSubstr("--override-generation-config: temperature"));
  for (const char* bad :
       {R"({"eos_token_id": "x"})", R"({"eos_token_id": [1, -2]})", R"({"eos_token_id": 99999999999})", "[]", ""}) {
    const std::string dir = FolderWith("bad", bad);
    EXPECT_THAT(message(dir, ""), HasSubstr(dir)) << bad;
  }
}

}  // namespace
}  // namespace kvasir
