#include "server/json_reader.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <set>

namespace kvasir {
namespace {

// Builds the document from the parser's events, so that limits are checked before memory is taken.
class Builder {
 public:
  Builder(const ServerLimits& limits, Json* root) : limits_(limits), root_(root) {}

  bool null() { return Add(Json(nullptr)); }
  bool boolean(bool value) { return Add(Json(value)); }
  bool number_integer(int64_t value) { return Add(Json(value)); }
  bool number_unsigned(uint64_t value) { return Add(Json(value)); }
  bool number_float(double value, const std::string&) { return Add(Json(value)); }
  bool string(std::string& value) { return Add(Json(std::move(value))); }
  bool binary(Json::binary_t&) { return false; }
  bool start_object(size_t) { return Open(Json::object()); }
  bool start_array(size_t) { return Open(Json::array()); }
  bool end_object() {
    keys_.pop_back();
    stack_.pop_back();
    return true;
  }
  bool end_array() { return end_object(); }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second)
      return Fail(fmt::format("the key \"{}\" appears twice in one object; send it once", name.substr(0, 64)));
    key_ = std::move(name);
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const Json::exception& exception) {
    const std::string_view what = exception.what();
    if (what.find("out_of_range") != std::string_view::npos) return Fail("a number is out of range", byte);
    if (what.find("UTF-8") != std::string_view::npos) return Fail("the text is not valid UTF-8", byte);
    if (what.find("surrogate") != std::string_view::npos) return Fail("a \\u escape is half of a surrogate pair", byte);
    return Fail("syntax error", byte);
  }
  const std::string& failure() const { return failure_; }

 private:
  bool Fail(std::string what, size_t byte = 0) {
    failure_ = byte > 0 ? fmt::format("{} at byte {}", what, byte) : std::move(what);
    return false;
  }
  Json* Place(Json&& value) {
    if (stack_.empty()) {
      *root_ = std::move(value);
      return root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    // The key is new, so it goes to the end without a search.
    auto& members = parent.get_ref<Json::object_t&>();
    members.Container::emplace_back(std::move(key_), std::move(value));
    return &members.back().second;
  }
  bool Add(Json&& value) {
    if (++nodes_ > limits_.json_nodes) return Fail(fmt::format("more than {} values", limits_.json_nodes));
    Place(std::move(value));
    return true;
  }
  bool Open(Json&& value) {
    if (int(stack_.size()) >= limits_.json_depth) return Fail(fmt::format("nested deeper than {} levels", limits_.json_depth));
    if (++nodes_ > limits_.json_nodes) return Fail(fmt::format("more than {} values", limits_.json_nodes));
    stack_.push_back(Place(std::move(value)));
    keys_.emplace_back();
    return true;
  }

  const ServerLimits& limits_;
  Json* root_;
  std::vector<Json*> stack_;  // a container is not moved while it is open: only the innermost one grows
  std::vector<std::set<std::string>> keys_;
  std::string key_, failure_;
  size_t nodes_ = 0;
};

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
  *out = nullptr;
  Builder builder(limits, out);
  if (Json::sax_parse(text.begin(), text.end(), &builder)) return {};
  return {.code = ErrorCode::kInvalidJson,
          .message = fmt::format("The body is not JSON that this server accepts: {}.",
                                 builder.failure().empty() ? "syntax error" : builder.failure())};
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
