// Weights: from the tensors of a checkpoint to packed weights on a device. Used by the model only.
//
// First everything is checked against the config: missing tensors, wrong shapes and types that cannot be used are all listed in
// one error before a byte of data is read. Then reader threads fill host buffers with pread while the loading thread packs them
// in order; extra host memory is bounded (kReadAheadBytes, or the largest group of tensors). Nothing refers to the files
// afterwards.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "models/checkpoint.h"
#include "models/config.h"
#include "models/families.h"

namespace kvasir {

inline constexpr size_t kReadAheadBytes = size_t{256} << 20;

struct LayerWeights {
  Weight input_norm, post_norm;  // [hidden]
  Weight qkv;                    // [(Hq + 2 Hkv) * head_dim, hidden]
  Weight o;                      // [hidden, Hq * head_dim]
  Weight gate_up;                // [2 * intermediate, hidden]
  Weight down;                   // [hidden, intermediate]
  std::optional<Weight> qkv_bias, o_bias, gate_up_bias, down_bias;
};

struct ModelWeights {
  Weight embed;       // [vocab, hidden], gathered by row
  Weight final_norm;  // [hidden]
  Weight lm_head;     // [vocab, hidden], as a linear weight; the embedding once more when tied
  std::vector<LayerWeights> layers;
  DType dtype = DType::kF32;
  size_t bytes = 0;  // as packed: elements x type, padding of the device not counted
  std::string hash;  // XXH3-128 over names, shapes, types and all bytes, in hex
};

struct WeightsOptions {
  std::optional<DType> dtype;  // nullopt = that of the stored embedding
  std::function<void(double fraction, std::string_view what)> progress;
};

StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const std::string& dir, const ModelConfig& config,
                                   const Family& family, Device* device, const WeightsOptions& options);

}  // namespace kvasir
