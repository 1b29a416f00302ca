#include "server/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include "server/grpc_generate.h"
#include "server/grpc_messages.h"

namespace kvasir {
namespace {

constexpr char kServiceName[] = "kvasir.v1.Inference";

class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(kvasir::Service* service, const ApiKeys* keys) : service_(service), keys_(keys) {}

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(grpc::CallbackServerContext* context,
                                                        const v1::GenerateRequest* request) override {
    std::string tenant;
    const ApiError denied = Authorize(*context, *keys_, &tenant);
    return StartGenerate(service_, loop_.loop(), context, *request, denied, std::move(tenant));
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return Unary(context, [this, request, response]() -> ApiError {
      std::variant<std::string, ChatInput> input;
      if (request->has_chat()) {
        ChatInput chat;
        if (ApiError error = ReadChat(request->chat(), service_->config().limits, &chat); !error.ok()) return error;
        input = std::move(chat);
      } else {
        input = request->text();
      }
      const auto add = request->has_add_special_tokens() ? std::optional<bool>(request->add_special_tokens()) : std::nullopt;
      const auto ids = service_->Tokenize(input, add);
      if (!ids.ok()) return ToApiError(ids.status());
      for (const int32_t id : *ids) {
        response->add_ids(id);
        response->add_pieces(ValidUtf8(service_->tokenizer().TokenText(id)));
      }
      response->set_max_model_len(service_->max_model_len());
      return {};
    });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return Unary(context, [this, request, response]() -> ApiError {
      const auto text =
          service_->Detokenize({request->ids().data(), size_t(request->ids_size())}, request->skip_special_tokens());
      if (!text.ok()) return ToApiError(text.status());
      response->set_text(*text);
      return {};
    });
  }

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const v1::GetModelInfoRequest*,
                                         v1::ModelInfo* response) override {
    return Unary(context, [this, response]() -> ApiError {
      FillModelInfo(*service_, response);
      return {};
    });
  }

  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context, const v1::GetStatsRequest*,
                                     v1::Stats* response) override {
    return Unary(context, [this, response]() -> ApiError {
      FillStats(*service_, response);
      return {};
    });
  }

 private:
  // Small answers: the key is checked and the work done on the calling gRPC thread.
  template <typename Work>
  grpc::ServerUnaryReactor* Unary(grpc::CallbackServerContext* context, Work work) {
    std::string tenant;
    ApiError error = Authorize(*context, *keys_, &tenant);
    if (error.ok()) error = work();
    auto* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpcStatus(error, context));
    return reactor;
  }

  kvasir::Service* const service_;  // qualified: the generated base class has a Service of its own
  const ApiKeys* const keys_;
  LoopThread loop_;
};

class RunningServer final : public GrpcServer {
 public:
  RunningServer(Service* service, const ApiKeys* keys) : inference_(service, keys) {}
  ~RunningServer() override { Stop(0); }

  Status Listen(const GrpcServerOptions& options) {
    grpc::EnableDefaultHealthCheckService(true);
    if (options.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    const bool v6 = options.host.find(':') != std::string::npos && options.host.front() != '[';
    const std::string address = fmt::format("{}:{}", v6 ? "[" + options.host + "]" : options.host, options.port);
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&inference_);
    builder.SetMaxReceiveMessageSize(64 << 20);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a port that is taken is an error
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1024);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 64 << 10);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return Unavailable(
          "--grpc-port {}: cannot listen on {} (is the address in use?): stop the other server or choose another --grpc-port",
          options.port, address);
    }
    SetHealth(true);
    return OkStatus();
  }

  int port() const override { return port_; }
  void BeginDrain() override { SetHealth(false); }
  void Stop(int64_t timeout_micros) override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::microseconds(timeout_micros));
    server_->Wait();
    server_.reset();
  }

 private:
  void SetHealth(bool serving) {
    if (auto* health = server_->GetHealthCheckService(); health != nullptr) {
      health->SetServingStatus(serving);  // the overall one, ""
      health->SetServingStatus(kServiceName, serving);
    }
  }

  InferenceService inference_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options, Service* service, const ApiKeys* keys) {
  auto server = std::make_unique<RunningServer>(service, keys);
  KVASIR_RETURN_IF_ERROR(server->Listen(options));
  return std::unique_ptr<GrpcServer>(std::move(server));
}

}  // namespace kvasir
