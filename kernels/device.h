// The device seam: memory, packed weights and the fused ops a decoder needs. Implemented by ReferenceDevice (the oracle, naive
// and clear), CpuDevice (SIMD, threads) and CudaDevice. Used by models (loading and Forward) and scheduler (executor).
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
  std::string name;         // "cpu avx512_bf16, 2 threads"
  std::string backend;      // "cpu", "reference", "cuda"
  size_t memory_bytes = 0;  // memory the process may still take, as the system reports it
  size_t total_bytes = 0;   // of a device with memory of its own; 0 = it computes in the host's
  std::string placement;    // what is to be said of threads and memory nodes, for the start's description; mostly empty
};

// Rotary tables are built on the host by models/ (all scalings live there): cos and sin of [position, rotary_dim / 2].
struct RopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int rotary_dim = 0;  // <= head_dim; the half-split layout of Hugging Face (pairs are i and i + rotary_dim / 2)
  int64_t num_positions = 0;
};

// The query rows of one sequence in a step.
struct SequenceSlice {
  int32_t first_row = 0;  // of its query rows among the step's rows
  int32_t num_rows = 0;   // tokens computed in this step (1 when decoding)
  int32_t kv = 0;         // index into PagedKv
};

// Row i of a slice sees the slots [max(0, s - window), s) with s = num_slots - num_rows + i + 1 of each head's PageRun:
// every older kept slot, itself and the new tokens before it.
struct AttentionParams {
  int num_q_heads = 0;
  float scale = 0;    // usually 1 / sqrt(head_dim)
  int window = 0;     // sliding window in tokens (a token sees itself and window - 1 before it); 0 = all
  float softcap = 0;  // > 0: a score is softcap * tanh(scale * q.k / softcap)
  const Weight* sinks =
      nullptr;  // [num_q_heads]: one more logit per head in the softmax's denominator, without a value; not capped
};

// kRms: x / sqrt(mean(x^2) + eps) * weight. kLayer: (x - mean) / sqrt(variance + eps) * weight + bias. No weight: ones, no bias:
// zeros. Weights are vectors; a family whose norm multiplies by 1 + w has had the 1 added at load.
enum class NormKind : uint8_t { kRms, kLayer };
struct Norm {
  NormKind kind = NormKind::kRms;
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;
  float eps = 1e-6f;
};

// Gated: in [rows, 2 * width] = gate half, up half; out = act(gate) * up. Not gated: in [rows, width], out = act(in).
// kSwigluOai (gated only): g = min(gate, limit), u = clamp(up, -limit, limit); out = g * sigmoid(alpha * g) * (u + 1).
enum class Activation : uint8_t { kSilu, kGelu /* by erf */, kGeluTanh, kRelu, kRelu2 /* squared */, kSwigluOai };
enum class GateKind : uint8_t { kSigmoid, kSilu };
// A plain Activation is one with gpt-oss's values.
struct ActivationParams {
  ActivationParams(Activation activation) : kind(activation) {}  // NOLINT(google-explicit-constructor)
  Activation kind;
  float alpha = 1.702f, limit = 7.0f;  // kSwigluOai
};

// Vectors inside rows, for example the heads of q in a fused projection: slice g of row i is the `width` floats at
// data + i * stride + offset + g * group_stride.
struct Slices {
  int64_t stride = 0;
  int64_t offset = 0;
  int groups = 1;
  int64_t group_stride = 0;
  int width = 0;
};

// Where LinearHeads reads and writes: row i of head h at in + i * in_stride + h * in_head_stride; out alike.
struct HeadLinear {
  int64_t in_stride = 0;
  int64_t in_head_stride = 0;
  int64_t out_stride = 0;
  int64_t out_head_stride = 0;
};

// From router logits to the chosen experts of a row and their weights.
struct MoeRouting {
  enum class Score : uint8_t { kSoftmax, kSigmoid, kTopKThenSoftmax /* over the chosen logits */ };
  Score score = Score::kSoftmax;
  int num_experts = 0;
  int top_k = 0;
  bool normalize = false;              // divide the chosen scores by their sum (+ 1e-20 for kSigmoid)
  float scale = 1;                     // then multiply
  const Weight* correction = nullptr;  // [num_experts], added to the scores for choosing only
  // Experts lie in num_groups equal groups, of which the top_groups with the best scores are chosen first: the best of a group's
  // scores, or the sum of its two best. Experts of the other groups are never chosen.
  int num_groups = 1;
  int top_groups = 1;
  bool group_score_top2 = false;
};

// A gated delta net (Yang et al., arXiv 2412.06464): attention whose whole memory of a text is one matrix per head. With q and k
// of each token at length 1 (q then / sqrt(key_dim)), a head's state S [key_dim, value_dim], zero at the text's start, becomes
//   S' = decay * S;   S = S' + k (x) (beta * (v - S'^T k));   its output is S^T q.
// beta = sigmoid(b) and decay = exp(-exp(a_log) * softplus(a + dt_bias)) for the numbers b and a of each token and head.
// Value head h uses the q and k of key head h / (value_heads / key_heads).
// A block of its KV group keeps for each layer all S [value_heads, key_dim, value_dim], then the last `kernel` - 1 inputs of the
// convolution, oldest first [kernel - 1, channels].
inline constexpr float kDeltaNormEps = 1e-6f;  // length of q and k: sqrt(sum of squares + this)
struct DeltaNet {
  int key_heads = 0, value_heads = 0;
  int key_dim = 0, value_dim = 0;
  int kernel = 1;  // tokens that the convolution sees

  constexpr int64_t queries() const { return int64_t{key_heads} * key_dim; }  // width of all q, and of all k
  constexpr int64_t values() const { return int64_t{value_heads} * value_dim; }
  constexpr int64_t channels() const { return 2 * queries() + values(); }
  constexpr int64_t matrix_floats() const { return values() * key_dim; }
  int64_t state_floats() const { return matrix_floats() + (kernel - 1) * channels(); }
};

// The experts of a layer: gate_up[e] [2 * ffn, width] (gate rows, then up rows) and down[e] [width, ffn].
struct MoeWeights {
  std::span<const Weight> gate_up, down;
  std::span<const Weight> gate_up_bias, down_bias;  // empty = none
};

// One step of a model as flat arrays.
struct StepInput {
  std::span<const int32_t> token_ids;  // [num_tokens], all slices one after another; may be pending where the device runs ahead
  std::span<const int32_t> positions;  // [num_tokens]: place of each token in its text (RoPE)
  std::span<const SequenceSlice> slices;
  std::span<const PagedKv> kv;  // one per group of layers; slots for these tokens are already reserved
  // Names the ops that will be called: steps of one program with as many rows get the same ops on the same memory, apart from
  // what is said here. 0: nothing is known of them.
  uint64_t program = 0;
};
// How a step is to be called. Ops get `rows` rows: those of the input, and perhaps some more, of which nothing is to be expected
// and nothing is read or written in KV. Not to compute: the device has done it as it did a step like it before.
struct StepPlan {
  int rows = 0;  // at most the max_rows of StartStep
  bool compute = true;
};

// How a weight was packed: PackLinear, PackEmbedding or PackVector.
enum class PackingKind : uint8_t { kLinear, kEmbedding, kVector };

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceInfo Info() const = 0;

  // --- memory -----------------------------------------------------------------------------------------------------
  // 64-byte aligned, zeroed, owned by the device until Free or its destruction. ResourceExhausted names what was asked and what
  // is there.
  virtual StatusOr<void*> Allocate(size_t bytes, std::string_view what) = 0;
  virtual void Free(void* buffer) = 0;
  virtual void CopyToDevice(void* dst, const void* host, size_t bytes) = 0;
  virtual void CopyToHost(void* host, const void* src, size_t bytes) = 0;
  // Memory of the host that blocks are moved to and from (CopyOut, CopyIn): where the device has memory of its own, such that
  // copies go at the full speed of the link. Not zeroed. The device's until FreeHost.
  virtual StatusOr<void*> AllocateHost(size_t bytes, std::string_view what);
  virtual void FreeHost(void* memory);
  // Of whole blocks, in the order of the ops before and after.
  virtual void CopyIn(void* dst, const void* host, size_t bytes) { CopyToDevice(dst, host, bytes); }
  virtual void CopyOut(void* host, const void* src, size_t bytes) { CopyToHost(host, src, bytes); }
  // Copies of blocks (also CopyOnDevice) between StartBeside and EndBeside come after all that was called before, in their order,
  // and may go on beside what is called afterwards, until JoinBeside: what is called behind it comes after them.
  virtual void StartBeside() {}
  virtual void EndBeside() {}
  virtual void JoinBeside() {}
  virtual void CopyOnDevice(void* dst, const void* src, size_t bytes) = 0;  // a whole block: copy-on-write
  virtual Status Synchronize() = 0;  // waits; an error here means the device is lost and nothing computed since is to be used

  // --- results ----------------------------------------------------------------------------------------------------
  // Whether ops return before they are computed, and a step may be called before the results of the one before it are read. Only
  // then may ids (of Embed, and of what SampleRow says was generated) be pending: they name a sample of the step before.
  virtual bool RunsAhead() const { return false; }
  // What is sampled and scored from here on is a step's: its results are there when FinishResults says so, and where they go must
  // stay until then. Two steps may be started and not finished. Without it Sample and ScoreTokens wait.
  virtual void StartResults(int /*num_samples*/) {}
  // Waits for the oldest step that was started and not finished; an error as of Synchronize.
  virtual Status FinishResults() { return Synchronize(); }

  // --- weights ----------------------------------------------------------------------------------------------------
  // Packs the matrices, one under another (same cols), as one linear weight; values are converted to `dtype`, and then
  // quantised where a format is given. A part that is quantised already must have that format; it is taken as it is.
  // Where the format is ordered, all parts are quantised already and have the same order.
  virtual StatusOr<Weight> PackLinear(std::span<const HostMatrix> parts, DType dtype, QuantFormat quant = {}) = 0;
  virtual StatusOr<Weight> PackEmbedding(const HostMatrix& table, DType dtype) = 0;  // row-gather layout
  virtual StatusOr<Weight> PackVector(
      std::span<const HostMatrix> parts) = 0;  // norm weights and biases, as float32, concatenated

  // Packed weights as bytes that can be kept in a file and brought back. The name covers all that layout and values depend on
  // besides what was packed; "" = this device's weights cannot be kept.
  virtual std::string PackingName() const { return ""; }
  // Bytes of a weight, which lie at weight.packed in host memory when PackingName() is not "". Also of one that is only
  // described.
  virtual size_t PackedBytes(PackingKind /*kind*/, const Weight& /*weight*/) const { return 0; }
  // The described weight, made of PackedBytes bytes at `bytes` (64-byte aligned) in host memory, which may be used in place and
  // stay as they are as long as the weight is used.
  virtual StatusOr<Weight> AdoptPacked(PackingKind /*kind*/, const Weight& /*described*/, const void* /*bytes*/) {
    return Unimplemented("this device keeps no packed weights");
  }

  // --- a step -----------------------------------------------------------------------------------------------------
  // What follows, until FinishStep, is a step over this input, which stays where and as it is: a device with memory of its own
  // takes ids, positions and tables there once, not in every op. Ops are the same with it and without.
  virtual StepPlan StartStep(const StepInput& input, int /*max_rows*/) { return {int(input.token_ids.size()), true}; }
  // The ops of the step have been called, or need not be. False: they must be called once more, in the same way.
  virtual bool FinishStep() { return true; }

  // --- ops --------------------------------------------------------------------------------------------------------
  // out[i, :] = table[ids[i], :] * scale; ids may be pending                 out [n, cols]
  virtual void Embed(const Weight& table, std::span<const int32_t> ids, float scale, float* out) = 0;
  // residual[i, :] += delta_scale * delta[i, :] (when delta != nullptr); out = norm(residual).  [rows, width]
  // out may equal residual only when delta == nullptr.
  virtual void AddNorm(float* residual, const float* delta, float delta_scale, const Norm& norm, int rows, int width,
                       float* out) = 0;
  // residual[i, j] += scale * delta[i, j]
  virtual void Add(float* residual, const float* delta, float scale, int rows, int width) = 0;
  // In place, every slice by itself. The weight (and bias) is [width], shared by the groups, or [groups * width].
  virtual void NormSlices(float* data, int rows, const Slices& slices, const Norm& norm) = 0;
  // to[row, group] = from[row, group]; equal groups and widths.
  virtual void CopySlices(const float* in, const Slices& from, int rows, float* out, const Slices& to) = 0;
  // In place: the first rope.rotary_dim of each slice are rotated by positions[row].
  virtual void RotateSlices(float* data, int rows, const Slices& slices, std::span<const int32_t> positions,
                            const RopeTable& rope) = 0;
  // out[i, :] = in[i, :] * weight^T (+ bias).   in [rows, weight.cols], out [rows, weight.rows]. With a bfloat16 weight the
  // inputs are rounded to bfloat16 first, and with a float16 weight a device may round them to as many digits as float16 has;
  // products and sums are float32. Quantised weights: see quant.h.
  virtual void Linear(const float* in, int rows, const Weight& weight, const Weight* bias, float* out) = 0;
  // qkv [rows, (Hq + 2 Hkv) * head_dim] = per row q heads, k heads, v heads. Rotates q (written to q_out [rows, Hq * head_dim])
  // and k by positions[row], and stores k and v of each slice's rows at its last num_rows slots of every (layer, head).
  // rotary_dim may be less than head_dim, or 0: then nothing is rotated and the tables may be null.
  virtual void RopeAppend(const float* qkv, std::span<const int32_t> positions, const RopeTable& rope, int num_q_heads, int layer,
                          std::span<const SequenceSlice> slices, const PagedKv& kv, float* q_out) = 0;
  // Latent KV (layout.value_dim > 0, one KV head): stores rows of latent [rows, head_dim], already rotated, as keys.
  virtual void AppendLatent(const float* latent, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv) = 0;
  // out [rows, Hq * head_dim]; query head h reads KV head h / (Hq / Hkv). With layout.value_dim > 0 the values are the first
  // value_dim elements of each key, and out is [rows, Hq * value_dim].
  virtual void Attention(const float* q, int layer, const AttentionParams& params, std::span<const SequenceSlice> slices,
                         const PagedKv& kv, float* out) = 0;
  // For each head h, weights[h] times its cols floats of each row, as Linear would; see HeadLinear.
  virtual void LinearHeads(const float* in, int rows, std::span<const Weight> weights, const HeadLinear& at, float* out) = 0;
  // See Activation.                                                out [rows, width]
  virtual void Activate(const ActivationParams& activation, bool gated, const float* in, int rows, int width, float* out) = 0;
  // data = softcap > 0 ? softcap * tanh(scale * data / softcap) : scale * data
  virtual void ScaleRows(float* data, int rows, int width, float scale, float softcap) = 0;
  // residual[i, j] += sigmoid(gate[i]) * in[i, j]                  gate [rows]
  virtual void AddGated(float* residual, const float* in, const float* gate, int rows, int width) = 0;
  // data[i, j] *= act(gate[i * gate_stride + j]), act a sigmoid or SiLU       data [rows, width]
  virtual void MultiplyGate(float* data, GateKind kind, const float* gate, int64_t gate_stride, int rows, int width) = 0;
  // Causal depthwise convolution along each text, then SiLU: out[t, c] = silu(sum over j of weight[j, c] * in[t - kernel + 1 + j,
  // c]), with zeros before the text. in: channels() floats at in + i * in_stride; weight [kernel * channels]; out [rows,
  // channels]. Earlier inputs come from the state of the layer, and the last ones are left there, for each block touched.
  virtual void CausalConv(const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight, int layer,
                          std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) = 0;
  // See DeltaNet. qkv [rows, channels]: q of all key heads, k of all, v of all value heads. gates: row i has b of all value heads
  // at gates + i * gate_stride, then a of all. out [rows, values]
  virtual void DeltaRule(const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net, const Weight& a_log,
                         const Weight& dt_bias, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv,
                         float* out) = 0;
  // logits [rows, num_experts] -> ids and weights [rows, top_k], by choosing score, larger first, ties to the lower id.
  virtual void Route(const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights) = 0;
  // out[i, :] = sum over the row's experts e, by ascending id, of weight * down_e(act(gate_up_e(in[i, :]))).
  // in, out [rows, width], not the same; ids and weights [rows, top_k], the ids of a row distinct.
  virtual void Experts(const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation, int top_k,
                       const int32_t* ids, const float* weights, float* out) = 0;
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
  int threads = 0;  // 0 = as many as serve best (kernels/cpu/topology.h: cores, affinity, cgroup quota)
  std::string isa;  // "", or one of CpuIsaNames(); KVASIR_CPU_ISA does the same for a whole process
};
// ISAs this machine can run, best first: "avx512_bf16", "avx512", "avx2", "portable".
std::vector<std::string> CpuIsaNames();
StatusOr<std::unique_ptr<Device>> MakeCpuDevice(const CpuDeviceOptions& options);

// CUDA device number `index`. Unavailable, with the remedy, when there is none, or when this build is without CUDA.
StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int index = 0);
// Whether there is a CUDA device and this build can use it.
bool HasCudaDevice();

}  // namespace kvasir
