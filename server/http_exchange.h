// One HTTP request and the way to answer it, as plain data and a small interface, so that routes know nothing of sockets or
// Boost.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/call_loop.h"
#include "server/status.h"

namespace kvasir {

struct HttpRequest {
  std::string method, target;                                                 // as sent
  std::string authorization, api_key, request_id, origin, requested_headers;  // headers that matter here; empty = absent
  std::string body;
  // Filled by HttpRoutes::CheckHead.
  std::string path;    // canonical: decoded once, no query
  std::string tenant;  // from the key; empty where no keys are used
  int route = -1;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  HttpHeaders headers;
  std::string body;
  bool close = false;
};

// The answer to `error`, with the headers the error table asks for.
HttpResponse ErrorResponse(const ApiError& error);

// Everything here is for the I/O thread of the connection (the one of loop()). After the client has left, calls do nothing.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual void Respond(HttpResponse response) = 0;    // the whole answer; at most once, and not after StartStream
  virtual void StartStream(HttpHeaders headers) = 0;  // 200 and text/event-stream
  virtual void Write(std::string_view bytes) = 0;     // part of the stream
  // Ends the stream. `complete` false: the connection is closed after it, so that the client sees that something is missing.
  virtual void Finish(bool complete) = 0;
  virtual void OnLeave(std::function<void()> function) = 0;    // called once when the client leaves before the end
  virtual void OnSilence(std::function<void()> function) = 0;  // called when nothing was written for a while
  virtual const std::shared_ptr<CallLoop>& loop() const = 0;
  virtual const std::string& request_id() const = 0;
};

}  // namespace kvasir
