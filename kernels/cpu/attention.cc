#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cstdlib>

namespace kvasir {
namespace {

constexpr int kTaskQueries = 32;    // queries (rows x heads of a group) that share a pass over the pages, about
constexpr int kTaskHeads = 64;      // at most: larger groups are cut, or their accumulators would not stay in the cache
constexpr int kItemsPerThread = 4;  // with fewer items than this per thread, items are cut at splits

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

AttendTask MakeTask(const float* q, const AttentionParams& params, const SequenceSlice& slice, const PagedKv& kv,
                    const PageRun& run, int first_head, int heads, int first_row, int rows, float* out) {
  const KvLayout& layout = kv.layout;
  AttendTask task;
  task.pages = reinterpret_cast<const unsigned char*>(kv.base) + run.k_offset;
  task.entries = run.entries;
  task.granule_bytes = kv.granule_bytes;
  task.page_bytes = layout.page_bytes();
  task.block_tokens = layout.block_tokens;
  task.head_dim = layout.head_dim;
  task.group = heads;
  task.keys_only = layout.value_dim > 0;
  task.value_dim = task.keys_only ? layout.value_dim : layout.head_dim;
  task.row_stride = int64_t{params.num_q_heads} * layout.head_dim;
  task.out_stride = int64_t{params.num_q_heads} * task.value_dim;
  const int64_t row = slice.first_row + first_row;
  task.q = q + row * task.row_stride + int64_t{first_head} * layout.head_dim;
  task.out = out + row * task.out_stride + int64_t{first_head} * task.value_dim;
  task.softcap = params.softcap;
  task.sinks = params.sinks != nullptr ? static_cast<const float*>(params.sinks->packed) + first_head : nullptr;
  task.rows = rows;
  task.scale = params.scale;
  task.window = params.window;
  task.first_end = int64_t{run.num_slots} - slice.num_rows + first_row + 1;
  const int64_t first_slot = params.window > 0 ? std::max<int64_t>(0, task.first_end - params.window) : 0;
  task.split_begin = first_slot / kSplitSlots;
  task.split_end = CeilDiv(task.first_end + rows - 1, kSplitSlots);
  return task;
}

}  // namespace

void AttentionWorkspace::FreeDeleter::operator()(unsigned char* p) const {
  std::free(p);
}

unsigned char* AttentionWorkspace::Grow(Buffer& buffer, size_t& have, size_t bytes) {
  if (bytes > have) {
    bytes = (bytes + bytes / 4 + 63) / 64 * 64;
    buffer.reset();
    buffer.reset(static_cast<unsigned char*>(std::aligned_alloc(64, bytes)));
    KVASIR_CHECK(buffer != nullptr, "no memory for {} bytes of attention scratch", bytes);
    have = bytes;
  }
  return buffer.get();
}

void CpuAttention(const AttentionKernels& kernels, ThreadTeam& team, AttentionWorkspace& workspace, const float* q, int layer,
                  const AttentionParams& params, std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) {
  const int group = params.num_q_heads / kv.layout.num_kv_heads;
  const int parts = int(CeilDiv(group, kTaskHeads)), part_heads = int(CeilDiv(group, parts));
  const int tile_rows = std::max(1, kTaskQueries / group);
  const auto attend = kernels.attend[int(kv.layout.dtype)];

  std::vector<AttentionWorkspace::Item>& items = workspace.items;
  items.clear();
  int most_rows = 0;
  for (const SequenceSlice& slice : slices) {
    most_rows = std::max(most_rows, std::min(tile_rows, slice.num_rows));
    for (int head = 0; head < kv.layout.num_kv_heads; ++head) {
      const PageRun run = kv.Lookup(slice.kv, layer, head);
      for (int row = 0; row < slice.num_rows; row += tile_rows) {
        const int rows = std::min(tile_rows, slice.num_rows - row);
        for (int first = 0; first < group; first += part_heads) {
          const int heads = std::min(part_heads, group - first);
          items.push_back({MakeTask(q, params, slice, kv, run, head * group + first, heads, row, rows, out), 0});
        }
      }
    }
  }
  if (items.empty()) return;

  const size_t thread_bytes = (AttendWorkspaceBytes(most_rows * part_heads, kv.layout.head_dim) + 63) / 64 * 64;
  unsigned char* scratch = workspace.Threads(thread_bytes * team.size());
  if (team.size() == 1 || int64_t(items.size()) >= int64_t{kItemsPerThread} * team.size()) {
    team.ParallelFor(int64_t(items.size()), 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        AttendTask task = items[i].task;
        task.workspace = scratch + thread_bytes * worker;
        attend(task);
      }
    });
    return;
  }

  // Few items: one piece per split, merged afterwards.
  std::vector<int64_t>& first_piece = workspace.first_piece;
  first_piece.clear();
  int64_t pieces = 0, partial_floats = 0;
  for (AttentionWorkspace::Item& item : items) {
    const AttendTask& task = item.task;
    const int64_t splits = task.split_end - task.split_begin;
    item.first_partial = partial_floats;
    first_piece.push_back(pieces);
    pieces += splits;
    if (splits > 1) partial_floats += splits * AttendPartialFloats(task.rows * task.group, task.head_dim);
  }
  float* partials = workspace.Partials(partial_floats);
  team.ParallelFor(pieces, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t i = std::upper_bound(first_piece.begin(), first_piece.end(), piece) - first_piece.begin() - 1;
      AttendTask task = items[i].task;
      task.workspace = scratch + thread_bytes * worker;
      if (task.split_end - task.split_begin > 1) {
        const int64_t nth = piece - first_piece[i];
        task.partials = partials + items[i].first_partial + nth * AttendPartialFloats(task.rows * task.group, task.head_dim);
        task.split_begin += nth;
        task.split_end = task.split_begin + 1;
      }
      attend(task);
    }
  });
  if (partial_floats == 0) return;
  team.ParallelFor(int64_t(items.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      AttendTask task = items[i].task;
      if (task.split_end - task.split_begin == 1) continue;
      task.workspace = scratch + thread_bytes * worker;
      task.partials = partials + items[i].first_partial;
      kernels.merge(task);
    }
  });
}

}  // namespace kvasir
