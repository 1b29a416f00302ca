// --config FILE: a YAML map of flag names (without dashes) to values, turned into arguments. Separate from cli.cc so that
// yaml-cpp stays in one translation unit.
#pragma once

#include <string>
#include <vector>

#include "kernels/status.h"

namespace CLI {
class App;
}

namespace kvasir {

// "port: 8000" -> "--port=8000"; lists repeat the flag; "flag: false" -> "--flag=false". Unknown keys are errors with the nearest
// name.
StatusOr<std::vector<std::string>> ArgumentsFromConfigFile(const std::string& path, const CLI::App& app);

}  // namespace kvasir
