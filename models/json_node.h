// A JSON value together with its place in the file, for readers of tokenizer files.
//
// Every access is checked: a missing field or a wrong type becomes a Status that names the file, the JSON path, what was
// found and what is wanted. Nothing here throws. The node refers to the parsed document, which must outlive it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

inline constexpr int kMaxSequenceDepth = 16;  // of Sequences in Sequences, in a tokenizer file

class JsonNode {
 public:
  JsonNode(const nlohmann::json* value, std::string path) : value_(value), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }

  // The field is there and not null.
  bool Has(std::string_view key) const;
  StatusOr<JsonNode> Field(std::string_view key) const;
  StatusOr<std::vector<JsonNode>> Array(std::string_view key) const;
  StatusOr<std::string> String(std::string_view key) const;
  StatusOr<std::string> StringOr(std::string_view key, std::string_view otherwise) const;
  StatusOr<bool> BoolOr(std::string_view key, bool otherwise) const;
  StatusOr<int64_t> Integer(std::string_view key) const;
  // A field that must be exactly one character; `otherwise` when it is absent.
  StatusOr<std::string> CharacterOr(std::string_view key, std::string_view otherwise) const;

  // "file: path.field: is X; wanted Y"
  Status Wrong(std::string_view key, std::string_view wanted) const;

 private:
  std::string Path(std::string_view key) const { return path_.empty() ? std::string(key) : path_ + "." + std::string(key); }
  const nlohmann::json* Find(std::string_view key) const;

  const nlohmann::json* value_;
  std::string path_;
};

}  // namespace kvasir
