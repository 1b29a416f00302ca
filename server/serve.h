// kvasir serve: loads the model, opens both fronts, and runs until SIGTERM or SIGINT; then drains and returns.
#pragma once

#include "kernels/status.h"
#include "server/cli.h"

namespace kvasir {

// OK after a clean drain. InvalidArgument and the like: could not start. Internal: the engine failed while serving.
Status RunServe(const ServeOptions& options);

}  // namespace kvasir
