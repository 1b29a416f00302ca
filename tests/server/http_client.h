// A tiny blocking HTTP client for tests: raw sockets, so that tests can send what no library would.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace kvasir {

class Socket {
 public:
  explicit Socket(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(uint16_t(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~Socket() { Close(); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool connected() const { return connected_; }
  int fd() const { return fd_; }
  bool Send(std::string_view data) {
    while (!data.empty()) {
      const ssize_t sent = ::send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      data.remove_prefix(size_t(sent));
    }
    return true;
  }
  // What is there, at most `limit`; empty at the end, on an error, or after the timeout.
  std::string Receive(size_t limit = 65536, int timeout_millis = 20000) {
    pollfd poll_fd{fd_, POLLIN, 0};
    if (::poll(&poll_fd, 1, timeout_millis) <= 0) {
      timed_out_ = true;
      return {};
    }
    std::string data(limit, '\0');
    const ssize_t count = ::recv(fd_, data.data(), limit, 0);
    data.resize(count > 0 ? size_t(count) : 0);
    return data;
  }
  std::string ReceiveAll(int timeout_millis = 20000) {
    std::string all;
    for (std::string part = Receive(65536, timeout_millis); !part.empty(); part = Receive(65536, timeout_millis)) all += part;
    return all;
  }
  bool timed_out() const { return timed_out_; }
  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void Reset() {  // RST instead of FIN
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    Close();
  }

 private:
  int fd_;
  bool connected_ = false, timed_out_ = false;
};

struct Answer {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks joined
  bool complete = false;                       // Content-Length or the last chunk was reached

  nlohmann::json Json() const { return nlohmann::json::parse(body, nullptr, false); }
  // The data of each event; "[DONE]" included as a string.
  std::vector<nlohmann::json> Events() const {
    std::vector<nlohmann::json> events;
    for (size_t at = 0; at < body.size();) {
      const size_t end = std::min(body.find("\n\n", at), body.size());
      const std::string line = body.substr(at, end - at);
      if (line == "data: [DONE]")
        events.emplace_back("[DONE]");
      else if (line.rfind("data: ", 0) == 0)
        events.push_back(nlohmann::json::parse(line.substr(6), nullptr, false));
      at = end + 2;
    }
    return events;
  }
};

inline std::string RequestText(std::string_view method, std::string_view target, std::string_view body = {},
                               std::string_view headers = {}) {
  std::string text = std::string(method) + " " + std::string(target) + " HTTP/1.1\r\nHost: test\r\n" + std::string(headers);
  if (!body.empty() || method == "POST")
    text += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  return text + "\r\n" + std::string(body);
}

// Reads one answer from a socket; `rest` keeps what came after it.
inline Answer ReadAnswer(Socket& socket, std::string* rest = nullptr, bool head_only = false) {
  Answer answer;
  std::string data = rest != nullptr ? *rest : std::string();
  const auto more = [&] {
    const std::string part = socket.Receive();
    data += part;
    return !part.empty();
  };
  size_t end;
  while ((end = data.find("\r\n\r\n")) == std::string::npos) {
    if (!more()) return answer;
  }
  if (data.size() > 12) answer.status = std::atoi(data.c_str() + 9);
  for (size_t at = data.find("\r\n") + 2; at < end;) {
    const size_t line_end = data.find("\r\n", at);
    const size_t colon = data.find(':', at);
    std::string name = data.substr(at, colon - at);
    for (char& c : name) c = char(std::tolower(static_cast<unsigned char>(c)));
    answer.headers[name] = data.substr(colon + 2, line_end - colon - 2);
    at = line_end + 2;
  }
  data.erase(0, end + 4);
  if (answer.headers.contains("transfer-encoding")) {
    for (;;) {
      size_t line;
      while ((line = data.find("\r\n")) == std::string::npos) {
        if (!more()) return answer;
      }
      const size_t size = std::stoul(data.substr(0, line), nullptr, 16);
      while (data.size() < line + 2 + size + 2) {
        if (!more()) return answer;
      }
      answer.body += data.substr(line + 2, size);
      data.erase(0, line + 2 + size + 2);
      if (size == 0) break;
    }
    answer.complete = true;
  } else if (!head_only && answer.headers.contains("content-length")) {
    const size_t size = std::stoul(answer.headers["content-length"]);
    while (data.size() < size) {
      if (!more()) return answer;
    }
    answer.body = data.substr(0, size);
    data.erase(0, size);
    answer.complete = true;
  } else {
    answer.complete = true;
  }
  if (rest != nullptr) *rest = data;
  return answer;
}

inline Answer Ask(int port, std::string_view method, std::string_view target, std::string_view body = {},
                  std::string_view headers = {}) {
  Socket socket(port);
  socket.Send(RequestText(method, target, body, headers));
  return ReadAnswer(socket, nullptr, method == "HEAD");
}
inline Answer Post(int port, std::string_view target, const nlohmann::json& body, std::string_view headers = {}) {
  return Ask(port, "POST", target, body.dump(), headers);
}

}  // namespace kvasir
