// Paged attention on the CPU, dense and ragged, prefill and decode, for every KV format. Called by CpuDevice.
//
// One work item is (sequence, KV head, a few query rows): all its query heads (of a very large group a part) share each pass over
// the pages. When there are
// fewer items than threads want, items are also cut at split boundaries; since splits lie at absolute slots and are always
// merged in order, a query row's result is bit-identical for any batch, chunk and thread count.
//
// Sequences whose tables begin with the same blocks read those once (cascade attention): a split that several of them hold is
// computed for the queries of all, and each goes on from its own share of the results. The order of sums is the same as alone.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/device.h"

namespace kvasir {

// Scratch of CpuAttention; grows to the largest call and is then reused.
class AttentionWorkspace {
 public:
  struct Item {
    AttendTask task;
    int64_t first_partial = 0;  // in floats
  };

  // A split held by several sequences: members [first, last) of `members`.
  struct SharedSplit {
    int64_t split = 0;
    int first = 0, last = 0;
  };
  // A sequence that shares splits: all its query rows, and its first row among those of `rows`.
  struct Member {
    const SequenceSlice* slice = nullptr;
    int first_row = 0;
    int64_t shared = 0;  // leading splits it shares with others
    int64_t first_prior = 0;
  };
  std::vector<Member> members;  // in the order of their tables
  std::vector<const SequenceSlice*> others;
  std::vector<SharedSplit> shared_splits;
  std::vector<int32_t> rows;         // query rows of the members, one after another
  std::vector<const float*> priors;  // see AttendTask: of a member's query head h, first_prior + h * shared + split
  float* Shared(size_t floats) { return reinterpret_cast<float*>(Grow(shared_, shared_bytes_, floats * sizeof(float))); }

  std::vector<Item> items;
  std::vector<int64_t> first_piece;  // prefix sums of pieces per item, when items are split
  // 64-byte aligned bytes, at least as many as asked; contents are lost when it grows.
  unsigned char* Threads(size_t bytes) { return Grow(threads_, threads_bytes_, bytes); }
  float* Partials(size_t floats) { return reinterpret_cast<float*>(Grow(partials_, partials_bytes_, floats * sizeof(float))); }

 private:
  struct FreeDeleter {
    void operator()(unsigned char* p) const;
  };
  using Buffer = std::unique_ptr<unsigned char[], FreeDeleter>;
  static unsigned char* Grow(Buffer& buffer, size_t& have, size_t bytes);

  Buffer threads_, partials_, shared_;
  size_t threads_bytes_ = 0, partials_bytes_ = 0, shared_bytes_ = 0;
};

// Fills members, shared_splits and rows of the workspace: sequences of at most `most_rows` query rows with dense tables that hold
// the same splits. Nothing when none do.
void FindSharedSplits(AttentionWorkspace& workspace, std::span<const SequenceSlice> slices, const PagedKv& kv, int most_rows);

// Device::Attention. q and out [rows, num_q_heads * head_dim].
void CpuAttention(const AttentionKernels& kernels, ThreadTeam& team, AttentionWorkspace& workspace, const float* q, int layer,
                  const AttentionParams& params, std::span<const SequenceSlice> slices, const PagedKv& kv, float* out);

}  // namespace kvasir
