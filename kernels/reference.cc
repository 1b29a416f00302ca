// ReferenceDevice: the meaning of every op, for tests to compare against. Clear before fast; sums are doubles.
#include "kernels/reference.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <set>

#include "kernels/device.h"
#include "kernels/kv_quant.h"

namespace kvasir {
namespace {

float LoadElement(const void* data, DType dtype, int64_t index) {
  const char* at = static_cast<const char*>(data) + index * int64_t(SizeOf(dtype));
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return dtype == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}

void StoreElement(void* data, DType dtype, int64_t index, float value) {
  char* at = static_cast<char*>(data) + index * int64_t(SizeOf(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(at, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
  std::memcpy(at, &bits, 2);
}

// A slot of a page of keys or of values, read and written as what attention sees of it.
class SlotRow {
 public:
  SlotRow(const KvLayout& layout, std::byte* page, int64_t slot)
      : layout_(layout),
        row_(page + size_t(slot) * layout.row_bytes()),
        scale_(page + layout.scales_offset() + size_t(slot) * sizeof(KvScale)) {}

  void Store(const float* x) {
    const int d = layout_.head_dim;
    if (layout_.quant == KvQuant::kNone) {
      for (int j = 0; j < d; ++j) StoreElement(row_, layout_.dtype, j, x[j]);
      return;
    }
    std::vector<uint8_t> codes(size_t(d) + 1);
    const KvScale scale = QuantizeKv(layout_.quant, x, d, codes.data());
    if (layout_.scaled()) std::memcpy(scale_, &scale, sizeof(scale));
    for (int j = 0; layout_.quant == KvQuant::kInt4 && j < d; j += 2) codes[j / 2] = uint8_t(codes[j] | codes[j + 1] << 4);
    std::memcpy(row_, codes.data(), size_t(layout_.quant == KvQuant::kInt4 ? (d + 1) / 2 : d));
  }

  double operator[](int j) const {
    if (layout_.quant == KvQuant::kNone) return LoadElement(row_, layout_.dtype, j);
    KvScale scale;
    if (layout_.scaled()) std::memcpy(&scale, scale_, sizeof(scale));
    const bool packed = layout_.quant == KvQuant::kInt4;
    const auto byte = uint8_t(row_[packed ? j / 2 : j]);
    return DequantizeKv(layout_.quant, packed ? uint8_t(byte >> j % 2 * 4 & 15) : byte, scale);
  }

 private:
  const KvLayout& layout_;
  std::byte *row_, *scale_;
};

// Slot s of a run.
struct Slot {
  SlotRow k, v;
};

Slot Find(const PagedKv& kv, const PageRun& run, int64_t slot) {
  const int page = int(slot / kv.layout.block_tokens);
  const int64_t inside = slot % kv.layout.block_tokens;
  return {{kv.layout, kv.KPage(run, page), inside}, {kv.layout, kv.VPage(run, page), inside}};
}

// Rotates one head: pairs are (i, i + rotary_dim / 2); the rest passes through.
void Rotate(const float* in, int head_dim, const RopeTable& rope, int64_t position, float* out) {
  std::copy_n(in, head_dim, out);
  const int half = rope.rotary_dim / 2;
  KVASIR_CHECK(half == 0 || (position >= 0 && position < rope.num_positions), "position {} but the table has {}", position,
               rope.num_positions);
  for (int i = 0; i < half; ++i) {
    const double c = rope.cos[position * half + i], s = rope.sin[position * half + i];
    out[i] = float(in[i] * c - in[i + half] * s);
    out[i + half] = float(in[i + half] * c + in[i] * s);
  }
}

class ReferenceDevice final : public Device {
 public:
  ~ReferenceDevice() override {
    for (void* buffer : buffers_) std::free(buffer);
  }

  DeviceInfo Info() const override {
    const size_t available = size_t(sysconf(_SC_AVPHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE));
    return {"reference, 1 thread", "reference", available};
  }

  StatusOr<void*> Allocate(size_t bytes, std::string_view what) override {
    const size_t available = Info().memory_bytes;
    void* buffer = bytes > available ? nullptr : std::aligned_alloc(64, std::max<size_t>(64, (bytes + 63) / 64 * 64));
    if (buffer == nullptr) {
      return ResourceExhausted("{} needs {} bytes but only {} are available; free memory or ask for less", what, bytes,
                               available);
    }
    std::memset(buffer, 0, std::max<size_t>(64, (bytes + 63) / 64 * 64));
    buffers_.insert(buffer);
    return buffer;
  }

  void Free(void* buffer) override {
    if (buffer == nullptr) return;
    KVASIR_CHECK(buffers_.erase(buffer) == 1, "buffer {} is not of this device", buffer);
    std::free(buffer);
  }

  void CopyToDevice(void* dst, const void* host, size_t bytes) override { std::memcpy(dst, host, bytes); }
  void CopyToHost(void* host, const void* src, size_t bytes) override { std::memcpy(host, src, bytes); }
  void CopyOnDevice(void* dst, const void* src, size_t bytes) override { std::memmove(dst, src, bytes); }
  Status Synchronize() override { return OkStatus(); }

  StatusOr<Weight> PackLinear(std::span<const HostMatrix> parts, DType dtype, QuantFormat quant) override {
    if (parts.empty()) return InvalidArgument("a linear weight needs at least one matrix");
    int64_t rows = 0;
    for (const HostMatrix& part : parts) {
      if (part.rows <= 0 || part.cols <= 0 || part.cols != parts[0].cols) {
        return InvalidArgument("'{}' is [{}, {}]; it is packed with '{}' [{}, {}] and must be non-empty and have as many columns",
                               part.name, part.rows, part.cols, parts[0].name, parts[0].rows, parts[0].cols);
      }
      KVASIR_RETURN_IF_ERROR(CheckQuantized(part, parts[0], quant));
      rows += part.rows;
    }
    if (quant) return PackQuantised(parts, dtype, rows, quant);
    return Pack(parts, dtype, rows, parts[0].cols);
  }

  StatusOr<Weight> PackEmbedding(const HostMatrix& table, DType dtype) override { return PackLinear({&table, 1}, dtype, {}); }

  StatusOr<Weight> PackVector(std::span<const HostMatrix> parts) override {
    int64_t size = 0;
    for (const HostMatrix& part : parts) size += part.rows * part.cols;
    if (size <= 0) return InvalidArgument("a vector weight needs at least one element");
    return Pack(parts, DType::kF32, 1, size);
  }

  void Embed(const Weight& table, std::span<const int32_t> ids, float scale, float* out) override {
    for (size_t i = 0; i < ids.size(); ++i) {
      KVASIR_CHECK(ids[i] >= 0 && ids[i] < table.rows, "token id {} but the table has {} rows", ids[i], table.rows);
      for (int64_t j = 0; j < table.cols; ++j) {
        out[i * table.cols + j] = LoadElement(table.packed, table.dtype, ids[i] * table.cols + j) * scale;
      }
    }
  }

  void AddNorm(float* residual, const float* delta, float delta_scale, const Norm& norm, int rows, int width,
               float* out) override {
    if (delta != nullptr) Add(residual, delta, delta_scale, rows, width);
    for (int64_t row = 0; row < rows; ++row) NormRow(residual + row * width, width, norm, 0, out + row * width);
  }

  void Add(float* residual, const float* delta, float scale, int rows, int width) override {
    for (int64_t i = 0; i < int64_t{rows} * width; ++i) residual[i] = float(residual[i] + double(scale) * delta[i]);
  }

  void NormSlices(float* data, int rows, const Slices& slices, const Norm& norm) override {
    const bool shared = norm.weight == nullptr || norm.weight->cols == slices.width;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < slices.groups; ++g) {
        float* x = data + row * slices.stride + slices.offset + g * slices.group_stride;
        NormRow(x, slices.width, norm, shared ? 0 : g * slices.width, x);
      }
    }
  }

  void CopySlices(const float* in, const Slices& from, int rows, float* out, const Slices& to) override {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < from.groups; ++g) {
        std::copy_n(in + row * from.stride + from.offset + g * from.group_stride, from.width,
                    out + row * to.stride + to.offset + g * to.group_stride);
      }
    }
  }

  void RotateSlices(float* data, int rows, const Slices& slices, std::span<const int32_t> positions,
                    const RopeTable& rope) override {
    std::vector<float> rotated(slices.width);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < slices.groups; ++g) {
        float* x = data + row * slices.stride + slices.offset + g * slices.group_stride;
        Rotate(x, slices.width, rope, positions[row], rotated.data());
        std::copy(rotated.begin(), rotated.end(), x);
      }
    }
  }

  void Linear(const float* in, int rows, const Weight& weight, const Weight* bias, float* out) override {
    for (int64_t i = 0; i < rows; ++i) LinearRow(in + i * weight.cols, weight, bias, out + i * weight.rows);
  }

  void LinearHeads(const float* in, int rows, std::span<const Weight> weights, const HeadLinear& at, float* out) override {
    for (int64_t h = 0; h < int64_t(weights.size()); ++h) {
      for (int64_t i = 0; i < rows; ++i) {
        LinearRow(in + i * at.in_stride + h * at.in_head_stride, weights[h], nullptr,
                  out + i * at.out_stride + h * at.out_head_stride);
      }
    }
  }

  void RopeAppend(const float* qkv, std::span<const int32_t> positions, const RopeTable& rope, int num_q_heads, int layer,
                  std::span<const SequenceSlice> slices, const PagedKv& kv, float* q_out) override {
    const int d = kv.layout.head_dim, num_kv_heads = kv.layout.num_kv_heads;
    const int64_t width = int64_t{1} * (num_q_heads + 2 * num_kv_heads) * d;
    std::vector<float> rotated(d);
    for (const SequenceSlice& slice : slices) {
      for (int i = 0; i < slice.num_rows; ++i) {
        const int64_t row = slice.first_row + i, position = positions[row];
        for (int h = 0; h < num_q_heads; ++h) {
          Rotate(qkv + row * width + int64_t{1} * h * d, d, rope, position, q_out + (row * num_q_heads + h) * d);
        }
        for (int h = 0; h < num_kv_heads; ++h) {
          const float* k = qkv + row * width + int64_t{1} * (num_q_heads + h) * d;
          const float* v = k + int64_t{1} * num_kv_heads * d;
          Rotate(k, d, rope, position, rotated.data());
          const PageRun run = kv.Lookup(slice.kv, layer, h);
          Slot slot = Find(kv, run, run.num_slots - slice.num_rows + i);
          slot.k.Store(rotated.data());
          slot.v.Store(v);
        }
      }
    }
  }

  void AppendLatent(const float* latent, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv) override {
    const int d = kv.layout.head_dim;
    for (const SequenceSlice& slice : slices) {
      const PageRun run = kv.Lookup(slice.kv, layer, 0);
      for (int i = 0; i < slice.num_rows; ++i) {
        Find(kv, run, run.num_slots - slice.num_rows + i).k.Store(latent + int64_t{slice.first_row + i} * d);
      }
    }
  }

  void Attention(const float* q, int layer, const AttentionParams& params, std::span<const SequenceSlice> slices,
                 const PagedKv& kv, float* out) override {
    const int d = kv.layout.head_dim, group = params.num_q_heads / kv.layout.num_kv_heads;
    const int value_dim = kv.layout.value_dim > 0 ? kv.layout.value_dim : d;
    for (const SequenceSlice& slice : slices) {
      for (int h = 0; h < params.num_q_heads; ++h) {
        const PageRun run = kv.Lookup(slice.kv, layer, h / group);
        for (int i = 0; i < slice.num_rows; ++i) {
          const int64_t end = run.num_slots - slice.num_rows + i + 1;
          const int64_t begin = params.window > 0 ? std::max<int64_t>(0, end - params.window) : 0;
          const int64_t at = int64_t{1} * (slice.first_row + i) * params.num_q_heads + h;
          AttendRow(q + at * d, kv, run, begin, end, params, h, out + at * value_dim);
        }
      }
    }
  }

  void Activate(const ActivationParams& activation, bool gated, const float* in, int rows, int width, float* out) override {
    const int64_t stride = gated ? int64_t{2} * width : width;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const double x = in[i * stride + j], up = gated ? in[i * stride + width + j] : 1;
        out[i * width + j] = float(ReferenceActivation(activation, x, up));
      }
    }
  }

  void ScaleRows(float* data, int rows, int width, float scale, float softcap) override {
    for (int64_t i = 0; i < int64_t{rows} * width; ++i) {
      const double x = double(scale) * data[i];
      data[i] = float(softcap > 0 ? softcap * std::tanh(x / softcap) : x);
    }
  }

  void AddGated(float* residual, const float* in, const float* gate, int rows, int width) override {
    for (int64_t i = 0; i < int64_t{rows} * width; ++i) {
      residual[i] = float(residual[i] + in[i] / (1 + std::exp(-double(gate[i / width]))));
    }
  }

  void MultiplyGate(float* data, GateKind kind, const float* gate, int64_t gate_stride, int rows, int width) override {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const double x = gate[i * gate_stride + j];
        data[i * width + j] = float(data[i * width + j] * (kind == GateKind::kSilu ? x : 1) / (1 + std::exp(-x)));
      }
    }
  }

  void CausalConv(const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight, int layer,
                  std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) override {
    for (const SequenceSlice& slice : slices) ReferenceConv(in, in_stride, net, weight, layer, slice, kv, out);
  }

  void DeltaRule(const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net, const Weight& a_log,
                 const Weight& dt_bias, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv,
                 float* out) override {
    for (const SequenceSlice& slice : slices) {
      ReferenceDeltaRule(qkv, gates, gate_stride, net, a_log, dt_bias, layer, slice, kv, out);
    }
  }

  void Route(const float* logits, int rows, const MoeRouting& routing, int32_t* ids, float* weights) override {
    for (int64_t i = 0; i < rows; ++i) {
      ReferenceRoute(logits + i * routing.num_experts, routing, ids + i * routing.top_k, weights + i * routing.top_k);
    }
  }

  void Experts(const float* in, int rows, const MoeWeights& experts, const ActivationParams& activation, int top_k,
               const int32_t* ids, const float* weights, float* out) override {
    const int64_t width = experts.down[0].rows, ffn = experts.down[0].cols;
    std::vector<float> gate_up(2 * ffn), activated(ffn), down(width);
    std::vector<int> order(top_k);
    for (int64_t i = 0; i < rows; ++i) {
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(), [&](int a, int b) { return ids[i * top_k + a] < ids[i * top_k + b]; });
      std::vector<double> sum(width, 0.0);
      for (const int k : order) {
        const int e = ids[i * top_k + k];
        LinearRow(in + i * width, experts.gate_up[e], experts.gate_up_bias.empty() ? nullptr : &experts.gate_up_bias[e],
                  gate_up.data());
        Activate(activation, true, gate_up.data(), 1, int(ffn), activated.data());
        LinearRow(activated.data(), experts.down[e], experts.down_bias.empty() ? nullptr : &experts.down_bias[e], down.data());
        for (int64_t j = 0; j < width; ++j) sum[j] += double(weights[i * top_k + k]) * down[j];
      }
      for (int64_t j = 0; j < width; ++j) out[i * width + j] = float(sum[j]);
    }
  }

  void GatherRows(const float* in, std::span<const int32_t> row_ids, int width, float* out) override {
    for (size_t i = 0; i < row_ids.size(); ++i) std::copy_n(in + int64_t{row_ids[i]} * width, width, out + i * width);
  }

  void Sample(const float* logits, int vocab, std::span<const SampleRow> rows, std::span<SampleResult> results) override {
    for (size_t i = 0; i < rows.size(); ++i) ReferenceSample(logits + i * vocab, vocab, rows[i], results[i]);
  }

  void ScoreTokens(const float* logits, int vocab, std::span<const int32_t> tokens, std::span<const int32_t> num_top,
                   std::span<SampleResult> results) override {
    for (size_t i = 0; i < tokens.size(); ++i) ReferenceScore(logits + i * vocab, vocab, tokens[i], num_top[i], results[i]);
  }

 private:
  StatusOr<Weight> Pack(std::span<const HostMatrix> parts, DType dtype, int64_t rows, int64_t cols) {
    KVASIR_ASSIGN_OR_RETURN(void* packed, Allocate(size_t(rows) * size_t(cols) * SizeOf(dtype), parts[0].name));
    int64_t next = 0;
    for (const HostMatrix& part : parts) {
      for (int64_t i = 0; i < part.rows * part.cols; ++i) {
        StoreElement(packed, dtype, next++, LoadElement(part.data, part.dtype, i));
      }
    }
    return Weight{dtype, rows, cols, packed};
  }

  // Keeps what the codes stand for, as float32.
  StatusOr<Weight> PackQuantised(std::span<const HostMatrix> parts, DType dtype, int64_t rows, QuantFormat quant) {
    const int64_t cols = parts[0].cols;
    const size_t values = size_t(rows) * size_t(cols), order_size = quant.ordered ? size_t(cols) : 0;
    KVASIR_ASSIGN_OR_RETURN(void* packed, Allocate((values + order_size) * sizeof(float), parts[0].name));
    float* row = static_cast<float*>(packed);
    if (quant.ordered) std::memcpy(row + values, parts[0].order, order_size * sizeof(int32_t));
    for (const HostMatrix& part : parts) {
      for (int64_t i = 0; i < part.rows; ++i, row += cols) QuantisedRow(part, i, dtype, quant, row);
    }
    return Weight{DType::kF32, rows, cols, packed, quant};
  }

  static void QuantisedRow(const HostMatrix& part, int64_t i, DType dtype, QuantFormat quant, float* out) {
    const int64_t cols = part.cols, size = quant.GroupSize(cols), groups = quant.Groups(cols);
    std::vector<int8_t> codes(static_cast<size_t>(size));
    const auto* scales = static_cast<const std::byte*>(part.scales);
    float rounded = 0;
    for (int64_t first = 0; first < cols; first += size) {
      const int64_t count = std::min(size, cols - first), at = i * cols + first;
      QuantGroup group;
      double float_scale = 0;
      if (part.quant && !quant.integer()) {
        float stored;
        std::memcpy(&stored, scales + (i * groups + first / size) * int64_t{sizeof(stored)}, sizeof(stored));
        float_scale = stored;
        std::copy_n(static_cast<const int8_t*>(part.data) + at, count, codes.begin());
      } else if (part.quant) {
        std::memcpy(&group.scale, scales + (i * groups + first / size) * 2, sizeof(group.scale));
        if (quant.kind == QuantFormat::Kind::kInt4) group.low = part.lows[i * groups + first / size];
        std::copy_n(static_cast<const int8_t*>(part.data) + at, count, codes.begin());
      } else {
        for (int64_t j = 0; j < count; ++j) {
          StoreElement(&rounded, dtype, 0, LoadElement(part.data, part.dtype, at + j));
          out[first + j] = LoadElement(&rounded, dtype, 0);
        }
        if (quant.integer()) {
          group = QuantizeGroup(quant.kind, out + first, count, codes.data());
        } else {
          float_scale = QuantizeFp8Group(out + first, count, reinterpret_cast<uint8_t*>(codes.data()));
        }
      }
      if (!quant.integer()) {
        const auto value = quant.kind == QuantFormat::Kind::kFp8 ? Fp8E4M3ToF32 : Fp4E2M1ToF32;
        for (int64_t j = 0; j < count; ++j) out[first + j] = float(float_scale * value(uint8_t(codes[j])));
        continue;
      }
      const double scale = F16ToF32(group.scale), low = F16ToF32(group.low);
      for (int64_t j = 0; j < count; ++j) out[first + j] = float(scale * codes[j] + low);
    }
  }

  // A row of a linear layer; with a bfloat16 weight the input is rounded first, with a quantised one it is quantised.
  static void LinearRow(const float* in, const Weight& weight, const Weight* bias, float* out) {
    std::vector<float> rounded;
    if (weight.quant.integer()) {
      rounded.resize(weight.cols);
      int8_t codes[kQuantBlock];
      std::vector<float> ordered(weight.quant.ordered ? weight.cols : 0);
      const int32_t* order = static_cast<const int32_t*>(weight.packed) + weight.rows * weight.cols;
      for (size_t k = 0; k < ordered.size(); ++k) ordered[k] = in[order[k]];
      if (!ordered.empty()) in = ordered.data();
      for (int64_t k = 0; k < weight.cols; k += kQuantBlock) {
        const int count = int(std::min<int64_t>(kQuantBlock, weight.cols - k));
        const float scale = QuantizeBlock(in + k, count, codes);
        for (int j = 0; j < count; ++j) rounded[k + j] = scale * float(codes[j]);
      }
      in = rounded.data();
    }
    const bool round = weight.quant ? !weight.quant.integer() : weight.dtype == DType::kBF16;
    for (int64_t j = 0; j < weight.rows; ++j) {
      double sum = bias != nullptr ? LoadElement(bias->packed, bias->dtype, j) : 0;
      for (int64_t k = 0; k < weight.cols; ++k) {
        sum +=
            double(round ? BF16ToF32(F32ToBF16(in[k])) : in[k]) * LoadElement(weight.packed, weight.dtype, j * weight.cols + k);
      }
      out[j] = float(sum);
    }
  }

  // `first`: where the row's part of the weight and the bias begins. out may be x.
  static void NormRow(const float* x, int64_t width, const Norm& norm, int64_t first, float* out) {
    double mean = 0, square_sum = 0;
    if (norm.kind == NormKind::kLayer) {
      for (int64_t j = 0; j < width; ++j) mean += x[j];
      mean /= double(width);
    }
    for (int64_t j = 0; j < width; ++j) square_sum += (x[j] - mean) * (x[j] - mean);
    const double scale = 1 / std::sqrt(square_sum / double(width) + norm.eps);
    for (int64_t j = 0; j < width; ++j) {
      const double w = norm.weight != nullptr ? LoadElement(norm.weight->packed, norm.weight->dtype, first + j) : 1;
      const double b =
          norm.kind == NormKind::kLayer && norm.bias != nullptr ? LoadElement(norm.bias->packed, norm.bias->dtype, first + j) : 0;
      out[j] = float((x[j] - mean) * scale * w + b);
    }
  }

  static void AttendRow(const float* q, const PagedKv& kv, const PageRun& run, int64_t begin, int64_t end,
                        const AttentionParams& params, int head, float* out) {
    const int d = kv.layout.head_dim, value_dim = kv.layout.value_dim;
    std::vector<double> p(end - begin);
    const bool has_sink = params.sinks != nullptr;
    const double sink = has_sink ? LoadElement(params.sinks->packed, params.sinks->dtype, head) : 0;
    double max = has_sink ? sink : -HUGE_VAL;
    for (int64_t s = begin; s < end; ++s) {
      const Slot slot = Find(kv, run, s);
      double dot = 0;
      for (int j = 0; j < d; ++j) dot += double(q[j]) * slot.k[j];
      dot *= params.scale;
      p[s - begin] = params.softcap > 0 ? params.softcap * std::tanh(dot / params.softcap) : dot;
      max = std::max(max, p[s - begin]);
    }
    double sum = has_sink ? std::exp(sink - max) : 0;
    for (double& x : p) sum += x = std::exp(x - max);
    std::vector<double> mean(value_dim > 0 ? value_dim : d, 0.0);
    for (int64_t s = begin; s < end; ++s) {
      const Slot slot = Find(kv, run, s);
      const SlotRow& v = value_dim > 0 ? slot.k : slot.v;
      for (size_t j = 0; j < mean.size(); ++j) mean[j] += p[s - begin] / sum * v[int(j)];
    }
    for (size_t j = 0; j < mean.size(); ++j) out[j] = float(mean[j]);
  }

  std::set<void*> buffers_;
};

}  // namespace

std::unique_ptr<Device> MakeReferenceDevice() {
  return std::make_unique<ReferenceDevice>();
}

}  // namespace kvasir
