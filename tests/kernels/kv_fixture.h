// Sequences with made-up q, k and v over shuffled pages, dense or ragged, for tests of RopeAppend and Attention on any device.
// Everything a test feeds is a function of (seed, sequence, head, slot, dim), so the same token can be fed again in another
// batch or chunk. Pages start as NaN patterns: a kernel that lets an unused slot touch a result fails loudly.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/kv_quant.h"
#include "kernels/rng.h"
#include "tests/slow.h"

namespace kvasir::testing {

struct DeviceChoice {
  std::string name;
  int threads = 1;
};

inline void PrintTo(const DeviceChoice& choice, std::ostream* out) {
  *out << choice.name << " x" << choice.threads;
}

inline std::unique_ptr<Device> MakeDevice(const DeviceChoice& choice) {
  if (choice.name == "reference") return MakeReferenceDevice();
  if (choice.name == "cuda") {
    auto device = MakeCudaDevice();
    KVASIR_CHECK(device.ok(), "{}", Message(device.status()));
    return std::move(*device);
  }
  CpuDeviceOptions options;
  options.isa = choice.name;
  options.threads = choice.threads;
  auto device = MakeCpuDevice(options);
  KVASIR_CHECK(device.ok(), "{}", Message(device.status()));
  return std::move(*device);
}

// Every ISA of this machine for the CPU device, and "cuda" where there is a GPU or the test is linked with the emulated one
// (tests/simt). Threads share the work in the same way on all ISAs: ThreadSanitizer gets the best one.
inline std::vector<std::string> DeviceNames() {
  std::vector<std::string> names = CpuIsaNames();
  if (kThreadSanitized) names.resize(1);
  if (HasCudaDevice())
    names.push_back("cuda");
  else
    std::fprintf(stderr, "Tests over CUDA are skipped: %s\n", Message(MakeCudaDevice().status()).c_str());
  return names;
}

// The reference, which has no threads, then all of DeviceNames().
inline std::vector<DeviceChoice> AllDevices() {
  std::vector<DeviceChoice> all;
  if (!kThreadSanitized) all.push_back({"reference", 1});
  for (const std::string& name : DeviceNames()) all.push_back({name, name == "cuda" ? 1 : 2});
  return all;
}

inline std::string ChoiceName(const ::testing::TestParamInfo<DeviceChoice>& info) {
  return info.param.name;
}

inline float RoundTo(DType dtype, float x) {
  if (dtype == DType::kF16) return F16ToF32(F32ToF16(x));
  if (dtype == DType::kBF16) return BF16ToF32(F32ToBF16(x));
  return x;
}

// What attention sees of one token's and head's x.
inline std::vector<float> Stored(KvFormat format, const float* x, int count) {
  std::vector<float> out(x, x + count);
  if (format.quant == KvQuant::kNone) {
    for (float& v : out) v = RoundTo(format.dtype, v);
    return out;
  }
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  const KvScale scale = QuantizeKv(format.quant, x, count, codes.data());
  for (size_t i = 0; i < codes.size(); ++i) out[i] = DequantizeKv(format.quant, codes[i], scale);
  return out;
}

struct KvShape {
  DType dtype = DType::kF32;
  int block_tokens = 16;
  int layers = 1;
  int kv_heads = 2;
  int group = 2;  // query heads per KV head
  int head_dim = 16;
  int window = 0;
  int value_dim = 0;  // > 0: latent KV, one KV head
  float softcap = 0;
  bool sinks = false;
  KvQuant quant = KvQuant::kNone;  // else dtype says nothing
  KvFormat format() const { return quant == KvQuant::kNone ? KvFormat(dtype) : KvFormat(quant); }
  int q_heads() const { return kv_heads * group; }
  int out_dim() const { return value_dim > 0 ? value_dim : head_dim; }
  std::string Describe() const {
    return fmt::format("{} block {} layers {} kv_heads {} group {} head_dim {} window {} value_dim {} softcap {} sinks {}",
                       Name(format()), block_tokens, layers, kv_heads, group, head_dim, window, value_dim, softcap, sinks);
  }
};

class KvFixture {
 public:
  // Rows of one sequence to feed in a step.
  struct Feed {
    int sequence = 0;
    int rows = 0;
  };

  // Changes what was made up as a key or value of a slot.
  using Change = std::function<void(std::vector<float>& row, bool key, int slot)>;

  KvFixture(Device& device, const KvShape& shape, std::vector<int> lengths, bool ragged, uint64_t seed, Change change = nullptr)
      : device_(device), shape_(shape), lengths_(std::move(lengths)), ragged_(ragged), seed_(seed), change_(std::move(change)) {
    layout_ = {shape.dtype, shape.block_tokens, shape.layers, shape.kv_heads, shape.head_dim, shape.value_dim};
    layout_.quant = shape.quant;
    granule_ = layout_.pages_per_head() * layout_.page_bytes();
    for (int h = 0; h < shape.q_heads(); ++h) sinks_.push_back(float(h % 5) - 1.5f);
    const HostMatrix sinks = {sinks_.data(), DType::kF32, 1, shape.q_heads(), "sinks"};
    sinks_weight_ = device.PackVector({&sinks, 1}).value();
    Rng rng(seed, 77);
    const int runs = shape.layers * shape.kv_heads;
    fed_.assign(lengths_.size(), 0);
    extra_.assign(lengths_.size(), std::vector<int>(runs, 0));
    if (ragged) {
      for (auto& extra : extra_) {
        for (int& e : extra) e = int(rng.Below(3 * shape.block_tokens + 5));
      }
    }
    // Entries, in shuffled order. Dense entries point at whole blocks, ragged ones at page pairs.
    const int pairs_per_entry = ragged ? 1 : runs;
    int count = 1;  // entry 0 is for whatever a test wants to throw away
    std::vector<std::vector<int>> pages(lengths_.size());
    for (size_t s = 0; s < lengths_.size(); ++s) {
      for (int run = 0; run < (ragged ? runs : 1); ++run) {
        pages[s].push_back((lengths_[s] + extra_[s][run] + shape.block_tokens - 1) / shape.block_tokens);
        count += pages[s].back();
      }
    }
    std::vector<uint32_t> ids(count - 1);
    std::iota(ids.begin(), ids.end(), 1);
    for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[rng.Below(i)]);
    const size_t bytes = granule_ * pairs_per_entry * count;
    base_ = static_cast<std::byte*>(device.Allocate(bytes, "test kv").value());
    const std::vector<unsigned char> nans(bytes, 0xff);
    device.CopyToDevice(base_, nans.data(), bytes);
    size_t next = 0;
    entries_.resize(lengths_.size());
    for (size_t s = 0; s < lengths_.size(); ++s) {
      for (int n : pages[s]) {
        entries_[s].emplace_back();
        for (int i = 0; i < n; ++i) entries_[s].back().push_back(ids[next++] * pairs_per_entry);
      }
    }
    if (ragged) FillExtra();
  }
  ~KvFixture() { device_.Free(base_); }

  int Length(int sequence) const { return lengths_[sequence]; }
  int Fed(int sequence) const { return fed_[sequence]; }
  int Extra(int sequence, int layer, int head) const { return extra_[sequence][layer * shape_.kv_heads + head]; }

  // [head_dim]. Slots count from the head's own beginning: the first Extra() of them came before the first fed token.
  const float* K(int s, int layer, int head, int slot) const { return Row(1, s, layer * 64 + head, slot); }
  const float* V(int s, int layer, int head, int slot) const { return Row(2, s, layer * 64 + head, slot); }
  const float* Q(int s, int q_head, int token) const { return Row(3, s, q_head, token); }

  // Appends and attends in every layer; returns the last layer's output per feed: [feed][rows * q_heads * out_dim]. With a
  // window, blocks wholly before it are given back first: their pages become NaN and their entries kNoBlock.
  std::vector<std::vector<float>> Step(const std::vector<Feed>& feeds) {
    const int d = shape_.head_dim, hq = shape_.q_heads(), hkv = shape_.kv_heads, width = (hq + 2 * hkv) * d;
    const int out_width = hq * shape_.out_dim();
    std::vector<SequenceSlice> slices;
    std::vector<SequenceTable> tables;
    std::vector<std::vector<PageRun>> runs(feeds.size());
    int rows = 0;
    for (size_t i = 0; i < feeds.size(); ++i) {
      slices.push_back({rows, feeds[i].rows, int(i)});
      rows += feeds[i].rows;
      GiveBackBeforeWindow(feeds[i].sequence);
      tables.push_back(Table(feeds[i].sequence, fed_[feeds[i].sequence] + feeds[i].rows, runs[i]));
    }
    const std::vector<int32_t> positions(rows, 0);
    const PagedKv kv = {base_, granule_, layout_, tables};
    if (++steps_ % 2 == 0)
      device_.StartStep({.positions = positions, .slices = slices, .kv = {&kv, 1}},
                        rows);  // ops are the same with it and without
    const RopeTable rope = {&one_, &one_, 0, 1};
    Buffer qkv(device_, size_t(rows) * width), q(device_, size_t(rows) * hq * d), latent(device_, size_t(rows) * d),
        out(device_, size_t(rows) * out_width);
    std::vector<float> host(size_t(rows) * width);
    for (int layer = 0; layer < shape_.layers; ++layer) {
      for (size_t i = 0; i < feeds.size(); ++i) {
        for (int r = 0; r < feeds[i].rows; ++r) {
          FillRow(feeds[i].sequence, layer, fed_[feeds[i].sequence] + r, &host[size_t(slices[i].first_row + r) * width]);
        }
      }
      device_.CopyToDevice(qkv.data, host.data(), host.size() * 4);
      if (shape_.value_dim > 0) {  // q and k lie side by side in qkv
        device_.CopySlices(qkv.data, {width, 0, 1, 0, hq * d}, rows, q.data, {hq * d, 0, 1, 0, hq * d});
        device_.CopySlices(qkv.data, {width, hq * d, 1, 0, d}, rows, latent.data, {d, 0, 1, 0, d});
        device_.AppendLatent(latent.data, layer, slices, kv);
      } else {
        device_.RopeAppend(qkv.data, positions, rope, hq, layer, slices, kv, q.data);
      }
      AttentionParams params = {hq, Scale(), shape_.window, shape_.softcap};
      if (shape_.sinks) params.sinks = &sinks_weight_;
      device_.Attention(q.data, layer, params, slices, kv, out.data);
    }
    std::vector<std::vector<float>> result;
    for (size_t i = 0; i < feeds.size(); ++i) {
      std::vector<float> part(size_t(feeds[i].rows) * out_width);
      device_.CopyToHost(part.data(), out.data + size_t(slices[i].first_row) * out_width, part.size() * 4);
      result.push_back(std::move(part));
      fed_[feeds[i].sequence] += feeds[i].rows;
    }
    EXPECT_TRUE(device_.Synchronize().ok());
    EXPECT_TRUE(device_.FinishStep());
    return result;
  }

  // Softmax attention of one token in the last layer, in double, over K and V rounded to the KV type. [q_heads * out_dim]
  std::vector<double> Oracle(int s, int token) const {
    const int d = shape_.head_dim, layer = shape_.layers - 1, out_dim = shape_.out_dim();
    std::vector<double> out(size_t(shape_.q_heads()) * out_dim, 0.0);
    for (int h = 0; h < shape_.q_heads(); ++h) {
      const int head = h / shape_.group;
      const int end = Extra(s, layer, head) + token + 1;
      const int begin = shape_.window > 0 ? std::max(0, end - shape_.window) : 0;
      std::vector<double> p(end - begin);
      double max = -HUGE_VAL, sum = 0;
      const float* q = Q(s, h, token);
      for (int slot = begin; slot < end; ++slot) {
        const std::vector<float> k = Stored(shape_.format(), K(s, layer, head, slot), d);
        double dot = 0;
        for (int j = 0; j < d; ++j) dot += double(q[j]) * k[size_t(j)];
        p[slot - begin] = shape_.softcap > 0 ? shape_.softcap * std::tanh(dot * Scale() / shape_.softcap) : dot * Scale();
        max = std::max(max, p[slot - begin]);
      }
      for (double& x : p) sum += x = std::exp(x - max);
      if (shape_.sinks) sum += std::exp(sinks_[h] - max);
      for (int slot = begin; slot < end; ++slot) {
        const float* made = shape_.value_dim > 0 ? K(s, layer, head, slot) : V(s, layer, head, slot);
        const std::vector<float> v = Stored(shape_.format(), made, d);
        for (int j = 0; j < out_dim; ++j) out[size_t(h) * out_dim + j] += p[slot - begin] / sum * v[size_t(j)];
      }
    }
    return out;
  }

  float Scale() const { return float(1 / std::sqrt(double(shape_.head_dim))); }

 private:
  struct Buffer {
    Buffer(Device& d, size_t floats) : device(d), data(static_cast<float*>(d.Allocate(floats * 4, "test").value())) {}
    ~Buffer() { device.Free(data); }
    Device& device;
    float* data;
  };

  // Roughly normal with deviation 1, queries 1.5; made when first asked for.
  const float* Row(int kind, int s, int head, int slot) const {
    std::vector<float>& row = rows_[uint64_t(kind) << 60 | uint64_t(s) << 48 | uint64_t(head) << 32 | uint32_t(slot)];
    if (row.empty()) {
      row.resize(size_t(shape_.head_dim));
      for (int j = 0; j < shape_.head_dim; ++j) {
        const auto x = Philox4x32(seed_, uint64_t(kind) << 40 | uint64_t(s) << 20 | head, uint64_t(slot) << 20 | j);
        const float normal = (float(x[0]) + float(x[1]) + float(x[2]) - 1.5f * 4294967296.0f) * 0x1p-31f;
        row[size_t(j)] = kind == 3 ? 1.5f * normal : normal;
      }
      if (kind < 3 && change_ != nullptr) change_(row, kind == 1, slot);
    }
    return row.data();
  }

  void FillRow(int s, int layer, int token, float* row) const {
    const int d = shape_.head_dim;
    for (int h = 0; h < shape_.q_heads(); ++h, row += d) std::copy_n(Q(s, h, token), d, row);
    for (int h = 0; h < shape_.kv_heads; ++h, row += d) std::copy_n(K(s, layer, h, Extra(s, layer, h) + token), d, row);
    for (int h = 0; h < shape_.kv_heads; ++h, row += d) std::copy_n(V(s, layer, h, Extra(s, layer, h) + token), d, row);
  }

  void GiveBackBeforeWindow(int s) {
    if (shape_.window == 0) return;
    const std::vector<unsigned char> nans(granule_ * (ragged_ ? 1 : shape_.layers * shape_.kv_heads), 0xff);
    for (size_t run = 0; run < entries_[s].size(); ++run) {
      // The first of the step's rows sees the window that ends with itself.
      const int first_seen = std::max(0, (ragged_ ? extra_[s][run] : 0) + fed_[s] + 1 - shape_.window);
      for (int block = 0; (block + 1) * shape_.block_tokens <= first_seen; ++block) {
        uint32_t& entry = entries_[s][run][block];
        if (entry == kNoBlock) continue;
        device_.CopyToDevice(base_ + size_t{entry} * granule_, nans.data(), nans.size());
        entry = kNoBlock;
      }
    }
  }

  SequenceTable Table(int s, int slots, std::vector<PageRun>& runs) const {
    if (!ragged_) return {entries_[s][0].data(), slots, nullptr};
    for (size_t run = 0; run < entries_[s].size(); ++run) {
      runs.push_back({entries_[s][run].data(), 0, extra_[s][run] + slots});
    }
    return {nullptr, 0, runs.data()};
  }

  // Appends the slots that ragged heads hold beyond the others, one at a time; heads that want none write to entry 0.
  void FillExtra() {
    const int d = shape_.head_dim, width = (shape_.q_heads() + 2 * shape_.kv_heads) * d;
    Buffer qkv(device_, width), q(device_, size_t(shape_.q_heads()) * d);
    std::vector<float> host(width, 0.0f);
    const uint32_t waste = 0;
    const int32_t position = 0;
    const RopeTable rope = {&one_, &one_, 0, 1};
    for (size_t s = 0; s < lengths_.size(); ++s) {
      for (int slot = 0; slot < 3 * shape_.block_tokens + 5; ++slot) {
        std::vector<PageRun> runs;
        for (size_t run = 0; run < entries_[s].size(); ++run) {
          runs.push_back(slot < extra_[s][run] ? PageRun{entries_[s][run].data(), 0, slot + 1} : PageRun{&waste, 0, 1});
        }
        const SequenceTable table = {nullptr, 0, runs.data()};
        const PagedKv kv = {base_, granule_, layout_, {&table, 1}};
        const SequenceSlice slice = {0, 1, 0};
        for (int layer = 0; layer < shape_.layers; ++layer) {
          for (int h = 0; h < shape_.kv_heads; ++h) {
            std::copy_n(K(int(s), layer, h, slot), d, &host[(shape_.q_heads() + h) * d]);
            std::copy_n(V(int(s), layer, h, slot), d, &host[(shape_.q_heads() + shape_.kv_heads + h) * d]);
          }
          device_.CopyToDevice(qkv.data, host.data(), host.size() * 4);
          if (shape_.value_dim > 0) {
            device_.CopyToDevice(q.data, &host[shape_.q_heads() * d], d * 4);
            device_.AppendLatent(q.data, layer, {&slice, 1}, kv);
          } else {
            device_.RopeAppend(qkv.data, {&position, 1}, rope, shape_.q_heads(), layer, {&slice, 1}, kv, q.data);
          }
        }
      }
    }
  }

  Device& device_;
  const KvShape shape_;
  const std::vector<int> lengths_;
  const bool ragged_;
  const uint64_t seed_;
  const Change change_;
  int steps_ = 0;
  const float one_ = 1;
  std::vector<float> sinks_;  // [q_heads]
  Weight sinks_weight_;
  KvLayout layout_;
  size_t granule_ = 0;
  std::byte* base_ = nullptr;
  mutable std::unordered_map<uint64_t, std::vector<float>> rows_;
  std::vector<int> fed_;                                     // [sequence] tokens appended
  std::vector<std::vector<int>> extra_;                      // [sequence][run]
  std::vector<std::vector<std::vector<uint32_t>>> entries_;  // [sequence][run or 0]
};

}  // namespace kvasir::testing
