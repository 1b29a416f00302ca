#include "models/kv_plan.h"

#include <algorithm>
#include <limits>

namespace kvasir {

KvPlan PlanKv(const ModelConfig& config, int block_tokens, KvFormat format) {
  std::vector<int> windows;
  for (const LayerSpec& layer : config.layers)
    if (!layer.delta && std::find(windows.begin(), windows.end(), layer.window) == windows.end()) windows.push_back(layer.window);
  const auto kept = [](int window) { return window == 0 ? std::numeric_limits<int>::max() : window; };
  std::sort(windows.begin(), windows.end(), [&](int a, int b) { return kept(a) > kept(b); });

  KvPlan plan;
  const int value_dim = config.latent ? config.latent->kv_rank : 0;
  for (const int window : windows)
    plan.groups.push_back({.layout = {.dtype = format.dtype,
                                      .block_tokens = block_tokens,
                                      .num_kv_heads = config.num_kv_heads,
                                      .head_dim = config.head_dim,
                                      .value_dim = value_dim,
                                      .quant = format.quant},
                           .window = window});
  // A token goes on from the state that the one before it left, which lies in the same block or the one before.
  if (config.delta)
    plan.groups.push_back({.layout = {.block_tokens = block_tokens, .state_floats = config.delta->state_floats()}, .window = 2});
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerSpec& layer = config.layers[i];
    if (layer.delta) {
      const int last = static_cast<int>(plan.groups.size()) - 1;
      plan.layers.push_back({.group = last, .layer = plan.groups.back().layout.num_layers++});
      continue;
    }
    if (layer.kv_owner != static_cast<int>(i)) {
      plan.layers.push_back(plan.layers[static_cast<size_t>(layer.kv_owner)]);
      continue;
    }
    const int group = static_cast<int>(std::find(windows.begin(), windows.end(), layer.window) - windows.begin());
    plan.layers.push_back({.group = group, .layer = plan.groups[static_cast<size_t>(group)].layout.num_layers++});
  }
  return plan;
}

Status CheckKvFormat(const ModelConfig& config, KvFormat format) {
  constexpr int kLargestHead = 256;  // what kernels of quantised KV take
  if (format.quant == KvQuant::kNone) return OkStatus();
  if (config.latent)
    return InvalidArgument(
        "KV cache format {}: the latent keys of multi-head latent attention cannot be quantised (one latent of {} elements per "
        "token is small already); use auto, bfloat16, float16 or float32",
        Name(format), config.head_dim);
  if (config.head_dim > kLargestHead)
    return InvalidArgument(
        "KV cache format {}: heads of {} elements, at most {} can be quantised; use auto, bfloat16, float16 or float32",
        Name(format), config.head_dim, kLargestHead);
  return OkStatus();
}

}  // namespace kvasir
