#include "models/checkpoint.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/strict_json.h"

namespace kvasir {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxShards = 4096;

Status OpenShard(const Fs& fs, const std::string& dir, const std::string& name, Checkpoint* checkpoint) {
  StatusOr<std::unique_ptr<File>> file = fs.Open(JoinPath(dir, name));
  if (!file.ok()) return file.status();
  StatusOr<SafetensorsHeader> header = ReadSafetensorsHeader(**file);
  if (!header.ok()) return AtPlace(name, header.status());
  checkpoint->shards.push_back(
      std::make_unique<Checkpoint::Shard>(Checkpoint::Shard{name, std::move(*file), std::move(*header)}));
  return OkStatus();
}

bool IsPlainName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of("/\\") == std::string_view::npos && name.find('\0') == std::string_view::npos &&
         name.ends_with(".safetensors");
}

// tensor name -> shard name, by model.safetensors.index.json.
StatusOr<std::map<std::string, std::string>> ReadIndex(const Fs& fs, const std::string& dir) {
  KVASIR_ASSIGN_OR_RETURN(const std::string text, ReadText(fs, JoinPath(dir, kIndexFile), kMaxIndexBytes));
  StatusOr<nlohmann::json> root = ParseStrictJson<nlohmann::json>(text, {.depth = 8});
  if (!root.ok()) return AtPlace(kIndexFile, root.status());
  const auto found = root->is_object() ? root->find("weight_map") : root->end();
  if (found == root->end() || !found->is_object() || found->empty())
    return InvalidArgument("{}: wanted an object \"weight_map\" of tensor names and the shard of each", kIndexFile);
  if (found->size() > kMaxTensors)
    return InvalidArgument("{}: weight_map names {} tensors but the limit is {}", kIndexFile, found->size(), kMaxTensors);
  std::map<std::string, std::string> weight_map;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string() || !IsPlainName(shard.get<std::string>()))
      return InvalidArgument("{}: weight_map puts '{}' in {}; a shard is a plain name ending in .safetensors, in the same folder",
                             kIndexFile, tensor.substr(0, 120),
                             shard.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).substr(0, 120));
    weight_map.emplace(tensor, shard.get<std::string>());
  }
  return weight_map;
}

StatusOr<Checkpoint> OpenShards(const Fs& fs, const std::string& dir) {
  KVASIR_ASSIGN_OR_RETURN(const auto weight_map, ReadIndex(fs, dir));
  std::vector<std::string> names;
  for (const auto& [tensor, shard] : weight_map) names.push_back(shard);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  if (names.size() > kMaxShards)
    return InvalidArgument("{}: names {} shards but the limit is {}", kIndexFile, names.size(), kMaxShards);

  Checkpoint checkpoint;
  std::vector<std::string> problems;
  for (const std::string& name : names)
    if (const Status status = OpenShard(fs, dir, name, &checkpoint); !status.ok()) problems.push_back(Message(status));
  if (!problems.empty()) return ListProblems(dir, problems);

  std::map<std::string_view, const Checkpoint::Shard*> by_name;
  for (const auto& shard : checkpoint.shards) by_name[shard->name] = shard.get();
  for (const auto& [tensor, shard_name] : weight_map) {
    const Checkpoint::Shard* shard = by_name[shard_name];
    if (const StoredTensor* stored = shard->header.Find(tensor); stored != nullptr) {
      checkpoint.tensors[tensor] = {shard, stored};
    } else {
      problems.push_back(fmt::format("{}: has no tensor '{}', which {} puts there", shard_name, tensor, kIndexFile));
    }
  }
  if (!problems.empty()) return ListProblems(dir, problems);
  size_t unlisted = 0;
  for (const auto& shard : checkpoint.shards)
    for (const StoredTensor& tensor : shard->header.tensors) unlisted += !weight_map.contains(tensor.name);
  if (unlisted > 0) spdlog::warn("{}: {} tensors of the shards are not in the index and are ignored", kIndexFile, unlisted);
  return checkpoint;
}

}  // namespace

Status ListProblems(const std::string& place, const std::vector<std::string>& problems) {
  if (problems.size() == 1) return InvalidArgument("{}: {}", place, problems[0]);
  constexpr size_t kShown = 40;
  std::string text = fmt::format("{}: {} problems:", place, problems.size());
  for (size_t i = 0; i < std::min(problems.size(), kShown); ++i) text += "\n  " + problems[i];
  if (problems.size() > kShown) text += fmt::format("\n  ... and {} more", problems.size() - kShown);
  return InvalidArgument("{}", text);
}

StatusOr<Checkpoint> OpenCheckpoint(const Fs& fs, const std::string& dir) {
  KVASIR_ASSIGN_OR_RETURN(const std::vector<std::string> entries, fs.List(dir));
  const auto has = [&](std::string_view name) { return std::find(entries.begin(), entries.end(), name) != entries.end(); };
  if (!has(kSingleFile) && has(kIndexFile)) return OpenShards(fs, dir);
  if (!has(kSingleFile)) {
    std::string others;
    for (const std::string& name : entries)
      if (name.ends_with(".safetensors") || name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".gguf"))
        if (others.size() < 200) others += (others.empty() ? "" : ", ") + name;
    return NotFound("{}: has neither {} nor {}{}; save the model with save_pretrained(..., safe_serialization=True)", dir,
                    kSingleFile, kIndexFile, others.empty() ? "" : " (found: " + others + ")");
  }
  Checkpoint checkpoint;
  if (const Status status = OpenShard(fs, dir, kSingleFile, &checkpoint); !status.ok()) return AtPlace(dir, status);
  const Checkpoint::Shard* shard = checkpoint.shards[0].get();
  for (const StoredTensor& tensor : shard->header.tensors) checkpoint.tensors[tensor.name] = {shard, &tensor};
  return checkpoint;
}

}  // namespace kvasir
