// Between the messages of kvasir.proto and the plain structs of the service. Pure functions; used by the gRPC front only.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "kvasir.grpc.pb.h"
#include "server/service.h"

namespace kvasir {

class ApiKeys;

// The "authorization: Bearer KEY" metadata against the keys; sets the tenant.
ApiError Authorize(const grpc::CallbackServerContext& context, const ApiKeys& keys, std::string* tenant);

// Fills `out` from the message. Ranges are the service's to check; here only what cannot be represented is refused.
ApiError ReadGenerateRequest(const v1::GenerateRequest& message, const ServerLimits& limits, GenerateRequest* out);
ApiError ReadChat(const v1::Chat& message, const ServerLimits& limits, ChatInput* out);

void FillModelInfo(const Service& service, v1::ModelInfo* out);
void FillStats(const Service& service, v1::Stats* out);
void FillLogprobs(const Tokenizer& tokenizer, const SampleResult& sample, v1::Logprobs* out);

// The status of an error, with "retry-after-ms" as trailing metadata where waiting helps.
grpc::Status ToGrpcStatus(const ApiError& error, grpc::CallbackServerContext* context);

// protobuf strings must be valid UTF-8: a piece that is part of a character is replaced (its bytes field has it).
std::string ValidUtf8(std::string_view bytes);

}  // namespace kvasir
