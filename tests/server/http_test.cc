// HTTP over real sockets: routes, keys, limits, framing, timeouts, clients that leave or do not read, draining.
#include <gtest/gtest.h>

#include <thread>

#include "server/api_keys.h"
#include "tests/server/http_client.h"
#include "tests/server/server_fixture.h"

namespace kvasir {
namespace {

using nlohmann::json;

bool Eventually(const std::function<bool()>& condition, int64_t millis = 10000) {
  for (int64_t waited = 0; waited < millis; waited += 5) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

json EndlessBody() {
  return {{"prompt", {1, 2, 3}}, {"max_tokens", 1900}, {"ignore_eos", true}, {"stream", true}};
}

TEST(Paths, AreCanonicalOrRefused) {
  EXPECT_EQ(CanonicalPath("/v1/models?x=1"), "/v1/models");
  EXPECT_EQ(CanonicalPath("/v1/%6dodels"), "/v1/models");
  EXPECT_EQ(CanonicalPath("/v1/models/org%2Fname"), "/v1/models/org/name");
  for (const char* bad :
       {"", "v1", "//v1/models", "/v1//models", "/v1/./models", "/v1/../models", "/v1/%2e%2e/models", "/v1/mo%64els%00",
        "/v1\\models", "/%2525", "/v1/models%2", "/v1/%zz", "http://x/v1", "/a%20b", "/v1;x/models"}) {
    EXPECT_EQ(CanonicalPath(bad), std::nullopt) << bad;
  }
}

TEST(Keys, AreComparedByDigest) {
  const ApiKeys keys({"one", "two", ""});
  EXPECT_TRUE(keys.Tenant("one").has_value());
  EXPECT_NE(keys.Tenant("one"), keys.Tenant("two"));
  for (const char* bad : {"", "on", "ones", "ONE"}) EXPECT_FALSE(keys.Tenant(bad).has_value()) << bad;
  EXPECT_TRUE(keys.TenantOfHeaders("Bearer one", "").has_value());
  EXPECT_TRUE(keys.TenantOfHeaders("bearer  two", "").has_value());
  EXPECT_TRUE(keys.TenantOfHeaders("", "two").has_value());
  EXPECT_FALSE(keys.TenantOfHeaders("Basic one", "").has_value());
  EXPECT_FALSE(keys.TenantOfHeaders("Bearer bad", "one").has_value());
}

TEST(Routes, NothingIsAnsweredWithoutAKey) {
  TestServer server({.api_keys = {"sesame"}});
  const std::vector<std::string> routes = {"/version",
                                           "/metrics",
                                           "/v1/models",
                                           "/models",
                                           "/v1/models/tiny",
                                           "/v1/completions",
                                           "/v1/chat/completions",
                                           "/tokenize",
                                           "/detokenize",
                                           "/v1/chat/completions/render",
                                           "/apply-template",
                                           "/nothing"};
  const std::vector<std::pair<std::string, std::string>> disguises = {
      {"", ""},           {"", "/"},          {"/", ""},          {"/.", ""},   {"/..", ""},
      {"", "?x=/health"}, {"/health/..", ""}, {"", "%2f"},        {"/%2e", ""}, {"", ";/health"},
      {"", "#"},          {"", "%00"},        {"", "/../health"}, {"", "\t"},   {"/HEALTH/..", ""}};
  for (const std::string& route : routes) {
    for (const auto& [before, after] : disguises) {
      for (const char* method : {"GET", "POST", "HEAD", "PUT", "DELETE"}) {
        const Answer answer = Ask(server.port(), method, before + route + after, method[0] == 'P' ? "{}" : "");
        EXPECT_TRUE(answer.status == 401 || answer.status == 400 || answer.status == 404)
            << method << " " << before << route << after << answer.status;
        EXPECT_EQ(answer.body.find("tiny"), std::string::npos);
      }
    }
  }
  for (const char* header :
       {"Authorization: Bearer wrong\r\n", "Authorization: sesame\r\n", "x-api-key: Sesame\r\n", "Authorization: Bearer \r\n"}) {
    const Answer answer = Ask(server.port(), "GET", "/v1/models", "", header);
    EXPECT_EQ(answer.status, 401) << header;
    EXPECT_EQ(answer.headers.at("www-authenticate"), "Bearer");
    EXPECT_EQ(answer.Json()["error"]["code"], "invalid_api_key");
  }
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/models", "", "Authorization: Bearer sesame\r\n").status, 200);
  EXPECT_EQ(Ask(server.port(), "GET", "/metrics", "", "x-api-key: sesame\r\n").status, 200);
  for (const char* open : {"/", "/health", "/v1/health", "/ping"}) EXPECT_EQ(Ask(server.port(), "GET", open).status, 200) << open;
}

TEST(Routes, Answer) {
  TestServer server;
  const json models = Ask(server.port(), "GET", "/v1/models").Json();
  EXPECT_EQ(models["data"][0]["id"], "tiny");
  EXPECT_EQ(models["data"][0]["max_model_len"], 2048);
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/models/org/tiny").Json()["id"], "org/tiny");
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/models/none").status, 404);
  EXPECT_TRUE(Ask(server.port(), "GET", "/version").Json().contains("version"));
  EXPECT_EQ(Ask(server.port(), "GET", "/health").Json()["status"], "ok");
  EXPECT_NE(Ask(server.port(), "GET", "/").body.find("/v1/chat/completions"), std::string::npos);
  EXPECT_EQ(Ask(server.port(), "DELETE", "/v1/completions").status, 405);
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/completions").headers.at("allow"), "POST, OPTIONS");
  const Answer head = Ask(server.port(), "HEAD", "/health");
  EXPECT_EQ(head.status, 200);
  EXPECT_TRUE(head.body.empty());
  const Answer preflight = Ask(server.port(), "OPTIONS", "/v1/completions", "",
                               "Origin: http://a.example\r\nAccess-Control-Request-Headers: x-foo\r\n");
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"), "*");
  EXPECT_EQ(preflight.headers.at("access-control-allow-headers"), "x-foo");
  EXPECT_EQ(Ask(server.port(), "GET", "/health", "", "x-request-id: my-id.7\r\n").headers.at("x-request-id"), "my-id.7");
  EXPECT_NE(Ask(server.port(), "GET", "/health", "", "x-request-id: <script>\r\n").headers.at("x-request-id"), "<script>");
}

TEST(Routes, TokenizeBothWays) {
  TestServer server;
  const json vllm = Post(server.port(), "/tokenize", {{"prompt", "Hello"}, {"return_token_strs", true}}).Json();
  EXPECT_EQ(vllm["count"], vllm["tokens"].size());
  EXPECT_EQ(vllm["token_strs"].size(), vllm["tokens"].size());
  EXPECT_EQ(vllm["max_model_len"], 2048);
  const json llama = Post(server.port(), "/tokenize", {{"content", "Hello"}}).Json();
  EXPECT_EQ(llama["tokens"].size() + 1, vllm["tokens"].size()) << "only the first adds the beginning-of-text token";
  EXPECT_EQ(Post(server.port(), "/detokenize", {{"tokens", llama["tokens"]}}).Json()["prompt"], "Hello");
  EXPECT_EQ(Post(server.port(), "/detokenize", {{"tokens", {1 << 30}}}).status, 400);
  const json chat = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}};
  EXPECT_EQ(Post(server.port(), "/apply-template", chat).Json()["prompt"], "[user] Hi\n[assistant] ");
  EXPECT_GT(Post(server.port(), "/v1/chat/completions/render", chat).Json()["prompt_token_ids"].size(), 0);
  EXPECT_GT(Post(server.port(), "/tokenize", chat).Json()["count"], 0);
  EXPECT_EQ(Post(server.port(), "/tokenize", json::object()).status, 400);
}

TEST(Limits, OfBodyHeadersAndAddress) {
  ServerLimits limits;
  limits.body_bytes = 2000;
  limits.header_bytes = 4000;
  limits.uri_bytes = 1000;
  TestServer server({.limits = limits});
  const std::string large(3000, 'x');
  const auto raw = [&](const std::string& text) {
    Socket socket(server.port());
    socket.Send(text);
    return ReadAnswer(socket);
  };
  EXPECT_EQ(Ask(server.port(), "POST", "/v1/completions", large).status, 413);
  EXPECT_EQ(raw("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n").status, 413);
  std::string chunked = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 30; ++i) chunked += "64\r\n" + std::string(100, ' ') + "\r\n";
  const Answer too_large = raw(chunked + "0\r\n\r\n");
  EXPECT_EQ(too_large.status, 413) << too_large.body;
  EXPECT_EQ(too_large.headers.at("connection"), "close");
  EXPECT_EQ(
      raw("POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"prompt\": \"ab\"}\r\n0\r\n\r\n")
          .status,
      200);
  EXPECT_EQ(raw("POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").status, 400);
  EXPECT_EQ(raw("GET /health HTTP/1.1\r\nHost: x\r\nX: " + std::string(5000, 'a') + "\r\n\r\n").status, 431);
  EXPECT_EQ(raw("GET /" + std::string(1500, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n").status, 414);
  EXPECT_EQ(raw("GET /" + std::string(9000, 'a')).status, 414);
  for (const char* bad : {"nonsense\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /\r\n\r\n", "\x16\x03\x01\x02\r\n\r\n",
                          "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                          "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"}) {
    EXPECT_EQ(raw(bad).status, 400) << bad;
  }
  EXPECT_EQ(Ask(server.port(), "GET", "/health").status, 200);
}

TEST(Framing, PipelinedRequestsAreAnsweredInOrder) {
  TestServer server;
  Socket socket(server.port());
  const std::string body = json({{"prompt", "x"}, {"max_tokens", 2}}).dump();
  socket.Send(RequestText("POST", "/v1/completions", body) + RequestText("GET", "/version") +
              RequestText("GET", "/health", "", "Connection: close\r\n"));
  std::string rest;
  EXPECT_TRUE(ReadAnswer(socket, &rest).Json().contains("choices"));
  EXPECT_TRUE(ReadAnswer(socket, &rest).Json().contains("version"));
  const Answer last = ReadAnswer(socket, &rest);
  EXPECT_EQ(last.Json()["status"], "ok");
  EXPECT_EQ(last.headers.at("connection"), "close");
  EXPECT_TRUE(socket.Receive().empty());
}

TEST(Framing, ByteByByteAndHttp10) {
  TestServer server;
  Socket slow(server.port());
  for (const char c : RequestText("POST", "/v1/completions", json({{"prompt", "x"}, {"max_tokens", 2}}).dump()))
    slow.Send({&c, 1});
  EXPECT_EQ(ReadAnswer(slow).status, 200);
  Socket old(server.port());
  const std::string body = json({{"prompt", "x"}, {"max_tokens", 3}, {"stream", true}}).dump();
  old.Send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  const std::string all = old.ReceiveAll();
  EXPECT_EQ(all.find("chunked"), std::string::npos);
  EXPECT_NE(all.find("data: [DONE]"), std::string::npos) << all;
  Socket expects(server.port());
  expects.Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n");
  EXPECT_EQ(expects.Receive(), "HTTP/1.1 100 Continue\r\n\r\n");
  expects.Send("{\"prompt\":\"x\"}");
  EXPECT_EQ(ReadAnswer(expects).status, 200);
}

TEST(Timeouts, EndSlowSenders) {
  ServerLimits limits;
  limits.header_millis = 150;
  limits.body_millis = 150;
  limits.body_bytes_per_second = 1 << 20;
  limits.idle_millis = 400;
  TestServer server({.limits = limits});
  Socket idle(server.port());
  Socket headers(server.port());
  headers.Send("GET /health HTT");
  EXPECT_EQ(ReadAnswer(headers).status, 408);
  Socket body(server.port());
  body.Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
  const Answer late = ReadAnswer(body);
  EXPECT_EQ(late.status, 408);
  EXPECT_EQ(late.Json()["error"]["code"], "request_timeout");
  EXPECT_TRUE(idle.Receive().empty()) << "an idle connection is closed without a word";
  EXPECT_FALSE(idle.timed_out());
  std::vector<std::unique_ptr<Socket>> trickle;
  for (int i = 0; i < 200; ++i) {
    trickle.push_back(std::make_unique<Socket>(server.port()));
    trickle.back()->Send("G");
  }
  EXPECT_EQ(Ask(server.port(), "GET", "/health").status, 200);
  for (auto& socket : trickle) socket->Close();
  EXPECT_TRUE(Eventually([&] { return server.http->connections() == 0; }));
}

class Leaving : public testing::TestWithParam<bool> {};

TEST_P(Leaving, FreesTheBlocks) {
  TestServer server;
  server.executor.SetStepMicros(2000);
  for (const bool stream : {true, false}) {
    Socket socket(server.port());
    json body = EndlessBody();
    body["stream"] = stream;
    socket.Send(RequestText("POST", "/v1/completions", body.dump()));
    ASSERT_TRUE(Eventually([&] { return server.engine->Stats().running == 1; }));
    GetParam() ? socket.Reset() : socket.Close();
    EXPECT_TRUE(server.BlocksAreFree(1000));
  }
  EXPECT_TRUE(Eventually([&] { return server.service->open_calls() == 0 && server.http->connections() == 0; }));
}
INSTANTIATE_TEST_SUITE_P(Http, Leaving, testing::Values(false, true));

TEST(Leaving, WhileQueuedToo) {
  TestServer server({.max_running = 1});
  server.executor.SetStepMicros(2000);
  std::vector<std::unique_ptr<Socket>> sockets;
  for (int i = 0; i < 10; ++i) {
    sockets.push_back(std::make_unique<Socket>(server.port()));
    sockets.back()->Send(RequestText("POST", "/v1/completions", EndlessBody().dump()));
  }
  ASSERT_TRUE(Eventually([&] { return server.engine->Stats().waiting == 9; }));
  for (auto& socket : sockets) socket->Close();
  EXPECT_TRUE(server.BlocksAreFree(2000));
}

TEST(SlowReaders, HoldNoBlocksAndAreCutOff) {
  ServerLimits limits;
  limits.stall_millis = 300;
  std::string long_answer;
  for (int i = 0; i < 20000; ++i) long_answer += "the quick brown fox ";
  // More output than the kernel's buffers take.
  TestServer server({.answer = long_answer, .limits = limits, .max_model_len = 60000, .num_blocks = 8192});
  const json body = {{"prompt", {1, 2, 3}}, {"max_tokens", 50000}, {"ignore_eos", true}, {"stream", true}, {"logprobs", 20}};
  Socket slow(server.port());
  const int small = 4096;
  ::setsockopt(slow.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  slow.Send(RequestText("POST", "/v1/completions", body.dump()));
  ASSERT_TRUE(Eventually([&] { return server.engine->Stats().running == 1; }));
  EXPECT_EQ(Post(server.port(), "/v1/completions", {{"prompt", "x"}, {"max_tokens", 5}}).status, 200) << "others go on";
  EXPECT_TRUE(server.BlocksAreFree(20000));
  EXPECT_TRUE(Eventually([&] { return server.http->connections() == 0; }));
  EXPECT_NE(server.service->MetricsText().find("kvasir_slow_clients_total 1"), std::string::npos);
}

TEST(Silence, IsFilledWithComments) {
  ServerLimits limits;
  limits.ping_millis = 60;
  TestServer server({.limits = limits});
  server.executor.Hold(true);
  Socket socket(server.port());
  json body = EndlessBody();
  body["max_tokens"] = 3;
  socket.Send(RequestText("POST", "/v1/completions", body.dump()));
  std::string begin = socket.Receive();
  EXPECT_NE(begin.find("200 OK"), std::string::npos) << "a queued stream that was accepted shows that it lives";
  while (begin.find(": ping") == std::string::npos) begin += socket.Receive();
  server.executor.Hold(false);
  const Answer answer = ReadAnswer(socket, &begin);
  EXPECT_TRUE(answer.complete);
  EXPECT_EQ(answer.Events().back(), "[DONE]");
}

TEST(Queue, AFullOneAnswers429) {
  TestServer server({.max_running = 1, .max_waiting = 2});
  server.executor.SetStepMicros(2000);
  std::vector<std::unique_ptr<Socket>> sockets;
  for (int i = 0; i < 3; ++i) {
    sockets.push_back(std::make_unique<Socket>(server.port()));
    sockets.back()->Send(RequestText("POST", "/v1/completions", EndlessBody().dump()));
    ASSERT_TRUE(Eventually([&] { return server.engine->Stats().running + server.engine->Stats().waiting == i + 1; }));
    ASSERT_TRUE(Eventually([&] { return server.engine->Stats().running == 1; }));
  }
  const Answer answer = Post(server.port(), "/v1/completions", EndlessBody());
  EXPECT_EQ(answer.status, 429) << answer.body;
  EXPECT_GE(std::stoi(answer.headers.at("retry-after")), 1);
  EXPECT_EQ(answer.Json()["error"]["code"], "queue_full");
}

TEST(Drain, RefusesNewAndFinishesOld) {
  TestServer server;
  server.executor.SetStepMicros(1000);
  Socket old(server.port());
  json body = EndlessBody();
  body["max_tokens"] = 200;
  old.Send(RequestText("POST", "/v1/completions", body.dump()));
  ASSERT_TRUE(Eventually([&] { return server.engine->Stats().running == 1; }));
  server.service->BeginDrain();
  const Answer health = Ask(server.port(), "GET", "/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.Json()["error"]["code"], "draining");
  const Answer refused = Post(server.port(), "/v1/completions", body);
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("connection"), "close");
  EXPECT_TRUE(refused.headers.contains("retry-after"));
  server.engine->Drain(30'000'000);
  const Answer answer = ReadAnswer(old);
  EXPECT_TRUE(answer.complete);
  EXPECT_EQ(answer.Events().back(), "[DONE]");
  old.Close();
  server.http->Stop(5000);
  EXPECT_EQ(server.http->connections(), 0);
}

TEST(Drain, WhatIsNotDoneInTimeGetsItsEnd) {
  TestServer server;
  server.executor.SetStepMicros(5000);
  Socket socket(server.port());
  socket.Send(RequestText("POST", "/v1/completions", EndlessBody().dump()));
  std::string begin = socket.Receive();
  server.service->BeginDrain();
  server.engine->Drain(20'000);
  const Answer answer = ReadAnswer(socket, &begin);
  EXPECT_EQ(answer.Events().back()["error"]["code"], "draining") << answer.body;
  EXPECT_FALSE(answer.complete);
}

TEST(Loading, IsToldBeforeTheServiceIsThere) {
  HttpRoutes routes({});
  auto server = HttpServer::Listen({.port = 0});
  ASSERT_TRUE(server.ok());
  (*server)->Start(&routes);
  const Answer health = Ask((*server)->port(), "GET", "/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.Json()["error"]["code"], "loading");
  EXPECT_EQ(Ask((*server)->port(), "GET", "/version").status, 200);
  const auto again = HttpServer::Listen({.port = (*server)->port()});
  EXPECT_FALSE(again.ok());
  EXPECT_NE(again.status().message().find("in use"), absl::string_view::npos) << again.status();
}

}  // namespace
}  // namespace kvasir
