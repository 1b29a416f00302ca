// kvasir bench engine: tokens per second of the real engine with a real model, beside what the machine's measured bandwidth and FLOPs
// allow, and the engine's own cost with a model that computes nothing (bench/engine_null_bench.h).
#pragma once

#include "kernels/status.h"
#include "server/cli.h"

namespace kvasir {

Status RunBenchEngine(const BenchOptions& options);

}  // namespace kvasir
