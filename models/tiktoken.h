// tiktoken-style vocabularies: lines of "base64-of-the-bytes rank", as Llama-3's tokenizer.model, qwen.tiktoken and OpenAI's
// files.
//
// Used by Tokenizer::Load where a folder has no tokenizer.json. Such a file holds no pattern and no special tokens: the pattern
// comes from the family (file name, then tokenizer_class), special tokens from added_tokens_decoder of tokenizer_config.json. The
// result is the tokenizer.json of the same tokenizer, which then goes through the one parser.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/status.h"
#include "models/tokenizer_config.h"

namespace kvasir {

// The first line looks like one: tokenizer.model may hold either format.
bool LooksLikeTiktoken(std::string_view bytes);

StatusOr<nlohmann::json> TokenizerJsonOfTiktoken(std::string_view bytes, std::string_view file_name,
                                                 const TokenizerConfig& config);

}  // namespace kvasir
