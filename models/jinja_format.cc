// Python's two ways to format text: "..." % args and "...".format(args).
#include <algorithm>
#include <cmath>

#include "models/jinja_eval.h"
#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

constexpr Int kMaxWidth = 1 << 20;

struct Spec {
  std::string fill = " ";
  char align = 0;  // < > ^ =, 0: the type's own
  char sign = '-';
  bool alternate = false, grouped = false;
  char group = ',';
  Int width = 0, precision = -1;
  char type = 0;
};

Status Pad(Heap& heap, const std::string& body, const Spec& spec, char default_align, std::string* out) {
  const Int length = static_cast<Int>(CodePointCount(body));
  const Int missing = std::max<Int>(0, spec.width - length);
  KVASIR_RETURN_IF_ERROR(heap.Reserve(static_cast<Int>(body.size()) + missing * static_cast<Int>(spec.fill.size())));
  const char align = spec.align ? spec.align : default_align;
  const Int left = align == '>' || align == '=' ? missing : align == '^' ? missing / 2 : 0;
  size_t at = 0;
  if (align == '=' && !body.empty() && (body[0] == '-' || body[0] == '+' || body[0] == ' ')) out->push_back(body[at++]);
  for (Int i = 0; i < left; i++) *out += spec.fill;
  out->append(body, at);
  for (Int i = left; i < missing; i++) *out += spec.fill;
  return OkStatus();
}

std::string Grouped(const std::string& digits, char separator) {
  size_t end = 0;
  while (end < digits.size() && digits[end] >= '0' && digits[end] <= '9') end++;
  std::string out;
  for (size_t i = 0; i < end; i++) {
    if (i > 0 && (end - i) % 3 == 0) out.push_back(separator);
    out.push_back(digits[i]);
  }
  return out + digits.substr(end);
}

std::string Signed(bool negative, const std::string& digits, char sign) {
  return (negative ? "-" : sign == '-' ? "" : std::string(1, sign)) + digits;
}

std::string InBase(Int value, int base, bool upper) {
  if (value == 0) return "0";
  const char* digits = upper ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string out;
  for (; value > 0; value /= base) out.push_back(digits[static_cast<int>(value % base)]);
  std::reverse(out.begin(), out.end());
  return out;
}

// The digits of |value| in one of the types e f g E F G.
std::string FloatDigits(double value, char type, Int precision, bool alternate) {
  value = std::fabs(value);
  if (std::isnan(value)) return std::isupper(static_cast<unsigned char>(type)) ? "NAN" : "nan";
  if (std::isinf(value)) return std::isupper(static_cast<unsigned char>(type)) ? "INF" : "inf";
  const std::string pattern = fmt::format("%{}.*{}", alternate ? "#" : "", type);
  char buffer[512];
  const int n = std::snprintf(buffer, sizeof(buffer), pattern.c_str(),
                              static_cast<int>(std::min<Int>(precision < 0 ? 6 : precision, 100)), value);
  return std::string(buffer, static_cast<size_t>(std::clamp(n, 0, static_cast<int>(sizeof(buffer)) - 1)));
}

Status FormatInteger(Heap& heap, Int value, Spec spec, std::string* out) {
  if (spec.precision >= 0) return InvalidArgument("precision not allowed in integer format specifier");
  const bool negative = value < 0;
  const Int magnitude = negative ? -value : value;
  std::string digits;
  switch (spec.type) {
    case 'x':
    case 'X':
      digits = (spec.alternate ? (spec.type == 'x' ? "0x" : "0X") : "") + InBase(magnitude, 16, spec.type == 'X');
      break;
    case 'o':
      digits = (spec.alternate ? "0o" : "") + InBase(magnitude, 8, false);
      break;
    case 'b':
      digits = (spec.alternate ? "0b" : "") + InBase(magnitude, 2, false);
      break;
    case 'c':
      if (value < 0 || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return InvalidArgument("%c needs a code point");
      AppendUtf8(static_cast<char32_t>(value), &digits);
      return Pad(heap, digits, spec, '>', out);
    default:
      digits = IntToString(magnitude);
  }
  if (spec.grouped) digits = Grouped(digits, spec.group);
  return Pad(heap, Signed(negative, digits, spec.sign), spec, '>', out);
}

Status FormatFloat(Heap& heap, double value, Spec spec, std::string* out) {
  std::string digits;
  if (spec.type == 0 && spec.precision < 0) {
    digits = ReprFloat(std::fabs(value));
  } else if (spec.type == 0) {
    digits = FloatDigits(value, 'g', std::max<Int>(spec.precision, 1), false);
    if (digits.find_first_of(".en") == std::string::npos) digits += ".0";
  } else if (spec.type == '%') {
    digits = FloatDigits(value * 100, 'f', spec.precision, spec.alternate) + "%";
  } else {
    digits = FloatDigits(value, spec.type == 'n' ? 'g' : spec.type, spec.precision, spec.alternate);
  }
  if (spec.grouped) digits = Grouped(digits, spec.group);
  return Pad(heap, Signed(std::signbit(value) && !std::isnan(value), digits, spec.sign), spec, '>', out);
}

// [[fill]align][sign][#][0][width][,][.precision][type]
StatusOr<Spec> ParseSpec(std::string_view text) {
  Spec spec;
  size_t at = 0;
  const auto is_align = [&](size_t i) {
    return i < text.size() && std::string_view("<>^=").find(text[i]) != std::string_view::npos;
  };
  if (!text.empty()) {
    size_t after = 0;
    NextCodePoint(text, &after);
    if (is_align(after)) {
      spec.fill = std::string(text.substr(0, after));
      spec.align = text[after];
      at = after + 1;
    } else if (is_align(0)) {
      spec.align = text[0];
      at = 1;
    }
  }
  if (at < text.size() && (text[at] == '+' || text[at] == '-' || text[at] == ' ')) spec.sign = text[at++];
  if (at < text.size() && text[at] == '#') spec.alternate = text[at++] == '#';
  if (at < text.size() && text[at] == '0') {
    if (spec.align == 0) {
      spec.fill = "0";
      spec.align = '=';
    }
    at++;
  }
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; at++)
    spec.width = std::min(spec.width * 10 + (text[at] - '0'), kMaxWidth * 10);
  if (at < text.size() && (text[at] == ',' || text[at] == '_')) {
    spec.grouped = true;
    spec.group = text[at++];
  }
  if (at + 1 < text.size() && text[at] == '.' && text[at + 1] >= '0' && text[at + 1] <= '9') {
    spec.precision = 0;
    for (at++; at < text.size() && text[at] >= '0' && text[at] <= '9'; at++)
      spec.precision = std::min(spec.precision * 10 + (text[at] - '0'), kMaxWidth * 10);
  }
  if (at < text.size()) spec.type = text[at++];
  if (at != text.size() || spec.width > kMaxWidth ||
      std::string_view("\0sdxXobcneEfFgG%", 16).find(spec.type) == std::string_view::npos) {
    return InvalidArgument("invalid format specifier '{}'", text);
  }
  return spec;
}

Status FormatValue(Heap& heap, const Value& v, std::string_view spec_text, std::string* out) {
  if (spec_text.empty()) return AppendStr(heap, v, out);
  KVASIR_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(spec_text));
  const bool float_type = spec.type != 0 && std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos;
  if (v.is_string()) {
    if ((spec.type != 0 && spec.type != 's') || spec.align == '=' || spec.sign != '-' || spec.grouped) {
      return InvalidArgument("invalid format specifier '{}' for a string", spec_text);
    }
    std::string_view text = v.text();
    if (spec.precision >= 0) text = text.substr(0, ByteOffset(text, static_cast<int64_t>(spec.precision)));
    return Pad(heap, std::string(text), spec, '<', out);
  }
  if (v.is_number()) {
    if (spec.type == 's') return InvalidArgument("invalid format specifier '{}' for a number", spec_text);
    if (v.is(Type::kFloat) || float_type) {
      if (v.is(Type::kFloat) && spec.type != 0 && !float_type && spec.type != 'n')
        return InvalidArgument("invalid format specifier '{}' for a float", spec_text);
      return FormatFloat(heap, v.double_value(), spec, out);
    }
    return FormatInteger(heap, v.int_value(), spec, out);
  }
  return InvalidArgument("unsupported format specifier '{}' for {}", spec_text, TypeName(v));
}

// One % conversion being read.
struct Percent {
  Spec spec;
  bool left = false, zero = false, has_key = false;
  std::string key;
};

class PercentFormatter {
 public:
  PercentFormatter(Heap& heap, const Value& format, const Value& args) : heap_(heap), text_(format.text()), args_(args) {}

  Status Run() {
    while (at_ < text_.size()) {
      const size_t percent = text_.find('%', at_);
      out.append(text_.substr(at_, percent - at_));
      if (percent == std::string_view::npos) break;
      at_ = percent + 1;
      KVASIR_RETURN_IF_ERROR(One());
    }
    // Python asks only that a subscriptable argument is used, not that it is used up.
    const bool all_used = used_mapping_ || next_ >= Count() || args_.is(Type::kDict) || args_.is(Type::kList) ||
                          args_.is(Type::kRange) || args_.undefined();
    if (!all_used) return InvalidArgument("not all arguments converted during string formatting");
    return OkStatus();
  }
  std::string out;

 private:
  size_t Count() const { return args_.is(Type::kTuple) ? args_.items().size() : 1; }
  StatusOr<Value> Next() {
    if (next_ >= Count()) return InvalidArgument("not enough arguments for format string");
    const size_t i = next_++;
    return args_.is(Type::kTuple) ? args_.items()[i] : args_;
  }
  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  Status Number(Int* number) {
    if (Peek() == '*') {
      at_++;
      KVASIR_ASSIGN_OR_RETURN(const Value v, Next());
      if (!v.is_integral()) return InvalidArgument("* wants int");
      *number = std::clamp<Int>(v.int_value(), -kMaxWidth - 1, kMaxWidth + 1);
    } else {
      *number = 0;
      while (Peek() >= '0' && Peek() <= '9') *number = std::min(*number * 10 + (text_[at_++] - '0'), kMaxWidth + 1);
    }
    if (*number > kMaxWidth || *number < -kMaxWidth)
      return InvalidArgument("a width or precision in '{}' is too large; the limit is {}", text_.substr(0, 40),
                             IntToString(kMaxWidth));
    return OkStatus();
  }

  Status One() {
    Percent p;
    if (Peek() == '(') {
      const size_t close = text_.find(')', at_);
      if (close == std::string_view::npos) return InvalidArgument("incomplete format key");
      p.key = std::string(text_.substr(at_ + 1, close - at_ - 1));
      p.has_key = true;
      at_ = close + 1;
    }
    for (; Peek() != '\0' && std::string_view("-+ #0").find(Peek()) != std::string_view::npos; at_++) {
      if (Peek() == '-') p.left = true;
      if (Peek() == '0') p.zero = true;
      if (Peek() == '#') p.spec.alternate = true;
      if (Peek() == '+' || (Peek() == ' ' && p.spec.sign != '+')) p.spec.sign = Peek();
    }
    KVASIR_RETURN_IF_ERROR(Number(&p.spec.width));
    if (p.spec.width < 0) {
      p.left = true;
      p.spec.width = -p.spec.width;
    }
    if (Peek() == '.') {
      at_++;
      KVASIR_RETURN_IF_ERROR(Number(&p.spec.precision));
      p.spec.precision = std::max<Int>(p.spec.precision, 0);
    }
    if (Peek() == 'l' || Peek() == 'h' || Peek() == 'L') at_++;
    if (at_ >= text_.size()) return InvalidArgument("incomplete format");
    p.spec.type = text_[at_++];
    if (p.spec.type == '%') {
      out.push_back('%');
      return OkStatus();
    }
    Value v;
    if (p.has_key) {
      if (!args_.is(Type::kDict)) return InvalidArgument("format requires a mapping");
      used_mapping_ = true;
      const Value* found = args_.dict().Find(p.key);
      if (found == nullptr) return InvalidArgument("the format key '{}' is missing", p.key);
      v = *found;
    } else {
      KVASIR_ASSIGN_OR_RETURN(v, Next());
    }
    return Convert(p, v);
  }

  Status Convert(Percent& p, const Value& v) {
    Spec& spec = p.spec;
    if (p.left) {
      spec.align = '<';
    } else if (p.zero && std::string_view("sra").find(spec.type) == std::string_view::npos) {
      spec.fill = "0";
      spec.align = '=';
    }
    if (spec.type == 's' || spec.type == 'r' || spec.type == 'a') {
      std::string text;
      KVASIR_RETURN_IF_ERROR(spec.type == 's' ? AppendStr(heap_, v, &text) : AppendRepr(heap_, v, &text));
      if (spec.type == 'a' && !IsAscii(text)) return InvalidArgument("%a is supported for ASCII text only");
      if (spec.precision >= 0) text.resize(ByteOffset(text, static_cast<int64_t>(spec.precision)));
      return Pad(heap_, text, spec, '>', &out);
    }
    if (spec.type == 'c' && v.is_string()) {
      if (StringLength(v) != 1) return InvalidArgument("%c requires int or char");
      return Pad(heap_, std::string(v.text()), spec, '>', &out);
    }
    if (v.undefined()) return UndefinedError(v);
    if (!v.is_number()) return InvalidArgument("%{} format: a real number is required, not {}", spec.type, TypeName(v));
    if (spec.type == 'd' || spec.type == 'i' || spec.type == 'u') return Decimal(spec, v);
    if (std::string_view("xXoc").find(spec.type) != std::string_view::npos) {
      if (!v.is_integral()) return InvalidArgument("%{} format: an integer is required, not {}", spec.type, TypeName(v));
      const Int precision = std::exchange(spec.precision, -1);
      if (precision > 0) return InvalidArgument("%.{}{} is not supported", IntToString(precision), spec.type);
      return FormatInteger(heap_, v.int_value(), spec, &out);
    }
    if (std::string_view("eEfFgG").find(spec.type) == std::string_view::npos) {
      return InvalidArgument("unsupported format character '{}'", spec.type);
    }
    return FormatFloat(heap_, v.double_value(), spec, &out);
  }

  Status Decimal(Spec& spec, const Value& v) {
    if (v.is(Type::kFloat) && (!std::isfinite(v.double_value()) || std::fabs(v.double_value()) > 1e37)) {
      return InvalidArgument("cannot convert float {} to integer", ReprFloat(v.double_value()));
    }
    const Int value = v.is(Type::kFloat) ? static_cast<Int>(v.double_value()) : v.int_value();
    std::string digits = IntToString(value < 0 ? -value : value);
    const Int zeros = std::min(std::exchange(spec.precision, -1), kMaxWidth) - static_cast<Int>(digits.size());
    if (zeros > 0) {
      KVASIR_RETURN_IF_ERROR(heap_.Reserve(zeros));
      digits.insert(0, static_cast<size_t>(zeros), '0');
    }
    return Pad(heap_, Signed(value < 0, digits, spec.sign), spec, '>', &out);
  }

  Heap& heap_;
  std::string_view text_;
  const Value& args_;
  size_t at_ = 0, next_ = 0;
  bool used_mapping_ = false;
};

class BraceFormatter {
 public:
  BraceFormatter(Evaluator& eval, const Args& args) : eval_(eval), args_(args) {}

  Status Run(std::string_view text, int depth, std::string* out) {
    if (depth > 3) return InvalidArgument("max string recursion exceeded");
    for (size_t at = 0; at < text.size();) {
      const char c = text[at];
      if (c != '{' && c != '}') {
        const size_t end = std::min(text.find_first_of("{}", at), text.size());
        out->append(text.substr(at, end - at));
        at = end;
        continue;
      }
      if (at + 1 < text.size() && text[at + 1] == c) {
        out->push_back(c);
        at += 2;
        continue;
      }
      if (c == '}') return InvalidArgument("single '}}' encountered in format string");
      KVASIR_RETURN_IF_ERROR(Field(text, &at, depth, out));
    }
    return OkStatus();
  }

 private:
  Status Field(std::string_view text, size_t* at, int depth, std::string* out) {
    size_t end = *at + 1;
    int open = 1;
    for (; end < text.size() && open > 0; end++) open += text[end] == '{' ? 1 : text[end] == '}' ? -1 : 0;
    if (open > 0) return InvalidArgument("expected '}}' before end of string");
    std::string_view field = text.substr(*at + 1, end - *at - 2);
    *at = end;
    std::string_view spec_text;
    // Inside [...] a colon belongs to the key.
    size_t split = 0;
    for (bool bracket = false; split < field.size() && (bracket || (field[split] != ':' && field[split] != '!')); split++) {
      if (field[split] == '[') bracket = true;
      if (field[split] == ']') bracket = false;
    }
    const std::string_view name = field.substr(0, split);
    std::string_view rest = field.substr(split);
    char conversion = 0;
    if (rest.starts_with('!')) {
      if (rest.size() < 2 || (rest.size() > 2 && rest[2] != ':'))
        return InvalidArgument("expected ':' after conversion specifier");
      conversion = rest[1];
      rest.remove_prefix(2);
    }
    if (!rest.empty()) spec_text = rest.substr(1);
    KVASIR_ASSIGN_OR_RETURN(Value v, Lookup(name));
    if (conversion != 0 && conversion != 's' && conversion != 'r')
      return InvalidArgument("unknown conversion specifier '{}'", conversion);
    if (conversion != 0) {
      std::string text_value;
      KVASIR_RETURN_IF_ERROR(conversion == 'r' ? AppendRepr(eval_.heap(), v, &text_value)
                                               : AppendStr(eval_.heap(), v, &text_value));
      KVASIR_ASSIGN_OR_RETURN(v, eval_.heap().String(std::move(text_value)));
    }
    std::string spec;
    KVASIR_RETURN_IF_ERROR(Run(spec_text, depth + 1, &spec));
    return FormatValue(eval_.heap(), v, spec, out);
  }

  StatusOr<Value> Lookup(std::string_view name) {
    const size_t end = std::min(name.find_first_of(".["), name.size());
    const std::string_view first = name.substr(0, end);
    Value v;
    const bool digits = !first.empty() && std::all_of(first.begin(), first.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (first.empty() || digits) {
      if (first.empty() ? manual_ : automatic_) return InvalidArgument("cannot mix manual and automatic field numbering");
      (first.empty() ? automatic_ : manual_) = true;
      const size_t i = first.empty() ? next_++ : first.size() > 6 ? 1000000 : std::stoul(std::string(first));
      if (i >= args_.positional.size()) return InvalidArgument("replacement index {} out of range for positional args", i);
      v = args_.positional[i];
    } else {
      const auto found = std::find_if(args_.named.begin(), args_.named.end(), [&](const auto& n) { return n.first == first; });
      if (found == args_.named.end()) return InvalidArgument("format() has no argument '{}'", first);
      v = found->second;
    }
    std::string_view rest = name.substr(end);
    while (!rest.empty()) {
      if (rest[0] == '.') {
        const size_t stop = std::min(rest.find_first_of(".[", 1), rest.size());
        if (stop == 1) return InvalidArgument("empty attribute in format string");
        KVASIR_ASSIGN_OR_RETURN(v, GetAttr(eval_, v, std::string(rest.substr(1, stop - 1))));
        rest.remove_prefix(stop);
        continue;
      }
      const size_t close = rest.find(']');
      if (rest[0] != '[' || close == std::string_view::npos || close == 1)
        return InvalidArgument("bad field name '{}' in format string", name);
      KVASIR_ASSIGN_OR_RETURN(const Value key, KeyOf(rest.substr(1, close - 1)));
      KVASIR_ASSIGN_OR_RETURN(v, GetItem(eval_, v, key));
      rest.remove_prefix(close + 1);
    }
    return v;
  }

  StatusOr<Value> KeyOf(std::string_view text) {
    if (text.size() < 18 && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      return Value::Integer(std::stoll(std::string(text)));
    }
    return eval_.heap().String(std::string(text));
  }

  Evaluator& eval_;
  const Args& args_;
  size_t next_ = 0;
  bool automatic_ = false, manual_ = false;
};

}  // namespace

StatusOr<Value> PercentFormat(Heap& heap, const Value& format, const Value& args) {
  if (format.markup()) return InvalidArgument("'%' formatting of text marked |safe is not supported");
  PercentFormatter formatter(heap, format, args);
  KVASIR_RETURN_IF_ERROR(formatter.Run());
  return heap.String(std::move(formatter.out));
}

StatusOr<Value> BraceFormat(Evaluator& eval, const Value& format, const Args& args) {
  if (format.markup()) return InvalidArgument("format() of text marked |safe is not supported");
  std::string out;
  KVASIR_RETURN_IF_ERROR(BraceFormatter(eval, args).Run(format.text(), 1, &out));
  return eval.heap().String(std::move(out));
}

}  // namespace kvasir::jinja
