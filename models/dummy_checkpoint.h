// A checkpoint that is made up (--load-format dummy): any tensor that is asked for is there, in bfloat16, with numbers that
// depend on its name and place alone. For measuring models of any shape where their files are not. Used by Model::Load.
#pragma once

#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace kvasir {

class DummyTensors {
 public:
  // Weights are spread evenly over +-0.035 (a standard deviation of 0.02, as models begin their training with), norms are ones.
  Checkpoint::Place Invent(const std::string& name, const std::vector<uint64_t>& shape);

 private:
  struct Invented {
    Checkpoint::Shard shard;
    StoredTensor tensor;
  };
  std::vector<std::unique_ptr<Invented>> tensors_;
};

Checkpoint DummyCheckpoint();

}  // namespace kvasir
