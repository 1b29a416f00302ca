// Hostile chat templates and hostile conversations for honest ones: each is refused soon and in words that name the limit, and
// the template goes on working for others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <thread>

#include "models/chat_template.h"

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

// A rendering at the limits takes well under a second; sanitizers and a busy machine get the rest.
constexpr double kMaxSeconds = 60;

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

ChatInput Hello() {
  ChatInput input;
  input.messages = Json::parse(R"([{"role": "user", "content": "Hello"}])");
  return input;
}

// Why the template or its rendering is refused; empty if it is not.
std::string Refusal(const std::string& source, const ChatInput& input = Hello()) {
  const auto begin = std::chrono::steady_clock::now();
  const auto parsed = ChatTemplate::Parse(source, "<s>", "</s>");
  const Status status = parsed.ok() ? parsed->Render(input).status() : parsed.status();
  EXPECT_LT(SecondsSince(begin), kMaxSeconds) << source.substr(0, 200);
  return status.ok() ? "" : Message(status);
}

TEST(ChatTemplateLimits, HostileTemplatesAreRefusedByTheLimitTheyBreak) {
  const std::string grow = "{% set ns = namespace(s='ab', l=[1]) %}{% for i in range(200) %}";
  const struct {
    std::string source;
    const char* limit;
  } cases[] = {
      {"{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
       "steps"},
      {"{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "more than"},
      {"{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "macro calls inside each other"},
      {"{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}", "macro calls inside each other"},
      {"{% macro f() %}{{ caller }}{% call f() %}x{% endcall %}{% endmacro %}{{ f() }}", "macro calls inside each other"},
      {grow + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "template budget exceeded"},
      {grow + "{% set ns.s = ns.s + ns.s %}{% endfor %}", "template budget exceeded"},
      {grow + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}", "template budget exceeded"},
      {grow + "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}{% endfor %}", "template budget exceeded"},
      {grow + "{% set ns.s = ns.s | replace('', ns.s) %}{% endfor %}", "template budget exceeded"},
      {grow + "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}{% endfor %}", "template budget exceeded"},
      {grow + "{% set ns.l = ns.l + ns.l %}{% endfor %}", "template budget exceeded"},
      {grow + "{% set ns.l = ns.l * 2 %}{% endfor %}", "template budget exceeded"},
      {grow + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}", "template budget exceeded"},
      {"{{ 'x' * 10**12 }}", "bytes of memory"},
      {"{{ range(10**12) | list | length }}", "template budget exceeded"},
      {"{% for a in range(99999) %}{% for b in range(99999) %}" + std::string(4000, 'x') + "{% endfor %}{% endfor %}",
       "bytes of output"},
  };
  for (const auto& [source, limit] : cases) {
    SCOPED_TRACE(source.substr(0, 200));
    EXPECT_THAT(Refusal(source), HasSubstr(limit));
  }
}

TEST(ChatTemplateLimits, DeepSourcesAreRefusedWithoutDeepStacks) {
  const auto repeat = [](const std::string& text) {
    std::string out;
    for (int i = 0; i < 50000; ++i) out += text;
    return out;
  };
  for (const auto& [before, middle, after] : std::initializer_list<std::array<std::string, 3>>{{"(", "1", ")"},
                                                                                               {"[", "1", "]"},
                                                                                               {"{1:", "1", "}"},
                                                                                               {"not ", "1", ""},
                                                                                               {"-", "1", ""},
                                                                                               {"1 + ", "1", ""},
                                                                                               {"1 if x else ", "1", ""},
                                                                                               {"x[", "1", "]"},
                                                                                               {"x(", "1", ")"},
                                                                                               {"1 ** ", "1", ""}}) {
    SCOPED_TRACE(before);
    EXPECT_THAT(Refusal("{{ " + repeat(before) + middle + repeat(after) + " }}"), HasSubstr("template budget exceeded"));
  }
  for (const std::string chain : {".a", "[0]", "|trim", "()"}) {
    SCOPED_TRACE(chain);
    EXPECT_THAT(Refusal("{{ x" + repeat(chain) + " }}"), HasSubstr("template budget exceeded"));
  }
  for (const std::string block : {"{% if x %}", "{% for a in x %}", "{% set y %}", "{% filter trim %}", "{% macro m() %}"}) {
    SCOPED_TRACE(block);
    EXPECT_THAT(Refusal(repeat(block)), HasSubstr("template budget exceeded"));
  }
}

// An honest template under a conversation that no model could read.
TEST(ChatTemplateLimits, HugeConversationsAreRefused) {
  const std::string chatml = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}";
  ChatInput big = Hello();
  big.messages[0]["content"] = std::string(20 << 20, 'x');
  EXPECT_THAT(Refusal(chatml, big), HasSubstr("template budget exceeded"));
  ChatInput deep = Hello();
  for (int i = 0; i < 5000; ++i) deep.tools = Json::array({std::move(deep.tools)});
  EXPECT_THAT(Refusal("{{ tools | tojson }}", deep), HasSubstr("template budget exceeded"));
  ChatInput quadratic = Hello();  // every message walks all the others
  for (int i = 0; i < 3000; ++i) quadratic.messages.push_back(quadratic.messages[0]);
  EXPECT_THAT(Refusal("{% for m in messages %}{% for o in messages %}{{ o.role }}{% endfor %}{% endfor %}", quadratic),
              HasSubstr("steps"));
  EXPECT_EQ(Refusal(chatml, quadratic), "");
}

TEST(ChatTemplateLimits, RefusedRenderingsLeaveNothingBehind) {
  const auto parsed = ChatTemplate::Parse(
      "{% set ns = namespace(n=0) %}{% for i in range(size * size) %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "", "");
  ASSERT_TRUE(parsed.ok()) << Message(parsed.status());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&parsed, t] {
      for (int i = 0; i < 3; ++i) {
        ChatInput input = Hello();
        input.chat_template_kwargs = {{"size", t % 2 == 0 ? 10 + i : 3000}};
        const auto text = parsed->Render(input);
        if (t % 2 == 0) {
          EXPECT_EQ(text.ok() ? *text : Message(text.status()), std::to_string((10 + i) * (10 + i)));
        } else {
          EXPECT_THAT(Message(text.status()), HasSubstr("template budget exceeded"));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace kvasir
