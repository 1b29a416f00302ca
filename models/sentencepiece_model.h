// SentencePiece .model files: a small protobuf with pieces, scores and how text is normalized.
//
// Used by Tokenizer::Load where a folder has no tokenizer.json. The file is read by hand: every length is checked against what is
// left, unknown fields are skipped, nesting is two deep. The result is the tokenizer.json of the same tokenizer, which then goes
// through the one parser; its normalizer is SentencePieceText, SentencePiece's own rules.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/status.h"
#include "models/tokenizer_config.h"

namespace kvasir {

// BPE and UNIGRAM models; WORD and CHAR are refused. `config` says whether the leading space also follows special tokens
// ("legacy").
StatusOr<nlohmann::json> TokenizerJsonOfSentencePiece(std::string_view model, const TokenizerConfig& config);

}  // namespace kvasir
