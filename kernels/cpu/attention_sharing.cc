// Which splits of which sequences are the same memory.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/attention.h"

namespace kvasir {
namespace {

// Whole splits that every row of the slice sees.
int64_t WholeSplits(const SequenceTable& table, const SequenceSlice& slice) {
  return (int64_t{table.num_slots} - slice.num_rows + 1) / kSplitSlots;
}

int64_t BlocksOf(int64_t splits, int block_tokens) {
  return (splits * kSplitSlots + block_tokens - 1) / block_tokens;
}

}  // namespace

void FindSharedSplits(AttentionWorkspace& workspace, std::span<const SequenceSlice> slices, const PagedKv& kv, int most_rows) {
  using Member = AttentionWorkspace::Member;
  std::vector<Member>& members = workspace.members;
  members.clear();
  workspace.shared_splits.clear();
  workspace.rows.clear();
  workspace.others.clear();
  for (const SequenceSlice& slice : slices) {
    const SequenceTable& table = kv.tables[slice.kv];
    const bool eligible = table.ragged == nullptr && slice.num_rows > 0 && slice.num_rows <= most_rows;
    const int64_t whole = eligible ? WholeSplits(table, slice) : 0;
    if (whole > 0) {
      members.push_back({&slice, 0, whole});
    } else {
      workspace.others.push_back(&slice);
    }
  }
  if (members.size() < 2) return;

  // In the order of their tables, those that begin alike are neighbours.
  const int block_tokens = kv.layout.block_tokens;
  const auto blocks = [&](const Member& m) { return kv.tables[m.slice->kv].blocks; };
  std::sort(members.begin(), members.end(), [&](const Member& a, const Member& b) {
    const int64_t common = BlocksOf(std::min(a.shared, b.shared), block_tokens);
    const int order = std::memcmp(blocks(a), blocks(b), size_t(common) * sizeof(uint32_t));
    if (order != 0) return order < 0;
    return a.shared != b.shared ? a.shared < b.shared : a.slice->first_row < b.slice->first_row;
  });
  std::vector<int64_t>& alike = workspace.first_piece;  // splits that member i has in common with member i - 1
  alike.assign(members.size() + 1, 0);
  int64_t most = 0;
  for (size_t i = 1; i < members.size(); ++i) {
    const Member &a = members[i - 1], &b = members[i];
    const int64_t splits = std::min(a.shared, b.shared), count = BlocksOf(splits, block_tokens);
    const auto differs = std::mismatch(blocks(a), blocks(a) + count, blocks(b)).first - blocks(a);
    alike[i] = differs == count ? splits : differs * block_tokens / kSplitSlots;
    most = std::max(most, alike[i]);
  }
  for (size_t i = 0; i < members.size(); ++i) {
    Member& m = members[i];
    m.shared = std::max(alike[i], alike[i + 1]);
    m.first_row = int(workspace.rows.size());
    for (int row = 0; row < m.slice->num_rows && most > 0; ++row) workspace.rows.push_back(m.slice->first_row + row);
  }
  for (int64_t split = 0; split < most; ++split) {
    for (int first = 0, last; first < int(members.size()); first = last) {
      last = first + 1;
      while (last < int(members.size()) && alike[last] > split) ++last;
      if (last - first > 1) workspace.shared_splits.push_back({split, first, last});
    }
  }
}

}  // namespace kvasir
