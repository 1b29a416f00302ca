#include "bench/attention_bench.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "bench/result.h"
#include "kernels/kv_quant.h"
#include "kernels/rng.h"

namespace kvasir {
namespace {

struct Heads {
  int kv_heads;
  int group;  // query heads of each
  int dim;
};
constexpr Heads kGrouped = {8, 4, 128};  // an 8B Llama's
constexpr Heads kPlain = {12, 1, 64};    // a 110M Llama's

// KV of one layer for some sequences, and one decode step's attention over it.
class Decode {
 public:
  // The sequences begin with `shared` tokens of the same blocks, and have `own` tokens more each.
  static StatusOr<std::unique_ptr<Decode>> Make(Device* device, Heads heads, int sequences, int shared, int own,
                                                KvFormat format = DType::kBF16) {
    auto decode = std::make_unique<Decode>();
    decode->device_ = device;
    decode->heads_ = heads;
    KvLayout& layout = decode->layout_;
    layout = {
        .dtype = format.dtype, .num_layers = 1, .num_kv_heads = heads.kv_heads, .head_dim = heads.dim, .quant = format.quant};
    const int shared_blocks = shared / layout.block_tokens, own_blocks = own / layout.block_tokens;
    const size_t blocks = size_t(shared_blocks) + size_t(sequences) * size_t(own_blocks);
    decode->bytes_ = layout.block_bytes() * blocks;
    KVASIR_ASSIGN_OR_RETURN(decode->base_, device->Allocate(decode->bytes_, "benchmark KV"));
    std::memset(decode->base_, 0x3c, decode->bytes_);
    const size_t width = size_t(sequences) * size_t(heads.kv_heads * heads.group * heads.dim) * sizeof(float);
    KVASIR_ASSIGN_OR_RETURN(decode->q_, device->Allocate(width, "q"));
    KVASIR_ASSIGN_OR_RETURN(decode->out_, device->Allocate(width, "out"));
    decode->order_.resize(blocks);
    decode->SetShuffled(true);
    decode->shared_blocks_ = shared_blocks;
    decode->own_blocks_ = own_blocks;
    decode->tables_.resize(size_t(sequences));
    return decode;
  }
  ~Decode() {
    for (void* buffer : {base_, q_, out_}) device_->Free(buffer);
  }

  // The blocks in the order of the texts, or shuffled.
  void SetShuffled(bool shuffled) {
    std::iota(order_.begin(), order_.end(), 0u);
    Rng rng(2);
    for (size_t i = shuffled ? order_.size() : 0; i > 1; --i) std::swap(order_[i - 1], order_[rng.Below(i)]);
  }
  size_t bytes() const { return bytes_; }

  double Seconds() {
    std::vector<SequenceTable> tables;
    std::vector<SequenceSlice> slices;
    for (size_t s = 0; s < tables_.size(); ++s) {
      std::vector<uint32_t>& table = tables_[s];
      table.assign(order_.begin(), order_.begin() + shared_blocks_);
      const auto own = order_.begin() + shared_blocks_ + int64_t(s) * own_blocks_;
      table.insert(table.end(), own, own + own_blocks_);
      tables.push_back({table.data(), int32_t(table.size()) * layout_.block_tokens, nullptr});
      slices.push_back({int32_t(s), 1, int32_t(s)});
    }
    const PagedKv kv = {static_cast<std::byte*>(base_), layout_.block_bytes(), layout_, tables};
    const auto begin = std::chrono::steady_clock::now();
    device_->Attention(static_cast<const float*>(q_), 0, {.num_q_heads = heads_.kv_heads * heads_.group, .scale = 0.088f}, slices,
                       kv, static_cast<float*>(out_));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  Device* device_ = nullptr;
  Heads heads_{};
  KvLayout layout_;
  void *base_ = nullptr, *q_ = nullptr, *out_ = nullptr;
  size_t bytes_ = 0;
  int shared_blocks_ = 0, own_blocks_ = 0;
  std::vector<uint32_t> order_;
  std::vector<std::vector<uint32_t>> tables_;
};

// Bytes of KV per second over streaming reads; blocks shuffled, as they are in a server that has run for a while.
Status BenchContext(const AttentionBench& bench, int sequences, int tokens, int repetitions) {
  KVASIR_ASSIGN_OR_RETURN(const auto decode, Decode::Make(bench.device, kGrouped, sequences, 0, tokens));
  const double bytes = double(decode->bytes());
  std::vector<double> stream, seconds, ratios, relative;
  for (int i = 0; i < repetitions; ++i) {
    stream.push_back(bench.stream_bytes_per_second());
    decode->SetShuffled(false);
    const double in_order = decode->Seconds();
    decode->SetShuffled(true);
    seconds.push_back(decode->Seconds());
    ratios.push_back(bytes / seconds.back() / stream.back());
    relative.push_back(seconds.back() / in_order);
  }
  bench.print("a4", fmt::format("decode attention, {} x {} tokens", sequences, tokens), bytes / Median(seconds) / 1e9, "GB/s",
              Median(stream) / 1e9, Median(ratios));
  bench.print("a4", fmt::format("shuffled blocks over blocks in order, {} x {} tokens", sequences, tokens), Median(relative), "x",
              1, 1 / Median(relative));
  return OkStatus();
}

// A decode step over quantised KV, in times of the same step over bfloat16.
Status BenchQuantised(const AttentionBench& bench, int sequences, int tokens) {
  KVASIR_ASSIGN_OR_RETURN(const auto plain, Decode::Make(bench.device, kGrouped, sequences, 0, tokens));
  for (const KvQuant quant : {KvQuant::kFp8, KvQuant::kInt8, KvQuant::kInt4}) {
    KVASIR_ASSIGN_OR_RETURN(const auto coded, Decode::Make(bench.device, kGrouped, sequences, 0, tokens, quant));
    std::vector<double> ratios;
    plain->Seconds();
    coded->Seconds();
    for (int i = 0; i < 5; ++i) {
      const double seconds = plain->Seconds();
      ratios.push_back(coded->Seconds() / seconds);
    }
    const double bytes = double(coded->bytes()) / double(plain->bytes());
    bench.print(
        "a8",
        fmt::format("decode attention over {} KV, {} x {} tokens, times bfloat16's", Name(KvFormat(quant)), sequences, tokens),
        Median(ratios), "x", bytes, bytes / Median(ratios));
  }
  return OkStatus();
}

// One decode step of sequences that begin alike, over the same step with the prefix stored once for each.
Status BenchShared(const AttentionBench& bench, Heads heads, int sequences, int shared, int own) {
  KVASIR_ASSIGN_OR_RETURN(const auto together, Decode::Make(bench.device, heads, sequences, shared, own));
  KVASIR_ASSIGN_OR_RETURN(const auto apart, Decode::Make(bench.device, heads, sequences, 0, shared + own));
  std::vector<double> gains;
  together->Seconds();
  for (int i = 0; i < 5; ++i) {
    const double alone = apart->Seconds();
    gains.push_back(alone / together->Seconds());
  }
  bench.print("a10",
              fmt::format("{} sequences sharing {} of {} tokens, {} heads of {} over {}, speed-up", sequences, shared,
                          shared + own, heads.kv_heads * heads.group, heads.dim, heads.kv_heads),
              Median(gains), "x", 4, Median(gains) / 4);
  return OkStatus();
}

}  // namespace

Status RunAttentionBench(const AttentionBench& bench) {
  if (bench.wanted("a4")) {
    KVASIR_RETURN_IF_ERROR(BenchContext(bench, 8, 4096, 9));
    for (const int tokens : {16384, 65536}) {
      for (const int sequences : {1, 8}) KVASIR_RETURN_IF_ERROR(BenchContext(bench, sequences, tokens, 5));
    }
  }
  if (bench.wanted("a8")) {
    KVASIR_RETURN_IF_ERROR(BenchQuantised(bench, 8, 4096));
    KVASIR_RETURN_IF_ERROR(BenchQuantised(bench, 1, 32768));
  }
  if (!bench.wanted("a10")) return OkStatus();
  KVASIR_RETURN_IF_ERROR(BenchShared(bench, kPlain, 32, 8192, 64));
  KVASIR_RETURN_IF_ERROR(BenchShared(bench, kGrouped, 32, 8192, 64));
  KVASIR_RETURN_IF_ERROR(BenchShared(bench, kGrouped, 2, 8192, 64));
  return BenchShared(bench, kGrouped, 32, 512, 64);
}

}  // namespace kvasir
