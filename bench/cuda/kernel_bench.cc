#include "bench/cuda/kernel_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "bench/cuda/ceilings.h"
#include "bench/cuda/step_bench.h"
#include "bench/result.h"
#include "kernels/device.h"
#include "kernels/kv_quant.h"
#include "kernels/rng.h"

namespace kvasir {
namespace {

constexpr int kRepetitions = 7;  // medians of

// Llama-3-8B's attention.
constexpr int kKvHeads = 8, kGroup = 4, kHeadDim = 128, kBlockTokens = 16;

class Bench {
 public:
  Bench(std::unique_ptr<Device> device, const CudaBenchOptions& options) : device_(std::move(device)), options_(options) {}

  Status Run() {
    KVASIR_ASSIGN_OR_RETURN(machine_, MeasureCudaCeilings());
    Print("", "read", machine_.read_bytes_per_second / 1e9, "GB/s", 0, 0);
    Print("", "copy", machine_.copy_bytes_per_second / 1e9, "GB/s", 0, 0);
    Print("", "cuBLASLt bf16 8192^3", machine_.gemm_bf16_flops / 1e12, "TFLOP/s", 0, 0);
    if (Wanted("link")) KVASIR_RETURN_IF_ERROR(Links());
    if (Wanted("a6")) KVASIR_RETURN_IF_ERROR(Decode("a6", {{32, 4096}, {32, 32768}, {256, 4096}, {256, 16384}}));
    if (Wanted("a7")) KVASIR_RETURN_IF_ERROR(Decode("a7", {{1, 1024}, {1, 4096}, {1, 32768}}));
    if (Wanted("a8")) {  // the times compare: goals 0.60 (fp8), 0.62 (int8) and 0.42 (int4) of bfloat16's
      for (const KvFormat format :
           {KvFormat(DType::kBF16), KvFormat(KvQuant::kFp8), KvFormat(KvQuant::kInt8), KvFormat(KvQuant::kInt4)})
        KVASIR_RETURN_IF_ERROR(Decode("a8", {{32, 4096}, {32, 32768}, {1, 32768}}, format));
    }
    if (Wanted("a9")) KVASIR_RETURN_IF_ERROR(Prefill());
    if (Wanted("a10")) KVASIR_RETURN_IF_ERROR(Cascade());
    if (Wanted("a11")) KVASIR_RETURN_IF_ERROR(Products());
    if (Wanted("a12")) KVASIR_RETURN_IF_ERROR(Fused());
    if (Wanted("a12")) KVASIR_RETURN_IF_ERROR(Sampling());
    if (Wanted("a13")) KVASIR_RETURN_IF_ERROR(Steps());
    return device_->Synchronize();
  }

 private:
  bool Wanted(std::string_view id) const {
    return options_.cases.empty() || std::find(options_.cases.begin(), options_.cases.end(), id) != options_.cases.end();
  }
  void Print(const char* id, std::string name, double value, const char* unit, double ceiling, double ratio) {
    PrintResult({id, std::move(name), value, unit, ceiling, ratio}, options_.json);
  }

  // Median seconds of work(), which enqueues: many in a row, so that what is measured is the device, or starting it.
  template <typename Work>
  double Seconds(Work work) {
    work();
    if (!device_->Synchronize().ok()) return HUGE_VAL;
    const auto run = [&](int count) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < count; ++i) work();
      if (!device_->Synchronize().ok()) return HUGE_VAL;
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / count;
    };
    const int count = int(std::clamp(0.02 / run(2), 1.0, 200.0));
    std::vector<double> times;
    for (int i = 0; i < kRepetitions; ++i) times.push_back(run(count));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  Status Links() {
    for (const bool programmatic : {false, true}) {
      KVASIR_ASSIGN_OR_RETURN(const double seconds, MeasureGraphGap(programmatic));
      Print("", fmt::format("graph node that does nothing{}", programmatic ? ", programmatic" : ""), seconds * 1e6, "us", 0, 0);
    }
    for (const size_t bytes : {size_t{16} << 10, size_t{128} << 10, size_t{2} << 20}) {
      const std::pair<LinkDirection, const char*> directions[] = {
          {LinkDirection::kToDevice, "to device"}, {LinkDirection::kToHost, "to host"}, {LinkDirection::kBoth, "both ways"}};
      for (const auto& [direction, name] : directions) {
        KVASIR_ASSIGN_OR_RETURN(const double rate, MeasureLink(direction, bytes));
        Print("", fmt::format("pinned {} KiB, {}", bytes >> 10, name), rate / 1e9, "GB/s", 0, 0);
      }
    }
    return OkStatus();
  }

  // Device memory that is given back at the end of a case.
  struct Memory {
    ~Memory() { device->Free(data); }
    float* floats() const { return static_cast<float*>(data); }
    Device* device;
    void* data = nullptr;
  };
  Status Make(Memory& memory, size_t bytes, bool random = false) {
    memory.device = device_.get();
    KVASIR_ASSIGN_OR_RETURN(memory.data, device_->Allocate(bytes, "benchmark"));
    if (!random) return OkStatus();
    if (values_.empty()) {
      Rng rng(1);
      values_.resize(size_t{1} << 22);
      for (float& v : values_) v = float(rng.Uniform()) * 2 - 1;
    }
    for (size_t at = 0; at < bytes; at += values_.size() * 4) {
      device_->CopyToDevice(static_cast<std::byte*>(memory.data) + at, values_.data(), std::min(values_.size() * 4, bytes - at));
    }
    return OkStatus();
  }

  // Sequences of equal length over shuffled blocks of one layer; the last `rows` tokens of each are the step's.
  struct Step {
    std::vector<std::vector<uint32_t>> blocks;
    std::vector<SequenceTable> tables;
    std::vector<SequenceSlice> slices;
    std::vector<int32_t> positions;
    std::vector<PagedKv> kv;
    size_t kv_bytes = 0;
  };
  Status MakeStep(int sequences, int context, int rows, Memory& pool, Step& step, KvFormat format = DType::kBF16) {
    const KvLayout layout = {format.dtype, kBlockTokens, 1, kKvHeads, kHeadDim, 0, 0, format.quant};
    const int each = (context + kBlockTokens - 1) / kBlockTokens;
    std::vector<uint32_t> ids(size_t(sequences) * each);
    std::iota(ids.begin(), ids.end(), 0);
    Rng rng(2);
    for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[rng.Below(i)]);
    KVASIR_RETURN_IF_ERROR(Make(pool, ids.size() * layout.block_bytes()));
    KVASIR_RETURN_IF_ERROR(FillKv(layout, pool, ids.size()));
    for (int s = 0; s < sequences; ++s) {
      step.blocks.emplace_back(ids.begin() + int64_t{s} * each, ids.begin() + int64_t{s + 1} * each);
      step.slices.push_back({s * rows, rows, s});
      for (int i = 0; i < rows; ++i) step.positions.push_back(context - rows + i);
    }
    for (const auto& blocks : step.blocks) step.tables.push_back({blocks.data(), context, nullptr});
    step.kv.push_back({static_cast<std::byte*>(pool.data), layout.block_bytes(), layout, step.tables});
    step.kv_bytes = size_t(sequences) * size_t(context) * layout.token_bytes();
    return OkStatus();
  }
  // Ordinary numbers in bfloat16.
  Status FillKv(const KvLayout& layout, const Memory& pool, size_t blocks) {
    std::vector<uint16_t> some(size_t{1} << 22);
    Rng rng(3);
    for (uint16_t& v : some) v = F32ToBF16(float(rng.Uniform()) * 2 - 1);
    const size_t bytes = blocks * layout.block_bytes();
    for (size_t at = 0; at < bytes; at += some.size() * 2) {
      device_->CopyToDevice(static_cast<std::byte*>(pool.data) + at, some.data(), std::min(some.size() * 2, bytes - at));
    }
    return OkStatus();
  }

  // Seconds of attention in a step that was planned for it: what an op is asked for once the next step brings.
  double AttentionSeconds(const Step& step, const AttentionParams& params, const Memory& q, const Memory& out) {
    const auto start = [&] {
      device_->StartStep({.positions = step.positions, .slices = step.slices, .kv = step.kv}, int(step.positions.size()));
    };
    const auto attend = [&] { device_->Attention(q.floats(), 0, params, step.slices, step.kv[0], out.floats()); };
    start();
    attend();
    device_->FinishStep();
    start();
    const double seconds = Seconds(attend);
    device_->FinishStep();
    return seconds;
  }

  // Many texts that begin alike, beside as many that do not.
  Status Cascade() {
    constexpr int kPrefix = 8192, kSuffix = 256;
    for (const int batch : {2, 4, 32}) {
      Memory pool, q, out;
      Step step;
      KVASIR_RETURN_IF_ERROR(MakeStep(batch, kPrefix + kSuffix, 1, pool, step));
      const size_t q_bytes = size_t(batch) * kKvHeads * kGroup * kHeadDim * 4;
      KVASIR_RETURN_IF_ERROR(Make(q, q_bytes, true));
      KVASIR_RETURN_IF_ERROR(Make(out, q_bytes));
      const AttentionParams params = {.num_q_heads = kKvHeads * kGroup, .scale = 1 / std::sqrt(float(kHeadDim))};
      const double apart = AttentionSeconds(step, params, q, out);
      for (std::vector<uint32_t>& blocks : step.blocks)
        std::copy_n(step.blocks[0].begin(), kPrefix / kBlockTokens, blocks.begin());
      const double shared = AttentionSeconds(step, params, q, out);
      // Read: the prefix once, what follows for each.
      const double bound = double(batch) * (kPrefix + kSuffix) / (kPrefix + double(batch) * kSuffix);
      Print("a10",
            fmt::format("{} texts that share {} tokens, {} of their own, {:.1f} us", batch, kPrefix, kSuffix, shared * 1e6),
            apart / shared, "x", bound, apart / shared / bound);
    }
    return OkStatus();
  }

  Status Decode(const char* id, std::vector<std::pair<int, int>> shapes, KvFormat format = DType::kBF16) {
    for (const auto& [batch, context] : shapes) {
      Memory pool, q, out;
      Step step;
      KVASIR_RETURN_IF_ERROR(MakeStep(batch, context, 1, pool, step, format));
      const size_t q_bytes = size_t(batch) * kKvHeads * kGroup * kHeadDim * 4;
      KVASIR_RETURN_IF_ERROR(Make(q, q_bytes, true));
      KVASIR_RETURN_IF_ERROR(Make(out, q_bytes));
      const AttentionParams params = {.num_q_heads = kKvHeads * kGroup, .scale = 1 / std::sqrt(float(kHeadDim))};
      const double seconds = AttentionSeconds(step, params, q, out);
      const double rate = double(step.kv_bytes) / seconds;
      Print(id, fmt::format("decode attention, {} KV, {} x {} tokens, {:.1f} us", Name(format), batch, context, seconds * 1e6),
            rate / 1e9, "GB/s", machine_.copy_bytes_per_second / 1e9, rate / machine_.copy_bytes_per_second);
    }
    return OkStatus();
  }

  Status Prefill() {
    for (const int tokens : {1024, 4096, 16384}) {
      Memory pool, q, out;
      Step step;
      KVASIR_RETURN_IF_ERROR(MakeStep(1, tokens, tokens, pool, step));
      const size_t q_bytes = size_t(tokens) * kKvHeads * kGroup * kHeadDim * 4;
      KVASIR_RETURN_IF_ERROR(Make(q, q_bytes, true));
      KVASIR_RETURN_IF_ERROR(Make(out, q_bytes));
      const AttentionParams params = {.num_q_heads = kKvHeads * kGroup, .scale = 1 / std::sqrt(float(kHeadDim))};
      const double seconds = AttentionSeconds(step, params, q, out);
      const double flops = 4.0 * kKvHeads * kGroup * kHeadDim * double(tokens) * (tokens + 1) / 2 / seconds;
      Print("a9", fmt::format("causal attention of {} tokens", tokens), flops / 1e12, "TFLOP/s", machine_.gemm_bf16_flops / 1e12,
            machine_.gemm_bf16_flops > 0 ? flops / machine_.gemm_bf16_flops : 0);
    }
    return OkStatus();
  }

  // a11: the matrices of an 8B model, enough copies that each comes from memory; few rows against reading them, many against the
  // tensor cores, both against cuBLASLt.
  Status Products() {
    const std::pair<int64_t, int64_t> shapes[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
    for (const char* format : {"none", "int8", "int4", "fp8"}) {
      for (const auto& [outs, cols] : shapes) {
        KVASIR_ASSIGN_OR_RETURN(const QuantFormat quant, ParseQuantFormat(format));
        KVASIR_RETURN_IF_ERROR(ProductsOf(format, quant, outs, cols));
      }
    }
    return OkStatus();
  }
  Status ProductsOf(const char* format, QuantFormat quant, int64_t outs, int64_t cols) {
    constexpr int kMostRows = 2048;
    const double bytes = quant ? double(quant.Bytes(outs, cols)) : double(outs * cols * 2);
    std::vector<float> values(size_t(outs * cols));
    Rng rng(4);
    for (float& v : values) v = float(rng.Uniform()) - 0.5f;
    const HostMatrix matrix = {values.data(), DType::kF32, outs, cols, "benchmark"};
    std::vector<Weight> weights;
    for (int i = 0; i < std::max(1, int(256e6 / bytes)); ++i) {
      KVASIR_ASSIGN_OR_RETURN(const Weight weight, device_->PackLinear({&matrix, 1}, DType::kBF16, quant));
      weights.push_back(weight);
    }
    Memory in, out;
    KVASIR_RETURN_IF_ERROR(Make(in, size_t(kMostRows * cols) * 4, true));
    KVASIR_RETURN_IF_ERROR(Make(out, size_t(kMostRows * outs) * 4));
    for (const int rows : {1, 8, 16, 64, 256, kMostRows}) {
      size_t next = 0;
      const double seconds = Seconds([&] {
        device_->Linear(in.floats(), rows, weights[next], nullptr, out.floats());
        next = (next + 1) % weights.size();
      });
      const std::string name = fmt::format("{} {} x {}x{}", quant ? format : "bf16", rows, cols, outs);
      if (rows <= 64)
        Print("a11", name, bytes / seconds / 1e9, "GB/s", machine_.copy_bytes_per_second / 1e9,
              bytes / seconds / machine_.copy_bytes_per_second);
      else
        Print("a11", name, 2.0 * rows * double(outs * cols) / seconds / 1e12, "TFLOP/s", machine_.gemm_bf16_flops / 1e12,
              machine_.gemm_bf16_flops > 0 ? 2.0 * rows * double(outs * cols) / seconds / machine_.gemm_bf16_flops : 0);
      if (quant) continue;
      if (const StatusOr<double> peer = MeasureCublasLt(rows, outs, cols); peer.ok())
        Print("a11", name + ", times as fast as cuBLASLt", *peer / seconds, "x", 1, *peer / seconds);
    }
    for (Weight& weight : weights) device_->Free(weight.packed);
    return OkStatus();
  }

  // What the host does for a step, of a device that nothing else has been asked of.
  Status Steps() {
    KVASIR_ASSIGN_OR_RETURN(std::unique_ptr<CudaContext> context, CudaContext::Create(0));
    CudaDevice device(std::move(context));
    KVASIR_ASSIGN_OR_RETURN(const std::vector<BenchResult> results, BenchStepHost(device, [&] { (void)device.Synchronize(); }));
    for (const BenchResult& result : results) PrintResult(result, options_.json);
    return device.Synchronize();
  }

  // Norm, rotation with append, gated activation at an 8B model's widths, against moving their bytes once.
  Status Fused() {
    constexpr int kRows = 256, kHidden = 4096, kFfn = 14336, kWidth = (kGroup + 2) * kKvHeads * kHeadDim;
    Memory residual, delta, normed, gate_up, activated, pool, q;
    KVASIR_RETURN_IF_ERROR(Make(residual, size_t{kRows} * kHidden * 4, true));
    KVASIR_RETURN_IF_ERROR(Make(delta, size_t{kRows} * kHidden * 4, true));
    KVASIR_RETURN_IF_ERROR(Make(normed, size_t{kRows} * kHidden * 4));
    KVASIR_RETURN_IF_ERROR(Make(gate_up, size_t{kRows} * kFfn * 2 * 4, true));
    KVASIR_RETURN_IF_ERROR(Make(activated, size_t{kRows} * kFfn * 4));
    KVASIR_RETURN_IF_ERROR(Make(q, size_t{kRows} * kGroup * kKvHeads * kHeadDim * 4));
    Step step;
    KVASIR_RETURN_IF_ERROR(MakeStep(kRows, 64, 1, pool, step));
    const auto report = [&](const char* name, double seconds, double bytes) {
      Print("a12", fmt::format("{}, {} rows, {:.1f} us", name, kRows, seconds * 1e6), bytes / seconds / 1e9, "GB/s",
            machine_.copy_bytes_per_second / 1e9, bytes / seconds / machine_.copy_bytes_per_second);
    };
    report("add and norm",
           Seconds([&] { device_->AddNorm(residual.floats(), delta.floats(), 0, {}, kRows, kHidden, normed.floats()); }),
           4.0 * kRows * kHidden * 4);
    report("gated activation",
           Seconds([&] { device_->Activate(Activation::kSilu, true, gate_up.floats(), kRows, kFfn, activated.floats()); }),
           3.0 * kRows * kFfn * 4);
    std::vector<float> ones(64 * 64, 1.0f);
    Memory table;
    KVASIR_RETURN_IF_ERROR(Make(table, ones.size() * 4));
    device_->CopyToDevice(table.data, ones.data(), ones.size() * 4);
    const RopeTable rope = {table.floats(), table.floats(), kHeadDim, 64};
    device_->StartStep({.positions = step.positions, .slices = step.slices, .kv = step.kv}, int(step.positions.size()));
    report("rotate and append", Seconds([&] {
             device_->RopeAppend(gate_up.floats(), step.positions, rope, kKvHeads * kGroup, 0, step.slices, step.kv[0],
                                 q.floats());
           }),
           double(kRows) * (kWidth * 4 + kGroup * kKvHeads * kHeadDim * 4 + 2 * kKvHeads * kHeadDim * 2));
    device_->FinishStep();
    return OkStatus();
  }

  Status Sampling() {
    constexpr int kRows = 256, kVocab = 151936;
    Memory logits;
    KVASIR_RETURN_IF_ERROR(Make(logits, size_t{kRows} * kVocab * 4, true));
    const std::pair<const char*, SamplingParams> kinds[] = {
        {"greedy", {.temperature = 0}},
        {"temperature", {.temperature = 0.8f}},
        {"top_p 0.9", {.temperature = 0.8f, .top_p = 0.9f}},
        {"top_k 50, top_p 0.9", {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f}},
        {"5 logprobs", {.temperature = 0.8f, .num_logprobs = 5}}};
    for (const auto& [name, params] : kinds) {
      std::vector<SampleRow> rows(kRows, SampleRow{.params = &params});
      for (int i = 0; i < kRows; ++i) rows[size_t(i)].counter = uint64_t(i);
      std::vector<SampleResult> results(kRows);
      const double seconds = Seconds([&] { device_->Sample(logits.floats(), kVocab, rows, results); });
      const double bytes = 4.0 * kRows * kVocab;
      Print("a12", fmt::format("sampling, {}, {} rows of {}, {:.1f} us", name, kRows, kVocab, seconds * 1e6),
            bytes / seconds / 1e9, "GB/s", machine_.read_bytes_per_second / 1e9,
            bytes / seconds / machine_.read_bytes_per_second);
    }
    return OkStatus();
  }

  const std::unique_ptr<Device> device_;
  const CudaBenchOptions& options_;
  CudaCeilings machine_;
  std::vector<float> values_;
};

}  // namespace

Status RunCudaBench(const CudaBenchOptions& options) {
  KVASIR_ASSIGN_OR_RETURN(std::unique_ptr<Device> device, MakeCudaDevice());
  if (!options.json) std::printf("%s\n", device->Info().name.c_str());
  return Bench(std::move(device), options).Run();
}

}  // namespace kvasir
