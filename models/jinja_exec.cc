// The statements of a template: output, branches, loops, assignments, macros, and the frames they run in.
#include <algorithm>

#include "models/jinja_eval.h"

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
    return InvalidArgument("template budget exceeded: more than {} bytes of output; shorten the conversation",
                           limits_.output_bytes);
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
  return RunLoop(stmt, std::move(source), frame, 0);
}

// `loop(items)` inside a recursive loop.
StatusOr<Value> Evaluator::CallLoop(const LoopObj& loop, Args args) {
  if (loop.stmt == nullptr) return InvalidArgument("the loop must have the 'recursive' marker to be called");
  KVASIR_ASSIGN_OR_RETURN(const Bound bound, BindArgs("loop()", "/iterable!", std::move(args)));
  if (calls_ >= limits_.depth) {
    return InvalidArgument("template budget exceeded: more than {} calls inside each other, the last of 'loop'", limits_.depth);
  }
  Capture capture(this);
  calls_++;
  const StatusOr<Flow> flow = RunLoop(*loop.stmt, bound[0], loop.outer, loop.depth0 + 1);
  calls_--;
  if (!flow.ok()) return flow.status();
  return capture.Finish();
}

StatusOr<Evaluator::Flow> Evaluator::RunLoop(const Stmt& stmt, Value source, const FramePtr& frame, int depth0) {
  if (stmt.test) {
    KVASIR_ASSIGN_OR_RETURN(source, FilteredItems(stmt, source, frame));
  }
  auto loop = std::make_shared<LoopObj>();
  KVASIR_ASSIGN_OR_RETURN(loop->it, Iterator::Start(source));
  loop->iterable = source;
  loop->depth0 = depth0;
  if (stmt.recursive) {
    loop->stmt = &stmt;
    loop->outer = frame;
  }
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

StatusOr<Evaluator::Flow> Evaluator::ExecCaptured(const Body& body, const FramePtr& frame, Value* text) {
  Capture capture(this);
  KVASIR_ASSIGN_OR_RETURN(const Flow flow, Exec(body, frame));
  if (flow != Flow::kNext) return flow;
  KVASIR_ASSIGN_OR_RETURN(*text, capture.Finish());
  return flow;
}

// The text of a block's body, through its filter if it has one.
StatusOr<Evaluator::Flow> Evaluator::ExecBlockText(const Stmt& stmt, const FramePtr& frame, Value* text) {
  const FramePtr inner = Enter(stmt.scope, frame);
  FrameScope guard(inner);
  KVASIR_ASSIGN_OR_RETURN(const Flow flow, ExecCaptured(stmt.body, inner, text));
  if (flow == Flow::kNext && stmt.expr) {
    KVASIR_ASSIGN_OR_RETURN(*text, EvalFilter(*stmt.expr, inner, text));
  }
  return flow;
}

StatusOr<Evaluator::Flow> Evaluator::ExecSetBlock(const Stmt& stmt, const FramePtr& frame) {
  Value v;
  KVASIR_ASSIGN_OR_RETURN(const Flow flow, ExecBlockText(stmt, frame, &v));
  if (flow != Flow::kNext) return flow;
  KVASIR_RETURN_IF_ERROR(CheckNamespaces(*stmt.target, frame));
  KVASIR_RETURN_IF_ERROR(Assign(*stmt.target, v, frame));
  return Flow::kNext;
}

StatusOr<Evaluator::Flow> Evaluator::ExecFilterBlock(const Stmt& stmt, const FramePtr& frame) {
  Value v;
  KVASIR_ASSIGN_OR_RETURN(const Flow flow, ExecBlockText(stmt, frame, &v));
  if (flow != Flow::kNext) return flow;
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
    if (!ns.is(Type::kNamespace))
      return InvalidArgument("cannot assign attribute '{}' on a value that is not a namespace", target.text);
    return heap_.SetAttribute(ns, target.text, value);
  }
  KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> items, ToVector(heap_, value));
  if (items.size() != target.kids.size()) {
    return InvalidArgument("cannot unpack {} values into {} names", items.size(), target.kids.size());
  }
  for (size_t i = 0; i < items.size(); i++) KVASIR_RETURN_IF_ERROR(Assign(*target.kids[i], items[i], frame));
  return OkStatus();
}

StatusOr<Value> Evaluator::CallMacro(const MacroObj& macro, Args args) {
  const Stmt& stmt = *macro.stmt;
  if (calls_ >= limits_.depth) {
    return InvalidArgument("template budget exceeded: more than {} macro calls inside each other, the last of '{}'",
                           limits_.depth, macro.name);
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

}  // namespace kvasir::jinja
