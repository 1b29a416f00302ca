// The expressions of a template, and calls.
#include "models/jinja_eval.h"

namespace kvasir::jinja {

StatusOr<Value> Evaluator::Eval(const Expr& e, const FramePtr& frame) {
  KVASIR_RETURN_IF_ERROR(heap_.Step());
  depth_++;
  StatusOr<Value> v = EvalKind(e, frame);
  depth_--;
  if (!v.ok() && error_line_ == 0) error_line_ = e.line;
  return v;
}

StatusOr<Value> Evaluator::EvalKind(const Expr& e, const FramePtr& frame) {
  KVASIR_RETURN_IF_ERROR(CheckDepth());
  switch (e.kind) {
    case ExprKind::kConst:
      return e.value;
    case ExprKind::kName:
      return EvalName(e, frame);
    case ExprKind::kTuple:
    case ExprKind::kList:
    case ExprKind::kDict:
      return EvalItems(e, frame);
    case ExprKind::kBinary: {
      KVASIR_ASSIGN_OR_RETURN(const Value a, Eval(*e.kids[0], frame));
      KVASIR_ASSIGN_OR_RETURN(const Value b, Eval(*e.kids[1], frame));
      return Binary(heap_, e.op, a, b);
    }
    case ExprKind::kAnd:
    case ExprKind::kOr:
    case ExprKind::kNot:
    case ExprKind::kCond:
      return EvalLogic(e, frame);
    case ExprKind::kNeg:
    case ExprKind::kPos: {
      KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*e.kids[0], frame));
      return Negate(v, e.kind == ExprKind::kNeg);
    }
    case ExprKind::kConcat:
      return EvalConcat(e, frame);
    case ExprKind::kCompare:
      return EvalCompare(e, frame);
    case ExprKind::kGetattr: {
      KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*e.kids[0], frame));
      return GetAttr(*this, v, e.text);
    }
    case ExprKind::kGetitem: {
      KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*e.kids[0], frame));
      KVASIR_ASSIGN_OR_RETURN(const Value key, Eval(*e.kids[1], frame));
      return GetItem(*this, v, key);
    }
    case ExprKind::kSlice:
      return EvalSlice(e, frame);
    case ExprKind::kCall:
      return EvalCall(e, frame, nullptr);
    case ExprKind::kFilter:
    case ExprKind::kTest:
      return EvalFilter(e, frame, nullptr);
    case ExprKind::kNsRef:
      break;
  }
  return Value::None();
}

StatusOr<Value> Evaluator::EvalName(const Expr& e, const FramePtr& frame) {
  const Value& v = Slot(e.ref, frame);
  if (!v.missing()) return v;
  return heap_.Undefined(fmt::format("'{}' is undefined", e.text));
}

StatusOr<Value> Evaluator::EvalLogic(const Expr& e, const FramePtr& frame) {
  KVASIR_ASSIGN_OR_RETURN(const Value first, Eval(*e.kids[0], frame));
  switch (e.kind) {
    case ExprKind::kNot:
      return Value::Bool(!Truthy(first));
    case ExprKind::kAnd:
      return Truthy(first) ? Eval(*e.kids[1], frame) : first;
    case ExprKind::kOr:
      return Truthy(first) ? first : Eval(*e.kids[1], frame);
    default:
      break;
  }
  if (Truthy(first)) return Eval(*e.kids[1], frame);
  if (e.kids[2]) return Eval(*e.kids[2], frame);
  return heap_.Undefined(
      fmt::format("the inline if-expression on line {} evaluated to false and no else section was defined", e.line));
}

StatusOr<Value> Evaluator::EvalCompare(const Expr& e, const FramePtr& frame) {
  KVASIR_ASSIGN_OR_RETURN(Value left, Eval(*e.kids[0], frame));
  for (size_t i = 0; i < e.ops.size(); i++) {
    KVASIR_ASSIGN_OR_RETURN(Value right, Eval(*e.kids[i + 1], frame));
    KVASIR_ASSIGN_OR_RETURN(const bool holds, CompareOp(heap_, e.ops[i], left, right));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

StatusOr<Value> Evaluator::EvalConcat(const Expr& e, const FramePtr& frame) {
  std::vector<Value> parts;
  for (const auto& kid : e.kids) {
    KVASIR_ASSIGN_OR_RETURN(Value v, Eval(*kid, frame));
    parts.push_back(std::move(v));
  }
  std::string text;
  for (const Value& v : parts) KVASIR_RETURN_IF_ERROR(AppendStr(heap_, v, &text));
  return heap_.String(std::move(text));
}

StatusOr<Value> Evaluator::EvalItems(const Expr& e, const FramePtr& frame) {
  std::vector<Value> items;
  for (const auto& kid : e.kids) {
    KVASIR_ASSIGN_OR_RETURN(Value v, Eval(*kid, frame));
    items.push_back(std::move(v));
  }
  if (e.kind == ExprKind::kTuple) return heap_.Tuple(std::move(items));
  if (e.kind == ExprKind::kList) return heap_.List(std::move(items));
  std::vector<std::pair<Value, Value>> pairs;
  for (size_t i = 0; i + 1 < items.size(); i += 2) pairs.emplace_back(items[i], items[i + 1]);
  return heap_.Dict(pairs);
}

StatusOr<Value> Evaluator::EvalSlice(const Expr& e, const FramePtr& frame) {
  Value parts[4] = {Value(), Value::None(), Value::None(), Value::None()};
  for (size_t i = 0; i < 4; i++) {
    if (!e.kids[i]) continue;
    KVASIR_ASSIGN_OR_RETURN(parts[i], Eval(*e.kids[i], frame));
  }
  return GetSlice(heap_, parts[0], parts[1], parts[2], parts[3]);
}

StatusOr<Args> Evaluator::EvalArgs(const CallSyntax* call, const FramePtr& frame) {
  Args args;
  if (call == nullptr) return args;
  for (const auto& a : call->args) {
    KVASIR_ASSIGN_OR_RETURN(Value v, Eval(*a, frame));
    args.positional.push_back(std::move(v));
  }
  if (call->star) {
    KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*call->star, frame));
    KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> items, ToVector(heap_, v));
    args.positional.insert(args.positional.end(), items.begin(), items.end());
  }
  for (const auto& [name, a] : call->kwargs) {
    KVASIR_ASSIGN_OR_RETURN(Value v, Eval(*a, frame));
    args.named.emplace_back(name, std::move(v));
  }
  if (call->star_star) {
    KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*call->star_star, frame));
    if (!v.is(Type::kDict)) return InvalidArgument("the argument after ** must be a mapping, not {}", TypeName(v));
    KVASIR_RETURN_IF_ERROR(heap_.Step(static_cast<int64_t>(v.dict().items.size())));
    for (const auto& [key, value] : v.dict().items) {
      if (!key.is_string()) return InvalidArgument("keywords must be strings, not {}", TypeName(key));
      for (size_t i = 0; i < call->kwargs.size(); i++) {
        if (call->kwargs[i].first == key.text()) return InvalidArgument("keyword argument '{}' is given twice", key.text());
      }
      args.named.emplace_back(std::string(key.text()), value);
    }
  }
  return args;
}

StatusOr<Value> Evaluator::EvalCall(const Expr& e, const FramePtr& frame, const Value* caller) {
  KVASIR_ASSIGN_OR_RETURN(const Value callee, Eval(*e.kids[0], frame));
  KVASIR_ASSIGN_OR_RETURN(Args args, EvalArgs(e.call.get(), frame));
  if (caller != nullptr) {
    for (const auto& [name, unused] : args.named) {
      if (name == "caller") return InvalidArgument("keyword argument 'caller' is given twice");
    }
    args.named.emplace_back("caller", *caller);
  }
  return Call(callee, std::move(args));
}

StatusOr<Value> Evaluator::EvalFilter(const Expr& e, const FramePtr& frame, const Value* input) {
  if (e.filter == nullptr) {
    return InvalidArgument("no {} named '{}'", e.kind == ExprKind::kFilter ? "filter" : "test", e.text);
  }
  Value value;
  if (e.kids[0]) {
    if (e.kids[0]->kind == ExprKind::kFilter) {
      KVASIR_ASSIGN_OR_RETURN(value, EvalFilter(*e.kids[0], frame, input));
    } else {
      KVASIR_ASSIGN_OR_RETURN(value, Eval(*e.kids[0], frame));
    }
  } else {
    value = *input;
  }
  KVASIR_ASSIGN_OR_RETURN(Args args, EvalArgs(e.call.get(), frame));
  return RunFilter(*this, *e.filter, value, std::move(args));
}

StatusOr<Value> Evaluator::Call(const Value& callee, Args args) {
  if (depth_ > limits_.depth * 16) return CheckDepth();
  switch (callee.type()) {
    case Type::kMacro:
      return CallMacro(callee.object<MacroObj>(), std::move(args));
    case Type::kFunction:
      return CallFunction(*this, callee.object<FunctionObj>().name, std::move(args));
    case Type::kMethod: {
      const auto& method = callee.object<MethodObj>();
      if (method.self.is(Type::kLoop)) return CallLoopMethod(method.self, method.name, std::move(args));
      return CallMethod(*this, method.self, method.name, std::move(args));
    }
    case Type::kLoop:
      return CallLoop(callee.object<LoopObj>(), std::move(args));
    case Type::kUndefined:
      return UndefinedError(callee);
    default:
      return InvalidArgument("'{}' object is not callable", TypeName(callee));
  }
}

}  // namespace kvasir::jinja
