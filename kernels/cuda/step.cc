#include "kernels/cuda/step.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/write_step.h"

namespace kvasir {
namespace {

constexpr int kMostFilledRows = 512;  // steps of more rows are long enough to be started kernel by kernel

// Appends an array, aligned, with zeros up to `room` elements; returns its offset as a pointer.
template <typename T>
T* Append(StepBytes& bytes, std::span<const T> values, int64_t room) {
  std::byte* const at = bytes.Take(size_t(room) * sizeof(T));
  if (!values.empty()) std::memcpy(at, values.data(), values.size_bytes());
  if (const size_t more = size_t(room) * sizeof(T) - values.size_bytes(); more > 0)
    std::memset(at + values.size_bytes(), 0, more);
  return reinterpret_cast<T*>(at - bytes.used().data());
}

// Rows that a step of decoding is filled up to.
int FilledRows(int rows) {
  if (rows <= 8) return int(std::bit_ceil(unsigned(rows)));
  const int step = rows <= 64 ? 8 : rows <= 256 ? 16 : 32;
  return (rows + step - 1) / step * step;
}

// Whether pages lie where the copy engine can name them: whole rows from the base, and dense.
bool TakesWarpgroups(const CudaContext& context, const PagedKv& kv) {
  if (!context.warpgroups() || !HopperTakes(kv.layout)) return false;
  const size_t row = kv.layout.row_bytes();
  const auto dense = [](const SequenceTable& table) { return table.ragged == nullptr; };
  return kv.granule_bytes % row == 0 && kv.layout.page_bytes() % row == 0 && std::ranges::all_of(kv.tables, dense);
}

// An offset becomes a pointer; nullptr where nothing was uploaded.
template <typename T>
void Move(T*& pointer, const void* base) {
  const auto at = reinterpret_cast<uintptr_t>(base);
  pointer = at == 0 ? nullptr : reinterpret_cast<T*>(at + reinterpret_cast<uintptr_t>(pointer));
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
  bytes_.Clear();
  filled_up_ = false;
  StepKv step = Flatten(context, slices, kv, false, unprepared_);
  unprepared_.plans.clear();
  Place(step, context.Upload(bytes_.used()), nullptr);
  return step;
}

bool StepTables::MayFillUp(const StepInput& input, int filled) const {
  bool may = input.program != 0 && rows_count_ > 0;
  for (const SequenceSlice& slice : input.slices) may = may && slice.num_rows == 1;
  for (const PagedKv& kv : input.kv) {
    may = may && int64_t(kv.tables.size()) <= filled;
    for (const SequenceTable& table : kv.tables) may = may && table.ragged == nullptr;
  }
  return may;
}

void StepTables::Prepare(CudaContext& context, const StepInput& input, int max_rows) {
  input_ = input;
  num_prepared_ = input.kv.size();
  rows_count_ = int(input.token_ids.size());
  shape_.clear();
  bytes_.Clear();
  ranges_.clear();
  num_units_ = 0;
  resident_.StartStep();
  const int filled = FilledRows(rows_count_);
  filled_up_ = filled <= std::min(max_rows, kMostFilledRows) && MayFillUp(input, filled);
  if (filled_up_) {
    rows_count_ = filled;
    shape_ = {int64_t(input.program), filled};
  }
  ids_ = Append<int32_t>(bytes_, input.token_ids, rows_count_);
  positions_ = Append<int32_t>(bytes_, input.positions, std::max<int64_t>(rows_count_, int64_t(input.positions.size())));
  if (prepared_.size() < num_prepared_) prepared_.resize(num_prepared_);
  for (size_t i = 0; i < num_prepared_; ++i) {
    Prepared& prepared = prepared_[i];
    prepared.tables = input.kv[i].tables.data();
    prepared.kv = Flatten(context, input.slices, input.kv[i], true, *prepared.attention);
    PlanAhead(context, *prepared.attention);
  }
  Upload(context);
}

// What follows the arrays that have a place in every step of a shape is only for WriteStep, which is never recorded.
void StepTables::Upload(CudaContext& context) {
  StepWrites writes = {.num_ranges = int32_t(ranges_.size()), .num_updates = int32_t(resident_.updates().size())};
  writes.ranges = Append<AttentionRange>(bytes_, ranges_, writes.num_ranges);
  writes.updates = Append<TableUpdate>(bytes_, resident_.updates(), writes.num_updates);
  writes.words = Append<uint32_t>(bytes_, resident_.words(), int64_t(resident_.words().size()));
  if (num_units_ > 0) writes.units = TakeUnits(context, CudaContext::Scratch::kStepUnits, num_units_);
  uploaded_bytes_ = bytes_.used().size();
  const std::byte* const uploaded = context.UploadStep(bytes_.used());
  if (uploaded == nullptr) shape_.clear();
  Move(ids_, uploaded);
  Move(positions_, uploaded);
  for (size_t i = 0; i < num_prepared_; ++i) Place(prepared_[i].kv, uploaded, writes.units);
  Move(writes.ranges, uploaded);
  Move(writes.updates, uploaded);
  Move(writes.words, uploaded);
  WriteStep(context, writes);
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
  for (const StepAttention::Wanted& wanted : attention.wanted) {
    if (wanted.num_kv_heads != attention.layout.num_kv_heads) continue;
    AttentionPlan plan =
        PlanAttention(attention.slices, attention.prefixes, attention.layout, TilingFor(attention.layout, attention.warpgroups),
                      wanted.group, wanted.window, context.multiprocessors(), plan_memory_);
    if (filled_up_) FillUp(plan);
    AppendRanges(plan, plan_memory_, num_units_, ranges_);
    plan.units = reinterpret_cast<const AttentionUnit*>(size_t(num_units_) * sizeof(AttentionUnit));
    num_units_ += plan.num_units();
    plan.members =
        Append<AttentionMember>(bytes_, plan_memory_.members, filled_up_ ? rows_count_ : int64_t(plan_memory_.members.size()));
    attention.plans.push_back(plan);
  }
}

// Units that do nothing make grids and the memory for partials one of few sizes.
void StepTables::FillUp(AttentionPlan& plan) {
  plan.num_short = int32_t(Room(plan.num_short));
  plan.num_tall = int32_t(Room(plan.num_tall));
  plan.num_merges = int32_t(Room(plan.num_merges));
  plan.partial_rows = Room(plan.partial_rows);
  for (const int64_t size : {int64_t{plan.group}, int64_t{plan.window}, int64_t{plan.num_short}, int64_t{plan.num_tall},
                             int64_t{plan.num_merges}, plan.partial_rows})
    shape_.push_back(size);
}

void StepTables::Place(StepKv& kv, const std::byte* uploaded, const AttentionUnit* units) {
  Move(kv.runs, uploaded);
  Move(kv.first_run, uploaded);
  Move(kv.slices, uploaded);
  Move(kv.rows, uploaded);
  for (AttentionPlan& plan : kv.attention->plans) {
    Move(plan.units, units);
    Move(plan.members, uploaded);
  }
}

// What attention plans from. Runs are those that Flatten has just laid out. Filled where it is to lie, as all that there is for
// every sequence: a copy of what was just written in pieces would wait for them.
void StepTables::Describe(const SequenceSlice& slice, const PagedKv& kv, PlanSlice& out) const {
  const int64_t first = first_run_[size_t(slice.kv)];
  out.step.first_row = slice.first_row;
  out.step.num_rows = slice.num_rows;
  if (first < 0) {
    const StepRun& run = runs_[size_t(~first)];
    out.step.entries = run.entries;
    out.step.num_slots = out.max_slots = run.num_slots;
    out.table = run_tables_[size_t(~first)];
    return;
  }
  out.step.ragged = int32_t(first);
  for (int i = 0; i < kv.layout.num_layers * kv.layout.num_kv_heads; ++i)
    out.max_slots = std::max(out.max_slots, runs_[size_t(first + i)].num_slots);
}

void StepTables::AddRun(CudaContext& context, const PageRun& run, uint64_t stamp, int block_tokens, bool of_step) {
  StepRun& added = runs_.emplace_back();
  added.k_offset = int64_t(run.k_offset);
  added.num_slots = run.num_slots;
  PrefixTable& table = run_tables_.emplace_back();
  table.blocks = run.entries;
  table.num_blocks = (run.num_slots + block_tokens - 1) / block_tokens;
  if (of_step) {
    table.row = resident_.Place(context, stamp, run.entries, table.num_blocks);
    const ResidentTables::Row& row = resident_.row(table.row);
    table.stamp = row.stamp;
    added.entries = row.entries;
  } else {
    table.row = uint32_t(runs_.size());
    table.stamp = resident_.OwnStamp();
    added.entries = reinterpret_cast<const uint32_t*>(entries_.size() * sizeof(uint32_t));  // until they are uploaded
    entries_.insert(entries_.end(), run.entries, run.entries + table.num_blocks);
  }
}

void StepTables::FlattenRuns(CudaContext& context, const PagedKv& kv, bool of_step) {
  const KvLayout& layout = kv.layout;
  entries_.clear();
  runs_.clear();
  run_tables_.clear();
  first_run_.clear();
  for (const SequenceTable& table : kv.tables) {
    const int64_t first = int64_t(runs_.size());
    if (table.ragged == nullptr) {
      first_run_.push_back(~first);
      AddRun(context, {table.blocks, 0, table.num_slots}, table.stamp, layout.block_tokens, of_step);
      continue;
    }
    first_run_.push_back(first);
    for (int i = 0; i < layout.num_layers * layout.num_kv_heads; ++i)
      AddRun(context, table.ragged[i], 0, layout.block_tokens, of_step);
  }
  if (of_step) return;
  const uint32_t* const uploaded = context.Upload<uint32_t>(entries_);
  for (StepRun& run : runs_) Move(run.entries, uploaded);
}

StepKv StepTables::Flatten(CudaContext& context, std::span<const SequenceSlice> slices, const PagedKv& kv, bool of_step,
                           StepAttention& attention) {
  const KvLayout& layout = kv.layout;
  FlattenRuns(context, kv, of_step);
  attention.layout = layout;
  attention.warpgroups = TakesWarpgroups(context, kv);
  attention.slices.clear();
  StepKv step;
  for (const SequenceSlice& slice : slices) {
    Describe(slice, kv, attention.slices.emplace_back());
    step.own_rows = std::max(step.own_rows, slice.first_row + slice.num_rows);
  }
  if (filled_up_) shape_.push_back(int64_t(reinterpret_cast<uintptr_t>(kv.base)));
  step.num_slices = filled_up_ ? rows_count_ : int32_t(slices.size());
  step.num_rows = filled_up_ ? rows_count_ : step.own_rows;
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
  step.quant = layout.quant;
  step.row_bytes = int32_t(layout.row_bytes());
  step.scales_offset = int32_t(layout.scales_offset());
  step.runs = Append<StepRun>(bytes_, runs_, std::max<int64_t>(sequences, int64_t(runs_.size())));
  step.first_run = Append<int64_t>(bytes_, first_run_, sequences);
  step.slices = Append<SequenceSlice>(bytes_, slices, step.num_slices);
  std::byte* const at = bytes_.Take(size_t(step.num_rows) * sizeof(StepRow));
  auto* const rows = reinterpret_cast<StepRow*>(at);
  std::fill_n(rows, step.num_rows, StepRow{});
  for (const SequenceSlice& slice : slices)
    for (int i = 0; i < slice.num_rows; ++i) rows[slice.first_row + i] = {slice.kv, slice.num_rows - 1 - i};
  step.rows = reinterpret_cast<const StepRow*>(at - bytes_.used().data());
  step.attention = &attention;
  return step;
}

}  // namespace kvasir
