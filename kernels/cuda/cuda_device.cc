#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cstdlib>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/delta.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/fused.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/sample.h"

namespace kvasir {

// KVASIR_CUDA_GRAPHS=0 starts every step kernel by kernel: to see which one fails, and what graphs are worth.
CudaDevice::CudaDevice(std::unique_ptr<CudaContext> context)
    : context_(std::move(context)), results_(context_.get()), graphs_(context_.get()) {
  const char* const wanted = std::getenv("KVASIR_CUDA_GRAPHS");
  graphs_.Enable(wanted == nullptr || std::string_view(wanted) != "0");
}

DeviceInfo CudaDevice::Info() const {
  return {fmt::format("cuda {}", context_->name()), "cuda", context_->Available(), context_->total_bytes(), ""};
}

StatusOr<void*> CudaDevice::Allocate(size_t bytes, std::string_view what) {
  return context_->Allocate(bytes, what);
}
void CudaDevice::Free(void* buffer) {
  context_->Free(buffer);
}
void CudaDevice::CopyToDevice(void* dst, const void* host, size_t bytes) {
  if (bytes == 0) return;
  context_->Check(cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, context_->stream()), "copying to the device");
  context_->Check(cudaStreamSynchronize(context_->stream()), "waiting for the device");  // the host may change its array now
}
void CudaDevice::CopyToHost(void* host, const void* src, size_t bytes) {
  context_->Download(host, src, bytes);
}
StatusOr<void*> CudaDevice::AllocateHost(size_t bytes, std::string_view what) {
  return context_->AllocateHost(bytes, what);
}
void CudaDevice::FreeHost(void* memory) {
  context_->FreeHost(memory);
}
void CudaDevice::CopyIn(void* dst, const void* host, size_t bytes) {
  context_->CopyBlocks(dst, host, bytes, cudaMemcpyHostToDevice, beside_);
}
void CudaDevice::CopyOut(void* host, const void* src, size_t bytes) {
  context_->CopyBlocks(host, src, bytes, cudaMemcpyDeviceToHost, beside_);
}
void CudaDevice::StartBeside() {
  context_->Fork();
  beside_ = true;
}
void CudaDevice::EndBeside() {
  beside_ = false;
}
void CudaDevice::JoinBeside() {
  context_->Join();
}
void CudaDevice::CopyOnDevice(void* dst, const void* src, size_t bytes) {
  context_->CopyBlocks(dst, src, bytes, cudaMemcpyDeviceToDevice, beside_);
}
Status CudaDevice::Synchronize() {
  return context_->Synchronize();
}
void CudaDevice::StartResults(int num_samples) {
  results_.Start(num_samples);
}
Status CudaDevice::FinishResults() {
  return results_.Finish();
}
StepPlan CudaDevice::StartStep(const StepInput& input, int max_rows) {
  tables_.Prepare(*context_, input, max_rows);
  if (context_->status().ok() && std::any_of(input.token_ids.begin(), input.token_ids.end(), IsPending))
    results_.Resolve(tables_.ids(), int(input.token_ids.size()));
  return {tables_.rows(), !graphs_.Replay(tables_.shape())};
}
bool CudaDevice::FinishStep() {
  if (!graphs_.Finish()) return false;
  tables_.Clear();
  return true;
}

StatusOr<Weight> CudaDevice::PackLinear(std::span<const HostMatrix> parts, DType dtype, QuantFormat quant) {
  return CudaPackLinear(*context_, parts, dtype, quant);
}
StatusOr<Weight> CudaDevice::PackEmbedding(const HostMatrix& table, DType dtype) {
  return CudaPackEmbedding(*context_, table, dtype);
}
StatusOr<Weight> CudaDevice::PackVector(std::span<const HostMatrix> parts) {
  return CudaPackVector(*context_, parts);
}

void CudaDevice::Embed(const Weight& table, std::span<const int32_t> ids, float scale, float* out) {
  for (const int32_t id : ids) KVASIR_CHECK(id < table.rows, "token id {} but the table has {} rows", id, table.rows);
  const StepTables::Numbers there = tables_.Find(*context_, ids);
  if (!there.prepared && there.data != nullptr && std::any_of(ids.begin(), ids.end(), IsPending))
    results_.Resolve(there.data, there.count);
  CudaEmbed(*context_, table, there.data, there.count, scale, out);
}
void CudaDevice::AddNorm(float* residual, const float* delta, float delta_scale, const Norm& norm, int rows, int width,
                         float* out) {
  CudaAddNorm(*context_, residual, delta, delta_scale, norm, rows, width, out);
}
void CudaDevice::Add(float* residual, const float* delta, float scale, int rows, int width) {
  CudaAdd(*context_, residual, delta, scale, rows, width);
}
void CudaDevice::AddGated(float* residual, const float* in, const float* gate, int rows, int width) {
  CudaAddGated(*context_, residual, in, gate, rows, width);
}
void CudaDevice::NormSlices(float* data, int rows, const Slices& slices, const Norm& norm) {
  CudaNormSlices(*context_, data, rows, slices, norm);
}
void CudaDevice::RotateSlices(float* data, int rows, const Slices& slices, std::span<const int32_t> positions,
                              const RopeTable& rope) {
  CudaRotateSlices(*context_, data, rows, slices, positions, tables_.Find(*context_, positions).data, rope);
}
void CudaDevice::CopySlices(const float* in, const Slices& from, int rows, float* out, const Slices& to) {
  CudaCopySlices(*context_, in, from, rows, out, to);
}
void CudaDevice::Activate(const ActivationParams& activation, bool gated, const float* in, int rows, int width, float* out) {
  CudaActivate(*context_, activation, gated, in, rows, width, out);
}
void CudaDevice::ScaleRows(float* data, int rows, int width, float scale, float softcap) {
  CudaScaleRows(*context_, data, rows, width, scale, softcap);
}
void CudaDevice::MultiplyGate(float* data, GateKind kind, const float* gate, int64_t gate_stride, int rows, int width) {
  CudaMultiplyGate(*context_, data, kind, gate, gate_stride, rows, width);
}
void CudaDevice::GatherRows(const float* in, std::span<const int32_t> row_ids, int width, float* out) {
  CudaGatherRows(*context_, in, row_ids, width, out);
}
void CudaDevice::Linear(const float* in, int rows, const Weight& weight, const Weight* bias, float* out) {
  CudaLinear(*context_, in, rows, weight, bias, out);
}
void CudaDevice::LinearHeads(const float* in, int rows, std::span<const Weight> weights, const HeadLinear& at, float* out) {
  CudaLinearHeads(*context_, in, rows, weights, at, out);
}
void CudaDevice::Route(const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights) {
  CudaRoute(*context_, logits, rows, routing, ids, weights);
}
void CudaDevice::Experts(const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation, int top_k,
                         const int32_t* ids, const float* weights, float* out) {
  CudaExperts(*context_, in, rows, experts, activation, top_k, ids, weights, out);
}
void CudaDevice::RopeAppend(const float* qkv, std::span<const int32_t> positions, const RopeTable& rope, int num_q_heads,
                            int layer, std::span<const SequenceSlice> slices, const PagedKv& kv, float* q_out) {
  CudaRopeAppend(*context_, qkv, positions, tables_.Find(*context_, positions).data, rope, num_q_heads, layer,
                 tables_.Get(*context_, slices, kv), q_out);
}
void CudaDevice::AppendLatent(const float* latent, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv) {
  CudaAppendLatent(*context_, latent, layer, tables_.Get(*context_, slices, kv));
}
void CudaDevice::Attention(const float* q, int layer, const AttentionParams& params, std::span<const SequenceSlice> slices,
                           const PagedKv& kv, float* out) {
  CudaAttention(*context_, q, layer, params, tables_.Get(*context_, slices, kv), out);
}
void CudaDevice::CausalConv(const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight, int layer,
                            std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) {
  CudaCausalConv(*context_, in, in_stride, net, weight, layer, tables_.Get(*context_, slices, kv), out);
}
void CudaDevice::DeltaRule(const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net, const Weight& a_log,
                           const Weight& dt_bias, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv,
                           float* out) {
  CudaDeltaRule(*context_, qkv, gates, gate_stride, net, a_log, dt_bias, layer, tables_.Get(*context_, slices, kv), out);
}
void CudaDevice::Sample(const float* logits, int vocab, std::span<const SampleRow> rows, std::span<SampleResult> results) {
  CudaSample(*context_, results_, logits, vocab, rows, results);
}
void CudaDevice::ScoreTokens(const float* logits, int vocab, std::span<const int32_t> tokens, std::span<const int32_t> num_top,
                             std::span<SampleResult> results) {
  CudaScoreTokens(*context_, results_, logits, vocab, tokens, num_top, results);
}

StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int index) {
  KVASIR_ASSIGN_OR_RETURN(std::unique_ptr<CudaContext> context, CudaContext::Create(index));
  return std::unique_ptr<Device>(new CudaDevice(std::move(context)));
}

bool HasCudaDevice() {
  int count = 0;
  const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  cudaGetLastError();  // "no device" is an answer here
  return found;
}

}  // namespace kvasir
