// A raw HTTP server on a loopback port for tests of HTTP clients: the test's function answers each request with bytes, so that it
// can send what no library would: cut bodies, lies, nonsense. One thread per connection.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

struct SeenRequest {
  std::string method, target;
  std::map<std::string, std::string> headers;  // names in lower case

  std::string Header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
};

struct RawAnswer {
  std::string bytes;
  bool close = false;          // after the bytes
  int stall_millis = 0;        // before the bytes
  std::function<void()> then;  // after the bytes, before the next request
};

// "HTTP/1.1 STATUS X", the headers (each ending with \r\n), Content-Length and the body.
inline RawAnswer Answer200(std::string_view body, std::string_view headers = "", int status = 200) {
  return {fmt::format("HTTP/1.1 {} X\r\n{}Content-Length: {}\r\n\r\n{}", status, headers, body.size(), body)};
}

class ScriptedServer {
 public:
  using Script = std::function<RawAnswer(const SeenRequest&)>;
  explicit ScriptedServer(Script script) : script_(std::move(script)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    KVASIR_CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0 && ::listen(listener_, 64) == 0, "no port");
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~ScriptedServer() {
    stopping_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    {
      const std::lock_guard lock(mutex_);
      for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
    ::close(listener_);
  }
  ScriptedServer(const ScriptedServer&) = delete;
  ScriptedServer& operator=(const ScriptedServer&) = delete;

  int port() const { return port_; }
  // By address or by name: two origins for the same server.
  std::string Url(std::string_view host = "127.0.0.1") const { return fmt::format("http://{}:{}", host, port_); }
  int connections() const { return connections_; }
  std::vector<SeenRequest> Seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  void Accept() {
    while (!stopping_) {
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      ++connections_;
      const std::lock_guard lock(mutex_);
      open_.push_back(fd);
      threads_.emplace_back([this, fd] { Serve(fd); });
    }
  }

  void Serve(int fd) {
    std::string data;
    while (true) {
      size_t end;
      while ((end = data.find("\r\n\r\n")) == std::string::npos) {
        char piece[4096];
        const ssize_t got = ::recv(fd, piece, sizeof piece, 0);
        if (got <= 0) return Close(fd);
        data.append(piece, size_t(got));
      }
      SeenRequest request = Parse(data.substr(0, end + 2));
      data.erase(0, end + 4);
      {
        const std::lock_guard lock(mutex_);
        seen_.push_back(request);
      }
      const RawAnswer answer = Ask(request);
      for (int waited = 0; waited < answer.stall_millis && !stopping_; waited += 10)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      std::string_view bytes = answer.bytes;
      while (!bytes.empty()) {
        const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent <= 0) return Close(fd);
        bytes.remove_prefix(size_t(sent));
      }
      if (answer.then) answer.then();
      if (answer.close) return Close(fd);
    }
  }

  // One script at a time, so that tests may count in them.
  RawAnswer Ask(const SeenRequest& request) {
    const std::lock_guard lock(script_mutex_);
    return script_(request);
  }

  void Close(int fd) {
    const std::lock_guard lock(mutex_);
    open_.remove(fd);
    ::close(fd);
  }

  static SeenRequest Parse(const std::string& head) {
    SeenRequest request;
    const size_t line_end = head.find("\r\n");
    const size_t first = head.find(' '), second = head.find(' ', first + 1);
    request.method = head.substr(0, first);
    request.target = head.substr(first + 1, second - first - 1);
    for (size_t at = line_end + 2; at < head.size();) {
      const size_t end = head.find("\r\n", at);
      const size_t colon = head.find(':', at);
      std::string name = head.substr(at, colon - at);
      for (char& c : name) c = char(std::tolower(uint8_t(c)));
      request.headers[name] = head.substr(colon + 2, end - colon - 2);
      at = end + 2;
    }
    return request;
  }

  const Script script_;
  std::mutex script_mutex_;
  int listener_ = -1, port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<int> connections_{0};
  mutable std::mutex mutex_;
  std::vector<SeenRequest> seen_;
  std::list<int> open_;
  std::list<std::thread> threads_;
  std::thread acceptor_;
};

}  // namespace kvasir
