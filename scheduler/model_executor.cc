#include "scheduler/model_executor.h"

#include <algorithm>

namespace kvasir {

StatusOr<std::unique_ptr<ModelExecutor>> ModelExecutor::Create(Model* model, Device* device, KvLayout layout, int64_t num_blocks,
                                                               int max_logits_rows) {
  size_t bytes = 0;
  if (num_blocks < 1 || __builtin_mul_overflow(size_t(num_blocks), layout.block_bytes(), &bytes)) {
    return InvalidArgument("{} KV blocks of {} bytes cannot be allocated; set another number of blocks", num_blocks,
                           layout.block_bytes());
  }
  KVASIR_ASSIGN_OR_RETURN(void* const arena, device->Allocate(bytes, "KV cache"));
  return std::unique_ptr<ModelExecutor>(
      new ModelExecutor(model, device, layout, static_cast<std::byte*>(arena), std::max(1, max_logits_rows)));
}

ModelExecutor::ModelExecutor(Model* model, Device* device, KvLayout layout, std::byte* arena, int max_logits_rows)
    : model_(model), device_(device), layout_(layout), arena_(arena), max_logits_rows_(max_logits_rows) {}

ModelExecutor::~ModelExecutor() {
  device_->Free(arena_);
}

Status ModelExecutor::Execute(const StepBatch& batch, StepResult& result) {
  const size_t block_bytes = layout_.block_bytes();
  for (const BlockCopy& copy : batch.copies) {
    device_->CopyOnDevice(arena_ + copy.to * block_bytes, arena_ + copy.from * block_bytes, block_bytes);
  }
  const PagedKv kv = {.base = arena_, .granule_bytes = block_bytes, .layout = layout_, .tables = batch.tables};
  const ForwardInput input = {.token_ids = batch.token_ids, .positions = batch.positions, .slices = batch.slices, .kv = {&kv, 1}};
  KVASIR_RETURN_IF_ERROR(model_->Forward(input));
  KVASIR_RETURN_IF_ERROR(SampleRows(batch, result));
  KVASIR_RETURN_IF_ERROR(ScoreRows(batch, result));
  return device_->Synchronize();
}

Status ModelExecutor::SampleRows(const StepBatch& batch, StepResult& result) {
  const int vocab = int(model_->config().vocab_size);
  const std::span rows(batch.sample_rows);
  const std::span samples(batch.samples);
  for (size_t first = 0; first < rows.size(); first += size_t(max_logits_rows_)) {
    const size_t count = std::min(rows.size() - first, size_t(max_logits_rows_));
    KVASIR_ASSIGN_OR_RETURN(const float* const logits, model_->Logits(rows.subspan(first, count)));
    device_->Sample(logits, vocab, samples.subspan(first, count), std::span(result.samples).subspan(first, count));
  }
  return OkStatus();
}

Status ModelExecutor::ScoreRows(const StepBatch& batch, StepResult& result) {
  const int vocab = int(model_->config().vocab_size);
  const std::span rows(batch.score_rows);
  for (size_t first = 0; first < rows.size(); first += size_t(max_logits_rows_)) {
    const size_t count = std::min(rows.size() - first, size_t(max_logits_rows_));
    KVASIR_ASSIGN_OR_RETURN(const float* const logits, model_->Logits(rows.subspan(first, count)));
    device_->ScoreTokens(logits, vocab, std::span(batch.score_tokens).subspan(first, count),
                         std::span(batch.score_top).subspan(first, count), std::span(result.scores).subspan(first, count));
  }
  return OkStatus();
}

}  // namespace kvasir
