// Fuzzes the template interpreter. The input is a template, a NUL byte, and its context as JSON (a fixed one when that is missing
// or not JSON). No input may crash, leak, overrun, or take more than about ten milliseconds under these budgets.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "models/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 4096) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t split = input.find('\0');
  std::string source(input.substr(0, split));
  static const nlohmann::ordered_json kDefault = nlohmann::ordered_json::parse(R"({"messages": [
      {"role": "system", "content": "S"}, {"role": "user", "content": "Hé"},
      {"role": "assistant", "content": null, "tool_calls": [{"id": "123456789", "function": {"name": "f", "arguments": {"a": 1.5}}}]}],
      "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
      "s": "Hello, Wörld", "n": 3, "l": [1, "a", null], "d": {"k": [true]}, "add_generation_prompt": true})");
  nlohmann::ordered_json context = kDefault;
  if (split != std::string_view::npos) {
    nlohmann::ordered_json given = nlohmann::ordered_json::parse(input.substr(split + 1), nullptr, false);
    if (given.is_object()) context = std::move(given);
  }
  kvasir::JinjaLimits limits;
  limits.steps = 2000;
  limits.output_bytes = 64 << 10;
  limits.memory_bytes = 256 << 10;
  limits.depth = 16;
  const auto parsed = kvasir::JinjaTemplate::Parse(std::move(source));
  if (!parsed.ok()) return 0;
  (*parsed)->IteratesMember("content");
  const auto text = (*parsed)->Render(context, limits, 1735689600);
  if (text.ok() && text->size() > limits.output_bytes) __builtin_trap();
  if (!text.ok() && text.status().code() != kvasir::StatusCode::kInvalidArgument) __builtin_trap();
  return 0;
}
