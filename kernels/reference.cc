// ReferenceDevice: the meaning of every op, for tests to compare against. Clear before fast; sums are doubles.
#include "kernels/reference.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>

#include "kernels/device.h"

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

// Where slot s of a run lies: its page, and the index of its first element there.
struct Slot {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  int64_t first = 0;
};

Slot Find(const PagedKv& kv, const PageRun& run, int64_t slot) {
  const int page = int(slot / kv.layout.block_tokens);
  return {kv.KPage(run, page), kv.VPage(run, page), slot % kv.layout.block_tokens * kv.layout.head_dim};
}

// Rotates one head: pairs are (i, i + rotary_dim / 2); the rest passes through.
void Rotate(const float* in, int head_dim, const RopeTable& rope, int64_t position, float* out) {
  std::copy_n(in, head_dim, out);
  const int half = rope.rotary_dim / 2;
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

  StatusOr<Weight> PackLinear(std::span<const HostMatrix> parts, DType dtype) override {
    if (parts.empty()) return InvalidArgument("a linear weight needs at least one matrix");
    int64_t rows = 0;
    for (const HostMatrix& part : parts) {
      if (part.rows <= 0 || part.cols <= 0 || part.cols != parts[0].cols) {
        return InvalidArgument("'{}' is [{}, {}]; it is packed with '{}' [{}, {}] and must be non-empty and have as many columns",
                               part.name, part.rows, part.cols, parts[0].name, parts[0].rows, parts[0].cols);
      }
      rows += part.rows;
    }
    return Pack(parts, dtype, rows, parts[0].cols);
  }

  StatusOr<Weight> PackEmbedding(const HostMatrix& table, DType dtype) override { return PackLinear({&table, 1}, dtype); }

  StatusOr<Weight> PackVector(std::span<const HostMatrix> parts) override {
    int64_t size = 0;
    for (const HostMatrix& part : parts) size += part.rows * part.cols;
    if (size <= 0) return InvalidArgument("a vector weight needs at least one element");
    return Pack(parts, DType::kF32, 1, size);
  }

  void Embed(const Weight& table, std::span<const int32_t> ids, float* out) override {
    for (size_t i = 0; i < ids.size(); ++i) {
      KVASIR_CHECK(ids[i] >= 0 && ids[i] < table.rows, "token id {} but the table has {} rows", ids[i], table.rows);
      for (int64_t j = 0; j < table.cols; ++j) {
        out[i * table.cols + j] = LoadElement(table.packed, table.dtype, ids[i] * table.cols + j);
      }
    }
  }

  void AddRmsNorm(float* residual, const float* delta, const Weight& weight, float eps, int rows, float* out) override {
    const int64_t width = weight.cols;
    for (int64_t row = 0; row < rows; ++row) {
      float* r = residual + row * width;
      double square_sum = 0;
      for (int64_t j = 0; j < width; ++j) {
        if (delta != nullptr) r[j] += delta[row * width + j];
        square_sum += double(r[j]) * r[j];
      }
      const double scale = 1 / std::sqrt(square_sum / width + eps);
      for (int64_t j = 0; j < width; ++j) {
        out[row * width + j] = float(r[j] * scale * LoadElement(weight.packed, weight.dtype, j));
      }
    }
  }

  void Linear(const float* in, int rows, const Weight& weight, const Weight* bias, float* out) override {
    const bool round = weight.dtype == DType::kBF16;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < weight.rows; ++j) {
        double sum = bias != nullptr ? LoadElement(bias->packed, bias->dtype, j) : 0;
        for (int64_t k = 0; k < weight.cols; ++k) {
          const float x = in[i * weight.cols + k];
          sum += double(round ? BF16ToF32(F32ToBF16(x)) : x) * LoadElement(weight.packed, weight.dtype, j * weight.cols + k);
        }
        out[i * weight.rows + j] = float(sum);
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
        KVASIR_CHECK(position >= 0 && position < rope.num_positions, "position {} but the table has {}", position,
                     rope.num_positions);
        for (int h = 0; h < num_q_heads; ++h) {
          Rotate(qkv + row * width + int64_t{1} * h * d, d, rope, position, q_out + (row * num_q_heads + h) * d);
        }
        for (int h = 0; h < num_kv_heads; ++h) {
          const float* k = qkv + row * width + int64_t{1} * (num_q_heads + h) * d;
          const float* v = k + int64_t{1} * num_kv_heads * d;
          Rotate(k, d, rope, position, rotated.data());
          const PageRun run = kv.Lookup(slice.kv, layer, h);
          const Slot slot = Find(kv, run, run.num_slots - slice.num_rows + i);
          for (int j = 0; j < d; ++j) {
            StoreElement(slot.k, kv.layout.dtype, slot.first + j, rotated[j]);
            StoreElement(slot.v, kv.layout.dtype, slot.first + j, v[j]);
          }
        }
      }
    }
  }

  void Attention(const float* q, int layer, const AttentionParams& params, std::span<const SequenceSlice> slices,
                 const PagedKv& kv, float* out) override {
    const int d = kv.layout.head_dim, group = params.num_q_heads / kv.layout.num_kv_heads;
    for (const SequenceSlice& slice : slices) {
      for (int h = 0; h < params.num_q_heads; ++h) {
        const PageRun run = kv.Lookup(slice.kv, layer, h / group);
        for (int i = 0; i < slice.num_rows; ++i) {
          const int64_t end = run.num_slots - slice.num_rows + i + 1;
          const int64_t begin = params.window > 0 ? std::max<int64_t>(0, end - params.window) : 0;
          const int64_t at = (int64_t{1} * (slice.first_row + i) * params.num_q_heads + h) * d;
          AttendRow(q + at, kv, run, begin, end, params.scale, out + at);
        }
      }
    }
  }

  void GatedSilu(const float* gate_up, int rows, int width, float* out) override {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const double gate = gate_up[i * 2 * width + j], up = gate_up[i * 2 * width + width + j];
        out[i * width + j] = float(gate / (1 + std::exp(-gate)) * up);
      }
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

  static void AttendRow(const float* q, const PagedKv& kv, const PageRun& run, int64_t begin, int64_t end, float scale,
                        float* out) {
    const int d = kv.layout.head_dim;
    std::vector<double> p(end - begin);
    double max = -HUGE_VAL;
    for (int64_t s = begin; s < end; ++s) {
      const Slot slot = Find(kv, run, s);
      double dot = 0;
      for (int j = 0; j < d; ++j) dot += double(q[j]) * LoadElement(slot.k, kv.layout.dtype, slot.first + j);
      p[s - begin] = dot * scale;
      max = std::max(max, p[s - begin]);
    }
    double sum = 0;
    for (double& x : p) sum += x = std::exp(x - max);
    std::vector<double> mean(d, 0.0);
    for (int64_t s = begin; s < end; ++s) {
      const Slot slot = Find(kv, run, s);
      for (int j = 0; j < d; ++j) mean[j] += p[s - begin] / sum * LoadElement(slot.v, kv.layout.dtype, slot.first + j);
    }
    for (int j = 0; j < d; ++j) out[j] = float(mean[j]);
  }

  std::set<void*> buffers_;
};

}  // namespace

std::unique_ptr<Device> MakeReferenceDevice() {
  return std::make_unique<ReferenceDevice>();
}

}  // namespace kvasir
