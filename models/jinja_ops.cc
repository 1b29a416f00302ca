// Operators and lookups: arithmetic, comparison, attributes, items, slices.
#include <algorithm>
#include <cmath>

#include "models/jinja_eval.h"
#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

const char* OpName(Op op) {
  static constexpr const char* kNames[] = {"+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kNames[static_cast<int>(op)];
}

Status Unsupported(Op op, const Value& a, const Value& b) {
  return InvalidArgument("unsupported operand type(s) for {}: '{}' and '{}'", OpName(op), TypeName(a), TypeName(b));
}
Status Overflow() {
  return InvalidArgument("integer overflow: integers in templates are limited to 127 bits");
}
Status DivisionByZero() {
  return InvalidArgument("division by zero");
}

StatusOr<Value> Power(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral() && b.int_value() >= 0) {
    Int result = 1, base = a.int_value(), n = b.int_value();
    while (n > 0) {
      if ((n & 1) && __builtin_mul_overflow(result, base, &result)) return Overflow();
      n >>= 1;
      if (n > 0 && __builtin_mul_overflow(base, base, &base)) return Overflow();
    }
    return Value::Integer(result);
  }
  const double x = a.double_value(), y = b.double_value();
  if (x == 0 && y < 0) return InvalidArgument("0.0 cannot be raised to a negative power");
  if (x < 0 && y != std::floor(y) && std::isfinite(y)) return InvalidArgument("complex numbers are not supported in templates");
  const double result = std::pow(x, y);
  if (std::isinf(result) && std::isfinite(x) && std::isfinite(y)) return InvalidArgument("the result of ** is too large");
  return Value::Float(result);
}

StatusOr<Value> IntegerMath(Op op, Int x, Int y) {
  Int result = 0;
  switch (op) {
    case Op::kAdd:
      return __builtin_add_overflow(x, y, &result) ? StatusOr<Value>(Overflow()) : Value::Integer(result);
    case Op::kSub:
      return __builtin_sub_overflow(x, y, &result) ? StatusOr<Value>(Overflow()) : Value::Integer(result);
    case Op::kMul:
      return __builtin_mul_overflow(x, y, &result) ? StatusOr<Value>(Overflow()) : Value::Integer(result);
    default:
      break;
  }
  if (y == 0) return DivisionByZero();
  if (op == Op::kDiv) return Value::Float(static_cast<double>(x) / static_cast<double>(y));
  if (y == -1) return op == Op::kMod ? Value::Integer(0) : IntegerMath(Op::kSub, 0, x);
  const Int remainder = x % y;
  const bool adjust = remainder != 0 && (remainder < 0) != (y < 0);  // Python rounds towards minus infinity
  if (op == Op::kMod) return Value::Integer(adjust ? remainder + y : remainder);
  return Value::Integer(x / y - (adjust ? 1 : 0));
}

StatusOr<Value> FloatMath(Op op, double x, double y) {
  switch (op) {
    case Op::kAdd:
      return Value::Float(x + y);
    case Op::kSub:
      return Value::Float(x - y);
    case Op::kMul:
      return Value::Float(x * y);
    case Op::kDiv:
      return y == 0 ? StatusOr<Value>(DivisionByZero()) : Value::Float(x / y);
    default:
      break;
  }
  if (y == 0) return DivisionByZero();
  double mod = std::fmod(x, y);
  double div = (x - mod) / y;
  if (mod != 0) {
    if ((y < 0) != (mod < 0)) {
      mod += y;
      div -= 1;
    }
  } else {
    mod = std::copysign(0.0, y);
  }
  if (op == Op::kMod) return Value::Float(mod);
  if (div == 0) return Value::Float(std::copysign(0.0, x / y));
  const double floored = std::floor(div);
  return Value::Float(div - floored > 0.5 ? floored + 1 : floored);
}

StatusOr<Value> Repeat(Heap& heap, const Value& sequence, Int count) {
  count = std::max<Int>(count, 0);
  const Int size =
      sequence.is_string() ? static_cast<Int>(sequence.text().size()) : static_cast<Int>(sequence.items().size() * sizeof(Value));
  Int bytes;
  if (__builtin_mul_overflow(size, count, &bytes)) bytes = static_cast<Int>(1) << 100;
  KVASIR_RETURN_IF_ERROR(heap.Reserve(bytes));
  if (size == 0) count = 0;
  if (sequence.is_string()) {
    std::string text;
    text.reserve(static_cast<size_t>(bytes));
    for (Int i = 0; i < count; i++) text += sequence.text();
    return heap.String(std::move(text), sequence.markup());
  }
  std::vector<Value> items;
  for (Int i = 0; i < count; i++) items.insert(items.end(), sequence.items().begin(), sequence.items().end());
  return heap.Sequence(sequence.type(), std::move(items));
}

StatusOr<Value> Join(Heap& heap, const Value& a, const Value& b) {
  if (a.is_string()) {
    KVASIR_RETURN_IF_ERROR(heap.Reserve(static_cast<Int>(a.text().size() + b.text().size())));
    const bool markup = a.markup() || b.markup();
    std::string text = markup && !a.markup() ? EscapeHtml(a.text()) : std::string(a.text());
    markup && !b.markup() ? text += EscapeHtml(b.text()) : text += b.text();
    return heap.String(std::move(text), markup);
  }
  KVASIR_RETURN_IF_ERROR(heap.Reserve(static_cast<Int>((a.items().size() + b.items().size()) * sizeof(Value))));
  std::vector<Value> items = a.items();
  items.insert(items.end(), b.items().begin(), b.items().end());
  return heap.Sequence(a.type(), std::move(items));
}

// The attribute of a Python object, apart from its items; missing when there is none.
StatusOr<Value> OwnAttribute(Evaluator& eval, const Value& object, std::string_view name) {
  if (object.is(Type::kNamespace)) {
    const auto& ns = object.object<NamespaceObj>();
    const auto it = ns.index.find(std::string(name));
    return it == ns.index.end() ? Value() : ns.attributes[it->second].second;
  }
  if (object.is(Type::kFunction) && name == "fromkeys" && object.object<FunctionObj>().name == "dict") {
    return eval.heap().Function("dict.fromkeys");
  }
  if (object.is(Type::kLoop)) return eval.LoopAttribute(object, std::string(name));
  if (name.starts_with("__") && name.ends_with("__")) {
    return eval.heap().Undefined(fmt::format("access to attribute '{}' of '{}' object is unsafe", name, TypeName(object)));
  }
  bool mutates = false;
  if (!HasMethod(object, name, &mutates)) return Value();
  if (!mutates) return eval.heap().Method(object, std::string(name));
  return eval.heap().Undefined(fmt::format(
      "access to attribute '{}' of '{}' object is unsafe: templates cannot change their input", name, TypeName(object)));
}

StatusOr<Value> Element(Heap& heap, const Value& object, Int index) {
  KVASIR_ASSIGN_OR_RETURN(const Int length, Length(object));
  if (index < 0) index += length;
  if (index < 0 || index >= length) return Value();
  if (object.is_sequence()) return object.items()[static_cast<size_t>(index)];
  if (object.is(Type::kRange)) {
    const auto& range = object.object<RangeObj>();
    return Value::Integer(range.start + index * range.step);
  }
  const std::string_view text = object.text();
  size_t begin = static_cast<size_t>(index), end = begin + 1;
  if (!object.str().ascii) {
    KVASIR_RETURN_IF_ERROR(heap.Step(static_cast<int64_t>(text.size() / 64)));
    begin = end = ByteOffset(text, static_cast<int64_t>(index));
    NextCodePoint(text, &end);
  }
  return heap.String(std::string(text.substr(begin, end - begin)), object.markup());
}

StatusOr<Value> NoAttribute(Evaluator& eval, const Value& object, std::string_view name) {
  return eval.heap().Undefined(object.is(Type::kNone) ? fmt::format("'None' has no attribute '{}'", name)
                                                      : fmt::format("'{} object' has no attribute '{}'", TypeName(object), name));
}

}  // namespace

Status UndefinedError(const Value& v) {
  if (v.raw() == nullptr) return InvalidArgument("an undefined value was used");
  return Status(StatusCode::kInvalidArgument, v.object<UndefinedObj>().message);
}

StatusOr<Value> Binary(Heap& heap, Op op, const Value& a, const Value& b) {
  if (a.is_string() && op == Op::kMod) return PercentFormat(heap, a, b);
  if (a.undefined()) return UndefinedError(a);
  if (b.undefined()) return UndefinedError(b);
  if (a.is_number() && b.is_number()) {
    if (op == Op::kPow) return Power(a, b);
    if (a.is_integral() && b.is_integral()) return IntegerMath(op, a.int_value(), b.int_value());
    return FloatMath(op, a.double_value(), b.double_value());
  }
  if (op == Op::kAdd && a.type() == b.type() && (a.is_string() || a.is_sequence())) return Join(heap, a, b);
  if (op == Op::kMul && b.is_integral() && (a.is_string() || a.is_sequence())) return Repeat(heap, a, b.int_value());
  if (op == Op::kMul && a.is_integral() && (b.is_string() || b.is_sequence())) return Repeat(heap, b, a.int_value());
  return Unsupported(op, a, b);
}

StatusOr<Value> Negate(const Value& v, bool minus) {
  if (v.undefined()) return UndefinedError(v);
  if (v.is(Type::kFloat)) return Value::Float(minus ? -v.double_value() : v.double_value());
  if (!v.is_integral()) return InvalidArgument("bad operand type for unary {}: '{}'", minus ? '-' : '+', TypeName(v));
  return minus ? IntegerMath(Op::kSub, 0, v.int_value()) : Value::Integer(v.int_value());
}

StatusOr<bool> CompareOp(Heap& heap, Op op, const Value& a, const Value& b) {
  if (op == Op::kIn || op == Op::kNotIn) {
    KVASIR_ASSIGN_OR_RETURN(const bool contains, Contains(heap, b, a));
    return contains == (op == Op::kIn);
  }
  KVASIR_RETURN_IF_ERROR(heap.Step(std::min(a.weight(), b.weight())));
  if (op == Op::kEq) return Equal(a, b);
  if (op == Op::kNe) return !Equal(a, b);
  if (a.undefined()) return UndefinedError(a);
  if (b.undefined()) return UndefinedError(b);
  if (a.is_number() && b.is_number()) {
    bool unordered;
    const int order = CompareNumbers(a, b, &unordered);
    if (unordered) return false;
    return op == Op::kLt ? order < 0 : op == Op::kLe ? order <= 0 : op == Op::kGt ? order > 0 : order >= 0;
  }
  const bool swap = op == Op::kGt || op == Op::kLe;  // a > b is b < a; a <= b is not b < a
  StatusOr<bool> less = swap ? Less(b, a) : Less(a, b);
  if (!less.ok()) return less;
  return op == Op::kLe || op == Op::kGe ? !*less : *less;
}

StatusOr<bool> Contains(Heap& heap, const Value& container, const Value& item) {
  KVASIR_RETURN_IF_ERROR(heap.Step(item.weight()));
  if (container.is_string()) {
    if (!item.is_string()) return InvalidArgument("'in <string>' requires string as left operand, not {}", TypeName(item));
    KVASIR_RETURN_IF_ERROR(heap.Step(static_cast<int64_t>(container.text().size() / 64)));
    return container.text().find(item.text()) != std::string_view::npos;
  }
  const bool keys = container.is(Type::kView) && container.object<ViewObj>().kind == ViewKind::kKeys;
  if (container.is(Type::kDict) || keys) {
    if (!item.hashable()) return InvalidArgument("unhashable type: '{}' cannot be the key of a dict", TypeName(item));
    const Value& dict = keys ? container.object<ViewObj>().dict : container;
    return dict.dict().Find(item) != nullptr;
  }
  StatusOr<Iterator> it = Iterator::Start(container);
  if (!it.ok()) return InvalidArgument("argument of type '{}' is not iterable", TypeName(container));
  while (true) {
    Value v;
    KVASIR_ASSIGN_OR_RETURN(const bool more, it->Next(heap, &v));
    if (!more) return false;
    KVASIR_RETURN_IF_ERROR(heap.Step(std::min(v.weight(), item.weight())));
    if (Equal(v, item)) return true;
  }
}

StatusOr<Value> GetAttr(Evaluator& eval, const Value& object, const std::string& name) {
  // Some of Python's own attributes exist on undefined values too, but are never shown.
  static constexpr std::string_view kOnUndefined[] = {
      "__class__", "__doc__",     "__init__",    "__new__",     "__repr__",   "__str__",    "__eq__",
      "__ne__",    "__lt__",      "__le__",      "__gt__",      "__ge__",     "__hash__",   "__bool__",
      "__len__",   "__iter__",    "__call__",    "__getitem__", "__add__",    "__mod__",    "__module__",
      "__slots__", "__getattr__", "__setattr__", "__dir__",     "__format__", "__reduce__", "__sizeof__"};
  const bool internal = std::find(std::begin(kOnUndefined), std::end(kOnUndefined), name) != std::end(kOnUndefined);
  if (object.undefined() && !internal) return UndefinedError(object);
  KVASIR_ASSIGN_OR_RETURN(Value own, OwnAttribute(eval, object, name));
  if (!own.missing()) return own;
  if (object.is(Type::kDict)) {
    if (const Value* found = object.dict().Find(name)) return *found;
  }
  return NoAttribute(eval, object, name);
}

StatusOr<Value> GetItem(Evaluator& eval, const Value& object, const Value& key) {
  if (object.undefined()) return UndefinedError(object);
  KVASIR_RETURN_IF_ERROR(eval.heap().Step(key.weight()));
  if (object.is(Type::kDict) && key.hashable()) {
    if (const Value* found = object.dict().Find(key)) return *found;
  }
  if (key.is_integral() && (object.is_string() || object.is_sequence() || object.is(Type::kRange))) {
    KVASIR_ASSIGN_OR_RETURN(Value element, Element(eval.heap(), object, key.int_value()));
    if (!element.missing()) return element;
  }
  if (key.is_string()) {
    KVASIR_ASSIGN_OR_RETURN(Value own, OwnAttribute(eval, object, key.text()));
    if (!own.missing()) return own;
    return NoAttribute(eval, object, key.text());
  }
  return eval.heap().Undefined(fmt::format("'{} object' has no such element", TypeName(object)));
}

StatusOr<Value> GetPath(Evaluator& eval, const Value& object, const Value& path) {
  if (path.missing() || path.is(Type::kNone)) return object;
  if (!path.is_string()) return GetItem(eval, object, path);
  Value item = object;
  for (const std::string_view part : Split(path.text(), ".", -1)) {
    const bool digits =
        !part.empty() && part.size() < 18 && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    Value key;
    if (digits) {
      key = Value::Integer(std::stoll(std::string(part)));
    } else {
      KVASIR_ASSIGN_OR_RETURN(key, eval.heap().String(std::string(part)));
    }
    KVASIR_ASSIGN_OR_RETURN(item, GetItem(eval, item, key));
  }
  return item;
}

StatusOr<Value> GetSlice(Heap& heap, const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (object.undefined()) return UndefinedError(object);
  if (!object.is_string() && !object.is_sequence() && !object.is(Type::kRange)) {
    return InvalidArgument("'{}' object cannot be sliced", TypeName(object));
  }
  for (const Value* v : {&start, &stop, &step}) {
    if (!v->is(Type::kNone) && !v->is_integral())
      return InvalidArgument("slice indices must be integers or None, not {}", TypeName(*v));
  }
  const Int by = step.is(Type::kNone) ? 1 : step.int_value();
  if (by == 0) return InvalidArgument("slice step cannot be zero");
  KVASIR_ASSIGN_OR_RETURN(const Int length, Length(object));
  const Int low = by > 0 ? 0 : -1, high = by > 0 ? length : length - 1;
  const auto clamp = [&](const Value& v, Int fallback) {
    if (v.is(Type::kNone)) return fallback;
    const Int i = v.int_value() < 0 ? std::max(v.int_value(), -length - 1) + length : v.int_value();
    return std::clamp(i, low, high);
  };
  const Int from = clamp(start, by > 0 ? low : high), to = clamp(stop, by > 0 ? high : low);
  if (object.is(Type::kRange)) {
    const auto& r = object.object<RangeObj>();
    Int stride;
    if (__builtin_mul_overflow(r.step, by, &stride)) return Overflow();
    return heap.Range(r.start + from * r.step, r.start + to * r.step, stride);
  }
  const Int count = by > 0 ? (from < to ? (to - from - 1) / by + 1 : 0) : (from > to ? (from - to - 1) / -by + 1 : 0);
  KVASIR_RETURN_IF_ERROR(heap.Step(static_cast<int64_t>(count / 16)));
  if (object.is_sequence()) {
    KVASIR_RETURN_IF_ERROR(heap.Reserve(count * static_cast<Int>(sizeof(Value))));
    std::vector<Value> items;
    for (Int i = 0; i < count; i++) items.push_back(object.items()[static_cast<size_t>(from + i * by)]);
    return heap.Sequence(object.type(), std::move(items));
  }
  const std::string_view text = object.text();
  if (by == 1 && object.str().ascii) {
    return heap.String(std::string(text.substr(static_cast<size_t>(from), static_cast<size_t>(count))), object.markup());
  }
  KVASIR_RETURN_IF_ERROR(heap.Reserve(static_cast<Int>(text.size()) * 8));
  std::vector<size_t> starts;
  for (size_t at = 0; at < text.size(); NextCodePoint(text, &at)) starts.push_back(at);
  starts.push_back(text.size());
  std::string out;
  for (Int i = 0; i < count; i++) {
    const auto at = static_cast<size_t>(from + i * by);
    out.append(text.substr(starts[at], starts[at + 1] - starts[at]));
  }
  return heap.String(std::move(out), object.markup());
}

}  // namespace kvasir::jinja
