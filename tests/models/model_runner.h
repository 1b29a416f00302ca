// A minimal loop around Model for tests: one sequence with a dense table of blocks for each KV group, in order, without scheduler
// or KV cache. Blocks that lie wholly before what a step may see are taken away, as the KV cache would.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/device.h"
#include "models/model.h"

namespace kvasir {

class SequenceRunner {
 public:
  SequenceRunner(Model* model, Device* device, int max_tokens, std::optional<KvFormat> kv_format = std::nullopt,
                 int block_tokens = 16)
      : model_(model), device_(device), block_tokens_(block_tokens) {
    for (const KvGroup& group : model->kv_groups(block_tokens, kv_format)) {
      // Blocks lie in reverse order, so that an index mistaken for a position shows.
      Group& mine = groups_.emplace_back(Group{group});
      mine.blocks.resize((max_tokens + block_tokens - 1) / block_tokens);
      std::iota(mine.blocks.rbegin(), mine.blocks.rend(), 0u);
      auto memory = device->Allocate(mine.blocks.size() * group.layout.block_bytes(), "test KV");
      KVASIR_CHECK(memory.ok());
      mine.base = static_cast<std::byte*>(*memory);
    }
  }
  ~SequenceRunner() {
    for (const Group& group : groups_) device_->Free(group.base);
  }

  // Appends tokens in one step; afterwards logits of any of its rows can be had.
  Status Append(std::span<const int32_t> ids) {
    std::vector<int32_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), length_);
    const int32_t first = length_;
    length_ += static_cast<int32_t>(ids.size());
    const SequenceSlice slice = {0, static_cast<int32_t>(ids.size()), 0};
    std::vector<SequenceTable> tables(groups_.size());
    std::vector<PagedKv> kv;
    for (size_t g = 0; g < groups_.size(); ++g) {
      Group& group = groups_[g];
      const int window = group.group.window;
      const int32_t oldest = window == 0 ? 0 : std::max(0, first + 1 - window);
      for (int32_t block = 0; block < oldest / block_tokens_; ++block) group.blocks[block] = kNoBlock;
      tables[g] = {group.blocks.data(), length_, nullptr};
      kv.push_back({group.base, group.group.layout.block_bytes(), group.group.layout, {&tables[g], 1}});
    }
    KVASIR_RETURN_IF_ERROR(model_->Forward({ids, positions, {&slice, 1}, kv}));
    return device_->Synchronize();
  }

  std::vector<float> Logits(int32_t row) {
    const auto logits = model_->Logits({&row, 1});
    EXPECT_TRUE(logits.ok()) << logits.status();
    std::vector<float> host(model_->config().vocab_size);
    if (!logits.ok()) return host;
    EXPECT_TRUE(device_->Synchronize().ok());
    device_->CopyToHost(host.data(), *logits, host.size() * sizeof(float));
    EXPECT_TRUE(device_->Synchronize().ok());
    return host;
  }

  // Logits after each of the ids, fed `chunk` at a time.
  std::vector<std::vector<float>> Run(std::span<const int32_t> ids, size_t chunk) {
    std::vector<std::vector<float>> all;
    for (size_t start = 0; start < ids.size(); start += chunk) {
      const auto part = ids.subspan(start, std::min(chunk, ids.size() - start));
      const Status status = Append(part);
      EXPECT_TRUE(status.ok()) << status;
      for (size_t row = 0; row < part.size() && status.ok(); ++row) all.push_back(Logits(static_cast<int32_t>(row)));
    }
    return all;
  }

 private:
  struct Group {
    KvGroup group;
    std::vector<uint32_t> blocks;
    std::byte* base = nullptr;
  };
  Model* model_;
  Device* device_;
  int block_tokens_;
  std::vector<Group> groups_;
  int32_t length_ = 0;
};

}  // namespace kvasir
