#include "models/sentencepiece_model_file.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "models/bpe.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

constexpr size_t kMaxPieceBytes = 4096;  // real ones stay below 100

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
  if (piece.type < SpPiece::kNormal || piece.type > SpPiece::kByte)
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
    if (trainer && field->number >= 40 && field->number <= 42) {
      (field->number == 40 ? model->unk : field->number == 41 ? model->bos : model->eos).id = static_cast<int64_t>(field->value);
    }
    if (trainer && field->is_bytes && field->number >= 45 && field->number <= 47) {
      (field->number == 45 ? model->unk : field->number == 46 ? model->bos : model->eos).piece = field->bytes;
    }
    if (!trainer && field->number == 2 && field->is_bytes) model->charsmap = field->bytes;
    if (!trainer && field->number == 3) model->add_dummy_prefix = on;
    if (!trainer && field->number == 4) model->remove_extra_whitespaces = on;
    if (!trainer && field->number == 5) model->escape_whitespaces = on;
  }
}

}  // namespace

StatusOr<SpModel> ReadSentencePieceModel(std::string_view bytes) {
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

}  // namespace kvasir
