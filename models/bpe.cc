#include "models/bpe.h"

#include <algorithm>
#include <utility>

#include "models/unicode.h"

namespace kvasir {
namespace {

constexpr std::string_view kMetaspace = "\u2581";
constexpr size_t kShortWord = 40;  // symbols; below, a scan for the best merge beats a heap

uint64_t PairKey(int32_t left, int32_t right) { return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right); }

// A merge that may be applied at `position`; the heap gives the lowest rank first, then the leftmost.
struct Candidate {
  uint32_t rank;
  uint32_t position;
  int32_t id;
  bool operator<(const Candidate& other) const {  // std::push_heap keeps the largest on top
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

struct Link {
  int32_t id;  // -1: merged into the symbol on its left
  int32_t previous;
  int32_t next;
};

}  // namespace

StatusOr<Bpe> Bpe::Parse(const JsonNode& node) {
  Bpe bpe;
  KVASIR_ASSIGN_OR_RETURN(bpe.unk_token_, node.StringOr("unk_token", ""));
  KVASIR_ASSIGN_OR_RETURN(bpe.prefix_, node.StringOr("continuing_subword_prefix", ""));
  KVASIR_ASSIGN_OR_RETURN(bpe.suffix_, node.StringOr("end_of_word_suffix", ""));
  KVASIR_ASSIGN_OR_RETURN(bpe.fuse_unk_, node.BoolOr("fuse_unk", false));
  KVASIR_ASSIGN_OR_RETURN(bpe.byte_fallback_, node.BoolOr("byte_fallback", false));
  KVASIR_ASSIGN_OR_RETURN(bpe.ignore_merges_, node.BoolOr("ignore_merges", false));
  KVASIR_RETURN_IF_ERROR(ReadVocabulary(node, &bpe.pieces_, &bpe.vocab_));
  bpe.whole_ = std::make_unique<std::atomic<uint8_t>[]>(bpe.pieces_.size());
  if (!bpe.unk_token_.empty()) {
    const auto unk = bpe.TokenId(bpe.unk_token_);
    if (!unk) return node.Wrong("unk_token", "an entry of the vocabulary");
    bpe.unk_id_ = *unk;
  }
  KVASIR_RETURN_IF_ERROR(bpe.ParseMerges(node));
  bpe.PrepareCharacters();
  return bpe;
}

Status ReadVocabulary(const JsonNode& node, std::vector<std::unique_ptr<const std::string>>* pieces, TextViewMap<int32_t>* ids) {
  KVASIR_ASSIGN_OR_RETURN(const JsonNode vocab, node.Field("vocab"));
  if (!vocab.value().is_object()) return node.Wrong("vocab", "an object of token: id");
  ids->reserve(vocab.value().size());
  for (const auto& [piece, id_value] : vocab.value().items()) {
    if (!id_value.is_number_unsigned() || id_value.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId)) {
      return InvalidArgument("{}: token '{}' has id {}; an id must be an integer from 0 to {}", vocab.path(), piece, id_value.dump(-1, ' ', true),
                             kMaxTokenId);
    }
    const auto id = id_value.get<uint32_t>();
    if (id >= pieces->size()) pieces->resize(id + 1);
    if ((*pieces)[id] != nullptr) {
      return InvalidArgument("{}: id {} belongs to both '{}' and '{}'; ids must be unique", vocab.path(), id, *(*pieces)[id], piece);
    }
    (*pieces)[id] = std::make_unique<const std::string>(piece);
    (*ids)[*(*pieces)[id]] = static_cast<int32_t>(id);
  }
  return OkStatus();
}

Status Bpe::ParseMerges(const JsonNode& node) {
  KVASIR_ASSIGN_OR_RETURN(const JsonNode list, node.Field("merges"));
  if (!list.value().is_array()) return node.Wrong("merges", "an array of \"a b\" or [\"a\", \"b\"]");
  if (list.value().size() > UINT32_MAX / 2) return InvalidArgument("{} has {} entries, too many", list.path(), list.value().size());
  merges_.reserve(list.value().size());
  cut_at_metaspace_ = TokenId(kMetaspace).has_value() && prefix_.empty() && suffix_.empty();
  uint32_t rank = 0;
  for (const auto& item : list.value()) {
    const JsonNode place(&item, fmt::format("{}[{}]", list.path(), rank));
    if (item.is_string()) {
      const std::string_view text = item.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
        return InvalidArgument("{} is '{}'; a merge is two tokens separated by one space", place.path(), text);
      }
      KVASIR_RETURN_IF_ERROR(AddMerge(place, text.substr(0, space), text.substr(space + 1), rank));
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      KVASIR_RETURN_IF_ERROR(AddMerge(place, item[0].get_ref<const std::string&>(), item[1].get_ref<const std::string&>(), rank));
    } else {
      return InvalidArgument("{} must be \"a b\" or [\"a\", \"b\"]", place.path());
    }
    ++rank;
  }
  return OkStatus();
}

Status Bpe::AddMerge(const JsonNode& item, std::string_view left, std::string_view right, uint32_t rank) {
  const auto left_id = TokenId(left), right_id = TokenId(right);
  if (!left_id || !right_id) {
    return InvalidArgument("{} names '{}', which is not in the vocabulary", item.path(), left_id ? right : left);
  }
  if (right.size() < prefix_.size()) return InvalidArgument("{}: '{}' lacks the prefix '{}'", item.path(), right, prefix_);
  const std::string joined = std::string(left) + std::string(right.substr(prefix_.size()));
  const auto id = TokenId(joined);
  if (!id) return InvalidArgument("{} makes '{}', which is not in the vocabulary", item.path(), joined);
  merges_[PairKey(*left_id, *right_id)] = Merge{rank, *id};
  if (right.starts_with(kMetaspace) && !left.ends_with(kMetaspace)) cut_at_metaspace_ = false;
  return OkStatus();
}

void Bpe::PrepareCharacters() {
  raw_ids_.fill(-1);
  for (int c = 0; c < 128; ++c) {
    const char character = static_cast<char>(c);
    ascii_ids_[c] = TokenId({&character, 1}).value_or(-1);
  }
  for (int b = 0; b < 256; ++b) fallback_ids_[b] = TokenId(fmt::format("<0x{:02X}>", b)).value_or(-1);
}

bool Bpe::UseRawBytes() {
  if (!prefix_.empty() || !suffix_.empty()) return false;
  std::array<int32_t, 256> ids;
  for (int b = 0; b < 256; ++b) {
    std::string character;
    AppendUtf8(ByteLevelCharacter(static_cast<uint8_t>(b)), &character);
    const auto id = TokenId(character);
    if (!id) return false;
    ids[b] = *id;
  }
  raw_ids_ = ids;
  raw_bytes_ = true;
  cut_at_metaspace_ = false;
  raw_vocab_.reserve(vocab_.size());
  for (const auto& [piece, id] : vocab_) {
    if (auto bytes = ByteLevelDecode(piece)) raw_vocab_.emplace(*std::move(bytes), id);
  }
  return true;
}

std::optional<int32_t> Bpe::TokenId(std::string_view piece) const {
  const auto it = vocab_.find(piece);
  if (it == vocab_.end()) return std::nullopt;
  return it->second;
}

const std::string* Bpe::Piece(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= pieces_.size()) return nullptr;
  return pieces_[id].get();
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

std::optional<int32_t> Bpe::WholeWord(std::string_view word) const {
  if (raw_bytes_) {
    const auto it = raw_vocab_.find(word);
    if (it == raw_vocab_.end()) return std::nullopt;
    return it->second;
  }
  return TokenId(word);
}

void Bpe::Encode(std::string_view word, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  if (ignore_merges_) {
    if (const auto id = WholeWord(word)) {
      ids->push_back(*id);
      return;
    }
  }
  if (!cut_at_metaspace_) {
    EncodeWord(word, ids);
    return;
  }
  // A word is a run of U+2581 and what follows up to the next.
  size_t begin = 0;
  while (begin < word.size()) {
    size_t body = begin;
    while (word.substr(body).starts_with(kMetaspace)) body += kMetaspace.size();
    const size_t end = std::min(word.find(kMetaspace, body), word.size());
    EncodeWord(word.substr(begin, end - begin), ids);
    begin = end;
  }
}

void Bpe::EncodeWord(std::string_view word, std::vector<int32_t>* ids) const {
  const auto id = WholeWord(word);
  if (!id) {
    MergeWord(word, ids);
    return;
  }
  std::atomic<uint8_t>& known = whole_[*id];
  if (known.load(std::memory_order_relaxed) == 1) {
    ids->push_back(*id);
    return;
  }
  const size_t before = ids->size();
  MergeWord(word, ids);
  const bool itself = ids->size() == before + 1 && ids->back() == *id;
  known.store(itself ? 1 : 2, std::memory_order_relaxed);
}

void Bpe::MergeWord(std::string_view word, std::vector<int32_t>* ids) const {
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  CharacterSymbols(word, &symbols);
  if (symbols.size() <= kShortWord) {
    MergeShort(&symbols);
  } else {
    MergeLong(&symbols);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  if (symbols.capacity() > (size_t{1} << 20)) std::vector<int32_t>().swap(symbols);  // do not keep a giant's memory
}

void Bpe::CharacterSymbols(std::string_view word, std::vector<int32_t>* out) const {
  if (raw_bytes_) {
    for (const char byte : word) out->push_back(raw_ids_[static_cast<uint8_t>(byte)]);
    return;
  }
  bool unk_pending = false;
  std::string decorated;
  for (size_t i = 0; i < word.size();) {
    const auto lead = static_cast<unsigned char>(word[i]);
    std::string_view symbol = word.substr(i, lead < 0x80 ? 1 : CharacterAt(word, i).length);
    const bool first = i == 0, last = i + symbol.size() == word.size();
    i += symbol.size();
    int32_t id = -1;
    if ((!first && !prefix_.empty()) || (last && !suffix_.empty())) {
      decorated = (first ? "" : prefix_) + std::string(symbol) + (last ? suffix_ : "");
      symbol = decorated;
      id = TokenId(symbol).value_or(-1);
    } else {
      id = lead < 0x80 ? ascii_ids_[lead] : TokenId(symbol).value_or(-1);
    }
    if (id >= 0) {
      if (std::exchange(unk_pending, false)) out->push_back(unk_id_);
      out->push_back(id);
      continue;
    }
    // A pending unknown stays pending across byte tokens: that is how the reference orders them.
    if (byte_fallback_ && std::all_of(symbol.begin(), symbol.end(), [&](char b) { return fallback_ids_[static_cast<uint8_t>(b)] >= 0; })) {
      for (const char byte : symbol) out->push_back(fallback_ids_[static_cast<uint8_t>(byte)]);
      continue;
    }
    if (unk_id_ >= 0) {  // without an unknown token the character is dropped
      if (unk_pending && !fuse_unk_) out->push_back(unk_id_);
      unk_pending = true;
    }
  }
  if (unk_pending) out->push_back(unk_id_);
}

void Bpe::MergeShort(std::vector<int32_t>* symbols) const {
  const Merge* best[kShortWord];  // best[i] joins symbols i and i + 1
  std::vector<int32_t>& s = *symbols;
  size_t n = s.size();
  for (size_t i = 0; i + 1 < n; ++i) best[i] = FindMerge(s[i], s[i + 1]);
  while (n > 1) {
    size_t at = n;
    uint32_t rank = UINT32_MAX;
    for (size_t i = 0; i + 1 < n; ++i) {
      if (best[i] != nullptr && best[i]->rank < rank) {
        rank = best[i]->rank;
        at = i;
      }
    }
    if (at == n) break;
    s[at] = best[at]->id;
    for (size_t i = at + 1; i + 1 < n; ++i) {
      s[i] = s[i + 1];
      best[i] = i + 2 < n ? best[i + 1] : nullptr;
    }
    --n;
    if (at > 0) best[at - 1] = FindMerge(s[at - 1], s[at]);
    if (at + 1 < n) best[at] = FindMerge(s[at], s[at + 1]);
  }
  s.resize(n);
}

void Bpe::MergeLong(std::vector<int32_t>* symbols) const {
  const auto n = static_cast<int32_t>(symbols->size());
  std::vector<Link> links(n);
  std::vector<Candidate> heap;
  const auto consider = [&](int32_t left, int32_t right) {
    const Merge* merge = FindMerge(links[left].id, links[right].id);
    if (merge != nullptr) heap.push_back({merge->rank, static_cast<uint32_t>(left), merge->id});
    return merge != nullptr;
  };
  for (int32_t i = 0; i < n; ++i) links[i] = {(*symbols)[i], i - 1, i + 1 < n ? i + 1 : -1};
  for (int32_t i = 0; i + 1 < n; ++i) consider(i, i + 1);
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    const Candidate top = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    Link& left = links[top.position];
    if (left.id < 0 || left.next < 0) continue;
    Link& right = links[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;  // a neighbour changed since
    left.id = top.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) links[left.next].previous = static_cast<int32_t>(top.position);
    if (left.previous >= 0 && consider(left.previous, static_cast<int32_t>(top.position))) std::push_heap(heap.begin(), heap.end());
    if (left.next >= 0 && consider(static_cast<int32_t>(top.position), left.next)) std::push_heap(heap.begin(), heap.end());
  }
  symbols->clear();
  for (int32_t i = 0; i >= 0 && i < n; i = links[i].next) symbols->push_back(links[i].id);
}

}  // namespace kvasir
