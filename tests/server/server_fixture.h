// A whole server in the test's process: real tokenizer, template, KV cache, engine, service and HTTP on a loopback port; only the
// model is a fake that says a given text. Used by the tests of server/.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "gtest/gtest.h"
#include "scheduler/engine.h"
#include "server/http_server.h"
#include "server/service.h"

namespace kvasir {

// Says `answer` token by token for every choice, then the end token; a log-probability of -0.5 for token k of the vocabulary's
// order.
class ScriptedExecutor : public Executor {
 public:
  void Say(std::vector<int32_t> answer, int32_t end_token) {
    answer_ = std::move(answer);
    end_token_ = end_token;
  }
  void SetStepMicros(int64_t micros) { step_micros_ = micros; }
  void Hold(bool hold) {
    {
      std::lock_guard lock(mutex_);
      hold_ = hold;
    }
    changed_.notify_all();
  }
  void FailNow() { fail_ = true; }

  Status Launch(const StepBatch& batch, StepResult& result) override {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !hold_; });
    }
    if (fail_) return Internal("/secret/path: device 0xdeadbeef is gone");
    if (step_micros_ > 0) std::this_thread::sleep_for(std::chrono::microseconds(step_micros_));
    for (size_t i = 0; i < batch.samples.size(); ++i) Sample(batch.samples[i], result.samples[i]);
    for (size_t i = 0; i < batch.score_rows.size(); ++i) {
      result.scores[i] = {.token = batch.score_tokens[i], .logprob = -1.5f, .rank = 2};
      for (int32_t k = 0; k < batch.score_top[i]; ++k)
        result.scores[i].top.push_back({.token = 10 + k, .logprob = -0.5f * float(k + 1)});
    }
    return OkStatus();
  }

 private:
  void Sample(const SampleRow& row, SampleResult& sample) const {
    const auto suppressed = [&](int32_t token) {
      return std::find(row.suppressed.begin(), row.suppressed.end(), token) != row.suppressed.end();
    };
    const uint64_t at = row.counter + row.stream;  // choices differ by where they begin
    int32_t token = at < answer_.size() ? answer_[at] : end_token_;
    if (suppressed(token)) token = answer_[at % answer_.size()];
    sample = {.token = token, .finite = true, .logprob = -0.5f, .rank = 1};
    for (int32_t k = 0; k < row.params->num_logprobs; ++k) {
      sample.top.push_back({.token = k == 0 ? token : (token + k) % 256, .logprob = -0.5f * float(k + 1)});
    }
  }

  std::vector<int32_t> answer_;
  int32_t end_token_ = 0;
  std::atomic<int64_t> step_micros_{0};
  std::atomic<bool> fail_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hold_ = false;
};

struct FixtureOptions {
  std::string answer = "Hello there! The quick brown fox jumps over the lazy dog.";
  std::string tokenizer = "llama3";
  ServerLimits limits;
  std::vector<std::string> api_keys;
  int64_t max_model_len = 2048;
  int64_t num_blocks = 4096;
  int max_running = 256;
  int64_t max_waiting = 1024;
  int io_threads = 1;
  bool serve = true;  // HTTP, not only the service
};

class TestServer {
 public:
  explicit TestServer(FixtureOptions options = {}) {
    auto loaded = Tokenizer::Load(std::string(KVASIR_SOURCE_DIR "/tests/data/tokenizers/") + options.tokenizer);
    KVASIR_CHECK(loaded.ok(), "{}", Message(loaded.status()));
    tokenizer = std::move(loaded).value();
    auto parsed = ChatTemplate::Parse(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif "
        "%}",
        "", "");
    KVASIR_CHECK(parsed.ok(), "{}", Message(parsed.status()));
    chat_template = std::make_unique<ChatTemplate>(std::move(parsed).value());
    cache = std::make_unique<KvCache>(KvCacheConfig{.num_blocks = options.num_blocks, .block_tokens = 16, .fingerprint = "test"});
    end_token = tokenizer->vocab_size() - 1;
    executor.Say(tokenizer->Encode(options.answer, false).value(), end_token);
    EngineConfig config;
    config.max_running = options.max_running;
    config.max_waiting = options.max_waiting;
    config.limits.vocab_size = tokenizer->vocab_size();
    config.limits.max_model_len = options.max_model_len;
    config.limits.pool_tokens = options.num_blocks * 16;
    config.limits.eos_token_ids = {end_token};
    engine = std::make_unique<Engine>(config, cache.get(), &executor, &clock);
    engine->Start();
    service = std::make_unique<Service>(ServiceConfig{.engine = engine.get(),
                                                      .tokenizer = tokenizer.get(),
                                                      .chat_template = chat_template.get(),
                                                      .clock = &clock,
                                                      .model = {.names = {"tiny", "org/tiny"}, .num_blocks = options.num_blocks},
                                                      .limits = options.limits});
    if (!options.serve) return;
    routes = std::make_unique<HttpRoutes>(HttpRoutesConfig{.api_keys = options.api_keys, .limits = options.limits});
    routes->SetService(service.get());
    auto server = HttpServer::Listen({.port = 0, .io_threads = options.io_threads, .limits = options.limits});
    KVASIR_CHECK(server.ok(), "{}", Message(server.status()));
    http = std::move(server).value();
    http->Start(routes.get());
  }
  ~TestServer() {
    executor.Hold(false);
    if (http != nullptr) http->Stop(2000);
    http = nullptr;
    engine = nullptr;  // ends what is open, while the service is alive
  }
  int port() const { return http->port(); }
  bool BlocksAreFree(int64_t millis = 5000) const {
    for (int64_t waited = 0; waited < millis; waited += 2) {
      const EngineStats stats = engine->Stats();
      if (stats.kv.used_blocks == 0 && stats.running == 0 && stats.waiting == 0) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return false;
  }

  SteadyClock clock;
  ScriptedExecutor executor;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Service> service;  // before the engine: its calls end in the engine's destructor
  std::unique_ptr<Engine> engine;
  std::unique_ptr<HttpRoutes> routes;
  std::unique_ptr<HttpServer> http;
  int32_t end_token = 0;
};

}  // namespace kvasir
