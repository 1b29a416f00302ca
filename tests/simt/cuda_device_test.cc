// CudaDevice on the emulated GPU: memory, copies, errors that stay, uploads, and steps that are prepared. The ops have their own
// tests.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cuda_runtime.h>

#include "kernels/cuda/context.h"
#include "kernels/rng.h"
#include "tests/kernels/kv_fixture.h"

namespace kvasir {
namespace {

using ::testing::HasSubstr;

struct EndFailure {
  ~EndFailure() { simt::FailRuntime(cudaSuccess); }
};

TEST(CudaDevice, SaysWhatItIs) {
  const auto device = *MakeCudaDevice();
  EXPECT_EQ(device->Info().name, "cuda emulated GPU, sm_80");
  EXPECT_EQ(device->Info().backend, "cuda");
  EXPECT_GT(device->Info().memory_bytes, size_t{1} << 30);
  EXPECT_GE(device->Info().total_bytes, device->Info().memory_bytes);
  EXPECT_THAT(Message(MakeCudaDevice(3).status()), HasSubstr("CUDA device 3 of 1"));
}

TEST(CudaDevice, WithoutADriverSaysWhatToDo) {
  const EndFailure end;
  simt::FailRuntime(cudaErrorInvalidValue);
  EXPECT_FALSE(HasCudaDevice());
  const auto device = MakeCudaDevice();
  ASSERT_FALSE(device.ok());
  EXPECT_THAT(Message(device.status()), HasSubstr("--device cpu"));
}

TEST(CudaDevice, MemoryIsAlignedZeroedAndLimited) {
  const auto device = *MakeCudaDevice();
  for (const size_t bytes : {size_t{1}, size_t{100}, size_t{5000}}) {
    void* const buffer = *device->Allocate(bytes, "test");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer) % 64, 0u);
    std::vector<unsigned char> host(bytes, 7);
    device->CopyToHost(host.data(), buffer, bytes);
    EXPECT_THAT(host, ::testing::Each(0));
    device->Free(buffer);
  }
  const auto much = device->Allocate(size_t{1} << 40, "the KV cache");
  ASSERT_TRUE(absl::IsResourceExhausted(much.status()));
  EXPECT_THAT(Message(much.status()), HasSubstr("the KV cache needs 1099.512 GB"));
  EXPECT_TRUE(device->Allocate(100, "less").ok());  // nothing is broken by it
  EXPECT_TRUE(device->Synchronize().ok());
}

TEST(CudaDevice, TheFirstErrorStays) {
  const auto device = *MakeCudaDevice();
  auto* const x = static_cast<float*>(*device->Allocate(400, "x"));
  const EndFailure end;
  simt::FailRuntime(cudaErrorIllegalAddress);
  device->Add(x, x, 1, 1, 100);  // ops go on being called, and mean nothing
  device->GatherRows(x, std::vector<int32_t>{0}, 10, x);
  EXPECT_THAT(Message(device->Synchronize()), HasSubstr("illegal memory access"));
  simt::FailRuntime(cudaSuccess);
  EXPECT_THAT(Message(device->Synchronize()), HasSubstr("illegal memory access"));
  EXPECT_FALSE(device->Allocate(10, "more").ok());
}

// Wherever the runtime begins to fail, nothing crashes and the device says so.
TEST(CudaDevice, FailsCleanlyAtEveryCall) {
  const EndFailure end;
  std::vector<float> values(64 * 64, 0.5f);
  const HostMatrix matrix = {values.data(), DType::kF32, 64, 64, "w"};
  const uint32_t blocks[] = {0, 0};
  const SequenceTable table = {blocks, 17, nullptr, 1};
  const KvLayout layout = {DType::kF32, 16, 1, 1, 16};
  const std::vector<SequenceSlice> slices = {{0, 1, 0}};
  const std::vector<int32_t> ids = {1};
  bool failed = true;
  for (int calls = 0; failed; ++calls) {
    ASSERT_LT(calls, 500);
    simt::FailRuntime(cudaErrorLaunchFailure, calls);
    const auto device = MakeCudaDevice();
    failed = !device.ok();
    if (failed) continue;
    const auto pages = (*device)->Allocate(layout.block_bytes(), "kv");
    const std::vector<PagedKv> kv = {
        {pages.ok() ? static_cast<std::byte*>(*pages) : nullptr, layout.block_bytes(), layout, {&table, 1}}};
    const auto weight = (*device)->PackLinear({&matrix, 1}, DType::kBF16, {QuantFormat::Kind::kInt8, 32});
    const auto x = (*device)->Allocate(64 * 4, "x"), y = (*device)->Allocate(64 * 4, "y");
    failed = !weight.ok() || !x.ok() || !y.ok() || !pages.ok();
    for (int step = 0; step < 2 && !failed; ++step) {
      (*device)->StartStep({.token_ids = ids, .positions = ids, .slices = slices, .kv = kv, .program = 1}, 8);
      (*device)->Attention(static_cast<float*>(*x), 0, {.num_q_heads = 1, .scale = 1}, slices, kv[0], static_cast<float*>(*y));
      (*device)->FinishStep();
    }
    if (!failed) {
      (*device)->Linear(static_cast<float*>(*x), 1, *weight, nullptr, static_cast<float*>(*y));
      const SamplingParams greedy = {.temperature = 0};
      const SampleRow row = {.params = &greedy};
      SampleResult result;
      (*device)->Sample(static_cast<float*>(*y), 64, {&row, 1}, {&result, 1});
      failed = !(*device)->Synchronize().ok();
    }
    simt::FailRuntime(cudaSuccess);
  }
}

// More host arrays than the ring of uploads holds, some larger than a whole segment of it.
TEST(CudaContext, UploadsKeepTheirBytes) {
  auto context = *CudaContext::Create(0);
  Rng rng(1);
  for (int round = 0; round < 60; ++round) {
    const size_t count = round % 20 == 19 ? size_t(rng.Between(300000, 900000)) : size_t(rng.Between(1, 200000));
    std::vector<uint32_t> host(count);
    for (uint32_t& v : host) v = uint32_t(rng.Next());
    const uint32_t* const device = context->Upload<uint32_t>(host);
    ASSERT_NE(device, nullptr);
    std::vector<uint32_t> back(count);
    context->Download(back.data(), device, count * 4);
    ASSERT_EQ(back, host);
  }
  EXPECT_EQ(context->Upload<int>({}), nullptr);
  EXPECT_TRUE(context->status().ok());
}

// An op's first array is still there when its second one was too large for the ring.
TEST(CudaContext, UploadsOfOneOpStayWhileTheRingGrows) {
  auto context = *CudaContext::Create(0);
  const std::vector<std::byte> small(5000, std::byte{9}), large(size_t{5} << 20, std::byte{3});
  const std::byte* const first = context->Upload<std::byte>(small);
  const std::byte* const second = context->Upload<std::byte>(large);
  std::vector<std::byte> back(small.size());
  context->Download(back.data(), first, back.size());
  EXPECT_EQ(back, small);
  back.resize(large.size());
  context->Download(back.data(), second, back.size());
  EXPECT_EQ(back, large);
  EXPECT_TRUE(context->Synchronize().ok());
}

TEST(CudaContext, StepsStayWhileOpsUpload) {
  auto context = *CudaContext::Create(0);
  std::vector<std::byte> step(100000, std::byte{42}), other(700000, std::byte{1});
  const std::byte* const kept = context->UploadStep(step);
  for (int i = 0; i < 30; ++i) context->Upload<std::byte>(other);
  std::vector<std::byte> back(step.size());
  context->Download(back.data(), kept, back.size());
  EXPECT_EQ(back, step);
}

// Tables taken once for a step and tables that every op brings give the same.
TEST(CudaDevice, PreparedStepsAreTheSame) {
  const auto device = *MakeCudaDevice();
  const KvLayout layout = {DType::kBF16, 16, 1, 2, 64};
  constexpr int kTokens = 70, kHeads = 4, kWidth = (kHeads + 4) * 64;
  auto* const base = static_cast<std::byte*>(*device->Allocate(layout.block_bytes() * 6, "kv"));
  const std::vector<uint32_t> blocks = {4, 0, 3, 1, 5};
  const SequenceTable table = {blocks.data(), kTokens, nullptr};
  const std::vector<PagedKv> kv = {{base, layout.block_bytes(), layout, {&table, 1}}};
  const std::vector<SequenceSlice> slices = {{0, kTokens, 0}};
  Rng rng(5);
  std::vector<float> qkv(size_t{kTokens} * kWidth);
  for (float& v : qkv) v = float(rng.Uniform()) - 0.5f;
  auto* const in = static_cast<float*>(*device->Allocate(qkv.size() * 4, "qkv"));
  auto* const q = static_cast<float*>(*device->Allocate(kTokens * kHeads * 64 * 4, "q"));
  auto* const out = static_cast<float*>(*device->Allocate(kTokens * kHeads * 64 * 4, "out"));
  device->CopyToDevice(in, qkv.data(), qkv.size() * 4);
  const std::vector<int32_t> positions(kTokens, 0);
  std::vector<std::vector<float>> results;
  for (const bool prepared : {false, true}) {
    if (prepared) device->StartStep({.positions = positions, .slices = slices, .kv = kv}, kTokens);
    device->RopeAppend(in, positions, {}, kHeads, 0, slices, kv[0], q);
    device->Attention(q, 0, {.num_q_heads = kHeads, .scale = 0.125f}, slices, kv[0], out);
    if (prepared) {
      EXPECT_TRUE(device->FinishStep());
    }
    results.emplace_back(size_t{kTokens} * kHeads * 64);
    device->CopyToHost(results.back().data(), out, results.back().size() * 4);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_TRUE(device->Synchronize().ok());
}

}  // namespace
}  // namespace kvasir
