#include "kernels/cuda/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cuda/sample_kernels.h"
#include "kernels/rng.h"

namespace kvasir {
namespace {

// Adjusted copies of rows take memory that nobody counted on: so much of it at a time.
constexpr size_t kMostAdjustedBytes = size_t{128} << 20;
constexpr int kMostItems = 32768;  // the height of a grid

// One call's rows, some at a time.
struct SampleCall {
  std::vector<SampleItem> items;
  std::vector<SampleAdjust> adjusts;
  std::vector<SampleSpec> specs;
  std::vector<int32_t> ids;
  std::vector<float> biases;
  std::vector<std::pair<int32_t, float>> sorted_biases;
  std::vector<std::byte> bytes;  // all of these, to be uploaded at once
  int alternatives = 0;
  bool sums = false;
  bool pending = false;  // among the ids
};

bool UsesPenalties(const SamplingParams& params) {
  return params.presence_penalty != 0 || params.frequency_penalty != 0;
}

bool NeedsAdjusting(const SampleRow& row) {
  const SamplingParams& params = *row.params;
  return !params.allowed_token_ids.empty() || !row.suppressed.empty() || !params.logit_bias.empty() ||
         (params.repetition_penalty != 1 && !(row.prompt.empty() && row.output.empty())) ||
         (UsesPenalties(params) && !(row.output.empty() && !IsPending(row.pending)));
}

void AppendIds(SampleCall& call, std::span<const int32_t> ids, int vocab) {
  for (const int32_t id : ids)
    if (id >= 0 && id < vocab) call.ids.push_back(id);
}

// The op's scratch, cut up; see Size.
struct Scratch {
  SampleScan scan;
  SampleAnswer* answers;
  SampleAlternative* alternatives;
};

SampleAdjust DescribeAdjusting(SampleCall& call, const SampleRow& row, int vocab) {
  const SamplingParams& params = *row.params;
  SampleAdjust adjust;
  adjust.allowed_only = params.allowed_token_ids.empty() ? 0 : 1;
  const auto place = [&] { return int32_t(call.ids.size()); };
  adjust.allowed = place();
  AppendIds(call, params.allowed_token_ids, vocab);
  adjust.suppressed = place();
  AppendIds(call, row.suppressed, vocab);
  adjust.biased = place();
  adjust.biases = int32_t(call.biases.size());
  call.sorted_biases.assign(params.logit_bias.begin(), params.logit_bias.end());
  std::stable_sort(call.sorted_biases.begin(), call.sorted_biases.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [id, bias] : call.sorted_biases)
    if (id >= 0 && id < vocab) call.ids.push_back(id), call.biases.push_back(bias);
  adjust.prompt = place();
  adjust.repetition = params.repetition_penalty;
  if (params.repetition_penalty != 1) AppendIds(call, row.prompt, vocab);
  adjust.output = place();
  if (params.repetition_penalty != 1 || UsesPenalties(params)) {
    AppendIds(call, row.output, vocab);
    if (IsPending(row.pending)) call.ids.push_back(row.pending), call.pending = true;
  }
  adjust.end = place();
  adjust.frequency = params.frequency_penalty, adjust.presence = params.presence_penalty;
  return adjust;
}

void AddRow(SampleCall& call, const float* logits, int vocab, const SampleRow& row) {
  const SamplingParams& params = *row.params;
  SampleSpec spec;
  spec.logits = spec.adjusted = logits;
  spec.item = int32_t(call.items.size());
  SampleItem item = {.logits = logits};
  const bool adjusts = NeedsAdjusting(row), logprobs = params.num_logprobs >= 0;
  spec.greedy = params.temperature > 0 ? 0 : 1;
  if (spec.greedy == 0) {
    constexpr double kLog2E = 1.4426950408889634;
    spec.temperature = params.temperature;
    spec.scale = float(std::min(kLog2E / double(params.temperature), 3e38));
    spec.top_k = params.top_k, spec.top_p = params.top_p;
    spec.cut_min = params.min_p > 0 ? 1 : 0;
    if (spec.cut_min != 0) spec.least = double(params.temperature) * std::log(double(params.min_p));
    spec.uniform = UniformDouble(params.seed, row.stream, row.counter);
    const bool cut_k = params.top_k > 0 && params.top_k < vocab;
    if (!cut_k && spec.cut_min == 0) item.scale = spec.scale;
  }
  item.plain_sum = logprobs && !adjusts ? 1 : 0;
  if (logprobs) {
    spec.plain_item = spec.item + (adjusts ? 1 : 0);
    spec.num_top = std::min(params.num_logprobs, vocab);
    spec.top_at = call.alternatives;
    call.alternatives += spec.num_top;
  }
  if (adjusts) {
    call.adjusts.push_back(DescribeAdjusting(call, row, vocab));
    call.adjusts.back().logits = logits;
    call.adjusts.back().item = spec.item;
    item.same_as_came = 0;
  }
  call.items.push_back(item);
  if (logprobs && adjusts) call.items.push_back({.logits = logits, .plain_sum = 1});
  call.sums |= item.scale > 0 || logprobs;
  call.specs.push_back(spec);
}

template <typename T>
size_t Append(std::vector<std::byte>& bytes, const std::vector<T>& values) {
  const size_t at = (bytes.size() + 15) / 16 * 16;
  bytes.resize(at + values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data() + at, values.data(), values.size() * sizeof(T));
  return at;
}

// Takes `count` of T from `base`, which begins as nullptr when only the size is wanted.
template <typename T>
T* Take(std::byte* base, size_t& used, size_t count) {
  T* const at = reinterpret_cast<T*>(base + used);
  used += (count * sizeof(T) + 15) / 16 * 16;
  return at;
}

void FillResults(std::span<const SampleSpec> specs, const std::byte* bytes, size_t alternatives_at,
                 std::span<SampleResult> results) {
  const auto* const answers = reinterpret_cast<const SampleAnswer*>(bytes);
  const auto* const alternatives = reinterpret_cast<const SampleAlternative*>(bytes + alternatives_at);
  for (size_t i = 0; i < specs.size(); ++i) {
    SampleResult& result = results[i];
    result.token = answers[i].token, result.finite = answers[i].finite != 0;
    result.logprob = answers[i].logprob, result.rank = answers[i].rank;
    if (!result.finite) continue;
    for (int32_t n = 0; n < specs[i].num_top; ++n) {
      const SampleAlternative& top = alternatives[specs[i].top_at + n];
      result.top.push_back({top.token, top.logprob});
    }
  }
}

// Runs what the call has collected; the results are filled when the step's are read.
void Compute(CudaContext& context, StepResults& step, SampleCall& call, int vocab, int32_t* tokens,
             std::span<SampleResult> results) {
  const size_t items = call.items.size(), rows = call.specs.size();
  const auto cut = [&](std::byte* base, size_t& used, Scratch& scratch) {
    SampleScan& scan = scratch.scan;
    scan.vocab = vocab;
    scan.tiles = (vocab + kSampleTile - 1) / kSampleTile;
    scan.chunks = (vocab + kSampleChunk - 1) / kSampleChunk;
    scratch.answers = Take<SampleAnswer>(base, used, rows);
    scratch.alternatives = Take<SampleAlternative>(base, used, size_t(call.alternatives));
    scan.tile_max = Take<float>(base, used, items * size_t(scan.tiles));
    scan.best = Take<unsigned long long>(base, used, items * size_t(scan.chunks));
    scan.sums = Take<unsigned long long>(base, used, items * size_t(scan.chunks) * 2);
    scan.bad = Take<uint32_t>(base, used, items);
  };
  Scratch scratch;
  size_t bytes = 0;
  cut(nullptr, bytes, scratch);
  auto* const memory = context.Temporary<std::byte>(CudaContext::Scratch::kSample, bytes);
  auto* const copies = call.adjusts.empty()
                           ? nullptr
                           : context.Temporary<float>(CudaContext::Scratch::kPartials, 2 * call.adjusts.size() * size_t(vocab));
  if (!context.status().ok()) return;
  bytes = 0;
  cut(memory, bytes, scratch);

  for (size_t i = 0; i < call.adjusts.size(); ++i) {
    SampleAdjust& adjust = call.adjusts[i];
    adjust.adjusted = copies + 2 * i * size_t(vocab);
    adjust.counts = reinterpret_cast<uint32_t*>(adjust.adjusted + vocab);
    call.items[size_t(adjust.item)].logits = adjust.adjusted;
  }
  for (SampleSpec& spec : call.specs) spec.adjusted = call.items[size_t(spec.item)].logits;
  call.bytes.clear();
  const size_t items_at = Append(call.bytes, call.items), adjusts_at = Append(call.bytes, call.adjusts),
               specs_at = Append(call.bytes, call.specs), ids_at = Append(call.bytes, call.ids),
               biases_at = Append(call.bytes, call.biases);
  std::byte* const uploaded = context.Upload<std::byte>(call.bytes);
  if (uploaded == nullptr) return;
  if (call.pending) step.Resolve(reinterpret_cast<int32_t*>(uploaded + ids_at), int(call.ids.size()));
  context.Check(cudaMemsetAsync(scratch.scan.bad, 0, items * sizeof(uint32_t), context.stream()), "clearing marks");
  if (!call.adjusts.empty())
    AdjustSamples(context, reinterpret_cast<const SampleAdjust*>(uploaded + adjusts_at), int(call.adjusts.size()),
                  reinterpret_cast<const int32_t*>(uploaded + ids_at), reinterpret_cast<const float*>(uploaded + biases_at),
                  scratch.scan);
  ScanSamples(context, reinterpret_cast<const SampleItem*>(uploaded + items_at), int(items), call.sums, scratch.scan);
  AnswerSamples(context, reinterpret_cast<const SampleSpec*>(uploaded + specs_at), int(rows), scratch.scan, scratch.answers,
                scratch.alternatives, tokens);

  // Answers and alternatives lie side by side.
  const size_t alternatives_at = size_t(reinterpret_cast<std::byte*>(scratch.alternatives) - memory);
  step.Collect(memory, alternatives_at + size_t(call.alternatives) * sizeof(SampleAlternative),
               [specs = std::move(call.specs), alternatives_at, results](const std::byte* bytes) {
                 FillResults(specs, bytes, alternatives_at, results);
               });
}

// Rows by parts that fit; add(call, row) appends one.
template <typename Add>
void ForParts(CudaContext& context, StepResults& step, int vocab, bool samples, std::span<SampleResult> results, Add add) {
  KVASIR_CHECK(vocab > 0 && vocab <= kMaxSampleVocab, "a vocabulary of {}; CUDA kernels are made for at most {}", vocab,
               kMaxSampleVocab);
  for (SampleResult& result : results) {  // what stays when the device has failed
    result.token = 0, result.finite = false, result.logprob = 0, result.rank = 0;
    result.top.clear();
  }
  for (size_t first = 0; first < results.size();) {
    SampleCall call;
    size_t row = first;
    for (; row < results.size() && call.items.size() < kMostItems; ++row) {
      if (call.adjusts.size() * size_t(vocab) * 8 > kMostAdjustedBytes) break;
      add(call, row);
    }
    int32_t* const tokens = samples ? step.TakeTokens(int(row - first)) : nullptr;
    Compute(context, step, call, vocab, tokens, results.subspan(first, row - first));
    first = row;
  }
}

}  // namespace

void CudaSample(CudaContext& context, StepResults& step, const float* logits, int vocab, std::span<const SampleRow> rows,
                std::span<SampleResult> results) {
  ForParts(context, step, vocab, true, results.first(rows.size()),
           [&](SampleCall& call, size_t row) { AddRow(call, logits + int64_t(row) * vocab, vocab, rows[row]); });
}

void CudaScoreTokens(CudaContext& context, StepResults& step, const float* logits, int vocab, std::span<const int32_t> tokens,
                     std::span<const int32_t> num_top, std::span<SampleResult> results) {
  ForParts(context, step, vocab, false, results.first(tokens.size()), [&](SampleCall& call, size_t row) {
    SampleSpec spec;
    spec.logits = spec.adjusted = logits + int64_t(row) * vocab;
    spec.item = spec.plain_item = int32_t(call.items.size());
    spec.given = 1, spec.token = tokens[row];
    spec.num_top = std::clamp(num_top[row], 0, vocab);
    spec.top_at = call.alternatives;
    call.alternatives += spec.num_top;
    call.items.push_back({.logits = spec.logits, .plain_sum = 1});
    call.specs.push_back(spec);
    call.sums = true;
  });
}

}  // namespace kvasir
