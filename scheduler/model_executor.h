// ModelExecutor: computes a step with a real model on a real device. It owns the KV arena: num_blocks extents in one device
// buffer, where block id b lies at b * block_bytes. Used by Engine on the engine thread; nothing here knows a request.
#pragma once

#include <memory>

#include "kernels/device.h"
#include "models/model.h"
#include "scheduler/executor.h"

namespace kvasir {

class ModelExecutor : public Executor {
 public:
  // Takes the arena from the device; ResourceExhausted when it is not there. `max_logits_rows` as the model was loaded with.
  static StatusOr<std::unique_ptr<ModelExecutor>> Create(Model* model, Device* device, KvLayout layout, int64_t num_blocks,
                                                         int max_logits_rows = 64);
  ~ModelExecutor() override;
  ModelExecutor(const ModelExecutor&) = delete;
  ModelExecutor& operator=(const ModelExecutor&) = delete;

  Status Execute(const StepBatch& batch, StepResult& result) override;

 private:
  ModelExecutor(Model* model, Device* device, KvLayout layout, std::byte* arena, int max_logits_rows);
  Status SampleRows(const StepBatch& batch, StepResult& result);
  Status ScoreRows(const StepBatch& batch, StepResult& result);

  Model* model_;
  Device* device_;
  KvLayout layout_;
  std::byte* arena_;
  int max_logits_rows_;
};

}  // namespace kvasir
