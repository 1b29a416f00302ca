#include "models/jinja_text.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace kvasir::jinja {
namespace {

// Code points whose upper or title case is longer than one code point (Unicode's SpecialCasing.txt, unconditional part).
struct SpecialCase {
  char32_t from;
  const char32_t* upper;
  const char32_t* title;
};
constexpr SpecialCase kSpecialCases[] = {
    {0xdf, U"\x0053\x0053", U"\x0053\x0073"},
    {0x149, U"\x02bc\x004e", U"\x02bc\x004e"},
    {0x1f0, U"\x004a\x030c", U"\x004a\x030c"},
    {0x390, U"\x0399\x0308\x0301", U"\x0399\x0308\x0301"},
    {0x3b0, U"\x03a5\x0308\x0301", U"\x03a5\x0308\x0301"},
    {0x587, U"\x0535\x0552", U"\x0535\x0582"},
    {0x1e96, U"\x0048\x0331", U"\x0048\x0331"},
    {0x1e97, U"\x0054\x0308", U"\x0054\x0308"},
    {0x1e98, U"\x0057\x030a", U"\x0057\x030a"},
    {0x1e99, U"\x0059\x030a", U"\x0059\x030a"},
    {0x1e9a, U"\x0041\x02be", U"\x0041\x02be"},
    {0x1f50, U"\x03a5\x0313", U"\x03a5\x0313"},
    {0x1f52, U"\x03a5\x0313\x0300", U"\x03a5\x0313\x0300"},
    {0x1f54, U"\x03a5\x0313\x0301", U"\x03a5\x0313\x0301"},
    {0x1f56, U"\x03a5\x0313\x0342", U"\x03a5\x0313\x0342"},
    {0x1f80, U"\x1f08\x0399", U"\x1f88"},
    {0x1f81, U"\x1f09\x0399", U"\x1f89"},
    {0x1f82, U"\x1f0a\x0399", U"\x1f8a"},
    {0x1f83, U"\x1f0b\x0399", U"\x1f8b"},
    {0x1f84, U"\x1f0c\x0399", U"\x1f8c"},
    {0x1f85, U"\x1f0d\x0399", U"\x1f8d"},
    {0x1f86, U"\x1f0e\x0399", U"\x1f8e"},
    {0x1f87, U"\x1f0f\x0399", U"\x1f8f"},
    {0x1f88, U"\x1f08\x0399", U"\x1f88"},
    {0x1f89, U"\x1f09\x0399", U"\x1f89"},
    {0x1f8a, U"\x1f0a\x0399", U"\x1f8a"},
    {0x1f8b, U"\x1f0b\x0399", U"\x1f8b"},
    {0x1f8c, U"\x1f0c\x0399", U"\x1f8c"},
    {0x1f8d, U"\x1f0d\x0399", U"\x1f8d"},
    {0x1f8e, U"\x1f0e\x0399", U"\x1f8e"},
    {0x1f8f, U"\x1f0f\x0399", U"\x1f8f"},
    {0x1f90, U"\x1f28\x0399", U"\x1f98"},
    {0x1f91, U"\x1f29\x0399", U"\x1f99"},
    {0x1f92, U"\x1f2a\x0399", U"\x1f9a"},
    {0x1f93, U"\x1f2b\x0399", U"\x1f9b"},
    {0x1f94, U"\x1f2c\x0399", U"\x1f9c"},
    {0x1f95, U"\x1f2d\x0399", U"\x1f9d"},
    {0x1f96, U"\x1f2e\x0399", U"\x1f9e"},
    {0x1f97, U"\x1f2f\x0399", U"\x1f9f"},
    {0x1f98, U"\x1f28\x0399", U"\x1f98"},
    {0x1f99, U"\x1f29\x0399", U"\x1f99"},
    {0x1f9a, U"\x1f2a\x0399", U"\x1f9a"},
    {0x1f9b, U"\x1f2b\x0399", U"\x1f9b"},
    {0x1f9c, U"\x1f2c\x0399", U"\x1f9c"},
    {0x1f9d, U"\x1f2d\x0399", U"\x1f9d"},
    {0x1f9e, U"\x1f2e\x0399", U"\x1f9e"},
    {0x1f9f, U"\x1f2f\x0399", U"\x1f9f"},
    {0x1fa0, U"\x1f68\x0399", U"\x1fa8"},
    {0x1fa1, U"\x1f69\x0399", U"\x1fa9"},
    {0x1fa2, U"\x1f6a\x0399", U"\x1faa"},
    {0x1fa3, U"\x1f6b\x0399", U"\x1fab"},
    {0x1fa4, U"\x1f6c\x0399", U"\x1fac"},
    {0x1fa5, U"\x1f6d\x0399", U"\x1fad"},
    {0x1fa6, U"\x1f6e\x0399", U"\x1fae"},
    {0x1fa7, U"\x1f6f\x0399", U"\x1faf"},
    {0x1fa8, U"\x1f68\x0399", U"\x1fa8"},
    {0x1fa9, U"\x1f69\x0399", U"\x1fa9"},
    {0x1faa, U"\x1f6a\x0399", U"\x1faa"},
    {0x1fab, U"\x1f6b\x0399", U"\x1fab"},
    {0x1fac, U"\x1f6c\x0399", U"\x1fac"},
    {0x1fad, U"\x1f6d\x0399", U"\x1fad"},
    {0x1fae, U"\x1f6e\x0399", U"\x1fae"},
    {0x1faf, U"\x1f6f\x0399", U"\x1faf"},
    {0x1fb2, U"\x1fba\x0399", U"\x1fba\x0345"},
    {0x1fb3, U"\x0391\x0399", U"\x1fbc"},
    {0x1fb4, U"\x0386\x0399", U"\x0386\x0345"},
    {0x1fb6, U"\x0391\x0342", U"\x0391\x0342"},
    {0x1fb7, U"\x0391\x0342\x0399", U"\x0391\x0342\x0345"},
    {0x1fbc, U"\x0391\x0399", U"\x1fbc"},
    {0x1fc2, U"\x1fca\x0399", U"\x1fca\x0345"},
    {0x1fc3, U"\x0397\x0399", U"\x1fcc"},
    {0x1fc4, U"\x0389\x0399", U"\x0389\x0345"},
    {0x1fc6, U"\x0397\x0342", U"\x0397\x0342"},
    {0x1fc7, U"\x0397\x0342\x0399", U"\x0397\x0342\x0345"},
    {0x1fcc, U"\x0397\x0399", U"\x1fcc"},
    {0x1fd2, U"\x0399\x0308\x0300", U"\x0399\x0308\x0300"},
    {0x1fd3, U"\x0399\x0308\x0301", U"\x0399\x0308\x0301"},
    {0x1fd6, U"\x0399\x0342", U"\x0399\x0342"},
    {0x1fd7, U"\x0399\x0308\x0342", U"\x0399\x0308\x0342"},
    {0x1fe2, U"\x03a5\x0308\x0300", U"\x03a5\x0308\x0300"},
    {0x1fe3, U"\x03a5\x0308\x0301", U"\x03a5\x0308\x0301"},
    {0x1fe4, U"\x03a1\x0313", U"\x03a1\x0313"},
    {0x1fe6, U"\x03a5\x0342", U"\x03a5\x0342"},
    {0x1fe7, U"\x03a5\x0308\x0342", U"\x03a5\x0308\x0342"},
    {0x1ff2, U"\x1ffa\x0399", U"\x1ffa\x0345"},
    {0x1ff3, U"\x03a9\x0399", U"\x1ffc"},
    {0x1ff4, U"\x038f\x0399", U"\x038f\x0345"},
    {0x1ff6, U"\x03a9\x0342", U"\x03a9\x0342"},
    {0x1ff7, U"\x03a9\x0342\x0399", U"\x03a9\x0342\x0345"},
    {0x1ffc, U"\x03a9\x0399", U"\x1ffc"},
    {0xfb00, U"\x0046\x0046", U"\x0046\x0066"},
    {0xfb01, U"\x0046\x0049", U"\x0046\x0069"},
    {0xfb02, U"\x0046\x004c", U"\x0046\x006c"},
    {0xfb03, U"\x0046\x0046\x0049", U"\x0046\x0066\x0069"},
    {0xfb04, U"\x0046\x0046\x004c", U"\x0046\x0066\x006c"},
    {0xfb05, U"\x0053\x0054", U"\x0053\x0074"},
    {0xfb06, U"\x0053\x0054", U"\x0053\x0074"},
    {0xfb13, U"\x0544\x0546", U"\x0544\x0576"},
    {0xfb14, U"\x0544\x0535", U"\x0544\x0565"},
    {0xfb15, U"\x0544\x053b", U"\x0544\x056b"},
    {0xfb16, U"\x054e\x0546", U"\x054e\x0576"},
    {0xfb17, U"\x0544\x053d", U"\x0544\x056d"},
};

const SpecialCase* FindSpecial(char32_t c) {
  if (c < 0xdf) return nullptr;
  const auto* end = std::end(kSpecialCases);
  const auto* it =
      std::lower_bound(std::begin(kSpecialCases), end, c, [](const SpecialCase& s, char32_t x) { return s.from < x; });
  return it != end && it->from == c ? it : nullptr;
}

int Category(char32_t c) {
  return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->category;
}

void AppendAll(const char32_t* text, std::string* out) {
  for (; *text; text++) AppendUtf8(*text, out);
}

void AppendUpper(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : static_cast<char>(c));
  } else if (const SpecialCase* special = FindSpecial(c)) {
    AppendAll(special->upper, out);
  } else {
    AppendUtf8(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)), out);
  }
}

void AppendTitle(char32_t c, std::string* out) {
  if (const SpecialCase* special = FindSpecial(c)) return AppendAll(special->title, out);
  AppendUtf8(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)), out);
}

bool IsCased(char32_t c) {
  return IsUpper(c) || IsLower(c) || IsTitle(c);
}

bool IsCaseIgnorable(char32_t c) {
  if (c == '\'' || c == '.' || c == ':' || c == '^' || c == '`' || c == 0xa8 || c == 0xad || c == 0xaf || c == 0xb4 ||
      c == 0xb7 || c == 0xb8 || c == 0x2019) {
    return true;
  }
  const int category = Category(c);
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME || category == UTF8PROC_CATEGORY_CF ||
         category == UTF8PROC_CATEGORY_LM || category == UTF8PROC_CATEGORY_SK;
}

// Sigma is written differently at the end of a word (Unicode's Final_Sigma condition).
bool IsFinalSigma(std::string_view text, size_t begin, size_t end) {
  bool cased_before = false;
  for (size_t at = begin; at > 0;) {
    at = PreviousStart(text, at);
    size_t next = at;
    const char32_t c = NextCodePoint(text, &next);
    if (IsCaseIgnorable(c)) continue;
    cased_before = IsCased(c);
    break;
  }
  if (!cased_before) return false;
  for (size_t at = end; at < text.size();) {
    const char32_t c = NextCodePoint(text, &at);
    if (IsCaseIgnorable(c)) continue;
    return !IsCased(c);
  }
  return true;
}

// Lowers the code point at bytes [begin, end) of `text`.
void AppendLower(std::string_view text, size_t begin, size_t end, char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : static_cast<char>(c));
  } else if (c == 0x130) {
    out->append("i\xcc\x87");
  } else if (c == 0x3a3) {
    AppendUtf8(IsFinalSigma(text, begin, end) ? 0x3c2 : 0x3c3, out);
  } else {
    AppendUtf8(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)), out);
  }
}

bool IsLineBreak(char32_t c) {
  return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace

bool IsValidUtf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      at++;
      continue;
    }
    utf8proc_int32_t c;
    const auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                    static_cast<utf8proc_ssize_t>(text.size() - at), &c);
    if (n <= 0) return false;
    at += static_cast<size_t>(n);
  }
  return true;
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

int64_t CodePointCount(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

char32_t NextCodePoint(std::string_view text, size_t* at) {
  const auto byte = [&](size_t i) -> char32_t { return i < text.size() ? static_cast<unsigned char>(text[i]) & 0x3f : 0; };
  const auto first = static_cast<unsigned char>(text[*at]);
  const size_t i = *at;
  if (first < 0x80) {
    *at = i + 1;
    return first;
  }
  if (first < 0xe0) {
    *at = std::min(i + 2, text.size());
    return (static_cast<char32_t>(first & 0x1f) << 6) | byte(i + 1);
  }
  if (first < 0xf0) {
    *at = std::min(i + 3, text.size());
    return (static_cast<char32_t>(first & 0x0f) << 12) | (byte(i + 1) << 6) | byte(i + 2);
  }
  *at = std::min(i + 4, text.size());
  return (static_cast<char32_t>(first & 0x07) << 18) | (byte(i + 1) << 12) | (byte(i + 2) << 6) | byte(i + 3);
}

size_t PreviousStart(std::string_view text, size_t at) {
  do at--;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80);
  return at;
}

void AppendUtf8(char32_t c, std::string* out) {
  utf8proc_uint8_t bytes[4];
  const auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  out->append(reinterpret_cast<char*>(bytes), static_cast<size_t>(n));
}

size_t ByteOffset(std::string_view text, int64_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); index--) NextCodePoint(text, &at);
  return at;
}

bool IsSpace(char32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

bool IsPrintable(char32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7f;
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool IsAlpha(char32_t c) {
  const int k = Category(c);
  return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT || k == UTF8PROC_CATEGORY_LM ||
         k == UTF8PROC_CATEGORY_LO;
}
bool IsDecimal(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_ND;
}
bool IsDigit(char32_t c) {
  return IsDecimal(c) || c == 0xb2 || c == 0xb3 || c == 0xb9 || c == 0x2070 || (c >= 0x2074 && c <= 0x2079) ||
         (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468);
}
bool IsNumeric(char32_t c) {
  const int k = Category(c);
  return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}
bool IsIdentifierStart(char32_t c) {
  return c == '_' || IsAlpha(c) || Category(c) == UTF8PROC_CATEGORY_NL;
}
bool IsIdentifierPart(char32_t c) {
  const int k = Category(c);
  return IsIdentifierStart(c) || k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC ||
         k == UTF8PROC_CATEGORY_PC;
}
bool IsUpper(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216f) || (c >= 0x24b6 && c <= 0x24cf);
}
bool IsLower(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LL || c == 0xaa || c == 0xba || (c >= 0x2b0 && c <= 0x2b8) ||
         (c >= 0x2170 && c <= 0x217f) || (c >= 0x24d0 && c <= 0x24e9);
}
bool IsTitle(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LT;
}

std::string Upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) AppendUpper(NextCodePoint(text, &at), &out);
  return out;
}

std::string Lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = NextCodePoint(text, &at);
    AppendLower(text, begin, at, c, &out);
  }
  return out;
}

std::string Capitalize(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = NextCodePoint(text, &at);
    if (begin == 0) {
      AppendTitle(c, &out);
    } else {
      AppendLower(text, begin, at, c, &out);
    }
  }
  return out;
}

std::string Title(std::string_view text) {
  std::string out;
  bool previous_cased = false;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = NextCodePoint(text, &at);
    if (previous_cased) {
      AppendLower(text, begin, at, c, &out);
    } else {
      AppendTitle(c, &out);
    }
    previous_cased = IsCased(c);
  }
  return out;
}

std::string SwapCase(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = NextCodePoint(text, &at);
    if (IsUpper(c)) {
      AppendLower(text, begin, at, c, &out);
    } else if (IsLower(c)) {
      AppendUpper(c, &out);
    } else {
      AppendUtf8(c, &out);
    }
  }
  return out;
}

std::string CaseFold(std::string_view text) {
  utf8proc_uint8_t* folded = nullptr;
  const auto n = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                              &folded, UTF8PROC_CASEFOLD);
  std::string out = n >= 0 ? std::string(reinterpret_cast<char*>(folded), static_cast<size_t>(n)) : std::string(text);
  free(folded);
  return out;
}

std::string_view Strip(std::string_view text, const std::string_view* chars, bool left, bool right) {
  const auto strips = [&](size_t at) {
    size_t next = at;
    const char32_t c = NextCodePoint(text, &next);
    if (chars == nullptr) return IsSpace(c);
    return chars->find(text.substr(at, next - at)) != std::string_view::npos;
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end && strips(begin)) NextCodePoint(text, &begin);
  while (right && end > begin) {
    const size_t start = PreviousStart(text, end);
    if (!strips(start)) break;
    end = start;
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string_view> SplitWhitespace(std::string_view text, int64_t max_splits) {
  std::vector<std::string_view> out;
  text = Strip(text, nullptr, true, false);
  while (!text.empty()) {
    if (max_splits >= 0 && static_cast<int64_t>(out.size()) >= max_splits) {
      out.push_back(text);  // the rest keeps the space at its far end
      break;
    }
    size_t end = 0;
    for (size_t at = 0; at < text.size(); end = at) {
      if (IsSpace(NextCodePoint(text, &at))) break;
    }
    out.push_back(text.substr(0, end));
    text = Strip(text.substr(end), nullptr, true, false);
  }
  return out;
}

std::vector<std::string_view> RSplitWhitespace(std::string_view text, int64_t max_splits) {
  std::vector<std::string_view> out;
  text = Strip(text, nullptr, false, true);
  while (!text.empty()) {
    if (max_splits >= 0 && static_cast<int64_t>(out.size()) >= max_splits) {
      out.push_back(text);
      break;
    }
    size_t begin = text.size();
    while (begin > 0) {
      const size_t start = PreviousStart(text, begin);
      size_t next = start;
      if (IsSpace(NextCodePoint(text, &next))) break;
      begin = start;
    }
    out.push_back(text.substr(begin));
    text = Strip(text.substr(0, begin), nullptr, false, true);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> Split(std::string_view text, std::string_view separator, int64_t max_splits) {
  std::vector<std::string_view> out;
  while (max_splits < 0 || static_cast<int64_t>(out.size()) < max_splits) {
    const size_t found = text.find(separator);
    if (found == std::string_view::npos) break;
    out.push_back(text.substr(0, found));
    text.remove_prefix(found + separator.size());
  }
  out.push_back(text);
  return out;
}

std::vector<std::string_view> RSplit(std::string_view text, std::string_view separator, int64_t max_splits) {
  std::vector<std::string_view> out;
  while (max_splits < 0 || static_cast<int64_t>(out.size()) < max_splits) {
    const size_t found = text.rfind(separator);
    if (found == std::string_view::npos) break;
    out.push_back(text.substr(found + separator.size()));
    text = text.substr(0, found);
  }
  out.push_back(text);
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const char32_t c = NextCodePoint(text, &at);
    if (!IsLineBreak(c)) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') at++;
    out.push_back(text.substr(begin, (keep_ends ? at : start) - begin));
    begin = at;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

std::string ReprString(std::string_view text) {
  const char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = NextCodePoint(text, &at);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsPrintable(c)) {
      out.append(text.substr(begin, at - begin));
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  out.push_back(quote);
  return out;
}

std::string ReprFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));
  const size_t e = text.find('e');
  const int exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(text);
  end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed).ptr;
  std::string out(buffer, static_cast<size_t>(end - buffer));
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

void AppendJsonString(std::string_view text, bool ensure_ascii, std::string* out) {
  out->push_back('"');
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = NextCodePoint(text, &at);
    switch (c) {
      case '"':
        *out += "\\\"";
        continue;
      case '\\':
        *out += "\\\\";
        continue;
      case '\n':
        *out += "\\n";
        continue;
      case '\r':
        *out += "\\r";
        continue;
      case '\t':
        *out += "\\t";
        continue;
      case '\b':
        *out += "\\b";
        continue;
      case '\f':
        *out += "\\f";
        continue;
      default:
        break;
    }
    if (c < 0x20 || (ensure_ascii && c >= 0x7f && c < 0x10000)) {
      *out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else if (ensure_ascii && c >= 0x10000) {
      const uint32_t v = static_cast<uint32_t>(c) - 0x10000;
      *out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (v >> 10), 0xdc00 + (v & 0x3ff));
    } else {
      out->append(text.substr(begin, at - begin));
    }
  }
  out->push_back('"');
}

}  // namespace kvasir::jinja
