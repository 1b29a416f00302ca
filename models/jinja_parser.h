// Parses a Jinja template into its syntax tree, by the grammar of Jinja2 3.1.
//
// Used by JinjaTemplate::Parse. Nesting is bounded, so the tree can be walked recursively. include, import, extends and the other
// tags that chat templates have no use for are refused by name; so are unknown filters and tests.
#pragma once

#include <memory>
#include <string_view>

#include "kernels/status.h"
#include "models/jinja_ast.h"

namespace kvasir::jinja {

StatusOr<std::unique_ptr<Template>> ParseTemplate(std::string_view source);

}  // namespace kvasir::jinja
