// Tokenizer: text to token ids and back, exactly as Hugging Face's tokenizers package does for the same tokenizer.json.
//
// Used by the server (requests, chat), the command line and the tests. Encode runs: added tokens found in the original text ->
// normalizer -> added tokens found in the normalized text -> pre-tokenizer -> model (BPE, Unigram, WordPiece) -> special tokens of the post-processor.
// Immutable after loading; every method is thread-safe. Encode takes O(n log n) in the length of the text, whatever the text.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/status.h"
#include "models/added_tokens.h"
#include "models/normalizer.h"
#include "models/pretokenizer.h"
#include "models/text_map.h"
#include "models/token_decoder.h"
#include "models/token_model.h"
#include "models/tokenizer_config.h"

namespace kvasir {

class Tokenizer {
 public:
  // Reads tokenizer.json in `dir`, or where there is none a SentencePiece .model or a tiktoken vocabulary (then also
  // added_tokens.json and config.json), and, where present, tokenizer_config.json, special_tokens_map.json, chat_template.jinja and
  // chat_template.json. Anything that is not supported is refused with its place and name.
  static StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& dir);
  static StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json = {});

  // The bytes of a SentencePiece .model or a tiktoken vocabulary; `file_name` tells tiktoken families apart.
  static StatusOr<std::unique_ptr<Tokenizer>> ParseVocabularyFile(std::string_view bytes, std::string_view file_name,
                                                                  std::string_view tokenizer_config_json = {});

  // InvalidArgument, naming the byte, when `text` is not valid UTF-8. With add_special_tokens the ids of the post-processor (often
  // the beginning-of-text token) are put around. Special tokens written in the text are always recognised.
  StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special_tokens) const;

  // Valid UTF-8; what does not decode becomes U+FFFD. Ids outside the vocabulary are skipped. Nothing is "cleaned up".
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  std::string TokenText(int32_t id) const;   // the piece as the vocabulary writes it; empty for an unknown id
  std::string TokenBytes(int32_t id) const;  // the bytes it stands for inside a text; may be part of a character

  int32_t vocab_size() const { return table_size_; }  // largest id + 1, added tokens included
  std::optional<int32_t> TokenId(std::string_view piece) const;
  bool IsSpecial(int32_t id) const { return id >= 0 && id < table_size_ && special_[id]; }
  bool IsKnown(int32_t id) const { return Piece(id) != nullptr; }

  std::optional<int32_t> bos_id() const { return RoleId(config_.bos_token); }
  std::optional<int32_t> eos_id() const { return RoleId(config_.eos_token); }
  std::optional<int32_t> unk_id() const { return RoleId(unk_token()); }
  std::optional<int32_t> pad_id() const { return RoleId(config_.pad_token); }
  std::string bos_token() const { return config_.bos_token.value_or(""); }  // empty where there is none
  std::string eos_token() const { return config_.eos_token.value_or(""); }
  std::string unk_token() const { return config_.unk_token.value_or(model_.unk_token()); }
  std::string pad_token() const { return config_.pad_token.value_or(""); }
  // Encode(add_special_tokens = true) puts the beginning-of-text token first.
  bool adds_bos() const { return !prefix_ids_.empty() && bos_id() == prefix_ids_.front(); }
  std::optional<int64_t> model_max_length() const { return config_.model_max_length; }
  const std::map<std::string, std::string>& chat_templates() const { return config_.chat_templates; }  // "default" -> source

 private:
  friend class IncrementalDetokenizer;
  Tokenizer() = default;

  static StatusOr<std::unique_ptr<Tokenizer>> FromTokenizerJson(std::string_view json, TokenizerConfig config);
  static StatusOr<std::unique_ptr<Tokenizer>> FromVocabularyFile(std::string_view bytes, std::string_view file_name, TokenizerConfig config);
  static StatusOr<std::unique_ptr<Tokenizer>> Make(const nlohmann::json& root, TokenizerConfig config, std::string_view file_name, bool gaps_allowed);
  Status ParseAddedTokens(const nlohmann::json& root);
  Status AddToken(const AddedToken& token, std::string_view place);
  Status BuildMatchers();
  Status ParsePostProcessor(const JsonNode& node, int depth);
  Status ParsePair(const JsonNode& node);
  Status ParseTemplate(const JsonNode& node);
  void ApplyConfiguredEnds();

  const std::string* Piece(int32_t id) const;  // null for an unknown id
  std::optional<int32_t> RoleId(const std::optional<std::string>& token) const;
  Status EncodeSegment(std::string_view segment, bool at_start, std::vector<int32_t>* ids) const;

  TokenizerConfig config_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  TokenModel model_;
  TokenDecoder decoder_;
  std::vector<AddedToken> added_;                            // in the order of the file
  TextMap<size_t> added_by_text_;  // index into added_
  absl::flat_hash_map<int32_t, size_t> added_by_id_;
  AddedTokenMatcher original_matcher_, normalized_matcher_;
  std::vector<bool> special_;                     // by id
  std::vector<int32_t> prefix_ids_, suffix_ids_;  // what the post-processor puts around a text
  int32_t table_size_ = 0;
  int32_t max_added_id_ = -1;
  bool gaps_allowed_ = false;  // added ids need not follow the vocabulary: tiktoken's files leave holes
};

}  // namespace kvasir
