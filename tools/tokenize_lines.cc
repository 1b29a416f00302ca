// tokenize_lines DIR: runs the tokenizer of a model folder over JSON lines, for tools/compare_tokenizer.py.
//
// Each input line is {"text": ...}; each output line is {"ids", "special_ids", "decoded", "skipped", "streamed"} or {"error"}.
// "streamed" is "skipped" as the incremental detokenizer gives it after an empty prompt. {"ids": [...]} is decoded only, and
// {"time": text, "repeat": n} gives {"seconds"}, the least processor time of n encodings.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>

#include "models/detokenizer.h"
#include "models/tokenizer.h"

namespace {

using Json = nlohmann::json;

Json Decoded(const kvasir::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  kvasir::IncrementalDetokenizer detokenizer(&tokenizer, true, {});
  std::string streamed;
  for (const int32_t id : ids) streamed += detokenizer.Append(id);
  streamed += detokenizer.Finish();
  return {{"decoded", tokenizer.Decode(ids, false)}, {"skipped", tokenizer.Decode(ids, true)}, {"streamed", streamed}};
}

Json Encoded(const kvasir::Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.Encode(text, false);
  const auto with_special = tokenizer.Encode(text, true);
  if (!ids.ok() || !with_special.ok()) return {{"error", kvasir::Message(ids.ok() ? with_special.status() : ids.status())}};
  Json answer = Decoded(tokenizer, *with_special);
  answer["ids"] = *ids;
  answer["special_ids"] = *with_special;
  return answer;
}

Json Timed(const kvasir::Tokenizer& tokenizer, const std::string& text, int repeat) {
  double shortest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeat; ++i) {
    const std::clock_t start = std::clock();  // of this process alone, however busy the machine
    const auto ids = tokenizer.Encode(text, true);
    if (!ids.ok()) return {{"error", kvasir::Message(ids.status())}};
    shortest = std::min(shortest, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  return {{"seconds", shortest}};
}

// Nothing where the line asks for none of the three.
Json Answer(const kvasir::Tokenizer& tokenizer, const Json& request) {
  if (!request.is_object()) return {};
  if (request.contains("text") && request["text"].is_string()) return Encoded(tokenizer, request["text"]);
  if (request.contains("time") && request["time"].is_string())
    return Timed(tokenizer, request["time"], request.value("repeat", 1));
  if (request.contains("ids") && request["ids"].is_array()) return Decoded(tokenizer, request["ids"].get<std::vector<int32_t>>());
  return {};
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
    const Json answer = Answer(**tokenizer, Json::parse(line, nullptr, false));
    if (answer.is_null()) {
      fmt::print(stderr, "not a {{\"text\"}}, {{\"ids\"}} or {{\"time\"}} line: {}\n", line);
      return 1;
    }
    fmt::print("{}\n", answer.dump());
  }
  return 0;
}
