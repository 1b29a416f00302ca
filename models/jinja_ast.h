// The syntax tree of a Jinja template, with every name already bound to a slot.
//
// Built by the parser, bound by jinja_scope.cc, read by the evaluator; immutable after that and shared by all renderings.
#pragma once

#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "models/jinja_value.h"

namespace kvasir::jinja {

enum class ExprKind : uint8_t {
  kConst,  // value
  kName,   // name, ref
  kNsRef,  // name.text as a target of `set`
  kTuple,
  kList,
  kDict,    // kids: key, value, key, value ...
  kBinary,  // op, kids[0], kids[1]
  kAnd,
  kOr,
  kNot,
  kNeg,
  kPos,
  kConcat,   // a ~ b ~ c
  kCompare,  // kids[0] ops[0] kids[1] ops[1] kids[2] ...
  kGetattr,  // kids[0].text
  kGetitem,  // kids[0][kids[1]]
  kSlice,    // kids[0][kids[1]:kids[2]:kids[3]], parts may be null
  kCall,     // kids[0](call)
  kFilter,   // kids[0] | text(call); kids[0] is null where a block is filtered
  kTest,     // kids[0] is text(call)
  kCond,     // kids[1] if kids[0] else kids[2] (may be null)
};
enum class Op : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow, kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct CallSyntax {
  std::vector<ExprPtr> args;
  std::vector<std::pair<std::string, ExprPtr>> kwargs;
  ExprPtr star, star_star;  // *args and **kwargs
};

// Where a variable lives: `hops` frames outward, then a slot.
struct SlotRef {
  int hops = 0;
  int slot = -1;
};

struct FilterSpec;

struct Expr {
  ExprKind kind;
  int line;
  int depth = 1;  // of the tree below, bounded by the parser
  Op op = Op::kAdd;
  bool soft = false;  // an unknown filter or test that only fails when it is reached
  SlotRef ref;
  std::string text;
  Value value;  // strings here belong to no heap
  std::vector<ExprPtr> kids;
  std::vector<Op> ops;
  std::unique_ptr<CallSyntax> call;
  const FilterSpec* filter = nullptr;
};

// What happens to a frame's slot when the frame is entered.
struct SlotLoad {
  enum Action : uint8_t { kParameter, kResolve, kAlias, kUnset } action;
  std::string name;  // for kResolve: looked up in the context
  SlotRef outer;     // for kAlias: relative to the frame itself
};
struct Scope {
  std::vector<SlotLoad> slots;
};

enum class StmtKind : uint8_t {
  kData,         // text
  kPrint,        // expr
  kIf,           // branches, else_body
  kFor,          // target, expr, test, body, else_body; scope, test_scope, else_scope; loop_slot
  kSet,          // target = expr
  kSetBlock,     // target, filter (in expr, may be null), body; scope
  kMacro,        // text, params, body; scope, ref
  kCallBlock,    // expr is the call; params, body: the caller; scope
  kFilterBlock,  // expr, body; scope
  kWith,         // targets, values, body; scope. Also {% generation %}, which has no targets.
  kBreak,
  kContinue,
};

struct Stmt;
using StmtPtr = std::unique_ptr<Stmt>;
using Body = std::vector<StmtPtr>;

struct Param {
  ExprPtr name;  // a kName bound in the macro's own scope
  ExprPtr fallback;
};

struct Stmt {
  StmtKind kind;
  int line;
  std::string text;
  ExprPtr target, expr, test;
  Body body, else_body;
  std::vector<std::pair<ExprPtr, Body>> branches;
  std::vector<Param> params;
  std::vector<ExprPtr> targets, values;
  Scope scope, test_scope, else_scope;
  SlotRef ref;
  bool recursive = false;  // of a for: `loop(items)` runs it again
  int loop_slot = -1;  // where `loop` lives in the body's scope, or -1
  int caller_slot = -1, kwargs_slot = -1, varargs_slot = -1;
};

struct Template {
  Body body;
  Scope scope;
  std::unordered_set<std::string> context_names;
};

// Binds every name of the template to a slot, by Jinja2's scoping rules.
Status BindNames(Template* tmpl);

}  // namespace kvasir::jinja
