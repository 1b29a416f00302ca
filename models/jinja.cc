#include "models/jinja.h"

#include <functional>

#include "models/jinja_eval.h"
#include "models/jinja_parser.h"

namespace kvasir {
namespace {

using jinja::Body;
using jinja::Expr;
using jinja::ExprKind;
using jinja::Stmt;
using jinja::StmtKind;

void ForEachStmt(const Body& body, const std::function<void(const Stmt&)>& visit) {
  for (const auto& stmt : body) {
    visit(*stmt);
    for (const auto& [test, branch] : stmt->branches) ForEachStmt(branch, visit);
    ForEachStmt(stmt->body, visit);
    ForEachStmt(stmt->else_body, visit);
  }
}

// Whether the value of `e` is x.member, possibly through filters, slices, or a variable in `names` that holds it.
bool IsMember(const Expr& e, std::string_view member, const std::unordered_set<std::string>& names) {
  switch (e.kind) {
    case ExprKind::kGetattr:
      return e.text == member;
    case ExprKind::kGetitem:
      return e.kids[1]->kind == ExprKind::kConst && e.kids[1]->value.is_string() && e.kids[1]->value.text() == member;
    case ExprKind::kName:
      return names.contains(e.text);
    case ExprKind::kFilter:
    case ExprKind::kSlice:
      return e.kids[0] != nullptr && IsMember(*e.kids[0], member, names);
    default:
      return false;
  }
}

}  // namespace

JinjaTemplate::JinjaTemplate(std::string source) : source_(std::move(source)) {}
JinjaTemplate::~JinjaTemplate() = default;

StatusOr<std::shared_ptr<const JinjaTemplate>> JinjaTemplate::Parse(std::string source) {
  std::shared_ptr<JinjaTemplate> out(new JinjaTemplate(std::move(source)));
  KVASIR_ASSIGN_OR_RETURN(out->template_, jinja::ParseTemplate(out->source_));
  return out;
}

StatusOr<std::string> JinjaTemplate::Render(const nlohmann::ordered_json& context, const JinjaLimits& limits,
                                            int64_t now_unix_seconds) const {
  return jinja::Evaluator(*template_, limits, now_unix_seconds).Run(context);
}

bool JinjaTemplate::UsesVariable(std::string_view name) const {
  return template_->context_names.contains(std::string(name));
}

bool JinjaTemplate::IteratesMember(std::string_view member) const {
  // Variables set from the member, and macro parameters of the same name, stand for it.
  std::unordered_set<std::string> names;
  ForEachStmt(template_->body, [&](const Stmt& stmt) {
    if (stmt.kind == StmtKind::kSet && stmt.target->kind == ExprKind::kName && IsMember(*stmt.expr, member, names)) {
      names.insert(stmt.target->text);
    }
    for (const auto& param : stmt.params) {
      if (param.name->text == member) names.insert(param.name->text);
    }
  });
  bool found = false;
  ForEachStmt(template_->body, [&](const Stmt& stmt) {
    if (stmt.kind == StmtKind::kFor && IsMember(*stmt.expr, member, names)) found = true;
  });
  return found;
}

}  // namespace kvasir
