// The methods of Python's str, list, tuple and dict that do not change the object.
#include <algorithm>
#include <cmath>
#include <span>

#include "models/jinja_eval.h"
#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

using Method = StatusOr<Value> (*)(Evaluator& eval, const Value& self, Bound& args);
struct MethodSpec {
  std::string_view name;
  const char* params;
  Method run;
};

StatusOr<Value> Same(Evaluator& eval, const Value& self, std::string text) {
  return eval.heap().String(std::move(text), self.markup());
}

StatusOr<Value> Pieces(Evaluator& eval, const Value& self, const std::vector<std::string_view>& pieces) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(pieces.size() * sizeof(Value) * 3)));
  std::vector<Value> items;
  for (const auto piece : pieces) {
    KVASIR_ASSIGN_OR_RETURN(Value v, Same(eval, self, std::string(piece)));
    items.push_back(std::move(v));
  }
  return eval.heap().List(std::move(items));
}

template <bool kLeft, bool kRight>
StatusOr<Value> StripMethod(Evaluator& eval, const Value& self, Bound& args) {
  if (!args.has(0) || args[0].is(Type::kNone)) return Same(eval, self, std::string(Strip(self.text(), nullptr, kLeft, kRight)));
  KVASIR_ASSIGN_OR_RETURN(const std::string_view chars, AsText(args[0], "strip()"));
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(static_cast<int64_t>(chars.size() / 8)));
  return Same(eval, self, std::string(Strip(self.text(), &chars, kLeft, kRight)));
}

template <bool kRight>
StatusOr<Value> SplitMethod(Evaluator& eval, const Value& self, Bound& args) {
  Int max = -1;
  if (args.has(1)) {
    KVASIR_ASSIGN_OR_RETURN(max, AsIndex(args[1], "maxsplit"));
  }
  const auto limit = static_cast<int64_t>(std::clamp<Int>(max, -1, Int{1} << 40));
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(self.text().size())));
  if (!args.has(0) || args[0].is(Type::kNone)) {
    return Pieces(eval, self, kRight ? RSplitWhitespace(self.text(), limit) : SplitWhitespace(self.text(), limit));
  }
  KVASIR_ASSIGN_OR_RETURN(const std::string_view separator, AsText(args[0], "split()"));
  if (separator.empty()) return InvalidArgument("empty separator");
  return Pieces(eval, self, kRight ? RSplit(self.text(), separator, limit) : Split(self.text(), separator, limit));
}

template <std::string (*kMap)(std::string_view)>
StatusOr<Value> MapMethod(Evaluator& eval, const Value& self, Bound&) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(self.text().size()) * 3));
  return Same(eval, self, kMap(self.text()));
}

// The byte range of self[start:end], and the code point where it begins.
struct Window {
  size_t begin = 0, end = 0;
  Int first = 0;
  bool empty_beyond = false;  // start lies after the end: nothing matches, not even ""
};
StatusOr<Window> WindowOf(const Value& self, const Bound& args, size_t at) {
  const Int length = StringLength(self);
  Int from = 0, to = length;
  if (args.has(at) && !args[at].is(Type::kNone)) {
    KVASIR_ASSIGN_OR_RETURN(from, AsIndex(args[at], "start"));
  }
  if (args.has(at + 1) && !args[at + 1].is(Type::kNone)) {
    KVASIR_ASSIGN_OR_RETURN(to, AsIndex(args[at + 1], "end"));
  }
  if (from < 0) from = std::max<Int>(0, from + length);
  if (to < 0) to = std::max<Int>(0, to + length);
  to = std::min(to, length);
  Window w;
  w.empty_beyond = from > to;
  from = std::min(from, length);
  w.first = from;
  w.begin = ByteOffset(self.text(), static_cast<int64_t>(from));
  w.end = std::max(w.begin, ByteOffset(self.text(), static_cast<int64_t>(to)));
  return w;
}

template <bool kEnd>
StatusOr<Value> StartsWith(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(args.has(1) ? static_cast<int64_t>(self.text().size() / 16) : 0));
  KVASIR_ASSIGN_OR_RETURN(const Window w, WindowOf(self, args, 1));
  const std::string_view text = self.text().substr(w.begin, w.end - w.begin);
  const auto matches = [&](std::string_view affix) {
    return !w.empty_beyond && (kEnd ? text.ends_with(affix) : text.starts_with(affix));
  };
  if (!args[0].is(Type::kTuple)) {
    KVASIR_ASSIGN_OR_RETURN(const std::string_view affix, AsText(args[0], kEnd ? "endswith()" : "startswith()"));
    return Value::Bool(matches(affix));
  }
  for (const Value& v : args[0].items()) {
    KVASIR_ASSIGN_OR_RETURN(const std::string_view affix, AsText(v, kEnd ? "endswith()" : "startswith()"));
    if (matches(affix)) return Value::Bool(true);
  }
  return Value::Bool(false);
}

enum class Search { kFind, kRFind, kIndex, kRIndex, kCount };

template <Search kKind>
StatusOr<Value> FindMethod(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(static_cast<int64_t>(self.text().size() / 16)));
  KVASIR_ASSIGN_OR_RETURN(const std::string_view needle, AsText(args[0], "find()"));
  KVASIR_ASSIGN_OR_RETURN(const Window w, WindowOf(self, args, 1));
  const std::string_view text = self.text().substr(w.begin, w.end - w.begin);
  if (kKind == Search::kCount) {
    if (w.empty_beyond) return Value::Integer(0);
    if (needle.empty()) return Value::Integer(CodePointCount(text) + 1);
    Int count = 0;
    for (size_t at = text.find(needle); at != std::string_view::npos; at = text.find(needle, at + needle.size())) count++;
    return Value::Integer(count);
  }
  const bool right = kKind == Search::kRFind || kKind == Search::kRIndex;
  const size_t found = w.empty_beyond ? std::string_view::npos : right ? text.rfind(needle) : text.find(needle);
  if (found != std::string_view::npos) return Value::Integer(w.first + CodePointCount(text.substr(0, found)));
  if (kKind == Search::kIndex || kKind == Search::kRIndex) return InvalidArgument("substring not found");
  return Value::Integer(-1);
}

StatusOr<Value> Replace(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const std::string_view from, AsText(args[0], "replace()"));
  KVASIR_ASSIGN_OR_RETURN(const std::string_view plain, AsText(args[1], "replace()"));
  const std::string to = self.markup() && !args[1].markup() ? EscapeHtml(plain) : std::string(plain);
  Int left = -1;
  if (args.has(2)) {
    KVASIR_ASSIGN_OR_RETURN(left, AsIndex(args[2], "count"));
  }
  const std::string_view text = self.text();
  std::string out;
  size_t at = 0;
  while (left != 0) {
    size_t found = from.empty() ? at : text.find(from, at);
    if (found == std::string_view::npos) break;
    KVASIR_RETURN_IF_ERROR(eval.heap().Check(static_cast<Int>(out.size() + text.size() + to.size())));
    KVASIR_RETURN_IF_ERROR(eval.heap().Step(1 + static_cast<int64_t>(to.size() / 64)));
    out.append(text.substr(at, found - at)).append(to);
    at = found + from.size();
    left--;
    if (!from.empty()) continue;
    if (at >= text.size()) break;
    const size_t begin = at;
    NextCodePoint(text, &at);
    out.append(text.substr(begin, at - begin));
  }
  if (at < text.size()) out.append(text.substr(at));
  return Same(eval, self, std::move(out));
}

StatusOr<Value> JoinMethod(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> items, ToVector(eval.heap(), args[0]));
  std::string out;
  for (size_t i = 0; i < items.size(); i++) {
    if (!items[i].is_string() && !self.markup()) {
      return InvalidArgument("sequence item {}: expected str instance, {} found", i, TypeName(items[i]));
    }
    if (i > 0) {
      KVASIR_RETURN_IF_ERROR(eval.heap().Check(static_cast<Int>(out.size() + self.text().size())));
      KVASIR_RETURN_IF_ERROR(eval.heap().Step(static_cast<int64_t>(self.text().size() / 64)));
      out.append(self.text());
    }
    std::string piece;
    KVASIR_RETURN_IF_ERROR(AppendStr(eval.heap(), items[i], &piece));
    out += self.markup() && !items[i].markup() ? EscapeHtml(piece) : piece;
  }
  return Same(eval, self, std::move(out));
}

template <bool kRight>
StatusOr<Value> PartitionMethod(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const std::string_view separator, AsText(args[0], "partition()"));
  if (separator.empty()) return InvalidArgument("empty separator");
  const std::string_view text = self.text();
  const size_t found = kRight ? text.rfind(separator) : text.find(separator);
  std::string_view parts[3] = {text, "", ""};
  if (found != std::string_view::npos) {
    parts[0] = text.substr(0, found);
    parts[1] = separator;
    parts[2] = text.substr(found + separator.size());
  } else if (kRight) {
    std::swap(parts[0], parts[2]);
  }
  std::vector<Value> items;
  for (const auto part : parts) {
    KVASIR_ASSIGN_OR_RETURN(Value v, Same(eval, self, std::string(part)));
    items.push_back(std::move(v));
  }
  return eval.heap().Tuple(std::move(items));
}

template <int kAlign>  // -1 left, 0 centre, 1 right
StatusOr<Value> Justify(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const Int width, AsIndex(args[0], "width"));
  std::string_view fill = " ";
  if (args.has(1)) {
    KVASIR_ASSIGN_OR_RETURN(fill, AsText(args[1], "fillchar"));
  }
  if (CodePointCount(fill) != 1) return InvalidArgument("the fill character must be exactly one character long");
  const Int length = StringLength(self), missing = width - length;
  if (missing <= 0) return Same(eval, self, std::string(self.text()));
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(missing > (Int{1} << 60) ? missing : missing * static_cast<Int>(fill.size())));
  const Int left = kAlign < 0 ? 0 : kAlign > 0 ? missing : missing / 2 + (missing & width & 1);
  std::string out;
  for (Int i = 0; i < left; i++) out += fill;
  out += self.text();
  for (Int i = left; i < missing; i++) out += fill;
  return Same(eval, self, std::move(out));
}

StatusOr<Value> ZFill(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const Int width, AsIndex(args[0], "width"));
  const Int missing = width - StringLength(self);
  if (missing <= 0) return Same(eval, self, std::string(self.text()));
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(missing));
  std::string out(self.text());
  const bool sign = out.starts_with('+') || out.starts_with('-');
  out.insert(sign ? 1 : 0, static_cast<size_t>(missing), '0');
  return Same(eval, self, std::move(out));
}

template <bool kPrefix>
StatusOr<Value> RemoveAffix(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const std::string_view affix, AsText(args[0], "removeprefix()"));
  std::string_view text = self.text();
  if (kPrefix ? text.starts_with(affix) : text.ends_with(affix)) {
    text = kPrefix ? text.substr(affix.size()) : text.substr(0, text.size() - affix.size());
  }
  return Same(eval, self, std::string(text));
}

StatusOr<Value> SplitLinesMethod(Evaluator& eval, const Value& self, Bound& args) {
  return Pieces(eval, self, SplitLines(self.text(), args.has(0) && Truthy(args[0])));
}

template <bool (*kIs)(char32_t)>
StatusOr<Value> AllMethod(Evaluator& eval, const Value& self, Bound&) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(static_cast<int64_t>(self.text().size() / 16)));
  const std::string_view text = self.text();
  for (size_t at = 0; at < text.size();) {
    if (!kIs(NextCodePoint(text, &at))) return Value::Bool(false);
  }
  return Value::Bool(!text.empty());
}
bool IsAlnum(char32_t c) {
  return IsAlpha(c) || IsDecimal(c) || IsDigit(c) || IsNumeric(c);
}

StatusOr<Value> IsAsciiMethod(Evaluator&, const Value& self, Bound&) {
  return Value::Bool(self.str().ascii);
}

StatusOr<Value> IsPrintableMethod(Evaluator& eval, const Value& self, Bound& args) {
  return self.text().empty() ? StatusOr<Value>(Value::Bool(true)) : AllMethod<IsPrintable>(eval, self, args);
}

StatusOr<Value> IsIdentifierMethod(Evaluator& eval, const Value& self, Bound&) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(static_cast<int64_t>(self.text().size() / 16)));
  const std::string_view text = self.text();
  for (size_t at = 0; at < text.size();) {
    const bool first = at == 0;
    const char32_t c = NextCodePoint(text, &at);
    if (first ? !IsIdentifierStart(c) : !IsIdentifierPart(c)) return Value::Bool(false);
  }
  return Value::Bool(!text.empty());
}

StatusOr<Value> ExpandTabs(Evaluator& eval, const Value& self, Bound& args) {
  Int size = 8;
  if (args.has(0)) {
    KVASIR_ASSIGN_OR_RETURN(size, AsIndex(args[0], "tabsize"));
  }
  const auto tabs = static_cast<Int>(std::count(self.text().begin(), self.text().end(), '\t'));
  Int bytes;
  if (__builtin_mul_overflow(tabs, std::max<Int>(size, 0), &bytes)) bytes = Int{1} << 100;
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(bytes));
  std::string out;
  Int column = 0;
  for (const char c : self.text()) {
    if (c == '\t') {
      const Int fill = size > 0 ? size - column % size : 0;
      out.append(static_cast<size_t>(fill), ' ');
      column += fill;
      continue;
    }
    out.push_back(c);
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) column++;
    if (c == '\n' || c == '\r') column = 0;
  }
  return Same(eval, self, std::move(out));
}

// str.isupper and str.islower: cased characters exist and all are of that case.
template <bool kUpper>
StatusOr<Value> CaseMethod(Evaluator& eval, const Value& self, Bound&) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(static_cast<int64_t>(self.text().size() / 16)));
  bool any = false;
  for (size_t at = 0; at < self.text().size();) {
    const char32_t c = NextCodePoint(self.text(), &at);
    if (IsTitle(c) || (kUpper ? IsLower(c) : IsUpper(c))) return Value::Bool(false);
    any |= kUpper ? IsUpper(c) : IsLower(c);
  }
  return Value::Bool(any);
}

StatusOr<Value> IsTitleMethod(Evaluator& eval, const Value& self, Bound&) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(static_cast<int64_t>(self.text().size() / 16)));
  bool previous_cased = false, any = false;
  for (size_t at = 0; at < self.text().size();) {
    const char32_t c = NextCodePoint(self.text(), &at);
    const bool upper = IsUpper(c) || IsTitle(c), lower = IsLower(c);
    if ((upper && previous_cased) || (lower && !previous_cased)) return Value::Bool(false);
    previous_cased = upper || lower;
    any |= previous_cased;
  }
  return Value::Bool(any);
}

StatusOr<Value> FormatMethod(Evaluator& eval, const Value& self, Bound& args) {
  return BraceFormat(eval, self, args.raw);
}

// --- list and tuple ---

StatusOr<Value> SequenceIndex(Evaluator& eval, const Value& self, Bound& args) {
  const auto& items = self.items();
  const auto length = static_cast<Int>(items.size());
  Int from = 0, to = length;
  if (args.has(1)) {
    KVASIR_ASSIGN_OR_RETURN(from, AsIndex(args[1], "start"));
  }
  if (args.has(2)) {
    KVASIR_ASSIGN_OR_RETURN(to, AsIndex(args[2], "stop"));
  }
  if (from < 0) from = std::max<Int>(0, from + length);
  if (to < 0) to += length;
  for (Int i = from; i < std::min(to, length); i++) {
    KVASIR_RETURN_IF_ERROR(eval.heap().Step(args[0].weight()));
    if (Equal(items[static_cast<size_t>(i)], args[0])) return Value::Integer(i);
  }
  return InvalidArgument("the value is not in the list");
}

StatusOr<Value> SequenceCount(Evaluator& eval, const Value& self, Bound& args) {
  Int count = 0;
  for (const Value& v : self.items()) {
    KVASIR_RETURN_IF_ERROR(eval.heap().Step(args[0].weight()));
    count += Equal(v, args[0]) ? 1 : 0;
  }
  return Value::Integer(count);
}

StatusOr<Value> CopyMethod(Evaluator&, const Value& self, Bound&) {
  return self;
}

// --- dict ---

StatusOr<Value> DictGet(Evaluator& eval, const Value& self, Bound& args) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(args[0].weight()));
  if (!args[0].hashable()) return InvalidArgument("unhashable type: '{}' cannot be the key of a dict", TypeName(args[0]));
  if (const Value* found = self.dict().Find(args[0])) return *found;
  return args.has(1) ? args[1] : Value::None();
}
template <ViewKind kKind>
StatusOr<Value> DictView(Evaluator& eval, const Value& self, Bound&) {
  return eval.heap().View(self, kKind);
}

constexpr MethodSpec kStrMethods[] = {
    {"strip", "/chars", StripMethod<true, true>},
    {"lstrip", "/chars", StripMethod<true, false>},
    {"rstrip", "/chars", StripMethod<false, true>},
    {"split", "sep,maxsplit", SplitMethod<false>},
    {"rsplit", "sep,maxsplit", SplitMethod<true>},
    {"upper", "", MapMethod<Upper>},
    {"lower", "", MapMethod<Lower>},
    {"capitalize", "", MapMethod<Capitalize>},
    {"title", "", MapMethod<Title>},
    {"swapcase", "", MapMethod<SwapCase>},
    {"casefold", "", MapMethod<CaseFold>},
    {"startswith", "/prefix!start,end", StartsWith<false>},
    {"endswith", "/suffix!start,end", StartsWith<true>},
    {"find", "/sub!start,end", FindMethod<Search::kFind>},
    {"rfind", "/sub!start,end", FindMethod<Search::kRFind>},
    {"index", "/sub!start,end", FindMethod<Search::kIndex>},
    {"rindex", "/sub!start,end", FindMethod<Search::kRIndex>},
    {"count", "/sub!start,end", FindMethod<Search::kCount>},
    {"replace", "/old,new!count", Replace},
    {"join", "/iterable!", JoinMethod},
    {"partition", "/sep!", PartitionMethod<false>},
    {"rpartition", "/sep!", PartitionMethod<true>},
    {"ljust", "/width!fillchar", Justify<-1>},
    {"rjust", "/width!fillchar", Justify<1>},
    {"center", "/width!fillchar", Justify<0>},
    {"zfill", "/width!", ZFill},
    {"removeprefix", "/prefix!", RemoveAffix<true>},
    {"removesuffix", "/suffix!", RemoveAffix<false>},
    {"splitlines", "keepends", SplitLinesMethod},
    {"isalpha", "", AllMethod<IsAlpha>},
    {"isdigit", "", AllMethod<IsDigit>},
    {"isdecimal", "", AllMethod<IsDecimal>},
    {"isnumeric", "", AllMethod<IsNumeric>},
    {"isalnum", "", AllMethod<IsAlnum>},
    {"isspace", "", AllMethod<IsSpace>},
    {"istitle", "", IsTitleMethod},
    {"isascii", "", IsAsciiMethod},
    {"isprintable", "", IsPrintableMethod},
    {"isidentifier", "", IsIdentifierMethod},
    {"expandtabs", "tabsize", ExpandTabs},
    {"isupper", "", CaseMethod<true>},
    {"islower", "", CaseMethod<false>},
    {"format", "*", FormatMethod},
};
constexpr MethodSpec kListMethods[] = {
    {"index", "/value!start,stop", SequenceIndex}, {"count", "/value!", SequenceCount}, {"copy", "", CopyMethod}};
constexpr MethodSpec kDictMethods[] = {{"get", "/key!default", DictGet},
                                       {"items", "", DictView<ViewKind::kItems>},
                                       {"keys", "", DictView<ViewKind::kKeys>},
                                       {"values", "", DictView<ViewKind::kValues>},
                                       {"copy", "", CopyMethod}};
constexpr std::string_view kListMutators[] = {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"};
constexpr std::string_view kDictMutators[] = {"clear", "pop", "popitem", "setdefault", "update"};

const MethodSpec* FindMethodSpec(const Value& self, std::string_view name) {
  const auto in = [&](std::span<const MethodSpec> specs) -> const MethodSpec* {
    const auto it = std::find_if(specs.begin(), specs.end(), [&](const MethodSpec& s) { return s.name == name; });
    return it == specs.end() ? nullptr : &*it;
  };
  if (self.is_string()) return in(kStrMethods);
  if (self.is(Type::kDict)) return in(kDictMethods);
  if (self.is_sequence() && (self.is(Type::kList) || name != "copy")) return in(kListMethods);
  return nullptr;
}

}  // namespace

bool HasMethod(const Value& self, std::string_view name, bool* mutates) {
  const auto has = [&](std::span<const std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  *mutates = (self.is(Type::kList) && has(kListMutators)) || (self.is(Type::kDict) && has(kDictMutators));
  return *mutates || FindMethodSpec(self, name) != nullptr;
}

StatusOr<Value> CallMethod(Evaluator& eval, const Value& self, const std::string& name, Args args) {
  const MethodSpec* spec = FindMethodSpec(self, name);
  if (spec == nullptr) return InvalidArgument("'{}' object has no method '{}'", TypeName(self), name);
  KVASIR_ASSIGN_OR_RETURN(Bound bound, BindArgs(name + "()", spec->params, std::move(args)));
  return spec->run(eval, self, bound);
}

}  // namespace kvasir::jinja
