// Where each layer's KV lies: layers that keep KV equally long form a group, and a layer that shares another's KV has none. Used
// by Decoder, and by whoever wants a model's KV size from its config alone.
#pragma once

#include <vector>

#include "kernels/kv_quant.h"
#include "models/config.h"

namespace kvasir {

struct KvPlan {
  struct Place {
    int group = 0;  // index into groups
    int layer = 0;  // among the layers of the group
  };
  std::vector<KvGroup> groups;  // longest kept first: no window, then from wide to narrow, then recurrent state
  std::vector<Place> layers;    // [num_layers]
};

KvPlan PlanKv(const ModelConfig& config, int block_tokens, KvFormat format);

// Whether a model's KV can be stored so. Recurrent states stay float32 whatever the format.
Status CheckKvFormat(const ModelConfig& config, KvFormat format);

}  // namespace kvasir
