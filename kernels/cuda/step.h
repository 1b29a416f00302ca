// One step's sequences and page tables on the device, as kernels read them. Made by the host from PagedKv (kernels/kv_page.h)
// once a step (Device::StartStep), or by an op that comes without; used by the kernels that touch KV.
//
// What the host does for a step of decoding follows the number of sequences and not the length of their texts: tables that have
// stamps are on the device already, but for new entries (ResidentTables), what texts have in common is known from the step before
// (SharedPrefixes), and the units of attention are written by the device (WriteStep).
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/resident_tables.h"
#include "kernels/device.h"

namespace kvasir {

// The pages of one (sequence, layer, head): slot s is in that of entries[s / block_tokens].
struct StepRun {
  const uint32_t* entries = nullptr;
  int64_t k_offset = 0;
  int32_t num_slots = 0;
};

// A row of the step: which sequence's KV it belongs to (< 0: the slices have no such row), and how many rows of its sequence come
// after it in this step.
struct StepRow {
  int32_t kv = -1;
  int32_t rows_after = 0;
};

// Passed to kernels by value. Pointers are of the device.
struct StepKv {
  std::byte* base = nullptr;
  int64_t granule_bytes = 0;
  int64_t page_bytes = 0;
  int64_t state_bytes = 0;
  int32_t block_tokens = 0, num_kv_heads = 0, head_dim = 0, value_dim = 0, pages_per_head = 0;
  int32_t row_bytes = 0;      // of one token's elements or codes in a page
  int32_t scales_offset = 0;  // in a page: of its KvScale, as words
  DType dtype = DType::kF32;
  KvQuant quant = KvQuant::kNone;
  const StepRun* runs = nullptr;          // dense: one per sequence, else [num_layers * num_kv_heads] for each; see first_run
  const int64_t* first_run = nullptr;     // [sequences]: < 0: dense, at runs[~first_run]
  const SequenceSlice* slices = nullptr;  // [num_slices]
  const StepRow* rows = nullptr;          // [num_rows], by row of the step
  int32_t num_slices = 0, num_rows = 0;   // with those that only fill up
  int32_t own_rows = 0;                   // without
  StepAttention* attention = nullptr;     // of the host

#if defined(__CUDACC__) || defined(KVASIR_SIMT)
  __device__ StepRun Run(int sequence, int layer, int head) const {
    const int64_t first = first_run[sequence];
    if (first >= 0) return runs[first + layer * num_kv_heads + head];
    StepRun run = runs[~first];
    run.k_offset = (int64_t(layer) * num_kv_heads + head) * pages_per_head * page_bytes;
    return run;
  }
  __device__ std::byte* KPage(const StepRun& run, int page) const {
    return base + int64_t(run.entries[page]) * granule_bytes + run.k_offset;
  }
  __device__ std::byte* VPage(const StepRun& run, int page) const {
    return KPage(run, page) + page_bytes;
  }
  // Recurrent state of a layer after the tokens of a block.
  __device__ float* State(int sequence, int layer, int64_t block) const {
    const uint32_t entry = runs[~first_run[sequence]].entries[block];
    return reinterpret_cast<float*>(base + int64_t(entry) * granule_bytes + layer * state_bytes);
  }
#endif
};

// Bytes one after another, without the zeros that a vector would write first.
class StepBytes {
 public:
  void Clear() { used_ = 0; }
  // Room for some more, aligned to 16; what was taken before may move.
  std::byte* Take(size_t bytes) {
    constexpr size_t kAlign = 16;
    const size_t at = (used_ + kAlign - 1) / kAlign * kAlign;
    used_ = at + bytes;
    if (used_ > bytes_.size()) bytes_.resize(2 * used_);
    return bytes_.data() + at;
  }
  std::span<const std::byte> used() const { return std::span(bytes_).first(used_); }

 private:
  std::vector<std::byte> bytes_;
  size_t used_ = 0;
};

// Host side: flattens a step and uploads it, all groups at once. Reuses its memory: a steady step allocates nothing.
class StepTables {
 public:
  // Takes a step there: ids, positions, tables and plans of attention, until Clear.
  void Prepare(CudaContext& context, const StepInput& input, int max_rows);
  void Clear() { num_prepared_ = 0; }
  int rows() const { return rows_count_; }  // of the prepared step, with those that only fill up
  // A step of decoding is filled up to one of few shapes, so that what kernels are started with, grids and addresses, is the same
  // for all steps of a shape. This is what it depends on; empty: on more.
  std::span<const int64_t> shape() const { return shape_; }
  int32_t* ids() const { return ids_; }                      // of the prepared step, on the device
  size_t uploaded_bytes() const { return uploaded_bytes_; }  // for the prepared step

  // Ids or positions of rows, taken to the device now unless they are the prepared step's, and how many are there.
  struct Numbers {
    int32_t* data = nullptr;
    int count = 0;
    bool prepared = false;
  };
  Numbers Find(CudaContext& context, std::span<const int32_t> numbers);
  // What the op is to use: the step that was prepared when slices and tables are the prepared ones, else a fresh upload.
  StepKv Get(CudaContext& context, std::span<const SequenceSlice> slices, const PagedKv& kv);

 private:
  struct Prepared {
    const SequenceTable* tables = nullptr;
    StepKv kv;
    std::unique_ptr<StepAttention> attention = std::make_unique<StepAttention>();
  };
  // How many of something an array has room for: as many, or in a step that is filled up a number that many share.
  int64_t Room(int64_t count) const;
  bool MayFillUp(const StepInput& input, int filled) const;
  // Appends to bytes_. The pointers of the result are offsets until Place. Of a step: its tables stay on the device.
  StepKv Flatten(CudaContext& context, std::span<const SequenceSlice> slices, const PagedKv& kv, bool of_step,
                 StepAttention& attention);
  void FlattenRuns(CudaContext& context, const PagedKv& kv, bool of_step);
  void AddRun(CudaContext& context, const PageRun& run, uint64_t stamp, int block_tokens, bool of_step);
  void Describe(const SequenceSlice& slice, const PagedKv& kv, PlanSlice& out) const;
  void PlanAhead(const CudaContext& context, StepAttention& attention);
  void FillUp(AttentionPlan& plan);
  void Upload(CudaContext& context);
  static void Place(StepKv& kv, const std::byte* uploaded, const AttentionUnit* units);

  std::vector<Prepared> prepared_;  // the first num_prepared_; more are kept for their memory
  size_t num_prepared_ = 0;
  StepInput input_;     // of the prepared step
  int rows_count_ = 0;  // of the prepared step
  bool filled_up_ = false;
  std::vector<int64_t> shape_;
  int32_t *ids_ = nullptr, *positions_ = nullptr;
  StepAttention unprepared_;  // of an op that comes without
  ResidentTables resident_;
  AttentionPlanMemory plan_memory_;
  std::vector<AttentionRange> ranges_;  // of all plans of the step
  int64_t num_units_ = 0;               // ... and how many units they are
  size_t uploaded_bytes_ = 0;
  StepBytes bytes_;
  std::vector<StepRun> runs_;
  std::vector<PrefixTable> run_tables_;  // of the runs, as the host has them
  std::vector<int64_t> first_run_;
  std::vector<uint32_t> entries_;  // of an op that comes without a step
};

}  // namespace kvasir
