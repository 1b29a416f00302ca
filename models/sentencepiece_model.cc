#include "models/sentencepiece_model.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "models/charsmap.h"
#include "models/sentencepiece_model_file.h"
#include "models/text_map.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

using Json = nlohmann::json;

// Whose components stand around the model.
enum class Rules { kOwn, kGeneral, kLlama, kGemma, kT5 };

// Model types for which transformers 5 uses the general components whatever class the folder names.
constexpr std::string_view kGeneralTypes[] = {"arctic",   "ernie4_5",       "internlm2",  "internlm3", "jamba",
                                              "minicpm3", "ministral",      "ministral3", "mistral",   "mistral3",
                                              "mixtral",  "mistral_large4", "nemotron",   "phi3",      "phimoe",
                                              "pixtral",  "granite",        "granitemoe", "persimmon", "stablelm"};
constexpr std::string_view kGemmaTypes[] = {"gemma",   "gemma2",       "gemma3",          "gemma3_text",
                                            "gemma3n", "gemma3n_text", "recurrent_gemma", "t5gemma"};
constexpr std::string_view kT5Types[] = {"t5", "mt5", "switch_transformers"};

// Classes whose ids are not those of the file.
constexpr std::string_view kRearranging[] = {
    "Albert", "Barthez", "BigBird",  "Camembert", "CodeLlama",   "DebertaV2",  "FNet",  "LayoutXLM", "MBart", "MBart50",
    "Nllb",   "Pegasus", "Reformer", "RemBert",   "SeamlessM4T", "XLMRoberta", "XLNet", "XGLM",      "Udop"};

template <size_t n>
bool Contains(const std::string_view (&list)[n], std::string_view name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

StatusOr<Rules> ChooseRules(const TokenizerConfig& config) {
  if (config.has_auto_map) return Rules::kOwn;
  if (Contains(kGeneralTypes, config.model_type)) return Rules::kGeneral;
  std::string_view name = config.tokenizer_class;
  if (name.ends_with("Fast")) name.remove_suffix(4);
  if (name.empty()) {
    if (Contains(kGemmaTypes, config.model_type)) return Rules::kGemma;
    return Contains(kT5Types, config.model_type) ? Rules::kT5 : Rules::kGeneral;
  }
  if (name == "LlamaTokenizer") return Rules::kLlama;
  if (name == "GemmaTokenizer") return Rules::kGemma;
  if (name == "T5Tokenizer") return Rules::kT5;
  if (name.ends_with("Tokenizer") && Contains(kRearranging, name.substr(0, name.size() - 9))) {
    return InvalidArgument(
        "tokenizer_class {} rearranges the vocabulary of its SentencePiece model, which is not supported; add tokenizer.json "
        "(transformers' save_pretrained makes it)",
        config.tokenizer_class);
  }
  return Rules::kGeneral;
}

// Every way to make a piece of two others, in SentencePiece's order: the best score first; of equal ones the longest left part.
Json MergesByScore(const SpModel& model) {
  struct Merge {
    float score;
    uint32_t left;  // bytes
    uint32_t piece;
  };
  TextViewMap<uint32_t> ids;
  const auto joins = [](const SpPiece& piece) {
    return piece.type == SpPiece::kNormal || piece.type == SpPiece::kUnused || piece.type == SpPiece::kUserDefined;
  };
  for (uint32_t i = 0; i < model.pieces.size(); ++i) {
    if (joins(model.pieces[i])) ids[model.pieces[i].text] = i;
  }
  std::vector<Merge> merges;
  for (uint32_t i = 0; i < model.pieces.size(); ++i) {
    const std::string_view text = model.pieces[i].text;
    if (!joins(model.pieces[i]) || ids[text] != i) continue;
    for (size_t cut = CharacterAt(text, 0).length; cut < text.size(); cut += CharacterAt(text, cut).length) {
      if (ids.contains(text.substr(0, cut)) && ids.contains(text.substr(cut))) {
        merges.push_back({model.pieces[i].score, static_cast<uint32_t>(cut), i});
      }
    }
  }
  std::stable_sort(merges.begin(), merges.end(),
                   [](const Merge& a, const Merge& b) { return a.score != b.score ? a.score > b.score : a.left > b.left; });
  Json list = Json::array();
  for (const Merge& merge : merges) {
    const std::string& text = model.pieces[merge.piece].text;
    list.push_back(Json::array({text.substr(0, merge.left), text.substr(merge.left)}));
  }
  return list;
}

// The same in transformers' order: by id, then the shortest left part; every piece counts.
Json MergesById(const SpModel& model) {
  TextViewMap<uint32_t> ids;
  for (uint32_t i = 0; i < model.pieces.size(); ++i) ids[model.pieces[i].text] = i;
  Json list = Json::array();
  for (const SpPiece& piece : model.pieces) {
    const std::string_view text = piece.text;
    for (size_t cut = CharacterAt(text, 0).length; cut < text.size(); cut += CharacterAt(text, cut).length) {
      if (ids.contains(text.substr(0, cut)) && ids.contains(text.substr(cut)))
        list.push_back(Json::array({text.substr(0, cut), text.substr(cut)}));
    }
  }
  return list;
}

StatusOr<Json> BpeJson(const SpModel& model, Json merges, Json unk_token, bool byte_fallback) {
  Json vocab = Json::object();
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (!vocab.emplace(model.pieces[i].text, i).second)
      return InvalidArgument("piece {} '{}' is there twice", i, model.pieces[i].text);
  }
  return Json{
      {"type", "BPE"},    {"vocab", std::move(vocab)},     {"merges", std::move(merges)}, {"unk_token", std::move(unk_token)},
      {"fuse_unk", true}, {"byte_fallback", byte_fallback}};
}

// SentencePiece finds normal and user-defined pieces in a text and sums floats; transformers finds every piece and sums doubles.
Json UnigramJson(const SpModel& model, Rules rules, int64_t unk_id, int64_t extra_ids) {
  Json vocab = Json::array();
  for (const SpPiece& piece : model.pieces) {
    const bool in_text = rules != Rules::kOwn || piece.type == SpPiece::kNormal || piece.type == SpPiece::kUserDefined;
    vocab.push_back(Json::array({piece.text, static_cast<double>(piece.score), in_text}));
  }
  for (int64_t i = extra_ids; i-- > 0;) vocab.push_back(Json::array({fmt::format("<extra_id_{}>", i), 0.0}));
  const bool byte_fallback = rules != Rules::kT5 && model.byte_fallback;
  return Json{{"type", "Unigram"},
              {"vocab", std::move(vocab)},
              {"unk_id", unk_id < 0 ? Json() : Json(unk_id)},
              {"byte_fallback", byte_fallback},
              {"single_precision", rules == Rules::kOwn}};
}

Json Replace(const char* from, const char* to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

Json Sequence(const char* key, Json parts) {
  return {{"type", "Sequence"}, {key, std::move(parts)}};
}

Json Metaspace(const char* scheme, bool split) {
  return {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", scheme}, {"split", split}};
}

Json Precompiled(const SpModel& model) {
  return {{"type", "Precompiled"}, {"precompiled_charsmap", EncodeBase64(model.charsmap)}};
}

// "\u2581" to a space, byte tokens to bytes, and at the start up to `stripped` spaces away.
Json Decoder(bool bytes, int stripped) {
  Json parts = Json::array({Replace("\u2581", " ")});  // of one element: compilers disagree about what braces alone would make
  if (bytes) {
    parts.push_back({{"type", "ByteFallback"}});
    parts.push_back({{"type", "Fuse"}});
  }
  if (stripped > 0) parts.push_back({{"type", "Strip"}, {"content", " "}, {"start", stripped}, {"stop", 0}});
  return Sequence("decoders", std::move(parts));
}

Json AddedTokenJson(size_t id, const std::string& content, bool special) {
  return {{"id", id}, {"content", content}, {"special", special}, {"normalized", false}};
}

void SetRole(std::optional<std::string>* role, std::string_view piece) {
  if (!*role) *role = piece;
}

// The tokens that stand for themselves: control and user-defined pieces, unless the folder lists its own, and the roles.
Json AddedTokens(const SpModel& model, const TokenizerConfig& config, std::string_view mask) {
  const auto is_role = [&](const std::string& text) {
    return text == config.bos_token || text == config.eos_token || text == config.unk_token || text == config.pad_token ||
           text == mask;
  };
  Json added = Json::array();
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const SpPiece& piece = model.pieces[i];
    const bool symbol = piece.type == SpPiece::kControl || piece.type == SpPiece::kUserDefined;
    const bool role = is_role(piece.text);
    if (role || (symbol && config.extra_special_tokens.empty())) {
      added.push_back(AddedTokenJson(i, piece.text, role || piece.type == SpPiece::kControl));
    } else if (symbol && std::find(config.extra_special_tokens.begin(), config.extra_special_tokens.end(), piece.text) !=
                             config.extra_special_tokens.end()) {
      added.push_back(AddedTokenJson(i, piece.text, true));
    }
  }
  return added;
}

Json Whole(Json added, Json normalizer, Json pre_tokenizer, Json post_processor, Json decoder, Json model) {
  return {{"added_tokens", std::move(added)},
          {"normalizer", std::move(normalizer)},
          {"pre_tokenizer", std::move(pre_tokenizer)},
          {"post_processor", std::move(post_processor)},
          {"decoder", std::move(decoder)},
          {"model", std::move(model)}};
}

// SentencePiece's own rules, and the beginning-of-text token unless the configuration says otherwise.
StatusOr<Json> Own(const SpModel& model, const TokenizerConfig& config) {
  Json added = Json::array(), post = Json();
  int64_t unknown = -1;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const SpPiece& piece = model.pieces[i];
    if (piece.type == SpPiece::kUnknown) unknown = static_cast<int64_t>(i);
    if (piece.type != SpPiece::kControl && piece.type != SpPiece::kUserDefined && piece.type != SpPiece::kUnknown) continue;
    added.push_back(AddedTokenJson(i, piece.text, piece.type != SpPiece::kUserDefined));
    if (piece.type == SpPiece::kControl && piece.text == config.bos_token.value_or("<s>") &&
        config.add_bos_token.value_or(true)) {
      post = {{"type", "TemplateProcessing"},
              {"single", {{{"SpecialToken", {{"id", piece.text}}}}, {{"Sequence", {{"id", "A"}}}}}},
              {"special_tokens", {{piece.text, {{"ids", {i}}}}}}};
    }
  }
  Json normalizer = {{"type", "SentencePieceText"},
                     {"add_dummy_prefix", model.add_dummy_prefix},
                     {"prefix_everywhere", config.legacy},
                     {"remove_extra_whitespaces", model.remove_extra_whitespaces}};
  if (!model.charsmap.empty()) normalizer["precompiled_charsmap"] = EncodeBase64(model.charsmap);
  Json inner = UnigramJson(model, Rules::kOwn, unknown, 0);
  if (model.type == 2) {
    KVASIR_ASSIGN_OR_RETURN(inner, BpeJson(model, MergesByScore(model), unknown < 0 ? Json() : Json(model.pieces[unknown].text),
                                           model.byte_fallback));
  }
  // A text that lost its extra spaces begins with none.
  const int stripped = model.remove_extra_whitespaces ? 1 << 20 : model.add_dummy_prefix ? 1 : 0;
  return Whole(std::move(added), std::move(normalizer), nullptr, std::move(post), Decoder(true, stripped), std::move(inner));
}

StatusOr<Json> Llama(const SpModel& model, TokenizerConfig* config) {
  SetRole(&config->bos_token, "<s>");
  SetRole(&config->eos_token, "</s>");
  SetRole(&config->unk_token, "<unk>");
  const bool prefix = config->add_prefix_space.value_or(true);
  KVASIR_ASSIGN_OR_RETURN(Json inner, BpeJson(model, MergesById(model), nullptr, true));
  return Whole(AddedTokens(model, *config, ""), nullptr,
               Metaspace(!prefix          ? "never"
                         : config->legacy ? "always"
                                          : "first",
                         false),
               nullptr, Decoder(true, prefix ? 1 : 0), std::move(inner));
}

StatusOr<Json> Gemma(const SpModel& model, TokenizerConfig* config) {
  SetRole(&config->bos_token, "<bos>");
  SetRole(&config->eos_token, "<eos>");
  SetRole(&config->unk_token, "<unk>");
  SetRole(&config->pad_token, "<pad>");
  KVASIR_ASSIGN_OR_RETURN(Json inner, BpeJson(model, MergesById(model), *config->unk_token, true));
  const Json split = {{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "MergedWithPrevious"}, {"invert", false}};
  return Whole(AddedTokens(model, *config, "<mask>"), Replace(" ", "\u2581"), split, nullptr, Decoder(true, 0), std::move(inner));
}

StatusOr<Json> T5(const SpModel& model, TokenizerConfig* config) {
  SetRole(&config->eos_token, "</s>");
  SetRole(&config->unk_token, "<unk>");
  SetRole(&config->pad_token, "<pad>");
  if (model.type != 1) return InvalidArgument("tokenizer_class T5Tokenizer needs a UNIGRAM model; this one is BPE");
  Json added = AddedTokens(model, *config, "");
  size_t id = model.pieces.size();
  for (int64_t i = config->extra_ids; i-- > 0;) added.push_back(AddedTokenJson(id++, fmt::format("<extra_id_{}>", i), true));
  Json post = nullptr;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (model.pieces[i].text != "</s>") continue;
    post = {{"type", "TemplateProcessing"},
            {"single", {{{"Sequence", {{"id", "A"}}}}, {{"SpecialToken", {{"id", "</s>"}}}}}},
            {"special_tokens", {{"</s>", {{"ids", {i}}}}}}};
  }
  if (post.is_null()) return InvalidArgument("tokenizer_class T5Tokenizer needs the piece '</s>', which the model lacks");
  return Whole(std::move(added), model.charsmap.empty() ? Json() : Precompiled(model),
               Sequence("pretokenizers", {{{"type", "WhitespaceSplit"}}, Metaspace("always", true)}), std::move(post),
               Metaspace("always", true), UnigramJson(model, Rules::kT5, 2, config->extra_ids));
}

StatusOr<Json> General(const SpModel& model, TokenizerConfig* config) {
  if (model.bos.id >= 0) SetRole(&config->bos_token, model.bos.piece);
  if (model.eos.id >= 0) SetRole(&config->eos_token, model.eos.piece);
  if (model.unk.id >= 0) SetRole(&config->unk_token, model.unk.piece);
  Json normalizers = Json::array({Replace(" ", "\u2581")});
  if (!model.charsmap.empty()) normalizers.insert(normalizers.begin(), Precompiled(model));
  Json inner = UnigramJson(model, Rules::kGeneral, model.unk.id, 0);
  if (model.type == 2) {
    KVASIR_ASSIGN_OR_RETURN(inner, BpeJson(model, MergesById(model), model.unk.piece, model.byte_fallback));
  }
  return Whole(AddedTokens(model, *config, ""), Sequence("normalizers", std::move(normalizers)), nullptr, nullptr,
               Decoder(model.byte_fallback, 0), std::move(inner));
}

}  // namespace

StatusOr<Json> TokenizerJsonOfSentencePiece(std::string_view bytes, TokenizerConfig* config) {
  KVASIR_ASSIGN_OR_RETURN(const SpModel model, ReadSentencePieceModel(bytes));
  KVASIR_ASSIGN_OR_RETURN(const Rules rules, ChooseRules(*config));
  if (model.type != 2 && (rules == Rules::kLlama || rules == Rules::kGemma)) {
    return InvalidArgument("tokenizer_class {} needs a BPE model; this one is UNIGRAM; add tokenizer.json",
                           config->tokenizer_class);
  }
  switch (rules) {
    case Rules::kOwn:
      return Own(model, *config);
    case Rules::kLlama:
      return Llama(model, config);
    case Rules::kGemma:
      return Gemma(model, config);
    case Rules::kT5:
      return T5(model, config);
    case Rules::kGeneral:
      break;
  }
  return General(model, config);
}

}  // namespace kvasir
