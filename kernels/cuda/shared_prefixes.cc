#include "kernels/cuda/shared_prefixes.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

namespace kvasir {
namespace {

// How many entries at the beginning are the same.
int32_t Alike(const PrefixTable& a, const PrefixTable& b) {
  constexpr int32_t kAtOnce = 64;
  const int32_t count = std::min(a.num_blocks, b.num_blocks);
  int32_t i = 0;
  while (i + kAtOnce <= count && std::memcmp(a.blocks + i, b.blocks + i, kAtOnce * sizeof(uint32_t)) == 0) i += kAtOnce;
  while (i < count && a.blocks[i] == b.blocks[i]) ++i;
  return i;
}

}  // namespace

// In the order of entries; a table comes before those that go on from it.
bool SharedPrefixes::IsBefore(const PrefixTable& a, const PrefixTable& b) const {
  const int32_t alike = Alike(a, b);
  if (alike < std::min(a.num_blocks, b.num_blocks)) return a.blocks[alike] < b.blocks[alike];
  return a.num_blocks != b.num_blocks ? a.num_blocks < b.num_blocks : a.stamp < b.stamp;
}

std::span<const SharedPrefixes::Neighbour> SharedPrefixes::Update(std::span<const PrefixTable> tables) {
  tables_ = tables;
  for (int32_t i = 0; i < int32_t(tables.size()); ++i) {
    if (tables[size_t(i)].row >= table_of_.size()) table_of_.resize(tables[size_t(i)].row + 1, -1);
    table_of_[tables[size_t(i)].row] = i;
  }
  Keep();
  for (const PrefixTable& table : tables) {
    const int32_t index = std::exchange(table_of_[table.row], -1);
    if (index >= 0) Insert(index);
  }
  neighbours_.resize(places_.size());
  for (size_t i = 0; i < places_.size(); ++i) neighbours_[i] = {places_[i].table, places_[i].alike};
  return neighbours_;
}

// Takes out what is not there any more, and what was only the beginning of the table behind it and has grown: it may belong
// somewhere else now. All others are where they were, and have in common what they had.
void SharedPrefixes::Keep() {
  size_t kept = 0;
  int32_t between = std::numeric_limits<int32_t>::max();  // that all places since the last one kept have in common
  for (size_t i = 0; i < places_.size(); ++i) {
    Place& place = places_[i];
    between = std::min(between, place.alike);
    const int32_t index = table_of_[place.row];
    if (index < 0 || tables_[size_t(index)].stamp != place.stamp) continue;
    const int32_t num_blocks = tables_[size_t(index)].num_blocks;
    const bool open = i + 1 < places_.size() && places_[i + 1].alike == place.num_blocks;
    if (open && num_blocks > place.num_blocks) continue;
    table_of_[place.row] = -1;
    place.table = index;
    place.num_blocks = std::max(place.num_blocks, num_blocks);
    place.alike = kept == 0 ? 0 : between;
    between = std::numeric_limits<int32_t>::max();
    if (kept < i) places_[kept] = place;
    ++kept;
  }
  places_.resize(kept);
}

void SharedPrefixes::Insert(int32_t index) {
  const PrefixTable& table = tables_[size_t(index)];
  const auto at = std::lower_bound(places_.begin(), places_.end(), table, [&](const Place& place, const PrefixTable& own) {
    return IsBefore(tables_[size_t(place.table)], own);
  });
  // Blocks that a window has let go are alike, and not there.
  const auto shared = [&](const Place& other) {
    return table.num_blocks > 0 && table.blocks[0] != kNoBlock ? Alike(table, tables_[size_t(other.table)]) : 0;
  };
  Place place = {.stamp = table.stamp, .row = table.row, .num_blocks = table.num_blocks, .table = index};
  if (at != places_.begin()) place.alike = shared(*std::prev(at));
  if (at != places_.end()) at->alike = shared(*at);
  places_.insert(at, place);
}

}  // namespace kvasir
