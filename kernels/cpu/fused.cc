#include "kernels/cpu/fused.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/attention_kernels.h"

namespace kvasir {
namespace {

constexpr int64_t kGrainElements = 1 << 13;  // below this a piece is not worth handing to another thread

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

void StoreRow(const FusedKernels& kernels, const float* k, const float* v, const PagedKv& kv, const PageRun& run, int64_t slot) {
  const KvLayout& layout = kv.layout;
  const int page = int(slot / layout.block_tokens), inside = int(slot % layout.block_tokens), d = layout.head_dim;
  std::byte* k_page = kv.KPage(run, page);
  std::byte* v_page = kv.VPage(run, page);
  if (layout.dtype == DType::kF32) {
    StoreK(k, false, layout.block_tokens, d, inside, k_page);
    StoreV(v, false, layout.block_tokens, d, inside, v_page);
    return;
  }
  thread_local std::vector<uint16_t> half;
  if (half.size() < size_t(d)) half.resize(d);
  const bool paired = layout.dtype == DType::kBF16;
  const auto convert = paired ? kernels.to_bf16 : kernels.to_f16;
  convert(k, d, half.data());
  StoreK(half.data(), paired, layout.block_tokens, d, inside, k_page);
  convert(v, d, half.data());
  StoreV(half.data(), paired, layout.block_tokens, d, inside, v_page);
}

}  // namespace

void CpuAddRmsNorm(const FusedKernels& kernels, ThreadTeam& team, float* residual, const float* delta, const float* weight,
                   float eps, int rows, int64_t width, float* out) {
  team.ParallelFor(rows, std::max<int64_t>(1, kGrainElements / width), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row_delta = delta != nullptr ? delta + i * width : nullptr;
      kernels.add_rms_norm(residual + i * width, row_delta, weight, eps, width, out + i * width);
    }
  });
}

void CpuRopeAppend(const FusedKernels& kernels, ThreadTeam& team, const float* qkv, std::span<const int32_t> positions,
                   const RopeTable& rope, int num_q_heads, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv,
                   float* q_out) {
  const int d = kv.layout.head_dim, num_kv_heads = kv.layout.num_kv_heads, half = rope.rotary_dim / 2;
  const int64_t width = int64_t{1} * (num_q_heads + 2 * num_kv_heads) * d;
  int64_t rows = 0;
  for (const SequenceSlice& slice : slices) rows += slice.num_rows;

  const auto append = [&](const SequenceSlice& slice, int64_t i) {
    thread_local std::vector<float> rotated;
    if (rotated.size() < size_t(d)) rotated.resize(d);
    const int64_t row = slice.first_row + i, position = positions[row];
    KVASIR_DCHECK(position >= 0 && position < rope.num_positions, "position {} but the table has {}", position,
                  rope.num_positions);
    const float* cos = rope.cos + position * half;
    const float* sin = rope.sin + position * half;
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
  // Pieces are ranges of the rows of all slices, one slice after another.
  team.ParallelFor(rows, std::max<int64_t>(1, kGrainElements / width), [&](int64_t begin, int64_t end, int) {
    int64_t first = 0;  // of the slice
    for (const SequenceSlice& slice : slices) {
      if (first >= end) break;
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min<int64_t>(end - first, slice.num_rows);
      for (int64_t i = from; i < to; ++i) append(slice, i);
      first += slice.num_rows;
    }
  });
}

void CpuGatedSilu(const FusedKernels& kernels, ThreadTeam& team, const float* gate_up, int rows, int width, float* out) {
  // Wide rows are cut too: a single decoding row of a large model is worth sharing.
  const int64_t chunk = 4096, chunks = (width + chunk - 1) / chunk;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::min<int64_t>(width, chunk));
  team.ParallelFor(rows * chunks, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / chunks, from = piece % chunks * chunk;
      const float* gate = gate_up + row * 2 * width + from;
      kernels.gated_silu(gate, gate + width, std::min<int64_t>(chunk, width - from), out + row * width + from);
    }
  });
}

}  // namespace kvasir
