// The KV memory that texts really take, asked of the allocator: each family's formula for its layers, and at most one extent more
// for each group of them, while texts grow by chunks and by single tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "memory/kv_cache.h"
#include "models/kv_plan.h"

namespace kvasir {
namespace {

constexpr int kBlockTokens = 8;
constexpr int kChunk = 24;

int64_t Whole(int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
}

// Tokens in blocks that a window's next token still reads or the last token lies in.
int64_t InWindow(int64_t tokens, int64_t window) {
  const int64_t first = std::max<int64_t>(0, tokens - window + 1) / kBlockTokens * kBlockTokens;
  return Whole(tokens) - first;
}

class KvMemory : public testing::TestWithParam<std::string> {};

ModelConfig ConfigOf(const std::string& folder) {
  std::ifstream file(std::string(KVASIR_SOURCE_DIR "/tests/data/families/") + folder + "/config.json");
  std::stringstream text;
  text << file.rdbuf();
  const auto config = ParseModelConfig(text.str(), "");
  EXPECT_TRUE(config.ok()) << folder << ": " << config.status();
  return config.ok() ? *config : ModelConfig();
}

// Bytes by the config alone, layer by layer: what a page holds, rounded up to the 64 bytes of a cache line.
int64_t Expected(const ModelConfig& config, int64_t tokens) {
  int64_t bytes = 0;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerSpec& layer = config.layers[i];
    if (layer.delta) {
      const DeltaNet& net = *config.delta;
      const int64_t state = 4 * (int64_t{net.value_heads} * net.key_dim * net.value_dim +
                                 (net.kernel - 1) * (2 * int64_t{net.key_heads} * net.key_dim + net.value_heads * net.value_dim));
      bytes += (state + 63) / 64 * 64 * (InWindow(tokens, 2) / kBlockTokens);
      continue;
    }
    if (layer.kv_owner != int(i)) continue;
    const int64_t width = config.latent ? config.latent->kv_rank + config.latent->rope_dim : config.head_dim;
    const int64_t pages = config.latent ? 1 : 2 * config.num_kv_heads;
    const int64_t page = (width * kBlockTokens * 2 + 63) / 64 * 64;
    bytes += pages * page * ((layer.window > 0 ? InWindow(tokens, layer.window) : Whole(tokens)) / kBlockTokens);
  }
  return bytes;
}

TEST_P(KvMemory, IsTheFormulaOfItsLayers) {
  const ModelConfig config = ConfigOf(GetParam());
  const KvPlan kv_plan = PlanKv(config, kBlockTokens, DType::kBF16);
  KvCacheConfig cache_config = {.num_blocks = 4000, .block_tokens = kBlockTokens, .fingerprint = "test"};
  for (const KvGroup& group : kv_plan.groups) cache_config.groups.push_back({int64_t(group.layout.block_bytes()), group.window});
  KvCache cache(cache_config);
  const KvArenaPlan& plan = cache.plan();
  // What an extent's blocks leave unused of it, and a last extent that is not full yet, or a first one that is not empty yet.
  const auto most = [&](int64_t tokens) {
    double bytes = 0;
    for (size_t g = 0; g < kv_plan.groups.size(); ++g) {
      const KvGroup& group = kv_plan.groups[g];
      const int64_t kept = group.window > 0 ? InWindow(tokens, group.window) : Whole(tokens);
      const int64_t partly = (plan.groups[g].blocks_per_extent > 1 ? 1 : 0) * (group.window > 0 ? 2 : 1);
      const int64_t per_extent = plan.groups[g].blocks_per_extent;
      bytes += double((kept / kBlockTokens + per_extent - 1) / per_extent + partly) * double(plan.extent_bytes);
    }
    return bytes;
  };
  std::vector<int32_t> tokens(200);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = int32_t(i % 7);
  const std::array<std::byte, 32> salt{};
  SequenceKv kv;
  std::vector<BlockCopy> copies;
  int32_t computed = cache.Match(tokens, salt, 0, false, kv);
  while (computed < 200) {
    const int32_t next = computed < 96 ? computed + kChunk : computed + 1;
    ASSERT_TRUE(cache.Grow(kv, int32_t(Whole(next)), computed, copies));
    cache.Publish(kv, tokens, next, salt);
    if (next >= kv.next_trim) cache.Trim(kv, next);
    computed = next;
    const double used = double(cache.stats().used_blocks) * double(plan.extent_bytes);
    EXPECT_GE(used, double(Expected(config, computed))) << computed << " tokens";
    EXPECT_LE(used, most(computed)) << computed << " tokens";
    if (plan.groups.size() == 1) {
      EXPECT_EQ(used, double(Expected(config, computed))) << computed << " tokens";
    }
  }
  cache.Release(kv);
  EXPECT_EQ(cache.stats().used_blocks, 0);
}

INSTANTIATE_TEST_SUITE_P(Families, KvMemory,
                         testing::Values("deepseek-v3", "gemma2", "gemma3", "gpt-oss", "qwen3-next", "kv-owner",
                                         "kv-owner-windows", "mixtral"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace kvasir
