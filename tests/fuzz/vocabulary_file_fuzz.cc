// Fuzz target: any bytes as a SentencePiece .model or a tiktoken vocabulary. What loads must encode and decode without crashing.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "models/tokenizer.h"
#include "models/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const std::string_view name : {"tokenizer.model", "gpt2.tiktoken"}) {
    const auto tokenizer = kvasir::Tokenizer::ParseVocabularyFile(bytes, name);
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
