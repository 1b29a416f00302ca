#include "server/json_reader.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "models/strict_json.h"

namespace kvasir {
namespace {

std::string TypeName(const Json& value) {
  if (value.is_number_integer()) return "an integer";
  if (value.is_number()) return "a number";
  if (value.is_string()) return "a string";
  if (value.is_boolean()) return "a boolean";
  if (value.is_array()) return "an array";
  if (value.is_object()) return "an object";
  return "null";
}

bool FitsInt64(const Json& value) {
  return value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(INT64_MAX));
}

}  // namespace

ApiError ParseJson(std::string_view text, const ServerLimits& limits, Json* out) {
  StatusOr<Json> parsed = ParseStrictJson<Json>(text, {.depth = limits.json_depth, .values = limits.json_nodes});
  *out = parsed.ok() ? std::move(parsed).value() : Json(nullptr);
  if (parsed.ok()) return {};
  return {.code = ErrorCode::kInvalidJson, .message = fmt::format("The body cannot be read: {}.", Message(parsed.status()))};
}

const Json* FieldReader::Find(const char* name) {
  known_.push_back(name);
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void FieldReader::Complain(std::string_view name, std::string what, ErrorCode code) {
  if (!error_->ok()) return;
  const std::string path = prefix_ + std::string(name);
  *error_ = {.code = code, .message = fmt::format("`{}` {}", path, what), .param = path};
}

void FieldReader::WrongType(std::string_view name, const Json& value, std::string_view wanted) {
  Complain(name, fmt::format("is {} but must be {}", TypeName(value), wanted));
}

std::optional<bool> FieldReader::OptionalBool(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  WrongType(name, *value, "true or false");
  return std::nullopt;
}

bool FieldReader::Bool(const char* name, bool otherwise) {
  return OptionalBool(name).value_or(otherwise);
}

std::optional<int64_t> FieldReader::Int(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (FitsInt64(*value)) return value->get<int64_t>();
  // Some clients write whole numbers as 5.0.
  if (value->is_number_float() && std::abs(value->get<double>()) <= 9e15 &&
      std::floor(value->get<double>()) == value->get<double>()) {
    return int64_t(value->get<double>());
  }
  if (value->is_number()) {
    Complain(name, fmt::format("is {} but must be an integer of 64 bits", value->dump()));
  } else {
    WrongType(name, *value, "an integer");
  }
  return std::nullopt;
}

std::optional<uint64_t> FieldReader::Seed(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  if (value->is_number_integer()) return uint64_t(value->get<int64_t>());
  WrongType(name, *value, "an integer");
  return std::nullopt;
}

std::optional<float> FieldReader::Float(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    WrongType(name, *value, "a number");
    return std::nullopt;
  }
  const double number = value->get<double>();
  if (!std::isfinite(number) || std::abs(number) > FLT_MAX) {
    Complain(name, fmt::format("is {}, far outside its range; send a number that a float can hold", value->dump()));
    return std::nullopt;
  }
  return float(number);
}

std::optional<std::string> FieldReader::Text(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  WrongType(name, *value, "a string");
  return std::nullopt;
}

const Json* FieldReader::Object(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr || value->is_object()) return value;
  WrongType(name, *value, "an object");
  return nullptr;
}

const Json* FieldReader::Array(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr || value->is_array()) return value;
  WrongType(name, *value, "an array");
  return nullptr;
}

bool ReadTokenIds(const Json& array, std::string_view where, std::vector<int32_t>* ids, ApiError* error) {
  ids->reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    const Json& value = array[i];
    if (FitsInt64(value) && value.get<int64_t>() >= INT32_MIN && value.get<int64_t>() <= INT32_MAX) {
      ids->push_back(int32_t(value.get<int64_t>()));
      continue;
    }
    if (error->ok()) {
      *error = {.code = ErrorCode::kInvalidRequest,
                .message = fmt::format("`{}` holds {} at index {} but must hold token ids: integers of this model's vocabulary",
                                       where, value.is_number() ? value.dump() : TypeName(value), i),
                .param = std::string(where)};
    }
    return false;
  }
  return true;
}

std::vector<int32_t> FieldReader::TokenIds(const char* name) {
  std::vector<int32_t> ids;
  if (const Json* array = Array(name)) ReadTokenIds(*array, prefix_ + name, &ids, error_);
  return ids;
}

std::vector<std::string> FieldReader::Unknown() const {
  std::vector<std::string> unknown;
  for (const auto& [key, value] : object_.items()) {
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) unknown.push_back(key);
  }
  return unknown;
}

}  // namespace kvasir
