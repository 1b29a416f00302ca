// HttpServer: sockets, HTTP/1.1 framing, timeouts and limits, on Boost.Asio coroutines and Beast's parser (only http_server.cc
// and http_connection.cc see them). Each I/O thread owns its connections; nothing about a connection is locked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "server/http_routes.h"

namespace kvasir {

struct HttpServerConfig {
  std::string host = "127.0.0.1";
  int port = 8000;  // 0 = any free one
  int io_threads = 1;
  ServerLimits limits;
};

class HttpServer {
 public:
  // Binds and listens, so that a port in use is told at once; nothing is answered before Start.
  static StatusOr<std::unique_ptr<HttpServer>> Listen(HttpServerConfig config);
  ~HttpServer();  // Stop(0)
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  void Start(HttpRoutes* routes);  // `routes` outlives the server
  int port() const;
  int64_t connections() const;
  // No new connections; idle ones are closed; busy ones get up to timeout_millis to finish. Then the threads end. While draining
  // keep the server running (Service::BeginDrain answers 503) and call this when the engine is done.
  void Stop(int64_t timeout_millis);

 private:
  HttpServer() = default;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvasir
