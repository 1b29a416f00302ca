// Chat templates in the style of the model families, over a matrix of conversations, against texts that Jinja2 rendered
// (tests/data/templates/goldens.json, made by tools/make_template_goldens.py); and what ChatTemplate adds to Jinja.
#include "models/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <sstream>

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

std::string Folder() {
  return std::string(KVASIR_SOURCE_DIR) + "/tests/data/templates/";
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

ChatInput InputOf(const Json& conversation) {
  ChatInput input;
  input.now = 1735689600;  // 1 January 2025, as the goldens were made
  input.chat_template_kwargs = Json::object();
  for (const auto& [name, value] : conversation.items()) {
    if (name == "messages")
      input.messages = value;
    else if (name == "tools")
      input.tools = value;
    else if (name == "documents")
      input.documents = value;
    else if (name == "add_generation_prompt")
      input.add_generation_prompt = value.get<bool>();
    else
      input.chat_template_kwargs[name] = value;
  }
  return input;
}

// On the wire the arguments of a tool call are a string.
void MakeArgumentsStrings(Json* messages) {
  for (Json& message : *messages) {
    if (!message.contains("tool_calls")) continue;
    for (Json& call : message["tool_calls"]) call["function"]["arguments"] = call["function"]["arguments"].dump();
  }
}

TEST(ChatTemplate, FamiliesRenderAsJinja2Does) {
  setenv("TZ", "UTC", 1);
  tzset();
  const Json goldens = Json::parse(ReadFile(Folder() + "goldens.json"), nullptr, false);
  ASSERT_TRUE(goldens.is_object());
  ASSERT_GT(goldens["chat"].size(), 200u);
  size_t rendered = 0;
  for (const auto& golden : goldens["chat"]) {
    const auto file = golden[0].get<std::string>(), conversation = golden[1].get<std::string>();
    SCOPED_TRACE(file + " / " + conversation);
    const auto tmpl = ChatTemplate::Parse(ReadFile(Folder() + file), "<s>", "</s>", ContentFormat::kParts);
    ASSERT_TRUE(tmpl.ok()) << Message(tmpl.status());
    for (const bool wire : {false, true}) {
      ChatInput input = InputOf(goldens["conversations"][conversation]);
      if (wire) MakeArgumentsStrings(&input.messages);
      const auto text = tmpl->Render(input);
      if (golden[2].is_null()) {
        EXPECT_FALSE(text.ok()) << *text;
        const auto error = golden[3].get<std::string>();
        if (error.find("must alternate") != std::string::npos) {
          EXPECT_EQ(Message(text.status()), error);
        }
      } else {
        ASSERT_TRUE(text.ok()) << Message(text.status());
        EXPECT_EQ(*text, golden[2].get<std::string>());
        rendered++;
      }
    }
  }
  EXPECT_GT(rendered, 900u);
}

TEST(ChatTemplate, FlattensPartsForTemplatesThatWantStrings) {
  const auto strings = ChatTemplate::Parse(ReadFile(Folder() + "chatml.jinja"), "", "");
  const auto parts = ChatTemplate::Parse(ReadFile(Folder() + "gemma3.jinja"), "", "");
  ASSERT_TRUE(strings.ok());
  ASSERT_TRUE(parts.ok());
  EXPECT_FALSE(strings->wants_content_parts());
  EXPECT_TRUE(parts->wants_content_parts());
  ChatInput input;
  input.messages = Json::parse(R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}])");
  input.add_generation_prompt = false;
  EXPECT_EQ(strings->Render(input).value(), "<|im_start|>user\na\nb<|im_end|>\n");
  EXPECT_EQ(parts->Render(input).value(), "<start_of_turn>user\nab<end_of_turn>\n");
  input.messages[0]["content"][1] = {{"type", "image_url"}, {"image_url", "x"}};
  EXPECT_THAT(Message(strings->Render(input).status()), HasSubstr("messages[0].content[1] is not a text part"));
}

TEST(ChatTemplate, KwargsReachTheTemplateButNotItsOwnVariables) {
  const auto tmpl = ChatTemplate::Parse("{{ mode }}{{ bos_token }}{{ tools is none }}", "<s>", "");
  ASSERT_TRUE(tmpl.ok());
  ChatInput input;
  input.chat_template_kwargs = {{"mode", "fast"}};
  EXPECT_EQ(tmpl->Render(input).value(), "fast<s>True");
  for (const std::string name : {"messages", "tools", "documents", "add_generation_prompt"}) {
    input.chat_template_kwargs = {{name, 1}};
    EXPECT_THAT(Message(tmpl->Render(input).status()), HasSubstr("may not set '" + name + "'"));
  }
  // transformers lets them override the tokenizer's special tokens.
  input.chat_template_kwargs = {{"mode", "fast"}, {"bos_token", "[B]"}};
  EXPECT_EQ(tmpl->Render(input).value(), "fast[B]True");
  input.chat_template_kwargs = Json::array();
  EXPECT_FALSE(tmpl->Render(input).ok());
}

TEST(ChatTemplate, ContinuesTheFinalMessage) {
  const auto plain = ChatTemplate::Parse(ReadFile(Folder() + "chatml.jinja"), "", "");
  const auto trims = ChatTemplate::Parse(ReadFile(Folder() + "llama3.jinja"), "<s>", "");
  ASSERT_TRUE(plain.ok());
  ASSERT_TRUE(trims.ok());
  ChatInput input;
  input.messages = Json::parse(R"([{"role":"user","content":"Hi"},{"role":"assistant","content":"Well, "}])");
  EXPECT_FALSE(plain
                   ->Render([&] {
                     ChatInput both = input;
                     both.continue_final_message = true;
                     return both;
                   }())
                   .ok());
  input.add_generation_prompt = false;
  input.continue_final_message = true;
  EXPECT_EQ(plain->Render(input).value(), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell, ");
  EXPECT_THAT(trims->Render(input).value(), ::testing::EndsWith("\n\nWell,"));
  input.messages[1]["content"] = nullptr;
  EXPECT_THAT(Message(plain->Render(input).status()), HasSubstr("no text content"));
  input.messages = Json::array();
  EXPECT_FALSE(plain->Render(input).ok());
  const auto hides = ChatTemplate::Parse("{{ messages[0].content }}", "", "");
  input.messages = Json::parse(R"([{"role":"user","content":"Hi"},{"role":"assistant","content":"x"}])");
  EXPECT_THAT(Message(hides->Render(input).status()), HasSubstr("cannot be continued"));
}

TEST(ChatTemplate, BadInputIsNamed) {
  const auto tmpl = ChatTemplate::Parse(ReadFile(Folder() + "qwen.jinja"), "", "");
  ASSERT_TRUE(tmpl.ok());
  EXPECT_TRUE(tmpl->uses_tools());
  ChatInput input;
  input.messages = Json::parse(
      R"([{"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":"{oops"}}]}])");
  EXPECT_THAT(Message(tmpl->Render(input).status()), HasSubstr("messages[0].tool_calls[0].function.arguments is not valid JSON"));
  input.messages[0]["tool_calls"][0]["function"]["arguments"] = std::string(100000, '[');
  EXPECT_THAT(Message(tmpl->Render(input).status()), HasSubstr("nested deeper"));
  input.messages = Json::parse("[1]");
  EXPECT_THAT(Message(tmpl->Render(input).status()), HasSubstr("messages[0] must be an object"));
  input.messages = 5;
  EXPECT_FALSE(tmpl->Render(input).ok());
  EXPECT_THAT(Message(ChatTemplate::Parse("{% if %}", "", "").status()), HasSubstr("chat template: line 1"));
}

}  // namespace
}  // namespace kvasir
