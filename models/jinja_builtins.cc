#include "models/jinja_builtins.h"

#include <algorithm>
#include <ctime>

#include "models/jinja_eval.h"
#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

StatusOr<Value> MakeRange(Evaluator& eval, const Args& args) {
  constexpr Int kMaxRange = 100'000;  // the sandbox's own limit
  if (!args.named.empty()) return InvalidArgument("range() takes no keyword arguments");
  if (args.positional.empty() || args.positional.size() > 3) return InvalidArgument("range() takes 1 to 3 arguments");
  Int parts[3] = {0, 0, 1};
  for (size_t i = 0; i < args.positional.size(); i++) {
    if (args.positional[i].undefined()) return UndefinedError(args.positional[i]);
    KVASIR_ASSIGN_OR_RETURN(parts[i], AsIndex(args.positional[i], "range()"));
    constexpr Int kHuge = Int{1} << 100;
    if (parts[i] > kHuge || parts[i] < -kHuge)
      return InvalidArgument("template budget exceeded: range() with numbers beyond 2**100");
  }
  if (args.positional.size() == 1) std::swap(parts[0], parts[1]);
  if (parts[2] == 0) return InvalidArgument("range() arg 3 must not be zero");
  KVASIR_ASSIGN_OR_RETURN(Value range, eval.heap().Range(parts[0], parts[1], parts[2]));
  if (range.object<RangeObj>().size() > kMaxRange) {
    return InvalidArgument("template budget exceeded: range() of {} items but the limit is {}",
                           IntToString(range.object<RangeObj>().size()), IntToString(kMaxRange));
  }
  return range;
}

// dict() and namespace(): an optional mapping or sequence of pairs, then keywords.
StatusOr<std::vector<std::pair<Value, Value>>> DictItems(Evaluator& eval, const char* what, const Args& args) {
  if (args.positional.size() > 1) return InvalidArgument("{} takes at most 1 positional argument", what);
  std::vector<std::pair<Value, Value>> items;
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (source.is(Type::kDict)) {
      items = source.dict().items;
    } else {
      KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> pairs, ToVector(eval.heap(), source));
      for (const Value& p : pairs) {
        KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> pair, ToVector(eval.heap(), p));
        if (pair.size() != 2) return InvalidArgument("{}: every item must be a pair, but one has length {}", what, pair.size());
        items.emplace_back(pair[0], pair[1]);
      }
    }
  }
  for (const auto& [name, v] : args.named) {
    KVASIR_ASSIGN_OR_RETURN(Value key, eval.heap().String(name));
    items.emplace_back(std::move(key), v);
  }
  return items;
}

StatusOr<Value> MakeNamespace(Evaluator& eval, const Args& args) {
  KVASIR_ASSIGN_OR_RETURN(const auto items, DictItems(eval, "namespace()", args));
  KVASIR_ASSIGN_OR_RETURN(const Value ns, eval.heap().Namespace());
  for (const auto& [key, v] : items) {
    if (!key.is_string()) return InvalidArgument("the names of a namespace must be strings, not {}", TypeName(key));
    KVASIR_RETURN_IF_ERROR(eval.heap().SetAttribute(ns, key.text(), v));
  }
  return ns;
}

StatusOr<Value> FromKeys(Evaluator& eval, const Value& keys, const Value& value) {
  KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> names, ToVector(eval.heap(), keys));
  std::vector<std::pair<Value, Value>> items;
  for (const Value& name : names) items.emplace_back(name, value.missing() ? Value::None() : value);
  return eval.heap().Dict(items);
}

StatusOr<Value> StrftimeNow(Evaluator& eval, const Value& format) {
  KVASIR_ASSIGN_OR_RETURN(const std::string_view text, AsText(format, "strftime_now()"));
  if (text.size() > 256)
    return InvalidArgument("template budget exceeded: a strftime_now() format of {} bytes, the limit is 256", text.size());
  const auto now = static_cast<time_t>(eval.now());
  std::tm local{};
  if (localtime_r(&now, &local) == nullptr) return InvalidArgument("strftime_now(): the time {} cannot be shown", eval.now());
  std::string pattern;
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == '%' && i + 1 < text.size() && text[i + 1] == 'f') {
      pattern += "000000";
      i++;
      continue;
    }
    pattern.push_back(text[i]);
    if (text[i] == '%' && i + 1 < text.size()) pattern.push_back(text[++i]);
  }
  pattern.push_back(' ');  // so that an empty result differs from a full buffer
  char buffer[8192];
  const size_t n = std::strftime(buffer, sizeof(buffer), pattern.c_str(), &local);
  if (n == 0) return InvalidArgument("strftime_now(): the result is too long");
  std::string out(buffer, n - 1);
  if (!IsValidUtf8(out)) return InvalidArgument("strftime_now(): the result is not valid UTF-8");
  return eval.heap().String(std::move(out));
}

}  // namespace

const std::vector<std::string_view> kGlobalFunctions = {"range", "namespace", "dict", "raise_exception", "strftime_now"};

StatusOr<Value> CallFunction(Evaluator& eval, const std::string& name, Args args) {
  if (name == "range") return MakeRange(eval, args);
  if (name == "namespace") return MakeNamespace(eval, args);
  if (name == "dict") {
    KVASIR_ASSIGN_OR_RETURN(const auto items, DictItems(eval, "dict()", args));
    return eval.heap().Dict(items);
  }
  if (name == "dict.fromkeys") {
    KVASIR_ASSIGN_OR_RETURN(const Bound bound, BindArgs("fromkeys()", "/iterable!value", std::move(args)));
    return FromKeys(eval, bound[0], bound[1]);
  }
  KVASIR_ASSIGN_OR_RETURN(const Bound bound,
                          BindArgs(name + "()", name == "raise_exception" ? "message!" : "format!", std::move(args)));
  if (name == "strftime_now") return StrftimeNow(eval, bound[0]);
  KVASIR_ASSIGN_OR_RETURN(std::string text, ToStr(eval.heap(), bound[0]));
  return eval.Raise(std::move(text));
}

StatusOr<Bound> BindArgs(const std::string& what, std::string_view params, Args args) {
  Bound bound;
  if (params == "*") {
    bound.raw = std::move(args);
    return bound;
  }
  const bool positional_only = params.starts_with('/');
  if (positional_only) params.remove_prefix(1);
  std::vector<std::string_view> names;
  size_t required = 0;
  const size_t mark = params.find('!');
  if (mark != std::string_view::npos) {
    names = Split(params.substr(0, mark), ",", -1);
    required = names.size();
    params.remove_prefix(mark + 1);
  }
  if (!params.empty()) {
    for (const auto name : Split(params, ",", -1)) names.push_back(name);
  }
  if (args.positional.size() > names.size()) {
    return InvalidArgument("{} takes at most {} arguments but got {}", what, names.size(), args.positional.size());
  }
  bound.values = std::move(args.positional);
  bound.values.resize(names.size());
  for (auto& [name, v] : args.named) {
    const auto it = std::find(names.begin(), names.end(), name);
    if (it == names.end() || positional_only) return InvalidArgument("{} got an unexpected keyword argument '{}'", what, name);
    Value& slot = bound.values[static_cast<size_t>(it - names.begin())];
    if (!slot.missing()) return InvalidArgument("{} got multiple values for argument '{}'", what, name);
    slot = std::move(v);
  }
  for (size_t i = 0; i < required; i++) {
    if (bound.values[i].missing()) return InvalidArgument("{} is missing the required argument '{}'", what, names[i]);
  }
  return bound;
}

StatusOr<Value> RunFilter(Evaluator& eval, const FilterSpec& spec, const Value& value, Args args) {
  KVASIR_RETURN_IF_ERROR(eval.heap().Step());
  KVASIR_ASSIGN_OR_RETURN(Bound bound, BindArgs(spec.name, spec.params, std::move(args)));
  return spec.run(eval, value, bound);
}

StatusOr<Int> AsIndex(const Value& v, const char* what) {
  if (!v.is_integral()) return InvalidArgument("{}: '{}' object cannot be interpreted as an integer", what, TypeName(v));
  return v.int_value();
}

StatusOr<std::string_view> AsText(const Value& v, const char* what) {
  if (!v.is_string()) return InvalidArgument("{}: expected str, not {}", what, TypeName(v));
  return v.text();
}

}  // namespace kvasir::jinja
