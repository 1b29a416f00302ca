// One streaming Generate call: the reactor gRPC talks to and the sink the service talks to, in one object.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "kvasir.grpc.pb.h"
#include "server/service.h"

namespace kvasir {

// Starts the call (or ends it with `denied`, when that is an error). The reactor frees itself when gRPC is done with it.
grpc::ServerWriteReactor<v1::GenerateEvent>* StartGenerate(Service* service, const std::shared_ptr<CallLoop>& loop,
                                                           grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest& message, ApiError denied,
                                                           std::string tenant);

}  // namespace kvasir
