// kvasir pull, and what --model may name: a folder, or a model on a hub that is in the local cache or is fetched into it.
#pragma once

#include <functional>
#include <string>

#include "kernels/status.h"
#include "server/cli.h"
#include "server/hub_files.h"

namespace kvasir {

// Fetches or brings up to date; progress goes to standard error, the snapshot's folder to standard output.
Status RunPull(const PullOptions& options);

// The folder to load: `model` itself where it is a folder; else the local cache's snapshot of ORG/NAME[@REVISION] when it is
// whole; else it is pulled, unless --no-pull or HF_HUB_OFFLINE forbid that. The error says what was looked for, where, and what
// to do. `keep_going` is asked several times a second while pulling; it may be empty.
struct ModelSource {
  std::string model, revision, download_dir;
  bool pull = true;
  PullWhat what = PullWhat::kModel;
};
StatusOr<std::string> FindModelFolder(const ModelSource& source, const std::function<bool()>& keep_going = {});

// The same for the options of a command: options->model becomes the folder.
Status ResolveModel(EngineOptions* options, const std::function<bool()>& keep_going = {});

}  // namespace kvasir
