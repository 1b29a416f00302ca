// Renders Jinja programs from standard input: one JSON object {"template": ..., "context": {...}, "now": seconds} per line;
// prints
// {"text": ...} or {"error": ...} for each. tools/compare_jinja.py compares its answers with Jinja2's.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "models/jinja.h"

int main() {
  std::ios::sync_with_stdio(false);
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto in = nlohmann::ordered_json::parse(line, nullptr, false);
    nlohmann::ordered_json out;
    if (!in.is_object() || !in.contains("template") || !in["template"].is_string()) {
      out["error"] = "bad input line";
    } else {
      const auto parsed = kvasir::JinjaTemplate::Parse(in["template"].get<std::string>());
      const auto context = in.value("context", nlohmann::ordered_json::object());
      const kvasir::StatusOr<std::string> text =
          parsed.ok() ? (*parsed)->Render(context, {}, in.value("now", int64_t{0})) : parsed.status();
      if (text.ok()) {
        out["text"] = *text;
      } else {
        out["error"] = kvasir::Message(text.status());
      }
    }
    std::cout << out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
  }
  return 0;
}
