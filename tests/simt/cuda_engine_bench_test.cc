// The engine's benchmark runs to its end on a model that is small enough for the emulated GPU.
#include "bench/cuda/engine_bench.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvasir {
namespace {

TEST(CudaEngineBench, Runs) {
  const auto device = *MakeCudaDevice();
  const CudaCeilings machine = {.read_bytes_per_second = 1e9, .copy_bytes_per_second = 1e9, .gemm_bf16_flops = 1e10};
  const std::vector<EngineShape> shapes = EngineShapes();
  const auto results = BenchEngineShape(*device, shapes.back(), machine);
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(results->size(), 1 + 2 + 2 * 3);
  for (const BenchResult& result : *results) {
    PrintResult(result, false);
    EXPECT_GT(result.value, 0) << result.name;
  }
  EXPECT_THAT((*results)[1].name, testing::HasSubstr("from the host"));
  EXPECT_THAT((*results)[3].name, testing::HasSubstr("decode, batch 1"));
}

}  // namespace
}  // namespace kvasir
