#include "models/jinja_expr_parser.h"

#include <algorithm>

#include "models/jinja_builtins.h"

namespace kvasir::jinja {

bool ExprParser::SkipName(std::string_view name) {
  if (!IsName(name)) return false;
  Advance();
  return true;
}

bool ExprParser::SkipOp(std::string_view op) {
  if (!IsOp(op)) return false;
  Advance();
  return true;
}

std::string ExprParser::Describe(const Token& token) {
  switch (token.kind) {
    case Tok::kData:
      return "template text";
    case Tok::kVariableBegin:
      return "'{{'";
    case Tok::kVariableEnd:
      return "'}}'";
    case Tok::kBlockBegin:
      return "'{%'";
    case Tok::kBlockEnd:
      return "'%}'";
    case Tok::kEnd:
      return "the end of the template";
    case Tok::kString:
      return "a string";
    default:
      return "'" + token.text + "'";
  }
}

Status ExprParser::Expect(Tok kind, const char* what) {
  if (Current().kind != kind) return SyntaxError(Current().line, "expected {}, got {}", what, Describe(Current()));
  Advance();
  return OkStatus();
}

Status ExprParser::ExpectOp(std::string_view op) {
  if (!IsOp(op)) return SyntaxError(Current().line, "expected '{}', got {}", op, Describe(Current()));
  Advance();
  return OkStatus();
}

StatusOr<std::string> ExprParser::ExpectName() {
  if (Current().kind != Tok::kName) return SyntaxError(Current().line, "expected a name, got {}", Describe(Current()));
  return Advance().text;
}

Status ExprParser::CheckDepth() const {
  if (depth_ <= kMaxParseDepth) return OkStatus();
  return SyntaxError(Current().line, "template budget exceeded: more than {} levels of nesting; simplify the template",
                     kMaxParseDepth);
}

StatusOr<ExprPtr> ExprParser::Make(ExprKind kind, int line, std::vector<ExprPtr> kids) {
  auto node = std::make_unique<Expr>();
  node->kind = kind;
  node->line = line;
  for (const auto& kid : kids) node->depth = std::max(node->depth, kid ? kid->depth + 1 : 1);
  node->kids = std::move(kids);
  if (node->depth > kMaxExprDepth) {
    return SyntaxError(line, "template budget exceeded: an expression nests deeper than {} levels; split it up", kMaxExprDepth);
  }
  return node;
}

StatusOr<ExprPtr> ExprParser::MakeBinary(Op op, int line, ExprPtr a, ExprPtr b) {
  std::vector<ExprPtr> kids;
  kids.push_back(std::move(a));
  kids.push_back(std::move(b));
  KVASIR_ASSIGN_OR_RETURN(ExprPtr node, Make(ExprKind::kBinary, line, std::move(kids)));
  node->op = op;
  return node;
}

StatusOr<ExprPtr> ExprParser::Expression(bool with_cond) {
  Depth guard(&depth_);
  KVASIR_RETURN_IF_ERROR(CheckDepth());
  return with_cond ? Condition() : Or();
}

StatusOr<ExprPtr> ExprParser::Condition() {
  int line = Current().line;
  // What stands before `if` may go unevaluated, but we learn that only after reading it: unknown filters are marked then.
  const size_t begin = at_;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr value, [&]() -> StatusOr<ExprPtr> {
    StatusOr<ExprPtr> parsed = Or();
    if (parsed.ok() || soft_ > 0) return parsed;
    // Try again as the value of a conditional; keep that only when an `if` follows.
    at_ = begin;
    soft_++;
    StatusOr<ExprPtr> again = Or();
    soft_--;
    return again.ok() && IsName("if") ? std::move(again) : std::move(parsed);
  }());
  while (SkipName("if")) {
    soft_++;
    StatusOr<ExprPtr> test = Or();
    soft_--;
    if (!test.ok()) return test.status();
    std::vector<ExprPtr> kids;
    kids.push_back(std::move(*test));
    kids.push_back(std::move(value));
    kids.push_back(nullptr);
    if (SkipName("else")) {
      Depth guard(&depth_);
      KVASIR_RETURN_IF_ERROR(CheckDepth());
      soft_++;
      StatusOr<ExprPtr> other = Condition();
      soft_--;
      if (!other.ok()) return other.status();
      kids[2] = std::move(*other);
    }
    KVASIR_ASSIGN_OR_RETURN(value, Make(ExprKind::kCond, line, std::move(kids)));
    line = Current().line;
  }
  return value;
}

StatusOr<ExprPtr> ExprParser::Or() {
  const int line = Current().line;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr left, And());
  while (SkipName("or")) {
    std::vector<ExprPtr> kids;
    kids.push_back(std::move(left));
    KVASIR_ASSIGN_OR_RETURN(ExprPtr right, And());
    kids.push_back(std::move(right));
    KVASIR_ASSIGN_OR_RETURN(left, Make(ExprKind::kOr, line, std::move(kids)));
  }
  return left;
}

StatusOr<ExprPtr> ExprParser::And() {
  const int line = Current().line;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr left, Not());
  while (SkipName("and")) {
    std::vector<ExprPtr> kids;
    kids.push_back(std::move(left));
    KVASIR_ASSIGN_OR_RETURN(ExprPtr right, Not());
    kids.push_back(std::move(right));
    KVASIR_ASSIGN_OR_RETURN(left, Make(ExprKind::kAnd, line, std::move(kids)));
  }
  return left;
}

StatusOr<ExprPtr> ExprParser::Not() {
  if (!IsName("not")) return Compare();
  Depth guard(&depth_);
  KVASIR_RETURN_IF_ERROR(CheckDepth());
  const int line = Advance().line;
  std::vector<ExprPtr> kids;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr operand, Not());
  kids.push_back(std::move(operand));
  return Make(ExprKind::kNot, line, std::move(kids));
}

StatusOr<ExprPtr> ExprParser::Compare() {
  const int line = Current().line;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr first, Sum());
  std::vector<ExprPtr> kids;
  kids.push_back(std::move(first));
  std::vector<Op> ops;
  while (true) {
    static constexpr std::pair<std::string_view, Op> kOps[] = {{"==", Op::kEq}, {"!=", Op::kNe}, {"<", Op::kLt},
                                                               {"<=", Op::kLe}, {">", Op::kGt},  {">=", Op::kGe}};
    const auto* found = std::find_if(std::begin(kOps), std::end(kOps), [&](const auto& o) { return IsOp(o.first); });
    if (found != std::end(kOps)) {
      Advance();
      ops.push_back(found->second);
    } else if (SkipName("in")) {
      ops.push_back(Op::kIn);
    } else if (IsName("not") && Look().kind == Tok::kName && Look().text == "in") {
      Advance();
      Advance();
      ops.push_back(Op::kNotIn);
    } else {
      break;
    }
    KVASIR_ASSIGN_OR_RETURN(ExprPtr next, Sum());
    kids.push_back(std::move(next));
  }
  if (ops.empty()) return std::move(kids[0]);
  KVASIR_ASSIGN_OR_RETURN(ExprPtr node, Make(ExprKind::kCompare, line, std::move(kids)));
  node->ops = std::move(ops);
  return node;
}

StatusOr<ExprPtr> ExprParser::Sum() {
  const int line = Current().line;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr left, Concat());
  while (IsOp("+") || IsOp("-")) {
    const Op op = Advance().text == "+" ? Op::kAdd : Op::kSub;
    KVASIR_ASSIGN_OR_RETURN(ExprPtr right, Concat());
    KVASIR_ASSIGN_OR_RETURN(left, MakeBinary(op, line, std::move(left), std::move(right)));
  }
  return left;
}

StatusOr<ExprPtr> ExprParser::Concat() {
  const int line = Current().line;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr first, Product());
  if (!IsOp("~")) return first;
  std::vector<ExprPtr> kids;
  kids.push_back(std::move(first));
  while (SkipOp("~")) {
    KVASIR_ASSIGN_OR_RETURN(ExprPtr next, Product());
    kids.push_back(std::move(next));
  }
  return Make(ExprKind::kConcat, line, std::move(kids));
}

StatusOr<ExprPtr> ExprParser::Product() {
  const int line = Current().line;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr left, Power());
  while (IsOp("*") || IsOp("/") || IsOp("//") || IsOp("%")) {
    const std::string& text = Advance().text;
    const Op op = text == "*" ? Op::kMul : text == "/" ? Op::kDiv : text == "//" ? Op::kFloorDiv : Op::kMod;
    KVASIR_ASSIGN_OR_RETURN(ExprPtr right, Power());
    KVASIR_ASSIGN_OR_RETURN(left, MakeBinary(op, line, std::move(left), std::move(right)));
  }
  return left;
}

StatusOr<ExprPtr> ExprParser::Power() {
  const int line = Current().line;
  KVASIR_ASSIGN_OR_RETURN(ExprPtr left, Unary());
  while (SkipOp("**")) {  // to the left, as Jinja2 has it
    KVASIR_ASSIGN_OR_RETURN(ExprPtr right, Unary());
    KVASIR_ASSIGN_OR_RETURN(left, MakeBinary(Op::kPow, line, std::move(left), std::move(right)));
  }
  return left;
}

StatusOr<ExprPtr> ExprParser::Unary(bool with_filter) {
  Depth guard(&depth_);
  KVASIR_RETURN_IF_ERROR(CheckDepth());
  const int line = Current().line;
  ExprPtr node;
  if (IsOp("-") || IsOp("+")) {
    const ExprKind kind = Advance().text == "-" ? ExprKind::kNeg : ExprKind::kPos;
    std::vector<ExprPtr> kids;
    KVASIR_ASSIGN_OR_RETURN(ExprPtr operand, Unary(false));
    kids.push_back(std::move(operand));
    KVASIR_ASSIGN_OR_RETURN(node, Make(kind, line, std::move(kids)));
  } else {
    KVASIR_ASSIGN_OR_RETURN(node, Primary());
  }
  KVASIR_ASSIGN_OR_RETURN(node, Postfix(std::move(node)));
  return with_filter ? FilterChain(std::move(node)) : std::move(node);
}

StatusOr<ExprPtr> ExprParser::Primary(bool with_namespace) {
  const Token& token = Current();
  const int line = token.line;
  if (token.kind == Tok::kOperator) {
    if (SkipOp("(")) {
      KVASIR_ASSIGN_OR_RETURN(ExprPtr node, TupleOrOne(false, true, {}, true));
      KVASIR_RETURN_IF_ERROR(ExpectOp(")"));
      return node;
    }
    if (IsOp("[")) return ListLiteral();
    if (IsOp("{")) return DictLiteral();
  }
  KVASIR_ASSIGN_OR_RETURN(ExprPtr node, Make(ExprKind::kConst, line));
  switch (token.kind) {
    case Tok::kName: {
      const std::string name = Advance().text;
      if (name == "true" || name == "True" || name == "false" || name == "False") {
        node->value = Value::Bool(name[0] == 't' || name[0] == 'T');
      } else if (name == "none" || name == "None") {
        node->value = Value::None();
      } else {
        node->kind = ExprKind::kName;
        node->text = name;
        if (with_namespace && SkipOp(".")) {
          node->kind = ExprKind::kNsRef;
          KVASIR_ASSIGN_OR_RETURN(const std::string attribute, ExpectName());
          node->text = name + "." + attribute;
        }
      }
      return node;
    }
    case Tok::kString: {
      auto object = std::make_shared<StrObj>();
      while (Current().kind == Tok::kString) object->text += Advance().text;
      object->ascii =
          std::all_of(object->text.begin(), object->text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
      node->value = Value(Type::kString, std::move(object));
      return node;
    }
    case Tok::kInteger:
      node->value = Value::Integer(Advance().integer);
      return node;
    case Tok::kFloat:
      node->value = Value::Float(Advance().number);
      return node;
    default:
      return SyntaxError(line, "unexpected {}", Describe(token));
  }
}

StatusOr<ExprPtr> ExprParser::TupleOrOne(bool simplified, bool with_cond, Ends ends, bool parentheses, bool with_namespace) {
  const int line = Current().line;
  std::vector<ExprPtr> kids;
  bool is_tuple = false;
  while (true) {
    if (!kids.empty()) KVASIR_RETURN_IF_ERROR(ExpectOp(","));
    if (Current().kind == Tok::kVariableEnd || Current().kind == Tok::kBlockEnd || IsOp(")")) break;
    if (std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return IsName(end); })) break;
    StatusOr<ExprPtr> item = simplified ? Primary(with_namespace) : Expression(with_cond);
    if (!item.ok()) return item.status();
    kids.push_back(std::move(*item));
    if (!IsOp(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !kids.empty()) return std::move(kids[0]);
  if (!is_tuple && !parentheses) return SyntaxError(line, "expected an expression, got {}", Describe(Current()));
  return Make(ExprKind::kTuple, line, std::move(kids));
}

StatusOr<ExprPtr> ExprParser::ListLiteral() {
  const int line = Advance().line;
  std::vector<ExprPtr> kids;
  while (!IsOp("]")) {
    if (!kids.empty()) KVASIR_RETURN_IF_ERROR(ExpectOp(","));
    if (IsOp("]")) break;
    KVASIR_ASSIGN_OR_RETURN(ExprPtr item, Expression());
    kids.push_back(std::move(item));
  }
  KVASIR_RETURN_IF_ERROR(ExpectOp("]"));
  return Make(ExprKind::kList, line, std::move(kids));
}

StatusOr<ExprPtr> ExprParser::DictLiteral() {
  const int line = Advance().line;
  std::vector<ExprPtr> kids;
  while (!IsOp("}")) {
    if (!kids.empty()) KVASIR_RETURN_IF_ERROR(ExpectOp(","));
    if (IsOp("}")) break;
    KVASIR_ASSIGN_OR_RETURN(ExprPtr key, Expression());
    KVASIR_RETURN_IF_ERROR(ExpectOp(":"));
    KVASIR_ASSIGN_OR_RETURN(ExprPtr value, Expression());
    kids.push_back(std::move(key));
    kids.push_back(std::move(value));
  }
  KVASIR_RETURN_IF_ERROR(ExpectOp("}"));
  return Make(ExprKind::kDict, line, std::move(kids));
}

StatusOr<ExprPtr> ExprParser::Postfix(ExprPtr node) {
  while (true) {
    if (IsOp(".") || IsOp("[")) {
      KVASIR_ASSIGN_OR_RETURN(node, Subscript(std::move(node)));
    } else if (IsOp("(")) {
      KVASIR_ASSIGN_OR_RETURN(node, CallOf(std::move(node)));
    } else {
      return node;
    }
  }
}

StatusOr<ExprPtr> ExprParser::FilterChain(ExprPtr node) {
  while (true) {
    if (IsOp("|")) {
      KVASIR_ASSIGN_OR_RETURN(node, Filters(std::move(node)));
    } else if (IsName("is")) {
      KVASIR_ASSIGN_OR_RETURN(node, TestOf(std::move(node)));
    } else if (IsOp("(")) {
      KVASIR_ASSIGN_OR_RETURN(node, CallOf(std::move(node)));
    } else {
      return node;
    }
  }
}

StatusOr<ExprPtr> ExprParser::Subscript(ExprPtr node) {
  const int line = Current().line;
  std::vector<ExprPtr> kids;
  if (SkipOp(".")) {
    kids.push_back(std::move(node));
    if (Current().kind == Tok::kName) {
      const std::string name = Advance().text;
      KVASIR_ASSIGN_OR_RETURN(ExprPtr attr, Make(ExprKind::kGetattr, line, std::move(kids)));
      attr->text = name;
      return attr;
    }
    if (Current().kind != Tok::kInteger) return SyntaxError(line, "expected a name or a number, got {}", Describe(Current()));
    KVASIR_ASSIGN_OR_RETURN(ExprPtr index, Make(ExprKind::kConst, line));
    index->value = Value::Integer(Advance().integer);
    kids.push_back(std::move(index));
    return Make(ExprKind::kGetitem, line, std::move(kids));
  }
  Advance();  // [
  ExprPtr argument;
  std::vector<ExprPtr> items;
  while (!IsOp("]")) {
    if (!items.empty()) KVASIR_RETURN_IF_ERROR(ExpectOp(","));
    if (!IsOp(":")) {
      KVASIR_ASSIGN_OR_RETURN(argument, Expression());
    }
    if (IsOp(":")) {
      if (!items.empty()) return SyntaxError(line, "slices in several dimensions are not supported");
      return Slice(std::move(node), line, std::move(argument));
    }
    items.push_back(std::move(argument));
  }
  KVASIR_RETURN_IF_ERROR(ExpectOp("]"));
  if (items.size() == 1) {
    argument = std::move(items[0]);
  } else {
    KVASIR_ASSIGN_OR_RETURN(argument, Make(ExprKind::kTuple, line, std::move(items)));
  }
  kids.push_back(std::move(node));
  kids.push_back(std::move(argument));
  return Make(ExprKind::kGetitem, line, std::move(kids));
}

StatusOr<ExprPtr> ExprParser::Slice(ExprPtr node, int line, ExprPtr start) {
  ExprPtr stop, step;
  Advance();  // :
  if (!IsOp(":") && !IsOp("]") && !IsOp(",")) {
    KVASIR_ASSIGN_OR_RETURN(stop, Expression());
  }
  if (SkipOp(":") && !IsOp("]") && !IsOp(",")) {
    KVASIR_ASSIGN_OR_RETURN(step, Expression());
  }
  if (IsOp(",")) return SyntaxError(line, "slices in several dimensions are not supported");
  KVASIR_RETURN_IF_ERROR(ExpectOp("]"));
  std::vector<ExprPtr> kids;
  kids.push_back(std::move(node));
  kids.push_back(std::move(start));
  kids.push_back(std::move(stop));
  kids.push_back(std::move(step));
  return Make(ExprKind::kSlice, line, std::move(kids));
}

StatusOr<ExprPtr> ExprParser::CallOf(ExprPtr node) {
  const int line = Current().line;
  KVASIR_ASSIGN_OR_RETURN(auto call, CallArgs());
  std::vector<ExprPtr> kids;
  kids.push_back(std::move(node));
  KVASIR_ASSIGN_OR_RETURN(ExprPtr out, Make(ExprKind::kCall, line, std::move(kids)));
  out->call = std::move(call);
  return out;
}

Status ExprParser::OneArg(CallSyntax* call, int line) {
  const auto invalid = [&] { return SyntaxError(line, "invalid order of arguments in a call"); };
  if (SkipOp("*")) {
    if (call->star || call->star_star) return invalid();
    KVASIR_ASSIGN_OR_RETURN(call->star, Expression());
    return OkStatus();
  }
  if (SkipOp("**")) {
    if (call->star_star) return invalid();
    KVASIR_ASSIGN_OR_RETURN(call->star_star, Expression());
    return OkStatus();
  }
  if (Current().kind == Tok::kName && Look().kind == Tok::kOperator && Look().text == "=") {
    if (call->star_star) return invalid();
    const std::string key = Advance().text;
    Advance();
    for (const auto& [name, unused] : call->kwargs) {
      if (name == key) return SyntaxError(line, "keyword argument '{}' is given twice", key);
    }
    KVASIR_ASSIGN_OR_RETURN(ExprPtr value, Expression());
    call->kwargs.emplace_back(key, std::move(value));
    return OkStatus();
  }
  if (call->star || call->star_star || !call->kwargs.empty()) return invalid();
  KVASIR_ASSIGN_OR_RETURN(ExprPtr value, Expression());
  call->args.push_back(std::move(value));
  return OkStatus();
}

StatusOr<std::unique_ptr<CallSyntax>> ExprParser::CallArgs() {
  const int line = Current().line;
  KVASIR_RETURN_IF_ERROR(ExpectOp("("));
  auto call = std::make_unique<CallSyntax>();
  bool first = true;
  while (!IsOp(")")) {
    if (!first) {
      KVASIR_RETURN_IF_ERROR(ExpectOp(","));
      if (IsOp(")")) break;
    }
    first = false;
    KVASIR_RETURN_IF_ERROR(OneArg(call.get(), line));
  }
  KVASIR_RETURN_IF_ERROR(ExpectOp(")"));
  return call;
}

StatusOr<std::string> ExprParser::DottedName() {
  KVASIR_ASSIGN_OR_RETURN(std::string name, ExpectName());
  while (SkipOp(".")) {
    KVASIR_ASSIGN_OR_RETURN(const std::string part, ExpectName());
    name += "." + part;
  }
  return name;
}

Status ExprParser::BindFilter(Expr* node, bool is_filter) {
  node->filter = is_filter ? FindFilter(node->text) : FindTest(node->text);
  if (node->filter != nullptr) return OkStatus();
  if (soft_ == 0) {
    return SyntaxError(node->line, "no {} named '{}'; supported: {}", is_filter ? "filter" : "test", node->text,
                       is_filter ? FilterNames() : TestNames());
  }
  node->soft = true;
  return OkStatus();
}

StatusOr<ExprPtr> ExprParser::Filters(ExprPtr node, bool first_inline) {
  while (first_inline || IsOp("|")) {
    if (!first_inline) Advance();
    first_inline = false;
    const int line = Current().line;
    KVASIR_ASSIGN_OR_RETURN(const std::string name, DottedName());
    std::vector<ExprPtr> kids;
    kids.push_back(std::move(node));
    std::unique_ptr<CallSyntax> call;
    if (IsOp("(")) {
      KVASIR_ASSIGN_OR_RETURN(call, CallArgs());
    }
    KVASIR_ASSIGN_OR_RETURN(node, Make(ExprKind::kFilter, line, std::move(kids)));
    node->text = name;
    node->call = std::move(call);
    KVASIR_RETURN_IF_ERROR(BindFilter(node.get(), true));
  }
  return node;
}

StatusOr<ExprPtr> ExprParser::TestOf(ExprPtr node) {
  const int line = Advance().line;
  const bool negated = SkipName("not");
  KVASIR_ASSIGN_OR_RETURN(const std::string name, DottedName());
  std::unique_ptr<CallSyntax> call;
  const Tok kind = Current().kind;
  if (IsOp("(")) {
    KVASIR_ASSIGN_OR_RETURN(call, CallArgs());
  } else if ((kind == Tok::kName || kind == Tok::kString || kind == Tok::kInteger || kind == Tok::kFloat || IsOp("[") ||
              IsOp("{")) &&
             !IsName("else") && !IsName("or") && !IsName("and")) {
    if (IsName("is")) return SyntaxError(line, "tests with 'is' cannot be chained");
    KVASIR_ASSIGN_OR_RETURN(ExprPtr argument, Primary());
    KVASIR_ASSIGN_OR_RETURN(argument, Postfix(std::move(argument)));
    call = std::make_unique<CallSyntax>();
    call->args.push_back(std::move(argument));
  }
  std::vector<ExprPtr> kids;
  kids.push_back(std::move(node));
  KVASIR_ASSIGN_OR_RETURN(ExprPtr test, Make(ExprKind::kTest, line, std::move(kids)));
  test->text = name;
  test->call = std::move(call);
  KVASIR_RETURN_IF_ERROR(BindFilter(test.get(), false));
  if (!negated) return test;
  std::vector<ExprPtr> inner;
  inner.push_back(std::move(test));
  return Make(ExprKind::kNot, line, std::move(inner));
}

Status ExprParser::CheckAssignable(const Expr& target) {
  if (target.kind == ExprKind::kTuple) {
    for (const auto& kid : target.kids) KVASIR_RETURN_IF_ERROR(CheckAssignable(*kid));
    return OkStatus();
  }
  if (target.kind == ExprKind::kName && target.text == "loop" && for_depth_ > 0) {
    return SyntaxError(target.line, "the loop variable 'loop' cannot be assigned");
  }
  if (target.kind == ExprKind::kName || target.kind == ExprKind::kNsRef) return OkStatus();
  return SyntaxError(target.line, "this cannot be assigned to; write a name, a tuple of names, or namespace.attribute");
}

StatusOr<ExprPtr> ExprParser::AssignTarget(Ends ends, bool with_namespace) {
  KVASIR_ASSIGN_OR_RETURN(ExprPtr target, TupleOrOne(true, true, ends, false, with_namespace));
  KVASIR_RETURN_IF_ERROR(CheckAssignable(*target));
  return target;
}

}  // namespace kvasir::jinja
