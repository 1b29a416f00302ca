// cuda_engine_bench [--json] [--case ID]...
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "bench/cuda/engine_bench.h"

int main(int count, char** arguments) {
  bool json = false;
  std::vector<std::string> cases;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--json") == 0) {
      json = true;
    } else if (std::strcmp(arguments[i], "--case") == 0 && i + 1 < count) {
      cases.push_back(arguments[++i]);
    } else {
      std::fprintf(stderr, "cuda_engine_bench [--json] [--case ID]...   IDs: c7 c8 extreme tiny; c7 and c8 unless said\n");
      return 2;
    }
  }
  if (cases.empty()) cases = {"c7", "c8"};
  const auto fail = [](const kvasir::Status& status) {
    std::fprintf(stderr, "%s\n", kvasir::Message(status).c_str());
    return 1;
  };
  const auto device = kvasir::MakeCudaDevice();
  if (!device.ok()) return fail(device.status());
  const auto machine = kvasir::MeasureCudaCeilings();
  if (!machine.ok()) return fail(machine.status());
  for (const kvasir::EngineShape& shape : kvasir::EngineShapes()) {
    if (std::find(cases.begin(), cases.end(), shape.id) == cases.end()) continue;
    const auto results = kvasir::BenchEngineShape(**device, shape, *machine);
    if (!results.ok()) return fail(results.status());
    for (const kvasir::BenchResult& result : *results) kvasir::PrintResult(result, json);
    std::fflush(stdout);
  }
  return 0;
}
