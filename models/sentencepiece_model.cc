#include "models/sentencepiece_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "models/bpe.h"
#include "models/charsmap.h"
#include "models/text_map.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxPieceBytes = 4096;  // real ones stay below 100
enum PieceType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// One field of a protobuf message.
struct Field {
  uint32_t number = 0;
  uint64_t value = 0;      // varint and fixed fields
  std::string_view bytes;  // length-delimited fields
  bool is_bytes = false;
};

// Reads the fields of one message in order.
class Wire {
 public:
  explicit Wire(std::string_view bytes) : bytes_(bytes) {}

  // Nothing at the end of the message.
  StatusOr<std::optional<Field>> Next() {
    if (at_ == bytes_.size()) return std::optional<Field>();
    KVASIR_ASSIGN_OR_RETURN(const uint64_t key, Varint());
    Field field;
    if (key >> 3 == 0 || key >> 3 > (1u << 29) - 1) return Broken("a field number that cannot be");
    field.number = static_cast<uint32_t>(key >> 3);
    switch (key & 7) {
      case 0: {
        KVASIR_ASSIGN_OR_RETURN(field.value, Varint());
        break;
      }
      case 1:
      case 5: {
        const size_t size = (key & 7) == 1 ? 8 : 4;
        if (bytes_.size() - at_ < size) return Broken("a number that is cut off");
        std::memcpy(&field.value, bytes_.data() + at_, size);
        at_ += size;
        break;
      }
      case 2: {
        KVASIR_ASSIGN_OR_RETURN(const uint64_t size, Varint());
        if (size > bytes_.size() - at_) return Broken("a field longer than the file");
        field.bytes = bytes_.substr(at_, size);
        field.is_bytes = true;
        at_ += size;
        break;
      }
      default:
        return Broken("a wire type that is not supported");
    }
    return std::optional<Field>(field);
  }

 private:
  StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && at_ < bytes_.size(); shift += 7) {
      const auto byte = static_cast<uint8_t>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    return Broken("a number that is cut off");
  }
  Status Broken(std::string_view what) const {
    return InvalidArgument("not a SentencePiece model: {} near byte {} of {}; download the file again", what, at_, bytes_.size());
  }

  std::string_view bytes_;
  size_t at_ = 0;
};

struct SpPiece {
  std::string text;
  float score = 0;
  uint64_t type = kNormal;
};

struct SpModel {
  std::vector<SpPiece> pieces;
  uint64_t type = 1;  // of the model: UNIGRAM 1, BPE 2, WORD 3, CHAR 4
  bool byte_fallback = false, whitespace_as_suffix = false;
  std::string charsmap;
  bool add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;
};

Status ReadPiece(std::string_view bytes, SpModel* model) {
  SpPiece piece;
  Wire wire(bytes);
  while (true) {
    KVASIR_ASSIGN_OR_RETURN(const auto field, wire.Next());
    if (!field) break;
    if (field->number == 1 && field->is_bytes) piece.text = field->bytes;
    if (field->number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field->value));
    if (field->number == 3) piece.type = field->value;
  }
  const size_t id = model->pieces.size();
  if (id > static_cast<size_t>(kMaxTokenId)) return InvalidArgument("more than {} pieces", kMaxTokenId);
  if (piece.text.empty() || piece.text.size() > kMaxPieceBytes) {
    return InvalidArgument("piece {} has {} bytes; it must have 1 to {}", id, piece.text.size(), kMaxPieceBytes);
  }
  if (FirstInvalidUtf8(piece.text) != std::string_view::npos) return InvalidArgument("piece {} is not valid UTF-8", id);
  if (!std::isfinite(piece.score)) return InvalidArgument("piece {} has a score that is not a number", id);
  if (piece.type < kNormal || piece.type > kByte)
    return InvalidArgument("piece {} has type {}; known are 1 to 6", id, piece.type);
  model->pieces.push_back(std::move(piece));
  return OkStatus();
}

Status ReadSpecs(const Field& message, SpModel* model) {
  Wire wire(message.bytes);
  const bool trainer = message.number == 2;
  while (true) {
    KVASIR_ASSIGN_OR_RETURN(const auto field, wire.Next());
    if (!field) return OkStatus();
    const bool on = field->value != 0;
    if (trainer && field->number == 3) model->type = field->value;
    if (trainer && field->number == 24) model->whitespace_as_suffix = on;
    if (trainer && field->number == 35) model->byte_fallback = on;
    if (!trainer && field->number == 2 && field->is_bytes) model->charsmap = field->bytes;
    if (!trainer && field->number == 3) model->add_dummy_prefix = on;
    if (!trainer && field->number == 4) model->remove_extra_whitespaces = on;
    if (!trainer && field->number == 5) model->escape_whitespaces = on;
  }
}

StatusOr<SpModel> Read(std::string_view bytes) {
  SpModel model;
  Wire wire(bytes);
  while (true) {
    KVASIR_ASSIGN_OR_RETURN(const auto field, wire.Next());
    if (!field) break;
    if (!field->is_bytes) continue;
    if (field->number == 1) KVASIR_RETURN_IF_ERROR(ReadPiece(field->bytes, &model));
    if (field->number == 2 || field->number == 3) KVASIR_RETURN_IF_ERROR(ReadSpecs(*field, &model));
  }
  if (model.pieces.empty()) return InvalidArgument("not a SentencePiece model: it has no pieces");
  if (model.type != 1 && model.type != 2) {
    return InvalidArgument("a SentencePiece model of type {}; supported: UNIGRAM (1), BPE (2)", model.type);
  }
  if (model.whitespace_as_suffix)
    return InvalidArgument("treat_whitespace_as_suffix is not supported; spaces must come before words");
  if (!model.escape_whitespaces) return InvalidArgument("escape_whitespaces false is not supported");
  return model;
}

// Every way to make a piece of two others, the best score first; of equal ones, as transformers orders them, the longest left
// part.
Json Merges(const SpModel& model) {
  struct Merge {
    float score;
    uint32_t left, right;  // lengths in characters
    uint32_t piece, cut;
  };
  TextViewMap<int32_t> ids;
  const auto joins = [](const SpPiece& piece) {
    return piece.type == kNormal || piece.type == kUnused || piece.type == kUserDefined;
  };
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (joins(model.pieces[i])) ids[model.pieces[i].text] = static_cast<int32_t>(i);
  }
  std::vector<Merge> merges;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const std::string_view text = model.pieces[i].text;
    if (!joins(model.pieces[i]) || ids[text] != static_cast<int32_t>(i)) continue;
    const auto characters = static_cast<uint32_t>(
        std::count_if(text.begin(), text.end(), [](char b) { return (static_cast<uint8_t>(b) & 0xC0) != 0x80; }));
    uint32_t left = 1;
    for (size_t cut = CharacterAt(text, 0).length; cut < text.size(); cut += CharacterAt(text, cut).length, ++left) {
      if (!ids.contains(text.substr(0, cut)) || !ids.contains(text.substr(cut))) continue;
      merges.push_back({model.pieces[i].score, left, characters - left, static_cast<uint32_t>(i), static_cast<uint32_t>(cut)});
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    if (a.score != b.score) return a.score > b.score;
    if (a.left != b.left) return a.left > b.left;
    return a.right > b.right;
  });
  Json list = Json::array();
  for (const Merge& merge : merges) {
    const std::string& text = model.pieces[merge.piece].text;
    list.push_back(Json::array({text.substr(0, merge.cut), text.substr(merge.cut)}));
  }
  return list;
}

StatusOr<Json> ModelJson(const SpModel& model) {
  int64_t unknown = -1;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (model.pieces[i].type == kUnknown) unknown = static_cast<int64_t>(i);
  }
  if (model.type == 1) {
    Json vocab = Json::array();
    for (const SpPiece& piece : model.pieces) {
      const bool in_text = piece.type == kNormal || piece.type == kUserDefined;
      vocab.push_back(Json::array({piece.text, static_cast<double>(piece.score), in_text}));
    }
    return Json{{"type", "Unigram"},
                {"vocab", std::move(vocab)},
                {"unk_id", unknown < 0 ? Json() : Json(unknown)},
                {"byte_fallback", model.byte_fallback},
                {"single_precision", true}};
  }
  Json vocab = Json::object();
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (!vocab.emplace(model.pieces[i].text, i).second)
      return InvalidArgument("piece {} '{}' is there twice", i, model.pieces[i].text);
  }
  return Json{{"type", "BPE"},           {"vocab", std::move(vocab)},
              {"merges", Merges(model)}, {"unk_token", unknown < 0 ? Json() : Json(model.pieces[unknown].text)},
              {"fuse_unk", true},        {"byte_fallback", model.byte_fallback}};
}

Json Replace(const char* from, const char* to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

}  // namespace

StatusOr<Json> TokenizerJsonOfSentencePiece(std::string_view bytes, const TokenizerConfig& config) {
  KVASIR_ASSIGN_OR_RETURN(const SpModel model, Read(bytes));
  Json added = Json::array(), post = Json();
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const SpPiece& piece = model.pieces[i];
    if (piece.type != kControl && piece.type != kUserDefined && piece.type != kUnknown) continue;
    added.push_back({{"id", i}, {"content", piece.text}, {"special", piece.type != kUserDefined}, {"normalized", false}});
    // What SentencePiece's users expect where the configuration is silent: the beginning-of-text token.
    if (piece.type == kControl && piece.text == config.bos_token.value_or("<s>") && config.add_bos_token.value_or(true)) {
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
  Json decoders = {Replace("\u2581", " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  if (model.add_dummy_prefix || model.remove_extra_whitespaces) {
    const int count = model.remove_extra_whitespaces ? 1 << 20 : 1;  // a text that lost its extra spaces begins with none
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", count}, {"stop", 0}});
  }
  KVASIR_ASSIGN_OR_RETURN(Json model_json, ModelJson(model));
  return Json{{"added_tokens", std::move(added)},
              {"normalizer", std::move(normalizer)},
              {"pre_tokenizer", nullptr},
              {"post_processor", std::move(post)},
              {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}},
              {"model", std::move(model_json)}};
}

}  // namespace kvasir
