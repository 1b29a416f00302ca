// The packed cache: a folder of packed weights (models/packed_file.h), so that the second start of a model maps what the first
// one has packed: nothing is read twice, converted or copied. Used by weights loading.
//
// A file is found by what its bytes depend on: the model's configuration, every shard's identity (inode, size and times, not its
// content, which would have to be read), types, quantisation, and the device's packing. Its content is checked at every start. A
// cache that cannot be used (no room, no permission, damage) costs a remark and never a start.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "models/packed_file.h"

namespace kvasir {

struct PackedCacheOptions {
  std::string dir;           // empty = no cache
  uint64_t limit_bytes = 0;  // of all its files: those unused for longest go first, and a model larger than that is not kept
  uint64_t least_bytes = uint64_t{16} << 20;       // smaller models load in no time
  int niceness = 10;                               // of the writing thread: requests that are served meanwhile come first
  std::function<void(const std::string&)> remark;  // may be called from another thread; empty = silent
};

// Everything the packed bytes depend on, as text; empty when they cannot be kept: files without identity, or a device that
// does not tell its packing. `numerics` names types and quantisation, config_text is that of config.json.
std::string PackedCacheKey(const Checkpoint& checkpoint, std::string_view config_text, std::string_view numerics,
                           const Device& device);

// The file of that key, checked and marked as used; nullptr when there is none. A damaged one is removed.
std::shared_ptr<const PackedFile> FindPacked(const PackedCacheOptions& options, const std::string& key);

// Writes weights to the cache in a thread of its own, at a low priority; the weights outlive it. Destroyed early, it stops.
class PackedKeeper {
 public:
  PackedKeeper(const PackedCacheOptions& options, std::string key, std::string weights_hash, std::vector<PackedWeight> weights);
  ~PackedKeeper();
  PackedKeeper(const PackedKeeper&) = delete;
  PackedKeeper& operator=(const PackedKeeper&) = delete;
  void WaitUntilDone();  // for tests

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace kvasir
