#include "models/strict_json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <type_traits>

namespace kvasir {
namespace {

// Builds the document from the parser's events.
template <typename Json>
class Builder {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() { return Add(nullptr); }
  bool boolean(bool value) { return Add(value); }
  bool number_integer(int64_t value) { return Add(value); }
  bool number_unsigned(uint64_t value) { return Add(value); }
  bool number_float(double value, const std::string&) { return Add(value); }
  bool string(std::string& value) { return Add(std::move(value)); }
  bool binary(typename Json::binary_t&) { return false; }
  bool start_object(size_t) { return Open(Json::object()); }
  bool start_array(size_t) { return Open(Json::array()); }
  bool end_object() {
    keys_.pop_back();
    stack_.pop_back();
    return true;
  }
  bool end_array() { return end_object(); }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second) {
      status = InvalidArgument("the key '{}' appears twice in one object", name.substr(0, 80));
      return false;
    }
    key_ = std::move(name);
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const typename Json::exception& error) {
    const std::string_view what = error.what();
    const auto says = [what](const char* words) { return what.find(words) != std::string_view::npos; };
    const char* reason = says("out_of_range") ? "a number is out of range"
                         : says("UTF-8")      ? "invalid UTF-8"
                         : says("surrogate")  ? "a \\u escape is half of a surrogate pair"
                                              : "syntax error";
    status = InvalidArgument("not valid JSON at byte {}: {}", byte, reason);
    return false;
  }

  Status status = OkStatus();
  Json root;

 private:
  Json* Place(Json&& value) {
    if (stack_.empty()) return &(root = std::move(value));
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    auto& members = parent.template get_ref<typename Json::object_t&>();
    if constexpr (std::is_same_v<Json, nlohmann::ordered_json>) {  // the key is new, so it goes to the end without a search
      static_cast<typename Json::object_t::Container&>(members).emplace_back(std::move(key_), std::move(value));
      return &members.back().second;
    } else {
      return &members.emplace(std::move(key_), std::move(value)).first->second;
    }
  }
  bool Count() {
    if (++values_ <= limits_.values) return true;
    status = InvalidArgument("more than {} values", limits_.values);
    return false;
  }
  bool Add(Json value) {
    if (!Count()) return false;
    Place(std::move(value));
    return true;
  }
  bool Open(Json&& value) {
    if (!Count()) return false;
    if (stack_.size() >= size_t(limits_.depth)) {
      status = InvalidArgument("nested deeper than {} levels", limits_.depth);
      return false;
    }
    stack_.push_back(Place(std::move(value)));
    keys_.emplace_back();
    return true;
  }

  const JsonLimits limits_;
  std::vector<Json*> stack_;  // a container is not moved while it is open: only the innermost one grows
  std::vector<std::set<std::string>> keys_;
  std::string key_;
  size_t values_ = 0;
};

}  // namespace

template <typename Json>
StatusOr<Json> ParseStrictJson(std::string_view text, const JsonLimits& limits) {
  // The parser takes a NUL byte for the end of the input, which would let anything follow it.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    return InvalidArgument("not valid JSON at byte {}: NUL", nul + 1);
  Builder<Json> builder(limits);
  const bool parsed = Json::sax_parse(text.begin(), text.end(), &builder);
  if (!builder.status.ok()) return builder.status;
  if (!parsed) return InvalidArgument("not valid JSON");
  return std::move(builder.root);
}

template StatusOr<nlohmann::json> ParseStrictJson(std::string_view, const JsonLimits&);
template StatusOr<nlohmann::ordered_json> ParseStrictJson(std::string_view, const JsonLimits&);

}  // namespace kvasir
