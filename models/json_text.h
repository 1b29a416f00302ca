// Strict JSON for files that come from outside: config.json, generation_config.json and the shard index. Refuses duplicate keys
// at any level, nesting beyond a limit, bytes after the value and invalid UTF-8; the error says where. Throws nothing.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "kernels/status.h"

namespace kvasir {

StatusOr<nlohmann::json> ParseStrictJson(std::string_view text, int max_depth = 32);

}  // namespace kvasir
