// ShadowExecutor: a model without numbers. Every KV slot holds where it came from (tenant, position, token, and the hash of the
// whole text up to it) instead of floats; "attention" checks that a sequence's block table yields exactly its own text, and the
// sampled token is a hash of that text. So a wrong, stale, foreign or torn block is a reported failure and a wrong token too.
// Several groups of layers share its memory as they share a device's: by the byte. A group with a window is checked where its
// tokens read, and nothing before that may be held. A group may be a recurrent state instead: one slot per block, overwritten by
// every token. Tables must do as their stamps say. With a depth of 2 a step's results are given only when it is finished, and
// what they name is known here alone. Used by the simulator.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/clock.h"
#include "kernels/rng.h"
#include "scheduler/executor.h"

namespace kvasir {

uint64_t Mix(uint64_t a, uint64_t b);
uint64_t ChainRoot(uint32_t tenant);
inline uint64_t ChainNext(uint64_t chain, int32_t token) {
  return Mix(chain, uint64_t(uint32_t(token)) + 1);
}
// The next token of a text: a pure function of text, seed, choice and index. Suppressed ids are stepped over.
int32_t ShadowToken(uint64_t chain, uint64_t seed, uint64_t stream, uint64_t counter, int32_t vocab,
                    std::span<const int32_t> suppressed);
float ShadowScore(uint64_t chain, int32_t token);  // stands for a log-probability

// What the executor may know of a request, to check its slots.
struct ShadowRequest {
  uint32_t tenant = 0;
  int64_t poison_at = -1;  // index of the generated token whose row is not finite; -1 = none
};

class ShadowExecutor : public Executor {
 public:
  // `cache` says how memory is cut; nothing else of it is looked at. state_group: the one that is a recurrent state, -1 = none.
  ShadowExecutor(const KvCache& cache, int state_group, int32_t vocab, FakeClock* clock, uint64_t seed);
  void Add(uint64_t request_id, ShadowRequest request) { requests_[request_id] = request; }
  void FailAtStep(int64_t step) { fail_at_step_ = step; }
  void SetDepth(int depth) { depth_ = depth; }
  int depth() const override { return depth_; }
  Status Launch(const StepBatch& batch, StepResult& result) override;
  Status Finish() override;

  const std::string& failure() const { return failure_; }  // the first thing found wrong; empty = none
  int64_t steps() const { return steps_; }

 private:
  struct Slot {
    uint64_t chain = 0;
    int32_t position = -1;
    int32_t token = -1;
    uint32_t tenant = 0;
    int32_t group = -1;
    int64_t written_in_step = -1;
  };
  // A token takes `cells` neighbouring cells of memory, each a Slot of its own.
  struct Group {
    int32_t window = 0;
    size_t cells = 1;
    bool state = false;
  };
  Slot* At(size_t group, const SequenceTable& table, int32_t position) {
    const Group& g = groups_[group];
    const size_t inside = g.state ? 0 : size_t(position % block_tokens_) * g.cells;
    return &slots_[size_t(table.blocks[position / block_tokens_]) * granule_cells_ + inside];
  }
  // Whether what the token at `position` left is still there when the text has `end` tokens.
  bool IsKept(size_t group, int32_t position, int32_t end) const {
    return !groups_[group].state || position + 1 == end || (position + 1) % block_tokens_ == 0;
  }
  // The first position that the row at `position` reads.
  int32_t FirstRead(size_t group, int32_t position) const {
    return groups_[group].window == 0 ? 0 : std::max(0, position - groups_[group].window + 1);
  }
  void CheckSlots(const StepBatch& batch, size_t index, bool own_rows, const char* when);
  void CheckGroup(const StepBatch& batch, size_t index, size_t group, int32_t end, const char* when);
  void CheckStamps(const StepBatch& batch);
  void WriteRows(const StepBatch& batch, size_t index);
  void CheckText(const StepBatch& batch, size_t index, const SampleRow& sample);
  void Copy(const std::vector<BlockCopy>& copies);
  Status Compute(const StepBatch& batch);
  void Sample(const StepBatch& batch, StepResult& result);
  int32_t TokenOf(int32_t id);  // an id of the batch, or what it names
  void Report(std::string what);

  const int block_tokens_;
  const int32_t vocab_;
  FakeClock* clock_;
  Rng rng_;
  size_t granule_cells_ = 1, cell_bytes_ = 1;
  uint32_t first_host_granule_ = 0;
  std::vector<Group> groups_;
  std::vector<Slot> slots_;       // by cell
  std::vector<uint64_t> chains_;  // of the text being checked, by position; 0 where it cannot be known
  std::unordered_map<uint64_t, ShadowRequest> requests_;
  std::string failure_;
  struct Launched {
    StepResult* wanted;  // of the caller
    StepResult result;
    Status status;
  };
  std::deque<Launched> launched_;
  std::map<uint64_t, std::vector<uint32_t>> stamped_;  // the entries that tables of a stamp have had
  std::vector<int32_t> previous_tokens_;               // samples of the step before
  int depth_ = 1;
  int64_t steps_ = 0, fail_at_step_ = -1;
};

}  // namespace kvasir
