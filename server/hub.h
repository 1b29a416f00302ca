// The hub client: fetches what makes a model folder from a hub (huggingface.co, or a mirror by HF_ENDPOINT) into the shared
// cache. It does what huggingface_hub does, in the same steps: list the files of a revision, ask for each file's ETag and size,
// fetch the bytes (going on where an earlier try stopped), check them, and link them into the snapshot; the ref is written last,
// so a revision never names a snapshot that is not whole. Used by 'kvasir pull' and by the commands that take --model ORG/NAME.
//
// The hub is not trusted: names, sizes, redirects and bodies are checked; the token goes to the endpoint's own origin only.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "kernels/status.h"
#include "server/hub_cache.h"
#include "server/hub_files.h"
#include "server/hub_settings.h"

namespace kvasir {

struct PullProgress {
  std::string_view file;                  // the one this is about; several are under way
  uint64_t file_done = 0, file_size = 0;  // bytes; size 0 = not told
  uint64_t done = 0, total = 0;           // bytes of all files known by now; total grows once, when the shards are known
  bool finished = false;                  // this file is in place
  bool fetched = false;                   // with finished: bytes came over the network, it was not there already
};

// Called by several threads, one at a time.
struct PullEvents {
  std::function<bool()> keep_going;                     // several times a second; false ends with Cancelled
  std::function<void(const PullProgress&)> progress;    // for each piece
  std::function<void(const std::string& line)> remark;  // waiting, trying again, nothing to check against
};

struct Pulled {
  std::string path;  // the snapshot
  std::string commit;
  size_t files = 0;
  uint64_t bytes = 0, fetched_bytes = 0;
};

// Blocks. Errors name the repository, what the hub said and what to do.
StatusOr<Pulled> PullSnapshot(const HubSettings& settings, const RepoName& name, PullWhat what, const PullEvents& events);

}  // namespace kvasir
