#include "kernels/cuda/step.h"

#include <algorithm>
#include <cstring>

namespace kvasir {
namespace {

// Appends an array to bytes, aligned; returns its offset as a pointer.
template <typename T>
const T* Append(std::vector<std::byte>& bytes, std::span<const T> values) {
  constexpr size_t kAlign = 16;
  const size_t at = (bytes.size() + kAlign - 1) / kAlign * kAlign;
  bytes.resize(at + values.size_bytes());
  if (!values.empty()) std::memcpy(bytes.data() + at, values.data(), values.size_bytes());
  return reinterpret_cast<const T*>(at);
}

template <typename T>
void Move(const T*& pointer, const std::byte* base) {
  pointer = reinterpret_cast<const T*>(base + reinterpret_cast<uintptr_t>(pointer));
}

}  // namespace

StepKv StepTables::Get(CudaContext& context, std::span<const SequenceSlice> slices, const PagedKv& kv) {
  for (size_t i = 0; i < num_prepared_; ++i) {
    const Prepared& prepared = prepared_[i];
    const bool same = prepared.slices.data() == slices.data() && prepared.slices.size() == slices.size();
    if (same && prepared.tables == kv.tables.data()) return prepared.kv;
  }
  bytes_.clear();
  StepKv step = Flatten(slices, kv, unprepared_);
  unprepared_.plans.clear();
  Place(step, context.Upload<std::byte>(bytes_));
  return step;
}

void StepTables::Prepare(CudaContext& context, std::span<const SequenceSlice> slices, std::span<const PagedKv> groups) {
  num_prepared_ = groups.size();
  positions_ = {};
  if (groups.empty()) return;
  bytes_.clear();
  if (prepared_.size() < groups.size()) prepared_.resize(groups.size());
  for (size_t i = 0; i < groups.size(); ++i) {
    Prepared& prepared = prepared_[i];
    prepared.slices = slices;
    prepared.tables = groups[i].tables.data();
    prepared.kv = Flatten(slices, groups[i], *prepared.attention);
    PlanAhead(context, *prepared.attention);
  }
  const std::byte* const uploaded = context.UploadStep(bytes_);
  for (size_t i = 0; i < num_prepared_; ++i) Place(prepared_[i].kv, uploaded);
}

const int32_t* StepTables::Positions(CudaContext& context, std::span<const int32_t> positions) {
  if (num_prepared_ == 0) return context.Upload(positions);
  if (positions.data() != positions_.data() || positions.size() != positions_.size()) {
    positions_ = positions;
    positions_on_device_ = reinterpret_cast<const int32_t*>(context.UploadStep(std::as_bytes(positions)));
  }
  return positions_on_device_;
}

// Steps are alike: what attention was asked for in the last one it will be asked for again.
void StepTables::PlanAhead(const CudaContext& context, StepAttention& attention) {
  attention.plans.clear();
  if (attention.layout.state_floats > 0) return;
  for (const StepAttention::Wanted& wanted : wanted_) {
    if (wanted.num_kv_heads != attention.layout.num_kv_heads) continue;
    units_.clear();
    attention.plans.push_back(PlanAttention(attention.slices, attention.layout, wanted.group, context.multiprocessors(), units_));
    attention.plans.back().units = Append<AttentionUnit>(bytes_, units_);
  }
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

StepKv StepTables::Flatten(std::span<const SequenceSlice> slices, const PagedKv& kv, StepAttention& attention) {
  const KvLayout& layout = kv.layout;
  entries_.clear();
  runs_.clear();
  first_run_.clear();
  rows_.clear();
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
  attention.layout = layout;
  attention.wanted = &wanted_;
  attention.slices.clear();
  for (const SequenceSlice& slice : slices) {
    attention.slices.push_back(Describe(slice, kv));
    if (rows_.size() < size_t(slice.first_row + slice.num_rows)) rows_.resize(size_t(slice.first_row + slice.num_rows));
    for (int i = 0; i < slice.num_rows; ++i) rows_[size_t(slice.first_row + i)] = {slice.kv, slice.num_rows - 1 - i};
  }
  StepKv step;
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
  step.entries = Append<uint32_t>(bytes_, entries_);
  step.runs = Append<StepRun>(bytes_, runs_);
  step.first_run = Append<int64_t>(bytes_, first_run_);
  step.slices = Append<SequenceSlice>(bytes_, slices);
  step.rows = Append<StepRow>(bytes_, rows_);
  step.num_slices = int32_t(slices.size());
  step.num_rows = int32_t(rows_.size());
  step.attention = &attention;
  return step;
}

}  // namespace kvasir
