// A minimal loop around Model for tests: one sequence with a dense table of blocks, in order, without scheduler or KV cache.
#pragma once

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/device.h"
#include "models/model.h"

namespace kvasir {

class SequenceRunner {
 public:
  SequenceRunner(Model* model, Device* device, int max_tokens, std::optional<DType> kv_dtype = std::nullopt,
                 int block_tokens = 16)
      : model_(model),
        device_(device),
        layout_(model->kv_groups(block_tokens, kv_dtype)[0].layout),
        blocks_((max_tokens + block_tokens - 1) / block_tokens) {
    // Blocks lie in reverse order, so that an index mistaken for a position shows.
    std::iota(blocks_.rbegin(), blocks_.rend(), 0u);
    auto memory = device->Allocate(blocks_.size() * layout_.block_bytes(), "test KV");
    KVASIR_CHECK(memory.ok());
    base_ = static_cast<std::byte*>(*memory);
  }
  ~SequenceRunner() { device_->Free(base_); }

  // Appends tokens in one step; afterwards logits of any of its rows can be had.
  Status Append(std::span<const int32_t> ids) {
    std::vector<int32_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), length_);
    length_ += static_cast<int32_t>(ids.size());
    const SequenceTable table = {blocks_.data(), length_, nullptr};
    const SequenceSlice slice = {0, static_cast<int32_t>(ids.size()), 0};
    const PagedKv kv = {base_, layout_.block_bytes(), layout_, {&table, 1}};
    KVASIR_RETURN_IF_ERROR(model_->Forward({ids, positions, {&slice, 1}, {&kv, 1}}));
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
  Model* model_;
  Device* device_;
  KvLayout layout_;
  std::vector<uint32_t> blocks_;
  std::byte* base_ = nullptr;
  int32_t length_ = 0;
};

}  // namespace kvasir
