// Which files of a repository make a model folder for Kvasir, and which names may be taken from a server at all. Pure: used by
// the hub client to choose what to fetch, and by the cache to tell whether a snapshot is whole.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

enum class PullWhat {
  kModel,  // everything 'serve' needs
  kText,   // configuration, tokenizer and templates; no weights
};

inline constexpr char kWeightsFile[] = "model.safetensors";
inline constexpr char kWeightsIndex[] = "model.safetensors.index.json";

// A name from a server that becomes a path below a snapshot: relative, of at most 255 bytes a part and 1024 in all, no empty
// part, no "." or "..", no control characters or backslashes, valid UTF-8.
Status CheckFileName(std::string_view name);

// Of the names in a repository, those to fetch: configuration, tokenizer, templates; and, with kModel, model.safetensors, or the
// index of shards where there is no such file (its shards are known only after it has been read: ShardsOfIndex). Pickles and
// other programs are never among them. NotFound when the repository is not a model that can be loaded; it says what it has
// instead.
StatusOr<std::vector<std::string>> ChooseFiles(const std::vector<std::string>& names, PullWhat what);

// The shards that an index names, sorted, each a plain name in the same folder.
StatusOr<std::vector<std::string>> ShardsOfIndex(std::string_view index_json);

// What a folder lacks to be loaded, as names; empty = whole. Broken files are not looked at: loading tells about them.
std::vector<std::string> MissingFiles(const std::string& dir, PullWhat what);

}  // namespace kvasir
