// Unigram: text to token ids by the most probable cut into pieces (Viterbi), as T5, XLM-R and other SentencePiece vocabularies
// do.
//
// Used by TokenModel. The scores are summed and compared exactly as in the tokenizers package: doubles, from the left, the first
// of equal sums wins; a character without a piece costs the lowest score less 10, and neighbouring unknown characters become one.
// Immutable after Make, thread-safe. O(length of the text x length of the longest piece).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/status.h"
#include "models/json_node.h"
#include "models/text_map.h"

namespace kvasir {

class Unigram {
 public:
  struct Entry {
    std::string piece;
    double score = 0.0;
    bool in_text = true;  // false: never found in a text (SentencePiece's control and byte pieces)
  };
  // `node` is the value of "model".
  static StatusOr<Unigram> Parse(const JsonNode& node);

  // Appends the ids of `text`. InvalidArgument where the text needs an unknown token and the vocabulary names none.
  Status Encode(std::string_view text, std::vector<int32_t>* ids) const;

  int32_t table_size() const { return static_cast<int32_t>(entries_.size()); }
  int32_t vocab_count() const { return static_cast<int32_t>(entries_.size()); }
  std::optional<int32_t> TokenId(std::string_view piece) const;
  const std::string* Piece(int32_t id) const;
  std::string unk_token() const { return unk_id_ < 0 ? std::string() : entries_[unk_id_].piece; }

 private:
  struct Step {  // the best way to reach a byte of the text
    double score = 0.0;
    uint32_t length = 0;  // of the last piece; 0 = not reached
    int32_t id = -1;
  };
  void Build();
  Status AppendIds(std::string_view piece, int32_t id, std::vector<int32_t>* ids) const;

  std::vector<Entry> entries_;                        // by id
  TextMap<int32_t> ids_;                              // of pieces written twice, the last
  std::vector<int32_t> terminal_ = {-1};              // by trie node: the id that ends there
  absl::flat_hash_map<uint64_t, uint32_t> children_;  // node << 8 | byte -> node
  std::vector<uint32_t> pairs_;                       // node after the first two bytes, 0 = none
  std::array<uint32_t, 256> root_ = {};
  std::array<int32_t, 256> fallback_ids_;  // id of <0xNN>, -1 = none
  double unk_score_ = 0.0;
  int32_t unk_id_ = -1;
  bool byte_fallback_ = false;
  bool single_precision_ = false;  // sums are rounded to floats: SentencePiece's own arithmetic decides between equal cuts
};

}  // namespace kvasir
