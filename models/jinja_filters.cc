// The filters about text and numbers, and the table of all filters.
#include <algorithm>
#include <cfenv>
#include <charconv>
#include <cmath>
#include <span>

#include "models/jinja_eval.h"
#include "models/jinja_list_filters.h"
#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

// soft_str: text stays as it is (marked or not), anything else becomes its str().
StatusOr<Value> SoftStr(Evaluator& eval, const Value& v) {
  if (v.is_string()) return v;
  KVASIR_ASSIGN_OR_RETURN(std::string text, ToStr(eval.heap(), v));
  return eval.heap().String(std::move(text));
}

StatusOr<Value> ByMethod(Evaluator& eval, const Value& v, const char* method, std::vector<Value> args = {}) {
  KVASIR_ASSIGN_OR_RETURN(const Value text, SoftStr(eval, v));
  return CallMethod(eval, text, method, Args{std::move(args), {}});
}
StatusOr<Value> UpperFilter(Evaluator& e, const Value& v, Bound&) {
  return ByMethod(e, v, "upper");
}
StatusOr<Value> LowerFilter(Evaluator& e, const Value& v, Bound&) {
  return ByMethod(e, v, "lower");
}
StatusOr<Value> CapitalizeFilter(Evaluator& e, const Value& v, Bound&) {
  return ByMethod(e, v, "capitalize");
}
StatusOr<Value> TrimFilter(Evaluator& e, const Value& v, Bound& args) {
  return ByMethod(e, v, "strip", args.has(0) ? std::vector<Value>{args[0]} : std::vector<Value>{});
}
StatusOr<Value> CenterFilter(Evaluator& e, const Value& v, Bound& args) {
  return ByMethod(e, v, "center", {args.has(0) ? args[0] : Value::Integer(80)});
}
StatusOr<Value> StringFilter(Evaluator& e, const Value& v, Bound&) {
  return SoftStr(e, v);
}

// Words begin after white space, a hyphen or an opening bracket; the rest of each word is lowered.
StatusOr<Value> TitleFilter(Evaluator& eval, const Value& v, Bound&) {
  KVASIR_ASSIGN_OR_RETURN(const Value text, SoftStr(eval, v));
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(StringLength(text) * 12));
  const std::string_view s = text.text();
  const auto breaks = [](char32_t c) { return IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<'; };
  std::string out;
  for (size_t at = 0; at < s.size();) {
    const size_t begin = at;
    const bool separator = breaks(NextCodePoint(s, &at));
    const size_t head = at;
    while (at < s.size()) {
      size_t next = at;
      if (breaks(NextCodePoint(s, &next)) != separator) break;
      at = next;
    }
    out += Upper(s.substr(begin, head - begin));
    out += Lower(s.substr(head, at - head));
  }
  return eval.heap().String(std::move(out));
}

StatusOr<Value> ReplaceFilter(Evaluator& eval, const Value& v, Bound& args) {
  std::vector<Value> parts;
  for (const Value& part : {v, args[0], args[1]}) {
    KVASIR_ASSIGN_OR_RETURN(std::string text, ToStr(eval.heap(), part));
    KVASIR_ASSIGN_OR_RETURN(Value plain, eval.heap().String(std::move(text)));
    parts.push_back(std::move(plain));
  }
  std::vector<Value> call = {parts[1], parts[2]};
  if (args.has(2) && !args[2].is(Type::kNone)) call.push_back(args[2]);
  return CallMethod(eval, parts[0], "replace", Args{std::move(call), {}});
}

StatusOr<Value> DefaultFilter(Evaluator& eval, const Value& v, Bound& args) {
  if (!v.undefined() && !(args.has(1) && Truthy(args[1]) && !Truthy(v))) return v;
  return args.has(0) ? args[0] : eval.heap().String("");
}

StatusOr<Value> SafeFilter(Evaluator& eval, const Value& v, Bound&) {
  if (v.markup()) return v;
  KVASIR_ASSIGN_OR_RETURN(std::string text, ToStr(eval.heap(), v));
  return eval.heap().String(std::move(text), true);
}

StatusOr<Value> EscapeFilter(Evaluator& eval, const Value& v, Bound&) {
  if (v.markup()) return v;
  KVASIR_ASSIGN_OR_RETURN(const std::string text, ToStr(eval.heap(), v));
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(text.size()) * 5));
  return eval.heap().String(EscapeHtml(text), true);
}

StatusOr<Value> ForceEscapeFilter(Evaluator& eval, const Value& v, Bound&) {
  KVASIR_ASSIGN_OR_RETURN(const std::string text, ToStr(eval.heap(), v));
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(text.size()) * 5));
  return eval.heap().String(EscapeHtml(text), true);
}

StatusOr<Value> IndentFilter(Evaluator& eval, const Value& v, Bound& args) {
  if (v.undefined()) return UndefinedError(v);
  KVASIR_ASSIGN_OR_RETURN(const std::string_view text, AsText(v, "indent"));
  std::string pad(4, ' ');
  if (args.has(0)) {
    if (args[0].is_string()) {
      pad = std::string(args[0].text());
    } else {
      KVASIR_ASSIGN_OR_RETURN(const Int width, AsIndex(args[0], "indent"));
      KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(std::max<Int>(width, 0)));
      pad.assign(static_cast<size_t>(std::max<Int>(width, 0)), ' ');
    }
  }
  if (v.markup() && !(args.has(0) && args[0].markup())) pad = EscapeHtml(pad);
  const bool first = args.has(1) && Truthy(args[1]), blank = args.has(2) && Truthy(args[2]);
  const std::string whole = std::string(text) + "\n";
  const auto lines = SplitLines(whole, false);
  KVASIR_RETURN_IF_ERROR(
      eval.heap().Reserve(static_cast<Int>(whole.size() + lines.size() * (pad.size() + sizeof(std::string_view)))));
  std::string out = first ? pad : "";
  for (size_t i = 0; i < lines.size(); i++) {
    if (i > 0) out += "\n";
    if (i > 0 && (blank || !lines[i].empty())) out += pad;
    out += lines[i];
  }
  return eval.heap().String(std::move(out), v.markup());
}

StatusOr<Value> TruncateFilter(Evaluator& eval, const Value& v, Bound& args) {
  Int length = 255, leeway = 5;
  std::string_view end = "...";
  if (args.has(0)) {
    KVASIR_ASSIGN_OR_RETURN(length, AsIndex(args[0], "truncate"));
  }
  if (args.has(2)) {
    KVASIR_ASSIGN_OR_RETURN(end, AsText(args[2], "truncate"));
  }
  if (args.has(3) && !args[3].is(Type::kNone)) {
    KVASIR_ASSIGN_OR_RETURN(leeway, AsIndex(args[3], "truncate"));
  }
  const Int end_length = static_cast<Int>(CodePointCount(end));
  if (length < end_length || leeway < 0)
    return InvalidArgument("truncate: expected length >= {} and leeway >= 0", IntToString(end_length));
  KVASIR_ASSIGN_OR_RETURN(const Int size, Length(v));
  if (size <= length + leeway) return v;
  KVASIR_ASSIGN_OR_RETURN(const std::string_view text, AsText(v, "truncate"));
  std::string_view kept = text.substr(0, ByteOffset(text, static_cast<int64_t>(length - end_length)));
  if (!(args.has(1) && Truthy(args[1]))) {
    const size_t space = kept.rfind(' ');
    if (space != std::string_view::npos) kept = kept.substr(0, space);
  }
  return eval.heap().String(std::string(kept) + (v.markup() ? EscapeHtml(end) : std::string(end)), v.markup());
}

StatusOr<Value> WordCountFilter(Evaluator& eval, const Value& v, Bound&) {
  KVASIR_ASSIGN_OR_RETURN(const std::string text, ToStr(eval.heap(), v));
  Int count = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = NextCodePoint(text, &at);
    const bool word = c == '_' || IsAlpha(c) || IsNumeric(c) || IsDigit(c);
    count += word && !inside ? 1 : 0;
    inside = word;
  }
  return Value::Integer(count);
}

StatusOr<Value> FormatFilter(Evaluator& eval, const Value& v, Bound& args) {
  if (!args.raw.positional.empty() && !args.raw.named.empty()) {
    return InvalidArgument("format: positional and keyword arguments cannot be mixed");
  }
  KVASIR_ASSIGN_OR_RETURN(const Value text, SoftStr(eval, v));
  if (args.raw.named.empty()) {
    KVASIR_ASSIGN_OR_RETURN(const Value tuple, eval.heap().Tuple(args.raw.positional));
    return PercentFormat(eval.heap(), text, tuple);
  }
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [name, value] : args.raw.named) {
    KVASIR_ASSIGN_OR_RETURN(Value key, eval.heap().String(name));
    items.emplace_back(std::move(key), value);
  }
  KVASIR_ASSIGN_OR_RETURN(const Value dict, eval.heap().Dict(items));
  return PercentFormat(eval.heap(), text, dict);
}

StatusOr<Value> LengthFilter(Evaluator& eval, const Value& v, Bound&) {
  if (v.is(Type::kLoop)) return eval.LoopAttribute(v, "length");
  KVASIR_ASSIGN_OR_RETURN(const Int length, Length(v));
  return Value::Integer(length);
}

// Text with single underscores between digits removed; empty when an underscore stands elsewhere.
std::string WithoutUnderscores(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] != '_') {
      out.push_back(text[i]);
      continue;
    }
    const auto digit = [&](size_t at) { return at < text.size() && std::isalnum(static_cast<unsigned char>(text[at])); };
    if (i == 0 || !digit(i - 1) || !digit(i + 1)) return {};
  }
  return out;
}

// Python's int(text, base); missing when the text is no integer.
StatusOr<Value> ParseInt(std::string_view text, Int base) {
  text = Strip(text, nullptr, true, true);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  const auto prefix = [&](char letter) { return text.size() > 2 && text[0] == '0' && (text[1] | 0x20) == letter; };
  const Int named = prefix('x') ? 16 : prefix('o') ? 8 : prefix('b') ? 2 : 0;
  if (named != 0 && (base == 0 || base == named)) {
    base = named;
    text.remove_prefix(text.size() > 3 && text[2] == '_' ? 3 : 2);
  } else if (base == 0) {
    if (text.size() > 1 && text[0] == '0' && text.find_first_not_of("0_") != std::string_view::npos) return Value();
    base = 10;
  }
  const std::string digits = WithoutUnderscores(text);
  if (digits.empty()) return Value();
  Int value = 0;
  for (const char c : digits) {
    const int d = c >= '0' && c <= '9' ? c - '0' : std::isalpha(static_cast<unsigned char>(c)) ? (c | 0x20) - 'a' + 10 : 99;
    if (d >= base) return Value();
    if (__builtin_mul_overflow(value, base, &value) || __builtin_add_overflow(value, static_cast<Int>(d), &value)) {
      return InvalidArgument("integer overflow: integers in templates are limited to 127 bits");
    }
  }
  return Value::Integer(negative ? -value : value);
}

// Python's float(text); missing when the text is no number.
Value ParseFloat(std::string_view text) {
  std::string digits = WithoutUnderscores(Strip(text, nullptr, true, true));
  bool negative = false;
  if (!digits.empty() && (digits[0] == '-' || digits[0] == '+')) {
    negative = digits[0] == '-';
    digits.erase(0, 1);
  }
  const std::string lower = Lower(digits);
  double value = 0;
  if (lower == "inf" || lower == "infinity") {
    value = INFINITY;
  } else if (lower == "nan") {
    value = NAN;
  } else {
    if (digits.empty() || !(std::isdigit(static_cast<unsigned char>(digits[0])) || (digits[0] == '.' && digits.size() > 1)))
      return Value();
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (end != digits.data() + digits.size() || error == std::errc::invalid_argument) return Value();
    if (error == std::errc::result_out_of_range) value = lower.find("e-") != std::string::npos ? 0 : INFINITY;
  }
  return Value::Float(negative ? -value : value);
}

StatusOr<Value> Truncated(double d) {
  if (std::fabs(d) >= 1.7e38) return InvalidArgument("integer overflow: {} does not fit an integer of a template", ReprFloat(d));
  return Value::Integer(static_cast<Int>(d));
}

StatusOr<Value> IntFilter(Evaluator&, const Value& v, Bound& args) {
  if (v.undefined()) return UndefinedError(v);
  const Value fallback = args.has(0) ? args[0] : Value::Integer(0);
  if (v.is_integral()) return Value::Integer(v.int_value());
  double d = NAN;
  if (v.is(Type::kFloat)) {
    d = v.double_value();
    if (std::isinf(d)) return InvalidArgument("cannot convert float infinity to integer");
  } else if (v.is_string()) {
    Int base = 10;
    if (args.has(1)) {
      KVASIR_ASSIGN_OR_RETURN(base, AsIndex(args[1], "int"));
    }
    if (base == 0 || (base >= 2 && base <= 36)) {
      KVASIR_ASSIGN_OR_RETURN(Value parsed, ParseInt(v.text(), base));
      if (!parsed.missing()) return parsed;
    }
    const Value number = ParseFloat(v.text());
    if (!number.missing()) d = number.double_value();
  }
  if (!std::isfinite(d)) return fallback;
  return Truncated(d);
}

StatusOr<Value> FloatFilter(Evaluator&, const Value& v, Bound& args) {
  if (v.undefined()) return UndefinedError(v);
  if (v.is_number()) return Value::Float(v.double_value());
  const Value parsed = v.is_string() ? ParseFloat(v.text()) : Value();
  if (!parsed.missing()) return parsed;
  return args.has(0) ? args[0] : Value::Float(0);
}

StatusOr<Value> AbsFilter(Evaluator&, const Value& v, Bound&) {
  if (v.is(Type::kFloat)) return Value::Float(std::fabs(v.double_value()));
  if (!v.is_integral()) return InvalidArgument("abs: bad operand type '{}'", TypeName(v));
  return Value::Integer(v.int_value() < 0 ? -v.int_value() : v.int_value());
}

// Rounds to a multiple of 10**digits, halves to the even multiple.
StatusOr<Value> RoundInteger(Int value, Int digits) {
  if (digits > 37) return Value::Integer(0);
  Int unit = 1;
  for (Int i = 0; i < digits; i++) unit *= 10;
  Int quotient = value / unit, rest = value % unit;
  if (rest < 0) {
    rest += unit;
    quotient--;
  }
  if (rest > unit - rest || (rest == unit - rest && (quotient & 1))) quotient++;
  if (__builtin_mul_overflow(quotient, unit, &value))
    return InvalidArgument("integer overflow: integers in templates are limited to 127 bits");
  return Value::Integer(value);
}

StatusOr<Value> RoundFilter(Evaluator&, const Value& v, Bound& args) {
  Int digits = 0;
  std::string_view method = "common";
  if (args.has(1)) {
    KVASIR_ASSIGN_OR_RETURN(method, AsText(args[1], "round"));
  }
  if (method != "common" && method != "ceil" && method != "floor")
    return InvalidArgument("round: the method must be common, ceil or floor");
  if (args.has(0)) {
    KVASIR_ASSIGN_OR_RETURN(digits, AsIndex(args[0], "round"));
  }
  if (!v.is_number()) return InvalidArgument("round: type {} cannot be rounded", TypeName(v));
  const double d = v.double_value();
  if (method != "common") {
    if (digits > 300 || digits < -300) return InvalidArgument("round: precision {} is out of range", IntToString(digits));
    const double unit =
        digits >= 0 ? std::pow(10.0, static_cast<double>(digits)) : 1 / std::pow(10.0, static_cast<double>(-digits));
    const double scaled = d * unit;
    if (!std::isfinite(scaled)) return InvalidArgument("cannot convert float infinity or NaN to integer");
    const double whole = method == "ceil" ? std::ceil(scaled) : std::floor(scaled);
    return Value::Float((whole + 0.0) / unit);  // + 0.0: Python goes through an int, which has no -0
  }
  if (v.is_integral()) return digits >= 0 ? StatusOr<Value>(Value::Integer(v.int_value())) : RoundInteger(v.int_value(), -digits);
  if (!std::isfinite(d) || digits > 320) return v;
  if (digits < -310) return Value::Float(std::copysign(0.0, d));
  if (digits < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-digits));
    return Value::Float(std::nearbyint(d / unit) * unit);
  }
  char buffer[700];
  const int n = std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(digits), d);
  double out = d;
  std::from_chars(buffer, buffer + n, out);
  return Value::Float(out);
}

StatusOr<Value> ToJsonFilter(Evaluator& eval, const Value& v, Bound& args) {
  JsonStyle style;
  std::string indent;
  style.ensure_ascii = args.has(0) && Truthy(args[0]);
  if (args.has(1) && !args[1].is(Type::kNone)) {
    if (args[1].is_string()) {
      indent = std::string(args[1].text());
    } else {
      KVASIR_ASSIGN_OR_RETURN(const Int width, AsIndex(args[1], "tojson(indent=)"));
      if (width > 1000)
        return InvalidArgument("template budget exceeded: tojson(indent={}), the limit is 1000", IntToString(width));
      indent.assign(static_cast<size_t>(std::max<Int>(width, 0)), ' ');
    }
    style.indent = &indent;
    style.item_separator = ",";
  }
  if (args.has(2) && !args[2].is(Type::kNone)) {
    KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> separators, ToVector(eval.heap(), args[2]));
    if (separators.size() != 2 || !separators[0].is_string() || !separators[1].is_string()) {
      return InvalidArgument("tojson: separators must be a pair of strings");
    }
    style.item_separator = std::string(separators[0].text());
    style.key_separator = std::string(separators[1].text());
    if (style.item_separator.size() + style.key_separator.size() > 1000)
      return InvalidArgument("template budget exceeded: tojson separators of over 1000 bytes");
  }
  style.sort_keys = args.has(3) && Truthy(args[3]);
  std::string out;
  KVASIR_RETURN_IF_ERROR(AppendJson(eval.heap(), v, style, 0, &out));
  return eval.heap().String(std::move(out));
}

StatusOr<Value> AttrFilter(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const std::string_view name, AsText(args[0], "attr"));
  if (v.is(Type::kDict)) {
    bool mutates;
    if (!HasMethod(v, name, &mutates)) return eval.heap().Undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return GetAttr(eval, v, std::string(name));
}

// Percent-encodes what is not safe in a URL; in a query string '/' too, and spaces become '+'.
StatusOr<std::string> UrlQuote(Evaluator& eval, const Value& v, bool in_query) {
  KVASIR_ASSIGN_OR_RETURN(const std::string text, ToStr(eval.heap(), v));
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(text.size()) * 3));
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80 && (std::isalnum(byte) || std::string_view("_.-~").find(c) != std::string_view::npos || (c == '/' && !in_query))) {
      out.push_back(c);
    } else if (c == ' ' && in_query) {
      out.push_back('+');
    } else {
      out += fmt::format("%{:02X}", byte);
    }
  }
  return out;
}

StatusOr<Value> UrlEncodeFilter(Evaluator& eval, const Value& v, Bound&) {
  StatusOr<Iterator> it = Iterator::Start(v);
  if (v.is_string() || !it.ok()) {
    KVASIR_ASSIGN_OR_RETURN(std::string out, UrlQuote(eval, v, false));
    return eval.heap().String(std::move(out));
  }
  Value pairs = v;
  if (v.is(Type::kDict)) {
    KVASIR_ASSIGN_OR_RETURN(pairs, eval.heap().View(v, ViewKind::kItems));
  }
  KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> items, ToVector(eval.heap(), pairs));
  std::string out;
  for (const Value& item : items) {
    KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> pair, ToVector(eval.heap(), item));
    if (pair.size() != 2) return InvalidArgument("urlencode: every item must be a pair, but one has length {}", pair.size());
    KVASIR_ASSIGN_OR_RETURN(const std::string name, UrlQuote(eval, pair[0], true));
    KVASIR_ASSIGN_OR_RETURN(const std::string value, UrlQuote(eval, pair[1], true));
    KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(out.size() + name.size() + value.size())));
    out += (out.empty() ? "" : "&") + name + "=" + value;
  }
  return eval.heap().String(std::move(out));
}

constexpr FilterSpec kFilters[] = {
    {"abs", "", AbsFilter},
    {"attr", "name!", AttrFilter},
    {"capitalize", "", CapitalizeFilter},
    {"center", "width", CenterFilter},
    {"count", "", LengthFilter},
    {"d", "default_value,boolean", DefaultFilter},
    {"default", "default_value,boolean", DefaultFilter},
    {"e", "", EscapeFilter},
    {"escape", "", EscapeFilter},
    {"float", "default", FloatFilter},
    {"forceescape", "", ForceEscapeFilter},
    {"format", "*", FormatFilter},
    {"indent", "width,first,blank", IndentFilter},
    {"int", "default,base", IntFilter},
    {"length", "", LengthFilter},
    {"lower", "", LowerFilter},
    {"replace", "old,new!count", ReplaceFilter},
    {"round", "precision,method", RoundFilter},
    {"safe", "", SafeFilter},
    {"string", "", StringFilter},
    {"title", "", TitleFilter},
    {"tojson", "ensure_ascii,indent,separators,sort_keys", ToJsonFilter},
    {"trim", "chars", TrimFilter},
    {"truncate", "length,killwords,end,leeway", TruncateFilter},
    {"upper", "", UpperFilter},
    {"urlencode", "", UrlEncodeFilter},
    {"wordcount", "", WordCountFilter},
};

}  // namespace

std::string FilterNames() {
  std::string out;
  for (const FilterSpec& spec : kFilters) out += fmt::format("{}, ", spec.name);
  for (const FilterSpec& spec : ListFilters()) out += fmt::format("{}, ", spec.name);
  out.resize(out.size() - 2);
  return out;
}

const FilterSpec* FindFilter(std::string_view name) {
  for (const FilterSpec& spec : kFilters) {
    if (spec.name == name) return &spec;
  }
  for (const FilterSpec& spec : ListFilters()) {
    if (spec.name == name) return &spec;
  }
  return nullptr;
}

}  // namespace kvasir::jinja
