// The OpenAI endpoints over real sockets: answers, streams, stop strings, logprobs, and every field's bounds.
#include <gtest/gtest.h>

#include "server/openai_request.h"
#include "tests/server/http_client.h"
#include "tests/server/server_fixture.h"

namespace kvasir {
namespace {

using nlohmann::json;

TEST(Completions, AnswersWithTextUsageAndReason) {
  TestServer server;
  const Answer answer = Post(server.port(), "/v1/completions", {{"prompt", "Once upon"}, {"max_tokens", 200}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  const json body = answer.Json();
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["choices"][0]["text"], FixtureOptions().answer);
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(body["choices"][0]["stop_reason"].is_null());
  EXPECT_EQ(body["usage"]["total_tokens"],
            body["usage"]["prompt_tokens"].get<int>() + body["usage"]["completion_tokens"].get<int>());
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  EXPECT_FALSE(answer.headers.at("x-request-id").empty());
  EXPECT_EQ(body["model"], "tiny");
}

TEST(Completions, DefaultsToSixteenTokens) {
  TestServer server;
  const json body = Post(server.port(), "/v1/completions", {{"prompt", "x"}}).Json();
  EXPECT_EQ(body["usage"]["completion_tokens"], 16);
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
}

TEST(Completions, SeveralPromptsAreSeveralChoices) {
  TestServer server;
  const json body = Post(server.port(), "/v1/completions", {{"prompt", {"a", "b"}}, {"n", 2}, {"max_tokens", 200}}).Json();
  ASSERT_EQ(body["choices"].size(), 4) << body;
  for (int i = 0; i < 4; ++i) EXPECT_EQ(body["choices"][i]["index"], i);
  EXPECT_EQ(body["choices"][0]["text"], body["choices"][2]["text"]);
  EXPECT_NE(body["choices"][0]["text"], body["choices"][1]["text"]);
  const json ids = Post(server.port(), "/v1/completions", {{"prompt", {{1, 2, 3}, {4, 5}}}, {"max_tokens", 2}}).Json();
  EXPECT_EQ(ids["usage"]["prompt_tokens"], 5) << ids;
}

TEST(Completions, EchoPutsThePromptFirst) {
  TestServer server;
  const json body =
      Post(server.port(), "/v1/completions", {{"prompt", "Once"}, {"max_tokens", 3}, {"echo", true}, {"logprobs", 2}}).Json();
  const json& choice = body["choices"][0];
  const std::string text = choice["text"];
  EXPECT_EQ(text.substr(0, 4), "Once") << body;
  EXPECT_TRUE(choice["logprobs"]["token_logprobs"][0].is_null());
  std::string joined;
  for (const json& token : choice["logprobs"]["tokens"]) joined += token.get<std::string>();
  EXPECT_EQ(joined, text);
  EXPECT_EQ(choice["logprobs"]["tokens"].size(), choice["logprobs"]["text_offset"].size());
}

TEST(Chat, AnswersWithAMessage) {
  TestServer server;
  const json body = Post(server.port(), "/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}}).Json();
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(body["choices"][0]["message"]["content"], FixtureOptions().answer);
  EXPECT_TRUE(body["choices"][0]["message"]["refusal"].is_null());
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
}

json Join(const std::vector<json>& events, bool chat) {
  json joined = {{"text", ""}, {"ids", json::array()}, {"done", 0}};
  for (const json& event : events) {
    if (event == "[DONE]") {
      joined["done"] = joined["done"].get<int>() + 1;
      continue;
    }
    if (event.contains("usage") && !event["usage"].is_null()) joined["usage"] = event["usage"];
    for (const json& choice : event["choices"]) {
      const std::string piece = chat ? choice["delta"].value("content", "") : choice["text"].get<std::string>();
      joined["text"] = joined["text"].get<std::string>() + piece;
      if (choice.contains("token_ids"))
        joined["ids"].insert(joined["ids"].end(), choice["token_ids"].begin(), choice["token_ids"].end());
      if (!choice["finish_reason"].is_null()) joined["finish"] = {choice["finish_reason"], choice["stop_reason"]};
    }
  }
  return joined;
}

TEST(Streams, EqualTheWholeAnswer) {
  TestServer server({.answer = "Tell me: \xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x91\x8D and more STOP after"});
  const std::vector<json> variants = {{{"max_tokens", 200}},
                                      {{"max_tokens", 7}},
                                      {{"max_tokens", 200}, {"stop", {"STOP"}}},
                                      {{"max_tokens", 200}, {"stop", "more"}, {"include_stop_str_in_output", true}},
                                      {{"max_tokens", 200}, {"stop", {"zzz", " after!"}}}};
  for (json request : variants) {
    for (const bool chat : {false, true}) {
      const char* path = chat ? "/v1/chat/completions" : "/v1/completions";
      json body = request;
      if (chat)
        body["messages"] = {{{"role", "user"}, {"content", "Hi"}}};
      else
        body["prompt"] = "Hi";
      body["return_token_ids"] = true;
      const json whole = Post(server.port(), path, body).Json();
      body["stream"] = true;
      body["stream_options"] = {{"include_usage", true}};
      const Answer answer = Post(server.port(), path, body);
      ASSERT_EQ(answer.status, 200) << answer.body;
      EXPECT_EQ(answer.headers.at("content-type"), "text/event-stream");
      EXPECT_TRUE(answer.complete);
      const json joined = Join(answer.Events(), chat);
      const json& choice = whole["choices"][0];
      EXPECT_EQ(joined["text"], chat ? choice["message"]["content"] : choice["text"]) << request;
      EXPECT_EQ(joined["ids"], choice["token_ids"]);
      EXPECT_EQ(joined["finish"], json({choice["finish_reason"], choice["stop_reason"]}));
      EXPECT_EQ(joined["done"], 1);
      EXPECT_EQ(joined["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    }
  }
}

TEST(Stops, CutTheTextWhereverTheyAre) {
  const std::string answer = FixtureOptions().answer;
  TestServer server;
  for (size_t begin = 0; begin + 3 <= answer.size(); begin += 5) {
    const std::string stop = answer.substr(begin, 3);
    const json body = Post(server.port(), "/v1/completions", {{"prompt", "x"}, {"max_tokens", 200}, {"stop", stop}}).Json();
    EXPECT_EQ(body["choices"][0]["text"], answer.substr(0, answer.find(stop))) << stop;
    EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
    EXPECT_EQ(body["choices"][0]["stop_reason"], stop);
  }
  EXPECT_TRUE(server.BlocksAreFree());
}

TEST(Stops, IdsEndTheTextAndAreNamed) {
  TestServer server;
  const std::vector<int32_t> ids = server.tokenizer->Encode(FixtureOptions().answer, false).value();
  const json body = Post(server.port(), "/v1/completions",
                         {{"prompt", "x"}, {"max_tokens", 200}, {"stop_token_ids", {ids[5]}}, {"return_token_ids", true}})
                        .Json();
  EXPECT_EQ(body["choices"][0]["stop_reason"], ids[5]) << body;
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
}

TEST(Logprobs, ChatShape) {
  TestServer server;
  json request = {
      {"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"logprobs", true}, {"top_logprobs", 3}, {"max_tokens", 5}};
  const json body = Post(server.port(), "/v1/chat/completions", request).Json();
  const json& content = body["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 5) << body;
  for (const json& token : content) {
    EXPECT_EQ(token["top_logprobs"].size(), 3);
    EXPECT_EQ(token["logprob"], -0.5);
    EXPECT_TRUE(token["bytes"].is_array());
    EXPECT_EQ(token["token"], token["top_logprobs"][0]["token"]);
  }
  request["stream"] = true;
  json streamed = json::array();
  for (const json& event : Post(server.port(), "/v1/chat/completions", request).Events()) {
    if (event == "[DONE]") continue;
    for (const json& choice : event["choices"]) {
      if (!choice["logprobs"].is_null())
        streamed.insert(streamed.end(), choice["logprobs"]["content"].begin(), choice["logprobs"]["content"].end());
    }
  }
  EXPECT_EQ(streamed, content);
}

TEST(Logprobs, PromptShape) {
  TestServer server;
  const json body =
      Post(server.port(), "/v1/completions", {{"prompt", {1, 2, 3}}, {"max_tokens", 1}, {"prompt_logprobs", 2}}).Json();
  const json& scores = body["choices"][0]["prompt_logprobs"];
  ASSERT_EQ(scores.size(), 3) << body;
  EXPECT_TRUE(scores[0].is_null());
  EXPECT_EQ(scores[1]["2"]["logprob"], -1.5);
  EXPECT_EQ(scores[1]["2"]["rank"], 2);
}

// Every numeric field, at and beyond its bounds, in both fronts' shared path.
TEST(Validation, RefusesWithTheFieldsName) {
  TestServer server;
  const json big = 9223372036854775807LL, two31 = 2147483648LL;
  struct Case {
    const char* field;
    std::vector<json> good, bad;
  };
  const std::vector<Case> cases = {
      {"temperature", {0, 1, 2, 0.5}, {-0.01, 2.01, 1e308, -1, "1", two31, json::array(), true}},
      {"top_p", {0.001, 1}, {0, -1, 1.01, 1e308, "0.5"}},
      {"min_p", {0, 1}, {-0.01, 1.01, "x"}},
      {"top_k", {-1, 0, 1, 2147483647}, {-2, two31, big, 1.5, "3"}},
      {"presence_penalty", {-2, 2}, {-2.01, 2.01, 1e308}},
      {"frequency_penalty", {-2, 2}, {-2.01, 2.01, "x"}},
      {"repetition_penalty", {0.01, 100}, {0, -1, 101}},
      {"n", {1, 128}, {0, -1, 129, two31, big, 1e308, 18446744073709551615ULL, "2", 1.5}},
      {"max_tokens", {1, 2000}, {0, -1, 2048, two31, big, 1e308, "5", 1.5}},
      {"min_tokens", {0, 1}, {-1, 20000, big, "1"}},
      {"logprobs", {0, 20}, {-1, 21, big, true, "1"}},
      {"prompt_logprobs", {0, 20}, {-1, 21, big}},
      {"seed", {0, -1, big, 18446744073709551615ULL}, {1.5, "7", 1e308}},
      {"stop_token_ids", {json::array(), {1}}, {{-1}, {two31}, {1 << 30}, 7, {"x"}, {1.5}}},
      {"allowed_token_ids", {json::array(), {1}}, {{-1}, {1 << 30}, 7}},
      {"logit_bias",
       {json::object(), {{"1", 100}}, {{"1", -100}}},
       {{{"1", 101}}, {{"-1", 1}}, {{"x", 1}}, {{"99999999", 1}}, {{"1", "x"}}, 5, {{"1", 1e308}}}},
      {"stop", {"x", json::array(), {"a", "b"}}, {5, {1}, {""}, std::vector<std::string>(17, "x"), std::string(257, 'x')}},
      {"priority", {0}, {1, -1, big}},
      {"truncate_prompt_tokens", {-1, 1, 2048}, {0, -2, 2049, big}},
      {"truncation_side", {"left", "right"}, {"up", 1}},
      {"modalities", {{"text"}, json::array()}, {{"audio"}, {"text", "audio"}, 5}},
      {"function_call", {"none", "auto"}, {{{"name", "f"}}, "f"}},
      {"kv_transfer_params", {json::object()}, {{{"do_remote_decode", true}}}},
      {"stream", {false}, {1, "true"}},
      {"echo", {false, true}, {1, "true"}},
      {"ignore_eos", {false, true}, {1, "x"}},
      {"best_of", {1}, {2}},
      {"response_format", {{{"type", "text"}}}, {{{"type", "json_object"}}, 5, json::object()}},
      {"guided_json", {json::object()}, {{{"type", "object"}}}},
      {"cache_salt", {"abc"}, {std::string(129, 'x'), 5}},
      {"prompt",
       {"x", {1, 2}, {"a"}, {{1}, {2}}},
       {5, json::array(), {true}, {-1}, {1 << 30}, {1.5}, json::object(), {{1}, "x", 5}}},
  };
  Socket socket(server.port());
  std::string rest;
  for (const Case& test : cases) {
    const auto ask = [&](const json& value) {
      json body = {{"prompt", "x"}, {"max_tokens", 3}};
      if (std::string_view(test.field) == "min_tokens") body["max_tokens"] = 10;
      body[test.field] = value;
      EXPECT_TRUE(socket.Send(RequestText("POST", "/v1/completions", body.dump())));
      return ReadAnswer(socket, &rest);
    };
    for (const json& value : test.good) {
      const Answer answer = ask(value);
      EXPECT_EQ(answer.status, 200) << test.field << " = " << value << ": " << answer.body;
    }
    for (const json& value : test.bad) {
      const Answer answer = ask(value);
      EXPECT_EQ(answer.status, 400) << test.field << " = " << value << ": " << answer.body;
      const json error = answer.Json()["error"];
      EXPECT_EQ(error["type"], "invalid_request_error") << test.field << " = " << value;
      EXPECT_EQ(error["param"].is_string() ? error["param"].get<std::string>().substr(0, std::strlen(test.field)) : "null",
                test.field)
          << value << ": " << answer.body;
      EXPECT_EQ(answer.headers.at("x-should-retry"), "false");
    }
  }
}

TEST(Validation, JsonIsBounded) {
  TestServer server;
  const auto ask = [&](const std::string& body) { return Ask(server.port(), "POST", "/v1/completions", body); };
  const std::vector<std::string> bad = {"",
                                        "{",
                                        "nonsense",
                                        "{\"prompt\":\"\xff\"}",
                                        "{\"prompt\":\"\\ud800\"}",
                                        "{\"temperature\":1e999}",
                                        "{\"prompt\":\"a\",\"prompt\":\"b\"}",
                                        std::string(100000, '['),
                                        std::string(65, '[') + std::string(65, ']'),
                                        "{\"prompt\":\"x\"} trailing",
                                        "{\"temperature\":NaN}",
                                        "{\"prompt\":\"x\",}",
                                        std::string("{\"prompt\":\"x\"}\0{}", 17)};
  for (const std::string& body : bad) {
    const Answer answer = ask(body);
    EXPECT_EQ(answer.status, 400) << body.substr(0, 40);
    EXPECT_EQ(answer.Json()["error"]["code"], "invalid_json") << body.substr(0, 40) << answer.body;
  }
  for (const char* body : {"[]", "5", "null", "\"x\""}) EXPECT_EQ(ask(body).status, 400) << body;
  EXPECT_EQ(ask("{\"prompt\":\"x\",\"brand_new_field\":{\"a\":[1]}}").status, 200);
}

TEST(Validation, ContextLengthIsTold) {
  TestServer server({.max_model_len = 64});
  const Answer chat =
      Post(server.port(), "/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", std::string(5000, 'x')}}}}});
  EXPECT_EQ(chat.status, 400);
  EXPECT_EQ(chat.Json()["error"]["code"], "context_length_exceeded");
  EXPECT_EQ(chat.Json()["error"]["param"], "messages");
  EXPECT_NE(chat.body.find("maximum context length is 64 tokens"), std::string::npos) << chat.body;
  const Answer tokens =
      Post(server.port(), "/v1/chat/completions",
           {{"messages", {{{"role", "user"}, {"content", "x"}}}}, {"max_completion_tokens", 1000}, {"stream", true}});
  EXPECT_EQ(tokens.status, 400) << "a stream's error that is known at once is a plain one";
  EXPECT_EQ(tokens.Json()["error"]["param"], "max_completion_tokens");
}

TEST(Validation, ChatsAreChecked) {
  TestServer server;
  const json user = {{"role", "user"}, {"content", "x"}};
  const std::vector<std::pair<json, const char*>> bad = {
      {{{"messages", json::array()}}, "messages"},
      {{{"messages", "hi"}}, "messages"},
      {json::object(), "messages"},
      {{{"messages", {{{"role", "user"}}}}}, "messages[0].content"},
      {{{"messages", {{{"content", "x"}}}}}, "messages[0].role"},
      {{{"messages", {{{"role", "king"}, {"content", "x"}}}}}, "messages[0].role"},
      {{{"messages", {user, 5}}}, "messages[1]"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}}}}, "messages[0].content[0]"},
      {{{"messages", {user}}, {"top_logprobs", 3}}, "top_logprobs"},
      {{{"messages", {user}}, {"logprobs", true}, {"top_logprobs", 99}}, "top_logprobs"},
      {{{"messages", {user}}, {"stream_options", {{"include_usage", true}}}}, "stream_options"},
      {{{"messages", {user}}, {"tools", {{{"type", "function"}}}}}, "tools"},
      {{{"messages", {user}}, {"tools", json::array()}}, "tools"},
      {{{"messages", {user}}, {"tool_choice", "auto"}}, "tool_choice"},
      {{{"messages", {user}}, {"reasoning_effort", 3}}, "reasoning_effort"},
      {{{"messages", {user}}, {"chat_template", "{{ 1 }}"}}, "chat_template"},
      {{{"messages", {user}}, {"add_generation_prompt", true}, {"continue_final_message", true}}, "continue_final_message"},
  };
  for (const auto& [body, param] : bad) {
    const Answer answer = Post(server.port(), "/v1/chat/completions", body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_EQ(answer.Json()["error"]["param"], param) << body << answer.body;
  }
}

TEST(Fields, TruncationKeepsTheSideThatIsAskedFor) {
  TestServer server;
  json body = {{"prompt", {1, 2, 3, 4, 5}}, {"max_tokens", 1}, {"truncate_prompt_tokens", 2}, {"return_token_ids", true}};
  const auto ids = [&] { return Post(server.port(), "/v1/completions", body).Json()["choices"][0]["prompt_token_ids"]; };
  EXPECT_EQ(ids(), json({4, 5}));
  body["truncation_side"] = "right";
  EXPECT_EQ(ids(), json({1, 2}));
  body["truncate_prompt_tokens"] = 9;
  EXPECT_EQ(ids(), json({1, 2, 3, 4, 5}));
}

TEST(Fields, ReasoningEffortIsAVariableOfTheTemplate) {
  const Json body = {{"messages", {{{"role", "user"}, {"content", "x"}}}}, {"reasoning_effort", "low"}};
  OpenAiRequest request;
  ASSERT_TRUE(ParseChatRequest(body, ServerLimits(), 20, &request).ok());
  EXPECT_EQ(std::get<ChatInput>(request.generate[0].prompt).chat_template_kwargs, Json({{"reasoning_effort", "low"}}));
}

TEST(Errors, QuoteWholeCharacters) {
  TestServer server;
  for (size_t i = 0; i < 4; ++i) {  // wherever the quote is cut
    const json role = std::string(i, 'x') +
                      "\xF0\x9F\x91\x8D\xF0\x9F\x91\x8D\xF0\x9F\x91\x8D\xF0\x9F\x91\x8D\xF0\x9F\x91\x8D"
                      "\xF0\x9F\x91\x8D\xF0\x9F\x91\x8D\xF0\x9F\x91\x8D\xF0\x9F\x91\x8D";
    const Answer answer = Post(server.port(), "/v1/chat/completions", {{"messages", {{{"role", role}, {"content", "x"}}}}});
    EXPECT_EQ(answer.status, 400);
    EXPECT_TRUE(json::accept(answer.body)) << answer.body;
  }
}

TEST(Errors, AreGolden) {
  TestServer server;
  const Answer answer = Post(server.port(), "/v1/completions", {{"prompt", "x"}, {"model", "nope"}});
  EXPECT_EQ(answer.status, 404);
  EXPECT_EQ(answer.body,
            "{\"error\":{\"message\":\"The model `nope` does not exist. This server serves `tiny`; see "
            "/v1/models.\",\"type\":\"not_found_error\","
            "\"param\":\"model\",\"code\":\"model_not_found\"}}");
  EXPECT_EQ(Ask(server.port(), "GET", "/nothing").body,
            "{\"error\":{\"message\":\"There is nothing at this path; GET / lists what there "
            "is.\",\"type\":\"not_found_error\",\"param\":null,"
            "\"code\":\"not_found\"}}");
}

TEST(Errors, AFailedEngineIsAnErrorEventWithoutDone) {
  TestServer server;
  server.executor.SetStepMicros(20000);
  Socket socket(server.port());
  socket.Send(RequestText("POST", "/v1/completions",
                          json({{"prompt", "x"}, {"max_tokens", 500}, {"ignore_eos", true}, {"stream", true}}).dump()));
  std::string begin = socket.Receive();
  server.executor.FailNow();
  const Answer answer = ReadAnswer(socket, &begin);
  ASSERT_EQ(answer.status, 200);
  const std::vector<json> events = answer.Events();
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back()["error"]["code"], "engine_failed") << answer.body;
  EXPECT_FALSE(answer.complete);
  EXPECT_EQ(answer.body.find("[DONE]"), std::string::npos);
  EXPECT_EQ(answer.body.find("secret"), std::string::npos);
  const Answer health = Ask(server.port(), "GET", "/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.body.find("secret"), std::string::npos);
  EXPECT_EQ(Post(server.port(), "/v1/completions", {{"prompt", "x"}}).status, 503);
}

}  // namespace
}  // namespace kvasir
