// What a model folder says about its tokenizer beside tokenizer.json: special tokens by role and chat templates.
//
// Read from tokenizer_config.json (and special_tokens_map.json, chat_template.jinja, chat_template.json) by Tokenizer::Load; plain data.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "models/added_tokens.h"

namespace kvasir {

struct TokenizerConfig {
  std::optional<std::string> bos_token, eos_token, unk_token, pad_token;
  std::optional<bool> add_bos_token, add_eos_token;  // where given, they decide; else the post-processor of tokenizer.json does
  std::optional<int64_t> model_max_length;           // tokens; absent where the file holds the "very large" default
  std::string tokenizer_class;
  bool legacy = false;  // Llama: the leading space also follows special tokens; matters for SentencePiece .model files only
  std::map<std::string, std::string> chat_templates;  // by name; the unnamed one is "default"
  std::vector<AddedToken> added_tokens;               // added_tokens_decoder, by id
};

// Empty text gives an empty config.
StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view json);

// Fills roles that `config` leaves open from special_tokens_map.json.
Status AddSpecialTokensMap(std::string_view json, TokenizerConfig* config);

}  // namespace kvasir
