#include "models/charsmap.h"

#include <algorithm>
#include <cstring>

#include "models/unicode.h"

namespace kvasir {
namespace {

constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr size_t kMaxReplacement = 1024;  // bytes; real ones stay below 100
constexpr size_t kShortGrapheme = 6;      // bytes; longer clusters are mapped character by character

// One unit of the trie, as the darts-clone library lays it out.
uint32_t Offset(uint32_t unit) {
  return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}
uint32_t Label(uint32_t unit) {
  return unit & ((1u << 31) | 0xFF);
}
bool HasLeaf(uint32_t unit) {
  return (unit >> 8 & 1) != 0;
}
uint32_t Value(uint32_t unit) {
  return unit & ((1u << 31) - 1);
}

}  // namespace

StatusOr<std::string> DecodeBase64(std::string_view text) {
  static const auto values = [] {
    std::array<int8_t, 256> table;
    table.fill(-1);
    for (size_t i = 0; i < kDigits.size(); ++i) table[static_cast<uint8_t>(kDigits[i])] = static_cast<int8_t>(i);
    return table;
  }();
  const size_t length = text.size();
  if (length % 4 != 0) return InvalidArgument("base64 of {} characters; the length must be a multiple of 4", length);
  size_t padding = 0;
  while (padding < 2 && padding < length && text[length - 1 - padding] == '=') ++padding;
  std::string out;
  out.reserve(length / 4 * 3);
  uint32_t bits = 0;
  for (size_t i = 0; i < length; ++i) {
    const int value = i >= length - padding ? 0 : values[static_cast<uint8_t>(text[i])];
    if (value < 0) return InvalidArgument("character {} of the base64 is not one of A-Z, a-z, 0-9, +, /", i);
    bits = bits << 6 | static_cast<uint32_t>(value);
    if (i % 4 != 3) continue;
    for (const int shift : {16, 8, 0}) out.push_back(static_cast<char>(bits >> shift));
    bits = 0;
  }
  out.resize(out.size() - padding);
  return out;
}

std::string EncodeBase64(std::string_view bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k) bits = bits << 8 | (i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) out.push_back(i + k <= bytes.size() ? kDigits[bits >> (18 - 6 * k) & 63] : '=');
  }
  return out;
}

StatusOr<Charsmap> Charsmap::Parse(std::string_view blob) {
  Charsmap map;
  if (blob.empty()) return map;
  uint32_t trie_bytes = 0;
  if (blob.size() >= 4) std::memcpy(&trie_bytes, blob.data(), 4);
  if (blob.size() < 4 || trie_bytes % 4 != 0 || trie_bytes == 0 || trie_bytes > blob.size() - 4) {
    return InvalidArgument("the charsmap of {} bytes says its trie has {}; it is cut off or not a charsmap", blob.size(),
                           trie_bytes);
  }
  auto data = std::make_shared<Data>();
  data->units.resize(trie_bytes / 4);
  std::memcpy(data->units.data(), blob.data() + 4, trie_bytes);
  data->texts = std::string(blob.substr(4 + trie_bytes));
  if (const size_t bad = FirstInvalidUtf8(data->texts); bad != std::string_view::npos) {
    return InvalidArgument("the charsmap's text is not valid UTF-8 at byte {}", bad);
  }
  const uint32_t root = Offset(data->units[0]);
  for (uint32_t byte = 1; byte < 256; ++byte) {
    const uint32_t at = root ^ byte;
    data->starts[byte] = at < data->units.size() && Label(data->units[at]) == byte;
  }
  map.data_ = std::move(data);
  return map;
}

StatusOr<Charsmap> Charsmap::FromField(const JsonNode& node, std::string_view key) {
  if (!node.Has(key)) return Charsmap();
  KVASIR_ASSIGN_OR_RETURN(const std::string text, node.String(key));
  auto blob = DecodeBase64(text);
  if (!blob.ok()) return AtPlace(node.path() + "." + std::string(key), blob.status());
  auto map = Parse(*blob);
  if (!map.ok()) return AtPlace(node.path() + "." + std::string(key), map.status());
  return map;
}

Charsmap::Found Charsmap::Find(std::string_view text, bool longest) const {
  Found found;
  if (data_ == nullptr || text.empty() || !data_->starts[static_cast<uint8_t>(text[0])]) return found;
  const auto& units = data_->units;
  uint32_t node = Offset(units[0]);
  for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (node >= units.size() || Label(units[node]) != byte) break;
    const uint32_t unit = units[node];
    node ^= Offset(unit);
    if (node >= units.size()) break;
    if (!HasLeaf(unit)) continue;
    const size_t begin = Value(units[node]);
    if (begin > data_->texts.size()) break;
    std::string_view replacement = std::string_view(data_->texts).substr(begin, kMaxReplacement);
    replacement = replacement.substr(0, replacement.find('\0'));
    // A broken file could point into a character: nothing that is not text may come of it.
    if (FirstInvalidUtf8(replacement) != std::string_view::npos ||
        FirstInvalidUtf8(text.substr(0, i + 1)) != std::string_view::npos)
      continue;
    found = {i + 1, replacement};
    if (!longest) break;
  }
  return found;
}

void Charsmap::AppendMapped(std::string_view text, std::string* out) const {
  const Found found = Find(text, false);
  out->append(found.length > 0 ? found.text : text);
}

std::string Charsmap::ReplaceByGrapheme(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  const auto plain = [&](size_t at) {
    return at >= text.size() || (static_cast<uint8_t>(text[at]) < 0x80 && text[at] != '\n' && text[at] != '\r');
  };
  for (size_t at = 0; at < text.size();) {
    if (plain(at) && plain(at + 1)) {  // neighbouring ASCII characters never join
      AppendMapped(text.substr(at, 1), &out);
      ++at;
      continue;
    }
    Character c = CharacterAt(text, at);
    size_t end = at + c.length;
    int32_t state = 0;
    while (end < text.size()) {
      const Character next = CharacterAt(text, end);
      if (!JoinsGrapheme(c.code, next.code, &state)) break;
      end += next.length;
      c = next;
    }
    const std::string_view cluster = text.substr(at, end - at);
    if (cluster.size() < kShortGrapheme && Find(cluster, false).length > 0) {
      AppendMapped(cluster, &out);
    } else {
      for (size_t i = 0; i < cluster.size();) {
        const int length = CharacterAt(cluster, i).length;
        AppendMapped(cluster.substr(i, length), &out);
        i += length;
      }
    }
    at = end;
  }
  return out;
}

std::string Charsmap::ReplaceLongest(std::string_view text) const {
  if (data_ == nullptr) return std::string(text);
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Found found = Find(text.substr(at), true);
    const size_t length = found.length > 0 ? found.length : static_cast<size_t>(CharacterAt(text, at).length);
    out.append(found.length > 0 ? found.text : text.substr(at, length));
    at += length;
  }
  return out;
}

}  // namespace kvasir
