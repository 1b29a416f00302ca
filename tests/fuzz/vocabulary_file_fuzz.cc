// Fuzz target: any bytes as a SentencePiece .model or a tiktoken vocabulary. What loads must encode and decode without crashing.
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "models/tokenizer.h"
#include "models/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  // The last byte, which says nothing in either format as often as not, chooses whose components stand around a SentencePiece
  // model.
  constexpr std::string_view kConfigs[] = {
      R"({"auto_map": {}})", R"({"tokenizer_class": "LlamaTokenizer", "legacy": true, "add_bos_token": true})",
      R"({"tokenizer_class": "GemmaTokenizer"})", R"({"tokenizer_class": "T5Tokenizer", "extra_ids": 3})"};
  const std::string_view chosen = kConfigs[size == 0 ? 0 : data[size - 1] % 4];
  constexpr std::string_view kModel = "tokenizer.model";
  for (const auto& [name, config] :
       {std::pair{kModel, std::string_view()}, {kModel, chosen}, {std::string_view("gpt2.tiktoken"), std::string_view()}}) {
    const auto tokenizer = kvasir::Tokenizer::ParseVocabularyFile(bytes, name, config);
    if (!tokenizer.ok()) continue;
    for (const std::string_view text :
         {"", "Hello  world's 123\n\n end ", "<s> \u2581e\u0301 \u4f60\u597d \U0001F44D\u200d\uff21\u2460", "\xff"}) {
      const auto ids = (*tokenizer)->Encode(text, true);
      if (!ids.ok()) continue;
      if (kvasir::FirstInvalidUtf8((*tokenizer)->Decode(*ids, false)) != std::string_view::npos) std::abort();
    }
  }
  return 0;
}
