#define PCRE2_CODE_UNIT_WIDTH 8
#include "models/text_regex.h"

#include <pcre2.h>

#include "models/unicode.h"
#include "models/unicode_ages.h"

namespace kvasir {
namespace {

constexpr size_t kMaxPatternBytes = 1 << 16;
constexpr uint32_t kMatchLimit = 20'000'000;  // steps of one match
constexpr size_t kJitStackBytes = 4 << 20;    // per thread, reserved and touched only as needed

// The 25 characters of the White_Space property, as the inside of a class. PCRE2's own \s also takes U+180E.
constexpr std::string_view kSpaces = R"(\t-\r\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kWords = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kLoneWords = R"(\xb2\xb3\xb9\xbc-\xbe)";  // Oniguruma counts these as \w too, but not inside a class

// Match data, context and JIT stack of one thread. One pair of offsets is enough: groups are never read.
struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);
  MatchState() {
    if (context == nullptr) return;
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, 64 << 10);  // KiB
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchState() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

MatchState& ThreadMatchState() {
  thread_local MatchState state;
  return state;
}

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[200] = {};
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

// Walks a pattern once and writes it in PCRE2's syntax.
class Translator {
 public:
  explicit Translator(std::string_view in) : in_(in) {}

  StatusOr<std::string> Run() {
    while (i_ < in_.size()) {
      const char c = in_[i_];
      if (c == '\\') {
        KVASIR_RETURN_IF_ERROR(Escape());
      } else if (in_class_) {
        KVASIR_RETURN_IF_ERROR(ClassCharacter());
      } else if (c == '[') {
        OpenClass();
      } else if (c == '(') {
        KVASIR_RETURN_IF_ERROR(OpenGroup());
      } else if (c == ')') {
        if (groups_.empty()) return InvalidArgument("unmatched ')' at byte {}", i_);
        atom_ = groups_.back();
        groups_.pop_back();
        out_ += in_[i_++];
      } else if (c == '{') {
        Interval();
      } else {
        if (c != '*' && c != '+' && c != '?') atom_ = out_.size();  // a quantifier keeps the atom it applies to
        const int length = CharacterAt(in_, i_).length;
        out_.append(in_, i_, length);
        i_ += length;
      }
    }
    return std::move(out_);
  }

 private:
  // Writes a class escape, with brackets of its own outside a class.
  Status Set(std::string_view inside, bool negated) {
    if (in_class_ && negated) {
      return InvalidArgument("'\\{}' inside [...] at byte {} is not supported; write the class out", in_[i_ + 1], i_);
    }
    if (in_class_) {
      out_ += inside;
    } else {
      out_ += negated ? "[^" : "[";
      out_ += inside;
      out_ += ']';
    }
    i_ += 2;
    return OkStatus();
  }

  std::string Words() const { return fmt::format("{}{}{}", kWords, RegexAdditions("w"), in_class_ ? "" : kLoneWords); }

  Status Escape() {
    if (!in_class_) atom_ = out_.size();
    if (i_ + 1 >= in_.size()) return InvalidArgument("the pattern ends with a lone backslash");
    switch (in_[i_ + 1]) {
      case 's':
        return Set(kSpaces, false);
      case 'S':
        if (in_class_) {
          out_ += R"(\P{White_Space})";
          i_ += 2;
          return OkStatus();
        }
        return Set(kSpaces, true);
      case 'w':
        return Set(Words(), false);
      case 'W':
        return Set(Words(), true);
      case 'h':
        return Set("0-9a-fA-F", false);
      case 'H':
        return Set("0-9a-fA-F", true);
      case 'u':
        return HexEscape();
      default: {
        out_ += '\\';
        const int length = CharacterAt(in_, i_ + 1).length;
        out_.append(in_, i_ + 1, length);
        const char kind = in_[i_ + 1];
        i_ += 1 + length;
        // \p{...} and \x{...}: the braces belong to the escape.
        if ((kind == 'p' || kind == 'P' || kind == 'x') && i_ < in_.size() && in_[i_] == '{') {
          const size_t close = in_.find('}', i_);
          if (close == std::string_view::npos) return InvalidArgument("'\\{}{{' at byte {} is not closed", kind, i_ - 2);
          const std::string_view added = kind == 'x' ? std::string_view() : RegexAdditions(in_.substr(i_ + 1, close - i_ - 1));
          const std::string property = fmt::format("{}{}", kind == 'x' ? "\\x" : "\\p", in_.substr(i_, close + 1 - i_));
          i_ = close + 1;
          if (!added.empty() && !(kind == 'P' && in_class_)) {  // the complement inside a class cannot be widened
            out_.resize(out_.size() - 2);
            out_ += in_class_ ? fmt::format("{}{}", property, added) : fmt::format("[{}{}{}]", kind == 'P' ? "^" : "", property, added);
          } else {
            out_.append(property, 2);
          }
        }
        return OkStatus();
      }
    }
  }

  Status HexEscape() {
    const std::string_view digits = in_.substr(i_ + 2, 4);
    if (digits.size() != 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      return InvalidArgument("'\\u' at byte {} must be followed by four hexadecimal digits", i_);
    }
    out_ += fmt::format("\\x{{{}}}", digits);
    i_ += 6;
    return OkStatus();
  }

  void OpenClass() {
    atom_ = out_.size();
    in_class_ = true;
    out_ += in_[i_++];
    if (i_ < in_.size() && in_[i_] == '^') out_ += in_[i_++];
    if (i_ < in_.size() && in_[i_] == ']') {  // a first ']' is a member
      out_ += "\\]";
      ++i_;
    }
  }

  Status ClassCharacter() {
    const char c = in_[i_];
    if (c == ']') {
      in_class_ = false;
    } else if (c == '[' && in_.substr(i_, 2) == "[:") {
      const size_t close = in_.find(":]", i_);
      if (close == std::string_view::npos) return InvalidArgument("'[:' at byte {} is not closed", i_);
      out_.append(in_, i_, close + 2 - i_);
      i_ = close + 2;
      return OkStatus();
    } else if (c == '[') {
      return InvalidArgument("a class inside a class at byte {} is not supported; write one class", i_);
    } else if (in_.substr(i_, 2) == "&&") {
      return InvalidArgument("the intersection of classes ('&&') at byte {} is not supported; use a lookahead", i_);
    }
    const int length = CharacterAt(in_, i_).length;
    out_.append(in_, i_, length);
    i_ += length;
    return OkStatus();
  }

  Status OpenGroup() {
    groups_.push_back(out_.size());
    if (in_.substr(i_, 2) == "(*") return InvalidArgument("'(*' at byte {} is not a group", i_);
    out_ += in_[i_++];
    if (in_.substr(i_, 1) != "?") return OkStatus();
    // Inline options: Ruby's m is PCRE2's s.
    size_t end = i_ + 1;
    while (end < in_.size() && (in_[end] == '-' || in_[end] == 'i' || in_[end] == 'm' || in_[end] == 'x')) ++end;
    if (end < in_.size() && (in_[end] == ':' || in_[end] == ')')) {
      for (; i_ < end; ++i_) out_ += in_[i_] == 'm' ? 's' : in_[i_];
      if (in_[end] == ':') out_ += in_[i_++];
      return OkStatus();
    }
    // Lookaround and named groups start alike in both; the characters up to the body are copied as they stand.
    for (const std::string_view opening : {"?=", "?!", "?<=", "?<!", "?>", "?:"}) {
      if (in_.substr(i_, opening.size()) == opening) {
        out_ += opening;
        i_ += opening.size();
        return OkStatus();
      }
    }
    return InvalidArgument("the group '{}' at byte {} is not supported", in_.substr(i_ - 1, 4), i_ - 1);
  }

  // X{n,m}+ repeats the interval in Ruby, while PCRE2 would make it possessive.
  void Interval() {
    size_t end = i_ + 1;
    while (end < in_.size() && ((in_[end] >= '0' && in_[end] <= '9') || in_[end] == ',')) ++end;
    const bool is_interval = end < in_.size() && in_[end] == '}' && end > i_ + 1;
    if (!is_interval) {
      atom_ = out_.size();
      out_ += "\\{";
      ++i_;
      return;
    }
    const std::string_view interval = in_.substr(i_, end + 1 - i_);
    i_ = end + 1;
    const bool repeated = i_ < in_.size() && in_[i_] == '+';
    // Repeated once to m times, again and again, is once or more; written so it needs no stack for a long run.
    if (repeated && (interval == "{1}" || interval.starts_with("{1,"))) return;
    out_ += interval;
    if (repeated) {
      out_.insert(atom_, "(?:");
      out_ += ')';
    }
  }

  std::string_view in_;
  std::string out_;
  size_t i_ = 0;
  size_t atom_ = 0;  // where the atom that a quantifier would apply to begins in out_
  bool in_class_ = false;
  std::vector<size_t> groups_;
};

}  // namespace

StatusOr<std::string> TranslateOniguruma(std::string_view pattern) {
  return Translator(pattern).Run();
}

void TextRegex::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

StatusOr<TextRegex> TextRegex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return InvalidArgument("the pattern has {} bytes; the limit is {}", pattern.size(), kMaxPatternBytes);
  }
  KVASIR_ASSIGN_OR_RETURN(const std::string translated, TranslateOniguruma(pattern));
  int error = 0;
  PCRE2_SIZE offset = 0;
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_NEVER_BACKSLASH_C | PCRE2_MULTILINE;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error, &offset, nullptr);
  if (code == nullptr) {
    return InvalidArgument("the pattern '{}' does not compile: {} (at byte {} of '{}')", pattern, ErrorText(error), offset,
                           translated);
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where the JIT cannot, the interpreter runs
  TextRegex regex;
  regex.pattern_ = std::string(pattern);
  regex.code_ = std::shared_ptr<const pcre2_real_code_8>(
      code, [](const pcre2_real_code_8* c) { FreeCode()(const_cast<pcre2_real_code_8*>(c)); });
  return regex;
}

Status TextRegex::Cut(std::string_view text, std::vector<Span>* spans) const {
  spans->clear();
  if (text.empty()) {
    spans->push_back({0, 0, false});
    return OkStatus();
  }
  MatchState& state = ThreadMatchState();
  if (state.data == nullptr || state.context == nullptr) return ResourceExhausted("no memory for a regular expression match");
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* pair = pcre2_get_ovector_pointer(state.data);
  size_t previous = 0;                        // end of the last stretch written
  size_t last_match_end = std::string::npos;  // an empty match right after a match is not one
  size_t from = 0;
  while (from <= text.size()) {
    int rc = pcre2_match(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, state.data, state.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, state.data, state.context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return InvalidArgument("the tokenizer's pattern '{}' gave up at byte {} of the text: {}; shorten or simplify the text",
                             pattern_, from, ErrorText(rc));
    }
    const size_t begin = pair[0], end = pair[1];
    if (begin > end || begin < from) break;  // \K tricks: nothing sensible to cut
    if (begin == end && end == last_match_end) {
      if (from >= text.size()) break;
      from += CharacterAt(text, from).length;
      continue;
    }
    if (previous < begin) spans->push_back({previous, begin, false});
    spans->push_back({begin, end, true});
    previous = end;
    last_match_end = end;
    from = end;
  }
  if (previous < text.size()) spans->push_back({previous, text.size(), false});
  return OkStatus();
}

void CutAtLiteral(std::string_view text, std::string_view literal, std::vector<Span>* spans) {
  spans->clear();
  if (text.empty()) {
    spans->push_back({0, 0, false});
    return;
  }
  size_t previous = 0;
  while (!literal.empty()) {
    const size_t at = text.find(literal, previous);
    if (at == std::string_view::npos) break;
    if (previous < at) spans->push_back({previous, at, false});
    spans->push_back({at, at + literal.size(), true});
    previous = at + literal.size();
  }
  if (previous < text.size()) spans->push_back({previous, text.size(), false});
}

}  // namespace kvasir
