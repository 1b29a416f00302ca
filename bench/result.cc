#include "bench/result.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace kvasir {

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + int64_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void PrintResult(const BenchResult& r, bool json) {
  if (json) {
    const nlohmann::ordered_json line = {{"id", r.id},     {"case", r.name},       {"value", r.value},
                                         {"unit", r.unit}, {"ceiling", r.ceiling}, {"ratio", r.ratio}};
    std::printf("%s\n", line.dump().c_str());
  } else if (r.ceiling > 0) {
    std::printf("%-4s %-44s %12.4g %-10s ceiling %10.4g  ratio %6.3f\n", r.id.c_str(), r.name.c_str(), r.value, r.unit.c_str(),
                r.ceiling, r.ratio);
  } else {
    std::printf("%-4s %-44s %12.4g %s\n", r.id.c_str(), r.name.c_str(), r.value, r.unit.c_str());
  }
  std::fflush(stdout);
}

}  // namespace kvasir
