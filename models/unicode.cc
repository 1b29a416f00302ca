#include "models/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "models/unicode_ages.h"

namespace kvasir {

Utf8Step NextUtf8(const char* bytes, size_t size) {
  const auto* p = reinterpret_cast<const unsigned char*>(bytes);
  const unsigned char lead = p[0];
  if (lead < 0x80) return {1, true, false};
  int length = 0;
  unsigned char low = 0x80, high = 0xBF;  // allowed range of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // no overlong forms
    if (lead == 0xED) high = 0x9F;  // no surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {1, false, false};
  }
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= size) return {i, false, true};
    if (p[i] < low || p[i] > high) return {i, false, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true, false};
}

size_t FirstInvalidUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Step step = NextUtf8(text.data() + i, text.size() - i);
    if (!step.valid) return i;
    i += step.length;
  }
  return std::string_view::npos;
}

size_t PreviousCharacter(std::string_view text, size_t offset) {
  do {
    --offset;
  } while (offset > 0 && (static_cast<unsigned char>(text[offset]) & 0xC0) == 0x80);
  return offset;
}

void AppendUtf8(char32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | code >> 6));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | code >> 12));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | code >> 18));
    out->push_back(static_cast<char>(0x80 | (code >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
}

size_t AppendLossyUtf8(std::string_view bytes, bool at_end, std::string* out) {
  size_t i = 0;
  while (i < bytes.size()) {
    const Utf8Step step = NextUtf8(bytes.data() + i, bytes.size() - i);
    if (step.incomplete && !at_end) break;
    if (step.valid) {
      out->append(bytes, i, step.length);
    } else {
      out->append(kReplacementCharacter);
    }
    i += step.length;
  }
  return i;
}

bool IsWhitespace(char32_t code) {
  if (code < 0x80) return code == ' ' || (code >= 0x09 && code <= 0x0D);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

namespace {

utf8proc_category_t Category(char32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

}  // namespace

bool IsNumeric(char32_t code) {
  if (code < 0x80) return code >= '0' && code <= '9';
  const auto c = Category(code);
  return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO || IsYoungNumeral(code);
}

bool IsPunctuation(char32_t code) {
  if (code < 0x80)
    return (code >= 33 && code <= 47) || (code >= 58 && code <= 64) || (code >= 91 && code <= 96) || (code >= 123 && code <= 126);
  if (code == 0x166D || code == 0x111C9) return true;  // no longer punctuation since Unicode 12 and 11
  const auto c = Category(code);
  if (c < UTF8PROC_CATEGORY_PC || c > UTF8PROC_CATEGORY_PO) return false;
  return !IsYoungPunctuation(code);
}

bool IsMark(char32_t code) {
  const auto c = Category(code);
  return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
}

bool IsNonspacingMark(char32_t code) {
  return Category(code) == UTF8PROC_CATEGORY_MN;
}

bool IsOther(char32_t code) {
  const auto c = Category(code);
  return c == UTF8PROC_CATEGORY_CC || c == UTF8PROC_CATEGORY_CF || c == UTF8PROC_CATEGORY_CO;
}

bool JoinsGrapheme(char32_t before, char32_t after, int32_t* state) {
  return !utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(before), static_cast<utf8proc_int32_t>(after), state);
}

bool IsWord(char32_t code) {
  if (code < 0x80) return (code >= '0' && code <= '9') || ((code | 0x20) >= 'a' && (code | 0x20) <= 'z') || code == '_';
  if (code == 0x200C || code == 0x200D) return true;  // Join_Control
  // Other_Alphabetic symbols (category So): circled and squared Latin letters.
  if ((code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) || (code >= 0x1F150 && code <= 0x1F169) ||
      (code >= 0x1F170 && code <= 0x1F189)) {
    return true;
  }
  const auto c = Category(code);
  return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO) || IsMark(code) || c == UTF8PROC_CATEGORY_ND ||
         c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_PC || IsYoungWordCharacter(code);
}

namespace {

// Canonical ordering: each run of characters with a non-zero combining class is sorted stably by class. (utf8proc's own pass
// exchanges neighbours and is quadratic in the length of a run, which a request may choose.)
void OrderMarks(std::vector<utf8proc_int32_t>* codes) {
  const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  size_t i = 0;
  while (i < codes->size()) {
    if ((*codes)[i] < 0x300 || combining_class((*codes)[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < codes->size() && combining_class((*codes)[end]) != 0) ++end;
    std::stable_sort(codes->begin() + i, codes->begin() + end,
                     [&](utf8proc_int32_t a, utf8proc_int32_t b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
}

}  // namespace

std::string Normalize(std::string_view text, NormalForm form) {
  const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  if (ascii) return std::string(text);
  const bool compatibility = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (compatibility) options |= UTF8PROC_COMPAT;
  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Character c = CharacterAt(text, i);
    i += c.length;
    if (compatibility && IsYoungComposition(c.code)) {
      codes.push_back(static_cast<utf8proc_int32_t>(c.code));
      continue;
    }
    utf8proc_int32_t expansion[32];  // the longest decomposition has 18 characters (U+FDFA)
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.code), expansion, 32,
                                               static_cast<utf8proc_option_t>(options), nullptr);
    if (count < 0 || count > 32) {
      codes.push_back(static_cast<utf8proc_int32_t>(c.code));
    } else {
      codes.insert(codes.end(), expansion, expansion + count);
    }
  }
  OrderMarks(&codes);
  size_t length = codes.size();
  if (compose && length > 0) {
    const auto composed = utf8proc_normalize_utf32(codes.data(), static_cast<utf8proc_ssize_t>(length),
                                                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (composed >= 0) length = static_cast<size_t>(composed);
  }
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < length; ++i) AppendUtf8(static_cast<char32_t>(codes[i]), &out);
  return out;
}

std::string Lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Character c = CharacterAt(text, i);
    i += c.length;
    if (c.code == 0x130) {  // the only character whose full lower case is two characters
      out += "i\xCC\x87";
    } else {
      AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(YoungLowercase(c.code)))), &out);
    }
  }
  return out;
}

namespace {

struct ByteAlphabet {
  std::array<char32_t, 256> character;
  std::array<int16_t, 512> byte;
};

// Printable Latin-1 bytes stand for themselves; the other 68 are numbered from U+0100 in order.
const ByteAlphabet& Alphabet() {
  static const ByteAlphabet alphabet = [] {
    ByteAlphabet a;
    a.byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      a.character[b] = itself ? static_cast<char32_t>(b) : next++;
      a.byte[a.character[b]] = static_cast<int16_t>(b);
    }
    return a;
  }();
  return alphabet;
}

}  // namespace

char32_t ByteLevelCharacter(uint8_t byte) {
  return Alphabet().character[byte];
}

std::optional<uint8_t> ByteLevelByte(char32_t code) {
  if (code >= Alphabet().byte.size() || Alphabet().byte[code] < 0) return std::nullopt;
  return static_cast<uint8_t>(Alphabet().byte[code]);
}

std::optional<std::string> ByteLevelDecode(std::string_view piece) {
  std::string bytes;
  bytes.reserve(piece.size());
  for (size_t i = 0; i < piece.size();) {
    const Character c = CharacterAt(piece, i);
    i += c.length;
    const auto byte = ByteLevelByte(c.code);
    if (!byte) return std::nullopt;
    bytes.push_back(static_cast<char>(*byte));
  }
  return bytes;
}

std::string ByteLevelEncode(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char b : bytes) AppendUtf8(ByteLevelCharacter(static_cast<uint8_t>(b)), &out);
  return out;
}

}  // namespace kvasir
