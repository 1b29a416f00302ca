// Hash maps keyed by text, looked up by std::string_view without a copy. (Debian's Abseil has a string_view of its own, so its
// default hash does not take the standard one.)
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace kvasir {

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return absl::Hash<absl::string_view>()(absl::string_view(text.data(), text.size())); }
};

template <typename Value>
using TextMap = absl::flat_hash_map<std::string, Value, TextHash, std::equal_to<>>;
// Keys that live elsewhere and do not move.
template <typename Value>
using TextViewMap = absl::flat_hash_map<std::string_view, Value, TextHash, std::equal_to<>>;

}  // namespace kvasir
