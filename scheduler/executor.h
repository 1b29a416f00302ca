// Executor: the model and device as the scheduler sees them, so that a fake can stand in (simulation, null-model benchmarks).
// One step in, one result per sampled row out; a step may be started before the results of the one before it are read. Used by
// Engine on the engine thread.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "kernels/sampling.h"
#include "memory/kv_cache.h"

namespace kvasir {

// One step as flat arrays. Vectors keep their capacity from step to step: a steady step allocates nothing.
struct StepBatch {
  std::vector<int32_t> token_ids, positions;                    // [num_tokens]; ids may be pending (sampling.h)
  std::vector<SequenceSlice> slices;                            // [num_seqs]
  std::array<std::vector<SequenceTable>, kMaxKvGroups> tables;  // per group of layers: [num_seqs]
  std::vector<uint64_t> request_ids;  // [num_seqs]: for traces and for fakes; nothing computed may depend on it
  std::vector<BlockCopy> copies;      // to do before anything else
  // To do after these and before the next step's. The step touches nothing of what they read and write, so that they may go on
  // beside it.
  std::vector<BlockCopy> copies_beside;
  std::vector<int32_t> sample_rows;   // rows whose logits are sampled
  std::vector<SampleRow> samples;     // parallel to sample_rows
  std::vector<int32_t> score_rows;    // rows whose next prompt token is scored (prompt_logprobs)
  std::vector<int32_t> score_tokens;  // that token
  std::vector<int32_t> score_top;     // alternatives wanted
  void Clear();
};

struct StepResult {
  std::vector<SampleResult> samples;  // parallel to StepBatch::samples
  std::vector<SampleResult> scores;   // parallel to StepBatch::score_rows
};

class Executor {
 public:
  virtual ~Executor() = default;
  // Steps that may be under way at once, 1 or 2. With 2, a step's token ids and outputs may name samples of the step before it
  // that the caller has not read yet (PendingToken). Whatever a step writes is written after the one before it is done.
  virtual int depth() const { return 1; }
  // Starts a step. The batch is the caller's again when this returns; the result, sized for it, is filled when its Finish
  // returns. An error, here or of Finish, is the device's: the engine becomes unhealthy, ends every request with Unavailable,
  // publishes nothing, and finishes no step any more.
  virtual Status Launch(const StepBatch& batch, StepResult& result) = 0;
  // Waits for the oldest step that was launched and not finished.
  virtual Status Finish() { return OkStatus(); }
};

}  // namespace kvasir
