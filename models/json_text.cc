#include "models/json_text.h"

#include <nlohmann/json.hpp>

namespace kvasir {
namespace {

using nlohmann::json;

// Builds the document from parse events. Pointers in stack_ stay valid: objects are maps, and an array grows only while the
// element last added is complete.
class DocumentBuilder {
 public:
  explicit DocumentBuilder(int max_depth) : max_depth_(max_depth) {}

  bool null() { return Add(nullptr) != nullptr; }
  bool boolean(bool value) { return Add(value) != nullptr; }
  bool number_integer(int64_t value) { return Add(value) != nullptr; }
  bool number_unsigned(uint64_t value) { return Add(value) != nullptr; }
  bool number_float(double value, const std::string&) { return Add(value) != nullptr; }
  bool string(std::string& value) { return Add(std::move(value)) != nullptr; }
  bool binary(json::binary_t&) { return false; }
  bool start_object(size_t) { return Open(json::object()); }
  bool start_array(size_t) { return Open(json::array()); }
  bool end_object() { return Close(); }
  bool end_array() { return Close(); }
  bool key(std::string& name) {
    if (stack_.back()->contains(name)) {
      status_ = InvalidArgument("the key '{}' appears twice in one object", name.substr(0, 80));
      return false;
    }
    key_ = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const json::exception& error) {
    // The parser quotes what it read last, which may be all of a hostile file.
    status_ = InvalidArgument("not valid JSON at byte {}: {}", position, std::string_view(error.what()).substr(0, 300));
    return false;
  }

  Status status_ = OkStatus();
  json root_;

 private:
  json* Add(json value) {
    if (stack_.empty()) return &(root_ = std::move(value));
    json& parent = *stack_.back();
    if (parent.is_object()) return &(parent[std::move(key_)] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool Open(json container) {
    if (stack_.size() >= max_depth_) {
      status_ = InvalidArgument("nested deeper than {} levels", max_depth_);
      return false;
    }
    stack_.push_back(Add(std::move(container)));
    return true;
  }
  bool Close() {
    stack_.pop_back();
    return true;
  }

  const size_t max_depth_;
  std::vector<json*> stack_;
  std::string key_;
};

}  // namespace

StatusOr<json> ParseStrictJson(std::string_view text, int max_depth) {
  // The parser takes a NUL byte for the end of the input, which would let anything follow it.
  if (text.find('\0') != std::string_view::npos) return InvalidArgument("not valid JSON: holds a NUL byte");
  DocumentBuilder builder(max_depth);
  const bool parsed = json::sax_parse(text.begin(), text.end(), &builder);
  if (!builder.status_.ok()) return builder.status_;
  if (!parsed) return InvalidArgument("not valid JSON");
  return std::move(builder.root_);
}

}  // namespace kvasir
