#include "models/jinja_parser.h"

#include <algorithm>

#include "models/jinja_expr_parser.h"
#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

class Parser : public ExprParser {
 public:
  using ExprParser::ExprParser;

  StatusOr<Body> Run() {
    Body body;
    KVASIR_RETURN_IF_ERROR(Statements({}, "", 1, &body));
    return body;
  }

 private:
  static StmtPtr New(StmtKind kind, int line) {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line;
    return stmt;
  }

  // Reads statements up to a tag named in `ends` (left current), or to the end of the template when `ends` is empty.
  Status Statements(Ends ends, std::string_view tag, int tag_line, Body* body) {
    Depth guard(&depth_);
    KVASIR_RETURN_IF_ERROR(CheckDepth());
    while (Current().kind != Tok::kEnd) {
      const int line = Current().line;
      if (Current().kind == Tok::kData) {
        StmtPtr data = New(StmtKind::kData, line);
        data->text = std::move(Advance().text);
        body->push_back(std::move(data));
      } else if (Current().kind == Tok::kVariableBegin) {
        Advance();
        StmtPtr print = New(StmtKind::kPrint, line);
        KVASIR_ASSIGN_OR_RETURN(print->expr, TupleOrOne(false, true, {}));
        KVASIR_RETURN_IF_ERROR(Expect(Tok::kVariableEnd, "'}}'"));
        body->push_back(std::move(print));
      } else {
        KVASIR_RETURN_IF_ERROR(Expect(Tok::kBlockBegin, "a tag"));
        if (std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return IsName(end); })) return OkStatus();
        KVASIR_RETURN_IF_ERROR(Statement(tag, tag_line, body));
        KVASIR_RETURN_IF_ERROR(Expect(Tok::kBlockEnd, "'%}'"));
      }
    }
    if (ends.size() == 0) return OkStatus();
    return SyntaxError(Current().line, "the template ends inside '{{% {} %}}' of line {}", tag, tag_line);
  }

  // The body of a block tag: an optional colon, the end of the tag, statements.
  Status BlockBody(Ends ends, std::string_view tag, int line, Body* body) {
    SkipOp(":");
    KVASIR_RETURN_IF_ERROR(Expect(Tok::kBlockEnd, "'%}'"));
    return Statements(ends, tag, line, body);
  }

  // A body that ends in exactly one tag, which is consumed.
  Status WholeBody(std::string_view end, std::string_view tag, int line, Body* body) {
    KVASIR_RETURN_IF_ERROR(BlockBody({end}, tag, line, body));
    Advance();
    return OkStatus();
  }

  Status Statement(std::string_view outer, int outer_line, Body* body) {
    if (Current().kind != Tok::kName)
      return SyntaxError(Current().line, "expected the name of a tag, got {}", Describe(Current()));
    const std::string name = Current().text;
    const int line = Current().line;
    static constexpr std::string_view kRefused[] = {"include", "import", "from", "extends", "block", "autoescape"};
    if (std::find(std::begin(kRefused), std::end(kRefused), name) != std::end(kRefused)) {
      return SyntaxError(line, "the tag '{}' is not supported in chat templates", name);
    }
    using Method = Status (Parser::*)(int, Body*);
    static constexpr std::pair<std::string_view, Method> kTags[] = {{"for", &Parser::For},
                                                                    {"if", &Parser::If},
                                                                    {"set", &Parser::Set},
                                                                    {"macro", &Parser::Macro},
                                                                    {"call", &Parser::CallBlock},
                                                                    {"filter", &Parser::Filter},
                                                                    {"with", &Parser::With},
                                                                    {"print", &Parser::Print},
                                                                    {"break", &Parser::LoopJump},
                                                                    {"continue", &Parser::LoopJump},
                                                                    {"generation", &Parser::Generation}};
    for (const auto& [tag, method] : kTags) {
      if (tag == name) return (this->*method)(line, body);
    }
    if (outer.empty()) return SyntaxError(line, "unknown tag '{}'", name);
    return SyntaxError(line, "unknown tag '{}' inside '{{% {} %}}' of line {}", name, outer, outer_line);
  }

  Status For(int line, Body* body) {
    Advance();
    StmtPtr stmt = New(StmtKind::kFor, line);
    for_depth_++;
    const int soft = std::exchange(soft_, 0);
    const Status status = ForRest(stmt.get(), soft);
    soft_ = soft;
    for_depth_--;
    KVASIR_RETURN_IF_ERROR(status);
    body->push_back(std::move(stmt));
    return OkStatus();
  }

  Status ForRest(Stmt* stmt, int outer_soft) {
    KVASIR_ASSIGN_OR_RETURN(stmt->target, AssignTarget({"in"}, false));
    if (!SkipName("in")) return SyntaxError(Current().line, "expected 'in', got {}", Describe(Current()));
    soft_ = outer_soft;
    KVASIR_ASSIGN_OR_RETURN(stmt->expr, TupleOrOne(false, false, {"recursive"}));
    soft_ = 0;
    if (SkipName("if")) {
      KVASIR_ASSIGN_OR_RETURN(stmt->test, Expression());
    }
    stmt->recursive = SkipName("recursive");
    breakable_++;
    const Status status = BlockBody({"endfor", "else"}, "for", stmt->line, &stmt->body);
    breakable_--;
    KVASIR_RETURN_IF_ERROR(status);
    if (Advance().text != "else") return OkStatus();
    // Jinja2 makes a function of a recursive loop, so its else cannot break out of a loop around it.
    const int breakable = std::exchange(breakable_, stmt->recursive ? 0 : breakable_);
    const Status ended = WholeBody("endfor", "for", stmt->line, &stmt->else_body);
    breakable_ = breakable;
    return ended;
  }

  Status If(int line, Body* body) {
    StmtPtr stmt = New(StmtKind::kIf, line);
    soft_++;
    const Status status = IfRest(stmt.get());
    soft_--;
    KVASIR_RETURN_IF_ERROR(status);
    body->push_back(std::move(stmt));
    return OkStatus();
  }

  Status IfRest(Stmt* stmt) {
    std::string keyword = "elif";
    while (keyword == "elif") {
      Advance();
      auto& branch = stmt->branches.emplace_back();
      KVASIR_ASSIGN_OR_RETURN(branch.first, TupleOrOne(false, false, {}));
      KVASIR_RETURN_IF_ERROR(BlockBody({"elif", "else", "endif"}, "if", stmt->line, &branch.second));
      keyword = Current().text;
    }
    Advance();
    if (keyword == "else") return WholeBody("endif", "if", stmt->line, &stmt->else_body);
    return OkStatus();
  }

  Status Set(int line, Body* body) {
    Advance();
    StmtPtr stmt = New(StmtKind::kSet, line);
    KVASIR_ASSIGN_OR_RETURN(stmt->target, AssignTarget({}, true));
    if (SkipOp("=")) {
      KVASIR_ASSIGN_OR_RETURN(stmt->expr, TupleOrOne(false, true, {}));
    } else {
      stmt->kind = StmtKind::kSetBlock;
      KVASIR_ASSIGN_OR_RETURN(stmt->expr, Filters(nullptr));
      const int soft = std::exchange(soft_, 0);
      const Status status = WholeBody("endset", "set", line, &stmt->body);
      soft_ = soft;
      KVASIR_RETURN_IF_ERROR(status);
    }
    body->push_back(std::move(stmt));
    return OkStatus();
  }

  Status Signature(Stmt* stmt) {
    KVASIR_RETURN_IF_ERROR(ExpectOp("("));
    while (!IsOp(")")) {
      if (!stmt->params.empty()) KVASIR_RETURN_IF_ERROR(ExpectOp(","));
      const int line = Current().line;
      Param param;
      KVASIR_ASSIGN_OR_RETURN(param.name, Make(ExprKind::kName, line));
      KVASIR_ASSIGN_OR_RETURN(param.name->text, ExpectName());
      KVASIR_RETURN_IF_ERROR(CheckName(param.name->text, line));
      for (const Param& other : stmt->params) {
        if (other.name->text == param.name->text) return SyntaxError(line, "the parameter '{}' is given twice", other.name->text);
      }
      if (SkipOp("=")) {
        KVASIR_ASSIGN_OR_RETURN(param.fallback, Expression());
      } else if (!stmt->params.empty() && stmt->params.back().fallback) {
        return SyntaxError(line, "a parameter without a default follows one that has a default");
      }
      stmt->params.push_back(std::move(param));
    }
    return ExpectOp(")");
  }

  Status CheckName(const std::string& name, int line) {
    for (const std::string_view reserved : {"true", "false", "none", "True", "False", "None"}) {
      if (name == reserved) return SyntaxError(line, "'{}' cannot be assigned to", name);
    }
    return OkStatus();
  }

  // A body that is a function of its own: jumps do not reach through it and unknown filters fail at once.
  Status FunctionBody(std::string_view end, std::string_view tag, Stmt* stmt) {
    const int soft = std::exchange(soft_, 0);
    const int breakable = std::exchange(breakable_, 0);
    const Status status = WholeBody(end, tag, stmt->line, &stmt->body);
    soft_ = soft;
    breakable_ = breakable;
    return status;
  }

  Status Macro(int line, Body* body) {
    Advance();
    StmtPtr stmt = New(StmtKind::kMacro, line);
    KVASIR_ASSIGN_OR_RETURN(stmt->text, ExpectName());
    KVASIR_RETURN_IF_ERROR(CheckName(stmt->text, line));
    KVASIR_RETURN_IF_ERROR(Signature(stmt.get()));
    KVASIR_RETURN_IF_ERROR(FunctionBody("endmacro", "macro", stmt.get()));
    body->push_back(std::move(stmt));
    return OkStatus();
  }

  Status CallBlock(int line, Body* body) {
    Advance();
    StmtPtr stmt = New(StmtKind::kCallBlock, line);
    if (IsOp("(")) KVASIR_RETURN_IF_ERROR(Signature(stmt.get()));
    KVASIR_ASSIGN_OR_RETURN(stmt->expr, Expression());
    if (stmt->expr->kind != ExprKind::kCall) return SyntaxError(line, "'call' expects a call of a macro");
    KVASIR_RETURN_IF_ERROR(FunctionBody("endcall", "call", stmt.get()));
    body->push_back(std::move(stmt));
    return OkStatus();
  }

  Status Generation(int line, Body* body) {
    Advance();
    StmtPtr stmt = New(StmtKind::kWith, line);
    KVASIR_RETURN_IF_ERROR(FunctionBody("endgeneration", "generation", stmt.get()));
    body->push_back(std::move(stmt));
    return OkStatus();
  }

  Status Filter(int line, Body* body) {
    Advance();
    StmtPtr stmt = New(StmtKind::kFilterBlock, line);
    const int soft = std::exchange(soft_, 0);
    StatusOr<ExprPtr> filter = Filters(nullptr, true);
    const Status status = filter.ok() ? WholeBody("endfilter", "filter", line, &stmt->body) : filter.status();
    soft_ = soft;
    KVASIR_RETURN_IF_ERROR(status);
    stmt->expr = std::move(*filter);
    body->push_back(std::move(stmt));
    return OkStatus();
  }

  Status With(int line, Body* body) {
    Advance();
    StmtPtr stmt = New(StmtKind::kWith, line);
    while (Current().kind != Tok::kBlockEnd) {
      if (!stmt->targets.empty()) KVASIR_RETURN_IF_ERROR(ExpectOp(","));
      KVASIR_ASSIGN_OR_RETURN(ExprPtr target, AssignTarget({}, false));
      KVASIR_RETURN_IF_ERROR(ExpectOp("="));
      KVASIR_ASSIGN_OR_RETURN(ExprPtr value, Expression());
      stmt->targets.push_back(std::move(target));
      stmt->values.push_back(std::move(value));
    }
    const int soft = std::exchange(soft_, 0);
    const Status status = WholeBody("endwith", "with", line, &stmt->body);
    soft_ = soft;
    KVASIR_RETURN_IF_ERROR(status);
    body->push_back(std::move(stmt));
    return OkStatus();
  }

  Status Print(int line, Body* body) {
    Advance();
    bool first = true;
    while (Current().kind != Tok::kBlockEnd) {
      if (!first) KVASIR_RETURN_IF_ERROR(ExpectOp(","));
      first = false;
      StmtPtr stmt = New(StmtKind::kPrint, line);
      KVASIR_ASSIGN_OR_RETURN(stmt->expr, Expression());
      body->push_back(std::move(stmt));
    }
    return OkStatus();
  }

  Status LoopJump(int line, Body* body) {
    const bool is_break = Advance().text == "break";
    if (breakable_ == 0) return SyntaxError(line, "'{}' outside of a loop", is_break ? "break" : "continue");
    body->push_back(New(is_break ? StmtKind::kBreak : StmtKind::kContinue, line));
    return OkStatus();
  }

  int breakable_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<Template>> ParseTemplate(std::string_view source) {
  if (source.size() > kMaxJinjaSourceBytes) {
    return InvalidArgument("template budget exceeded: the source has {} bytes but the limit is {}", source.size(),
                           kMaxJinjaSourceBytes);
  }
  if (!IsValidUtf8(source)) return InvalidArgument("the template is not valid UTF-8");
  KVASIR_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  auto tmpl = std::make_unique<Template>();
  KVASIR_ASSIGN_OR_RETURN(tmpl->body, Parser(std::move(tokens)).Run());
  KVASIR_RETURN_IF_ERROR(BindNames(tmpl.get()));
  return tmpl;
}

}  // namespace kvasir::jinja
