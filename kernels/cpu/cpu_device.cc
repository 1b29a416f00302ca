#include "kernels/cpu/cpu_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "fmt/ranges.h"
#include "kernels/cpu/delta.h"
#include "kernels/cpu/fused.h"
#include "kernels/cpu/pack.h"

namespace kvasir {
namespace {

constexpr int kMaxThreads = 1024;
// Rows of a gather worth a thread.
int64_t CopyGrain(int64_t width) {
  return std::max<int64_t>(1, 64 * 1024 / std::max<int64_t>(1, width));
}

Status CheckMatrix(const HostMatrix& matrix, int64_t max_elements) {
  if (matrix.rows <= 0 || matrix.cols <= 0 || matrix.data == nullptr) {
    return InvalidArgument("'{}' is [{}, {}]{}; a weight needs at least one row and one column", matrix.name, matrix.rows,
                           matrix.cols, matrix.data == nullptr ? " without data" : "");
  }
  if (matrix.rows > max_elements / matrix.cols) {
    return InvalidArgument("'{}' is [{}, {}]; the limit is {} elements", matrix.name, matrix.rows, matrix.cols, max_elements);
  }
  return OkStatus();
}

constexpr int64_t kMaxElements = int64_t{1} << 40;  // of one weight: keeps every size below in 64 bits

}  // namespace

CpuDevice::CpuDevice(const CpuKernels& kernels, Placement placement)
    : kernels_(kernels), placement_(std::move(placement)), team_(placement_.threads, placement_.workers) {
  memory_.InterleaveOver(placement_.nodes);
}

DeviceInfo CpuDevice::Info() const {
  std::string placement = placement_.reason;
  if (placement_.nodes.size() > 1) {
    placement += fmt::format("{}memory nodes {}", placement.empty() ? "" : "; ", fmt::join(placement_.nodes, ", "));
    if (!memory_.interleave_failure().empty())
      placement += fmt::format(", over which memory cannot be spread here ({})", memory_.interleave_failure());
  }
  return {fmt::format("cpu {}, {} thread{}", kernels_.name, team_.size(), team_.size() == 1 ? "" : "s"), "cpu",
          memory_.Available(), 0, std::move(placement)};
}

StatusOr<void*> CpuDevice::Allocate(size_t bytes, std::string_view what) {
  // Long contexts are read in short runs all over the KV pool: with small pages every one misses the TLB.
  constexpr size_t kLarge = size_t{64} << 20;
  return memory_.Allocate(bytes, what, /*huge_pages=*/bytes >= kLarge);
}
void CpuDevice::Free(void* buffer) {
  memory_.Free(buffer);
}
void CpuDevice::CopyToDevice(void* dst, const void* host, size_t bytes) {
  std::memcpy(dst, host, bytes);
}
void CpuDevice::CopyToHost(void* host, const void* src, size_t bytes) {
  std::memcpy(host, src, bytes);
}
void CpuDevice::CopyOnDevice(void* dst, const void* src, size_t bytes) {
  std::memmove(dst, src, bytes);
}
Status CpuDevice::Synchronize() {
  return OkStatus();
}

StatusOr<Weight> CpuDevice::PackLinear(std::span<const HostMatrix> parts, DType dtype, QuantFormat quant) {
  if (parts.empty()) return InvalidArgument("a linear weight needs at least one matrix");
  Weight weight{dtype, 0, parts[0].cols, nullptr, quant};
  for (const HostMatrix& part : parts) {
    KVASIR_RETURN_IF_ERROR(CheckMatrix(part, kMaxElements / 2 - weight.rows * weight.cols));
    if (part.cols != weight.cols) {
      return InvalidArgument("'{}' has {} columns but '{}', packed with it, has {}", part.name, part.cols, parts[0].name,
                             weight.cols);
    }
    KVASIR_RETURN_IF_ERROR(CheckQuantized(part, parts[0], quant));
    weight.rows += part.rows;
  }
  const size_t bytes = PackedBytes(PackingKind::kLinear, weight);
  KVASIR_ASSIGN_OR_RETURN(weight.packed, memory_.Allocate(bytes, parts[0].name, /*huge_pages=*/true));
  PackPanels(team_, parts, dtype, quant, weight.packed);
  return weight;
}

StatusOr<Weight> CpuDevice::PackEmbedding(const HostMatrix& table, DType dtype) {
  KVASIR_RETURN_IF_ERROR(CheckMatrix(table, kMaxElements));
  Weight weight{dtype, table.rows, table.cols, nullptr};
  const size_t bytes = PackedBytes(PackingKind::kEmbedding, weight);
  KVASIR_ASSIGN_OR_RETURN(weight.packed, memory_.Allocate(bytes, table.name, /*huge_pages=*/true));
  PackRows(team_, table, dtype, weight.packed);
  return weight;
}

StatusOr<Weight> CpuDevice::PackVector(std::span<const HostMatrix> parts) {
  if (parts.empty()) return InvalidArgument("a vector weight needs at least one part");
  Weight weight{DType::kF32, 1, 0, nullptr};
  for (const HostMatrix& part : parts) {
    KVASIR_RETURN_IF_ERROR(CheckMatrix(part, kMaxElements - weight.cols));
    weight.cols += part.rows * part.cols;
  }
  KVASIR_ASSIGN_OR_RETURN(weight.packed,
                          memory_.Allocate(PackedBytes(PackingKind::kVector, weight), parts[0].name, /*huge_pages=*/false));
  float* to = static_cast<float*>(weight.packed);
  for (const HostMatrix& part : parts) {
    ToFloat(part.data, part.dtype, part.rows * part.cols, to);
    to += part.rows * part.cols;
  }
  return weight;
}

// The layouts do not depend on the instruction set. Raise the number whenever the bytes of any packed weight change
// (PackTest.PackingNameNamesTheseBytes knows when they do).
std::string CpuDevice::PackingName() const {
  return "cpu panels 1";
}

size_t CpuDevice::PackedBytes(PackingKind kind, const Weight& weight) const {
  if (kind == PackingKind::kLinear)
    return size_t(PanelsOf(weight.rows)) * size_t(PanelBytes(weight.cols, weight.dtype, weight.quant)) +
           size_t(OrderBytes(weight.cols, weight.quant));
  return size_t(weight.rows) * size_t(weight.cols) * SizeOf(weight.dtype);
}

StatusOr<Weight> CpuDevice::AdoptPacked(PackingKind kind, const Weight& described, const void* bytes) {
  Weight weight = described;
  weight.packed = const_cast<void*>(bytes);  // kernels only read weights
  memory_.CountForeign(PackedBytes(kind, described));
  return weight;
}

void CpuDevice::Embed(const Weight& table, std::span<const int32_t> ids, float scale, float* out) {
  const int64_t width = table.cols, row_bytes = width * int64_t(SizeOf(table.dtype));
  const auto* rows = static_cast<const std::byte*>(table.packed);
  team_.ParallelFor(int64_t(ids.size()), CopyGrain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      KVASIR_CHECK(ids[i] >= 0 && ids[i] < table.rows, "token id {} but the table has {} rows", ids[i], table.rows);
      float* row = out + i * width;
      ToFloat(rows + ids[i] * row_bytes, table.dtype, width, row);
      if (scale != 1) std::for_each(row, row + width, [scale](float& x) { x *= scale; });
    }
  });
}

void CpuDevice::GatherRows(const float* in, std::span<const int32_t> row_ids, int width, float* out) {
  team_.ParallelFor(int64_t(row_ids.size()), CopyGrain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(out + i * width, in + int64_t{row_ids[i]} * width, size_t(width) * sizeof(float));
    }
  });
}

void CpuDevice::Linear(const float* in, int rows, const Weight& weight, const Weight* bias, float* out) {
  KVASIR_DCHECK(bias == nullptr || bias->cols == weight.rows, "bias of {} for {} outputs", bias->cols, weight.rows);
  PanelLinear(*kernels_.gemm, team_, gemm_scratch_, in, rows, weight, Floats(bias), out);
}

void CpuDevice::LinearHeads(const float* in, int rows, std::span<const Weight> weights, const HeadLinear& at, float* out) {
  CpuLinearHeads(*kernels_.gemm, team_, gemm_scratch_, expert_scratch_, in, rows, weights, at, out);
}

void CpuDevice::AddNorm(float* residual, const float* delta, float delta_scale, const Norm& norm, int rows, int width,
                        float* out) {
  CpuAddNorm(*kernels_.fused, team_, residual, delta, delta_scale, norm, rows, width, out);
}

void CpuDevice::Add(float* residual, const float* delta, float scale, int rows, int width) {
  CpuAdd(*kernels_.fused, team_, residual, delta, scale, rows, width);
}

void CpuDevice::AddGated(float* residual, const float* in, const float* gate, int rows, int width) {
  CpuAddGated(*kernels_.fused, team_, residual, in, gate, rows, width);
}

void CpuDevice::NormSlices(float* data, int rows, const Slices& slices, const Norm& norm) {
  CpuNormSlices(*kernels_.fused, team_, data, rows, slices, norm);
}

void CpuDevice::RotateSlices(float* data, int rows, const Slices& slices, std::span<const int32_t> positions,
                             const RopeTable& rope) {
  CpuRotateSlices(*kernels_.fused, team_, data, rows, slices, positions, rope);
}

void CpuDevice::CopySlices(const float* in, const Slices& from, int rows, float* out, const Slices& to) {
  CpuCopySlices(team_, in, from, rows, out, to);
}

void CpuDevice::AppendLatent(const float* latent, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv) {
  CpuAppendLatent(*kernels_.fused, team_, latent, layer, slices, kv);
}

void CpuDevice::RopeAppend(const float* qkv, std::span<const int32_t> positions, const RopeTable& rope, int num_q_heads,
                           int layer, std::span<const SequenceSlice> slices, const PagedKv& kv, float* q_out) {
  CpuRopeAppend(*kernels_.fused, team_, qkv, positions, rope, num_q_heads, layer, slices, kv, q_out);
}

void CpuDevice::Attention(const float* q, int layer, const AttentionParams& params, std::span<const SequenceSlice> slices,
                          const PagedKv& kv, float* out) {
  CpuAttention(*kernels_.attention, team_, attention_workspace_, q, layer, params, slices, kv, out);
}

void CpuDevice::Activate(const ActivationParams& activation, bool gated, const float* in, int rows, int width, float* out) {
  CpuActivate(*kernels_.fused, team_, activation, gated, in, rows, width, out);
}

void CpuDevice::ScaleRows(float* data, int rows, int width, float scale, float softcap) {
  CpuScaleRows(*kernels_.fused, team_, data, rows, width, scale, softcap);
}

void CpuDevice::MultiplyGate(float* data, GateKind kind, const float* gate, int64_t gate_stride, int rows, int width) {
  CpuMultiplyGate(*kernels_.fused, team_, data, kind, gate, gate_stride, rows, width);
}

void CpuDevice::CausalConv(const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight, int layer,
                           std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) {
  CpuCausalConv(*kernels_.delta, team_, in, in_stride, net, weight, layer, slices, kv, out);
}

void CpuDevice::DeltaRule(const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net, const Weight& a_log,
                          const Weight& dt_bias, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv,
                          float* out) {
  CpuDeltaRule(*kernels_.delta, team_, qkv, gates, gate_stride, net, a_log, dt_bias, layer, slices, kv, out);
}

void CpuDevice::Route(const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights) {
  CpuRoute(team_, logits, rows, routing, ids, weights);
}

void CpuDevice::Experts(const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation, int top_k,
                        const int32_t* ids, const float* weights, float* out) {
  CpuExperts(*kernels_.gemm, *kernels_.fused, team_, gemm_scratch_, expert_scratch_, in, rows, experts, activation, top_k, ids,
             weights, out);
}

void CpuDevice::Sample(const float* logits, int vocab, std::span<const SampleRow> rows, std::span<SampleResult> results) {
  CpuSample(*kernels_.sample, team_, sample_workspace_, logits, vocab, rows, results);
}

void CpuDevice::ScoreTokens(const float* logits, int vocab, std::span<const int32_t> tokens, std::span<const int32_t> num_top,
                            std::span<SampleResult> results) {
  CpuScoreTokens(*kernels_.sample, team_, sample_workspace_, logits, vocab, tokens, num_top, results);
}

StatusOr<std::unique_ptr<Device>> MakeCpuDevice(const CpuDeviceOptions& options) {
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return InvalidArgument("threads is {}; give 1 to {}, or 0 for as many as serve best here ({})", options.threads, kMaxThreads,
                           DefaultThreads());
  }
  const CpuKernels* kernels = options.isa.empty() ? DefaultKernels() : KernelsFor(options.isa);
  if (kernels == nullptr) {
    const char* forced = std::getenv("KVASIR_CPU_ISA");
    return InvalidArgument("{} '{}' is unknown or this machine cannot run it; it can run {}",
                           options.isa.empty() ? "KVASIR_CPU_ISA" : "isa", options.isa.empty() ? forced : options.isa.c_str(),
                           fmt::join(CpuIsaNames(), ", "));
  }
  return std::unique_ptr<Device>(new CpuDevice(*kernels, PlaceThreads(ReadTopology(), options.threads)));
}

}  // namespace kvasir
