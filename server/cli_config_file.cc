#include "server/cli_config_file.h"

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>

#include "server/cli.h"

namespace kvasir {
namespace {

// A YAML bomb of aliases cannot grow here: only a flat map of scalars and lists of scalars is read, and the file is small.
constexpr uintmax_t kMaxConfigBytes = 1 << 20;

std::string At(const std::string& path, const YAML::Node& node) {
  return fmt::format("{}:{}", path, node.Mark().line + 1);
}

Status Append(const std::string& path, const std::string& key, const YAML::Node& value, std::vector<std::string>& arguments) {
  if (value.IsScalar()) {
    arguments.push_back(fmt::format("--{}={}", key, value.Scalar()));
    return OkStatus();
  }
  if (!value.IsSequence()) return InvalidArgument("{}: '{}' must be a value or a list of values", At(path, value), key);
  for (const YAML::Node& item : value) {
    if (!item.IsScalar()) return InvalidArgument("{}: an item of '{}' must be a value", At(path, item), key);
    arguments.push_back(fmt::format("--{}", key));
    arguments.push_back(item.Scalar());
  }
  return OkStatus();
}

}  // namespace

StatusOr<std::vector<std::string>> ArgumentsFromConfigFile(const std::string& path, const CLI::App& app) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return InvalidArgument("--config {}: {}", path, error.message());
  if (size > kMaxConfigBytes)
    return InvalidArgument("--config {}: {} bytes is more than the limit of {}", path, size, kMaxConfigBytes);
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) known.push_back(name);
    for (const std::string& name : option->get_fnames()) known.push_back(name);
  }
  YAML::Node root;
  try {
    root = YAML::LoadFile(path);
  } catch (const YAML::Exception& e) {
    return InvalidArgument("--config {}: not valid YAML: {}", path, e.what());
  }
  std::vector<std::string> arguments;
  if (root.IsNull()) return arguments;
  if (!root.IsMap()) return InvalidArgument("--config {}: expected 'name: value' lines", path);
  for (const auto& entry : root) {
    if (!entry.first.IsScalar()) return InvalidArgument("{}: a key must be a flag's name", At(path, entry.first));
    std::string key = entry.first.Scalar();
    std::replace(key.begin(), key.end(), '_', '-');
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      const std::string nearest = NearestName(key, known);
      return InvalidArgument("{}: unknown key '{}'{}", At(path, entry.first), key,
                             nearest.empty() ? "" : fmt::format(": did you mean '{}'?", nearest));
    }
    KVASIR_RETURN_IF_ERROR(Append(path, key, entry.second, arguments));
  }
  return arguments;
}

}  // namespace kvasir
