// Many connections in one process: 256 streams beside 2,000 idle ones, the connection limit, and running out of descriptors.
#include <gtest/gtest.h>

#include <sys/resource.h>

#include <ctime>
#include <thread>

#include "tests/server/http_client.h"
#include "tests/server/server_fixture.h"

namespace kvasir {
namespace {

using nlohmann::json;

void AllowDescriptors(rlim_t count) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = std::min(limit.rlim_max, count);
  setrlimit(RLIMIT_NOFILE, &limit);
}

TEST(Load, StreamsBesideIdleConnections) {
  AllowDescriptors(16384);
  TestServer server({.max_running = 64, .io_threads = 2});
  std::vector<std::unique_ptr<Socket>> idle;
  for (int i = 0; i < 2000; ++i) idle.push_back(std::make_unique<Socket>(server.port()));
  std::vector<std::unique_ptr<Socket>> streams;
  for (int i = 0; i < 256; ++i) {
    streams.push_back(std::make_unique<Socket>(server.port()));
    ASSERT_TRUE(streams.back()->connected());
    const json body = {{"prompt", {1 + i, 2, 3}},
                       {"max_tokens", 40},
                       {"ignore_eos", true},
                       {"stream", true},
                       {"stream_options", {{"include_usage", true}}}};
    ASSERT_TRUE(streams.back()->Send(RequestText("POST", "/v1/completions", body.dump())));
  }
  for (auto& stream : streams) {
    const Answer answer = ReadAnswer(*stream);
    ASSERT_EQ(answer.status, 200) << answer.body;
    const std::vector<json> events = answer.Events();
    ASSERT_GE(events.size(), 3);
    EXPECT_EQ(events.back(), "[DONE]");
    EXPECT_EQ(events[events.size() - 2]["usage"]["completion_tokens"], 40);
  }
  for (const int i : {0, 999, 1999}) {
    idle[size_t(i)]->Send(RequestText("GET", "/health"));
    EXPECT_EQ(ReadAnswer(*idle[size_t(i)]).status, 200);
  }
  EXPECT_TRUE(server.BlocksAreFree());
}

TEST(Load, TheConnectionLimitIsTold) {
  ServerLimits limits;
  limits.connections = 20;
  TestServer server({.limits = limits});
  std::vector<std::unique_ptr<Socket>> sockets;
  for (int i = 0; i < 20; ++i) sockets.push_back(std::make_unique<Socket>(server.port()));
  while (server.http->connections() < 20) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  Socket one_more(server.port());
  const Answer answer = ReadAnswer(one_more);
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.Json()["error"]["code"], "server_busy") << answer.body;
  sockets.clear();
  for (int i = 0; server.http->connections() > 0 && i < 1000; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(Ask(server.port(), "GET", "/health").status, 200);
}

TEST(Load, RunningOutOfDescriptorsDoesNotSpin) {
  TestServer server;
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  const int next = ::dup(0);
  ::close(next);
  // Room for the clients' ends and a few of the server's.
  rlimit tight = before;
  tight.rlim_cur = rlim_t(next) + 60;
  std::vector<std::unique_ptr<Socket>> sockets;
  for (int i = 0; i < 40; ++i) sockets.push_back(std::make_unique<Socket>(server.port()));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  for (int i = 0; i < 100; ++i) {
    sockets.push_back(std::make_unique<Socket>(server.port()));
    if (!sockets.back()->connected()) break;
  }
  const std::clock_t cpu = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_LT(double(std::clock() - cpu) / CLOCKS_PER_SEC, 0.25) << "the accept loop spins";
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  sockets.clear();
  EXPECT_EQ(Ask(server.port(), "GET", "/health").status, 200);
}

TEST(Load, MetricsPleasePromtool) {
  TestServer server;
  Post(server.port(), "/v1/completions", {{"prompt", "x"}, {"max_tokens", 5}});
  const std::string text = Ask(server.port(), "GET", "/metrics").body;
  for (const char* name :
       {"vllm:num_requests_running{model_name=\"tiny\",engine=\"0\"} 0", "vllm:time_to_first_token_seconds_bucket",
        "vllm:kv_cache_usage_perc", "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"length\"} 1",
        "vllm:generation_tokens_total", "vllm:inter_token_latency_seconds_count{model_name=\"tiny\",engine=\"0\"} 4",
        "vllm:cache_config_info", "kvasir_kv_blocks_used 0"}) {
    EXPECT_NE(text.find(name), std::string::npos) << name;
  }
  if (std::system("command -v promtool > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "promtool is not installed (Debian package prometheus)";
  FILE* pipe = ::popen(
      "promtool check metrics 2>&1 | grep -v '^vllm:' > /tmp/kvasir_promtool.$$; cat /tmp/kvasir_promtool.$$ >&2; test ! -s "
      "/tmp/kvasir_promtool.$$; "
      "code=$?; rm -f /tmp/kvasir_promtool.$$; exit $code",
      "w");
  ASSERT_NE(pipe, nullptr);
  std::fwrite(text.data(), 1, text.size(), pipe);
  EXPECT_EQ(::pclose(pipe), 0) << "promtool complains about more than the names that vLLM has fixed";
}

}  // namespace
}  // namespace kvasir
