#include "bench/cuda/step_bench.h"

#include <algorithm>
#include <chrono>

namespace kvasir {
namespace {

constexpr int kSequences = 256, kBlockTokens = 16, kQueryHeads = 32, kSharedTokens = 8192, kWarmUp = 200, kSteps = 300;
constexpr double kGoalMicros = 30;
const KvLayout kLayout = {
    .dtype = DType::kBF16, .block_tokens = kBlockTokens, .num_layers = 32, .num_kv_heads = 8, .head_dim = 128};

struct Case {
  const char* name;
  int context;
  bool shared = false;      // all begin with the same tokens
  bool replacing = false;   // each step one sequence has ended and another has come
  bool two_groups = false;  // the second with a window
};
constexpr Case kCases[] = {
    {"1k, nothing shared", 1024},
    {"8k, nothing shared", 8192},
    {"32k, nothing shared", 32768},
    {"1k, all but the end shared", 1024, true},
    {"8k, all but the end shared", 8192, true},
    {"32k, 8k shared", 32768, true},
    {"8k, a new sequence each step", 8192, false, true},
    {"32k, two groups of layers", 32768, false, false, true},
};

// The engine's side: sequences with tables, each a token longer every step.
class Decoding {
 public:
  Decoding(CudaDevice& device, std::byte* base, const Case& c) : device_(device), case_(c), tables_(c.two_groups ? 2 : 1) {
    const int shared = c.shared ? std::min(kSharedTokens, c.context - 600) / kBlockTokens : 0;
    for (int s = 0; s < kSequences; ++s) {
      std::vector<uint32_t>& blocks = blocks_.emplace_back();
      for (int b = 0; b < (c.context + kWarmUp + kSteps) / kBlockTokens + 1; ++b)
        blocks.push_back(b < shared ? uint32_t(b) : next_block_++);
      // Of different lengths, or all would need a block in the same step.
      for (std::vector<SequenceTable>& tables : tables_)
        tables.push_back({blocks.data(), c.context - s * 37 % 512, nullptr, NextStamp()});
      slices_.push_back({s, 1, s});
    }
    ids_.assign(kSequences, 1);
    positions_.assign(kSequences, 0);
    for (const std::vector<SequenceTable>& tables : tables_) kv_.push_back({base, kLayout.block_bytes(), kLayout, tables});
  }
  // Microseconds of StartStep.
  double Step() {
    for (std::vector<SequenceTable>& tables : tables_) {
      for (int s = 0; s < kSequences; ++s) positions_[size_t(s)] = tables[size_t(s)].num_slots++;
      if (!case_.replacing) continue;
      SequenceTable& table = tables[size_t(steps_++ * 101 % kSequences)];
      table.stamp = NextStamp();
      table.num_slots = case_.context;
    }
    const auto begin = std::chrono::steady_clock::now();
    device_.StartStep({.token_ids = ids_, .positions = positions_, .slices = slices_, .kv = kv_, .program = 1}, kSequences);
    const auto end = std::chrono::steady_clock::now();
    device_.FinishStep();
    return std::chrono::duration<double, std::micro>(end - begin).count();
  }
  // Steps are planned for the attention that was asked for before: one token asks, in the one block that there is.
  void AskForAttention(const float* q, float* out) {
    const std::vector<SequenceSlice> slices = {{0, 1, 0}};
    const uint32_t block = 0;
    const std::vector<SequenceTable> tables(tables_.size(), {&block, 1, nullptr});
    std::vector<PagedKv> kv = kv_;
    for (size_t g = 0; g < kv.size(); ++g) kv[g].tables = std::span(tables).subspan(g, 1);
    device_.StartStep(
        {.token_ids = std::span(ids_).first(1), .positions = std::span(positions_).first(1), .slices = slices, .kv = kv},
        kSequences);
    for (size_t g = 0; g < kv.size(); ++g) {
      const AttentionParams params = {.num_q_heads = kQueryHeads, .scale = 0.1f, .window = g == 0 ? 0 : 128};
      device_.Attention(q, 0, params, slices, kv[g], out);
    }
    device_.FinishStep();
  }

 private:
  // Of this program alone: nothing else uses the device.
  static uint64_t NextStamp() {
    static uint64_t stamps = 0;
    return ++stamps;
  }

  CudaDevice& device_;
  const Case& case_;
  std::vector<std::vector<uint32_t>> blocks_;
  std::vector<std::vector<SequenceTable>> tables_;  // by group
  std::vector<SequenceSlice> slices_;
  std::vector<int32_t> ids_, positions_;
  std::vector<PagedKv> kv_;
  uint32_t next_block_ = 100000;
  int steps_ = 0;
};

}  // namespace

StatusOr<std::vector<BenchResult>> BenchStepHost(CudaDevice& device, const std::function<void()>& idle) {
  KVASIR_ASSIGN_OR_RETURN(void* const kv, device.Allocate(kLayout.block_bytes(), "KV"));
  const size_t row = size_t{kQueryHeads} * size_t(kLayout.head_dim) * sizeof(float);
  KVASIR_ASSIGN_OR_RETURN(void* const q, device.Allocate(row, "queries"));
  KVASIR_ASSIGN_OR_RETURN(void* const out, device.Allocate(row, "attention"));
  std::vector<BenchResult> results;
  for (const Case& c : kCases) {
    Decoding decoding(device, static_cast<std::byte*>(kv), c);
    decoding.AskForAttention(static_cast<const float*>(q), static_cast<float*>(out));
    KVASIR_RETURN_IF_ERROR(device.Synchronize());
    std::vector<double> micros, bytes;
    for (int i = 0; i < kWarmUp + kSteps; ++i) {
      const double took = decoding.Step();
      idle();
      if (i < kWarmUp) continue;
      micros.push_back(took);
      bytes.push_back(double(device.uploaded_bytes()));
    }
    const double median = Median(micros);
    results.push_back(
        {"a13", fmt::format("start a step of {}, {}", kSequences, c.name), median, "us", kGoalMicros, median / kGoalMicros});
    results.push_back({"a13", fmt::format("uploaded for it, {}", c.name), Median(bytes) / 1e3, "KB", 0, 0});
  }
  for (void* const memory : {kv, q, out}) device.Free(memory);
  return results;
}

}  // namespace kvasir
