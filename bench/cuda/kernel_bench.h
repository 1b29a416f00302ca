// kvasir bench kernels --device cuda: the ops of the seam on a GPU beside that GPU's ceilings, and cuBLASLt where it is here.
// Also a program of its own, cuda_bench, that needs nothing of the server.
#pragma once

#include <string>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

struct CudaBenchOptions {
  std::vector<std::string> cases;  // ids, "a6"; empty = all
  bool json = false;
};
Status RunCudaBench(const CudaBenchOptions& options);

}  // namespace kvasir
