#include "models/config_fields.h"

#include <algorithm>

namespace kvasir {

using nlohmann::json;

namespace {

// A whole number, also when written as 2.0 or 1e5.
std::optional<int64_t> Whole(const json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    return number <= uint64_t{std::numeric_limits<int64_t>::max()} ? std::optional<int64_t>(number) : std::nullopt;
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const double number = value.get<double>();
  if (!(std::fabs(number) <= 0x1p53) || number != std::floor(number)) return std::nullopt;
  return static_cast<int64_t>(number);
}

}  // namespace

std::string Shown(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

const json* Fields::Find(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<int64_t> Fields::OptionalInt(std::string_view key, int64_t low, int64_t high) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto number = Whole(*value); number && *number >= low && *number <= high) return number;
  Fail(InvalidArgument("{}{} is {}; wanted a whole number from {} to {}", where_, key, Shown(*value), low, high));
  return std::nullopt;
}

int64_t Fields::Int(std::string_view key, int64_t low, int64_t high) {
  const auto value = OptionalInt(key, low, high);
  if (!value && Find(key) == nullptr)
    Fail(InvalidArgument("{}{} is missing; it is a whole number from {} to {}", where_, key, low, high));
  return value.value_or(low);
}

std::optional<double> Fields::OptionalReal(std::string_view key, double low, double high) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number >= low && number <= high) return number;
  }
  Fail(InvalidArgument("{}{} is {}; wanted a number from {} to {}", where_, key, Shown(*value), low, high));
  return std::nullopt;
}

double Fields::Real(std::string_view key, double low, double high) {
  const auto value = OptionalReal(key, low, high);
  if (!value && Find(key) == nullptr)
    Fail(InvalidArgument("{}{} is missing; it is a number from {} to {}", where_, key, low, high));
  return value.value_or(low);
}

bool Fields::BoolOr(std::string_view key, bool otherwise) {
  const json* value = Find(key);
  if (value == nullptr) return otherwise;
  if (value->is_boolean()) return value->get<bool>();
  Fail(InvalidArgument("{}{} is {}; wanted true or false", where_, key, Shown(*value)));
  return otherwise;
}

std::string Fields::StringOr(std::string_view key, std::string_view otherwise) {
  const json* value = Find(key);
  if (value == nullptr) return std::string(otherwise);
  if (value->is_string()) return value->get<std::string>().substr(0, 200);
  Fail(InvalidArgument("{}{} is {}; wanted a string", where_, key, Shown(*value)));
  return std::string(otherwise);
}

std::vector<int32_t> Fields::TokenIds(std::string_view key) {
  std::vector<int32_t> ids;
  const json* value = Find(key);
  if (value == nullptr) return ids;
  const auto add = [&](const json& item) {
    const auto id = Whole(item);
    if (id && *id >= 0 && *id <= kMaxTokenId && ids.size() < 1024) {
      if (std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(static_cast<int32_t>(*id));
    } else {
      Fail(InvalidArgument("{}{} holds {}; wanted a token id or a list of at most 1024 of them", where_, key, Shown(item)));
    }
  };
  if (!value->is_array()) return add(*value), ids;
  for (const json& item : *value)
    if (status_->ok()) add(item);
  return ids;
}

std::vector<double> Fields::Reals(std::string_view key, size_t count, double low, double high) {
  const json* value = Find(key);
  std::vector<double> numbers;
  if (value != nullptr && value->is_array() && value->size() == count) {
    for (const json& item : *value)
      if (item.is_number() && item.get<double>() >= low && item.get<double>() <= high) numbers.push_back(item.get<double>());
  }
  if (numbers.size() != count) {
    Fail(InvalidArgument("{}{} is {}; wanted a list of {} numbers from {} to {}", where_, key,
                         value == nullptr ? "missing" : Shown(*value), count, low, high));
    numbers.assign(count, low);
  }
  return numbers;
}

std::optional<std::vector<int64_t>> Fields::OptionalInts(std::string_view key, size_t most, int64_t low, int64_t high) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<int64_t> numbers;
  if (value->is_array() && value->size() <= most) {
    for (const json& item : *value)
      if (const auto number = Whole(item); number && *number >= low && *number <= high) numbers.push_back(*number);
    if (numbers.size() == value->size()) return numbers;
  }
  Fail(InvalidArgument("{}{} is {}; wanted a list of at most {} whole numbers from {} to {}", where_, key, Shown(*value), most,
                       low, high));
  return std::nullopt;
}

std::optional<std::vector<std::string>> Fields::OptionalStrings(std::string_view key, size_t count) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<std::string> strings;
  if (value->is_array() && value->size() == count) {
    for (const json& item : *value)
      if (item.is_string()) strings.push_back(item.get<std::string>().substr(0, 200));
    if (strings.size() == count) return strings;
  }
  Fail(InvalidArgument("{}{} is {}; wanted a list of {} strings", where_, key, Shown(*value), count));
  return std::nullopt;
}

void Fields::Fail(Status status) {
  if (status_->ok()) *status_ = std::move(status);
}

}  // namespace kvasir
