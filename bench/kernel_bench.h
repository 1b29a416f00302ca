// kvasir bench kernels: the CPU kernels by themselves, each beside the machine's own limit measured in turn with it: streaming
// reads for what is bound by memory, dot instructions for what is bound by arithmetic. Needs no model.
#pragma once

#include "kernels/status.h"
#include "server/cli.h"

namespace kvasir {

Status RunBenchKernels(const BenchOptions& options);

}  // namespace kvasir
