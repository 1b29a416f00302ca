#include "models/json_node.h"

#include "models/unicode.h"

namespace kvasir {

const nlohmann::json* JsonNode::Find(std::string_view key) const {
  if (!value_->is_object()) return nullptr;
  const auto it = value_->find(key);
  return it == value_->end() ? nullptr : &*it;
}

bool JsonNode::Has(std::string_view key) const {
  const auto* field = Find(key);
  return field != nullptr && !field->is_null();
}

Status JsonNode::Wrong(std::string_view key, std::string_view wanted) const {
  const auto* field = Find(key);
  if (field == nullptr) return InvalidArgument("{} is missing; it must be {}", Path(key), wanted);
  std::string shown = field->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (shown.size() > 60) shown = shown.substr(0, 60) + "...";
  return InvalidArgument("{} is {}; it must be {}", Path(key), shown, wanted);
}

StatusOr<JsonNode> JsonNode::Field(std::string_view key) const {
  if (const auto* field = Find(key)) return JsonNode(field, Path(key));
  return Wrong(key, "present");
}

StatusOr<std::vector<JsonNode>> JsonNode::Array(std::string_view key) const {
  const auto* field = Find(key);
  if (field == nullptr || !field->is_array()) return Wrong(key, "an array");
  std::vector<JsonNode> items;
  for (size_t i = 0; i < field->size(); ++i) items.emplace_back(&(*field)[i], fmt::format("{}[{}]", Path(key), i));
  return items;
}

StatusOr<std::string> JsonNode::String(std::string_view key) const {
  const auto* field = Find(key);
  if (field == nullptr || !field->is_string()) return Wrong(key, "a string");
  return field->get_ref<const std::string&>();
}

StatusOr<std::string> JsonNode::StringOr(std::string_view key, std::string_view otherwise) const {
  if (!Has(key)) return std::string(otherwise);
  return String(key);
}

StatusOr<bool> JsonNode::BoolOr(std::string_view key, bool otherwise) const {
  if (!Has(key)) return otherwise;
  const auto* field = Find(key);
  if (!field->is_boolean()) return Wrong(key, "true or false");
  return field->get<bool>();
}

StatusOr<int64_t> JsonNode::Integer(std::string_view key) const {
  const auto* field = Find(key);
  if (field == nullptr || !field->is_number_integer()) return Wrong(key, "an integer");
  if (field->is_number_unsigned() && field->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return Wrong(key, "an integer below 2^63");
  return field->get<int64_t>();
}

StatusOr<std::string> JsonNode::CharacterOr(std::string_view key, std::string_view otherwise) const {
  KVASIR_ASSIGN_OR_RETURN(std::string text, StringOr(key, otherwise));
  if (text.empty() || static_cast<size_t>(CharacterAt(text, 0).length) != text.size()) return Wrong(key, "one character");
  return text;
}

}  // namespace kvasir
