#include "models/tokenizer.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "models/sentencepiece_model.h"
#include "models/tiktoken.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{256} << 20;  // the largest published tokenizer.json has 35 MB

// The whole file; nothing where there is none.
StatusOr<std::optional<std::string>> ReadFile(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::optional<std::string>();
  const auto size = std::filesystem::file_size(path, error);
  if (error) return InvalidArgument("{}: {}; check that it is a readable file", path.string(), error.message());
  if (size > static_cast<uint64_t>(kMaxFileBytes)) {
    return InvalidArgument("{}: {} bytes; the limit is {}; is it the right file?", path.string(), size, kMaxFileBytes);
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  in.read(text.data(), static_cast<std::streamsize>(size));
  if (!in) return InvalidArgument("{}: cannot be read; check its permissions", path.string());
  return std::optional<std::string>(std::move(text));
}

constexpr std::string_view kSentencePieceFiles[] = {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model",
                                                    "spm.model"};

// The name of the vocabulary to read where there is no tokenizer.json; empty where there is none either.
std::string FindVocabularyFile(const std::filesystem::path& folder) {
  std::error_code error;
  for (const std::string_view name : kSentencePieceFiles) {
    if (std::filesystem::exists(folder / name, error)) return std::string(name);
  }
  std::string found;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".tiktoken") && (found.empty() || name < found)) found = name;
  }
  return found;
}

// A field that may be absent: then its node holds null.
JsonNode Optional(const nlohmann::json& root, const char* key) {
  static const nlohmann::json null;
  const auto it = root.find(key);
  return {it == root.end() ? &null : &*it, key};
}

// tokenizer_config.json and what old folders have beside or instead of it.
StatusOr<TokenizerConfig> ReadConfig(const std::filesystem::path& folder, bool has_tokenizer_json) {
  KVASIR_ASSIGN_OR_RETURN(const auto text, ReadFile(folder / "tokenizer_config.json"));
  auto config = ParseTokenizerConfig(text.value_or(""));
  if (!config.ok()) return AtPlace((folder / "tokenizer_config.json").string(), config.status());
  using Reader = Status (*)(std::string_view, TokenizerConfig*);
  for (const auto& [name, read, always] : {std::tuple<const char*, Reader, bool>{"special_tokens_map.json", AddSpecialTokensMap, true},
                                           {"added_tokens.json", AddAddedTokensFile, false},
                                           {"config.json", AddModelConfig, false}}) {
    if (has_tokenizer_json && !always) continue;
    KVASIR_ASSIGN_OR_RETURN(const auto file, ReadFile(folder / name));
    if (file) KVASIR_RETURN_IF_ERROR(AtPlace((folder / name).string(), read(*file, &*config)));
  }
  return config;
}

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& dir) {
  const std::filesystem::path folder(dir);
  KVASIR_ASSIGN_OR_RETURN(auto bytes, ReadFile(folder / "tokenizer.json"));
  std::string name = "tokenizer.json";
  KVASIR_ASSIGN_OR_RETURN(TokenizerConfig config, ReadConfig(folder, bytes.has_value()));
  if (!bytes) {
    name = FindVocabularyFile(folder);
    if (name.empty()) {
      return NotFound("{}: no tokenizer.json, no SentencePiece model ({}) and no *.tiktoken; add one of them", dir, fmt::join(kSentencePieceFiles, ", "));
    }
    KVASIR_ASSIGN_OR_RETURN(bytes, ReadFile(folder / name));
    if (!bytes) return NotFound("{}: the file is gone", (folder / name).string());
  }
  auto tokenizer = name == "tokenizer.json" ? FromTokenizerJson(*bytes, std::move(config)) : FromVocabularyFile(*bytes, name, std::move(config));
  if (!tokenizer.ok()) return AtPlace(dir, tokenizer.status());
  auto& templates = (*tokenizer)->config_.chat_templates;
  KVASIR_ASSIGN_OR_RETURN(const auto separate, ReadFile(folder / "chat_template.json"));
  if (separate) {
    auto parsed = ParseTokenizerConfig(*separate);
    if (!parsed.ok()) return AtPlace((folder / "chat_template.json").string(), parsed.status());
    for (auto& [key, source] : parsed->chat_templates) templates[key] = source;
  }
  KVASIR_ASSIGN_OR_RETURN(auto jinja, ReadFile(folder / "chat_template.jinja"));
  if (jinja) templates["default"] = *std::move(jinja);  // the newest form wins, as in transformers
  return tokenizer;
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  auto config = ParseTokenizerConfig(tokenizer_config_json);
  if (!config.ok()) return AtPlace("tokenizer_config.json", config.status());
  return FromTokenizerJson(tokenizer_json, *std::move(config));
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::ParseVocabularyFile(std::string_view bytes, std::string_view file_name,
                                                                    std::string_view tokenizer_config_json) {
  auto config = ParseTokenizerConfig(tokenizer_config_json);
  if (!config.ok()) return AtPlace("tokenizer_config.json", config.status());
  return FromVocabularyFile(bytes, file_name, *std::move(config));
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromTokenizerJson(std::string_view json, TokenizerConfig config) {
  const auto root = nlohmann::json::parse(json.begin(), json.end(), nullptr, false);
  if (root.is_discarded()) return InvalidArgument("tokenizer.json: not valid JSON; it may be cut off, download it again");
  if (!root.is_object()) return InvalidArgument("tokenizer.json: must hold a JSON object");
  return Make(root, std::move(config), "tokenizer.json", false);
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromVocabularyFile(std::string_view bytes, std::string_view file_name, TokenizerConfig config) {
  const bool tiktoken = file_name.ends_with(".tiktoken") || LooksLikeTiktoken(bytes);
  const auto root = tiktoken ? TokenizerJsonOfTiktoken(bytes, file_name, config) : TokenizerJsonOfSentencePiece(bytes, &config);
  if (!root.ok()) return AtPlace(std::string(file_name), root.status());
  auto tokenizer = Make(*root, std::move(config), file_name, tiktoken);
  // With a tokenizer.json its post-processor decides alone, as in transformers 5.
  if (tokenizer.ok()) (*tokenizer)->ApplyConfiguredEnds();
  return tokenizer;
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Make(const nlohmann::json& root, TokenizerConfig config, std::string_view file_name,
                                                       bool gaps_allowed) {
  std::unique_ptr<Tokenizer> t(new Tokenizer);
  t->config_ = std::move(config);
  t->gaps_allowed_ = gaps_allowed;
  const auto parse_parts = [&]() -> Status {
    if (!root.contains("model")) return InvalidArgument("model is missing; it must be an object of type BPE, Unigram or WordPiece");
    KVASIR_ASSIGN_OR_RETURN(t->normalizer_, Normalizer::Parse(Optional(root, "normalizer")));
    KVASIR_ASSIGN_OR_RETURN(t->pre_tokenizer_, PreTokenizer::Parse(Optional(root, "pre_tokenizer")));
    KVASIR_ASSIGN_OR_RETURN(t->model_, TokenModel::Parse(Optional(root, "model")));
    KVASIR_ASSIGN_OR_RETURN(t->decoder_, TokenDecoder::Parse(Optional(root, "decoder")));
    if (t->pre_tokenizer_.raw_bytes() && !t->model_.UseRawBytes()) t->pre_tokenizer_.ForceCharacters();
    KVASIR_RETURN_IF_ERROR(t->ParseAddedTokens(root));
    if (!Optional(root, "post_processor").value().is_null()) {
      KVASIR_RETURN_IF_ERROR(t->ParsePostProcessor(Optional(root, "post_processor"), 0));
    }
    return OkStatus();
  };
  KVASIR_RETURN_IF_ERROR(AtPlace(std::string(file_name), parse_parts()));
  for (const AddedToken& token : t->config_.added_tokens) {
    KVASIR_RETURN_IF_ERROR(AtPlace("tokenizer_config.json", t->AddToken(token, "added_tokens_decoder")));
  }
  KVASIR_RETURN_IF_ERROR(AtPlace(std::string(file_name), t->BuildMatchers()));
  return t;
}

Status Tokenizer::ParseAddedTokens(const nlohmann::json& root) {
  if (Optional(root, "added_tokens").value().is_null()) return OkStatus();
  KVASIR_ASSIGN_OR_RETURN(const auto items, JsonNode(&root, "").Array("added_tokens"));
  for (const JsonNode& item : items) {
    AddedToken token;
    KVASIR_ASSIGN_OR_RETURN(const int64_t id, item.Integer("id"));
    if (id < 0 || id > kMaxTokenId) return item.Wrong("id", fmt::format("from 0 to {}", kMaxTokenId));
    token.id = static_cast<int32_t>(id);
    KVASIR_ASSIGN_OR_RETURN(token.content, item.String("content"));
    KVASIR_ASSIGN_OR_RETURN(token.special, item.BoolOr("special", false));
    KVASIR_ASSIGN_OR_RETURN(token.normalized, item.BoolOr("normalized", !token.special));
    KVASIR_ASSIGN_OR_RETURN(token.lstrip, item.BoolOr("lstrip", false));
    KVASIR_ASSIGN_OR_RETURN(token.rstrip, item.BoolOr("rstrip", false));
    KVASIR_ASSIGN_OR_RETURN(token.single_word, item.BoolOr("single_word", false));
    KVASIR_RETURN_IF_ERROR(AddToken(token, item.path()));
  }
  return OkStatus();
}

// An added token has the id of the same entry in the vocabulary, else the next free one: the reference numbers them so whatever the
// file says. A file that says otherwise would give ids that the model was not trained with, under one reading or the other.
Status Tokenizer::AddToken(const AddedToken& token, std::string_view place) {
  if (token.content.empty()) return OkStatus();
  if (const auto it = added_by_text_.find(token.content); it != added_by_text_.end()) {
    AddedToken& known = added_[it->second];
    if (known.id != token.id) {
      return InvalidArgument("{}: added token '{}' has id {} here and id {} before; make them agree", place, token.content, token.id, known.id);
    }
    const bool special = known.special || token.special;
    known = token;
    known.special = special;
    return OkStatus();
  }
  int64_t expected = std::max(model_.vocab_count(), max_added_id_ + 1);
  if (const auto id = model_.TokenId(token.content)) expected = *id;
  if (gaps_allowed_ && model_.Piece(token.id) == nullptr && !added_by_id_.contains(token.id)) expected = token.id;
  if (expected != token.id) {
    return InvalidArgument("{}: added token '{}' has id {}, but the vocabulary makes it {}; added ids must follow the vocabulary without a gap", place,
                           token.content, token.id, expected);
  }
  added_by_text_[token.content] = added_.size();
  added_by_id_[token.id] = added_.size();
  max_added_id_ = std::max(max_added_id_, token.id);
  added_.push_back(token);
  return OkStatus();
}

Status Tokenizer::BuildMatchers() {
  table_size_ = model_.table_size();
  for (AddedToken& token : added_) {
    token.written = token.content;
    bool ignored = false;
    if (!token.normalized) continue;
    KVASIR_ASSIGN_OR_RETURN(token.written, normalizer_.Apply(token.content, &ignored));
  }
  for (const AddedToken& token : added_) table_size_ = std::max(table_size_, token.id + 1);
  special_.assign(table_size_, false);
  for (const bool special : {true, false}) {  // of two tokens written alike, the special one wins
    for (const AddedToken& token : added_) {
      if (token.special != special) continue;
      if (special) special_[token.id] = true;
      (token.normalized ? normalized_matcher_ : original_matcher_).Add(token);
    }
  }
  return OkStatus();
}

Status Tokenizer::ParsePostProcessor(const JsonNode& node, int depth) {
  if (depth > kMaxSequenceDepth) return InvalidArgument("{}: Sequences are nested deeper than {}", node.path(), kMaxSequenceDepth);
  KVASIR_ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "ByteLevel") return OkStatus();  // it moves offsets only
  if (type == "TemplateProcessing") return ParseTemplate(node);
  if (type == "BertProcessing" || type == "RobertaProcessing") return ParsePair(node);
  if (type != "Sequence") {
    return InvalidArgument("{}.type '{}' is not supported; supported: Sequence, TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing",
                           node.path(), type);
  }
  KVASIR_ASSIGN_OR_RETURN(const auto parts, node.Array("processors"));
  for (const JsonNode& part : parts) KVASIR_RETURN_IF_ERROR(ParsePostProcessor(part, depth + 1));
  return OkStatus();
}

// BertProcessing and RobertaProcessing: "cls" before the text and "sep" after it, each [token, id].
Status Tokenizer::ParsePair(const JsonNode& node) {
  for (const auto& [key, ids] : {std::pair{"cls", &prefix_ids_}, {"sep", &suffix_ids_}}) {
    KVASIR_ASSIGN_OR_RETURN(const JsonNode field, node.Field(key));
    const auto& pair = field.value();
    const bool good = pair.is_array() && pair.size() == 2 && pair[0].is_string() && pair[1].is_number_unsigned() &&
                      pair[1].get<uint64_t>() <= static_cast<uint64_t>(kMaxTokenId);
    if (!good) return node.Wrong(key, fmt::format("[token, id] with an id from 0 to {}", kMaxTokenId));
    ids->insert(ids == &prefix_ids_ ? ids->begin() : ids->end(), pair[1].get<int32_t>());
  }
  return OkStatus();
}

Status Tokenizer::ParseTemplate(const JsonNode& node) {
  KVASIR_ASSIGN_OR_RETURN(const auto parts, node.Array("single"));
  std::vector<int32_t> before, after;
  bool seen_text = false;
  for (const JsonNode& part : parts) {
    if (part.Has("Sequence")) {
      KVASIR_ASSIGN_OR_RETURN(const JsonNode sequence, part.Field("Sequence"));
      KVASIR_ASSIGN_OR_RETURN(const std::string id, sequence.String("id"));
      if (id != "A" || seen_text) return part.Wrong("Sequence", "the text A, once");
      seen_text = true;
      continue;
    }
    KVASIR_ASSIGN_OR_RETURN(const JsonNode special, part.Field("SpecialToken"));
    KVASIR_ASSIGN_OR_RETURN(const std::string name, special.String("id"));
    KVASIR_ASSIGN_OR_RETURN(const JsonNode table, node.Field("special_tokens"));
    KVASIR_ASSIGN_OR_RETURN(const JsonNode entry, table.Field(name));
    KVASIR_ASSIGN_OR_RETURN(const auto ids, entry.Array("ids"));
    for (const JsonNode& id : ids) {
      const auto& value = id.value();
      if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId)) {
        return InvalidArgument("{} must be a token id from 0 to {}", id.path(), kMaxTokenId);
      }
      (seen_text ? after : before).push_back(value.get<int32_t>());
    }
  }
  if (!seen_text) return node.Wrong("single", "a list that contains {\"Sequence\": {\"id\": \"A\"}}");
  prefix_ids_.insert(prefix_ids_.begin(), before.begin(), before.end());
  suffix_ids_.insert(suffix_ids_.end(), after.begin(), after.end());
  return OkStatus();
}

// add_bos_token and add_eos_token of tokenizer_config.json decide where they are given.
void Tokenizer::ApplyConfiguredEnds() {
  const auto apply = [](const std::optional<bool>& wanted, std::optional<int32_t> id, std::vector<int32_t>* ids, bool front) {
    if (!wanted || !id) return;
    const auto it = std::find(ids->begin(), ids->end(), *id);
    if (*wanted && it == ids->end()) ids->insert(front ? ids->begin() : ids->end(), *id);
    if (!*wanted && it != ids->end()) ids->erase(it);
  };
  apply(config_.add_bos_token, bos_id(), &prefix_ids_, true);
  apply(config_.add_eos_token, eos_id(), &suffix_ids_, false);
}

const std::string* Tokenizer::Piece(int32_t id) const {
  if (const auto it = added_by_id_.find(id); it != added_by_id_.end()) return &added_[it->second].written;
  return model_.Piece(id);
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view piece) const {
  if (const auto it = added_by_text_.find(piece); it != added_by_text_.end()) return added_[it->second].id;
  return model_.TokenId(piece);
}

std::optional<int32_t> Tokenizer::RoleId(const std::optional<std::string>& token) const {
  if (!token || token->empty()) return std::nullopt;
  return TokenId(*token);
}

StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  if (const size_t bad = FirstInvalidUtf8(text); bad != std::string_view::npos) {
    return InvalidArgument("the text is not valid UTF-8 at byte {} (0x{:02x}); send UTF-8", bad, static_cast<unsigned char>(text[bad]));
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 4);
  if (add_special_tokens) ids = prefix_ids_;
  std::vector<TextSegment> segments, parts;
  original_matcher_.Cut(text, &segments);
  for (const TextSegment& segment : segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    bool at_start = segment.text.data() == text.data();
    std::string normalized;
    std::string_view current = segment.text;
    if (!normalizer_.empty()) {
      bool start_moved = false;
      KVASIR_ASSIGN_OR_RETURN(normalized, normalizer_.Apply(segment.text, &start_moved, at_start));
      current = normalized;
      at_start = at_start && !start_moved;
    }
    parts.clear();
    normalized_matcher_.Cut(current, &parts);
    for (const TextSegment& part : parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        KVASIR_RETURN_IF_ERROR(EncodeSegment(part.text, at_start && part.text.data() == current.data(), &ids));
      }
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), suffix_ids_.begin(), suffix_ids_.end());
  return ids;
}

Status Tokenizer::EncodeSegment(std::string_view segment, bool at_start, std::vector<int32_t>* ids) const {
  std::vector<kvasir::Piece> pieces;
  std::deque<std::string> storage;
  KVASIR_RETURN_IF_ERROR(pre_tokenizer_.Split({segment, at_start}, &pieces, &storage));
  for (const auto& piece : pieces) KVASIR_RETURN_IF_ERROR(model_.Encode(piece.text, ids));
  return OkStatus();
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    const std::string* piece = Piece(id);
    if (piece != nullptr && !(skip_special_tokens && IsSpecial(id))) tokens.push_back(*piece);
  }
  return decoder_.Decode(std::move(tokens));
}

std::string Tokenizer::TokenText(int32_t id) const {
  const std::string* piece = Piece(id);
  return piece == nullptr ? std::string() : *piece;
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  const std::string* piece = Piece(id);
  return piece == nullptr ? std::string() : decoder_.DecodeOne(*piece, false);
}

}  // namespace kvasir
