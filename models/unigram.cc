#include "models/unigram.h"

#include <algorithm>
#include <limits>

#include "models/bpe.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

constexpr double kUnknownPenalty = 10.0;
constexpr size_t kMaxTextBytes = size_t{1} << 30;

uint64_t ChildKey(uint32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte);
}

Status NoUnknown(std::string_view piece) {
  return InvalidArgument("the text has '{}', which is not in the vocabulary, and the tokenizer names no unk_id; leave it out",
                         piece);
}

}  // namespace

StatusOr<Unigram> Unigram::Parse(const JsonNode& node) {
  Unigram model;
  KVASIR_ASSIGN_OR_RETURN(model.byte_fallback_, node.BoolOr("byte_fallback", false));
  KVASIR_ASSIGN_OR_RETURN(model.single_precision_, node.BoolOr("single_precision", false));
  KVASIR_ASSIGN_OR_RETURN(const JsonNode vocab, node.Field("vocab"));
  if (!vocab.value().is_array()) return node.Wrong("vocab", "an array of [piece, score]");
  if (vocab.value().size() > static_cast<size_t>(kMaxTokenId)) {
    return InvalidArgument("{} has {} pieces; the limit is {}", vocab.path(), vocab.value().size(), kMaxTokenId);
  }
  model.entries_.reserve(vocab.value().size());
  for (const auto& item : vocab.value()) {
    const bool pair = item.is_array() && item.size() >= 2 && item.size() <= 3 && item[0].is_string() && item[1].is_number();
    if (!pair || (item.size() == 3 && !item[2].is_boolean())) {
      return InvalidArgument("{}[{}] must be [piece, score]", vocab.path(), model.entries_.size());
    }
    model.entries_.push_back({item[0].get<std::string>(), item[1].get<double>(), item.size() == 2 || item[2].get<bool>()});
  }
  if (node.Has("unk_id")) {
    KVASIR_ASSIGN_OR_RETURN(const int64_t unk, node.Integer("unk_id"));
    if (unk < 0 || unk >= model.vocab_count()) return node.Wrong("unk_id", fmt::format("an id below {}", model.vocab_count()));
    model.unk_id_ = static_cast<int32_t>(unk);
  }
  model.Build();
  return model;
}

void Unigram::Build() {
  pairs_.assign(65536, 0);
  double lowest = std::numeric_limits<double>::infinity();
  for (int32_t id = 0; id < table_size(); ++id) {
    const Entry& entry = entries_[id];
    ids_[entry.piece] = id;
    lowest = std::min(lowest, entry.score);
    if (!entry.in_text || entry.piece.empty()) continue;
    uint32_t node = 0;
    for (size_t i = 0; i < entry.piece.size(); ++i) {
      const char byte = entry.piece[i];
      uint32_t& next = i == 0 ? root_[static_cast<uint8_t>(byte)] : children_[ChildKey(node, byte)];
      if (next == 0) {
        next = static_cast<uint32_t>(terminal_.size());
        terminal_.push_back(-1);
      }
      node = next;
      if (i == 1) pairs_[static_cast<uint8_t>(entry.piece[0]) << 8 | static_cast<uint8_t>(byte)] = node;
    }
    terminal_[node] = id;
  }
  unk_score_ = lowest - kUnknownPenalty;
  for (int b = 0; b < 256; ++b) fallback_ids_[b] = TokenId(fmt::format("<0x{:02X}>", b)).value_or(-1);
}

std::optional<int32_t> Unigram::TokenId(std::string_view piece) const {
  const auto it = ids_.find(piece);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

const std::string* Unigram::Piece(int32_t id) const {
  return id < 0 || id >= table_size() ? nullptr : &entries_[id].piece;
}

Status Unigram::AppendIds(std::string_view piece, int32_t id, std::vector<int32_t>* ids) const {
  if (id >= 0 && id != unk_id_) {  // found in the text: the piece is an entry
    ids->push_back(id);
    return OkStatus();
  }
  // A run of unknown characters may spell an entry after all, or be written in bytes.
  if (const auto known = TokenId(piece)) {
    ids->push_back(*known);
  } else if (byte_fallback_ &&
             std::all_of(piece.begin(), piece.end(), [&](char b) { return fallback_ids_[static_cast<uint8_t>(b)] >= 0; })) {
    for (const char byte : piece) ids->push_back(fallback_ids_[static_cast<uint8_t>(byte)]);
  } else if (unk_id_ >= 0) {
    ids->push_back(unk_id_);
  } else {
    return NoUnknown(piece.substr(0, 40));
  }
  return OkStatus();
}

Status Unigram::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  if (text.size() > kMaxTextBytes)
    return InvalidArgument("a text of {} bytes; the limit is {}; send less", text.size(), kMaxTextBytes);
  thread_local std::vector<Step> best;
  best.assign(text.size() + 1, Step{});
  const auto reach = [this](Step& step, double score, uint32_t length, int32_t id) {
    if (single_precision_) score = static_cast<float>(score);
    if (step.length == 0 || score > step.score) step = {score, length, id};
  };
  for (size_t at = 0; at < text.size();) {
    const double so_far = best[at].score;
    const auto character = static_cast<size_t>(CharacterAt(text, at).length);
    bool single = false;
    uint32_t node = root_[static_cast<uint8_t>(text[at])];
    for (size_t length = 1; node != 0; ++length) {
      if (const int32_t id = terminal_[node]; id >= 0) {
        reach(best[at + length], entries_[id].score + so_far, static_cast<uint32_t>(length), id);
        single = single || length == character;
      }
      if (at + length >= text.size()) break;
      if (length == 1) {
        node = pairs_[static_cast<uint8_t>(text[at]) << 8 | static_cast<uint8_t>(text[at + 1])];
        continue;
      }
      const auto it = children_.find(ChildKey(node, text[at + length]));
      node = it == children_.end() ? 0 : it->second;
    }
    if (!single) {
      if (unk_id_ < 0) return NoUnknown(text.substr(at, character));
      reach(best[at + character], unk_score_ + so_far, static_cast<uint32_t>(character), unk_id_);
    }
    at += character;
  }
  thread_local std::vector<size_t> ends;  // of the pieces of the best path, from the last
  ends.clear();
  for (size_t end = text.size(); end > 0; end -= best[end].length) ends.push_back(end);
  size_t begin = 0;
  for (size_t i = ends.size(); i-- > 0;) {
    const int32_t id = best[ends[i]].id;
    if (id >= 0 && id == unk_id_) {
      while (i > 0 && best[ends[i - 1]].id == unk_id_) --i;
    }
    KVASIR_RETURN_IF_ERROR(AppendIds(text.substr(begin, ends[i] - begin), id, ids));
    begin = ends[i];
  }
  if (best.capacity() > (size_t{1} << 20)) std::vector<Step>().swap(best);  // do not keep a giant's memory
  return OkStatus();
}

}  // namespace kvasir
