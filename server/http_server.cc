#include "server/http_server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <thread>

#include "server/http_connection.h"
#include "spdlog/spdlog.h"

namespace kvasir {
namespace {

constexpr auto kToken = asio::as_tuple(asio::use_awaitable);
constexpr std::string_view kFull =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: "
    "2\r\nContent-Length: 151\r\n\r\n"
    "{\"error\":{\"message\":\"This server has as many connections as it can take; retry "
    "later.\",\"type\":\"service_unavailable\",\"param\":null,"
    "\"code\":\"server_busy\"}}";

// One try, without waiting: whoever is refused gets at most a word.
void RefuseSocket(int socket) {
  [[maybe_unused]] const ssize_t sent = ::send(socket, kFull.data(), kFull.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  ::shutdown(socket, SHUT_WR);
}

}  // namespace

struct HttpServer::State {
  explicit State(HttpServerConfig server_config) : config(std::move(server_config)) {}

  asio::awaitable<void> Accept();
  asio::awaitable<void> SweepConnections(IoThread* thread);
  void RefuseWithReserve();
  void OnEveryThread(const std::function<void(IoThread&)>& function);
  bool WaitForConnections(int64_t millis) const;

  const HttpServerConfig config;
  std::atomic<int64_t> connections{0};
  std::vector<std::unique_ptr<IoThread>> io;
  std::unique_ptr<Tcp::acceptor> acceptor;  // on the first thread
  int bound_port = 0;
  int reserve = -1;  // a descriptor to give up when there are no others: else a full table would spin
  std::vector<std::thread> threads;
  HttpRoutes* routes = nullptr;
  bool stopped = false;
};

StatusOr<std::unique_ptr<HttpServer>> HttpServer::Listen(HttpServerConfig config) {
  auto server = std::unique_ptr<HttpServer>(new HttpServer());
  server->state_ = std::make_unique<State>(std::move(config));
  State& state = *server->state_;
  for (int i = 0; i < std::max(1, state.config.io_threads); ++i) {
    state.io.push_back(std::make_unique<IoThread>());
    IoThread& thread = *state.io.back();
    thread.total = &state.connections;
    thread.limits = state.config.limits;
    thread.loop = std::make_shared<CallLoop>([weak = std::weak_ptr(thread.context)](std::function<void()> function) {
      if (const auto context = weak.lock()) asio::post(*context, std::move(function));
    });
  }
  boost::system::error_code error;
  const std::string host = state.config.host == "localhost" ? "127.0.0.1" : state.config.host;
  const auto address = asio::ip::make_address(host, error);
  if (error)
    return InvalidArgument("--host {} is not an IP address; use 127.0.0.1, 0.0.0.0 or :: for example", state.config.host);
  state.acceptor = std::make_unique<Tcp::acceptor>(*state.io[0]->context);
  const Tcp::endpoint endpoint(address, uint16_t(state.config.port));
  state.acceptor->open(endpoint.protocol(), error);
  if (!error) state.acceptor->set_option(Tcp::acceptor::reuse_address(true), error);
  if (!error) state.acceptor->bind(endpoint, error);
  if (!error) state.acceptor->listen(4096, error);
  if (error) {
    return InvalidArgument("cannot listen on {} port {}: {}; choose another --port or stop what uses it", state.config.host,
                           state.config.port, error.message());
  }
  state.bound_port = state.acceptor->local_endpoint(error).port();
  state.reserve = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  return server;
}

HttpServer::~HttpServer() {
  if (state_ == nullptr) return;
  Stop(0);
  if (state_->reserve >= 0) ::close(state_->reserve);
}

int HttpServer::port() const {
  return state_->bound_port;
}
int64_t HttpServer::connections() const {
  return state_->connections.load();
}

void HttpServer::Start(HttpRoutes* routes) {
  State& state = *state_;
  state.routes = routes;
  for (auto& thread : state.io) {
    thread->routes = routes;
    asio::co_spawn(*thread->context, state.SweepConnections(thread.get()), [](std::exception_ptr) {});
  }
  asio::co_spawn(*state.io[0]->context, state.Accept(), [](std::exception_ptr) {});
  for (auto& thread : state.io) {
    state.threads.emplace_back([context = thread->context] {
      const auto work = asio::make_work_guard(*context);
      context->run();
    });
  }
}

asio::awaitable<void> HttpServer::State::Accept() {
  asio::steady_timer pause(*io[0]->context);
  for (size_t next = 0;; ++next) {
    IoThread* thread = io[next % io.size()].get();
    Tcp::socket socket(*thread->context);
    const auto [error] = co_await acceptor->async_accept(socket, kToken);
    if (!acceptor->is_open()) co_return;
    if (error) {
      if (error == asio::error::no_descriptors || error == boost::system::errc::too_many_files_open_in_system)
        RefuseWithReserve();
      pause.expires_after(std::chrono::milliseconds(20));
      const auto [waited] = co_await pause.async_wait(kToken);
      if (waited) co_return;
      continue;
    }
    if (connections.load() >= config.limits.connections) {
      if (routes->service() != nullptr) routes->service()->metrics().CountRefusedConnection();
      RefuseSocket(socket.native_handle());
      continue;
    }
    connections.fetch_add(1);
    asio::post(*thread->context, [thread, socket = std::move(socket)]() mutable {
      auto connection = std::make_shared<Connection>(std::move(socket), thread);
      asio::co_spawn(*thread->context, connection->Run(), [connection](std::exception_ptr) {});
    });
  }
}

// Out of descriptors: the reserve makes room to take one connection and tell it so; the rest waits in the backlog.
void HttpServer::State::RefuseWithReserve() {
  if (reserve < 0) return;
  ::close(reserve);
  const int socket = ::accept4(acceptor->native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket >= 0) {
    RefuseSocket(socket);
    ::close(socket);
    if (routes->service() != nullptr) routes->service()->metrics().CountRefusedConnection();
  }
  reserve = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
}

asio::awaitable<void> HttpServer::State::SweepConnections(IoThread* thread) {
  const ServerLimits& limits = config.limits;
  const int64_t shortest =
      std::min({limits.header_millis, limits.body_millis, limits.idle_millis, limits.stall_millis, limits.ping_millis});
  const auto interval = std::chrono::milliseconds(std::clamp<int64_t>(shortest / 4, 5, 250));
  asio::steady_timer timer(*thread->context);
  for (;;) {
    timer.expires_after(interval);
    const auto [waited] = co_await timer.async_wait(kToken);
    if (waited) co_return;
    const Moment now = std::chrono::steady_clock::now();
    // Sweeping may end a connection, but none is destroyed before its coroutine has run again.
    for (Connection* connection : thread->connections) connection->Sweep(now);
  }
}

void HttpServer::State::OnEveryThread(const std::function<void(IoThread&)>& function) {
  for (auto& thread : io) asio::post(*thread->context, [&function_thread = *thread, function] { function(function_thread); });
}

bool HttpServer::State::WaitForConnections(int64_t millis) const {
  for (int64_t waited = 0; connections.load() > 0; waited += 5) {
    if (waited >= millis) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

void HttpServer::Stop(int64_t timeout_millis) {
  State& state = *state_;
  if (state.stopped) return;
  state.stopped = true;
  if (!state.threads.empty()) {
    asio::post(*state.io[0]->context, [&state] {
      boost::system::error_code ignored;
      state.acceptor->close(ignored);
    });
    state.OnEveryThread([](IoThread& thread) {
      thread.stopping = true;
      for (Connection* connection : thread.connections) connection->StopWhenIdle();
    });
    if (!state.WaitForConnections(timeout_millis)) {
      state.OnEveryThread([](IoThread& thread) {
        for (Connection* connection : thread.connections) connection->Abort();
      });
      state.WaitForConnections(1000);
    }
    for (auto& thread : state.io) thread->context->stop();
    for (std::thread& thread : state.threads) thread.join();
    state.threads.clear();
  }
  for (auto& thread : state.io) thread->loop->Close();
  state.acceptor.reset();
  for (auto& thread : state.io) thread->context.reset();  // destroys what still waits there, while the rest is alive
}

}  // namespace kvasir
