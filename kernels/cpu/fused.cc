#include "kernels/cpu/fused.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/kv_quant.h"

namespace kvasir {
namespace {

// Stores one head's k at `slot` of its page: a column, as vectors of slots are what attention reads.
template <typename T>
void StoreK(const T* k, bool paired, int block_tokens, int head_dim, int slot, std::byte* page) {
  T* to = reinterpret_cast<T*>(page);
  if (!paired) {
    for (int j = 0; j < head_dim; ++j) to[int64_t{j} * block_tokens + slot] = k[j];
    return;
  }
  for (int j = 0; j + 1 < head_dim; j += 2) std::memcpy(to + int64_t{j} * block_tokens + 2 * slot, k + j, 2 * sizeof(T));
  if (head_dim & 1) to[KElement(paired, block_tokens, head_dim, slot, head_dim - 1)] = k[head_dim - 1];
}

template <typename T>
void StoreV(const T* v, bool paired, int block_tokens, int head_dim, int slot, std::byte* page) {
  T* to = reinterpret_cast<T*>(page) + VElement(paired, block_tokens, head_dim, slot, 0);
  const bool plain = !paired || (slot == block_tokens - 1 && (block_tokens & 1));
  if (plain) {
    std::copy_n(v, head_dim, to);
  } else {
    for (int j = 0; j < head_dim; ++j) to[2 * j] = v[j];
  }
}

// One head's k or v as codes, and its scale.
void StoreCodes(const float* x, const KvLayout& layout, bool key, int slot, std::byte* page) {
  thread_local std::vector<uint8_t> codes;
  const int d = layout.head_dim;
  if (codes.size() < size_t(d) + 1) codes.resize(size_t(d) + 1);
  const KvScale scale = QuantizeKv(layout.quant, x, d, codes.data());
  if (layout.scaled()) std::memcpy(page + layout.scales_offset() + size_t(slot) * sizeof(scale), &scale, sizeof(scale));
  const int bytes = CodeBytes(layout.quant == KvQuant::kInt4, d);
  if (layout.quant == KvQuant::kInt4) {
    codes[size_t(d)] = 0;
    for (int i = 0; i < bytes; ++i) codes[size_t(i)] = uint8_t(codes[size_t(i)] | codes[size_t(bytes + i)] << 4);
  }
  if (key) {
    for (int i = 0; i < bytes; ++i) page[int64_t{i} * layout.block_tokens + slot] = std::byte(codes[size_t(i)]);
  } else {
    std::memcpy(page + size_t(slot) * layout.row_bytes(), codes.data(), size_t(bytes));
  }
}

// v may be null: latent KV has keys only.
void StoreRow(const FusedKernels& kernels, const float* k, const float* v, const PagedKv& kv, const PageRun& run, int64_t slot) {
  const KvLayout& layout = kv.layout;
  const int page = int(slot / layout.block_tokens), inside = int(slot % layout.block_tokens), d = layout.head_dim;
  std::byte* k_page = kv.KPage(run, page);
  std::byte* v_page = kv.VPage(run, page);
  if (layout.quant != KvQuant::kNone) {
    KVASIR_CHECK(v != nullptr, "latent keys are not quantised");
    StoreCodes(k, layout, true, inside, k_page);
    StoreCodes(v, layout, false, inside, v_page);
    return;
  }
  if (layout.dtype == DType::kF32) {
    StoreK(k, false, layout.block_tokens, d, inside, k_page);
    if (v != nullptr) StoreV(v, false, layout.block_tokens, d, inside, v_page);
    return;
  }
  thread_local std::vector<uint16_t> half;
  if (half.size() < size_t(d)) half.resize(d);
  const bool paired = layout.dtype == DType::kBF16;
  const auto convert = paired ? kernels.to_bf16 : kernels.to_f16;
  convert(k, d, half.data());
  StoreK(half.data(), paired, layout.block_tokens, d, inside, k_page);
  if (v == nullptr) return;
  convert(v, d, half.data());
  StoreV(half.data(), paired, layout.block_tokens, d, inside, v_page);
}

int64_t RowGrain(int64_t width) {
  return std::max<int64_t>(1, kGrainElements / width);
}

int64_t SliceAt(const Slices& slices, int64_t row, int group) {
  return row * slices.stride + slices.offset + group * slices.group_stride;
}

template <typename F>
void ForEachSlice(ThreadTeam& team, int rows, const Slices& slices, F&& fn) {
  team.ParallelFor(rows, RowGrain(int64_t{slices.groups} * slices.width), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      for (int group = 0; group < slices.groups; ++group) fn(row, group);
  });
}

// Calls fn(slice, i) for the rows i of all slices; pieces are ranges of those rows, one slice after another.
template <typename F>
void ForEachRow(ThreadTeam& team, std::span<const SequenceSlice> slices, int64_t width, F&& fn) {
  int64_t rows = 0;
  for (const SequenceSlice& slice : slices) rows += slice.num_rows;
  team.ParallelFor(rows, RowGrain(width), [&](int64_t begin, int64_t end, int) {
    int64_t first = 0;  // of the slice
    for (const SequenceSlice& slice : slices) {
      if (first >= end) break;
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min<int64_t>(end - first, slice.num_rows);
      for (int64_t i = from; i < to; ++i) fn(slice, i);
      first += slice.num_rows;
    }
  });
}

}  // namespace

void CpuAddNorm(const FusedKernels& kernels, ThreadTeam& team, float* residual, const float* delta, float delta_scale,
                const Norm& norm, int rows, int64_t width, float* out) {
  const auto kernel = kernels.add_norm[int(norm.kind)];
  const float *weight = Floats(norm.weight), *bias = Floats(norm.bias);
  team.ParallelFor(rows, RowGrain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row_delta = delta != nullptr ? delta + i * width : nullptr;
      kernel(residual + i * width, row_delta, delta_scale, weight, bias, norm.eps, width, out + i * width);
    }
  });
}

void CpuAdd(const FusedKernels& kernels, ThreadTeam& team, float* residual, const float* delta, float scale, int rows,
            int64_t width) {
  team.ParallelFor(rows, RowGrain(width), [&](int64_t begin, int64_t end, int) {
    kernels.add_scaled(residual + begin * width, delta + begin * width, scale, (end - begin) * width);
  });
}

void CpuAddGated(const FusedKernels& kernels, ThreadTeam& team, float* residual, const float* in, const float* gate, int rows,
                 int64_t width) {
  team.ParallelFor(rows, RowGrain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      kernels.add_scaled(residual + i * width, in + i * width, 1.0f / (1.0f + std::exp(-gate[i])), width);
  });
}

void CpuNormSlices(const FusedKernels& kernels, ThreadTeam& team, float* data, int rows, const Slices& slices, const Norm& norm) {
  const auto kernel = kernels.add_norm[int(norm.kind)];
  const float *weight = Floats(norm.weight), *bias = Floats(norm.bias);
  const bool shared = norm.weight == nullptr || norm.weight->cols == slices.width;
  ForEachSlice(team, rows, slices, [&](int64_t row, int group) {
    float* at = data + SliceAt(slices, row, group);
    const int64_t first = shared ? 0 : int64_t{group} * slices.width;
    kernel(at, nullptr, 0, weight != nullptr ? weight + first : nullptr, bias != nullptr ? bias + first : nullptr, norm.eps,
           slices.width, at);
  });
}

void CpuRotateSlices(const FusedKernels& kernels, ThreadTeam& team, float* data, int rows, const Slices& slices,
                     std::span<const int32_t> positions, const RopeTable& rope) {
  const int half = rope.rotary_dim / 2;
  if (half == 0) return;
  ForEachSlice(team, rows, slices, [&](int64_t row, int group) {
    const int64_t position = positions[row];
    KVASIR_DCHECK(position >= 0 && position < rope.num_positions, "position {} but the table has {}", position,
                  rope.num_positions);
    float* at = data + SliceAt(slices, row, group);
    // In place: a pair is read before it is written, and what lies behind the pairs is not copied.
    kernels.rotate(at, 2 * half, rope.cos + position * half, rope.sin + position * half, half, at);
  });
}

void CpuCopySlices(ThreadTeam& team, const float* in, const Slices& from, int rows, float* out, const Slices& to) {
  KVASIR_DCHECK(from.groups == to.groups && from.width == to.width, "slices {} x {} copied to {} x {}", from.groups, from.width,
                to.groups, to.width);
  ForEachSlice(team, rows, from, [&](int64_t row, int group) {
    std::copy_n(in + SliceAt(from, row, group), from.width, out + SliceAt(to, row, group));
  });
}

void CpuAppendLatent(const FusedKernels& kernels, ThreadTeam& team, const float* latent, int layer,
                     std::span<const SequenceSlice> slices, const PagedKv& kv) {
  const int d = kv.layout.head_dim;
  ForEachRow(team, slices, d, [&](const SequenceSlice& slice, int64_t i) {
    const PageRun run = kv.Lookup(slice.kv, layer, 0);
    StoreRow(kernels, latent + (slice.first_row + i) * d, nullptr, kv, run, int64_t{run.num_slots} - slice.num_rows + i);
  });
}

void CpuRopeAppend(const FusedKernels& kernels, ThreadTeam& team, const float* qkv, std::span<const int32_t> positions,
                   const RopeTable& rope, int num_q_heads, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv,
                   float* q_out) {
  const int d = kv.layout.head_dim, num_kv_heads = kv.layout.num_kv_heads, half = rope.rotary_dim / 2;
  const int64_t width = int64_t{1} * (num_q_heads + 2 * num_kv_heads) * d;
  const auto append = [&](const SequenceSlice& slice, int64_t i) {
    thread_local std::vector<float> rotated;
    if (rotated.size() < size_t(d)) rotated.resize(d);
    const int64_t row = slice.first_row + i, position = positions[row];
    KVASIR_DCHECK(half == 0 || (position >= 0 && position < rope.num_positions), "position {} but the table has {}", position,
                  rope.num_positions);
    const float* cos = half > 0 ? rope.cos + position * half : nullptr;
    const float* sin = half > 0 ? rope.sin + position * half : nullptr;
    const float* in = qkv + row * width;
    for (int h = 0; h < num_q_heads; ++h) {
      kernels.rotate(in + int64_t{h} * d, d, cos, sin, half, q_out + (row * num_q_heads + h) * d);
    }
    const float* k = in + int64_t{num_q_heads} * d;
    for (int h = 0; h < num_kv_heads; ++h) {
      const PageRun run = kv.Lookup(slice.kv, layer, h);
      kernels.rotate(k + int64_t{h} * d, d, cos, sin, half, rotated.data());
      StoreRow(kernels, rotated.data(), k + int64_t{num_kv_heads + h} * d, kv, run, int64_t{run.num_slots} - slice.num_rows + i);
    }
  };
  ForEachRow(team, slices, width, append);
}

void CpuActivate(const FusedKernels& kernels, ThreadTeam& team, const ActivationParams& activation, bool gated, const float* in,
                 int rows, int width, float* out) {
  const auto kernel = kernels.activate[int(activation.kind)];
  const int64_t in_width = gated ? 2 * int64_t{width} : width;
  // Wide rows are cut too: a single decoding row of a large model is worth sharing.
  const int64_t chunk = 4096, chunks = (width + chunk - 1) / chunk;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::min<int64_t>(width, chunk));
  team.ParallelFor(rows * chunks, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / chunks, from = piece % chunks * chunk;
      const float* at = in + row * in_width + from;
      kernel(at, gated ? at + width : nullptr, std::min<int64_t>(chunk, width - from), out + row * width + from, activation.alpha,
             activation.limit);
    }
  });
}

void CpuMultiplyGate(const FusedKernels& kernels, ThreadTeam& team, float* data, GateKind kind, const float* gate,
                     int64_t gate_stride, int rows, int64_t width) {
  const auto kernel = kernels.multiply_gate[int(kind)];
  team.ParallelFor(rows, RowGrain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) kernel(data + i * width, gate + i * gate_stride, width);
  });
}

void CpuScaleRows(const FusedKernels& kernels, ThreadTeam& team, float* data, int rows, int64_t width, float scale,
                  float softcap) {
  team.ParallelFor(rows * width, kGrainElements, [&](int64_t begin, int64_t end, int) {
    if (softcap > 0) return kernels.softcap(data + begin, end - begin, scale, softcap);
    for (int64_t i = begin; i < end; ++i) data[i] *= scale;
  });
}

}  // namespace kvasir
