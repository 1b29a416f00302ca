#include "tests/scheduler/shadow_executor.h"

#include <algorithm>

namespace kvasir {

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = (a ^ 0x9E3779B97F4A7C15ull) + b * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 31)) * 0x94D049BB133111EBull;
  x = (x ^ (x >> 29)) * 0xD6E8FEB86659FD93ull;
  return x ^ (x >> 32);
}

uint64_t ChainRoot(uint32_t tenant) {
  return Mix(0x6B76617369720000ull, tenant);
}

int32_t ShadowToken(uint64_t chain, uint64_t seed, uint64_t stream, uint64_t counter, int32_t vocab,
                    std::span<const int32_t> suppressed) {
  int32_t token = int32_t(Mix(Mix(chain, seed), Mix(stream + 1, counter + 1)) % uint64_t(vocab));
  while (std::find(suppressed.begin(), suppressed.end(), token) != suppressed.end()) token = (token + 1) % vocab;
  return token;
}

float ShadowScore(uint64_t chain, int32_t token) {
  return float(Mix(chain, uint64_t(uint32_t(token)) + 77) % 100000) * -1e-3f;
}

ShadowExecutor::ShadowExecutor(int64_t num_blocks, int block_tokens, int32_t vocab, FakeClock* clock, uint64_t seed)
    : block_tokens_(block_tokens),
      vocab_(vocab),
      clock_(clock),
      rng_(seed, 99),
      slots_(size_t(num_blocks) * size_t(block_tokens)) {}

void ShadowExecutor::Report(std::string what) {
  if (failure_.empty()) failure_ = fmt::format("step {}: {}", steps_, what);
}

// Slots [0, end) of one sequence hold one text of its tenant, in order.
void ShadowExecutor::CheckSlots(const StepBatch& batch, size_t index, int32_t end, const char* when) {
  const SequenceTable& table = batch.tables[size_t(batch.slices[index].kv)];
  const ShadowRequest& request = requests_[batch.request_ids[index]];
  uint64_t chain = ChainRoot(request.tenant);
  for (int32_t p = 0; p < end; ++p) {
    const Slot& slot = At(table, p);
    chain = ChainNext(chain, slot.token);
    if (slot.position == p && slot.tenant == request.tenant && slot.chain == chain) continue;
    return Report(
        fmt::format("request {} reads at position {} ({}) a slot of tenant {}, position {}, token {}, block {}, not its own",
                    batch.request_ids[index], p, when, slot.tenant, slot.position, slot.token, table.blocks[p / block_tokens_]));
  }
}

void ShadowExecutor::WriteRows(const StepBatch& batch, size_t index) {
  const SequenceSlice& slice = batch.slices[index];
  const SequenceTable& table = batch.tables[size_t(slice.kv)];
  const ShadowRequest& request = requests_[batch.request_ids[index]];
  for (int32_t i = 0; i < slice.num_rows; ++i) {
    const int32_t row = slice.first_row + i;
    const int32_t position = table.num_slots - slice.num_rows + i;
    if (batch.positions[size_t(row)] != position) {
      Report(fmt::format("row {} has position {} but its slot is {}", row, batch.positions[size_t(row)], position));
    }
    const uint64_t before = position == 0 ? ChainRoot(request.tenant) : At(table, position - 1).chain;
    const int32_t token = batch.token_ids[size_t(row)];
    Slot& slot = At(table, position);
    if (slot.written_in_step == steps_) {
      Report(fmt::format("request {} writes position {} into block {}, which another row of this step wrote",
                         batch.request_ids[index], position, table.blocks[position / block_tokens_]));
    }
    slot = {.chain = ChainNext(before, token),
            .position = position,
            .token = token,
            .tenant = request.tenant,
            .written_in_step = steps_};
  }
}

// The text in the slots is prompt + output, and nothing is missing.
void ShadowExecutor::CheckText(const StepBatch& batch, size_t index, const SampleRow& sample) {
  const SequenceTable& table = batch.tables[size_t(batch.slices[index].kv)];
  const int32_t prompt = int32_t(sample.prompt.size());
  if (table.num_slots != prompt + int32_t(sample.output.size())) {
    return Report(fmt::format("request {} samples with {} slots but has {} + {} tokens", batch.request_ids[index],
                              table.num_slots, prompt, sample.output.size()));
  }
  for (int32_t p = 0; p < table.num_slots; ++p) {
    const int32_t expected = p < prompt ? sample.prompt[size_t(p)] : sample.output[size_t(p - prompt)];
    if (At(table, p).token == expected) continue;
    return Report(fmt::format("request {} has token {} in slot {} but its text has {}", batch.request_ids[index],
                              At(table, p).token, p, expected));
  }
}

void ShadowExecutor::Sample(const StepBatch& batch, StepResult& result) {
  const auto slice_of = [&](int32_t row) {
    size_t index = 0;
    while (row >= batch.slices[index].first_row + batch.slices[index].num_rows) ++index;
    return index;
  };
  const auto chain_at = [&](int32_t row) {
    return At(batch.tables[size_t(batch.slices[slice_of(row)].kv)], batch.positions[size_t(row)]).chain;
  };
  for (size_t i = 0; i < batch.samples.size(); ++i) {
    const SampleRow& sample = batch.samples[i];
    const size_t index = slice_of(batch.sample_rows[i]);
    CheckText(batch, index, sample);
    result.samples[i] = {};
    result.samples[i].finite = requests_[batch.request_ids[index]].poison_at != int64_t(sample.output.size());
    result.samples[i].token = ShadowToken(chain_at(batch.sample_rows[i]), sample.params->seed, sample.stream, sample.counter,
                                          vocab_, sample.suppressed);
  }
  for (size_t i = 0; i < batch.score_rows.size(); ++i) {
    result.scores[i] = {};
    result.scores[i].token = batch.score_tokens[i];
    result.scores[i].logprob = ShadowScore(chain_at(batch.score_rows[i]), batch.score_tokens[i]);
  }
}

Status ShadowExecutor::Execute(const StepBatch& batch, StepResult& result) {
  ++steps_;
  clock_->Advance(int64_t(rng_.Below(5000)));
  if (steps_ == fail_at_step_) return Internal("the device was lost (injected)");
  for (const BlockCopy& copy : batch.copies) {
    for (int i = 0; i < block_tokens_; ++i)
      slots_[size_t(copy.to) * block_tokens_ + i] = slots_[size_t(copy.from) * block_tokens_ + i];
  }
  // All history is read before anything is written, so a block that another sequence of this step has yet to compute is found
  // out; and once more after, so that a write into a shared block is too.
  for (size_t i = 0; i < batch.slices.size(); ++i) {
    CheckSlots(batch, i, batch.tables[size_t(batch.slices[i].kv)].num_slots - batch.slices[i].num_rows, "history");
  }
  for (size_t i = 0; i < batch.slices.size(); ++i) WriteRows(batch, i);
  for (size_t i = 0; i < batch.slices.size(); ++i)
    CheckSlots(batch, i, batch.tables[size_t(batch.slices[i].kv)].num_slots, "own step");
  Sample(batch, result);
  return OkStatus();
}

}  // namespace kvasir
