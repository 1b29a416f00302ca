#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/reference.h"

namespace kvasir {
namespace {

const float* Floats(const Weight& vector) {
  return static_cast<const float*>(vector.packed);
}

// Begins the token at `position`: a block's first token takes over the state of the block before, or zeros.
float* Enter(const PagedKv& kv, int seq, int layer, int64_t position, int64_t first, int64_t count) {
  const int64_t block = position / kv.layout.block_tokens;
  float* const state = kv.State(seq, layer, block) + first;
  if (position == 0) {
    std::fill_n(state, count, 0.0f);
  } else if (position % kv.layout.block_tokens == 0) {
    std::copy_n(kv.State(seq, layer, block - 1) + first, count, state);
  }
  return state;
}

void Normalize(const float* in, int width, double scale, std::vector<double>& out) {
  double squares = 0;
  for (int i = 0; i < width; ++i) squares += double(in[i]) * in[i];
  out.resize(size_t(width));
  for (int i = 0; i < width; ++i) out[size_t(i)] = in[i] / std::sqrt(squares + kDeltaNormEps) * scale;
}

}  // namespace

void ReferenceConv(const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight, int layer,
                   const SequenceSlice& slice, const PagedKv& kv, float* out) {
  const int64_t channels = net.channels(), kept = net.kernel - 1;
  const int64_t start = int64_t{kv.tables[size_t(slice.kv)].num_slots} - slice.num_rows;
  for (int64_t i = 0; i < slice.num_rows; ++i) {
    float* const last = Enter(kv, slice.kv, layer, start + i, net.matrix_floats(), kept * channels);
    const int64_t row = slice.first_row + i;
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < net.kernel; ++j) {
        sum += double(Floats(weight)[j * channels + c]) * (j < kept ? last[j * channels + c] : in[row * in_stride + c]);
      }
      out[row * channels + c] = float(sum / (1 + std::exp(-sum)));
    }
    if (kept == 0) continue;
    std::copy(last + channels, last + kept * channels, last);
    std::copy_n(in + row * in_stride, channels, last + (kept - 1) * channels);
  }
}

void ReferenceDeltaRule(const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net, const Weight& a_log,
                        const Weight& dt_bias, int layer, const SequenceSlice& slice, const PagedKv& kv, float* out) {
  const int dk = net.key_dim, dv = net.value_dim;
  const int64_t start = int64_t{kv.tables[size_t(slice.kv)].num_slots} - slice.num_rows;
  std::vector<double> q, k, found(static_cast<size_t>(dv));
  for (int64_t i = 0; i < slice.num_rows; ++i) {
    const int64_t row = slice.first_row + i;
    float* const states = Enter(kv, slice.kv, layer, start + i, 0, net.matrix_floats());
    for (int h = 0; h < net.value_heads; ++h) {
      const int64_t key_head = h / (net.value_heads / net.key_heads);
      const float* const queries = qkv + row * net.channels();
      const float* const v = queries + 2 * net.queries() + int64_t{h} * dv;
      Normalize(queries + key_head * dk, dk, 1 / std::sqrt(double(dk)), q);
      Normalize(queries + net.queries() + key_head * dk, dk, 1, k);
      const double b = gates[row * gate_stride + h], a = gates[row * gate_stride + net.value_heads + h];
      const double beta = 1 / (1 + std::exp(-b)), x = a + Floats(dt_bias)[h];
      const double decay = std::exp(-std::exp(double(Floats(a_log)[h])) * (x > 20 ? x : std::log1p(std::exp(x))));
      float* const state = states + int64_t{h} * dk * dv;
      for (int j = 0; j < dv; ++j) {
        found[size_t(j)] = 0;
        for (int d = 0; d < dk; ++d) found[size_t(j)] += decay * state[d * dv + j] * k[size_t(d)];
      }
      for (int j = 0; j < dv; ++j) {
        double sum = 0;
        for (int d = 0; d < dk; ++d) {
          float& s = state[d * dv + j];
          s = float(decay * s + k[size_t(d)] * beta * (v[j] - found[size_t(j)]));
          sum += q[size_t(d)] * s;
        }
        out[row * net.values() + int64_t{h} * dv + j] = float(sum);
      }
    }
  }
}

}  // namespace kvasir
