// Added tokens: the strings that tokenizer.json cuts out of text before BPE, such as "<|im_end|>".
//
// Used by Tokenizer. Matching is leftmost-longest through a trie (models have up to 6,000 of them), with the flags lstrip,
// rstrip and single_word of the reference. Immutable after construction, thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace kvasir {

struct AddedToken {
  int32_t id = -1;
  std::string content;       // as the file writes it
  std::string written;       // as it stands in the text it is sought in, and as it is decoded
  bool special = false;      // skipped by Decode(skip_special_tokens)
  bool normalized = false;   // sought in the normalized text, else in the original
  bool lstrip = false;       // takes the white space on its left
  bool rstrip = false;       // ... on its right
  bool single_word = false;  // not inside a word
};

// A part of a text: an added token, or (id < 0) text between them.
struct TextSegment {
  std::string_view text;
  int32_t id = -1;
};

class AddedTokenMatcher {
 public:
  // Seeks token.written; of two tokens written alike, the first wins.
  void Add(const AddedToken& token);

  bool empty() const { return tokens_.empty(); }

  // Appends the segments of `text`, none of them empty.
  void Cut(std::string_view text, std::vector<TextSegment>* segments) const;

 private:
  // Index into tokens_ and length of the longest token that starts at text[at], or -1.
  int LongestAt(std::string_view text, size_t at, size_t* length) const;

  std::vector<AddedToken> tokens_;
  std::vector<int32_t> terminal_ = {-1};                 // by trie node: index into tokens_
  absl::flat_hash_map<uint64_t, uint32_t> children_;     // node << 8 | byte -> node
  std::array<uint32_t, 256> root_ = {};                  // node after the first byte, 0 = none
};

}  // namespace kvasir
