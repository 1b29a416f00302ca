// Regular expressions as tokenizer.json writes them (Oniguruma with Ruby syntax), run by PCRE2 with its JIT.
//
// Used by the Split pre-tokenizer and the Replace normalizer and decoder. Compile translates the few constructs on which the two
// engines differ (\s, \w, \h, \uHHHH, interval+, inline m) and refuses what it cannot translate, so a pattern never
// silently means something else. Matching is thread-safe (match data is per thread) and has a step limit.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

struct pcre2_real_code_8;

namespace kvasir {

// One stretch of a text cut by a pattern: the stretches follow each other and cover the whole text.
struct Span {
  size_t begin = 0;
  size_t end = 0;
  bool is_match = false;
};

class TextRegex {
 public:
  static StatusOr<TextRegex> Compile(std::string_view pattern);

  // Cuts valid UTF-8 into matches and the stretches between them, replacing *spans. Empty text gives one empty stretch.
  // Fails when the pattern needs more steps than the limit on this text.
  Status Cut(std::string_view text, std::vector<Span>* spans) const;

  const std::string& pattern() const { return pattern_; }

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::string pattern_;
  std::shared_ptr<const pcre2_real_code_8> code_;
};

// The pattern in PCRE2's syntax; exposed for tests.
StatusOr<std::string> TranslateOniguruma(std::string_view pattern);

// A literal cut the same way.
void CutAtLiteral(std::string_view text, std::string_view literal, std::vector<Span>* spans);

}  // namespace kvasir
