// Reading JSON from clients: strict parsing with one answer for everything that is wrong, and typed access to fields that names
// the field in every complaint. Used by the HTTP front, and by the gRPC front for the JSON inside its chats.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/limits.h"
#include "server/status.h"

namespace kvasir {

using Json = nlohmann::ordered_json;

// ParseStrictJson (models/strict_json.h) under the server's limits; what it refuses is kInvalidJson. `out` is null then.
ApiError ParseJson(std::string_view text, const ServerLimits& limits, Json* out);

// Typed access to one object's fields. The first complaint is kept; after it every read gives the default. Null counts as absent.
class FieldReader {
 public:
  FieldReader(const Json& object, std::string prefix, ApiError* error)
      : object_(object), prefix_(std::move(prefix)), error_(error) {}

  const Json* Find(const char* name);  // null when absent or null; marks the name as known
  bool Bool(const char* name, bool otherwise);
  std::optional<bool> OptionalBool(const char* name);
  std::optional<int64_t> Int(const char* name);
  std::optional<uint64_t> Seed(const char* name);  // any 64-bit integer, signed or not
  std::optional<float> Float(const char* name);
  std::optional<std::string> Text(const char* name);
  std::vector<int32_t> TokenIds(const char* name);
  const Json* Object(const char* name);
  const Json* Array(const char* name);

  void Complain(std::string_view name, std::string what, ErrorCode code = ErrorCode::kInvalidRequest);
  void WrongType(std::string_view name, const Json& value, std::string_view wanted);
  bool ok() const { return error_->ok(); }
  std::vector<std::string> Unknown() const;  // keys that nobody asked for

 private:
  const Json& object_;
  std::string prefix_;
  ApiError* error_;
  std::vector<std::string_view> known_;
};

// Fills ids from a JSON array of integers; `where` names it in complaints.
bool ReadTokenIds(const Json& array, std::string_view where, std::vector<int32_t>* ids, ApiError* error);

}  // namespace kvasir
