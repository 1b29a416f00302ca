#include "models/jinja_eval.h"

#include <algorithm>

namespace kvasir::jinja {

// Puts output into a buffer of its own until it goes out of scope.
class Evaluator::Capture {
 public:
  explicit Capture(Evaluator* eval) : eval_(eval), outer_(eval->out_) { eval->out_ = &text; }
  ~Capture() {
    eval_->pending_ -= text_size();
    eval_->out_ = outer_;
  }
  StatusOr<Value> Finish() {
    taken_ = text.size();
    return eval_->heap_.String(std::move(text));
  }
  std::string text;

 private:
  size_t text_size() const { return taken_ + (taken_ ? 0 : text.size()); }
  Evaluator* eval_;
  std::string* outer_;
  size_t taken_ = 0;
};

class Evaluator::FrameScope {
 public:
  explicit FrameScope(FramePtr frame) : frame_(std::move(frame)) {}
  ~FrameScope() {
    for (Value& v : frame_->slots) v = Value();
  }

 private:
  FramePtr frame_;
};

StatusOr<bool> LoopObj::Fetch(Heap& heap, Value* out) {
  if (drained_at < drained.size()) {
    *out = drained[drained_at++];
    return true;
  }
  if (ended) return false;
  KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(heap, out));
  ended = !more;
  return more;
}

Status LoopObj::Peek(Heap& heap) {
  if (after_peeked) return OkStatus();
  Value next;
  KVASIR_ASSIGN_OR_RETURN(const bool more, Fetch(heap, &next));
  if (more) {
    after = std::move(next);
    after_peeked = true;
  }
  return OkStatus();
}

StatusOr<bool> LoopObj::Advance(Heap& heap) {
  Value next;
  if (after_peeked) {
    next = std::move(after);
    after = Value();
    after_peeked = false;
  } else {
    KVASIR_ASSIGN_OR_RETURN(const bool more, Fetch(heap, &next));
    if (!more) return false;
  }
  index0++;
  before = std::move(current);
  current = std::move(next);
  return true;
}

StatusOr<Int> LoopObj::Count(Heap& heap) {
  if (length >= 0) return length;
  if (closed) return Int{0};
  const StatusOr<Int> known = Length(iterable);
  if (known.ok()) return length = *known;
  while (true) {
    Value v;
    KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(heap, &v));
    if (!more) break;
    drained.push_back(std::move(v));
  }
  ended = true;
  length = static_cast<Int>(drained.size()) + index0 + 1 + (after_peeked ? 1 : 0);
  return length;
}

void LoopObj::Close() {
  closed = true;
  before = current = after = last_changed = iterable = Value();
  it = Iterator();
  drained.clear();
  drained_at = 0;
  after_peeked = false;
  ended = true;
}

StatusOr<std::string> Evaluator::Run(const nlohmann::ordered_json& context) {
  if (!context.is_object()) return InvalidArgument("the context of a template must be an object, not {}", context.type_name());
  for (const std::string_view name : kGlobalFunctions) {
    KVASIR_ASSIGN_OR_RETURN(context_[std::string(name)], heap_.Function(std::string(name)));
  }
  for (const auto& [name, json] : context.items()) {
    if (!template_.context_names.contains(name)) continue;
    KVASIR_ASSIGN_OR_RETURN(context_[name], heap_.FromJson(json));
  }
  std::string out;
  out_ = &out;
  const FramePtr root = Enter(template_.scope, nullptr);
  FrameScope guard(root);
  const StatusOr<Flow> flow = Exec(template_.body, root);
  if (flow.ok()) return out;
  if (raised_ || error_line_ == 0) return flow.status();
  return AtPlace(fmt::format("line {}", error_line_), flow.status());
}

Status Evaluator::Raise(std::string text) {
  raised_ = true;
  return Status(StatusCode::kInvalidArgument, std::move(text));
}

Status Evaluator::CheckDepth() const {
  if (depth_ <= limits_.depth * 16) return OkStatus();
  return InvalidArgument("template budget exceeded: more than {} levels of evaluation inside each other", limits_.depth * 16);
}

FramePtr Evaluator::Enter(const Scope& scope, FramePtr parent) {
  auto frame = std::make_shared<Frame>();
  frame->parent = std::move(parent);
  frame->slots.resize(scope.slots.size());
  Load(scope, frame);
  return frame;
}

void Evaluator::Load(const Scope& scope, const FramePtr& frame) {
  for (size_t i = 0; i < scope.slots.size(); i++) {
    const SlotLoad& load = scope.slots[i];
    switch (load.action) {
      case SlotLoad::kParameter:
        break;
      case SlotLoad::kResolve: {
        const auto it = context_.find(load.name);
        frame->slots[i] = it == context_.end() ? Value() : it->second;
        break;
      }
      case SlotLoad::kAlias:
        frame->slots[i] = Slot(load.outer, frame);
        break;
      case SlotLoad::kUnset:
        frame->slots[i] = Value();
        break;
    }
  }
}

Value& Evaluator::Slot(SlotRef ref, const FramePtr& frame) {
  Frame* f = frame.get();
  for (int i = 0; i < ref.hops; i++) f = f->parent.get();
  return f->slots[static_cast<size_t>(ref.slot)];
}

Status Evaluator::Write(std::string_view text) {
  if (pending_ + text.size() > limits_.output_bytes) {
    return InvalidArgument("template budget exceeded: more than {} bytes of output; shorten the conversation", limits_.output_bytes);
  }
  KVASIR_RETURN_IF_ERROR(heap_.Step(static_cast<int64_t>(text.size() / 64)));
  pending_ += text.size();
  out_->append(text);
  return OkStatus();
}

StatusOr<Evaluator::Flow> Evaluator::Exec(const Body& body, const FramePtr& frame) {
  for (const auto& stmt : body) {
    depth_++;
    StatusOr<Flow> flow = ExecStmt(*stmt, frame);
    depth_--;
    if (!flow.ok() && error_line_ == 0) error_line_ = stmt->line;
    if (!flow.ok() || *flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

StatusOr<Evaluator::Flow> Evaluator::ExecStmt(const Stmt& stmt, const FramePtr& frame) {
  KVASIR_RETURN_IF_ERROR(heap_.Step());
  KVASIR_RETURN_IF_ERROR(CheckDepth());
  switch (stmt.kind) {
    case StmtKind::kData:
      KVASIR_RETURN_IF_ERROR(Write(stmt.text));
      return Flow::kNext;
    case StmtKind::kPrint: {
      KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*stmt.expr, frame));
      if (v.is_string()) {
        KVASIR_RETURN_IF_ERROR(Write(v.text()));
      } else {
        KVASIR_ASSIGN_OR_RETURN(const std::string text, ToStr(heap_, v));
        KVASIR_RETURN_IF_ERROR(Write(text));
      }
      return Flow::kNext;
    }
    case StmtKind::kIf:
      return ExecIf(stmt, frame);
    case StmtKind::kFor:
      return ExecFor(stmt, frame);
    case StmtKind::kSet: {
      KVASIR_RETURN_IF_ERROR(CheckNamespaces(*stmt.target, frame));
      KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*stmt.expr, frame));
      KVASIR_RETURN_IF_ERROR(Assign(*stmt.target, v, frame));
      return Flow::kNext;
    }
    case StmtKind::kSetBlock:
      return ExecSetBlock(stmt, frame);
    case StmtKind::kMacro: {
      Value macro;
      KVASIR_RETURN_IF_ERROR(DefineMacro(stmt, frame, &macro));
      Slot(stmt.ref, frame) = std::move(macro);
      return Flow::kNext;
    }
    case StmtKind::kCallBlock:
      KVASIR_RETURN_IF_ERROR(ExecCallBlock(stmt, frame));
      return Flow::kNext;
    case StmtKind::kFilterBlock:
      return ExecFilterBlock(stmt, frame);
    case StmtKind::kWith:
      return ExecWith(stmt, frame);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

StatusOr<Evaluator::Flow> Evaluator::ExecIf(const Stmt& stmt, const FramePtr& frame) {
  for (const auto& [test, body] : stmt.branches) {
    KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*test, frame));
    if (Truthy(v)) return Exec(body, frame);
  }
  return Exec(stmt.else_body, frame);
}

// `for x in source if test` walks this: the items that pass, found as they are asked for.
StatusOr<Value> Evaluator::FilteredItems(const Stmt& stmt, const Value& source, const FramePtr& frame) {
  KVASIR_ASSIGN_OR_RETURN(Iterator start, Iterator::Start(source));
  auto it = std::make_shared<Iterator>(std::move(start));
  auto scope = std::make_shared<FramePtr>();
  return heap_.Generator(source.depth(), [this, &stmt, it, scope, frame](Value* out) -> StatusOr<bool> {
    if (!*scope) *scope = Enter(stmt.test_scope, frame);
    while (true) {
      KVASIR_ASSIGN_OR_RETURN(const bool more, it->Next(heap_, out));
      if (!more) {
        for (Value& v : (*scope)->slots) v = Value();
        return false;
      }
      KVASIR_RETURN_IF_ERROR(Assign(*stmt.targets[0], *out, *scope));
      KVASIR_ASSIGN_OR_RETURN(const Value keep, Eval(*stmt.test, *scope));
      if (Truthy(keep)) return true;
    }
  });
}

StatusOr<Evaluator::Flow> Evaluator::ExecFor(const Stmt& stmt, const FramePtr& frame) {
  KVASIR_ASSIGN_OR_RETURN(Value source, Eval(*stmt.expr, frame));
  if (stmt.test) {
    KVASIR_ASSIGN_OR_RETURN(source, FilteredItems(stmt, source, frame));
  }
  auto loop = std::make_shared<LoopObj>();
  KVASIR_ASSIGN_OR_RETURN(loop->it, Iterator::Start(source));
  loop->iterable = source;
  KVASIR_RETURN_IF_ERROR(heap_.Adopt(loop.get(), sizeof(LoopObj)));
  bool finished_one = false;  // an iteration reached its end; else the else-part runs, as in Jinja2
  {
    const FramePtr inner = std::make_shared<Frame>();
    inner->parent = frame;
    inner->slots.resize(stmt.scope.slots.size());
    FrameScope guard(inner);
    struct Closer {
      LoopObj* loop;
      ~Closer() { loop->Close(); }
    } closer{loop.get()};
    while (true) {
      KVASIR_ASSIGN_OR_RETURN(const bool more, loop->Advance(heap_));
      if (!more) break;
      if (stmt.loop_slot >= 0) inner->slots[static_cast<size_t>(stmt.loop_slot)] = Value(Type::kLoop, loop);
      KVASIR_RETURN_IF_ERROR(Assign(*stmt.target, loop->current, inner));
      Load(stmt.scope, inner);
      KVASIR_ASSIGN_OR_RETURN(const Flow flow, Exec(stmt.body, inner));
      if (flow == Flow::kBreak) break;
      if (flow == Flow::kNext) finished_one = true;
    }
  }
  if (finished_one || stmt.else_body.empty()) return Flow::kNext;
  const FramePtr otherwise = Enter(stmt.else_scope, frame);
  FrameScope guard(otherwise);
  return Exec(stmt.else_body, otherwise);
}

StatusOr<Evaluator::Flow> Evaluator::ExecWith(const Stmt& stmt, const FramePtr& frame) {
  const FramePtr inner = Enter(stmt.scope, frame);
  FrameScope guard(inner);
  for (size_t i = 0; i < stmt.targets.size(); i++) {
    KVASIR_ASSIGN_OR_RETURN(const Value v, Eval(*stmt.values[i], frame));
    KVASIR_RETURN_IF_ERROR(Assign(*stmt.targets[i], v, inner));
  }
  return Exec(stmt.body, inner);
}

StatusOr<Evaluator::Flow> Evaluator::ExecSetBlock(const Stmt& stmt, const FramePtr& frame) {
  const FramePtr inner = Enter(stmt.scope, frame);
  FrameScope guard(inner);
  Value v;
  {
    Capture capture(this);
    KVASIR_ASSIGN_OR_RETURN(const Flow flow, Exec(stmt.body, inner));
    if (flow != Flow::kNext) return flow;
    KVASIR_ASSIGN_OR_RETURN(v, capture.Finish());
  }
  KVASIR_RETURN_IF_ERROR(CheckNamespaces(*stmt.target, frame));
  if (stmt.expr) {
    KVASIR_ASSIGN_OR_RETURN(v, EvalFilter(*stmt.expr, inner, &v));
  }
  KVASIR_RETURN_IF_ERROR(Assign(*stmt.target, v, frame));
  return Flow::kNext;
}

StatusOr<Evaluator::Flow> Evaluator::ExecFilterBlock(const Stmt& stmt, const FramePtr& frame) {
  const FramePtr inner = Enter(stmt.scope, frame);
  FrameScope guard(inner);
  Value v;
  {
    Capture capture(this);
    KVASIR_ASSIGN_OR_RETURN(const Flow flow, Exec(stmt.body, inner));
    if (flow != Flow::kNext) return flow;
    KVASIR_ASSIGN_OR_RETURN(v, capture.Finish());
  }
  KVASIR_ASSIGN_OR_RETURN(v, EvalFilter(*stmt.expr, inner, &v));
  if (!v.is_string()) return InvalidArgument("a filter block must give text, but '{}' gave {}", stmt.expr->text, TypeName(v));
  KVASIR_RETURN_IF_ERROR(Write(v.text()));
  return Flow::kNext;
}

Status Evaluator::DefineMacro(const Stmt& stmt, const FramePtr& frame, Value* out) {
  auto macro = std::make_shared<MacroObj>();
  macro->stmt = &stmt;
  macro->parent = frame;
  macro->name = stmt.kind == StmtKind::kMacro ? stmt.text : "caller";
  KVASIR_RETURN_IF_ERROR(heap_.Adopt(macro.get(), sizeof(MacroObj)));
  *out = Value(Type::kMacro, std::move(macro));
  return OkStatus();
}

Status Evaluator::ExecCallBlock(const Stmt& stmt, const FramePtr& frame) {
  Value caller;
  KVASIR_RETURN_IF_ERROR(DefineMacro(stmt, frame, &caller));
  KVASIR_ASSIGN_OR_RETURN(const Value v, EvalCall(*stmt.expr, frame, &caller));
  if (!v.is_string()) return InvalidArgument("a call block must give text, but gave {}", TypeName(v));
  return Write(v.text());
}

Status Evaluator::CheckNamespaces(const Expr& target, const FramePtr& frame) {
  for (const auto& kid : target.kids) KVASIR_RETURN_IF_ERROR(CheckNamespaces(*kid, frame));
  if (target.kind == ExprKind::kNsRef && !Slot(target.ref, frame).is(Type::kNamespace)) {
    return InvalidArgument("cannot assign attribute '{}' on a value that is not a namespace", target.text);
  }
  return OkStatus();
}

Status Evaluator::Assign(const Expr& target, const Value& value, const FramePtr& frame) {
  if (target.kind == ExprKind::kName) {
    Slot(target.ref, frame) = value;
    return OkStatus();
  }
  if (target.kind == ExprKind::kNsRef) {
    const Value ns = Slot(target.ref, frame);
    if (!ns.is(Type::kNamespace)) return InvalidArgument("cannot assign attribute '{}' on a value that is not a namespace", target.text);
    return heap_.SetAttribute(ns, target.text, value);
  }
  KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> items, ToVector(heap_, value));
  if (items.size() != target.kids.size()) {
    return InvalidArgument("cannot unpack {} values into {} names", items.size(), target.kids.size());
  }
  for (size_t i = 0; i < items.size(); i++) KVASIR_RETURN_IF_ERROR(Assign(*target.kids[i], items[i], frame));
  return OkStatus();
}

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
      return InvalidArgument("the loop is not recursive; recursive loops are not supported, use a macro");
    case Type::kUndefined:
      return UndefinedError(callee);
    default:
      return InvalidArgument("'{}' object is not callable", TypeName(callee));
  }
}

StatusOr<Value> Evaluator::CallMacro(const MacroObj& macro, Args args) {
  const Stmt& stmt = *macro.stmt;
  if (calls_ >= limits_.depth) {
    return InvalidArgument("template budget exceeded: more than {} macro calls inside each other, the last of '{}'", limits_.depth,
                           macro.name);
  }
  const auto take = [&](const std::string& name) {
    for (auto it = args.named.begin(); it != args.named.end(); ++it) {
      if (it->first != name) continue;
      Value v = std::move(it->second);
      args.named.erase(it);
      return v;
    }
    return Value();
  };
  const FramePtr frame = Enter(stmt.scope, macro.parent);
  FrameScope guard(frame);
  const size_t n = std::min(stmt.params.size(), args.positional.size());
  for (size_t i = 0; i < stmt.params.size(); i++) {
    Slot(stmt.params[i].name->ref, frame) = i < n ? args.positional[i] : take(stmt.params[i].name->text);
  }
  if (stmt.caller_slot >= 0) {
    Value caller = take("caller");
    if (caller.missing() || caller.is(Type::kNone)) {
      KVASIR_ASSIGN_OR_RETURN(caller, heap_.Undefined("no caller defined"));
    }
    frame->slots[static_cast<size_t>(stmt.caller_slot)] = std::move(caller);
  }
  if (stmt.kwargs_slot >= 0) {
    std::vector<std::pair<Value, Value>> items;
    for (const auto& [name, v] : args.named) {
      KVASIR_ASSIGN_OR_RETURN(Value key, heap_.String(name));
      items.emplace_back(std::move(key), v);
    }
    KVASIR_ASSIGN_OR_RETURN(frame->slots[static_cast<size_t>(stmt.kwargs_slot)], heap_.Dict(items));
  } else if (!args.named.empty()) {
    return InvalidArgument("macro '{}' takes no keyword argument '{}'", macro.name, args.named[0].first);
  }
  if (stmt.varargs_slot >= 0) {
    std::vector<Value> rest(args.positional.begin() + static_cast<int64_t>(n), args.positional.end());
    KVASIR_ASSIGN_OR_RETURN(frame->slots[static_cast<size_t>(stmt.varargs_slot)], heap_.Tuple(std::move(rest)));
  } else if (args.positional.size() > stmt.params.size()) {
    return InvalidArgument("macro '{}' takes not more than {} argument(s)", macro.name, stmt.params.size());
  }
  for (const Param& p : stmt.params) {
    if (!Slot(p.name->ref, frame).missing()) continue;
    Value v;
    if (p.fallback) {
      KVASIR_ASSIGN_OR_RETURN(v, Eval(*p.fallback, frame));
    } else {
      KVASIR_ASSIGN_OR_RETURN(v, heap_.Undefined(fmt::format("parameter '{}' was not provided", p.name->text)));
    }
    Slot(p.name->ref, frame) = std::move(v);
  }
  Capture capture(this);
  calls_++;
  const StatusOr<Flow> flow = Exec(stmt.body, frame);
  calls_--;
  if (!flow.ok()) return flow.status();
  return capture.Finish();
}

StatusOr<Value> Evaluator::LoopAttribute(const Value& loop, const std::string& name) {
  auto& state = loop.object<LoopObj>();
  if (name == "index") return Value::Integer(state.index0 + 1);
  if (name == "index0") return Value::Integer(state.index0);
  if (name == "first") return Value::Bool(state.index0 == 0);
  if (name == "depth") return Value::Integer(1);
  if (name == "depth0") return Value::Integer(0);
  if (name == "previtem") return state.index0 == 0 ? heap_.Undefined("there is no previous item") : state.before;
  if (name == "last" || name == "nextitem") {
    KVASIR_RETURN_IF_ERROR(state.Peek(heap_));
    if (name == "last") return Value::Bool(!state.after_peeked);
    return state.after_peeked ? state.after : heap_.Undefined("there is no next item");
  }
  if (name == "length" || name == "revindex" || name == "revindex0") {
    KVASIR_ASSIGN_OR_RETURN(const Int length, state.Count(heap_));
    return Value::Integer(name == "length" ? length : name == "revindex" ? length - state.index0 : length - state.index0 - 1);
  }
  if (name == "cycle" || name == "changed") return heap_.Method(loop, name);
  return heap_.Undefined(fmt::format("the loop variable has no attribute '{}'", name));
}

StatusOr<Value> Evaluator::CallLoopMethod(const Value& loop, const std::string& name, Args args) {
  auto& state = loop.object<LoopObj>();
  if (!args.named.empty()) return InvalidArgument("loop.{}() takes no keyword arguments", name);
  if (name == "cycle") {
    if (args.positional.empty()) return InvalidArgument("loop.cycle() needs items to cycle through");
    return args.positional[static_cast<size_t>(state.index0 % static_cast<Int>(args.positional.size()))];
  }
  KVASIR_ASSIGN_OR_RETURN(const Value now, heap_.Tuple(std::move(args.positional)));
  if (!state.last_changed.missing() && Equal(state.last_changed, now)) return Value::Bool(false);
  if (!state.closed) state.last_changed = now;
  return Value::Bool(true);
}

}  // namespace kvasir::jinja
