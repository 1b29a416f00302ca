// Name binding: which slot of which frame each name means.
//
// Jinja2 decides this before anything runs, and templates can tell: a name assigned anywhere in a scope is local to that scope
// and starts as a copy of the outer variable; a name that is only read comes from the nearest scope that knows it, else from the
// context. Two passes over each scope: collect its names (without descending into inner scopes), then bind the references.
#include <algorithm>
#include <unordered_map>

#include "models/jinja_ast.h"

namespace kvasir::jinja {
namespace {

// The names of one scope while it is being bound.
class Symbols {
 public:
  Symbols(Scope* scope, Symbols* parent) : parent_(parent), scope_(scope) {}

  void Load(const std::string& name) {
    if (!Find(name, nullptr)) Define(name, {SlotLoad::kResolve, name, {}});
  }

  void Store(const std::string& name) {
    if (stored_.insert(name).second) store_order_.push_back(name);
    if (slots_.contains(name)) return;
    SlotRef outer;
    if (parent_ != nullptr && parent_->Find(name, &outer)) {
      outer.hops++;
      Define(name, {SlotLoad::kAlias, name, outer});
    } else {
      Define(name, {SlotLoad::kUnset, name, {}});
    }
  }

  int Parameter(const std::string& name) {
    stored_.insert(name);
    Define(name, {SlotLoad::kParameter, name, {}});
    return slots_[name];
  }

  size_t StoreMark() const { return store_order_.size(); }
  // Names first stored inside a branch keep, where the branch does not run, the value from outside.
  void EndBranches(size_t mark) {
    for (size_t i = mark; i < store_order_.size(); i++) {
      const std::string& name = store_order_[i];
      SlotLoad& load = scope_->slots[static_cast<size_t>(slots_[name])];
      if (load.action == SlotLoad::kParameter) continue;
      SlotRef outer;
      if (parent_ != nullptr && parent_->Find(name, &outer)) {
        outer.hops++;
        load = {SlotLoad::kAlias, name, outer};
      } else {
        load = {SlotLoad::kResolve, name, {}};
      }
    }
  }

  bool Find(const std::string& name, SlotRef* ref) const {
    int hops = 0;
    for (const Symbols* s = this; s != nullptr; s = s->parent_, hops++) {
      if (const auto it = s->slots_.find(name); it != s->slots_.end()) {
        if (ref != nullptr) *ref = {hops, it->second};
        return true;
      }
    }
    return false;
  }

 private:
  void Define(const std::string& name, SlotLoad load) {
    const auto [it, added] = slots_.try_emplace(name, static_cast<int>(scope_->slots.size()));
    if (added) {
      scope_->slots.push_back(std::move(load));
    } else {
      scope_->slots[static_cast<size_t>(it->second)] = std::move(load);
    }
  }

  Symbols* parent_;
  Scope* scope_;
  std::unordered_map<std::string, int> slots_;
  std::unordered_set<std::string> stored_;
  std::vector<std::string> store_order_;
};

template <typename F>
void ForEachChild(const Expr& e, F&& visit) {
  for (const auto& kid : e.kids) {
    if (kid) visit(*kid);
  }
  if (!e.call) return;
  for (const auto& a : e.call->args) visit(*a);
  for (const auto& [name, a] : e.call->kwargs) visit(*a);
  if (e.call->star) visit(*e.call->star);
  if (e.call->star_star) visit(*e.call->star_star);
}

// Every expression directly inside a statement, in Jinja2's order; `body` is called for each nested body.
template <typename F, typename G>
void ForEachPart(const Stmt& s, F&& expr, G&& body) {
  if (s.target) expr(*s.target);
  if (s.expr) expr(*s.expr);
  for (const auto& p : s.params) expr(*p.name);
  for (const auto& p : s.params) {
    if (p.fallback) expr(*p.fallback);
  }
  for (const auto& e : s.targets) expr(*e);
  for (const auto& e : s.values) expr(*e);
  if (s.test) expr(*s.test);
  for (const auto& [test, branch] : s.branches) {
    expr(*test);
    body(branch);
  }
  body(s.body);
  body(s.else_body);
}

class Binder {
 public:
  explicit Binder(Template* tmpl) : template_(tmpl) {}

  void Run() {
    Symbols root(&template_->scope, nullptr);
    CollectBody(template_->body, &root);
    BindBody(template_->body, &root);
    NoteContextNames(template_->scope);
  }

 private:
  enum Mode { kLoad, kStore, kParam };

  // --- collecting ---

  void Collect(const Expr& e, Symbols* s, Mode mode = kLoad) {
    if (e.kind == ExprKind::kName) {
      mode == kLoad ? s->Load(e.text) : mode == kStore ? s->Store(e.text) : static_cast<void>(s->Parameter(e.text));
      return;
    }
    if (e.kind == ExprKind::kNsRef) return s->Load(e.text.substr(0, e.text.find('.')));
    ForEachChild(e, [&](const Expr& kid) { Collect(kid, s, mode); });
  }

  void CollectBody(const Body& body, Symbols* s) {
    for (const auto& stmt : body) CollectStmt(*stmt, s);
  }

  // What a statement contributes to the scope it stands in.
  void CollectStmt(const Stmt& stmt, Symbols* s) {
    switch (stmt.kind) {
      case StmtKind::kIf: {
        const size_t mark = s->StoreMark();
        for (const auto& [test, branch] : stmt.branches) {
          Collect(*test, s);
          CollectBody(branch, s);
        }
        CollectBody(stmt.else_body, s);
        s->EndBranches(mark);
        break;
      }
      case StmtKind::kSet:
        Collect(*stmt.expr, s);
        Collect(*stmt.target, s, kStore);
        break;
      case StmtKind::kSetBlock:
        Collect(*stmt.target, s, kStore);
        break;
      case StmtKind::kMacro:
        s->Store(stmt.text);
        break;
      case StmtKind::kWith:
        for (const auto& v : stmt.values) Collect(*v, s);
        break;
      default:
        if (stmt.expr) Collect(*stmt.expr, s);
    }
  }

  // --- binding ---

  void Bind(Expr* e, Symbols* s) {
    if (e->kind == ExprKind::kName) {
      if (!s->Find(e->text, &e->ref)) {
        s->Load(e->text);
        s->Find(e->text, &e->ref);
      }
      return;
    }
    if (e->kind == ExprKind::kNsRef) {
      const size_t dot = e->text.find('.');
      s->Find(e->text.substr(0, dot), &e->ref);
      e->text.erase(0, dot + 1);
      return;
    }
    ForEachChild(*e, [&](const Expr& kid) { Bind(const_cast<Expr*>(&kid), s); });
  }

  void BindBody(const Body& body, Symbols* s) {
    for (const auto& stmt : body) BindStmt(stmt.get(), s);
  }

  void BindStmt(Stmt* stmt, Symbols* s) {
    switch (stmt->kind) {
      case StmtKind::kIf:
        for (auto& [test, branch] : stmt->branches) {
          Bind(test.get(), s);
          BindBody(branch, s);
        }
        BindBody(stmt->else_body, s);
        break;
      case StmtKind::kFor:
        BindFor(stmt, s);
        break;
      case StmtKind::kSetBlock: {
        Symbols inner(&stmt->scope, s);
        CollectBody(stmt->body, &inner);
        BindBody(stmt->body, &inner);
        if (stmt->expr) Bind(stmt->expr.get(), &inner);
        Bind(stmt->target.get(), s);
        NoteContextNames(stmt->scope);
        break;
      }
      case StmtKind::kMacro:
        s->Find(stmt->text, &stmt->ref);
        BindFunction(stmt, s);
        break;
      case StmtKind::kCallBlock:
        BindFunction(stmt, s);
        Bind(stmt->expr.get(), s);
        break;
      case StmtKind::kFilterBlock: {
        Symbols inner(&stmt->scope, s);
        CollectBody(stmt->body, &inner);
        Collect(*stmt->expr, &inner);
        BindBody(stmt->body, &inner);
        Bind(stmt->expr.get(), &inner);
        NoteContextNames(stmt->scope);
        break;
      }
      case StmtKind::kWith: {
        Symbols inner(&stmt->scope, s);
        for (const auto& t : stmt->targets) Collect(*t, &inner, kParam);
        CollectBody(stmt->body, &inner);
        for (const auto& t : stmt->targets) Bind(t.get(), &inner);
        for (const auto& v : stmt->values) Bind(v.get(), s);
        BindBody(stmt->body, &inner);
        NoteContextNames(stmt->scope);
        break;
      }
      default:
        if (stmt->target) Bind(stmt->target.get(), s);
        if (stmt->expr) Bind(stmt->expr.get(), s);
    }
  }

  void BindFor(Stmt* stmt, Symbols* s) {
    Symbols inner(&stmt->scope, s);
    if (stmt->recursive || Mentions(stmt->body, "loop")) stmt->loop_slot = inner.Parameter("loop");
    Collect(*stmt->target, &inner, kParam);
    CollectBody(stmt->body, &inner);
    Bind(stmt->expr.get(), s);
    if (stmt->test) {
      // The filter runs in a scope of its own with the same loop variables.
      Symbols test(&stmt->test_scope, s);
      Collect(*stmt->target, &test, kParam);
      Collect(*stmt->test, &test);
      Bind(stmt->test.get(), &test);
      Bind(stmt->target.get(), &test);
      stmt->targets.push_back(CloneTarget(*stmt->target));
      NoteContextNames(stmt->test_scope);
    }
    Bind(stmt->target.get(), &inner);
    BindBody(stmt->body, &inner);
    NoteContextNames(stmt->scope);
    Symbols otherwise(&stmt->else_scope, s);
    CollectBody(stmt->else_body, &otherwise);
    BindBody(stmt->else_body, &otherwise);
    NoteContextNames(stmt->else_scope);
  }

  static ExprPtr CloneTarget(const Expr& target) {
    auto copy = std::make_unique<Expr>();
    copy->kind = target.kind;
    copy->line = target.line;
    copy->ref = target.ref;
    copy->text = target.text;
    for (const auto& kid : target.kids) copy->kids.push_back(CloneTarget(*kid));
    return copy;
  }

  // A macro, or the body of a call block, which is a macro named `caller`.
  void BindFunction(Stmt* stmt, Symbols* s) {
    Symbols inner(&stmt->scope, s);
    bool has_caller = false, has_kwargs = false, has_varargs = false;
    for (const Param& p : stmt->params) {
      inner.Parameter(p.name->text);
      has_caller |= p.name->text == "caller";
      has_kwargs |= p.name->text == "kwargs";
      has_varargs |= p.name->text == "varargs";
    }
    if (!has_caller && Mentions(stmt->body, "caller")) stmt->caller_slot = inner.Parameter("caller");
    if (!has_kwargs && Mentions(stmt->body, "kwargs")) stmt->kwargs_slot = inner.Parameter("kwargs");
    if (!has_varargs && Mentions(stmt->body, "varargs")) stmt->varargs_slot = inner.Parameter("varargs");
    for (const Param& p : stmt->params) {
      if (p.fallback) Collect(*p.fallback, &inner);
    }
    CollectBody(stmt->body, &inner);
    for (const Param& p : stmt->params) {
      Bind(p.name.get(), &inner);
      if (p.fallback) Bind(p.fallback.get(), &inner);
    }
    BindBody(stmt->body, &inner);
    NoteContextNames(stmt->scope);
  }

  // Whether `name` is read in the body before anything in it assigns it.
  static bool Mentions(const Body& body, const std::string& name) {
    bool found = false, stored = false;
    ScanBody(body, name, &found, &stored);
    return found;
  }
  static void ScanBody(const Body& body, const std::string& name, bool* found, bool* stored) {
    for (const auto& stmt : body) {
      if (*found || *stored) return;
      ScanStmt(*stmt, name, found, stored);
    }
  }
  static void ScanStmt(const Stmt& stmt, const std::string& name, bool* found, bool* stored) {
    ForEachPart(
        stmt,
        [&](const Expr& e) {
          if (*found || *stored) return;
          bool is_target = &e == stmt.target.get();
          for (const auto& p : stmt.params) is_target |= &e == p.name.get();
          for (const auto& t : stmt.targets) is_target |= &e == t.get();
          ScanExpr(e, name, is_target, found, stored);
        },
        [&](const Body& inner) { ScanBody(inner, name, found, stored); });
  }
  static void ScanExpr(const Expr& e, const std::string& name, bool is_target, bool* found, bool* stored) {
    if (e.kind == ExprKind::kName && e.text == name) (is_target ? *stored : *found) = true;
    ForEachChild(e, [&](const Expr& kid) {
      if (!*found && !*stored) ScanExpr(kid, name, is_target, found, stored);
    });
  }

  void NoteContextNames(const Scope& scope) {
    for (const SlotLoad& load : scope.slots) {
      if (load.action == SlotLoad::kResolve) template_->context_names.insert(load.name);
    }
  }

  Template* template_;
};

}  // namespace

Status BindNames(Template* tmpl) {
  Binder(tmpl).Run();
  return OkStatus();
}

}  // namespace kvasir::jinja
