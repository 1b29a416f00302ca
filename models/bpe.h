// Byte-pair encoding: one word of text to token ids, by the merges of tokenizer.json.
//
// Used by TokenModel. Immutable after Parse apart from one atomic byte per token that remembers whether its text encodes to itself;
// Encode is thread-safe. A word of n symbols takes O(n log n): the lowest-ranked merge is found by a scan for short words and by a
// heap over a linked list for long ones. Both apply the same merges in the same order.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/status.h"
#include "models/json_node.h"
#include "models/text_map.h"

namespace kvasir {

inline constexpr int64_t kMaxTokenId = (int64_t{1} << 22) - 1;  // four million; the largest published vocabulary has 262,144

// Reads node.vocab, an object of piece: id, for the models that write it so. The keys of *ids refer to *pieces, which is by id.
Status ReadVocabulary(const JsonNode& node, std::vector<std::unique_ptr<const std::string>>* pieces, TextViewMap<int32_t>* ids);

class Bpe {
 public:
  // `node` is the value of "model".
  static StatusOr<Bpe> Parse(const JsonNode& node);

  // Words will be given as raw bytes instead of characters of the byte-level alphabet. False, and nothing changes, when the vocabulary
  // lacks one of the 256 characters, or a word prefix or suffix is in use.
  bool UseRawBytes();

  // Appends the ids of `word`.
  void Encode(std::string_view word, std::vector<int32_t>* ids) const;

  int32_t table_size() const { return static_cast<int32_t>(pieces_.size()); }  // largest id + 1
  int32_t vocab_count() const { return static_cast<int32_t>(vocab_.size()); }  // entries, as HF counts them
  std::optional<int32_t> TokenId(std::string_view piece) const;
  const std::string* Piece(int32_t id) const;  // null where the vocabulary has a hole
  bool byte_fallback() const { return byte_fallback_; }
  const std::string& unk_token() const { return unk_token_; }

 private:
  struct Merge {
    uint32_t rank = 0;
    int32_t id = -1;
  };

  Status ParseMerges(const JsonNode& node);
  Status AddMerge(const JsonNode& item, std::string_view left, std::string_view right, uint32_t rank);
  void PrepareCharacters();

  const Merge* FindMerge(int32_t left, int32_t right) const;
  void EncodeWord(std::string_view word, std::vector<int32_t>* ids) const;     // whole-word shortcut, then merges
  void MergeWord(std::string_view word, std::vector<int32_t>* ids) const;      // merges only
  void CharacterSymbols(std::string_view word, std::vector<int32_t>* out) const;  // the symbols before any merge
  void MergeShort(std::vector<int32_t>* symbols) const;
  void MergeLong(std::vector<int32_t>* symbols) const;
  std::optional<int32_t> WholeWord(std::string_view word) const;

  std::vector<std::unique_ptr<const std::string>> pieces_;       // by id
  TextViewMap<int32_t> vocab_;        // views into pieces_
  TextMap<int32_t> raw_vocab_;         // by the bytes a piece spells, when raw_bytes_
  absl::flat_hash_map<uint64_t, Merge> merges_;                  // by left id << 32 | right id
  std::unique_ptr<std::atomic<uint8_t>[]> whole_;                // by id: 0 not known yet, 1 encodes to itself, 2 does not
  std::array<int32_t, 256> raw_ids_;                             // id of a byte's character, when raw_bytes_
  std::array<int32_t, 128> ascii_ids_;                           // id of an ASCII character, -1 = none
  std::array<int32_t, 256> fallback_ids_;                        // id of <0xNN>, -1 = none
  std::string unk_token_, prefix_, suffix_;
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false, byte_fallback_ = false, ignore_merges_ = false;
  bool raw_bytes_ = false;
  bool cut_at_metaspace_ = false;  // no merge joins something to a U+2581 on its right, so text may be encoded word by word
};

}  // namespace kvasir
