// Python's str, as far as chat templates see it: code points, white space, case mapping, splitting, float repr.
//
// Used by the Jinja interpreter only. Every function takes valid UTF-8 (the interpreter checks its source and its context at
// the border) and returns valid UTF-8. Lengths and indices are code points where the name says so, bytes elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvasir::jinja {

bool IsValidUtf8(std::string_view text);
bool IsAscii(std::string_view text);
int64_t CodePointCount(std::string_view text);
// Reads the code point at byte `*at` and moves past it.
char32_t NextCodePoint(std::string_view text, size_t* at);
// The byte where the code point before byte `at` begins.
size_t PreviousStart(std::string_view text, size_t at);
void AppendUtf8(char32_t c, std::string* out);
// The byte offset of code point `index`; text.size() when the text is shorter.
size_t ByteOffset(std::string_view text, int64_t index);

bool IsSpace(char32_t c);      // str.isspace, also what \s matches
bool IsPrintable(char32_t c);  // what repr() leaves as it is
bool IsIdentifierStart(char32_t c);
bool IsIdentifierPart(char32_t c);
bool IsAlpha(char32_t c);
bool IsDecimal(char32_t c);
bool IsDigit(char32_t c);
bool IsNumeric(char32_t c);
bool IsUpper(char32_t c);
bool IsLower(char32_t c);
bool IsTitle(char32_t c);

std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Capitalize(std::string_view text);
std::string Title(std::string_view text);
std::string SwapCase(std::string_view text);
std::string CaseFold(std::string_view text);

// Removes the code points of `chars` (white space when null) from the ends asked for.
std::string_view Strip(std::string_view text, const std::string_view* chars, bool left, bool right);
std::vector<std::string_view> SplitWhitespace(std::string_view text, int64_t max_splits);
std::vector<std::string_view> RSplitWhitespace(std::string_view text, int64_t max_splits);
std::vector<std::string_view> Split(std::string_view text, std::string_view separator, int64_t max_splits);
std::vector<std::string_view> RSplit(std::string_view text, std::string_view separator, int64_t max_splits);
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);

std::string ReprString(std::string_view text);  // 'quoted' as Python does
std::string ReprFloat(double value);            // shortest form that reads back: 1.0, 1e-05, inf, nan
std::string EscapeHtml(std::string_view text);  // & < > ' "
void AppendJsonString(std::string_view text, bool ensure_ascii, std::string* out);

}  // namespace kvasir::jinja
