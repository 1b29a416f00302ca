// What a model folder says about its tokenizer beside tokenizer.json: special tokens by role and chat templates.
//
// Read from tokenizer_config.json (and special_tokens_map.json, chat_template.jinja, chat_template.json) by Tokenizer::Load;
// plain data.
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
  std::optional<bool> add_bos_token, add_eos_token;  // only without tokenizer.json, whose post-processor decides
  std::optional<int64_t> model_max_length;           // tokens; absent where the file holds the "very large" default
  std::string tokenizer_class;
  std::map<std::string, std::string> chat_templates;  // by name; the unnamed one is "default"
  std::vector<AddedToken> added_tokens;               // added_tokens_decoder or added_tokens.json, by id
  bool lists_added_tokens = false;                    // there is an added_tokens_decoder

  // What only matters where there is no tokenizer.json.
  bool legacy = false;        // Llama: the leading space also follows special tokens
  bool has_auto_map = false;  // the folder brings tokenizer code of its own
  std::string model_type;     // of config.json
  std::optional<bool> add_prefix_space;
  int64_t extra_ids = 100;                        // T5
  std::vector<std::string> extra_special_tokens;  // extra_ or additional_special_tokens
};

// Empty text gives an empty config.
StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view json);

// The roles of special_tokens_map.json: those that `config` leaves open; where it lists no added tokens (old folders), all, as in
// transformers.
Status AddSpecialTokensMap(std::string_view json, TokenizerConfig* config);

// The tokens of added_tokens.json, {"text": id}: what old folders have instead of added_tokens_decoder, which makes this do
// nothing. After AddSpecialTokensMap: a token with a role is special.
Status AddAddedTokensFile(std::string_view json, TokenizerConfig* config);

// The model type of config.json, and the tokenizer class where tokenizer_config.json names none.
Status AddModelConfig(std::string_view json, TokenizerConfig* config);

}  // namespace kvasir
