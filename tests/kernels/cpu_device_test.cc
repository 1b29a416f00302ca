// CpuDevice as a Device: its memory, its weights, the ops it does itself, and its failures. Attention, fused ops and sampling
// have their own tests.
#include "kernels/cpu/cpu_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <random>
#include <vector>

namespace {
std::atomic<int64_t> heap_calls{0};
}

// Counts what the process takes from the heap, for OpsTakeNoHeapMemoryOnceWarm.
__attribute__((noinline)) void* operator new(size_t bytes) {
  heap_calls.fetch_add(1, std::memory_order_relaxed);
  void* p = std::malloc(bytes > 0 ? bytes : 1);
  if (p == nullptr) std::abort();
  return p;
}
__attribute__((noinline)) void operator delete(void* p) noexcept {
  std::free(p);
}
__attribute__((noinline)) void operator delete(void* p, size_t) noexcept {
  std::free(p);
}

namespace kvasir {
namespace {

using testing::HasSubstr;

std::unique_ptr<Device> Cpu(int threads = 2, const std::string& isa = "") {
  auto device = MakeCpuDevice({threads, isa});
  EXPECT_TRUE(device.ok()) << Message(device.status());
  return std::move(*device);
}

float* Floats(Device& device, size_t count) {
  return static_cast<float*>(*device.Allocate(count * sizeof(float), "a test"));
}

std::vector<float> Random(std::mt19937& rng, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return values;
}

size_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  size_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * 4096;
}

TEST(CpuDevice, NamesItself) {
  for (const std::string& isa : CpuIsaNames()) {
    const DeviceInfo info = Cpu(2, isa)->Info();
    EXPECT_EQ(info.backend, "cpu");
    EXPECT_EQ(info.name, "cpu " + isa + ", 2 threads");
    EXPECT_GT(info.memory_bytes, size_t{1} << 20);
  }
  EXPECT_THAT(Cpu(1)->Info().name, HasSubstr(", 1 thread"));
  EXPECT_THAT(Cpu(0)->Info().name, HasSubstr(std::to_string(DefaultThreads()) + " thread"));
}

TEST(CpuDevice, PortableIsAlwaysThere) {
  ASSERT_FALSE(CpuIsaNames().empty());
  EXPECT_EQ(CpuIsaNames().back(), "portable");
}

TEST(CpuDevice, RefusesAnIsaItCannotRunAndListsThoseItCan) {
  const auto device = MakeCpuDevice({1, "sse9"});
  ASSERT_EQ(device.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(device.status()), HasSubstr("sse9"));
  for (const std::string& isa : CpuIsaNames()) EXPECT_THAT(Message(device.status()), HasSubstr(isa));
}

TEST(CpuDevice, EnvironmentForcesTheIsaUnlessTheOptionNamesOne) {
  setenv("KVASIR_CPU_ISA", "portable", 1);
  EXPECT_EQ(Cpu(1)->Info().name, "cpu portable, 1 thread");
  EXPECT_EQ(Cpu(1, CpuIsaNames()[0])->Info().name, "cpu " + CpuIsaNames()[0] + ", 1 thread");
  setenv("KVASIR_CPU_ISA", "nonsense", 1);
  const auto device = MakeCpuDevice({1, ""});
  unsetenv("KVASIR_CPU_ISA");
  ASSERT_EQ(device.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(device.status()), HasSubstr("KVASIR_CPU_ISA 'nonsense'"));
}

TEST(CpuDevice, RefusesImpossibleThreadCounts) {
  for (int threads : {-1, 100000}) {
    const auto device = MakeCpuDevice({threads, ""});
    ASSERT_EQ(device.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(device.status()), HasSubstr(std::to_string(threads)));
  }
}

TEST(CpuDevice, MemoryIsAlignedAndZeroed) {
  auto device = Cpu();
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{5000}, (size_t{1} << 20) - 1,
                       size_t{1} << 20, (size_t{3} << 20) + 7}) {
    void* buffer = *device->Allocate(bytes, "a test");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer) % 64, 0u);
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(static_cast<char*>(buffer)[i], 0) << i << " of " << bytes;
    std::memset(buffer, 1, bytes);
    device->Free(buffer);
  }
  device->Free(nullptr);
}

TEST(CpuDevice, ABigPoolCostsNothingUntilItIsTouched) {
  auto device = Cpu();
  const size_t bytes = std::min<size_t>(size_t{1} << 30, device->Info().memory_bytes / 2);
  const size_t before = ResidentBytes(), available = device->Info().memory_bytes;
  char* pool = static_cast<char*>(*device->Allocate(bytes, "KV blocks"));
  pool[bytes / 2] = 1;
  EXPECT_LT(ResidentBytes(), before + (size_t{64} << 20));
  // What is promised is not offered twice. (Other processes make the figure swing, hence the wide margin.)
  EXPECT_LT(device->Info().memory_bytes, available - bytes / 4);
  device->Free(pool);
}

TEST(CpuDevice, RefusesMoreMemoryThanThereIs) {
  auto device = Cpu();
  for (size_t bytes : {size_t{1} << 50, ~size_t{0}, ~size_t{0} - 4000}) {
    const auto buffer = device->Allocate(bytes, "KV blocks");
    ASSERT_EQ(buffer.status().code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(Message(buffer.status()), HasSubstr("KV blocks needs " + std::to_string(bytes) + " bytes"));
    EXPECT_THAT(Message(buffer.status()), HasSubstr("available"));
  }
}

TEST(CpuDevice, Copies) {
  auto device = Cpu();
  std::vector<char> host(1000), back(1000);
  for (size_t i = 0; i < host.size(); ++i) host[i] = char(i * 7);
  char* a = static_cast<char*>(*device->Allocate(1000, "a"));
  char* b = static_cast<char*>(*device->Allocate(1000, "b"));
  device->CopyToDevice(a, host.data(), 1000);
  device->CopyOnDevice(b, a, 1000);
  ASSERT_TRUE(device->Synchronize().ok());
  device->CopyToHost(back.data(), b, 1000);
  EXPECT_EQ(host, back);
}

TEST(CpuDevice, RefusesWeightsThatMakeNoSense) {
  auto device = Cpu();
  const std::vector<float> values(64, 1.0f);
  const HostMatrix good{values.data(), DType::kF32, 8, 8, "q_proj"}, other{values.data(), DType::kF32, 4, 16, "k_proj"};
  const HostMatrix empty{values.data(), DType::kF32, 0, 8, "none"}, absent{nullptr, DType::kF32, 8, 8, "absent"};
  const HostMatrix vast{values.data(), DType::kF32, int64_t{1} << 40, int64_t{1} << 40, "vast"};
  EXPECT_EQ(device->PackLinear({}, DType::kF32).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(device->PackVector({}).status().code(), StatusCode::kInvalidArgument);
  for (const HostMatrix& bad : {empty, absent, vast}) {
    for (const Status& status : {device->PackLinear({&bad, 1}, DType::kBF16).status(),
                                 device->PackEmbedding(bad, DType::kBF16).status(), device->PackVector({&bad, 1}).status()}) {
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(Message(status), HasSubstr("'" + bad.name + "'"));
    }
  }
  const HostMatrix parts[] = {good, other};
  const Status status = device->PackLinear(parts, DType::kF32).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("'k_proj' has 16 columns but 'q_proj'"));
}

TEST(CpuDevice, AWeightThatDoesNotFitIsRefused) {
  auto device = Cpu();
  const float value = 1;
  const HostMatrix huge{&value, DType::kF32, int64_t{1} << 20, int64_t{1} << 18, "lm_head"};  // never read
  for (const Status& status :
       {device->PackLinear({&huge, 1}, DType::kF32).status(), device->PackEmbedding(huge, DType::kF32).status()}) {
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(Message(status), HasSubstr("lm_head"));
  }
}

class CpuDeviceOps : public testing::TestWithParam<std::string> {};

TEST_P(CpuDeviceOps, StackedPartsAreOneWeight) {
  std::mt19937 rng(5);
  auto device = Cpu(2, GetParam());
  auto reference = MakeReferenceDevice();
  const int64_t k = 63, rows[] = {30, 1, 47};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    // Each part in another type, in unaligned memory.
    std::vector<std::vector<std::byte>> storage;
    std::vector<HostMatrix> parts, biases;
    for (int i = 0; i < 3; ++i) {
      const DType from = static_cast<DType>(i);
      const std::vector<float> values = Random(rng, rows[i] * k);
      std::vector<std::byte>& bytes = storage.emplace_back(values.size() * SizeOf(from) + 1);
      for (size_t j = 0; j < values.size(); ++j) {
        const uint16_t half = from == DType::kF16 ? F32ToF16(values[j]) : F32ToBF16(values[j]);
        std::memcpy(bytes.data() + 1 + j * SizeOf(from), from == DType::kF32 ? static_cast<const void*>(&values[j]) : &half,
                    SizeOf(from));
      }
      parts.push_back({bytes.data() + 1, from, rows[i], k, "part"});
      biases.push_back({bytes.data() + 1, from, 1, rows[i], "bias"});
    }
    const int m = 5, n = 78;
    const std::vector<float> in = Random(rng, m * k);
    std::vector<float> out[2];
    for (Device* each : {device.get(), reference.get()}) {
      const Weight weight = *each->PackLinear(parts, dtype), bias = *each->PackVector(biases);
      EXPECT_EQ(weight.rows, n);
      EXPECT_EQ(weight.cols, k);
      EXPECT_EQ(bias.cols, n);
      float* x = Floats(*each, in.size());
      float* y = Floats(*each, m * n);
      each->CopyToDevice(x, in.data(), in.size() * sizeof(float));
      each->Linear(x, m, weight, &bias, y);
      out[each == reference.get()].resize(m * n);
      each->CopyToHost(out[each == reference.get()].data(), y, m * n * sizeof(float));
    }
    for (int i = 0; i < m * n; ++i) ASSERT_NEAR(out[0][i], out[1][i], 1e-4) << i << " " << Name(dtype);
  }
}

TEST_P(CpuDeviceOps, TiedEmbeddingAndHead) {
  std::mt19937 rng(6);
  auto device = Cpu(2, GetParam());
  const int64_t vocab = 1001, hidden = 72;
  const std::vector<float> values = Random(rng, vocab * hidden);
  const HostMatrix table{values.data(), DType::kF32, vocab, hidden, "embed_tokens"};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const Weight embedding = *device->PackEmbedding(table, dtype), head = *device->PackLinear({&table, 1}, dtype);
    const std::vector<int32_t> ids = {0, 1000, 17, 17, 500};
    float* x = Floats(*device, ids.size() * hidden);
    float* logits = Floats(*device, ids.size() * vocab);
    device->Embed(embedding, ids, 1, x);
    for (size_t i = 0; i < ids.size(); ++i) {
      for (int64_t j = 0; j < hidden; ++j) {
        const float v = values[ids[i] * hidden + j];
        ASSERT_EQ(x[i * hidden + j], dtype == DType::kF32   ? v
                                     : dtype == DType::kF16 ? F16ToF32(F32ToF16(v))
                                                            : BF16ToF32(F32ToBF16(v)));
      }
    }
    device->Linear(x, int(ids.size()), head, nullptr, logits);
    for (size_t i = 0; i < ids.size(); ++i) {  // a random row is nearest to itself
      int64_t best = 0;
      for (int64_t t = 1; t < vocab; ++t) best = logits[i * vocab + t] > logits[i * vocab + best] ? t : best;
      EXPECT_EQ(best, ids[i]);
    }
  }
}

TEST_P(CpuDeviceOps, GatherRows) {
  auto device = Cpu(3, GetParam());
  const int width = 3000;
  std::mt19937 rng(8);
  const std::vector<float> in = Random(rng, 40 * width);
  std::vector<int32_t> ids;
  for (int i = 0; i < 100; ++i) ids.push_back(int32_t(rng() % 40));
  std::vector<float> out(ids.size() * width);
  device->GatherRows(in.data(), ids, width, out.data());
  for (size_t i = 0; i < ids.size(); ++i) {
    ASSERT_EQ(std::memcmp(&out[i * width], &in[ids[i] * width], width * sizeof(float)), 0);
  }
  device->GatherRows(in.data(), {}, width, out.data());  // nothing to do is fine
  device->Embed({}, {}, 1, nullptr);
}

TEST_P(CpuDeviceOps, LinearIsTheSameForAnyNumberOfThreads) {
  std::mt19937 rng(9);
  const int64_t m = 37, n = 172, k = 192;
  const std::vector<float> values = Random(rng, n * k), in = Random(rng, m * k);
  const HostMatrix matrix{values.data(), DType::kF32, n, k, "w"};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    std::vector<float> first;
    for (int threads = 1; threads <= 4; ++threads) {
      auto device = Cpu(threads, GetParam());
      const Weight weight = *device->PackLinear({&matrix, 1}, dtype);
      std::vector<float> out(m * n);
      device->Linear(in.data(), m, weight, nullptr, out.data());
      if (threads == 1) first = out;
      ASSERT_EQ(std::memcmp(out.data(), first.data(), out.size() * sizeof(float)), 0) << threads;
    }
  }
}

TEST_P(CpuDeviceOps, TakeNoHeapMemoryOnceWarm) {
  auto device = Cpu(3, GetParam());
  const int width = 1024, rows = 40;
  const std::vector<float> values(width * width, 0.01f);
  const HostMatrix matrix{values.data(), DType::kF32, width, width, "w"}, norm{values.data(), DType::kF32, 1, width, "norm"};
  const Weight table = *device->PackEmbedding(matrix, DType::kBF16), scale = *device->PackVector({&norm, 1});
  std::vector<Weight> weights;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) weights.push_back(*device->PackLinear({&matrix, 1}, dtype));
  float* x = Floats(*device, rows * width);
  float* y = Floats(*device, rows * width);
  float* z = Floats(*device, rows * width);
  const std::vector<int32_t> ids(rows, 3);
  MoeRouting routing;
  routing.num_experts = 8, routing.top_k = 3, routing.num_groups = 4, routing.top_groups = 2;
  auto* chosen = reinterpret_cast<int32_t*>(Floats(*device, rows * routing.top_k));
  const HostMatrix up{values.data(), DType::kF32, 64, 32, "up"}, down{values.data(), DType::kF32, 32, 32, "down"};
  const std::vector<Weight> ups(8, *device->PackLinear({&up, 1}, DType::kBF16)),
      downs(8, *device->PackLinear({&down, 1}, DType::kBF16)), heads(2, downs[0]);
  const auto step = [&](int n) {
    device->Embed(table, {ids.data(), size_t(n)}, 1, x);
    device->AddNorm(x, nullptr, 1, {.weight = &scale, .eps = 1e-5f}, n, width, y);
    for (const Weight& weight : weights) device->Linear(y, n, weight, &scale, z);
    device->Activate(Activation::kSilu, true, z, n, width / 2, y);
    device->GatherRows(x, {ids.data(), size_t(n)}, width, y);
    device->Route(x, n, routing, chosen, z);
    device->LinearHeads(x, n, heads, {64, 32, 64, 32}, y);
    device->Experts(x, n, {ups, downs, {}, {}}, Activation::kGelu, routing.top_k, chosen, z, y);
  };
  step(rows);
  const int64_t before = heap_calls.load();
  for (int n : {rows, 1, 7, rows}) step(n);
  EXPECT_EQ(heap_calls.load(), before);
}

INSTANTIATE_TEST_SUITE_P(AllIsas, CpuDeviceOps, testing::ValuesIn(CpuIsaNames()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kvasir
