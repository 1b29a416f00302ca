// Unicode for the tokenizer: UTF-8 decoding, the character classes of tokenizer.json and normal forms.
//
// Used by the normalizers, pre-tokenizers, added tokens and detokenizers of models/. Text is UTF-8 in std::string; the
// functions that take "valid" text trust it, so callers check once with FirstInvalidUtf8. Every function is pure,
// thread-safe and linear in its input (normal forms: n log n in the length of a run of combining marks).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvasir {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// One step of a decoder that follows the "maximal subpart" rule of the Unicode standard (chapter 3, U+FFFD substitution).
struct Utf8Step {
  int length = 0;           // bytes taken, at least 1
  bool valid = false;       // they are one well-formed character
  bool incomplete = false;  // not valid, but more bytes could make it so (the text ends inside a character)
};
Utf8Step NextUtf8(const char* bytes, size_t size);  // size >= 1

// Byte offset of the first malformed sequence, or npos.
size_t FirstInvalidUtf8(std::string_view text);

// The character at text[offset] of valid UTF-8, and its length in bytes.
struct Character {
  char32_t code;
  int length;
};
inline Character CharacterAt(std::string_view text, size_t offset) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data()) + offset;
  if (p[0] < 0x80) return {p[0], 1};
  if (p[0] < 0xE0) return {static_cast<char32_t>((p[0] & 0x1F) << 6 | (p[1] & 0x3F)), 2};
  if (p[0] < 0xF0) return {static_cast<char32_t>((p[0] & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F)), 3};
  return {static_cast<char32_t>((p[0] & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F)), 4};
}
// Offset of the first byte of the character that ends before `offset` (> 0).
size_t PreviousCharacter(std::string_view text, size_t offset);

void AppendUtf8(char32_t code, std::string* out);

// Appends `bytes` to `out`, each malformed maximal subpart as one U+FFFD. Unless `at_end`, a character cut off by the end of
// `bytes` is left alone. Returns how many bytes were taken.
size_t AppendLossyUtf8(std::string_view bytes, bool at_end, std::string* out);

bool IsWhitespace(char32_t code);   // White_Space property
bool IsNumeric(char32_t code);      // Nd, Nl, No
bool IsPunctuation(char32_t code);  // P* of Unicode 8, and every ASCII punctuation character
bool IsMark(char32_t code);         // Mn, Mc, Me
bool IsNonspacingMark(char32_t code);  // Mn
bool IsOther(char32_t code);           // Cc, Cf, Co
bool IsWord(char32_t code);         // \w of UTS 18: Alphabetic, marks, Nd, Pc, joiners

// No grapheme cluster ends between `before` and `after`. *state is 0 at the start of a text and is carried along.
bool JoinsGrapheme(char32_t before, char32_t after, int32_t* state);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
std::string Normalize(std::string_view valid_text, NormalForm form);
std::string Lowercase(std::string_view valid_text);

// The alphabet of byte-level BPE: each byte stands as one printable character (space is U+0120).
char32_t ByteLevelCharacter(uint8_t byte);
std::optional<uint8_t> ByteLevelByte(char32_t code);
// The bytes that `piece` spells in that alphabet, or nothing when a character lies outside it.
std::optional<std::string> ByteLevelDecode(std::string_view piece);
std::string ByteLevelEncode(std::string_view bytes);

}  // namespace kvasir
