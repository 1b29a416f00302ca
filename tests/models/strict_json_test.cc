// What the strict reader refuses, with both kinds of documents, and that it keeps what it accepts.
#include "models/strict_json.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvasir {
namespace {

using testing::HasSubstr;

template <typename Json>
class StrictJsonTest : public testing::Test {};
using Documents = testing::Types<nlohmann::json, nlohmann::ordered_json>;
TYPED_TEST_SUITE(StrictJsonTest, Documents);

TYPED_TEST(StrictJsonTest, KeepsWhatTheLibraryReads) {
  const std::vector<std::string> texts = {
      "null",
      "[]",
      R"({"b":1,"a":[true,null,{"x":-2,"y":1.5e3,"z":18446744073709551615}],"c":{"":"é\u00e9\ud83d\ude00"}})",
      R"([[[1],[2,3]],{"a":{"b":{"c":[]}}}])",
  };
  for (const std::string& text : texts) {
    const StatusOr<TypeParam> read = ParseStrictJson<TypeParam>(text);
    ASSERT_TRUE(read.ok()) << text << read.status();
    EXPECT_EQ(*read, TypeParam::parse(text));
    EXPECT_EQ(read->dump(), TypeParam::parse(text).dump()) << "the order of keys too";
  }
}

TYPED_TEST(StrictJsonTest, RefusesTheRest) {
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", "not valid JSON at byte 1: syntax error"},
      {"{\"a\":1,}", "not valid JSON at byte 8: syntax error"},
      {"{} x", "not valid JSON at byte 4: syntax error"},
      {std::string("{}\0{}", 5), "not valid JSON at byte 3: NUL"},
      {"[\"\xff\"]", "invalid UTF-8"},
      {"[\"\\ud800\"]", "half of a surrogate pair"},
      {"[1e999]", "a number is out of range"},
      {"[{\"a\":{\"k\":1,\"k\":2}}]", "the key 'k' appears twice in one object"},
      {"[[[[[1]]]]]", "nested deeper than 4 levels"},
      {"[1,2,3,4,5,6,7,8,9,10]", "more than 10 values"},
      {"{\"" + std::string(1000, 'a') + "\":1,\"" + std::string(1000, 'a') + "\":1}", "appears twice"},
  };
  for (const auto& [text, reason] : cases) {
    const StatusOr<TypeParam> read = ParseStrictJson<TypeParam>(text, {.depth = 4, .values = 10});
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_THAT(Message(read.status()), HasSubstr(reason)) << text;
    EXPECT_LT(read.status().message().size(), 200);
  }
  EXPECT_TRUE(ParseStrictJson<TypeParam>("[[[[1]]]]", {.depth = 4, .values = 5}).ok()) << "at the limits";
}

}  // namespace
}  // namespace kvasir
