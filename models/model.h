// Model: a transformer loaded from a Hugging Face folder onto a device, and its forward pass. It sees flat arrays and a PagedKv;
// it knows nothing of requests, schedulers or KV managers. Used by scheduler/model_executor and by tools. One thread.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "models/config.h"
#include "models/fs.h"
#include "models/packed_cache.h"

namespace kvasir {

using ForwardInput = StepInput;  // kv: one per group of kv_groups(); the program is the model's to name

// kSafetensors: the folder's files. kDummy: weights are made up (dummy_checkpoint.h), and the folder needs none.
enum class LoadFormat : uint8_t { kSafetensors, kDummy };

struct LoadOptions {
  LoadFormat format = LoadFormat::kSafetensors;
  std::optional<DType> dtype;  // nullopt = as stored ("auto")
  // Of linear weights. nullopt = as the checkpoint stores them; none = as plain values, also where they are stored quantised.
  std::optional<QuantFormat> quantization;
  int max_step_tokens = 512;  // rows the activations are sized for
  int max_logits_rows = 64;   // rows of logits computed at a time
  // Longest text that will be served; 0 = max_position_embeddings. Positions at or beyond it are refused. With dynamic NTK
  // scaling the rotation of every position depends on it (models/rope.h), so it is part of the fingerprint.
  int64_t max_model_len = 0;
  PackedCacheOptions packed_cache;
  const Fs* fs = nullptr;  // nullptr = the real file system
  std::function<bool(double fraction, std::string_view what)>
      progress;  // called from the loading thread; false: stop (Cancelled)
};

class Model {
 public:
  virtual ~Model() = default;
  // Loads config.json, *.safetensors (single, or shards with an index). The error lists everything wrong with the folder at once.
  static StatusOr<std::unique_ptr<Model>> Load(const std::string& dir, Device* device, const LoadOptions& options);

  virtual const ModelConfig& config() const = 0;
  virtual const GenerationDefaults& generation_defaults() const = 0;
  // The groups its layers fall into, longest kept first.
  virtual std::vector<KvGroup> kv_groups(int block_tokens, std::optional<KvFormat> kv_format) const = 0;
  virtual std::string fingerprint() const = 0;  // of weights and numerics: cached KV is valid only under the same one
  virtual size_t weight_bytes() const = 0;
  virtual size_t linear_bytes() const = 0;       // of these, in linear weights: all but embeddings and vectors
  virtual QuantFormat quantization() const = 0;  // of most linear weights
  virtual std::string formats() const = 0;       // of all of them, as people read it
  virtual bool weights_mapped() const = 0;       // from the packed cache
  virtual int64_t max_model_len() const = 0;     // positions are below this

  // Computes the final hidden state of every row and appends the KV of its tokens. May return before the device is done; an input
  // that does not fit (too many rows, an id or position out of range) is refused before anything runs.
  // With `logits` those of all rows will be asked for, in order, and are computed with the step, unless they are more than
  // max_logits_rows.
  virtual Status Forward(const ForwardInput& input, bool logits) = 0;
  Status Forward(const ForwardInput& input) { return Forward(input, false); }
  // Logits [rows.size(), vocab_size] of rows of the last Forward; rows.size() <= max_logits_rows. Device memory, valid until the
  // next call.
  virtual StatusOr<const float*> Logits(std::span<const int32_t> rows) = 0;
};

// Whether they are 0, 1, 2 and so on: all rows of a step, in order, when there are as many.
bool AreFirstRows(std::span<const int32_t> rows);

}  // namespace kvasir
