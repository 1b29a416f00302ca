#include "scheduler/model_executor.h"

#include <algorithm>

namespace kvasir {

StatusOr<std::unique_ptr<ModelExecutor>> ModelExecutor::Create(Model* model, Device* device, std::span<const KvGroup> groups,
                                                               const KvArenaPlan& plan, int64_t num_extents, int max_logits_rows,
                                                               int64_t host_extents) {
  KVASIR_CHECK(groups.size() == plan.groups.size(), "a plan of {} KV groups for {}", plan.groups.size(), groups.size());
  size_t bytes = 0;
  if (num_extents < 1 || __builtin_mul_overflow(size_t(num_extents), size_t(plan.extent_bytes), &bytes)) {
    return InvalidArgument("{} KV blocks of {} bytes cannot be allocated; set another number of blocks", num_extents,
                           plan.extent_bytes);
  }
  KVASIR_ASSIGN_OR_RETURN(void* const arena, device->Allocate(bytes, "KV cache"));
  std::unique_ptr<ModelExecutor> executor(
      new ModelExecutor(model, device, plan.granule_bytes, static_cast<std::byte*>(arena), std::max(1, max_logits_rows)));
  for (const KvGroup& group : groups) {
    executor->kv_.push_back(
        {.base = executor->arena_, .granule_bytes = size_t(plan.granule_bytes), .layout = group.layout, .tables = {}});
  }
  if (host_extents > 0) {
    if (__builtin_mul_overflow(size_t(host_extents), size_t(plan.extent_bytes), &bytes)) {
      return InvalidArgument("{} KV blocks of {} bytes cannot be allocated in the host's memory; set fewer", host_extents,
                             plan.extent_bytes);
    }
    KVASIR_ASSIGN_OR_RETURN(void* const host, device->AllocateHost(bytes, "KV in the host's memory"));
    executor->host_arena_ = static_cast<std::byte*>(host);
    executor->first_host_granule_ = uint32_t(num_extents * plan.extent_granules);
  }
  return executor;
}

ModelExecutor::ModelExecutor(Model* model, Device* device, int64_t granule_bytes, std::byte* arena, int max_logits_rows)
    : model_(model), device_(device), granule_bytes_(granule_bytes), arena_(arena), max_logits_rows_(max_logits_rows) {}

ModelExecutor::~ModelExecutor() {
  device_->Free(arena_);
  if (host_arena_ != nullptr) device_->FreeHost(host_arena_);
}

void ModelExecutor::Move(const BlockCopy& copy) {
  const size_t bytes = size_t(copy.bytes);
  const bool from_host = copy.from >= first_host_granule_, to_host = copy.to >= first_host_granule_;
  std::byte* const from =
      from_host ? host_arena_ + (copy.from - first_host_granule_) * granule_bytes_ : arena_ + copy.from * granule_bytes_;
  std::byte* const to =
      to_host ? host_arena_ + (copy.to - first_host_granule_) * granule_bytes_ : arena_ + copy.to * granule_bytes_;
  KVASIR_DCHECK(!(from_host && to_host), "a move within the host");
  if (from_host) {
    device_->CopyIn(to, from, bytes);
  } else if (to_host) {
    device_->CopyOut(to, from, bytes);
  } else {
    device_->CopyOnDevice(to, from, bytes);
  }
}

Status ModelExecutor::Launch(const StepBatch& batch, StepResult& result) {
  device_->StartResults(int(batch.samples.size()));
  device_->JoinBeside();
  for (const BlockCopy& copy : batch.copies) Move(copy);
  if (!batch.copies_beside.empty()) {
    device_->StartBeside();
    for (const BlockCopy& copy : batch.copies_beside) Move(copy);
    device_->EndBeside();
  }
  for (size_t g = 0; g < kv_.size(); ++g) kv_[g].tables = batch.tables[g];
  const ForwardInput input = {.token_ids = batch.token_ids, .positions = batch.positions, .slices = batch.slices, .kv = kv_};
  // Mostly every row is sampled: then logits are part of the step.
  const bool every_row =
      batch.sample_rows.size() == batch.token_ids.size() && AreFirstRows(batch.sample_rows) && batch.score_rows.empty();
  KVASIR_RETURN_IF_ERROR(model_->Forward(input, every_row));
  KVASIR_RETURN_IF_ERROR(SampleRows(batch, result));
  return ScoreRows(batch, result);
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
