// tokenize_lines DIR: runs the tokenizer of a model folder over JSON lines, for tools/compare_tokenizer.py.
//
// Each input line is {"text": ...}; each output line is {"ids", "special_ids", "decoded", "skipped", "streamed"} or {"error"}.
// "streamed" is "skipped" as the incremental detokenizer gives it after an empty prompt.
#include <fmt/format.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "models/detokenizer.h"
#include "models/tokenizer.h"

namespace {

nlohmann::json RunLine(const kvasir::Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.Encode(text, false);
  const auto with_special = tokenizer.Encode(text, true);
  if (!ids.ok() || !with_special.ok()) return {{"error", kvasir::Message(ids.ok() ? with_special.status() : ids.status())}};
  kvasir::IncrementalDetokenizer detokenizer(&tokenizer, true, {});
  std::string streamed;
  for (const int32_t id : *with_special) streamed += detokenizer.Append(id);
  streamed += detokenizer.Finish();
  return {{"ids", *ids},
          {"special_ids", *with_special},
          {"decoded", tokenizer.Decode(*with_special, false)},
          {"skipped", tokenizer.Decode(*with_special, true)},
          {"streamed", streamed}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: tokenize_lines DIR < texts.jsonl\n");
    return 2;
  }
  const auto tokenizer = kvasir::Tokenizer::Load(argv[1]);
  if (!tokenizer.ok()) {
    fmt::print(stderr, "{}\n", kvasir::Message(tokenizer.status()));
    return 1;
  }
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto request = nlohmann::json::parse(line, nullptr, false);
    if (!request.is_object() || !request.contains("text") || !request["text"].is_string()) {
      fmt::print(stderr, "not a {{\"text\": ...}} line: {}\n", line);
      return 1;
    }
    fmt::print("{}\n", RunLine(**tokenizer, request["text"]).dump());
  }
  return 0;
}
