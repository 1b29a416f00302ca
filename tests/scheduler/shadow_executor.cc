#include "tests/scheduler/shadow_executor.h"

#include <algorithm>
#include <numeric>
#include <set>

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

ShadowExecutor::ShadowExecutor(const KvCache& cache, int state_group, int32_t vocab, FakeClock* clock, uint64_t seed)
    : block_tokens_(cache.config().block_tokens), vocab_(vocab), clock_(clock), rng_(seed, 99) {
  const KvArenaPlan& plan = cache.plan();
  int64_t cell = 0;
  for (const KvGroupConfig& group : cache.config().groups) {
    KVASIR_CHECK(group.block_bytes % block_tokens_ == 0, "{} bytes for {} tokens", group.block_bytes, block_tokens_);
    cell = std::gcd(cell, group.block_bytes / block_tokens_);
  }
  for (const KvGroupConfig& group : cache.config().groups) {
    groups_.push_back({group.window_tokens, size_t(group.block_bytes / block_tokens_ / cell)});
  }
  if (state_group >= 0) groups_[size_t(state_group)].state = true;
  cell_bytes_ = size_t(cell);
  granule_cells_ = size_t(plan.granule_bytes / cell);
  // The host's memory lies behind the device's; only copies may touch it.
  slots_.resize(size_t((cache.config().num_blocks + cache.config().host_blocks) * plan.extent_bytes / cell));
  first_host_granule_ = cache.first_host_granule();
}

void ShadowExecutor::Report(std::string what) {
  if (failure_.empty()) failure_ = fmt::format("step {}: {}", steps_, what);
}

// The slots that this step's rows read hold one text of its tenant, in order, in every group.
void ShadowExecutor::CheckSlots(const StepBatch& batch, size_t index, bool own_rows, const char* when) {
  const SequenceSlice& slice = batch.slices[index];
  const SequenceTable& table = batch.tables[0][size_t(slice.kv)];
  const int32_t first = table.num_slots - slice.num_rows, end = own_rows ? table.num_slots : first;
  uint64_t chain = ChainRoot(requests_[batch.request_ids[index]].tenant);
  const int32_t known = FirstRead(0, first);
  chains_.assign(size_t(std::max(0, end)), 0);
  for (int32_t p = known; p < end; ++p) {
    const Slot& slot = *At(0, table, p);
    // Where the beginning was let go, the first slot is believed; CheckText compares the last one with the whole text.
    chain = p > 0 && p == known ? slot.chain : ChainNext(chain, slot.token);
    chains_[size_t(p)] = chain;
  }
  for (size_t g = 0; g < groups_.size(); ++g) CheckGroup(batch, index, g, end, when);
}

void ShadowExecutor::CheckGroup(const StepBatch& batch, size_t index, size_t group, int32_t end, const char* when) {
  const SequenceSlice& slice = batch.slices[index];
  const SequenceTable& table = batch.tables[group][size_t(slice.kv)];
  const uint32_t tenant = requests_[batch.request_ids[index]].tenant;
  const size_t last_cell = groups_[group].cells - 1;
  const int32_t first_read = FirstRead(group, table.num_slots - slice.num_rows);
  for (int32_t block = 0; block * block_tokens_ < table.num_slots; ++block) {
    const bool outside = block < first_read / block_tokens_, gone = table.blocks[block] == kNoBlock;
    // What only the step under way read is let go when that is finished.
    if (!gone && table.blocks[block] >= first_host_granule_) {
      return Report(
          fmt::format("request {} block {} of group {} is in the host ({})", batch.request_ids[index], block, group, when));
    }
    if (outside == gone || (outside && depth_ > 1)) continue;
    return Report(fmt::format("request {} {} block {} of group {}, but its tokens read from position {} on ({})",
                              batch.request_ids[index], outside ? "still holds" : "has let go of", block, group, first_read,
                              when));
  }
  for (int32_t p = first_read; p < end; ++p) {
    if (!IsKept(group, p, end)) continue;
    const Slot* slots = At(group, table, p);
    for (const Slot* slot : {slots, slots + last_cell}) {
      if (slot->position == p && slot->tenant == tenant && slot->chain == chains_[size_t(p)] && slot->group == int32_t(group)) {
        continue;
      }
      return Report(
          fmt::format("request {} reads at position {} of group {} ({}) a slot of tenant {}, position {}, token {}, group {}, "
                      "entry {}, not its own",
                      batch.request_ids[index], p, group, when, slot->tenant, slot->position, slot->token, slot->group,
                      table.blocks[p / block_tokens_]));
    }
  }
}

// Under a stamp tables only grow, and blocks are let go; no two tables of a step have the same.
void ShadowExecutor::CheckStamps(const StepBatch& batch) {
  std::set<uint64_t> of_step;
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (const SequenceTable& table : batch.tables[g]) {
      const int32_t blocks = (table.num_slots + block_tokens_ - 1) / block_tokens_;
      if (table.stamp == 0 || !of_step.insert(table.stamp).second)
        Report(fmt::format("a table of group {} has the stamp {}, as another one of the step", g, table.stamp));
      std::vector<uint32_t>& known = stamped_[table.stamp];
      for (int32_t i = 0; i < std::min(blocks, int32_t(known.size())); ++i) {
        if (table.blocks[i] != known[size_t(i)] && table.blocks[i] != kNoBlock) {
          Report(fmt::format("entry {} of a table of group {} has become {} from {} under the stamp {}", i, g, table.blocks[i],
                             known[size_t(i)], table.stamp));
        }
        known[size_t(i)] = table.blocks[i];
      }
      if (blocks > int32_t(known.size())) known.insert(known.end(), table.blocks + known.size(), table.blocks + blocks);
    }
  }
}

void ShadowExecutor::WriteRows(const StepBatch& batch, size_t index) {
  const SequenceSlice& slice = batch.slices[index];
  const SequenceTable& table = batch.tables[0][size_t(slice.kv)];
  const ShadowRequest& request = requests_[batch.request_ids[index]];
  for (int32_t i = 0; i < slice.num_rows; ++i) {
    const int32_t row = slice.first_row + i;
    const int32_t position = table.num_slots - slice.num_rows + i;
    if (batch.positions[size_t(row)] != position) {
      Report(fmt::format("row {} has position {} but its slot is {}", row, batch.positions[size_t(row)], position));
    }
    const uint64_t before = position == 0 ? ChainRoot(request.tenant) : At(0, table, position - 1)->chain;
    const int32_t token = TokenOf(batch.token_ids[size_t(row)]);
    for (size_t g = 0; g < groups_.size(); ++g) {
      const SequenceTable& own = batch.tables[g][size_t(slice.kv)];
      if (own.num_slots != table.num_slots) Report("groups disagree about the slots in use");
      Slot* slots = At(g, own, position);
      const bool goes_on = groups_[g].state && i > 0 && slots->chain == before;  // the row before it left this state
      if (slots->written_in_step == steps_ && !goes_on) {
        Report(fmt::format("request {} writes position {} of group {} into entry {}, which another row of this step wrote",
                           batch.request_ids[index], position, g, own.blocks[position / block_tokens_]));
      }
      std::fill_n(slots, groups_[g].cells,
                  Slot{.chain = ChainNext(before, token),
                       .position = position,
                       .token = token,
                       .tenant = request.tenant,
                       .group = int32_t(g),
                       .written_in_step = steps_});
    }
  }
}

// The text in the slots is prompt + output, and nothing is missing.
void ShadowExecutor::CheckText(const StepBatch& batch, size_t index, const SampleRow& sample) {
  const SequenceTable& table = batch.tables[0][size_t(batch.slices[index].kv)];
  const int32_t prompt = int32_t(sample.prompt.size()), output = int32_t(sample.output.size());
  if (table.num_slots != prompt + output + (IsPending(sample.pending) ? 1 : 0)) {
    return Report(fmt::format("request {} samples with {} slots but has {} + {} tokens", batch.request_ids[index],
                              table.num_slots, prompt, output));
  }
  uint64_t chain = ChainRoot(requests_[batch.request_ids[index]].tenant);
  const int32_t first_read = FirstRead(0, table.num_slots - 1);
  for (int32_t p = 0; p < table.num_slots; ++p) {
    const int32_t expected = p < prompt            ? sample.prompt[size_t(p)]
                             : p - prompt < output ? sample.output[size_t(p - prompt)]
                                                   : TokenOf(sample.pending);
    chain = ChainNext(chain, expected);
    if (p < first_read || (At(0, table, p)->token == expected && At(0, table, p)->chain == chain)) continue;
    return Report(fmt::format("request {} has token {} in slot {} but its text has {}", batch.request_ids[index],
                              At(0, table, p)->token, p, expected));
  }
}

void ShadowExecutor::Sample(const StepBatch& batch, StepResult& result) {
  const auto slice_of = [&](int32_t row) {
    size_t index = 0;
    while (row >= batch.slices[index].first_row + batch.slices[index].num_rows) ++index;
    return index;
  };
  const auto chain_at = [&](int32_t row) {
    return At(0, batch.tables[0][size_t(batch.slices[slice_of(row)].kv)], batch.positions[size_t(row)])->chain;
  };
  for (size_t i = 0; i < batch.samples.size(); ++i) {
    const SampleRow& sample = batch.samples[i];
    const size_t index = slice_of(batch.sample_rows[i]);
    CheckText(batch, index, sample);
    result.samples[i] = {};
    result.samples[i].finite = requests_[batch.request_ids[index]].poison_at != int64_t(sample.counter);
    result.samples[i].token = ShadowToken(chain_at(batch.sample_rows[i]), sample.params->seed, sample.stream, sample.counter,
                                          vocab_, sample.suppressed);
  }
  for (size_t i = 0; i < batch.score_rows.size(); ++i) {
    result.scores[i] = {};
    result.scores[i].token = batch.score_tokens[i];
    result.scores[i].logprob = ShadowScore(chain_at(batch.score_rows[i]), batch.score_tokens[i]);
  }
}

Status ShadowExecutor::Launch(const StepBatch& batch, StepResult& result) {
  ++steps_;
  clock_->Advance(int64_t(rng_.Below(5000)));
  if (int(launched_.size()) >= depth_) return Internal("{} steps are under way, and another is launched", launched_.size());
  launched_.push_back({&result, {}, OkStatus()});
  if (fail_at_step_ > 0 && steps_ >= fail_at_step_) {
    // Devices often tell only when they are waited for, and by then another step may be under way.
    launched_.back().status = Internal("the device was lost (injected)");
    return rng_.Chance(0.5) ? launched_.back().status : OkStatus();
  }
  // What may go on beside the step happens before it or after it, which must not matter.
  Copy(batch.copies);
  const bool before = rng_.Chance(0.5);
  if (before) Copy(batch.copies_beside);
  const Status status = Compute(batch);
  if (!before) Copy(batch.copies_beside);
  KVASIR_RETURN_IF_ERROR(status);
  StepResult& own = launched_.back().result;
  own.samples.resize(result.samples.size());
  own.scores.resize(result.scores.size());
  Sample(batch, own);
  previous_tokens_.clear();
  for (const SampleResult& sample : own.samples) previous_tokens_.push_back(sample.token);
  return OkStatus();
}

void ShadowExecutor::Copy(const std::vector<BlockCopy>& copies) {
  for (const BlockCopy& copy : copies) {
    const auto from = slots_.begin() + int64_t(copy.from * granule_cells_),
               to = slots_.begin() + int64_t(copy.to * granule_cells_);
    std::copy_n(from, copy.bytes / int64_t(cell_bytes_), to);
  }
}

Status ShadowExecutor::Compute(const StepBatch& batch) {
  CheckStamps(batch);
  // All history is read before anything is written, so a block that another sequence of this step has yet to compute is found
  // out; and once more after, so that a write into a shared block is too.
  for (size_t i = 0; i < batch.slices.size() && failure_.empty(); ++i) CheckSlots(batch, i, false, "history");
  if (!failure_.empty()) return Internal("the step cannot be computed: {}", failure_);
  for (size_t i = 0; i < batch.slices.size(); ++i) WriteRows(batch, i);
  for (size_t i = 0; i < batch.slices.size(); ++i) CheckSlots(batch, i, true, "own step");
  return OkStatus();
}

Status ShadowExecutor::Finish() {
  KVASIR_CHECK(!launched_.empty(), "no step to finish");
  Launched step = std::move(launched_.front());
  launched_.pop_front();
  clock_->Advance(int64_t(rng_.Below(1000)));
  if (step.status.ok()) *step.wanted = std::move(step.result);
  return step.status;
}

int32_t ShadowExecutor::TokenOf(int32_t id) {
  if (!IsPending(id)) return id;
  if (size_t(SampleOf(id)) < previous_tokens_.size()) return previous_tokens_[size_t(SampleOf(id))];
  Report(fmt::format("sample {} of a step with {} is named", SampleOf(id), previous_tokens_.size()));
  return 0;
}

}  // namespace kvasir
