#include "server/hub_http.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <optional>

namespace kvasir {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Time = std::chrono::steady_clock;
using Parser = http::response_parser<http::buffer_body>;

constexpr size_t kReadBytes = 256 << 10;
constexpr uint32_t kHeaderBytes = 64 << 10;
constexpr std::chrono::milliseconds kHeaderTime{60'000};  // for the whole header, however it drips
// A body slower than this over a whole window is given up: a peer that drips bytes must not hold us for ever.
constexpr std::chrono::milliseconds kSlowWindow{60'000};
constexpr uint64_t kSlowBytes = 60 << 10;
constexpr int kMaxInterim = 8;  // answers with status 1xx

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = char(std::tolower(uint8_t(c)));
  return out;
}

// Watches that a body keeps coming at a pace worth waiting for.
class Pace {
 public:
  bool TooSlow(uint64_t bytes) {
    bytes_ += bytes;
    const auto now = Time::now();
    if (now - start_ < kSlowWindow) return false;
    const bool slow = bytes_ < kSlowBytes;
    start_ = now;
    bytes_ = 0;
    return slow;
  }

 private:
  Time::time_point start_ = Time::now();
  uint64_t bytes_ = 0;
};

}  // namespace

std::string_view FetchReply::Header(std::string_view name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

class HttpFetcher::Wire {
 public:
  explicit Wire(FetchOptions options) : options_(std::move(options)), tls_context_(asio::ssl::context::tls_client) {}

  StatusOr<FetchReply> Send(const FetchRequest& request, const BodySink& sink) {
    const bool reused = connection_ != nullptr && connection_->origin == request.url.Origin();
    auto reply = Exchange(request, sink);
    // A server may close a kept connection just as we use it; then nothing of an answer came, and a fresh one is tried.
    if (!reply.ok() && reused && !answer_began_ && reply.status().code() == StatusCode::kUnavailable) {
      connection_.reset();
      reply = Exchange(request, sink);
    }
    if (!reply.ok()) connection_.reset();
    return reply;
  }

 private:
  struct Connection {
    explicit Connection(asio::io_context& io) : socket(io) {}
    tcp::socket socket;
    std::optional<asio::ssl::stream<tcp::socket&>> tls;
    boost::beast::flat_buffer buffer;
    std::string origin;
    Proxy proxy;  // host empty = none
  };
  struct Pending {
    bool done = false;
    error_code error;
    size_t bytes = 0;
  };

  // Runs the one operation under way until it ends or its time is up. The error says what was being done.
  Status Finish(Pending& pending, Time::time_point deadline, std::string_view doing) {
    Status stopped = OkStatus();
    while (!pending.done) {
      io_.restart();
      io_.run_one_for(std::chrono::milliseconds(50));
      if (pending.done || !stopped.ok()) continue;
      if (options_.keep_going && !options_.keep_going()) {
        stopped = Cancelled("{}: stopped", doing);
      } else if (Time::now() >= deadline) {
        stopped = DeadlineExceeded("{}: no answer in time", doing);
      }
      if (stopped.ok()) continue;
      resolver_.cancel();
      error_code ignored;
      connection_->socket.close(ignored);
    }
    return stopped;
  }

  Status Connect(const HubUrl& url) {
    KVASIR_ASSIGN_OR_RETURN(const Proxy proxy, ChooseProxy(options_.proxies, url));
    connection_ = std::make_unique<Connection>(io_);
    connection_->origin = url.Origin();
    connection_->proxy = proxy;
    const auto deadline = Time::now() + options_.connect_timeout;
    const std::string host = proxy.host.empty() ? url.host : proxy.host;
    const uint16_t port = proxy.host.empty() ? url.port : proxy.port;
    const std::string doing = proxy.host.empty() ? url.HostPort() : fmt::format("proxy {}:{}", host, port);
    tcp::resolver::results_type addresses;
    Pending resolving;
    resolver_.async_resolve(host, std::to_string(port), [&](error_code error, tcp::resolver::results_type found) {
      resolving = {true, error};
      addresses = std::move(found);
    });
    KVASIR_RETURN_IF_ERROR(Finish(resolving, deadline, "looking up " + host));
    if (resolving.error == asio::error::host_not_found)
      return NotFound("{}: has no address; check the name and that this machine is online", host);
    if (resolving.error) return Unavailable("{}: cannot be looked up: {}", host, resolving.error.message());
    KVASIR_RETURN_IF_ERROR(ConnectToAny(addresses, deadline, doing));
    error_code ignored;
    connection_->socket.set_option(tcp::no_delay(true), ignored);
    if (!url.tls) return OkStatus();
    if (!proxy.host.empty()) KVASIR_RETURN_IF_ERROR(Tunnel(url, proxy));
    return Handshake(url);
  }

  // Tries the addresses in turn, each for a part of the time: where one family leads nowhere (IPv6 without a route that says so),
  // the other still gets its chance, so they alternate.
  Status ConnectToAny(const tcp::resolver::results_type& addresses, Time::time_point deadline, const std::string& doing) {
    std::vector<tcp::endpoint> first, second, all;
    for (const auto& address : addresses) {
      const bool like_first = first.empty() || address.endpoint().protocol() == first[0].protocol();
      (like_first ? first : second).push_back(address.endpoint());
    }
    for (size_t i = 0; i < std::max(first.size(), second.size()); ++i) {
      if (i < first.size()) all.push_back(first[i]);
      if (i < second.size()) all.push_back(second[i]);
    }
    Status problem = NotFound("{}: has no address", doing);
    for (const tcp::endpoint& endpoint : all) {
      Pending connecting;
      connection_->socket.async_connect(endpoint, [&](error_code error) { connecting = {true, error}; });
      const auto share = options_.connect_timeout / std::min<int64_t>(int64_t(all.size()), 4);
      const Status finished = Finish(connecting, std::min(deadline, Time::now() + share), "connecting to " + doing);
      if (finished.code() == StatusCode::kCancelled) return finished;
      if (finished.ok() && !connecting.error) return OkStatus();
      problem = finished.ok() ? Unavailable("{}: cannot connect: {}", doing, connecting.error.message()) : finished;
      error_code ignored;
      connection_->socket.close(ignored);
    }
    return problem;
  }

  Status Tunnel(const HubUrl& url, const Proxy& proxy) {
    const std::string place =
        fmt::format("{}:{}", url.host.find(':') == std::string::npos ? url.host : "[" + url.host + "]", url.port);
    std::string text = fmt::format("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", place);
    if (!proxy.authorization.empty()) text += fmt::format("Proxy-Authorization: {}\r\n", proxy.authorization);
    KVASIR_RETURN_IF_ERROR(Write(text + "\r\n"));
    auto reply = ReadReply(/*bodiless=*/true, kHeaderBytes, {});
    if (!reply.ok()) return AtPlace("proxy " + proxy.host, reply.status());
    connection_->origin = url.Origin();  // proxies that answer with HTTP/1.0 keep the tunnel all the same
    if (reply->status / 100 == 2) return OkStatus();
    return InvalidArgument("proxy {}:{} refused to connect to {} (status {}); check HTTPS_PROXY and NO_PROXY", proxy.host,
                           proxy.port, place, reply->status);
  }

  Status PrepareTls() {
    if (tls_ready_) return OkStatus();
    error_code error;
    if (options_.ca_file.empty()) {
      tls_context_.set_default_verify_paths(error);
    } else {
      tls_context_.load_verify_file(options_.ca_file, error);
    }
    if (error)
      return InvalidArgument("certificates cannot be read from {}: {}; check SSL_CERT_FILE and REQUESTS_CA_BUNDLE",
                             options_.ca_file.empty() ? "the system's store" : options_.ca_file, error.message());
    tls_context_.set_verify_mode(asio::ssl::verify_peer, error);
    SSL_CTX_set_min_proto_version(tls_context_.native_handle(), TLS1_2_VERSION);
    tls_ready_ = !error;
    return error ? Internal("TLS: {}", error.message()) : OkStatus();
  }

  Status Handshake(const HubUrl& url) {
    KVASIR_RETURN_IF_ERROR(PrepareTls());
    auto& tls = connection_->tls.emplace(connection_->socket, tls_context_);
    error_code error;
    asio::ip::make_address(url.host, error);
    if (error) SSL_set_tlsext_host_name(tls.native_handle(), url.host.c_str());  // names only, no addresses
    tls.set_verify_callback(asio::ssl::host_name_verification(url.host), error);
    Pending pending;
    tls.async_handshake(asio::ssl::stream_base::client, [&](error_code result) { pending = {true, result}; });
    KVASIR_RETURN_IF_ERROR(Finish(pending, Time::now() + options_.connect_timeout, "TLS with " + url.HostPort()));
    if (!pending.error) return OkStatus();
    // The host name is checked by the callback, which leaves no code behind when it refuses.
    const long verdict = SSL_get_verify_result(tls.native_handle());
    const bool certificate = verdict != X509_V_OK || ERR_GET_REASON(pending.error.value()) == SSL_R_CERTIFICATE_VERIFY_FAILED;
    if (certificate)
      return InvalidArgument(
          "{}: its TLS certificate cannot be verified: {}; if a proxy or a mirror of your own signs it, set SSL_CERT_FILE to the "
          "certificate of its authority; else check the clock, and that ca-certificates is installed",
          url.Origin(), verdict != X509_V_OK ? X509_verify_cert_error_string(verdict) : "it is for another host");
    return Unavailable("{}: TLS failed: {}", url.Origin(), pending.error.message());
  }

  Status Write(const std::string& text) {
    Pending pending;
    const auto done = [&](error_code error, size_t bytes) { pending = {true, error, bytes}; };
    if (connection_->tls) {
      asio::async_write(*connection_->tls, asio::buffer(text), done);
    } else {
      asio::async_write(connection_->socket, asio::buffer(text), done);
    }
    KVASIR_RETURN_IF_ERROR(Finish(pending, Time::now() + options_.idle_timeout, "sending to " + connection_->origin));
    if (pending.error) return Unavailable("{}: the connection was lost: {}", connection_->origin, pending.error.message());
    return OkStatus();
  }

  // Appends what comes to the buffer; 0 bytes at a proper end of the stream.
  StatusOr<size_t> ReadSome(Time::time_point deadline) {
    Pending pending;
    const auto space = connection_->buffer.prepare(kReadBytes);
    const auto done = [&](error_code error, size_t bytes) { pending = {true, error, bytes}; };
    if (connection_->tls) {
      connection_->tls->async_read_some(space, done);
    } else {
      connection_->socket.async_read_some(space, done);
    }
    deadline = std::min(deadline, Time::now() + options_.idle_timeout);
    KVASIR_RETURN_IF_ERROR(Finish(pending, deadline, "reading from " + connection_->origin));
    connection_->buffer.commit(pending.bytes);
    if (pending.error == asio::error::eof) return size_t{0};
    if (pending.error) return Unavailable("{}: the connection was lost: {}", connection_->origin, pending.error.message());
    return pending.bytes;
  }

  StatusOr<FetchReply> Exchange(const FetchRequest& request, const BodySink& sink) {
    answer_began_ = false;
    if (connection_ == nullptr || connection_->origin != request.url.Origin()) KVASIR_RETURN_IF_ERROR(Connect(request.url));
    const bool through_proxy = !request.url.tls && !connection_->proxy.host.empty();
    std::string text = fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\nConnection: keep-alive\r\n", request.verb,
                                   through_proxy ? request.url.Text() : request.url.target, request.url.HostPort());
    if (through_proxy && !connection_->proxy.authorization.empty())
      text += fmt::format("Proxy-Authorization: {}\r\n", connection_->proxy.authorization);
    for (const auto& [name, value] : request.headers) text += fmt::format("{}: {}\r\n", name, value);
    KVASIR_RETURN_IF_ERROR(Write(text + "\r\n"));
    for (int i = 0; i < kMaxInterim; ++i) {
      auto reply = ReadReply(request.verb == "HEAD", request.body_limit, sink);
      if (!reply.ok() || reply->status / 100 != 1) return reply;
    }
    return InvalidArgument("{}: answers only with status 1xx", connection_->origin);
  }

  static void FillHead(const Parser& parser, FetchReply* reply) {
    reply->status = int(parser.get().result_int());
    for (const auto& field : parser.get()) {
      const std::string_view name(field.name_string().data(), field.name_string().size());
      const std::string_view value(field.value().data(), field.value().size());
      reply->headers.emplace(Lower(name), std::string(value));
    }
  }

  Status Deliver(FetchReply& reply, std::string_view piece, size_t limit, const BodySink& sink) {
    if (piece.empty()) return OkStatus();
    if (sink && (reply.status == 200 || reply.status == 206)) return sink(reply, piece);
    if (reply.body.size() + piece.size() > limit)
      return InvalidArgument("{}: the answer (status {}) has more than {} bytes", connection_->origin, reply.status, limit);
    reply.body += piece;
    return OkStatus();
  }

  // What lies in the buffer goes through the parser; sets *hungry when it needs more.
  Status Parse(Parser& parser, FetchReply& reply, size_t limit, const BodySink& sink, bool* hungry) {
    auto& buffer = connection_->buffer;
    *hungry = buffer.size() == 0;
    while (buffer.size() > 0 && !parser.is_done()) {
      auto& body = parser.get().body();
      body = {piece_.data(), piece_.size(), true};
      error_code error;
      const bool had_head = parser.is_header_done();
      const size_t used = parser.put(buffer.data(), error);
      buffer.consume(used);
      if (error && error != http::error::need_more && error != http::error::need_buffer)
        return InvalidArgument("{}: the answer is not proper HTTP: {}", connection_->origin, error.message());
      if (!had_head && parser.is_header_done()) FillHead(parser, &reply);
      KVASIR_RETURN_IF_ERROR(Deliver(reply, {piece_.data(), piece_.size() - body.size}, limit, sink));
      *hungry = error == http::error::need_more || buffer.size() == 0;
      if (*hungry) break;
    }
    return OkStatus();
  }

  StatusOr<FetchReply> ReadReply(bool bodiless, size_t limit, const BodySink& sink) {
    Parser parser;
    parser.header_limit(kHeaderBytes);
    parser.body_limit(boost::none);
    parser.eager(true);
    parser.skip(bodiless);
    FetchReply reply;
    const auto header_deadline = Time::now() + kHeaderTime;
    std::optional<Pace> pace;
    while (true) {
      bool hungry = false;
      KVASIR_RETURN_IF_ERROR(Parse(parser, reply, limit, sink, &hungry));
      if (parser.is_done()) break;
      if (parser.is_header_done() && !pace) pace.emplace();
      KVASIR_ASSIGN_OR_RETURN(const size_t bytes, ReadSome(pace ? Time::time_point::max() : header_deadline));
      answer_began_ = answer_began_ || bytes > 0;
      if (bytes == 0) {
        error_code error;
        if (parser.is_header_done() && parser.need_eof()) parser.put_eof(error);
        if (parser.is_done()) break;
        return Unavailable("{}: the connection was closed in the middle of an answer", connection_->origin);
      }
      if (pace && pace->TooSlow(bytes))
        return DeadlineExceeded("{}: sends less than {} KiB a minute", connection_->origin, kSlowBytes >> 10);
    }
    // Bytes after a whole answer belong to no request of ours: that connection is not used again.
    const bool reusable = parser.keep_alive() && connection_->buffer.size() == 0;
    if (!reusable && reply.status / 100 != 1) connection_->origin.clear();  // never matches again
    return reply;
  }

  const FetchOptions options_;
  asio::io_context io_;
  tcp::resolver resolver_{io_};
  asio::ssl::context tls_context_;
  bool tls_ready_ = false;
  std::unique_ptr<Connection> connection_;
  bool answer_began_ = false;  // of the exchange under way
  std::string piece_ = std::string(kReadBytes, '\0');
};

HttpFetcher::HttpFetcher(FetchOptions options) : wire_(std::make_unique<Wire>(std::move(options))) {}
HttpFetcher::~HttpFetcher() = default;

StatusOr<FetchReply> HttpFetcher::Send(const FetchRequest& request, const BodySink& sink) {
  return wire_->Send(request, sink);
}

}  // namespace kvasir
