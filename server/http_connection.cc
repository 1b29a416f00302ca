#include "server/http_connection.h"

#include <openssl/rand.h>

#include <boost/asio/buffer.hpp>
#include <ctime>

#include "spdlog/spdlog.h"

namespace kvasir {
namespace {

namespace http = boost::beast::http;
constexpr auto kToken = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 4 << 10, kBodyReadBytes = 64 << 10;
constexpr size_t kAheadBytes = 64 << 10;  // what a peer may send ahead of its turn
constexpr int64_t kLingerMillis = 2000;
constexpr size_t kLingerBytes = 1 << 20;

int64_t MillisBetween(Moment from, Moment to) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(to - from).count();
}

std::string_view View(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

// The client's own id where it is harmless, else a new one.
std::string ChooseRequestId(std::string_view asked, size_t limit) {
  bool good = !asked.empty() && asked.size() <= limit;
  for (const char c : asked) good = good && (std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.');
  if (good) return std::string(asked);
  unsigned char bytes[12];
  RAND_bytes(bytes, sizeof bytes);
  std::string id;
  for (const unsigned char byte : bytes) fmt::format_to(std::back_inserter(id), "{:02x}", byte);
  return id;
}

std::string_view Reason(int status) {
  return View(http::obsolete_reason(http::int_to_status(unsigned(status))));
}

const std::string& DateHeader() {
  thread_local std::time_t last = 0;
  thread_local std::string text;
  const std::time_t now = std::time(nullptr);
  if (now != last) {
    last = now;
    char buffer[64];
    std::tm parts{};
    gmtime_r(&now, &parts);
    text.assign(buffer, std::strftime(buffer, sizeof buffer, "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts));
  }
  return text;
}

}  // namespace

// The face of a connection towards one request; it outlives the connection where a call still holds it.
class Connection::Exchange : public HttpExchange {
 public:
  Exchange(Connection* connection, std::string id)
      : connection_(connection), loop_(connection->thread()->loop), id_(std::move(id)) {}

  void Respond(HttpResponse response) override {
    if (connection_ != nullptr) Detach()->SendResponse(std::move(response));
  }
  void StartStream(HttpHeaders headers) override {
    if (connection_ != nullptr) connection_->SendStreamHead(headers);
  }
  void Write(std::string_view bytes) override {
    if (connection_ != nullptr) connection_->SendStreamPart(bytes);
  }
  void Finish(bool complete) override {
    if (connection_ != nullptr) Detach()->EndStream(complete);
  }
  void OnLeave(std::function<void()> function) override { on_leave_ = std::move(function); }
  void OnSilence(std::function<void()> function) override { on_silence_ = std::move(function); }
  const std::shared_ptr<CallLoop>& loop() const override { return loop_; }
  const std::string& request_id() const override { return id_; }

  void Left() {
    if (connection_ == nullptr) return;
    connection_ = nullptr;
    on_silence_ = nullptr;
    const auto function = std::move(on_leave_);
    on_leave_ = nullptr;
    if (function) function();
  }
  void Silence() {
    const auto function = on_silence_;  // it may end the exchange
    if (function) function();
  }

 private:
  Connection* Detach() {
    Connection* connection = connection_;
    connection_ = nullptr;
    on_leave_ = on_silence_ = nullptr;
    return connection;
  }

  Connection* connection_;
  const std::shared_ptr<CallLoop> loop_;
  const std::string id_;
  std::function<void()> on_leave_, on_silence_;
};

Connection::Connection(Tcp::socket socket, IoThread* thread) : socket_(std::move(socket)), thread_(thread) {
  thread_->connections.insert(this);
  Enter(Phase::kIdle, thread_->limits.idle_millis);
}

Connection::~Connection() {
  if (exchange_ != nullptr) exchange_->Left();
  thread_->connections.erase(this);
  thread_->total->fetch_sub(1);
}

void Connection::Enter(Phase phase, int64_t millis) {
  phase_ = phase;
  deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(millis);
}

asio::awaitable<void> Connection::Run() {
  const auto self = shared_from_this();
  boost::system::error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(Tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
  bool more = true;
  while (more && !broken_ && !thread_->stopping) {
    more = co_await ReadHead();
    if (more) {
      more = co_await Serve();
    }
  }
  if (!broken_) {
    co_await Linger();
  }
  socket_.close(ignored);
  co_return;
}

asio::awaitable<bool> Connection::ReadMore(size_t bytes) {
  const size_t old = input_.size();
  input_.resize(old + bytes);
  const auto [error, count] = co_await socket_.async_read_some(asio::buffer(input_.data() + old, bytes), kToken);
  input_.resize(old + (error ? 0 : count));
  read_error_ = error;
  co_return !error;
}

asio::awaitable<bool> Connection::ReadHead() {
  const ServerLimits& limits = thread_->limits;
  if (input_.empty()) {
    Enter(Phase::kIdle, limits.idle_millis);
    std::string().swap(input_);  // an idle connection holds no buffers
    std::string().swap(out_);
    const auto [error] = co_await socket_.async_wait(Tcp::socket::wait_read, kToken);
    if (error || thread_->stopping) {
      broken_ = true;
      co_return false;
    }
  }
  Enter(Phase::kHead, limits.header_millis);
  parser_.emplace();
  parser_->header_limit(uint32_t(limits.header_bytes));
  parser_->body_limit(limits.body_bytes);
  bool in_first_line = true;  // the parser takes whole lines only
  for (;;) {
    if (!input_.empty()) {
      boost::system::error_code error;
      const size_t used = parser_->put(asio::buffer(input_), error);
      input_.erase(0, used);
      in_first_line = in_first_line && used == 0;
      if (error == http::error::body_limit) {  // as the Content-Length says
        Refuse(ErrorCode::kPayloadTooLarge, fmt::format("The body is larger than {} bytes; send less.", limits.body_bytes));
        co_return false;
      }
      if (parser_->is_header_done()) co_return true;
      if (in_first_line && std::min(input_.find('\n'), input_.size()) > limits.uri_bytes + 32) {
        Refuse(ErrorCode::kUriTooLong, fmt::format("The address of this request is longer than {} bytes.", limits.uri_bytes));
        co_return false;
      }
      if (error == http::error::header_limit || input_.size() > limits.header_bytes) {
        Refuse(ErrorCode::kHeadersTooLarge,
               fmt::format("The headers of this request are larger than {} bytes.", limits.header_bytes));
        co_return false;
      }
      if (error && error != http::error::need_more) {
        Refuse(ErrorCode::kInvalidRequest, "This is not an HTTP/1.1 request that the server understands.");
        co_return false;
      }
    }
    const bool more = co_await ReadMore(kReadBytes);
    if (!more) {
      if (timed_out_) {
        Refuse(ErrorCode::kRequestTimeout, "The headers of the request did not arrive in time.");
      } else {
        broken_ = true;
      }
      co_return false;
    }
  }
}

asio::awaitable<bool> Connection::ReadBody() {
  const ServerLimits& limits = thread_->limits;
  Enter(Phase::kBody, limits.body_millis);
  const Moment start = std::chrono::steady_clock::now();
  parser_->eager(true);
  int64_t arrived = 0;
  while (!parser_->is_done()) {
    if (!input_.empty()) {
      boost::system::error_code error;
      const size_t used = parser_->put(asio::buffer(input_), error);
      arrived += int64_t(used);
      input_.erase(0, used);
      if (error == http::error::body_limit) {
        exchange_->Respond(
            ErrorResponse({.code = ErrorCode::kPayloadTooLarge,
                           .message = fmt::format("The body is larger than {} bytes; send less.", limits.body_bytes)}));
        co_return false;
      }
      if (error && error != http::error::need_more) {
        HttpResponse response =
            ErrorResponse({.code = ErrorCode::kInvalidRequest, .message = "The body of this request is not framed correctly."});
        response.close = true;
        exchange_->Respond(std::move(response));
        co_return false;
      }
      if (parser_->is_done()) break;
    }
    // Whoever keeps sending gets more time, so that a large body may take longer than a trickle.
    deadline_ = start + std::chrono::milliseconds(limits.body_millis +
                                                  arrived * 1000 / std::max<int64_t>(1, limits.body_bytes_per_second));
    const bool more = co_await ReadMore(kBodyReadBytes);
    if (!more) {
      if (timed_out_) {
        HttpResponse response =
            ErrorResponse({.code = ErrorCode::kRequestTimeout, .message = "The body of the request did not arrive in time."});
        response.close = true;
        exchange_->Respond(std::move(response));
      } else {
        Leave();
      }
      co_return false;
    }
  }
  co_return true;
}

void Connection::BeginExchange() {
  const auto& message = parser_->get();
  const auto field = [&](boost::beast::string_view name) {
    const auto it = message.find(name);
    return it == message.end() ? std::string() : std::string(View(it->value()));
  };
  head_ = {.method = std::string(View(message.method_string())),
           .target = std::string(View(message.target())),
           .authorization = field("Authorization"),
           .api_key = field("x-api-key"),
           .request_id = field("x-request-id"),
           .origin = field("Origin"),
           .requested_headers = field("Access-Control-Request-Headers")};
  request_id_ = ChooseRequestId(head_.request_id, thread_->limits.request_id_bytes);
  keep_ = parser_->keep_alive();
  chunked_ = message.version() >= 11;
  cors_ = thread_->routes->CorsHeaders(head_);
  streaming_ = ended_ = done_ = over_ = false;
  status_ = 0;
  busy_since_ = last_write_ = std::chrono::steady_clock::now();
  exchange_ = std::make_shared<Exchange>(this, request_id_);
}

std::optional<HttpResponse> Connection::CheckLimits() const {
  const ServerLimits& limits = thread_->limits;
  if (head_.target.size() > limits.uri_bytes) {
    return ErrorResponse({.code = ErrorCode::kUriTooLong,
                          .message = fmt::format("The address of this request has {} bytes but the limit is {}.",
                                                 head_.target.size(), limits.uri_bytes)});
  }
  const auto length = parser_->content_length();
  if (length && *length > limits.body_bytes) {
    return ErrorResponse(
        {.code = ErrorCode::kPayloadTooLarge,
         .message = fmt::format("The body has {} bytes but the limit is {}; send less.", *length, limits.body_bytes)});
  }
  return std::nullopt;
}

asio::awaitable<bool> Connection::Serve() {
  BeginExchange();
  std::optional<HttpResponse> early = CheckLimits();
  if (!early) early = thread_->routes->CheckHead(head_);
  if (early) {
    if (!parser_->is_done()) early->close = true;  // its body stays unread
    exchange_->Respond(std::move(*early));
  } else if (parser_->is_done()) {
    Enter(Phase::kBusy, 0);
    thread_->routes->Handle(head_, exchange_);
  } else {
    const auto expect = parser_->get().find(http::field::expect);
    if (expect != parser_->get().end() && input_.empty()) {
      out_ += "HTTP/1.1 100 Continue\r\n\r\n";
      Flush();
    }
    const bool whole = co_await ReadBody();
    if (whole) {
      Enter(Phase::kBusy, 0);
      HttpRequest request = head_;
      request.body = std::move(parser_->get().body());
      thread_->routes->Handle(std::move(request), exchange_);
    } else {
      keep_ = false;
    }
  }
  parser_.reset();
  Enter(Phase::kBusy, 0);
  if (Service* service = thread_->routes->service()) service->metrics().SetConnections(thread_->total->load());
  co_await WaitForEnd();
  if (status_ != 0)
    thread_->routes->Count(head_, status_, double(MillisBetween(busy_since_, std::chrono::steady_clock::now())) * 1e-3);
  exchange_ = nullptr;
  timed_out_ = false;
  co_return keep_ && !broken_;
}

// Reads on while the answer is made: the end of the input means that the client has left.
// (GCC 12 miscompiles co_await inside conditions and branches without braces: each has its own statement here.)
asio::awaitable<void> Connection::WaitForEnd() {
  while (!done_) {
    if (input_.size() >= kAheadBytes) {
      co_await WaitForDone();
    } else {
      const bool more = co_await ReadMore(kReadBytes);
      if (!more && !done_ && read_error_ != asio::error::operation_aborted) Leave();
    }
  }
  co_return;
}

asio::awaitable<void> Connection::WaitForDone() {
  done_timer_ = std::make_unique<asio::steady_timer>(socket_.get_executor(), Moment::max());
  [[maybe_unused]] const auto [cancelled] = co_await done_timer_->async_wait(kToken);
  done_timer_ = nullptr;
  co_return;
}

// What the peer may still be sending is read and dropped for a moment: closing at once could destroy the answer on its way.
asio::awaitable<void> Connection::Linger() {
  Enter(Phase::kLinger, kLingerMillis);
  boost::system::error_code ignored;
  socket_.shutdown(Tcp::socket::shutdown_send, ignored);
  size_t dropped = 0;
  input_.clear();
  for (bool more = true; more && dropped < kLingerBytes && !timed_out_;) {
    more = co_await ReadMore(kReadBytes);
    dropped += input_.size();
    input_.clear();
  }
  co_return;
}

void Connection::Refuse(ErrorCode code, std::string message) {
  timed_out_ = false;
  request_id_ = ChooseRequestId({}, 0);
  cors_.clear();
  head_ = {};
  keep_ = false;
  HttpResponse response = ErrorResponse({.code = code, .message = std::move(message)});
  response.close = true;
  ended_ = done_ = false;
  SendResponse(std::move(response));
}

void Connection::AppendHead(int status, std::string_view content_type, const HttpHeaders& headers, bool close) {
  status_ = status;
  if (close || thread_->stopping) keep_ = false;
  fmt::format_to(std::back_inserter(out_), "HTTP/1.1 {} {}\r\n", status, Reason(status));
  out_ += DateHeader();
  if (!content_type.empty()) fmt::format_to(std::back_inserter(out_), "Content-Type: {}\r\n", content_type);
  fmt::format_to(std::back_inserter(out_), "x-request-id: {}\r\n", request_id_);
  for (const auto& [name, value] : headers) fmt::format_to(std::back_inserter(out_), "{}: {}\r\n", name, value);
  for (const auto& [name, value] : cors_) fmt::format_to(std::back_inserter(out_), "{}: {}\r\n", name, value);
  out_ += keep_ ? (chunked_ ? "" : "Connection: keep-alive\r\n") : "Connection: close\r\n";
}

void Connection::SendResponse(HttpResponse response) {
  AppendHead(response.status, response.content_type, response.headers, response.close);
  if (response.status != 204) fmt::format_to(std::back_inserter(out_), "Content-Length: {}\r\n", response.body.size());
  out_ += "\r\n";
  if (head_.method != "HEAD") out_ += response.body;
  ended_ = true;
  Flush();
}

void Connection::SendStreamHead(const HttpHeaders& headers) {
  streaming_ = true;
  AppendHead(200, "text/event-stream", headers, !chunked_);
  out_ += chunked_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n";
  Flush();
}

void Connection::SendStreamPart(std::string_view bytes) {
  if (bytes.empty()) return;
  if (chunked_) fmt::format_to(std::back_inserter(out_), "{:x}\r\n", bytes.size());
  out_ += bytes;
  if (chunked_) out_ += "\r\n";
  last_write_ = std::chrono::steady_clock::now();
  Flush();
  if (pending() <= thread_->limits.stream_buffer_hard_bytes) return;
  if (thread_->routes->service() != nullptr) thread_->routes->service()->metrics().CountSlowClient();
  Leave();
}

void Connection::EndStream(bool complete) {
  if (complete && chunked_) out_ += "0\r\n\r\n";
  if (!complete) keep_ = false;
  ended_ = true;
  Flush();
}

void Connection::Flush() {
  if (waits_to_write_ || broken_) return;
  if (out_at_ == 0) last_progress_ = std::chrono::steady_clock::now();
  while (pending() > 0) {
    boost::system::error_code error;
    const size_t count = socket_.write_some(asio::buffer(out_.data() + out_at_, pending()), error);
    if (error == asio::error::would_block || error == asio::error::try_again) {
      waits_to_write_ = true;
      socket_.async_wait(Tcp::socket::wait_write, [self = shared_from_this()](const boost::system::error_code&) {
        self->waits_to_write_ = false;
        self->Flush();
      });
      break;
    }
    if (error) return Leave();
    out_at_ += count;
    last_progress_ = std::chrono::steady_clock::now();
  }
  if (out_at_ > (64 << 10) || pending() == 0) {
    out_.erase(0, out_at_);
    out_at_ = 0;
  }
  if (pending() == 0 && ended_) Done();
}

void Connection::Done() {
  if (done_) return;
  done_ = true;
  boost::system::error_code ignored;
  socket_.cancel(ignored);  // ends the read that watches for the client's leaving
  if (done_timer_ != nullptr) done_timer_->cancel();
}

void Connection::Leave() {
  if (broken_) return;
  broken_ = true;
  if (!ended_) status_ = 499;
  out_.clear();
  out_at_ = 0;
  if (const auto exchange = exchange_) exchange->Left();
  Done();
}

void Connection::Sweep(Moment now) {
  const ServerLimits& limits = thread_->limits;
  if (broken_) return;
  if (pending() > 0) {
    const bool over = pending() > limits.stream_buffer_bytes && streaming_;
    if (over && !over_) over_since_ = now;
    over_ = over;
    if (MillisBetween(last_progress_, now) > limits.stall_millis ||
        (over && MillisBetween(over_since_, now) > limits.stall_millis)) {
      if (thread_->routes->service() != nullptr) thread_->routes->service()->metrics().CountSlowClient();
      return Leave();
    }
  }
  if (phase_ == Phase::kBusy) {
    if (exchange_ != nullptr && !ended_ && pending() == 0 && MillisBetween(last_write_, now) > limits.ping_millis) {
      last_write_ = now;
      exchange_->Silence();
    }
    return;
  }
  if (now < deadline_ || timed_out_) return;
  timed_out_ = true;
  boost::system::error_code ignored;
  socket_.cancel(ignored);
}

void Connection::StopWhenIdle() {
  if (phase_ != Phase::kIdle && phase_ != Phase::kHead) return;
  broken_ = true;
  boost::system::error_code ignored;
  socket_.cancel(ignored);
}

void Connection::Abort() {
  Leave();
  boost::system::error_code ignored;
  socket_.cancel(ignored);
}

}  // namespace kvasir
