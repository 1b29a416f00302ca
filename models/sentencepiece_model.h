// SentencePiece .model files as tokenizers.
//
// Used by Tokenizer::Load where a folder has no tokenizer.json. The result is the tokenizer.json of the same tokenizer, which
// then goes through the one parser. Which components it has follows transformers 5: those of the folder's tokenizer class (Llama,
// Gemma, T5), else the general ones; where the folder brings its own tokenizer code (auto_map), SentencePiece's own rules, which
// is what such code runs. Classes that rearrange the vocabulary are refused by name.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/status.h"
#include "models/tokenizer_config.h"

namespace kvasir {

// BPE and UNIGRAM models; WORD and CHAR are refused. Fills the roles (bos_token, ...) that *config leaves open.
StatusOr<nlohmann::json> TokenizerJsonOfSentencePiece(std::string_view model, TokenizerConfig* config);

}  // namespace kvasir
