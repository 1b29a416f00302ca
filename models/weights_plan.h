// The plan of loading: every tensor the config asks for, where it lies in the checkpoint, how it is stored, and which packed
// weight it becomes. Internal to weights loading (weights*.cc).
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <set>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "models/config.h"
#include "models/families.h"
#include "models/tensor_rearrange.h"
#include "models/weights.h"

namespace kvasir {

// One matrix (or vector) read from one tensor, or from a part of it: rows [first_row, first_row + rows) of the tensor seen as
// rows of its last dimension.
struct Part {
  std::string name;
  std::vector<uint64_t> shape;  // the whole tensor's
  int64_t first_row = 0;
  int64_t rows = 0, cols = 0;  // as stored; a vector is a column here
  Rearrange rearrange;         // how it becomes what is packed
  std::string scales_name;     // MXFP4: blocks in `name` [.., cols / 32, 16], one scale per 32 values here
  Checkpoint::Place place, scales;

  // Filled by the plan: places in the buffer of its group. Raw bytes become packed input in place when nothing is rearranged.
  size_t raw_offset = 0, raw_bytes = 0, scales_bytes = 0, offset = 0;
  DType dtype = DType::kF32;  // of the values at `offset`
  int64_t out_rows = 0, out_cols = 0;
  XXH128_hash_t hash = {};
};

// Parts read into one buffer and packed together, one under another.
struct PartGroup {
  enum class Kind { kEmbedding, kLinear, kVector } kind = Kind::kLinear;
  std::vector<Part> parts;
  Weight* packed = nullptr;
  Weight* also_linear = nullptr;  // tied output weights
  bool float32 = false;           // packed as float32 whatever the model's type, and never quantised (routers)
  bool head = false;              // the output head: what decides between tokens is quantised less
  size_t bytes = 0;
};

class WeightsPlan {
 public:
  WeightsPlan(const Checkpoint& checkpoint, const ModelConfig& config, const Family& family);

  void Build(ModelWeights* weights);
  Status Check(const std::string& dir) const;  // lists every tensor that is missing or does not fit
  std::vector<PartGroup>& groups() { return groups_; }

 private:
  std::string_view ChooseRoot() const;
  Part Matrix(std::string name, int64_t rows, int64_t cols, Rearrange rearrange = {}) const;
  Part Vector(std::string name, int64_t size, Rearrange rearrange = {}) const;
  Part RowsOf(std::string name, std::vector<uint64_t> shape, int64_t first_row, int64_t rows, Rearrange rearrange = {}) const;
  void AddVector(Weight* packed, std::vector<Part> parts);
  PartGroup& AddLinear(Weight* packed, std::vector<Part> parts, bool float32 = false);
  void AddNorm(const std::string& name, NormWeights* norm);
  void AddLayer(int layer, LayerWeights* weights);
  void AddAttention(const std::string& prefix, bool own_kv, AttentionWeights* attention);
  void AddLatent(const std::string& prefix, LatentWeights* latent);
  void AddDelta(const std::string& prefix, DeltaWeights* delta);
  void AddMlp(const std::string& prefix, const TensorNames& names, int64_t width, bool bias, MlpWeights* mlp);
  void AddExperts(const std::string& prefix, ExpertsWeights* experts);
  void AddExpert(const std::string& prefix, int expert, ExpertsWeights* experts);
  void AddInterleavedExpert(const std::string& prefix, int expert, ExpertsWeights* experts);
  void AddGroup(PartGroup group);
  bool Locate(Part* part);
  bool LocateTensor(const std::string& name, const std::vector<uint64_t>& shape, bool bytes, Checkpoint::Place* place);

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const Family& family_;
  const TensorNames& names_;
  const std::string_view root_;
  std::vector<PartGroup> groups_;
  std::set<std::string, std::less<>> wanted_;
  std::vector<std::string> problems_;
};

}  // namespace kvasir
