// Characters on which the tables of the reference and those of the libraries used here disagree, because they are of different ages.
//
// Used by unicode.cc and text_regex.cc. The reference (tokenizers 0.23) has Unicode 16 in its regular expressions, about 8 in what
// BERT and StripAccents use, 12 in its normal forms and 17 in lower case; utf8proc 2.8 has 15 and PCRE2 10.42 has 14. The lists were
// found by asking both sides about every code point; with newer libraries they are redundant, not wrong.
#pragma once

#include <string_view>

namespace kvasir {

bool IsYoungPunctuation(char32_t code);     // no punctuation to the reference
bool IsYoungMark(char32_t code);            // StripAccents leaves it
bool IsYoungNonspacingMark(char32_t code);  // BertNormalizer leaves it
bool IsYoungControl(char32_t code);         // BertNormalizer leaves it
bool IsYoungNumeral(char32_t code);         // a numeral to the reference only
bool IsYoungWordCharacter(char32_t code);   // a word character to the reference only
bool IsYoungComposition(char32_t code);     // has a compatibility decomposition that the reference does not know
char32_t YoungLowercase(char32_t code);     // the lower case that utf8proc does not know; else `code` itself

// What Oniguruma's \p{property} holds beyond PCRE2's, as the inside of a class; "w" stands for \w. Empty where nothing is missing.
std::string_view RegexAdditions(std::string_view property);

}  // namespace kvasir
