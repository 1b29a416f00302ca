// Fuzz target: any bytes as a safetensors file, and as the header of one that fits it. A second parser, written for strictness
// alone and sharing no code with the first, must agree on acceptance and on every field.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "models/safetensors.h"

namespace {

struct SlowTensor {
  std::string name, dtype;
  std::vector<uint64_t> shape, offsets;
};

// Reads a header by its grammar. Every method returns false at the first byte that does not fit.
class SlowParser {
 public:
  explicit SlowParser(std::string_view text) : text_(text) {}
  std::vector<SlowTensor> tensors;

  bool Header() {
    if (text_.empty() || text_[0] != '{') return false;
    return Object([this](const std::string& name) { return name == "__metadata__" ? Metadata() : Tensor(name); }) &&
           (Space(), at_ == text_.size());
  }

 private:
  bool Take(char c) { return Space(), at_ < text_.size() && text_[at_] == c ? ++at_, true : false; }
  void Space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
  }
  template <typename Member>
  bool Object(Member member) {
    std::set<std::string> seen;
    if (!Take('{')) return false;
    if (Take('}')) return true;
    do {
      std::string key;
      if (!String(&key) || !seen.insert(key).second || !Take(':') || !member(key)) return false;
    } while (Take(','));
    return Take('}');
  }
  bool Metadata() {
    Space();
    if (text_.substr(at_, 4) == "null") return at_ += 4, true;
    return Object([this](const std::string&) {
      std::string value;
      return String(&value);
    });
  }
  bool Tensor(const std::string& name) {
    SlowTensor tensor{name};
    std::set<std::string> fields;
    const bool good = Object([&](const std::string& field) {
      fields.insert(field);
      if (field == "dtype") return String(&tensor.dtype);
      if (field == "shape") return Numbers(&tensor.shape, kvasir::kMaxRank);
      return field == "data_offsets" && Numbers(&tensor.offsets, 2);
    });
    tensors.push_back(tensor);
    return good && fields.size() == 3 && tensor.offsets.size() == 2 && tensors.size() <= kvasir::kMaxTensors;
  }
  bool Numbers(std::vector<uint64_t>* numbers, size_t limit) {
    if (!Take('[')) return false;
    if (Take(']')) return true;
    do {
      Space();
      unsigned __int128 value = 0;
      const size_t start = at_;
      for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
        value = value * 10 + (text_[at_] - '0');
        if (value > UINT64_MAX) return false;
      }
      if (at_ == start || (text_[start] == '0' && at_ > start + 1) || numbers->size() == limit) return false;
      numbers->push_back(static_cast<uint64_t>(value));
    } while (Take(','));
    return Take(']');
  }
  bool String(std::string* out) {
    if (!Take('"')) return false;
    while (at_ < text_.size()) {
      const unsigned char c = text_[at_];
      if (c == '"') return ++at_, true;
      if (c < 0x20) return false;
      if (c == '\\' ? !Escape(out) : !Utf8(out)) return false;
    }
    return false;
  }
  std::optional<uint32_t> Hex4() {
    if (text_.size() - at_ < 4) return std::nullopt;
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return std::nullopt;
      value = value * 16 + digit;
    }
    return value;
  }
  bool Escape(std::string* out) {
    if (++at_ == text_.size()) return false;
    const char c = text_[at_++];
    static const std::map<char, char> kSimple = {{'"', '"'},  {'\\', '\\'}, {'/', '/'},  {'b', '\b'},
                                                 {'f', '\f'}, {'n', '\n'},  {'r', '\r'}, {'t', '\t'}};
    if (const auto simple = kSimple.find(c); simple != kSimple.end()) return out->push_back(simple->second), true;
    if (c != 'u') return false;
    std::optional<uint32_t> code = Hex4();
    if (!code || (*code >= 0xDC00 && *code < 0xE000)) return false;
    if (*code >= 0xD800 && *code < 0xDC00) {
      if (text_.substr(at_, 2) != "\\u") return false;
      at_ += 2;
      const std::optional<uint32_t> low = Hex4();
      if (!low || *low < 0xDC00 || *low >= 0xE000) return false;
      code = 0x10000 + ((*code - 0xD800) << 10) + (*low - 0xDC00);
    }
    if (*code < 0x80) return out->push_back(static_cast<char>(*code)), true;
    const int more = *code < 0x800 ? 1 : *code < 0x10000 ? 2 : 3;
    constexpr uint32_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
    out->push_back(static_cast<char>(kLead[more] | *code >> 6 * more));
    for (int i = more - 1; i >= 0; --i) out->push_back(static_cast<char>(0x80 | (*code >> 6 * i & 0x3F)));
    return true;
  }
  bool Utf8(std::string* out) {
    const unsigned char c = text_[at_];
    const int more = c < 0x80 ? 0 : c >= 0xC2 && c < 0xE0 ? 1 : c >= 0xE0 && c < 0xF0 ? 2 : c >= 0xF0 && c < 0xF5 ? 3 : -1;
    if (more < 0 || text_.size() - at_ <= static_cast<size_t>(more)) return false;
    uint32_t code = more == 0 ? c : c & (0x3F >> more);
    for (int i = 1; i <= more; ++i) {
      const unsigned char next = text_[at_ + i];
      if (next < 0x80 || next > 0xBF) return false;
      code = code << 6 | (next & 0x3F);
    }
    constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
    out->append(text_.substr(at_, more + 1));
    at_ += more + 1;
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
};

int Bits(const std::string& dtype) {
  static const std::map<std::string, int> kBits = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  const auto found = kBits.find(dtype);
  return found == kBits.end() ? 0 : found->second;
}

// Whether tensors of such shapes tile `data_bytes` bytes, in 128-bit arithmetic. Offsets are looked up, not sorted.
bool Tiles(const std::vector<SlowTensor>& tensors, uint64_t data_bytes) {
  std::multimap<uint64_t, const SlowTensor*> by_begin;
  size_t empty = 0;
  for (const SlowTensor& tensor : tensors) {
    if (Bits(tensor.dtype) == 0) return false;
    unsigned __int128 elements = 1;
    for (const uint64_t dim : tensor.shape)
      if ((elements *= dim) > UINT64_MAX) return false;
    const unsigned __int128 bits = elements * Bits(tensor.dtype);
    if (bits > UINT64_MAX || bits % 8 != 0 || tensor.offsets[1] < tensor.offsets[0] ||
        tensor.offsets[1] - tensor.offsets[0] != bits / 8)
      return false;
    if (bits == 0) ++empty;
    by_begin.emplace(tensor.offsets[0], &tensor);
  }
  uint64_t at = 0;
  size_t used = 0;
  while (true) {  // zero-size tensors may share a place; at most one other starts there
    const SlowTensor* step = nullptr;
    const auto [first, last] = by_begin.equal_range(at);
    for (auto it = first; it != last; ++it, ++used) {
      if (it->second->offsets[1] == at) continue;
      if (step != nullptr) return false;
      step = it->second;
    }
    if (step == nullptr) break;
    at = step->offsets[1];
  }
  return used == tensors.size() && at == data_bytes;
}

void Compare(std::string_view header, uint64_t file_size, const SlowParser& slow, bool slow_accepts) {
  const auto fast = kvasir::ParseSafetensorsHeader(header, file_size);
  if (fast.ok() != slow_accepts) std::abort();
  if (!fast.ok()) {
    if (fast.status().message().size() > 2000) std::abort();
    return;
  }
  if (fast->tensors.size() != slow.tensors.size() || fast->index.size() != slow.tensors.size()) std::abort();
  for (const SlowTensor& wanted : slow.tensors) {
    const kvasir::StoredTensor* tensor = fast->Find(wanted.name);
    const uint64_t start = 8 + header.size();
    if (tensor == nullptr || tensor->name != wanted.name || tensor->type->name != wanted.dtype || tensor->shape != wanted.shape ||
        tensor->begin != start + wanted.offsets[0] || tensor->end != start + wanted.offsets[1] || tensor->end > file_size)
      std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // As a file.
  const auto file = kvasir::ParseSafetensors({reinterpret_cast<const std::byte*>(data), size});
  uint64_t length = 0;
  if (size >= 8) std::memcpy(&length, data, 8);
  if (size < 8 || length > size - 8) {
    if (file.ok()) std::abort();
  } else {
    const std::string_view header(reinterpret_cast<const char*>(data) + 8, length);
    SlowParser slow(header);
    const bool accepts = slow.Header() && Tiles(slow.tensors, size - 8 - length);
    if (file.ok() != accepts) std::abort();
    Compare(header, size, slow, accepts);
  }
  // As the header of a file that is as long as its offsets ask.
  const std::string_view header(reinterpret_cast<const char*>(data), size);
  SlowParser slow(header);
  const bool parsed = slow.Header();
  uint64_t end = 0;
  for (const SlowTensor& tensor : slow.tensors)
    if (tensor.offsets.size() == 2) end = std::max(end, tensor.offsets[1]);
  if (end > UINT64_MAX - 8 - size) return 0;
  Compare(header, 8 + size + end, slow, parsed && Tiles(slow.tensors, end));
  return 0;
}
