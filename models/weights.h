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
#include "models/packed_cache.h"

namespace kvasir {

inline constexpr size_t kReadAheadBytes = size_t{256} << 20;

inline const Weight* OrNull(const std::optional<Weight>& weight) {
  return weight ? &*weight : nullptr;
}

struct NormWeights {
  Weight weight;
  std::optional<Weight> bias;
};

struct MlpWeights {
  Weight up;    // [2 * width, hidden], gate above up; [width, hidden] when not gated
  Weight down;  // [hidden, width]
  std::optional<Weight> up_bias, down_bias;
};

struct AttentionWeights {
  Weight qkv;  // [(Hq + 2 Hkv) * head_dim, hidden]; only the queries' rows when the layer reads another layer's KV
  Weight o;    // [hidden, Hq * head_dim]
  std::optional<Weight> qkv_bias, o_bias, q_norm, k_norm, sinks;
  std::optional<Weight> gate, gate_bias;  // [Hq * head_dim, hidden]
};

// A gated delta net. The rows of `in` are q, k, v, z (the gate on the output), b and a, each of all heads.
struct DeltaWeights {
  Weight in;              // [channels + values + 2 * value_heads, hidden]
  Weight conv;            // [kernel * channels]
  Weight a_log, dt_bias;  // [value_heads]
  Weight norm;            // [value_dim]
  Weight o;               // [hidden, values]
};

// Multi-head latent attention with the up-projections of keys and values absorbed: queries move into the latent space, and the
// attention's output out of it.
struct LatentWeights {
  std::optional<Weight> q_down;  // [q_rank, hidden]
  std::optional<Weight> q_norm;  // [q_rank]
  Weight q;                      // [Hq * (nope + rope), q_rank or hidden]
  Weight kv_down;                // [kv_rank + rope, hidden]
  Weight kv_norm;                // [kv_rank]
  std::vector<Weight> query_up;  // per head [kv_rank, nope]
  std::vector<Weight> value_up;  // per head [value_dim, kv_rank]
  std::optional<Weight> q_down_bias, kv_down_bias, o_bias;
  Weight o;  // [hidden, Hq * value_dim]
};

struct ExpertsWeights {
  Weight router;  // [experts, hidden], float32
  std::optional<Weight> router_bias, correction;
  std::vector<Weight> up, down, up_bias, down_bias;  // per expert; as in MlpWeights
  std::optional<MlpWeights> shared;
  std::optional<Weight> shared_gate;  // [1, hidden], float32
};

struct LayerWeights {
  std::optional<NormWeights> input_norm, post_attention_norm, mlp_norm, post_mlp_norm;  // those the block form has
  std::optional<AttentionWeights> attention;                                            // one of these three
  std::optional<LatentWeights> latent;
  std::optional<DeltaWeights> delta;
  std::optional<MlpWeights> mlp;  // one of these two
  std::optional<ExpertsWeights> experts;
};

struct ModelWeights {
  Weight embed;                     // [vocab, hidden], gathered by row
  std::optional<Weight> positions;  // [max positions, hidden], gathered by row
  NormWeights final_norm;           // [hidden]
  Weight lm_head;                   // [vocab, hidden], as a linear weight; the embedding once more when tied
  std::vector<LayerWeights> layers;
  DType dtype = DType::kF32;
  QuantFormat quantization;  // of most linear weights; never of routers, and the head has int8 where int4 was asked for
  std::string formats;       // of all linear weights, as people read it: "int4:128 (from gptq)"
  size_t bytes = 0;          // as packed, padding of the device not counted
  size_t linear_bytes = 0;   // of these, in linear weights
  std::shared_ptr<const PackedFile> mapped;  // where they lie, when they came from the packed cache
  std::shared_ptr<PackedKeeper> keeper;      // writes them there
  std::string hash;                          // XXH3-128 over names, shapes, types and all bytes, in hex
};

struct WeightsOptions {
  std::optional<DType> dtype;               // nullopt = that of the stored embedding
  std::optional<QuantFormat> quantization;  // of linear weights; nullopt = as the checkpoint stores them
  std::string config_text;                  // of config.json, for the packed cache
  PackedCacheOptions packed_cache;
  std::function<bool(double fraction, std::string_view what)> progress;  // after each weight; false ends with Cancelled
};

StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const std::string& dir, const ModelConfig& config,
                                   const Family& family, Device* device, const WeightsOptions& options);

}  // namespace kvasir
