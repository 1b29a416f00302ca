// The expression half of the Jinja parser: from `or` down to names and literals.
//
// Used by jinja_parser.cc, which derives the statement parser from it.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "models/jinja_ast.h"
#include "models/jinja_lexer.h"

namespace kvasir::jinja {

constexpr int kMaxParseDepth = 100;  // parentheses, blocks inside each other
constexpr int kMaxExprDepth = 250;   // levels of one expression's tree: a + b + c ... is as deep as it is long

class ExprParser {
 public:
  explicit ExprParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  struct Depth {
    explicit Depth(int* d) : depth(d) { ++*depth; }
    ~Depth() { --*depth; }
    int* depth;
  };
  using Ends = std::initializer_list<std::string_view>;

  const Token& Current() const { return tokens_[at_]; }
  const Token& Look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token& Advance() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool IsName(std::string_view name) const { return Current().kind == Tok::kName && Current().text == name; }
  bool IsOp(std::string_view op) const { return Current().kind == Tok::kOperator && Current().text == op; }
  bool SkipName(std::string_view name);
  bool SkipOp(std::string_view op);
  Status ExpectOp(std::string_view op);
  Status Expect(Tok kind, const char* what);
  StatusOr<std::string> ExpectName();
  static std::string Describe(const Token& token);
  Status CheckDepth() const;

  StatusOr<ExprPtr> Make(ExprKind kind, int line, std::vector<ExprPtr> kids = {});
  StatusOr<ExprPtr> MakeBinary(Op op, int line, ExprPtr a, ExprPtr b);

  StatusOr<ExprPtr> Expression(bool with_cond = true);
  StatusOr<ExprPtr> Condition();
  StatusOr<ExprPtr> Or();
  StatusOr<ExprPtr> And();
  StatusOr<ExprPtr> Not();
  StatusOr<ExprPtr> Compare();
  StatusOr<ExprPtr> Sum();
  StatusOr<ExprPtr> Concat();
  StatusOr<ExprPtr> Product();
  StatusOr<ExprPtr> Power();
  StatusOr<ExprPtr> Unary(bool with_filter = true);
  StatusOr<ExprPtr> Primary(bool with_namespace = false);
  StatusOr<ExprPtr> TupleOrOne(bool simplified, bool with_cond, Ends ends, bool parentheses = false, bool with_namespace = false);
  StatusOr<ExprPtr> ListLiteral();
  StatusOr<ExprPtr> DictLiteral();
  StatusOr<ExprPtr> Postfix(ExprPtr node);
  StatusOr<ExprPtr> FilterChain(ExprPtr node);
  StatusOr<ExprPtr> Subscript(ExprPtr node);
  StatusOr<ExprPtr> Slice(ExprPtr node, int line, ExprPtr start);
  StatusOr<ExprPtr> CallOf(ExprPtr node);
  StatusOr<std::unique_ptr<CallSyntax>> CallArgs();
  Status OneArg(CallSyntax* call, int line);
  // One or more filters; the first `|` is already read when `first_inline`.
  StatusOr<ExprPtr> Filters(ExprPtr node, bool first_inline = false);
  StatusOr<ExprPtr> TestOf(ExprPtr node);
  StatusOr<std::string> DottedName();
  // Finds the filter or test; an unknown one is an error unless the code around it may skip it.
  Status BindFilter(Expr* node, bool is_filter);
  StatusOr<ExprPtr> AssignTarget(Ends ends, bool with_namespace);
  Status CheckAssignable(const Expr& target);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int soft_ = 0;       // inside an if: unknown filters fail only when reached
  int for_depth_ = 0;  // inside how many for-loops; `loop` cannot be assigned there
};

}  // namespace kvasir::jinja
