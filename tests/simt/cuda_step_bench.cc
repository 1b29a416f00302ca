// Prints what the host does to begin a step of decoding (bench/cuda/step_bench.h), with no GPU: what steps start is never run.
#include "bench/cuda/step_bench.h"

#include <cstdio>
#include <cstring>

#include "tests/simt/stream.h"

int main(int argc, char** argv) {
  kvasir::CudaDevice device(*kvasir::CudaContext::Create(0));
  const auto results = kvasir::BenchStepHost(device, kvasir::simt::DropQueued);
  if (!results.ok()) {
    std::fprintf(stderr, "%s\n", kvasir::Message(results.status()).c_str());
    return 1;
  }
  const bool json = argc > 1 && std::strcmp(argv[1], "--json") == 0;
  for (const kvasir::BenchResult& result : *results) kvasir::PrintResult(result, json);
}
