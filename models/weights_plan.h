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
#include "models/quantized_tensors.h"
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
  std::string scales_name;     // MXFP4: blocks in `name` [.., cols / 32, 16], their scales [.., cols / 32] here
  Checkpoint::Place place, scales;

  // Of a weight that the checkpoint stores quantised; `place` is that of its codes.
  std::optional<StoredQuant> stored;
  Checkpoint::Place zeros, group_of;
  QuantFormat quant;  // it goes to the device as codes of this format; none: as values

  // Filled by the plan: places in the buffer of its group. Raw bytes become packed input in place when nothing is done to them.
  struct Piece {
    Checkpoint::Place place;
    uint64_t skip = 0;  // bytes from the tensor's start
    size_t bytes = 0, offset = 0;
  };
  std::vector<Piece> pieces;  // what is read; codes, scales, zeros first, in this order
  size_t offset = 0;          // of the values, or codes
  size_t scales_offset = 0, lows_offset = 0;
  int64_t scales_row = 0;            // of a stored weight: the first row whose scales are read
  std::vector<int32_t> input_order;  // quant.ordered
  DType dtype = DType::kF32;         // of the values at `offset`
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
  QuantFormat quant;              // how it is packed
  QuantFormat also_quant;         // how also_linear is
  size_t bytes = 0;
};

// int4 costs the head more than it saves: every token is chosen there.
QuantFormat FormatOfHead(QuantFormat format);

class WeightsPlan {
 public:
  WeightsPlan(const Checkpoint& checkpoint, const ModelConfig& config, const Family& family, const WeightsOptions& options);

  void Build(ModelWeights* weights);
  Status Check(const std::string& dir) const;  // lists every tensor that is missing or does not fit
  std::vector<PartGroup>& groups() { return groups_; }
  DType dtype() const { return dtype_; }  // of what is not quantised

 private:
  std::string_view ChooseRoot() const;
  Part Matrix(std::string name, int64_t rows, int64_t cols, Rearrange rearrange = {}) const;
  Part Vector(std::string name, int64_t size, Rearrange rearrange = {}) const;
  Part RowsOf(std::string name, std::vector<uint64_t> shape, int64_t first_row, int64_t rows, Rearrange rearrange = {}) const;
  void AddVector(Weight* packed, std::vector<Part> parts);
  void AddLinear(Weight* packed, std::vector<Part> parts, bool float32 = false, bool head = false);
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
  void PlacePart(const PartGroup& group, Part* part, size_t* end);
  bool Locate(Part* part);
  bool LocateTensor(const std::string& name, const std::vector<uint64_t>& shape, bool bytes, Checkpoint::Place* place);
  // weights_quantized.cc: tensors of a weight that is stored quantised.
  bool IsStoredQuantized(const Part& part) const;
  bool LocateQuantized(Part* part);
  bool LocateByInput(const std::string& base, StoredQuant* stored, Part* part);
  bool LocatePacked(const std::string& base, StoredQuant* stored, Part* part);
  bool LocateBytes(const std::string& base, StoredQuant* stored, Part* part);
  bool LocateGroupOf(const std::string& name, StoredQuant* stored, Part* part);
  bool DropPlainZeros(StoredQuant* stored, Part* part);
  bool SetGroups(const std::string& name, uint64_t groups, StoredQuant* stored);
  bool Complain(std::string problem);
  const StoredTensor* Want(const std::string& name, std::string_view types, const std::vector<std::vector<uint64_t>>& shapes,
                           Checkpoint::Place* place);
  QuantFormat ChooseFormat(const PartGroup& group) const;

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const Family& family_;
  const TensorNames& names_;
  const std::string_view root_;
  const std::optional<DType> asked_dtype_;
  const std::optional<QuantFormat> asked_quantization_;
  DType dtype_ = DType::kF32;
  std::vector<PartGroup> groups_;
  std::set<std::string, std::less<>> wanted_;
  std::vector<std::string> problems_;
};

}  // namespace kvasir
