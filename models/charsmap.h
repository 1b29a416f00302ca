// SentencePiece's precompiled charsmap: a map from short strings to their replacements, a double-array trie and a block of text.
//
// Used by the Precompiled normalizer and for SentencePiece .model files. The blob comes from a file: every index is checked while
// it is walked, and a broken one maps nothing. Immutable after Parse, thread-safe, linear in the text.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "models/json_node.h"

namespace kvasir {

class Charsmap {
 public:
  // An empty blob maps nothing.
  static StatusOr<Charsmap> Parse(std::string_view blob);
  // The blob in base64, as tokenizer.json writes it.
  static StatusOr<Charsmap> FromField(const JsonNode& node, std::string_view key);

  // As the tokenizers package: grapheme clusters below 6 bytes, else characters, become what their *shortest* mapped prefix says.
  std::string ReplaceByGrapheme(std::string_view text) const;
  // As SentencePiece: the longest mapped string at each place.
  std::string ReplaceLongest(std::string_view text) const;

 private:
  struct Found {
    size_t length = 0;  // bytes matched; 0 = nothing is
    std::string_view text;
  };
  Found Find(std::string_view text, bool longest) const;
  // The replacement of the shortest mapped prefix of `text`, else `text`.
  void AppendMapped(std::string_view text, std::string* out) const;

  struct Data {
    std::vector<uint32_t> units;
    std::string texts;                  // NUL-terminated, one after the other
    std::array<bool, 256> starts = {};  // some mapped string begins with this byte
  };
  std::shared_ptr<const Data> data_;  // null: maps nothing
};

// The bytes that standard base64 stands for; nothing when it is malformed.
StatusOr<std::string> DecodeBase64(std::string_view text);
std::string EncodeBase64(std::string_view bytes);

}  // namespace kvasir
