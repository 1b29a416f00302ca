// Splits a Jinja template into tokens, with the white-space rules of trim_blocks and lstrip_blocks applied to its text.
//
// Used by the Jinja parser only. The rules follow Jinja2's lexer: `-` strips white space beside a tag, `+` keeps it, a newline
// after a block tag is dropped, blanks before a block tag at the start of a line are dropped, one newline at the end of the file
// is dropped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "models/jinja_value.h"

namespace kvasir::jinja {

enum class Tok : uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  Tok kind = Tok::kEnd;
  int line = 1;
  std::string text;  // data, name, decoded string, or the operator's characters
  Int integer = 0;
  double number = 0;
};

StatusOr<std::vector<Token>> Tokenize(std::string_view source);

// Every parse error looks like this: "line 3: unexpected '}'".
template <typename... Args>
Status SyntaxError(int line, fmt::format_string<Args...> format, Args&&... args) {
  return InvalidArgument("line {}: {}", line, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace kvasir::jinja
