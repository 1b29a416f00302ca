// The tests of `x is test`.
#include <cmath>

#include "models/jinja_eval.h"

namespace kvasir::jinja {
namespace {

template <Op kOp>
StatusOr<Value> OpTest(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const bool holds, CompareOp(eval.heap(), kOp, v, args[0]));
  return Value::Bool(holds);
}

template <int kRemainder>
StatusOr<Value> ParityTest(Evaluator& eval, const Value& v, Bound&) {
  KVASIR_ASSIGN_OR_RETURN(const Value rest, Binary(eval.heap(), Op::kMod, v, Value::Integer(2)));
  return Value::Bool(Equal(rest, Value::Integer(kRemainder)));
}

StatusOr<Value> DivisibleTest(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const Value rest, Binary(eval.heap(), Op::kMod, v, args[0]));
  return Value::Bool(Equal(rest, Value::Integer(0)));
}

template <bool (*kIs)(const Value&)>
StatusOr<Value> Predicate(Evaluator&, const Value& v, Bound&) {
  return Value::Bool(kIs(v));
}
bool Defined(const Value& v) {
  return !v.undefined();
}
bool IsUndefined(const Value& v) {
  return v.undefined();
}
bool IsNone(const Value& v) {
  return v.is(Type::kNone);
}
bool Boolean(const Value& v) {
  return v.is(Type::kBool);
}
bool IsFalse(const Value& v) {
  return v.is(Type::kBool) && !v.bool_value();
}
bool IsTrue(const Value& v) {
  return v.is(Type::kBool) && v.bool_value();
}
bool Integer(const Value& v) {
  return v.is(Type::kInt);
}
bool Float(const Value& v) {
  return v.is(Type::kFloat);
}
bool Number(const Value& v) {
  return v.is_number();
}
bool String(const Value& v) {
  return v.is_string();
}
bool Mapping(const Value& v) {
  return v.is(Type::kDict);
}
bool Escaped(const Value& v) {
  return v.markup();
}
bool Sequence(const Value& v) {
  return v.is_string() || v.is_sequence() || v.is(Type::kDict) || v.is(Type::kRange) || v.undefined();
}
bool Iterable(const Value& v) {
  return v.is(Type::kLoop) || Iterator::Start(v).ok();
}
bool Callable(const Value& v) {
  return v.is(Type::kMacro) || v.is(Type::kFunction) || v.is(Type::kMethod) || v.is(Type::kLoop) || v.undefined();
}

StatusOr<Value> SameAsTest(Evaluator&, const Value& v, Bound& args) {
  return Value::Bool(Same(v, args[0]));
}

template <bool kUpper>
StatusOr<Value> CaseTest(Evaluator& eval, const Value& v, Bound&) {
  KVASIR_ASSIGN_OR_RETURN(std::string text, ToStr(eval.heap(), v));
  KVASIR_ASSIGN_OR_RETURN(const Value string, eval.heap().String(std::move(text)));
  return CallMethod(eval, string, kUpper ? "isupper" : "islower", {});
}

StatusOr<Value> FilterTest(Evaluator&, const Value& v, Bound&) {
  if (!v.hashable()) return InvalidArgument("unhashable type: '{}'", TypeName(v));
  return Value::Bool(v.is_string() && FindFilter(v.text()) != nullptr);
}
StatusOr<Value> TestTest(Evaluator&, const Value& v, Bound&) {
  if (!v.hashable()) return InvalidArgument("unhashable type: '{}'", TypeName(v));
  return Value::Bool(v.is_string() && FindTest(v.text()) != nullptr);
}

constexpr FilterSpec kTests[] = {
    {"odd", "", ParityTest<1>},
    {"even", "", ParityTest<0>},
    {"divisibleby", "num!", DivisibleTest},
    {"defined", "", Predicate<Defined>},
    {"undefined", "", Predicate<IsUndefined>},
    {"filter", "", FilterTest},
    {"test", "", TestTest},
    {"none", "", Predicate<IsNone>},
    {"boolean", "", Predicate<Boolean>},
    {"false", "", Predicate<IsFalse>},
    {"true", "", Predicate<IsTrue>},
    {"integer", "", Predicate<Integer>},
    {"float", "", Predicate<Float>},
    {"lower", "", CaseTest<false>},
    {"upper", "", CaseTest<true>},
    {"string", "", Predicate<String>},
    {"mapping", "", Predicate<Mapping>},
    {"number", "", Predicate<Number>},
    {"sequence", "", Predicate<Sequence>},
    {"iterable", "", Predicate<Iterable>},
    {"callable", "", Predicate<Callable>},
    {"sameas", "other!", SameAsTest},
    {"escaped", "", Predicate<Escaped>},
    {"in", "seq!", OpTest<Op::kIn>},
    {"==", "/other!", OpTest<Op::kEq>},
    {"eq", "/other!", OpTest<Op::kEq>},
    {"equalto", "/other!", OpTest<Op::kEq>},
    {"!=", "/other!", OpTest<Op::kNe>},
    {"ne", "/other!", OpTest<Op::kNe>},
    {">", "/other!", OpTest<Op::kGt>},
    {"gt", "/other!", OpTest<Op::kGt>},
    {"greaterthan", "/other!", OpTest<Op::kGt>},
    {"ge", "/other!", OpTest<Op::kGe>},
    {">=", "/other!", OpTest<Op::kGe>},
    {"<", "/other!", OpTest<Op::kLt>},
    {"lt", "/other!", OpTest<Op::kLt>},
    {"lessthan", "/other!", OpTest<Op::kLt>},
    {"<=", "/other!", OpTest<Op::kLe>},
    {"le", "/other!", OpTest<Op::kLe>},
};

}  // namespace

std::string TestNames() {
  std::string out;
  for (const FilterSpec& spec : kTests) out += fmt::format("{}, ", spec.name);
  out.resize(out.size() - 2);
  return out;
}

const FilterSpec* FindTest(std::string_view name) {
  for (const FilterSpec& spec : kTests) {
    if (spec.name == name) return &spec;
  }
  return nullptr;
}

}  // namespace kvasir::jinja
