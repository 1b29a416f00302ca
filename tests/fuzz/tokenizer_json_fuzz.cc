// Fuzz target: any bytes as tokenizer.json (and, after a zero byte, tokenizer_config.json). What loads must encode, decode and
// stream without crashing, and streamed text must be valid UTF-8.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "models/detokenizer.h"
#include "models/tokenizer.h"
#include "models/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view json(reinterpret_cast<const char*>(data), size);
  std::string_view config;
  if (const size_t zero = json.find('\0'); zero != std::string_view::npos) {
    config = json.substr(zero + 1);
    json = json.substr(0, zero);
  }
  const auto tokenizer = kvasir::Tokenizer::Parse(json, config);
  if (!tokenizer.ok()) return 0;
  constexpr std::string_view kTexts[] = {"", "Hello  world's 123,456\n\n\tend ", " <s> </s> abc<unk>", "\u2581e\u0301 \u4f60\u597d \U0001F44D\u200d",
                                         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\xff\xfe"};
  for (const std::string_view text : kTexts) {
    const auto ids = (*tokenizer)->Encode(text, true);
    if (!ids.ok()) continue;
    kvasir::IncrementalDetokenizer detokenizer(tokenizer->get(), false, {});
    std::string streamed;
    for (const int32_t id : *ids) streamed += detokenizer.Append(id);
    streamed += detokenizer.Finish();
    if (kvasir::FirstInvalidUtf8(streamed) != std::string_view::npos) std::abort();
    if (kvasir::FirstInvalidUtf8((*tokenizer)->Decode(*ids, true)) != std::string_view::npos) std::abort();
    for (const int32_t id : *ids) (void)((*tokenizer)->TokenText(id).size() + (*tokenizer)->TokenBytes(id).size());
  }
  return 0;
}
