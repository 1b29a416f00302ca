// Walks the syntax tree of a Jinja template and writes its text.
//
// One Evaluator serves one rendering. It owns the heap of that rendering, the frames with the template's variables, and the
// counters that bound depth and output. Used by JinjaTemplate::Render; the built-ins call back into it.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "models/jinja_ast.h"
#include "models/jinja_builtins.h"
#include "models/jinja_value.h"

namespace kvasir::jinja {

// The variables of one scope while it runs. Frames are emptied when their scope ends, which breaks the circles that macros make.
struct Frame {
  std::shared_ptr<Frame> parent;
  std::vector<Value> slots;
};
using FramePtr = std::shared_ptr<Frame>;

struct MacroObj : Object {
  const Stmt* stmt = nullptr;
  FramePtr parent;
  std::string name;
};

// The `loop` variable, and the walk over the loop's items, one item ahead when the template asks for the next one.
struct LoopObj : Object {
  const Stmt* stmt = nullptr;  // a recursive loop can be run again, over other items
  FramePtr outer;
  int depth0 = 0;
  Value iterable;
  Iterator it;
  Int index0 = -1;
  Int length = -1;
  Value before, current, after;  // after: missing, unless peeked
  bool after_peeked = false, ended = false, closed = false;
  Value last_changed;
  std::vector<Value> drained;  // items read early to learn the length
  size_t drained_at = 0;

  StatusOr<bool> Fetch(Heap& heap, Value* out);
  Status Peek(Heap& heap);
  StatusOr<bool> Advance(Heap& heap);
  StatusOr<Int> Count(Heap& heap);
  void Close();  // the loop is over: forget its items, which may refer back to the loop
};

class Evaluator {
 public:
  Evaluator(const Template& tmpl, const JinjaLimits& limits, int64_t now)
      : template_(tmpl), limits_(limits), heap_(limits), now_(now) {}

  StatusOr<std::string> Run(const nlohmann::ordered_json& context);

  Heap& heap() { return heap_; }
  int64_t now() const { return now_; }
  StatusOr<Value> Call(const Value& callee, Args args);
  StatusOr<Value> LoopAttribute(const Value& loop, const std::string& name);
  // raise_exception: the text is the whole error, without a line.
  Status Raise(std::string text);
  // Counts one level of recursion through values (generators over generators).
  int* depth() { return &depth_; }
  Status CheckDepth() const;

 private:
  enum class Flow { kNext, kBreak, kContinue };
  class Capture;
  class FrameScope;

  FramePtr Enter(const Scope& scope, FramePtr parent);
  void Load(const Scope& scope, const FramePtr& frame);
  static Value& Slot(SlotRef ref, const FramePtr& frame);

  StatusOr<Flow> Exec(const Body& body, const FramePtr& frame);
  StatusOr<Flow> ExecStmt(const Stmt& stmt, const FramePtr& frame);
  StatusOr<Flow> ExecIf(const Stmt& stmt, const FramePtr& frame);
  StatusOr<Flow> ExecFor(const Stmt& stmt, const FramePtr& frame);
  StatusOr<Flow> RunLoop(const Stmt& stmt, Value source, const FramePtr& frame, int depth0);
  StatusOr<Value> CallLoop(const LoopObj& loop, Args args);
  // Runs a body and gives what it wrote; nothing when a jump left it.
  StatusOr<Flow> ExecCaptured(const Body& body, const FramePtr& frame, Value* text);
  StatusOr<Flow> ExecWith(const Stmt& stmt, const FramePtr& frame);
  StatusOr<Flow> ExecBlockText(const Stmt& stmt, const FramePtr& frame, Value* text);
  StatusOr<Flow> ExecSetBlock(const Stmt& stmt, const FramePtr& frame);
  StatusOr<Flow> ExecFilterBlock(const Stmt& stmt, const FramePtr& frame);
  Status ExecCallBlock(const Stmt& stmt, const FramePtr& frame);
  Status DefineMacro(const Stmt& stmt, const FramePtr& frame, Value* out);
  StatusOr<Value> FilteredItems(const Stmt& stmt, const Value& source, const FramePtr& frame);
  Status Assign(const Expr& target, const Value& value, const FramePtr& frame);
  Status CheckNamespaces(const Expr& target, const FramePtr& frame);
  Status Write(std::string_view text);

  StatusOr<Value> Eval(const Expr& e, const FramePtr& frame);
  StatusOr<Value> EvalKind(const Expr& e, const FramePtr& frame);
  StatusOr<Value> EvalName(const Expr& e, const FramePtr& frame);
  StatusOr<Value> EvalLogic(const Expr& e, const FramePtr& frame);
  StatusOr<Value> EvalCompare(const Expr& e, const FramePtr& frame);
  StatusOr<Value> EvalConcat(const Expr& e, const FramePtr& frame);
  StatusOr<Value> EvalItems(const Expr& e, const FramePtr& frame);
  StatusOr<Value> EvalSlice(const Expr& e, const FramePtr& frame);
  StatusOr<Value> EvalCall(const Expr& e, const FramePtr& frame, const Value* caller);
  StatusOr<Value> EvalFilter(const Expr& e, const FramePtr& frame, const Value* input);
  StatusOr<Args> EvalArgs(const CallSyntax* call, const FramePtr& frame);
  StatusOr<Value> CallMacro(const MacroObj& macro, Args args);
  StatusOr<Value> CallLoopMethod(const Value& loop, const std::string& name, Args args);

  const Template& template_;
  JinjaLimits limits_;
  Heap heap_;  // before everything that holds values
  int64_t now_;
  std::unordered_map<std::string, Value> context_;
  std::string* out_ = nullptr;
  size_t pending_ = 0;  // bytes in all open buffers
  int depth_ = 0, calls_ = 0;
  int error_line_ = 0;
  bool raised_ = false;
};

// Binary and unary operators.
StatusOr<Value> Binary(Heap& heap, Op op, const Value& a, const Value& b);
StatusOr<Value> Negate(const Value& v, bool minus);
StatusOr<bool> CompareOp(Heap& heap, Op op, const Value& a, const Value& b);

}  // namespace kvasir::jinja
