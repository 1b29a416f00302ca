#include "server/serve.h"

#include <netdb.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "server/generate.h"
#include "server/grpc_server.h"
#include "server/http_server.h"
#include "server/pull_command.h"
#include "server/runtime.h"
#include "server/service.h"

namespace kvasir {
namespace {

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host == "[::1]" || host.rfind("127.", 0) == 0;
}

StatusOr<std::vector<std::string>> LoadKeys(const ServeOptions& options) {
  std::vector<std::string> keys = options.api_keys;
  if (!options.api_key_file.empty()) {
    std::ifstream file(options.api_key_file);
    if (!file) return InvalidArgument("--api-key-file {}: cannot be read", options.api_key_file);
    for (std::string line; std::getline(file, line);) {
      while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
      if (!line.empty() && line.front() != '#') keys.push_back(line);
    }
    if (keys.empty()) return InvalidArgument("--api-key-file {}: holds no key: write one on each line", options.api_key_file);
  }
  if (keys.empty() && !IsLoopback(options.host) && !options.insecure_no_auth) {
    return InvalidArgument(
        "--host {} without API keys would serve everybody who can reach it: give --api-key-file FILE (or set KVASIR_API_KEY), or "
        "--insecure-no-auth if that is meant",
        options.host);
  }
  return keys;
}

// Whether the gRPC port is free, asked before minutes are spent on loading; gRPC itself can listen only when everything is there.
Status CheckPortIsFree(const std::string& host, int port) {
  if (port <= 0) return OkStatus();
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return InvalidArgument("--host {}: not an address of this machine", host);
  }
  const int fd = socket(found->ai_family, SOCK_STREAM, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const bool bound = bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 1) == 0;
  const int error = errno;
  close(fd);
  freeaddrinfo(found);
  if (bound) return OkStatus();
  return Unavailable("--grpc-port {}: {}{}: stop the other server or choose another --grpc-port", port, strerror(error),
                     error == EADDRINUSE ? " (in use)" : "");
}

// SIGTERM and SIGINT are blocked everywhere and taken here, so that no thread dies of them.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    signal(SIGPIPE, SIG_IGN);
  }
  // The signal that came within the time, or 0.
  int Wait(int64_t millis) const {
    const timespec time = {time_t(millis / 1000), long(millis % 1000 * 1'000'000)};
    const int signal = sigtimedwait(&set_, nullptr, &time);
    return signal > 0 ? signal : 0;
  }
  // Whether one came so far: what is done before requests are served asks now and then. Any thread, one at a time.
  bool Came() const {
    if (!came_) came_ = Wait(0) != 0;
    return came_;
  }
  // From now on a further signal ends the process at once: whoever sends a second one means it.
  void SecondEndsAtOnce() const {
    struct sigaction action {};
    action.sa_handler = [](int) { _exit(1); };
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);
    pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
  }

 private:
  sigset_t set_;
  mutable std::atomic<bool> came_ = false;
};

void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

void SetUpLog(const ServeOptions& options) {
  auto logger = std::make_shared<spdlog::logger>("", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %v");
  logger->set_level(spdlog::level::from_str(options.log_level));
  spdlog::set_default_logger(std::move(logger));
}

std::vector<std::string> ServedNames(const ServeOptions& options) {
  if (!options.served_model_names.empty()) return options.served_model_names;
  std::error_code error;
  if (!std::filesystem::is_directory(options.engine.model, error))
    return {options.engine.model.substr(0, options.engine.model.find('@'))};
  std::filesystem::path path = std::filesystem::weakly_canonical(options.engine.model, error);
  if (error) path = options.engine.model;
  return {path.filename().empty() ? path.parent_path().filename().string() : path.filename().string()};
}

ServiceConfig MakeServiceConfig(const ServeOptions& options, const Runtime& runtime, const ServerLimits& limits) {
  ServiceConfig config;
  config.engine = runtime.engine.get();
  config.tokenizer = runtime.tokenizer.get();
  config.trust_request_chat_template = options.trust_request_chat_template;
  config.chat_template = runtime.chat_template ? &*runtime.chat_template : nullptr;
  config.clock = &runtime.clock;
  config.defaults = runtime.generation_defaults;
  config.limits = limits;
  config.seed = options.engine.seed;
  const ModelConfig& model = runtime.model->config();
  config.model = {.names = ServedNames(options),
                  .architecture = model.architecture,
                  .dtype = std::string(Name(model.dtype)),
                  .kv_cache_dtype = std::string(Name(runtime.kv_layout.format())),
                  .device = runtime.device->Info().name,
                  .num_parameters = model.parameter_count(),
                  .block_tokens = runtime.kv_layout.block_tokens,
                  .num_blocks = runtime.num_blocks,
                  .created = std::time(nullptr)};
  return config;
}

// The line every few seconds, silent when nothing happens.
class StatsLine {
 public:
  void Print(const EngineStats& now, double seconds) {
    const EngineStats& then = last_;
    const int64_t prompt = now.computed_prompt_tokens - then.computed_prompt_tokens,
                  generated = now.generated_tokens - then.generated_tokens;
    if (prompt > 0 || generated > 0 || now.running > 0 || now.waiting > 0) {
      const int64_t asked = now.kv.queried_tokens, hit = now.kv.hit_tokens;
      spdlog::info("prompt {:.0f} tok/s, generation {:.0f} tok/s, running {}, waiting {}, KV {:.1f} %, prefix hits {:.1f} %",
                   double(prompt) / seconds, double(generated) / seconds, now.running, now.waiting,
                   now.kv.total_blocks > 0 ? 100.0 * double(now.kv.used_blocks) / double(now.kv.total_blocks) : 0.0,
                   asked > 0 ? 100.0 * double(hit) / double(asked) : 0.0);
    }
    last_ = now;
  }

 private:
  EngineStats last_;
};

// Until a signal (true) or the engine's death (false). A process that was stopped for a while (SIGSTOP, a paused container or
// machine) finds the step it was in too long when it goes on: that passes with the step, so it is asked for a few seconds.
bool RunUntilSignal(const Signals& signals, const Engine& engine, bool log_stats) {
  constexpr int kStatsSeconds = 10, kPatience = 3;
  StatsLine stats;
  int unhealthy = 0;
  for (int64_t second = 1;; ++second) {
    if (signals.Wait(1000) != 0) return true;
    unhealthy = engine.Healthy() ? 0 : unhealthy + 1;
    if (unhealthy >= kPatience) return false;
    if (log_stats && second % kStatsSeconds == 0) stats.Print(engine.Stats(), kStatsSeconds);
  }
}

}  // namespace

Status RunServe(const ServeOptions& options) {
  if (options.check_config) {
    std::fputs(DescribeOptions(options).c_str(), stdout);
    return LoadKeys(options).status();
  }
  const Signals signals;
  RaiseFileLimit();
  SetUpLog(options);
  KVASIR_ASSIGN_OR_RETURN(const std::vector<std::string> keys, LoadKeys(options));
  if (keys.empty() && !IsLoopback(options.host)) spdlog::warn("serving {} without API keys (--insecure-no-auth)", options.host);

  ServerLimits limits;
  limits.body_bytes = size_t(options.max_body_bytes);
  limits.connections = options.max_connections;
  KVASIR_ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> http,
                          HttpServer::Listen({options.host, options.port, options.io_threads, limits}));
  KVASIR_RETURN_IF_ERROR(CheckPortIsFree(options.host, options.grpc_port));
  HttpRoutes routes({keys, options.allowed_origins, options.enable_log_requests, limits});
  http->Start(&routes);  // answers 503 "loading" until the service is set

  EngineOptions engine = options.engine;
  const Status resolved = ResolveModel(&engine, [&signals] { return !signals.Came(); });
  if (signals.Came()) return OkStatus();  // what was pulled so far stays for the next start
  KVASIR_RETURN_IF_ERROR(resolved);
  const auto start = std::chrono::steady_clock::now();
  StatusOr<std::unique_ptr<Runtime>> created = Runtime::Create(
      engine, options.max_logprobs,
      [&](double fraction, std::string_view what) { return !signals.Came() && ShowLoadProgress(fraction, what); });
  if (signals.Came()) return OkStatus();  // there is nothing to drain yet
  KVASIR_RETURN_IF_ERROR(created.status());
  const std::unique_ptr<Runtime> runtime = *std::move(created);
  runtime->engine->Start();
  Service service(MakeServiceConfig(options, *runtime, limits));
  const ApiKeys api_keys(keys);
  std::unique_ptr<GrpcServer> grpc;
  if (options.grpc_port >= 0) {
    KVASIR_ASSIGN_OR_RETURN(grpc,
                            GrpcServer::Start({options.host, options.grpc_port, options.grpc_reflection}, &service, &api_keys));
  }
  routes.SetService(&service);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::fprintf(stderr, "%s\n", runtime->Describe().c_str());
  std::fprintf(stderr, "ready in %.2f s (%.2f s for weights): http://%s:%d (OpenAI style)%s\n", seconds, runtime->weights_seconds,
               options.host.c_str(), http->port(), grpc ? fmt::format(", gRPC on {}", grpc->port()).c_str() : "");

  const bool healthy = RunUntilSignal(signals, *runtime->engine, !options.disable_log_stats);
  signals.SecondEndsAtOnce();
  spdlog::info("{}: no new requests, up to {} s for {} open ones", healthy ? "draining" : "the engine failed",
               options.drain_timeout_seconds, service.open_calls());
  service.BeginDrain();
  if (grpc) grpc->BeginDrain();
  runtime->engine->Drain(healthy ? options.drain_timeout_seconds * 1'000'000 : 0);
  // Every request has its terminal event now; what remains is to write it out.
  constexpr int64_t kFlushMillis = 5000;
  http->Stop(kFlushMillis);
  if (grpc) grpc->Stop(kFlushMillis * 1000);
  routes.SetService(nullptr);
  runtime->engine.reset();  // before the service: what was still open ends in the engine's destructor
  spdlog::info("stopped");
  return healthy ? OkStatus() : Internal("the engine failed (see the log); start the server again");
}

}  // namespace kvasir
