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
  task.codes = AttendCodes(layout.quant);
  task.row_bytes = layout.row_bytes();
  task.scales_offset = layout.scales_offset();
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

namespace {

// What all tasks of a call have in common.
struct Call {
  const AttentionKernels& kernels;
  ThreadTeam& team;
  AttentionWorkspace& workspace;
  const float* q;
  int layer;
  const AttentionParams& params;
  std::span<const SequenceSlice> slices;
  const PagedKv& kv;
  float* out;

  // Query heads of a KV head; of a very large group a part at a time.
  int group() const { return params.num_q_heads / kv.layout.num_kv_heads; }
  int part_heads() const { return int(CeilDiv(group(), CeilDiv(group(), kTaskHeads))); }
  int tile_rows() const { return std::max(1, kTaskQueries / group()); }
  int64_t partial_floats(int64_t queries) const { return queries * AttendPartialFloats(1, kv.layout.head_dim); }
  void Attend(AttendTask task, unsigned char* scratch) const {
    task.workspace = scratch;
    kernels.attend[int(task.codes == AttendCodes::kNone ? kv.layout.dtype : DType::kF32)](task);
  }
};

// A split that several sequences hold: as many tasks as its rows make tiles, for each part of each KV head's group.
void AddSharedItems(const Call& call, const AttentionWorkspace::SharedSplit& shared, float* partials) {
  AttentionWorkspace& workspace = call.workspace;
  const AttentionWorkspace::Member &first = workspace.members[shared.first], &last = workspace.members[shared.last - 1];
  const int rows = last.first_row + last.slice->num_rows - first.first_row;
  for (int head = 0; head < call.kv.layout.num_kv_heads; ++head) {
    const PageRun run = call.kv.Lookup(first.slice->kv, call.layer, head);
    for (int part = 0; part < call.group(); part += call.part_heads()) {
      const int heads = std::min(call.part_heads(), call.group() - part), first_head = head * call.group() + part;
      const SequenceSlice all = {0, 1, first.slice->kv};
      for (int row = 0; row < rows; row += call.tile_rows()) {
        AttendTask task = MakeTask(call.q, call.params, all, call.kv, run, first_head, heads, 0,
                                   std::min(call.tile_rows(), rows - row), call.out);
        task.row_ids = workspace.rows.data() + first.first_row + row;
        task.first_end = (shared.split + 1) * kSplitSlots;
        task.split_begin = shared.split;
        task.split_end = shared.split + 1;
        task.partials = partials + call.partial_floats(int64_t{first_head} * rows + int64_t{row} * heads);
        workspace.items.push_back({task, 0});
      }
    }
  }
}

// Computes the shared splits, and notes for each member where its partials lie: priors[(member, head) * its splits + split], for
// the first query head of each part.
void AttendShared(const Call& call, unsigned char* scratch, size_t thread_bytes) {
  AttentionWorkspace& workspace = call.workspace;
  workspace.items.clear();
  workspace.priors.clear();
  int64_t floats = 0;
  const auto rows_of = [&](const AttentionWorkspace::SharedSplit& shared) {
    const AttentionWorkspace::Member& last = workspace.members[shared.last - 1];
    return int64_t{last.first_row} + last.slice->num_rows - workspace.members[shared.first].first_row;
  };
  for (const auto& shared : workspace.shared_splits) floats += call.partial_floats(rows_of(shared) * call.params.num_q_heads);
  float* const partials = workspace.Shared(size_t(floats));
  int64_t priors = 0;
  for (AttentionWorkspace::Member& m : workspace.members) {
    m.first_prior = priors;
    priors += m.shared * call.params.num_q_heads;
  }
  workspace.priors.resize(size_t(priors));
  int64_t offset = 0;
  for (const auto& shared : workspace.shared_splits) {
    const int64_t rows = rows_of(shared);
    AddSharedItems(call, shared, partials + offset);
    for (int i = shared.first; i < shared.last; ++i) {
      const AttentionWorkspace::Member& m = workspace.members[i];
      const int64_t row = m.first_row - workspace.members[shared.first].first_row;
      for (int first_head = 0; first_head < call.params.num_q_heads; ++first_head) {
        // Meaningful where a part begins: its heads' partials lie row by row.
        const int in_group = first_head % call.group(), heads = std::min(call.part_heads(), call.group() - in_group);
        workspace.priors[size_t(m.first_prior + first_head * m.shared + shared.split)] =
            partials + offset + call.partial_floats(first_head * rows + row * heads);
      }
    }
    offset += call.partial_floats(rows * call.params.num_q_heads);
  }
  const std::vector<AttentionWorkspace::Item>& items = workspace.items;
  call.team.ParallelFor(int64_t(items.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) call.Attend(items[i].task, scratch + thread_bytes * worker);
  });
}

// The items of all sequences, after what was computed for several.
void AddItems(const Call& call) {
  std::vector<AttentionWorkspace::Item>& items = call.workspace.items;
  items.clear();
  const auto add = [&](const SequenceSlice& slice, const AttentionWorkspace::Member* member) {
    for (int head = 0; head < call.kv.layout.num_kv_heads; ++head) {
      const PageRun run = call.kv.Lookup(slice.kv, call.layer, head);
      for (int row = 0; row < slice.num_rows; row += call.tile_rows()) {
        const int rows = std::min(call.tile_rows(), slice.num_rows - row);
        for (int part = 0; part < call.group(); part += call.part_heads()) {
          const int heads = std::min(call.part_heads(), call.group() - part), first_head = head * call.group() + part;
          AttendTask task = MakeTask(call.q, call.params, slice, call.kv, run, first_head, heads, row, rows, call.out);
          if (member != nullptr && member->shared > 0) {
            task.prior = call.workspace.priors.data() + member->first_prior + first_head * member->shared;
            task.num_prior = task.split_begin = member->shared;
          }
          items.push_back({task, 0});
        }
      }
    }
  };
  if (call.workspace.shared_splits.empty()) {
    for (const SequenceSlice& slice : call.slices) add(slice, nullptr);
    return;
  }
  for (const AttentionWorkspace::Member& member : call.workspace.members) add(*member.slice, &member);
  for (const SequenceSlice* slice : call.workspace.others) add(*slice, nullptr);
}

// Few items: one piece per split, merged afterwards.
void AttendInPieces(const Call& call, unsigned char* scratch, size_t thread_bytes) {
  std::vector<AttentionWorkspace::Item>& items = call.workspace.items;
  std::vector<int64_t>& first_piece = call.workspace.first_piece;
  first_piece.clear();
  int64_t pieces = 0, partial_floats = 0;
  const auto whole = [](const AttendTask& task) { return task.split_end - task.split_begin <= 1; };
  for (AttentionWorkspace::Item& item : items) {
    const AttendTask& task = item.task;
    const int64_t splits = task.split_end - task.split_begin;
    item.first_partial = partial_floats;
    first_piece.push_back(pieces);
    pieces += std::max<int64_t>(1, splits);
    if (!whole(task)) partial_floats += splits * call.partial_floats(int64_t{task.rows} * task.group);
  }
  float* partials = call.workspace.Partials(size_t(partial_floats));
  call.team.ParallelFor(pieces, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t i = std::upper_bound(first_piece.begin(), first_piece.end(), piece) - first_piece.begin() - 1;
      AttendTask task = items[i].task;
      if (!whole(task)) {
        const int64_t nth = piece - first_piece[i];
        task.partials = partials + items[i].first_partial + nth * call.partial_floats(int64_t{task.rows} * task.group);
        task.split_begin += nth;
        task.split_end = task.split_begin + 1;
      }
      call.Attend(task, scratch + thread_bytes * worker);
    }
  });
  if (partial_floats == 0) return;
  call.team.ParallelFor(int64_t(items.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      AttendTask task = items[i].task;
      if (whole(task)) continue;
      task.workspace = scratch + thread_bytes * worker;
      task.partials = partials + items[i].first_partial;
      call.kernels.merge(task);
    }
  });
}

}  // namespace

void CpuAttention(const AttentionKernels& kernels, ThreadTeam& team, AttentionWorkspace& workspace, const float* q, int layer,
                  const AttentionParams& params, std::span<const SequenceSlice> slices, const PagedKv& kv, float* out) {
  static_assert(int(AttendCodes::kFp8) == int(KvQuant::kFp8) && int(AttendCodes::kInt4) == int(KvQuant::kInt4));
  KVASIR_CHECK(kv.layout.quant == KvQuant::kNone || kv.layout.value_dim == 0, "latent keys are not quantised");
  const Call call = {kernels, team, workspace, q, layer, params, slices, kv, out};
  const size_t queries = size_t(call.tile_rows()) * size_t(call.part_heads());
  const size_t thread_bytes = (AttendWorkspaceBytes(int(queries), kv.layout.head_dim) + 63) / 64 * 64;
  unsigned char* scratch = workspace.Threads(thread_bytes * size_t(team.size()));

  workspace.shared_splits.clear();
  // Within a window there is little to share, and what lies before it may be gone.
  if (params.window == 0 && slices.size() > 1) FindSharedSplits(workspace, slices, kv, call.tile_rows());
  if (!workspace.shared_splits.empty()) AttendShared(call, scratch, thread_bytes);
  AddItems(call);
  const std::vector<AttentionWorkspace::Item>& items = workspace.items;
  if (items.empty()) return;
  if (team.size() > 1 && int64_t(items.size()) < int64_t{kItemsPerThread} * team.size()) {
    AttendInPieces(call, scratch, thread_bytes);
    return;
  }
  team.ParallelFor(int64_t(items.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) call.Attend(items[i].task, scratch + thread_bytes * worker);
  });
}

}  // namespace kvasir
