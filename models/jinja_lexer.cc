#include "models/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); i++) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') i++;
  }
  return out;
}

bool IsHex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}
bool IsDec(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(NormalizeNewlines(source)) {
    if (source_.ends_with('\n')) source_.pop_back();
  }

  StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) KVASIR_RETURN_IF_ERROR(Root());
    Add(Tok::kEnd, "");
    return std::move(tokens_);
  }

 private:
  char Peek(size_t offset = 0) const { return at_ + offset < source_.size() ? source_[at_ + offset] : '\0'; }
  bool At(std::string_view text) const { return std::string_view(source_).substr(at_).starts_with(text); }
  size_t SkipSpace(size_t at) const {
    while (at < source_.size()) {
      size_t next = at;
      if (!IsSpace(NextCodePoint(source_, &next))) break;
      at = next;
    }
    return at;
  }
  void MoveTo(size_t at) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<int64_t>(at_), source_.begin() + static_cast<int64_t>(at), '\n'));
    at_ = at;
  }
  void Add(Tok kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  // When `at` is the start of a raw block, the byte after its opening tag and the sign of that tag.
  size_t RawBegin(size_t at, char* sign) const {
    at += 2;
    *sign = at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at++] : '\0';
    at = SkipSpace(at);
    const std::string_view rest = std::string_view(source_).substr(std::min(at, source_.size()));
    if (!rest.starts_with("raw")) return 0;
    at = SkipSpace(at + 3);
    if (source_.compare(at, 3, "-%}") == 0) return SkipSpace(at + 3);
    return source_.compare(at, 2, "%}") == 0 ? at + 2 : 0;
  }

  // Emits text[at_, end), stripped as the tag after it asks.
  void Data(size_t end, char sign, bool is_variable) {
    std::string_view text = std::string_view(source_).substr(at_, end - at_);
    if (sign == '-') {
      text = Strip(text, nullptr, false, true);
    } else if (sign != '+' && !is_variable) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      const std::string_view blanks = text.substr(line_begin);
      if ((line_begin > 0 || line_starting_) && Strip(blanks, nullptr, true, false).empty()) text = text.substr(0, line_begin);
    }
    if (!text.empty()) Add(Tok::kData, std::string(text));
    MoveTo(end);
  }

  Status Root() {
    size_t open = at_;
    while (true) {
      open = source_.find('{', open);
      if (open == std::string::npos || open + 1 >= source_.size()) {
        open = std::string::npos;
        break;
      }
      const char c = source_[open + 1];
      if (c == '%' || c == '{' || c == '#') break;
      open++;
    }
    if (open == std::string::npos) {
      Add(Tok::kData, source_.substr(at_));
      MoveTo(source_.size());
      return OkStatus();
    }
    const char kind = source_[open + 1];
    char sign;
    const size_t raw = kind == '%' ? RawBegin(open, &sign) : 0;
    if (raw != 0) {
      Data(open, sign, false);
      MoveTo(raw);
      return Raw();
    }
    size_t inside = open + 2;
    sign = inside < source_.size() && (source_[inside] == '-' || source_[inside] == '+') ? source_[inside++] : '\0';
    Data(open, sign, kind == '{');
    MoveTo(inside);
    if (kind == '#') return Comment();
    Add(kind == '%' ? Tok::kBlockBegin : Tok::kVariableBegin, "");
    return Code(kind == '%');
  }

  // At a possible block end: "+%}", "-%}" with the space after it, or "%}" with one newline after it. 0 when there is none.
  size_t TagEnd(size_t at, std::string_view close, bool plus) const {
    const std::string_view rest = std::string_view(source_).substr(at);
    if (plus && rest.starts_with('+') && rest.substr(1).starts_with(close)) return at + 3;
    if (rest.starts_with('-') && rest.substr(1).starts_with(close)) return SkipSpace(at + 3);
    if (!rest.starts_with(close)) return 0;
    return plus && at + 2 < source_.size() && source_[at + 2] == '\n' ? at + 3 : at + 2;
  }

  void Leave(size_t end) {
    line_starting_ = end > 0 && source_[end - 1] == '\n';
    MoveTo(end);
  }

  Status Comment() {
    for (size_t at = at_; at < source_.size(); at++) {
      if (const size_t end = TagEnd(at, "#}", true)) {
        Leave(end);
        return OkStatus();
      }
    }
    return SyntaxError(line_, "missing end of comment tag '#}}'");
  }

  Status Raw() {
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
    for (size_t open = source_.find("{%", at_); open != std::string::npos; open = source_.find("{%", open + 1)) {
      size_t at = open + 2;
      const char sign = at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at++] : '\0';
      at = SkipSpace(at);
      if (source_.compare(std::min(at, source_.size()), 6, "endraw") != 0) continue;
      const size_t end = TagEnd(SkipSpace(at + 6), "%}", true);
      if (end == 0) continue;
      Data(open, sign, false);
      Leave(end);
      return OkStatus();
    }
    return SyntaxError(line_, "missing end of raw directive '{{% endraw %}}'");
  }

  Status Code(bool is_block) {
    std::vector<char> open_brackets;
    const int begin_line = line_;
    while (at_ < source_.size()) {
      if (open_brackets.empty()) {
        if (const size_t end = TagEnd(at_, is_block ? "%}" : "}}", is_block)) {
          Add(is_block ? Tok::kBlockEnd : Tok::kVariableEnd, "");
          Leave(end);
          return OkStatus();
        }
      }
      const size_t after_space = SkipSpace(at_);
      if (after_space != at_) {
        MoveTo(after_space);
        continue;
      }
      KVASIR_RETURN_IF_ERROR(One(&open_brackets));
    }
    return SyntaxError(begin_line, "this tag is not closed: '{}' is missing", is_block ? "%}" : "}}");
  }

  Status One(std::vector<char>* open_brackets) {
    const char c = Peek();
    if (IsDec(c)) return Number();
    if (c == '\'' || c == '"') return String(c);
    size_t next = at_;
    const char32_t first = NextCodePoint(source_, &next);
    if (IsIdentifierStart(first)) {
      size_t end = next;
      while (end < source_.size()) {
        size_t after = end;
        if (!IsIdentifierPart(NextCodePoint(source_, &after))) break;
        end = after;
      }
      Add(Tok::kName, source_.substr(at_, end - at_));
      at_ = end;
      return OkStatus();
    }
    static constexpr std::array<std::string_view, 7> kDouble = {"//", "**", "==", "!=", ">=", "<=", ""};
    size_t length = 1;
    for (const auto op : kDouble) {
      if (!op.empty() && At(op)) length = 2;
    }
    if (length == 1 && std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos) {
      return SyntaxError(line_, "unexpected character '{}'", source_.substr(at_, next - at_));
    }
    if (c == '{' || c == '(' || c == '[') open_brackets->push_back(c == '{' ? '}' : c == '(' ? ')' : ']');
    if (c == '}' || c == ')' || c == ']') {
      if (open_brackets->empty()) return SyntaxError(line_, "unexpected '{}'", c);
      if (open_brackets->back() != c) return SyntaxError(line_, "unexpected '{}', expected '{}'", c, open_brackets->back());
      open_brackets->pop_back();
    }
    Add(Tok::kOperator, source_.substr(at_, length));
    at_ += length;
    return OkStatus();
  }

  // Digits with single underscores between them, from `at`; returns the end (or `at` when there is none).
  size_t Digits(size_t at) const {
    if (at >= source_.size() || !IsDec(source_[at])) return at;
    while (at < source_.size() &&
           (IsDec(source_[at]) || (source_[at] == '_' && at + 1 < source_.size() && IsDec(source_[at + 1]))))
      at++;
    return at;
  }

  Status Number() {
    const bool after_dot = at_ > 0 && source_[at_ - 1] == '.';
    const size_t whole = Digits(at_);
    size_t end = whole;
    if (!after_dot) {
      if (end < source_.size() && source_[end] == '.' && Digits(end + 1) > end + 1) end = Digits(end + 1);
      if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
        const size_t sign = end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
        if (Digits(end + 1 + sign) > end + 1 + sign) end = Digits(end + 1 + sign);
      }
    }
    if (end > whole) {
      std::string text = source_.substr(at_, end - at_);
      std::erase(text, '_');
      Add(Tok::kFloat, text);
      std::from_chars(text.data(), text.data() + text.size(), tokens_.back().number);
      if (!std::isfinite(tokens_.back().number) || text.size() > 300)
        return SyntaxError(line_, "number {} is out of range", text);
      at_ = end;
      return OkStatus();
    }
    return Integer(whole);
  }

  Status Integer(size_t decimal_end) {
    int base = 10;
    size_t end = decimal_end, digits = at_;
    if (Peek() == '0') {
      const char x = static_cast<char>(Peek(1) | 0x20);
      const auto valid = [&](char d) { return x == 'x' ? IsHex(d) : x == 'o' ? d >= '0' && d <= '7' : d == '0' || d == '1'; };
      size_t e = at_ + 2;
      if (x == 'x' || x == 'o' || x == 'b') {
        while (e < source_.size() &&
               (valid(source_[e]) || (source_[e] == '_' && e + 1 < source_.size() && valid(source_[e + 1]))))
          e++;
      }
      if (e > at_ + 2) {
        base = x == 'x' ? 16 : x == 'o' ? 8 : 2;
        digits = at_ + 2;
        end = e;
      } else {  // a leading zero is a number of its own
        end = at_ + 1;
        while (end < decimal_end && (source_[end] == '0' || (source_[end] == '_' && source_[end + 1] == '0'))) end++;
      }
    }
    Int value = 0;
    for (size_t i = digits; i < end; i++) {
      const char d = source_[i];
      if (d == '_') continue;
      const int v = IsDec(d) ? d - '0' : (d | 0x20) - 'a' + 10;
      if (__builtin_mul_overflow(value, static_cast<Int>(base), &value) ||
          __builtin_add_overflow(value, static_cast<Int>(v), &value)) {
        return SyntaxError(line_, "integer {} is too large", source_.substr(at_, end - at_));
      }
    }
    Add(Tok::kInteger, source_.substr(at_, end - at_));
    tokens_.back().integer = value;
    at_ = end;
    return OkStatus();
  }

  Status String(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size())
      return SyntaxError(line_, "unexpected character '{}': a string that begins here is not closed", quote);
    std::string value;
    KVASIR_RETURN_IF_ERROR(Unescape(std::string_view(source_).substr(at_ + 1, end - at_ - 1), &value));
    Add(Tok::kString, std::move(value));
    MoveTo(end + 1);
    return OkStatus();
  }

  // Python's escapes. A backslash before a non-ASCII character escapes nothing but, as in Jinja2, shows that character's own
  // escape.
  Status Unescape(std::string_view text, std::string* out) const {
    for (size_t at = 0; at < text.size();) {
      const char c = text[at];
      if (c != '\\') {
        out->push_back(c);
        at++;
        continue;
      }
      if (at + 1 >= text.size()) return SyntaxError(line_, "a string ends in a lone backslash");
      static constexpr std::string_view kFrom = "abfnrtv\\'\"", kTo = "\a\b\f\n\r\t\v\\'\"";
      const char e = text[at + 1];
      if (const size_t i = kFrom.find(e); i != std::string_view::npos) {
        out->push_back(kTo[i]);
        at += 2;
      } else if (e == '\n') {
        at += 2;
      } else if (e >= '0' && e <= '7') {
        uint32_t v = 0;
        for (at++; at < text.size() && text[at] >= '0' && text[at] <= '7' && v < 64; at++)
          v = v * 8 + static_cast<uint32_t>(text[at] - '0');
        AppendUtf8(v, out);
      } else if (e == 'x' || e == 'u' || e == 'U') {
        KVASIR_RETURN_IF_ERROR(UnescapeHex(text, &at, e == 'x' ? 2 : e == 'u' ? 4 : 8, out));
      } else if (e == 'N') {
        return SyntaxError(line_, "named escapes like \\N{{...}} are not supported; use \\u with the code point");
      } else if (static_cast<unsigned char>(e) >= 0x80) {
        at++;
        const char32_t v = NextCodePoint(text, &at);
        *out += v < 0x100     ? fmt::format("\\x{:02x}", static_cast<uint32_t>(v))
                : v < 0x10000 ? fmt::format("\\u{:04x}", static_cast<uint32_t>(v))
                              : fmt::format("\\U{:08x}", static_cast<uint32_t>(v));
      } else {
        out->push_back(c);
        out->push_back(e);
        at += 2;
      }
    }
    return OkStatus();
  }

  Status UnescapeHex(std::string_view text, size_t* at, size_t digits, std::string* out) const {
    uint64_t v = 0;
    const std::string_view hex = text.substr(std::min(*at + 2, text.size()), digits);
    if (hex.size() != digits || !std::all_of(hex.begin(), hex.end(), IsHex)) {
      return SyntaxError(line_, "truncated \\{}{} escape in a string", text[*at + 1], std::string(digits, 'X'));
    }
    std::from_chars(hex.data(), hex.data() + hex.size(), v, 16);
    if (v > 0x10ffff || (v >= 0xd800 && v < 0xe000))
      return SyntaxError(line_, "the escape \\{}{} is not a character", text[*at + 1], hex);
    AppendUtf8(static_cast<char32_t>(v), out);
    *at += 2 + digits;
    return OkStatus();
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last tag (or the file's start) was followed by a line start
  std::vector<Token> tokens_;
};

}  // namespace

StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(source).Run();
}

}  // namespace kvasir::jinja
