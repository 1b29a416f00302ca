// The device seam: memory, packed weights and the fused ops a decoder needs. Implemented by ReferenceDevice (the oracle, naive
// and clear), CpuDevice (SIMD, threads) and later CudaDevice. Used by models (loading and Forward) and scheduler (executor).
//
// Contract for every op:
//  * Buffers are device memory from Allocate. Activations are float32 [rows, width], row-major, 64-byte aligned.
//  * Host arrays (ids, positions, plans) are read before the call returns.
//  * The reduction order of an output element depends only on its own row, its weight and its KV: never on the other rows of the
//    call, on how a prompt was cut into chunks, or on the number of threads. So results are bit-identical alone, batched,
//    chunked, resumed from a prefix hit, and for any --threads. (Idea 4, "one answer".)
//  * Attention reads K and V back as stored in the pages, also for the tokens just appended.
//  * Ops of one device are called from one thread; they may run asynchronously until Synchronize.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/kv_page.h"
#include "kernels/sampling.h"
#include "kernels/status.h"
#include "kernels/tensor.h"

namespace kvasir {

struct DeviceInfo {
  std::string name;       // "cpu avx512_bf16, 2 threads"
  std::string backend;    // "cpu", "reference", "cuda"
  size_t memory_bytes = 0;  // memory the process may still take, as the system reports it
};

// Rotary tables are built on the host by models/ (all scalings live there): cos and sin of [position, rotary_dim / 2].
struct RopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int rotary_dim = 0;      // <= head_dim; the half-split layout of Hugging Face (pairs are i and i + rotary_dim / 2)
  int64_t num_positions = 0;
};

// The query rows of one sequence in a step.
struct SequenceSlice {
  int32_t first_row = 0;   // of its query rows among the step's rows
  int32_t num_rows = 0;    // tokens computed in this step (1 when decoding)
  int32_t kv = 0;          // index into PagedKv
};

// Row i of a slice sees the slots [max(0, s - window), s) with s = num_slots - num_rows + i + 1 of each head's PageRun:
// every older kept slot, itself and the new tokens before it.
struct AttentionParams {
  int num_q_heads = 0;
  float scale = 0;         // usually 1 / sqrt(head_dim)
  int window = 0;          // sliding window in tokens (a token sees itself and window - 1 before it); 0 = all
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceInfo Info() const = 0;

  // --- memory -----------------------------------------------------------------------------------------------------
  // 64-byte aligned, zeroed, owned by the device until Free or its destruction. ResourceExhausted names what was asked and what is there.
  virtual StatusOr<void*> Allocate(size_t bytes, std::string_view what) = 0;
  virtual void Free(void* buffer) = 0;
  virtual void CopyToDevice(void* dst, const void* host, size_t bytes) = 0;
  virtual void CopyToHost(void* host, const void* src, size_t bytes) = 0;
  virtual void CopyOnDevice(void* dst, const void* src, size_t bytes) = 0;  // a whole block: copy-on-write
  virtual Status Synchronize() = 0;  // waits; an error here means the device is lost and nothing computed since is to be used

  // --- weights ----------------------------------------------------------------------------------------------------
  // Packs the matrices, one under another (same cols), as one linear weight; values are converted to `dtype`.
  virtual StatusOr<Weight> PackLinear(std::span<const HostMatrix> parts, DType dtype) = 0;
  virtual StatusOr<Weight> PackEmbedding(const HostMatrix& table, DType dtype) = 0;  // row-gather layout
  virtual StatusOr<Weight> PackVector(std::span<const HostMatrix> parts) = 0;        // norm weights and biases, as float32, concatenated

  // --- ops --------------------------------------------------------------------------------------------------------
  // out[i, :] = table[ids[i], :]                                             out [n, cols]
  virtual void Embed(const Weight& table, std::span<const int32_t> ids, float* out) = 0;
  // residual[i, :] += delta[i, :] (when delta != nullptr); out = RMSNorm(residual) * weight.  [rows, width]
  virtual void AddRmsNorm(float* residual, const float* delta, const Weight& weight, float eps, int rows, float* out) = 0;
  // out[i, :] = in[i, :] * weight^T (+ bias).   in [rows, weight.cols], out [rows, weight.rows]. With a bfloat16 weight the
  // inputs are rounded to bfloat16 first; products and sums are float32.
  virtual void Linear(const float* in, int rows, const Weight& weight, const Weight* bias, float* out) = 0;
  // qkv [rows, (Hq + 2 Hkv) * head_dim] = per row q heads, k heads, v heads. Rotates q (written to q_out [rows, Hq * head_dim]) and k
  // by positions[row], and stores k and v of each slice's rows at its last num_rows slots of every (layer, head).
  virtual void RopeAppend(const float* qkv, std::span<const int32_t> positions, const RopeTable& rope, int num_q_heads, int layer,
                          std::span<const SequenceSlice> slices, const PagedKv& kv, float* q_out) = 0;
  // out [rows, Hq * head_dim]; query head h reads KV head h / (Hq / Hkv).
  virtual void Attention(const float* q, int layer, const AttentionParams& params, std::span<const SequenceSlice> slices,
                         const PagedKv& kv, float* out) = 0;
  // out[i, j] = silu(gate_up[i, j]) * gate_up[i, width + j].      gate_up [rows, 2 * width], out [rows, width]
  virtual void GatedSilu(const float* gate_up, int rows, int width, float* out) = 0;
  // out[i, :] = in[row_ids[i], :]                                  [n, width]
  virtual void GatherRows(const float* in, std::span<const int32_t> row_ids, int width, float* out) = 0;
  // Samples one token for each row of logits [rows.size(), vocab]. logits are left as they were.
  virtual void Sample(const float* logits, int vocab, std::span<const SampleRow> rows, std::span<SampleResult> results) = 0;
  // Raw log-probability and rank of a given token per row, and the `num_top` most likely ones (prompt_logprobs).
  virtual void ScoreTokens(const float* logits, int vocab, std::span<const int32_t> tokens, std::span<const int32_t> num_top,
                           std::span<SampleResult> results) = 0;
};

// The oracle: every op as its definition reads, one thread, double accumulation. Pages are plain [slot][head_dim].
std::unique_ptr<Device> MakeReferenceDevice();

struct CpuDeviceOptions {
  int threads = 0;   // 0 = as many as the process may use (affinity and cgroup quota)
  std::string isa;   // "", or one of CpuIsaNames(); KVASIR_CPU_ISA does the same for a whole process
};
// ISAs this machine can run, best first: "avx512_bf16", "avx512", "avx2", "portable".
std::vector<std::string> CpuIsaNames();
StatusOr<std::unique_ptr<Device>> MakeCpuDevice(const CpuDeviceOptions& options);

}  // namespace kvasir
