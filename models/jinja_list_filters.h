// The filters that work on sequences; part of the filter table in jinja_filters.cc.
#pragma once

#include <span>

#include "models/jinja_builtins.h"

namespace kvasir::jinja {

std::span<const FilterSpec> ListFilters();

}  // namespace kvasir::jinja
