// cuda_bench [--json] [--case ID]...
#include <cstdio>
#include <cstring>

#include "bench/cuda/kernel_bench.h"

int main(int count, char** arguments) {
  kvasir::CudaBenchOptions options;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--json") == 0) {
      options.json = true;
    } else if (std::strcmp(arguments[i], "--case") == 0 && i + 1 < count) {
      options.cases.push_back(arguments[++i]);
    } else {
      std::fprintf(stderr, "cuda_bench [--json] [--case ID]...   IDs: link a6 a7 a9 a10 a11 a12\n");
      return 2;
    }
  }
  const kvasir::Status status = kvasir::RunCudaBench(options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", kvasir::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
