// ModelExecutor: computes a step with a real model on a real device. It owns the KV arena, one device buffer cut as a KvArenaPlan
// says; table entries of every group count its granules. It may have a second one in the host's memory, cut alike, whose granules
// count on from the device's: blocks are moved there and back (BlockCopy) and never read there. Used by Engine on the engine
// thread; nothing here knows a request.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "memory/kv_arena.h"
#include "models/model.h"
#include "scheduler/executor.h"

namespace kvasir {

class ModelExecutor : public Executor {
 public:
  // Takes num_extents extents from the device, and host_extents from the host; ResourceExhausted when they are not there.
  // `groups` are the model's (kv_groups) and `plan` is of their blocks. `max_logits_rows` as the model was loaded with.
  static StatusOr<std::unique_ptr<ModelExecutor>> Create(Model* model, Device* device, std::span<const KvGroup> groups,
                                                         const KvArenaPlan& plan, int64_t num_extents, int max_logits_rows = 64,
                                                         int64_t host_extents = 0);
  ~ModelExecutor() override;
  ModelExecutor(const ModelExecutor&) = delete;
  ModelExecutor& operator=(const ModelExecutor&) = delete;

  int depth() const override { return device_->RunsAhead() ? 2 : 1; }
  Status Launch(const StepBatch& batch, StepResult& result) override;
  Status Finish() override { return device_->FinishResults(); }

 private:
  ModelExecutor(Model* model, Device* device, int64_t granule_bytes, std::byte* arena, int max_logits_rows);
  void Move(const BlockCopy& copy);
  Status SampleRows(const StepBatch& batch, StepResult& result);
  Status ScoreRows(const StepBatch& batch, StepResult& result);

  Model* model_;
  Device* device_;
  int64_t granule_bytes_;
  std::byte* arena_;
  std::byte* host_arena_ = nullptr;
  uint32_t first_host_granule_ = UINT32_MAX;
  std::vector<PagedKv> kv_;  // one per group; the tables are the step's
  int max_logits_rows_;
};

}  // namespace kvasir
