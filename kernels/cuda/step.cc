#include "kernels/cuda/step.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace kvasir {
namespace {

constexpr int kMostFilledRows = 512;  // steps of more rows are long enough to be started kernel by kernel

// Appends an array to bytes, aligned, with zeros up to `room` elements; returns its offset as a pointer.
template <typename T>
const T* Append(std::vector<std::byte>& bytes, std::span<const T> values, int64_t room) {
  constexpr size_t kAlign = 16;
  const size_t at = (bytes.size() + kAlign - 1) / kAlign * kAlign;
  bytes.resize(at + size_t(room) * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data() + at, values.data(), values.size_bytes());
  return reinterpret_cast<const T*>(at);
}

// Rows that a step of decoding is filled up to.
int FilledRows(int rows) {
  if (rows <= 8) return int(std::bit_ceil(unsigned(rows)));
  const int step = rows <= 64 ? 8 : rows <= 256 ? 16 : 32;
  return (rows + step - 1) / step * step;
}

template <typename T>
void Move(const T*& pointer, const std::byte* base) {
  pointer = reinterpret_cast<const T*>(base + reinterpret_cast<uintptr_t>(pointer));
}

}  // namespace

int64_t StepTables::Room(int64_t count) const {
  if (!filled_up_ || count <= 0) return count;
  constexpr int64_t kLeast = 16;
  if (count <= kLeast) return kLeast;
  const int64_t step = int64_t(std::bit_floor(uint64_t(count - 1))) / 4;  // four sizes for each doubling
  return (count + step - 1) / step * step;
}

StepKv StepTables::Get(CudaContext& context, std::span<const SequenceSlice> slices, const PagedKv& kv) {
  if (num_prepared_ > 0 && input_.slices.data() == slices.data() && input_.slices.size() == slices.size()) {
    for (size_t i = 0; i < num_prepared_; ++i) {
      const Prepared& prepared = prepared_[i];
      const bool same = prepared.tables == kv.tables.data() && prepared.kv.base == kv.base;
      if (same && prepared.attention->layout == kv.layout) return prepared.kv;
    }
  }
  KVASIR_CHECK(!context.recording(), "an op of a recorded step brings other tables");
  bytes_.clear();
  filled_up_ = false;
  rows_count_ = 0;
  StepKv step = Flatten(slices, kv, unprepared_);
  unprepared_.plans.clear();
  Place(step, context.Upload<std::byte>(bytes_));
  return step;
}

void StepTables::Prepare(CudaContext& context, const StepInput& input, int max_rows) {
  input_ = input;
  num_prepared_ = input.kv.size();
  rows_count_ = int(input.token_ids.size());
  shape_.clear();
  bytes_.clear();
  const int filled = FilledRows(rows_count_);
  filled_up_ = input.program != 0 && rows_count_ > 0 && filled <= std::min(max_rows, kMostFilledRows);
  for (const SequenceSlice& slice : input.slices) filled_up_ = filled_up_ && slice.num_rows == 1;
  for (const PagedKv& kv : input.kv) {
    filled_up_ = filled_up_ && int64_t(kv.tables.size()) <= filled;
    for (const SequenceTable& table : kv.tables) filled_up_ = filled_up_ && table.ragged == nullptr;
  }
  if (filled_up_) {
    rows_count_ = filled;
    shape_ = {int64_t(input.program), filled};
  }
  const int32_t* const ids = Append<int32_t>(bytes_, input.token_ids, rows_count_);
  const int32_t* const positions =
      Append<int32_t>(bytes_, input.positions, std::max<int64_t>(rows_count_, int64_t(input.positions.size())));
  if (prepared_.size() < num_prepared_) prepared_.resize(num_prepared_);
  for (size_t i = 0; i < num_prepared_; ++i) {
    Prepared& prepared = prepared_[i];
    prepared.tables = input.kv[i].tables.data();
    prepared.kv = Flatten(input.slices, input.kv[i], *prepared.attention);
    PlanAhead(context, *prepared.attention);
  }
  std::byte* const uploaded = context.UploadStep(bytes_);
  if (uploaded == nullptr) shape_.clear();
  for (size_t i = 0; i < num_prepared_; ++i) Place(prepared_[i].kv, uploaded);
  ids_ = reinterpret_cast<int32_t*>(uploaded + reinterpret_cast<uintptr_t>(ids));
  positions_ = reinterpret_cast<int32_t*>(uploaded + reinterpret_cast<uintptr_t>(positions));
}

StepTables::Numbers StepTables::Find(CudaContext& context, std::span<const int32_t> numbers) {
  if (num_prepared_ > 0 && !numbers.empty()) {
    const int count = filled_up_ ? rows_count_ : int(numbers.size());
    if (numbers.data() == input_.token_ids.data() && numbers.size() == input_.token_ids.size()) return {ids_, count, true};
    if (numbers.data() == input_.positions.data() && numbers.size() == input_.positions.size()) return {positions_, count, true};
  }
  return {context.Upload(numbers), int(numbers.size()), false};
}

// Steps are alike: what attention was asked for in the last one it will be asked for again.
void StepTables::PlanAhead(const CudaContext& context, StepAttention& attention) {
  attention.plans.clear();
  if (attention.layout.state_floats > 0) return;
  for (const StepAttention::Wanted& wanted : wanted_) {
    if (wanted.num_kv_heads != attention.layout.num_kv_heads) continue;
    units_.clear();
    AttentionPlan plan = PlanAttention(attention.slices, attention.layout, wanted.group, context.multiprocessors(), units_);
    if (filled_up_) FillUp(plan);
    plan.units = Append<AttentionUnit>(bytes_, units_, int64_t(units_.size()));
    attention.plans.push_back(std::move(plan));
  }
}

// Units that do nothing make grids and the memory for partials one of few sizes. With a window some units in the middle are
// empty, too, which here are started all the same.
void StepTables::FillUp(AttentionPlan& plan) {
  filled_units_.clear();
  const AttentionUnit* from = units_.data();
  const auto take = [&](int count) {
    filled_units_.insert(filled_units_.end(), from, from + count);
    from += count;
    const int room = int(Room(count));
    filled_units_.resize(filled_units_.size() + size_t(room - count));
    return room;
  };
  const int num_short = take(plan.num_short()), num_tall = take(plan.num_tall());
  plan.num_merges = take(plan.num_merges);
  plan.short_through.assign(num_short > 0 ? 1 : 0, num_short);
  plan.tall_through.assign(num_tall > 0 ? 1 : 0, num_tall);
  plan.partial_rows = Room(plan.partial_rows);
  units_.swap(filled_units_);
  for (const int64_t size :
       {int64_t{plan.group}, int64_t{num_short}, int64_t{num_tall}, int64_t{plan.num_merges}, plan.partial_rows})
    shape_.push_back(size);
}

void StepTables::Place(StepKv& kv, const std::byte* uploaded) {
  Move(kv.entries, uploaded);
  Move(kv.runs, uploaded);
  Move(kv.first_run, uploaded);
  Move(kv.slices, uploaded);
  Move(kv.rows, uploaded);
  for (AttentionPlan& plan : kv.attention->plans) Move(plan.units, uploaded);
}

// What attention plans from. Runs and entries are those that Flatten has just laid out.
StepSlice StepTables::Describe(const SequenceSlice& slice, const PagedKv& kv) const {
  const int64_t first = first_run_[size_t(slice.kv)];
  StepSlice out = {.first_row = slice.first_row, .num_rows = slice.num_rows};
  if (first < 0) {
    const StepRun& run = runs_[size_t(~first)];
    out.entries = int32_t(run.entries);
    out.num_slots = out.max_slots = run.num_slots;
    return out;
  }
  out.ragged = int32_t(first);
  for (int i = 0; i < kv.layout.num_layers * kv.layout.num_kv_heads; ++i)
    out.max_slots = std::max(out.max_slots, runs_[size_t(first + i)].num_slots);
  return out;
}

void StepTables::FlattenRuns(const PagedKv& kv) {
  const KvLayout& layout = kv.layout;
  entries_.clear();
  runs_.clear();
  first_run_.clear();
  const auto add_run = [&](const uint32_t* entries, size_t k_offset, int32_t num_slots) {
    const int pages = (num_slots + layout.block_tokens - 1) / layout.block_tokens;
    runs_.push_back({int64_t(entries_.size()), int64_t(k_offset), num_slots});
    entries_.insert(entries_.end(), entries, entries + pages);
  };
  for (const SequenceTable& table : kv.tables) {
    const int64_t first = int64_t(runs_.size());
    if (table.ragged == nullptr) {
      first_run_.push_back(~first);
      add_run(table.blocks, 0, table.num_slots);
      continue;
    }
    first_run_.push_back(first);
    for (int i = 0; i < layout.num_layers * layout.num_kv_heads; ++i) {
      const PageRun& run = table.ragged[i];
      add_run(run.entries, run.k_offset, run.num_slots);
    }
  }
}

StepKv StepTables::Flatten(std::span<const SequenceSlice> slices, const PagedKv& kv, StepAttention& attention) {
  const KvLayout& layout = kv.layout;
  FlattenRuns(kv);
  attention.layout = layout;
  attention.wanted = &wanted_;
  attention.slices.clear();
  slices_.assign(slices.begin(), slices.end());
  rows_.clear();
  for (const SequenceSlice& slice : slices) {
    attention.slices.push_back(Describe(slice, kv));
    if (rows_.size() < size_t(slice.first_row + slice.num_rows)) rows_.resize(size_t(slice.first_row + slice.num_rows));
    for (int i = 0; i < slice.num_rows; ++i) rows_[size_t(slice.first_row + i)] = {slice.kv, slice.num_rows - 1 - i};
  }
  StepKv step;
  step.own_rows = int32_t(rows_.size());
  if (filled_up_) {
    rows_.resize(size_t(rows_count_));
    slices_.resize(size_t(rows_count_), {.first_row = 0, .num_rows = 0, .kv = 0});
    for (const int64_t size : {int64_t(reinterpret_cast<uintptr_t>(kv.base)), Room(int64_t(entries_.size()))})
      shape_.push_back(size);
  }
  const int64_t sequences = filled_up_ ? rows_count_ : int64_t(first_run_.size());
  step.base = kv.base;
  step.granule_bytes = int64_t(kv.granule_bytes);
  step.page_bytes = int64_t(layout.page_bytes());
  step.state_bytes = int64_t(layout.state_bytes());
  step.block_tokens = layout.block_tokens;
  step.num_kv_heads = layout.num_kv_heads;
  step.head_dim = layout.head_dim;
  step.value_dim = layout.value_dim;
  step.pages_per_head = layout.pages_per_head();
  step.dtype = layout.dtype;
  step.entries = Append<uint32_t>(bytes_, entries_, Room(int64_t(entries_.size())));
  step.runs = Append<StepRun>(bytes_, runs_, std::max<int64_t>(sequences, int64_t(runs_.size())));
  step.first_run = Append<int64_t>(bytes_, first_run_, sequences);
  step.slices = Append<SequenceSlice>(bytes_, slices_, int64_t(slices_.size()));
  step.rows = Append<StepRow>(bytes_, rows_, int64_t(rows_.size()));
  step.num_slices = int32_t(slices_.size());
  step.num_rows = int32_t(rows_.size());
  step.attention = &attention;
  return step;
}

}  // namespace kvasir
