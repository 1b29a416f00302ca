#include "kernels/cpu/delta.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/fused.h"

namespace kvasir {
namespace {

constexpr int64_t kConvChannels = 512;  // of one piece of work

int64_t FirstPosition(const SequenceSlice& slice, const PagedKv& kv) {
  return int64_t{kv.tables[size_t(slice.kv)].num_slots} - slice.num_rows;
}

// One text, channels [first, first + count). `last` holds the inputs of the kernel - 1 tokens before the slice, oldest first.
void ConvolveChannels(const DeltaKernels& kernels, const float* in, int64_t in_stride, const DeltaNet& net, const float* weight,
                      int layer, const SequenceSlice& slice, const PagedKv& kv, int64_t first, int64_t count, float* out) {
  const int64_t channels = net.channels(), kept = net.kernel - 1, start = FirstPosition(slice, kv);
  const int block_tokens = kv.layout.block_tokens;
  const auto state = [&](int64_t block) { return kv.State(slice.kv, layer, block) + net.matrix_floats() + first; };
  thread_local std::vector<float> last;
  thread_local std::vector<const float*> rows;
  last.assign(size_t(kept * count), 0.0f);
  rows.resize(size_t(net.kernel));
  if (start > 0) {
    const float* const from = state((start - 1) / block_tokens);
    for (int64_t j = 0; j < kept; ++j) std::copy_n(from + j * channels, count, last.data() + j * count);
  }
  in += slice.first_row * in_stride + first;
  // The input of the slice's row i; the rows before it are in `last`.
  const auto input = [&](int64_t i) { return i >= 0 ? in + i * in_stride : last.data() + (i + kept) * count; };
  for (int64_t i = 0; i < slice.num_rows; ++i) {
    for (int64_t j = 0; j < net.kernel; ++j) rows[size_t(j)] = input(i - kept + j);
    kernels.conv_silu(rows.data(), weight + first, channels, net.kernel, count, out + (slice.first_row + i) * channels + first);
    if ((start + i + 1) % block_tokens != 0 && i + 1 < slice.num_rows) continue;
    float* const to = state((start + i) / block_tokens);
    for (int64_t j = 0; j < kept; ++j) std::copy_n(input(i - kept + 1 + j), count, to + j * channels);
  }
}

}  // namespace

void CpuCausalConv(const DeltaKernels& kernels, ThreadTeam& team, const float* in, int64_t in_stride, const DeltaNet& net,
                   const Weight& weight, int layer, std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) {
  const int64_t channels = net.channels(), pieces = (channels + kConvChannels - 1) / kConvChannels;
  team.ParallelFor(int64_t(slices.size()) * pieces, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kConvChannels;
      ConvolveChannels(kernels, in, in_stride, net, Floats(&weight), layer, slices[size_t(i / pieces)], kv, first,
                       std::min(kConvChannels, channels - first), out);
    }
  });
}

void CpuDeltaRule(const DeltaKernels& kernels, ThreadTeam& team, const float* qkv, const float* gates, int64_t gate_stride,
                  const DeltaNet& net, const Weight& a_log, const Weight& dt_bias, int layer,
                  std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) {
  const int dk = net.key_dim, dv = net.value_dim, block_tokens = kv.layout.block_tokens;
  const int64_t matrix = int64_t{dk} * dv;
  const float q_scale = 1.0f / std::sqrt(float(dk));
  const auto run = [&](const SequenceSlice& slice, int h) {
    thread_local std::vector<float> q, k;
    q.resize(size_t(dk));
    k.resize(size_t(dk));
    const int64_t start = FirstPosition(slice, kv), key_head = h / (net.value_heads / net.key_heads);
    const float rate = -std::exp(Floats(&a_log)[h]);
    float* state = nullptr;
    for (int64_t i = 0; i < slice.num_rows; ++i) {
      const int64_t position = start + i, block = position / block_tokens, row = slice.first_row + i;
      if (state == nullptr || position % block_tokens == 0) {
        state = kv.State(slice.kv, layer, block) + h * matrix;
        if (position == 0) {
          std::fill_n(state, matrix, 0.0f);
        } else if (position % block_tokens == 0) {
          std::copy_n(kv.State(slice.kv, layer, block - 1) + h * matrix, matrix, state);
        }
      }
      const float* const in = qkv + row * net.channels();
      kernels.normalize(in + key_head * dk, dk, kDeltaNormEps, q_scale, q.data());
      kernels.normalize(in + net.queries() + key_head * dk, dk, kDeltaNormEps, 1, k.data());
      const float* const gate = gates + row * gate_stride + h;
      const float x = gate[net.value_heads] + Floats(&dt_bias)[h];
      const float softplus = x > 20 ? x : std::log1p(std::exp(x));
      kernels.delta_step(state, dk, dv, q.data(), k.data(), in + 2 * net.queries() + int64_t{h} * dv, std::exp(rate * softplus),
                         1.0f / (1.0f + std::exp(-gate[0])), out + row * net.values() + int64_t{h} * dv);
    }
  };
  team.ParallelFor(int64_t(slices.size()) * net.value_heads, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) run(slices[size_t(i / net.value_heads)], int(i % net.value_heads));
  });
}

}  // namespace kvasir
