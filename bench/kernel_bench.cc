#include "bench/kernel_bench.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>

#include "bench/attention_bench.h"
#include "bench/ceilings.h"
#include "bench/cuda/kernel_bench.h"
#include "bench/result.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/topology.h"
#include "kernels/rng.h"

namespace kvasir {
namespace {

constexpr int kRepetitions = 9;                    // of each case; the median counts
constexpr size_t kWorkingSet = size_t{256} << 20;  // well above any last-level cache
constexpr int64_t kSide = 4096;                    // of a GEMV's matrix

double Seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

struct Format {
  const char* name;
  DType dtype;
  const char* quantization;
};
constexpr Format kFormats[] = {{"bf16", DType::kBF16, "none"},       {"int8", DType::kBF16, "int8"},
                               {"int8:32", DType::kBF16, "int8:32"}, {"int4", DType::kBF16, "int4"},
                               {"int4:32", DType::kBF16, "int4:32"}, {"fp8", DType::kBF16, "fp8"},
                               {"fp8:128", DType::kBF16, "fp8:128"}};

class Bench {
 public:
  Bench(std::unique_ptr<Device> device, const BenchOptions& options)
      : device_(std::move(device)), team_(static_cast<CpuDevice&>(*device_).team()), options_(options) {}

  Status Run() {
    stream_ = static_cast<std::byte*>(*device_->Allocate(kWorkingSet, "stream"));
    std::memset(stream_, 1, kWorkingSet);
    Rng rng(1);
    values_.resize(size_t(kSide) * kSide);
    for (float& v : values_) v = float(rng.Uniform()) - 0.5f;
    machine_ = MeasureCeilings(team_, {.seconds = 0.1});
    std::fprintf(stderr, "%s; %s\n", device_->Info().name.c_str(), ToString(machine_).c_str());
    for (const Format& format : kFormats) {
      if (Wanted("a1") || Wanted("a3")) KVASIR_RETURN_IF_ERROR(Gemv(format));
    }
    for (const Format& format : kFormats) {
      if (Wanted("a2")) KVASIR_RETURN_IF_ERROR(Gemm(format));
    }
    KVASIR_RETURN_IF_ERROR(
        RunAttentionBench({.device = device_.get(),
                           .wanted = [this](const char* id) { return Wanted(id); },
                           .stream_bytes_per_second = [this] { return StreamBytesPerSecond(); },
                           .print = [this](const char* id, std::string name, double value, const char* unit, double ceiling,
                                           double ratio) { Print(id, std::move(name), value, unit, ceiling, ratio); }}));
    if (Wanted("a5")) EmptyRegion();
    device_->Free(stream_);
    return OkStatus();
  }

 private:
  bool Wanted(const char* id) const {
    return options_.cases.empty() || std::find(options_.cases.begin(), options_.cases.end(), id) != options_.cases.end();
  }
  void Print(const char* id, std::string name, double value, const char* unit, double ceiling, double ratio) {
    PrintResult(
        {id, fmt::format("{}, {} thread{}", name, team_.size(), team_.size() == 1 ? "" : "s"), value, unit, ceiling, ratio},
        options_.json);
  }
  double StreamBytesPerSecond() { return StreamReadOnce(team_, stream_, kWorkingSet); }

  StatusOr<Weight> Pack(const Format& format, int64_t rows, int64_t cols) {
    const HostMatrix matrix = {values_.data(), DType::kF32, rows, cols, "benchmark"};
    KVASIR_ASSIGN_OR_RETURN(const QuantFormat quant, ParseQuantFormat(format.quantization));
    return device_->PackLinear({&matrix, 1}, format.dtype, quant);
  }
  StatusOr<float*> Floats(int64_t count) {
    KVASIR_ASSIGN_OR_RETURN(void* const buffer, device_->Allocate(size_t(count) * sizeof(float), "benchmark"));
    auto* floats = static_cast<float*>(buffer);
    for (int64_t i = 0; i < count; ++i) floats[i] = values_[size_t(i) % values_.size()];
    return floats;
  }

  // a1: one row; a3: a few rows against one. Enough matrices that each comes from memory every time.
  Status Gemv(const Format& format) {
    std::vector<Weight> weights;
    size_t bytes = 0;
    while (bytes < kWorkingSet) {
      KVASIR_ASSIGN_OR_RETURN(const Weight weight, Pack(format, kSide, kSide));
      weights.push_back(weight);
      bytes += weight.quant ? weight.quant.Bytes(kSide, kSide) : size_t(kSide * kSide) * SizeOf(weight.dtype);
    }
    constexpr int kMostRows = 32;
    KVASIR_ASSIGN_OR_RETURN(float* const in, Floats(kMostRows * kSide));
    KVASIR_ASSIGN_OR_RETURN(float* const out, Floats(kMostRows * kSide));
    const auto pass = [&](int rows) {
      return Seconds([&] {
        for (const Weight& weight : weights) device_->Linear(in, rows, weight, nullptr, out);
      });
    };
    const int row_counts[] = {1, 2, 4, 8, kMostRows};
    std::vector<double> stream, ratios, times[std::size(row_counts)];
    for (int i = 0; i < kRepetitions; ++i) {
      stream.push_back(StreamBytesPerSecond());
      for (size_t j = 0; j < std::size(row_counts); ++j) times[j].push_back(pass(row_counts[j]));
      ratios.push_back(double(bytes) / times[0].back() / stream.back());
    }
    Print("a1", fmt::format("GEMV {} {}x{}", format.name, kSide, kSide), double(bytes) / Median(times[0]) / 1e9, "GB/s",
          Median(stream) / 1e9, Median(ratios));
    for (size_t j = 1; j < std::size(row_counts); ++j) {
      std::vector<double> relative;
      for (int i = 0; i < kRepetitions; ++i) relative.push_back(times[j][size_t(i)] / times[0][size_t(i)]);
      const double value = Median(relative);
      Print("a3", fmt::format("{} rows over 1 row, {}", row_counts[j], format.name), value, "x", 1, 1 / value);
    }
    // Neither memory nor the dot instructions can do more than this; that both are busy at once is what it takes.
    const double peak = DotPeak(format), count = double(weights.size());
    for (size_t j = 3; j < std::size(row_counts) && peak > 0; ++j) {
      const double work = 2.0 * row_counts[j] * kSide * kSide * count,
                   bound = std::max(work / peak, double(bytes) / Median(stream));
      Print("a3", fmt::format("{} rows, {}, of what memory and dots allow", row_counts[j], format.name),
            work / Median(times[j]) / 1e9, "GOP/s", work / bound / 1e9, bound / Median(times[j]));
    }
    for (Weight& weight : weights) device_->Free(weight.packed);
    device_->Free(in);
    device_->Free(out);
    return OkStatus();
  }

  double DotPeak(const Format& format) const {
    return (std::string_view(format.quantization).starts_with("int") ? machine_.dot_int8_gops : machine_.dot_bf16_gflops) * 1e9;
  }

  // a2: 256 rows, the matrices of 0.5B and 1.1B models.
  Status Gemm(const Format& format) {
    const double peak = DotPeak(format);
    for (const auto& [outs, k] : {std::pair<int64_t, int64_t>{9728, 896}, {896, 4864}, {2560, 2048}, {2048, 5632}}) {
      constexpr int kRows = 256;
      KVASIR_ASSIGN_OR_RETURN(const Weight weight, Pack(format, outs, k));
      KVASIR_ASSIGN_OR_RETURN(float* const in, Floats(kRows * k));
      KVASIR_ASSIGN_OR_RETURN(float* const out, Floats(kRows * outs));
      std::vector<double> rates;
      for (int i = 0; i < kRepetitions; ++i)
        rates.push_back(2.0 * kRows * double(outs) * double(k) /
                        Seconds([&] { device_->Linear(in, kRows, weight, nullptr, out); }));
      Print("a2", fmt::format("GEMM {} 256x{}x{}", format.name, k, outs), Median(rates) / 1e9, "GOP/s", peak / 1e9,
            peak > 0 ? Median(rates) / peak : 0);
      device_->Free(weight.packed);
      device_->Free(in);
      device_->Free(out);
    }
    return OkStatus();
  }

  void EmptyRegion() {
    if (team_.size() == 1) return;
    constexpr int kRegions = 20000;
    std::vector<double> nanoseconds, round_trips;
    for (int i = 0; i < kRepetitions; ++i) {
      round_trips.push_back(1e9 * RoundTripOnce(team_));
      nanoseconds.push_back(1e9 / kRegions * Seconds([&] {
                              for (int r = 0; r < kRegions; ++r) team_.Run([](int) {});
                            }));
    }
    Print("a5", "empty parallel region", Median(nanoseconds), "ns", 80, 80 / Median(nanoseconds));
    Print("a5", "a word to another core and back", Median(round_trips), "ns", 0, 0);
  }

  const std::unique_ptr<Device> device_;
  ThreadTeam& team_;
  const BenchOptions& options_;
  Ceilings machine_;
  std::byte* stream_ = nullptr;
  std::vector<float> values_;
};

}  // namespace

Status RunBenchKernels(const BenchOptions& options) {
  if (options.engine.device == "cuda") return RunCudaBench({.cases = options.cases, .json = options.json});
  const int most = options.engine.threads > 0 ? options.engine.threads : DefaultThreads();
  for (const int threads : {1, most}) {
    KVASIR_ASSIGN_OR_RETURN(std::unique_ptr<Device> device, MakeCpuDevice({.threads = threads}));
    KVASIR_RETURN_IF_ERROR(Bench(std::move(device), options).Run());
    if (most == 1) break;
  }
  return OkStatus();
}

}  // namespace kvasir
