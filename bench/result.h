// One measured case, as every benchmark reports it: a line of text, or one JSON line {id, case, value, unit, ceiling, ratio}.
#pragma once

#include <string>
#include <vector>

namespace kvasir {

struct BenchResult {
  std::string id;    // of the benchmark set in docs/benchmarks/README.md: "b1"
  std::string name;  // the case: "256 running"
  double value = 0;
  std::string unit;    // "us/step"
  double ceiling = 0;  // measured in the same run, or the goal; 0 = none
  double ratio = 0;    // value over ceiling, in the sense that 1 is perfect; 0 = none
};

double Median(std::vector<double> values);  // the upper one of two

void PrintResult(const BenchResult& result, bool json);

}  // namespace kvasir
