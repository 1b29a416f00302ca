#include "models/token_model.h"

#include <type_traits>
#include <utility>

namespace kvasir {

StatusOr<TokenModel> TokenModel::Parse(const JsonNode& node) {
  if (!node.value().is_object()) return InvalidArgument("{} must be an object", node.path());
  TokenModel result;
  std::string type = "BPE";
  const bool old_form = !node.Has("type") && node.Has("merges") && node.Has("vocab");
  if (!old_form) {
    KVASIR_ASSIGN_OR_RETURN(type, node.String("type"));
  }
  if (type == "BPE") {
    KVASIR_ASSIGN_OR_RETURN(result.model_, Bpe::Parse(node));
  } else if (type == "Unigram") {
    KVASIR_ASSIGN_OR_RETURN(result.model_, Unigram::Parse(node));
  } else if (type == "WordPiece") {
    KVASIR_ASSIGN_OR_RETURN(result.model_, WordPiece::Parse(node));
  } else {
    return InvalidArgument("{}.type '{}' is not supported; supported: BPE, Unigram, WordPiece", node.path(), type);
  }
  return result;
}

bool TokenModel::UseRawBytes() {
  Bpe* bpe = std::get_if<Bpe>(&model_);
  return bpe != nullptr && bpe->UseRawBytes();
}

Status TokenModel::Encode(std::string_view word, std::vector<int32_t>* ids) const {
  if (const Unigram* unigram = std::get_if<Unigram>(&model_)) return unigram->Encode(word, ids);
  if (const Bpe* bpe = std::get_if<Bpe>(&model_)) {
    bpe->Encode(word, ids);
  } else {
    std::get<WordPiece>(model_).Encode(word, ids);
  }
  return OkStatus();
}

int32_t TokenModel::table_size() const {
  return std::visit([](const auto& m) { return m.table_size(); }, model_);
}

int32_t TokenModel::vocab_count() const {
  return std::visit([](const auto& m) { return m.vocab_count(); }, model_);
}

std::optional<int32_t> TokenModel::TokenId(std::string_view piece) const {
  return std::visit([&](const auto& m) { return m.TokenId(piece); }, model_);
}

const std::string* TokenModel::Piece(int32_t id) const {
  return std::visit([&](const auto& m) { return m.Piece(id); }, model_);
}

std::string TokenModel::unk_token() const {
  return std::visit([](const auto& m) { return std::string(m.unk_token()); }, model_);
}

}  // namespace kvasir
