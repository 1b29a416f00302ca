#include "memory/kv_arena.h"

#include <algorithm>
#include <numeric>

namespace kvasir {
namespace {

constexpr double kMostWaste = 0.05;

}  // namespace

KvArenaPlan PlanKvArena(std::span<const KvGroupConfig> groups) {
  KVASIR_CHECK(!groups.empty() && groups.size() <= kMaxKvGroups, "{} KV groups, 1 to {} are supported", groups.size(),
               kMaxKvGroups);
  int64_t largest = 0, divisor = 0;
  for (const KvGroupConfig& group : groups) {
    KVASIR_CHECK(group.block_bytes > 0 && group.window_tokens >= 0, "a KV group of {} bytes per block with a window of {}",
                 group.block_bytes, group.window_tokens);
    largest = std::max(largest, group.block_bytes);
    divisor = std::gcd(divisor, group.block_bytes);
  }
  int64_t extent = largest;
  const auto wastes = [&](const KvGroupConfig& group) {
    return double(extent % group.block_bytes) >= kMostWaste * double(extent);
  };
  // What is left of an extent is smaller than the largest block, so this ends at twenty.
  while (std::any_of(groups.begin(), groups.end(), wastes)) extent += largest;

  KvArenaPlan plan = {.granule_bytes = divisor, .extent_bytes = extent, .extent_granules = uint32_t(extent / divisor)};
  for (const KvGroupConfig& group : groups) {
    plan.groups.push_back({group.block_bytes, uint32_t(group.block_bytes / divisor), uint32_t(extent / group.block_bytes)});
  }
  // One block in each extent: then nobody needs to name what lies inside it, and more memory can be addressed.
  const auto alone = [](const KvArenaPlan::Group& group) { return group.blocks_per_extent == 1; };
  if (std::all_of(plan.groups.begin(), plan.groups.end(), alone)) {
    plan.granule_bytes = extent;
    plan.extent_granules = 1;
    for (KvArenaPlan::Group& group : plan.groups) group.granules = 1;
  }
  return plan;
}

int64_t KvArenaPlan::ExtentsIn(int64_t bytes) const {
  const int64_t addressable = (int64_t{UINT32_MAX} - 1) / extent_granules;
  return std::min(bytes / extent_bytes, addressable);
}

double KvArenaPlan::waste() const {
  double most = 0;
  for (const Group& group : groups) {
    most = std::max(most, 1 - double(group.block_bytes * group.blocks_per_extent) / double(extent_bytes));
  }
  return most;
}

}  // namespace kvasir
