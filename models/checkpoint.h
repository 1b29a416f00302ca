// Checkpoint: the safetensors files of a model folder, opened and checked, with one lookup by tensor name over all of them.
// Nothing of the weights is read yet. Used by weights loading.
//
// A folder has model.safetensors, or shards named by model.safetensors.index.json; the single file wins, as it does in
// transformers. Files of other formats (pickles, .bin, .pth) are never opened.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "models/fs.h"
#include "models/safetensors.h"

namespace kvasir {

class DummyTensors;  // dummy_checkpoint.h

struct Checkpoint {
  struct Shard {
    std::string name;
    std::unique_ptr<File> file;
    SafetensorsHeader header;
  };
  struct Place {
    const Shard* shard = nullptr;
    const StoredTensor* tensor = nullptr;
  };
  std::vector<std::unique_ptr<Shard>> shards;
  std::map<std::string, Place, std::less<>> tensors;
  std::shared_ptr<DummyTensors> dummy;  // not null: what is not in `tensors` is made up
};

// The error lists every problem of every file: unreadable or malformed shards, names the index puts in a shard that lacks them,
// and shard names that are not plain file names.
StatusOr<Checkpoint> OpenCheckpoint(const Fs& fs, const std::string& dir);

// One error out of many lines; at most 40 are shown, the rest counted.
Status ListProblems(const std::string& place, const std::vector<std::string>& problems);

}  // namespace kvasir
