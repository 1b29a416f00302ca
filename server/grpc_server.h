// GrpcServer: the gRPC front (proto/kvasir.proto) on the callback API: one small object per call, no thread per stream. It turns
// messages into the same GenerateRequest the HTTP front builds, so both give the same verdict and the same tokens. Serves
// grpc.health.v1 (per service and overall) and, if wanted, reflection.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/status.h"
#include "server/service.h"

namespace kvasir {

class ApiKeys;

struct GrpcServerOptions {
  std::string host = "127.0.0.1";
  int port = 8001;  // 0 = any free one
  bool reflection = true;
};

class GrpcServer {
 public:
  // Listens and serves. Unavailable names address and port. service and keys outlive the server.
  static StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options, Service* service, const ApiKeys* keys);
  virtual ~GrpcServer() = default;
  virtual int port() const = 0;
  // Health says NOT_SERVING from now on; calls go on.
  virtual void BeginDrain() = 0;
  // Ends what is left after `timeout_micros` and stops listening.
  virtual void Stop(int64_t timeout_micros) = 0;
};

}  // namespace kvasir
