// WordPiece: one word to token ids by taking the longest piece of the vocabulary again and again, as BERT does.
//
// Used by TokenModel. A word that cannot be covered, or is longer than max_input_chars_per_word, is the unknown token. Immutable
// after Parse, thread-safe. O(length of the word x length of the longest piece).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "models/json_node.h"
#include "models/text_map.h"

namespace kvasir {

class WordPiece {
 public:
  static StatusOr<WordPiece> Parse(const JsonNode& node);  // the value of "model"

  void Encode(std::string_view word, std::vector<int32_t>* ids) const;

  int32_t table_size() const { return static_cast<int32_t>(pieces_.size()); }
  int32_t vocab_count() const { return static_cast<int32_t>(vocab_.size()); }
  std::optional<int32_t> TokenId(std::string_view piece) const;
  const std::string* Piece(int32_t id) const;
  const std::string& unk_token() const { return unk_token_; }

 private:
  std::vector<std::unique_ptr<const std::string>> pieces_;  // by id
  TextViewMap<int32_t> vocab_;                              // views into pieces_
  size_t longest_ = 0;                                      // bytes of the longest piece
  std::string unk_token_, prefix_;
  int32_t unk_id_ = -1;
  int64_t max_characters_ = 100;
};

}  // namespace kvasir
