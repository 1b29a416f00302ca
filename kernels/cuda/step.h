// One step's sequences and page tables on the device, as kernels read them. Made by the host from PagedKv (kernels/kv_page.h)
// once a step (Device::StartStep), or by an op that comes without; used by the kernels that touch KV.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/context.h"
#include "kernels/device.h"

namespace kvasir {

// The pages of one (sequence, layer, head): entries of slot s / block_tokens at `entries`, an index into StepKv::entries.
struct StepRun {
  int64_t entries = 0;
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
  DType dtype = DType::kF32;
  const uint32_t* entries = nullptr;      // of all sequences
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
    return base + int64_t(entries[run.entries + page]) * granule_bytes + run.k_offset;
  }
  __device__ std::byte* VPage(const StepRun& run, int page) const {
    return KPage(run, page) + page_bytes;
  }
  // Recurrent state of a layer after the tokens of a block.
  __device__ float* State(int sequence, int layer, int64_t block) const {
    return reinterpret_cast<float*>(base + int64_t(entries[runs[~first_run[sequence]].entries + block]) * granule_bytes +
                                    layer * state_bytes);
  }
#endif
};

// Host side: flattens tables and uploads them, all groups of a step at once. Reuses its memory: a steady step allocates nothing.
class StepTables {
 public:
  // Takes a step there: ids, positions, tables and plans of attention, until Clear.
  void Prepare(CudaContext& context, const StepInput& input, int max_rows);
  void Clear() { num_prepared_ = 0; }
  int rows() const { return rows_count_; }  // of the prepared step, with those that only fill up
  // A step of decoding is filled up to one of few shapes, so that what kernels are started with, grids and addresses, is the same
  // for all steps of a shape. This is what it depends on; empty: on more.
  std::span<const int64_t> shape() const { return shape_; }
  int32_t* ids() const { return ids_; }  // of the prepared step, on the device

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
  // Appends to bytes_. The pointers of the result are offsets until Place.
  StepKv Flatten(std::span<const SequenceSlice> slices, const PagedKv& kv, StepAttention& attention);
  void FlattenRuns(const PagedKv& kv);
  StepSlice Describe(const SequenceSlice& slice, const PagedKv& kv) const;
  void PlanAhead(const CudaContext& context, StepAttention& attention);
  void FillUp(AttentionPlan& plan);
  static void Place(StepKv& kv, const std::byte* uploaded);

  std::vector<Prepared> prepared_;  // the first num_prepared_; more are kept for their memory
  size_t num_prepared_ = 0;
  StepInput input_;     // of the prepared step
  int rows_count_ = 0;  // of the step being flattened; 0: as many as its slices have
  bool filled_up_ = false;
  std::vector<int64_t> shape_;
  int32_t *ids_ = nullptr, *positions_ = nullptr;
  StepAttention unprepared_;  // of an op that comes without
  std::vector<StepAttention::Wanted> wanted_;
  std::vector<AttentionUnit> units_, filled_units_;
  std::vector<std::byte> bytes_;
  std::vector<uint32_t> entries_;
  std::vector<StepRun> runs_;
  std::vector<int64_t> first_run_;
  std::vector<StepRow> rows_;
  std::vector<SequenceSlice> slices_;
};

}  // namespace kvasir
