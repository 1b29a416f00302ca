// Strict JSON for text that comes from outside: model files and requests. Refuses bad syntax, invalid UTF-8, lone surrogates,
// numbers a double cannot hold, duplicate keys at any level, bytes after the value, NUL bytes, and what is deeper or has more
// values than the limits, before memory is taken for it. The error says where and quotes little. Throws nothing; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "kernels/status.h"

namespace kvasir {

struct JsonLimits {
  int depth = 32;            // arrays and objects within each other
  size_t values = SIZE_MAX;  // of all kinds, counted together
};

// Json is nlohmann::json or nlohmann::ordered_json, which keeps the order of keys.
template <typename Json>
StatusOr<Json> ParseStrictJson(std::string_view text, const JsonLimits& limits = {});

}  // namespace kvasir
