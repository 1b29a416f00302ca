// The model of tokenizer.json: what makes ids of one word. BPE, Unigram or WordPiece behind one face.
//
// Used by Tokenizer. Immutable after Parse, thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/status.h"
#include "models/bpe.h"
#include "models/json_node.h"
#include "models/unigram.h"
#include "models/wordpiece.h"

namespace kvasir {

class TokenModel {
 public:
  // `node` is the value of "model". An old file without model.type is BPE.
  static StatusOr<TokenModel> Parse(const JsonNode& node);

  // As Bpe::UseRawBytes; the other models have no such form.
  bool UseRawBytes();
  Status Encode(std::string_view word, std::vector<int32_t>* ids) const;

  int32_t table_size() const;   // largest id + 1
  int32_t vocab_count() const;  // entries, as HF counts them
  std::optional<int32_t> TokenId(std::string_view piece) const;
  const std::string* Piece(int32_t id) const;  // null where the vocabulary has a hole
  std::string unk_token() const;

 private:
  std::variant<Bpe, Unigram, WordPiece> model_;
};

}  // namespace kvasir
