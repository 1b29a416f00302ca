// Connection: one HTTP/1.1 connection, as a coroutine on its I/O thread: read a request, answer it, again. It bounds everything a
// peer can make it do: header and body size and time, silence, unsent output. While a request is being answered it goes on
// reading, so that a client that leaves is noticed at once. Included by http_connection.cc and http_server.cc only (Boost is slow
// to compile).
#pragma once

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>

#include "server/http_exchange.h"
#include "server/http_routes.h"

namespace kvasir {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using Moment = std::chrono::steady_clock::time_point;

class Connection;

// What the connections of one thread share. Touched by that thread only, but for the counters.
struct IoThread {
  std::unordered_set<Connection*> connections;
  std::atomic<int64_t>* total = nullptr;  // connections of all threads
  HttpRoutes* routes = nullptr;
  ServerLimits limits;
  bool stopping = false;
  std::shared_ptr<CallLoop> loop;
  std::shared_ptr<asio::io_context> context = std::make_shared<asio::io_context>(1);
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Tcp::socket socket, IoThread* thread);
  ~Connection();

  asio::awaitable<void> Run();
  void Sweep(Moment now);  // a few times per second: deadlines, stalls, silence
  void StopWhenIdle();     // the server is closing
  void Abort();            // at once; the request of this connection is cancelled

  // For the exchange of the request that is being answered.
  void SendResponse(HttpResponse response);
  void SendStreamHead(const HttpHeaders& headers);
  void SendStreamPart(std::string_view bytes);
  void EndStream(bool complete);
  IoThread* thread() const { return thread_; }

 private:
  enum class Phase : uint8_t { kIdle, kHead, kBody, kBusy, kLinger };
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  class Exchange;

  void Enter(Phase phase, int64_t millis);
  asio::awaitable<bool> ReadMore(size_t bytes);
  asio::awaitable<bool> ReadHead();
  asio::awaitable<bool> ReadBody();
  asio::awaitable<bool> Serve();  // false: the connection ends
  asio::awaitable<void> WaitForEnd();
  asio::awaitable<void> WaitForDone();
  asio::awaitable<void> Linger();
  void BeginExchange();
  std::optional<HttpResponse> CheckLimits() const;
  void Refuse(ErrorCode code, std::string message);  // before there is a request to answer
  void AppendHead(int status, std::string_view content_type, const HttpHeaders& headers, bool close);
  void Flush();
  void Done();   // the answer has left
  void Leave();  // the peer has gone
  size_t pending() const { return out_.size() - out_at_; }

  Tcp::socket socket_;
  IoThread* const thread_;
  std::optional<Parser> parser_;
  std::string input_;  // read and not parsed yet
  boost::system::error_code read_error_;

  std::string out_;    // to be written
  size_t out_at_ = 0;  // up to here it was
  Moment deadline_, last_progress_, last_write_, over_since_, busy_since_;
  Phase phase_ = Phase::kIdle;
  bool waits_to_write_ = false, broken_ = false, timed_out_ = false, over_ = false;

  // The request that is being answered.
  std::shared_ptr<Exchange> exchange_;
  std::unique_ptr<asio::steady_timer> done_timer_;  // only where the peer has sent too much ahead
  HttpRequest head_;
  HttpHeaders cors_;
  std::string request_id_;
  int status_ = 0;
  bool keep_ = true, chunked_ = true, streaming_ = false, ended_ = false, done_ = false;
};

}  // namespace kvasir
