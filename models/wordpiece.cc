#include "models/wordpiece.h"

#include <algorithm>

#include "models/bpe.h"
#include "models/unicode.h"

namespace kvasir {

StatusOr<WordPiece> WordPiece::Parse(const JsonNode& node) {
  WordPiece model;
  KVASIR_ASSIGN_OR_RETURN(model.unk_token_, node.StringOr("unk_token", "[UNK]"));
  KVASIR_ASSIGN_OR_RETURN(model.prefix_, node.StringOr("continuing_subword_prefix", "##"));
  if (node.Has("max_input_chars_per_word")) {
    KVASIR_ASSIGN_OR_RETURN(model.max_characters_, node.Integer("max_input_chars_per_word"));
    if (model.max_characters_ < 0) return node.Wrong("max_input_chars_per_word", "0 or more");
  }
  KVASIR_RETURN_IF_ERROR(ReadVocabulary(node, &model.pieces_, &model.vocab_));
  for (const auto& [piece, id] : model.vocab_) model.longest_ = std::max(model.longest_, piece.size());
  const auto unk = model.TokenId(model.unk_token_);
  if (!unk) return node.Wrong("unk_token", "an entry of the vocabulary");
  model.unk_id_ = *unk;
  return model;
}

std::optional<int32_t> WordPiece::TokenId(std::string_view piece) const {
  const auto it = vocab_.find(piece);
  if (it == vocab_.end()) return std::nullopt;
  return it->second;
}

const std::string* WordPiece::Piece(int32_t id) const {
  return id < 0 || static_cast<size_t>(id) >= pieces_.size() ? nullptr : pieces_[id].get();
}

void WordPiece::Encode(std::string_view word, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  const auto characters =
      std::count_if(word.begin(), word.end(), [](char b) { return (static_cast<uint8_t>(b) & 0xC0) != 0x80; });
  const size_t before = ids->size();
  size_t begin = 0;
  std::string continued;
  while (characters <= max_characters_ && begin < word.size()) {
    size_t end = std::min(word.size(), begin + longest_);
    while (end < word.size() && end > begin && (static_cast<uint8_t>(word[end]) & 0xC0) == 0x80) --end;
    std::optional<int32_t> id;
    for (; end > begin; end = PreviousCharacter(word, end)) {
      if (begin == 0) {
        id = TokenId(word.substr(0, end));
      } else {
        continued = prefix_;
        continued += word.substr(begin, end - begin);
        id = TokenId(continued);
      }
      if (id) break;
    }
    if (!id) break;
    ids->push_back(*id);
    begin = end;
  }
  if (begin == word.size()) return;
  ids->resize(before);
  ids->push_back(unk_id_);
}

}  // namespace kvasir
