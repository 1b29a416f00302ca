#include "kernels/cuda/resident_tables.h"

#include <algorithm>
#include <bit>

namespace kvasir {

void ResidentTables::StartStep() {
  ++step_;
  std::swap(order_, last_order_);
  order_.clear();
  next_ = 0;
  updates_.clear();
  words_.clear();
  for (const uint32_t number : leaving_) free_rows_[rows_[number].size].push_back(number);
  leaving_.clear();
}

uint32_t ResidentTables::Place(CudaContext& context, uint64_t stamp, const uint32_t* entries, int32_t count) {
  uint32_t number = stamp == 0 ? kNoRow : Find(stamp);
  if (number != kNoRow && count > kLeastEntries << rows_[number].size) {
    leaving_.push_back(number);
    rows_[number].stamp = 0;
    number = kNoRow;
  }
  if (number == kNoRow) {
    number = NewRow(context, stamp, count);
    if (stamp == 0) {
      leaving_.push_back(number);
    } else {
      row_of_[stamp] = number;
    }
  }
  Row& row = rows_[number];
  if (count > row.held && row.entries != nullptr) {  // else there was no memory, and the context has failed
    updates_.push_back({row.entries + row.held, int32_t(words_.size()), count - row.held});
    words_.insert(words_.end(), entries + row.held, entries + count);
    row.held = count;
  }
  row.last_used = step_;
  row.place = int32_t(order_.size());
  order_.push_back(number);
  return number;
}

uint32_t ResidentTables::Find(uint64_t stamp) {
  if (next_ < last_order_.size() && rows_[last_order_[next_]].stamp == stamp) return last_order_[next_++];
  const auto found = row_of_.find(stamp);
  if (found == row_of_.end()) return kNoRow;
  const Row& row = rows_[found->second];
  if (row.last_used == step_ - 1) next_ = size_t(row.place) + 1;
  return found->second;
}

uint32_t ResidentTables::NewRow(CudaContext& context, uint64_t stamp, int32_t count) {
  const int size = std::bit_width(unsigned(std::max(count - 1, 0)) / unsigned(kLeastEntries));
  std::vector<uint32_t>& free = free_rows_[size_t(size)];
  if (free.empty()) FreeUnused();
  uint32_t number;
  if (free.empty()) {
    number = uint32_t(rows_.size());
    rows_.push_back({.entries = Take(context, size_t(kLeastEntries) << size), .size = uint8_t(size)});
  } else {
    number = free.back();
    free.pop_back();
  }
  rows_[number].stamp = stamp == 0 ? OwnStamp() : stamp;
  rows_[number].held = 0;
  return number;
}

// At most once a step: a step of many new tables looks at all rows but once.
void ResidentTables::FreeUnused() {
  if (std::exchange(freed_in_, step_) == step_) return;
  for (uint32_t number = 0; number < rows_.size(); ++number) {
    Row& row = rows_[number];
    if (row.stamp == 0 || row.stamp >= kOwn || row.last_used + kKeptSteps >= step_) continue;
    row_of_.erase(row.stamp);
    row.stamp = 0;
    free_rows_[row.size].push_back(number);
  }
}

uint32_t* ResidentTables::Take(CudaContext& context, size_t entries) {
  if (entries > chunk_left_) {
    chunk_entries_ = std::max({kFirstChunk, 2 * chunk_entries_, entries});
    const StatusOr<void*> memory = context.Allocate(chunk_entries_ * sizeof(uint32_t), "page tables");
    if (!memory.ok()) {
      context.Check(cudaErrorMemoryAllocation, "memory for page tables");
      chunk_entries_ = chunk_left_ = 0;
      return nullptr;
    }
    chunk_ = static_cast<uint32_t*>(*memory);
    chunk_left_ = chunk_entries_;
  }
  chunk_left_ -= entries;
  return std::exchange(chunk_, chunk_ + entries);
}

}  // namespace kvasir
