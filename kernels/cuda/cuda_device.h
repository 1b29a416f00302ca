// The Device of the CUDA backend: device memory, weights packed for tensor cores, and the kernels of this folder started one
// after another on one stream. The ops themselves are in the other files here; this one only joins them. Made by MakeCudaDevice
// (kernels/device.h).
//
// Ops return when they are enqueued; only CopyToHost, Synchronize and FinishResults wait, and Sample and ScoreTokens outside of
// a step's results.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/graphs.h"
#include "kernels/cuda/results.h"
#include "kernels/cuda/step.h"
#include "kernels/device.h"

namespace kvasir {

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(std::unique_ptr<CudaContext> context);

  DeviceInfo Info() const override;

  StatusOr<void*> Allocate(size_t bytes, std::string_view what) override;
  void Free(void* buffer) override;
  void CopyToDevice(void* dst, const void* host, size_t bytes) override;
  void CopyToHost(void* host, const void* src, size_t bytes) override;
  StatusOr<void*> AllocateHost(size_t bytes, std::string_view what) override;
  void FreeHost(void* memory) override;
  void CopyIn(void* dst, const void* host, size_t bytes) override;
  void CopyOut(void* host, const void* src, size_t bytes) override;
  void StartBeside() override;
  void EndBeside() override;
  void JoinBeside() override;
  void CopyOnDevice(void* dst, const void* src, size_t bytes) override;
  Status Synchronize() override;
  bool RunsAhead() const override { return true; }
  void StartResults(int num_samples) override;
  Status FinishResults() override;
  StepPlan StartStep(const StepInput& input, int max_rows) override;
  bool FinishStep() override;
  int64_t replayed_steps() const { return graphs_.replayed(); }       // started as a recorded graph
  size_t uploaded_bytes() const { return tables_.uploaded_bytes(); }  // for the step that was started last

  StatusOr<Weight> PackLinear(std::span<const HostMatrix> parts, DType dtype, QuantFormat quant) override;
  StatusOr<Weight> PackEmbedding(const HostMatrix& table, DType dtype) override;
  StatusOr<Weight> PackVector(std::span<const HostMatrix> parts) override;

  void Embed(const Weight& table, std::span<const int32_t> ids, float scale, float* out) override;
  void AddNorm(float* residual, const float* delta, float delta_scale, const Norm& norm, int rows, int width,
               float* out) override;
  void Add(float* residual, const float* delta, float scale, int rows, int width) override;
  void AddGated(float* residual, const float* in, const float* gate, int rows, int width) override;
  void NormSlices(float* data, int rows, const Slices& slices, const Norm& norm) override;
  void RotateSlices(float* data, int rows, const Slices& slices, std::span<const int32_t> positions,
                    const RopeTable& rope) override;
  void CopySlices(const float* in, const Slices& from, int rows, float* out, const Slices& to) override;
  void Linear(const float* in, int rows, const Weight& weight, const Weight* bias, float* out) override;
  void LinearHeads(const float* in, int rows, std::span<const Weight> weights, const HeadLinear& at, float* out) override;
  void RopeAppend(const float* qkv, std::span<const int32_t> positions, const RopeTable& rope, int num_q_heads, int layer,
                  std::span<const SequenceSlice> slices, const PagedKv& kv, float* q_out) override;
  void Attention(const float* q, int layer, const AttentionParams& params, std::span<const SequenceSlice> slices,
                 const PagedKv& kv, float* out) override;
  void AppendLatent(const float* latent, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv) override;
  void Activate(const ActivationParams& activation, bool gated, const float* in, int rows, int width, float* out) override;
  void ScaleRows(float* data, int rows, int width, float scale, float softcap) override;
  void MultiplyGate(float* data, GateKind kind, const float* gate, int64_t gate_stride, int rows, int width) override;
  void CausalConv(const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight, int layer,
                  std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) override;
  void DeltaRule(const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net, const Weight& a_log,
                 const Weight& dt_bias, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) override;
  void Route(const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights) override;
  void Experts(const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation, int top_k,
               const int32_t* ids, const float* weights, float* out) override;
  void GatherRows(const float* in, std::span<const int32_t> row_ids, int width, float* out) override;
  void Sample(const float* logits, int vocab, std::span<const SampleRow> rows, std::span<SampleResult> results) override;
  void ScoreTokens(const float* logits, int vocab, std::span<const int32_t> tokens, std::span<const int32_t> num_top,
                   std::span<SampleResult> results) override;

 private:
  std::unique_ptr<CudaContext> context_;
  StepResults results_;
  StepTables tables_;
  StepGraphs graphs_;
  bool beside_ = false;  // copies of blocks go beside
};

}  // namespace kvasir
