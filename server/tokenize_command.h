// kvasir tokenize: a model's tokenizer on the command line, for looking at ids and for comparing with other tokenizers. Needs
// only the tokenizer files of a model folder; no config.json, no weights.
#pragma once

#include <iosfwd>
#include <string>
#include <string_view>

#include "kernels/status.h"
#include "models/tokenizer.h"
#include "server/cli.h"

namespace kvasir {

// One JSON object to another, without a newline. {"text", "add_special_tokens" (true)} gives {"ids", "pieces"}, the pieces as the
// vocabulary writes them; with `decode`, {"ids", "skip_special_tokens" (false)} gives {"text"}. Anything else gives {"error"}.
std::string TokenizeJsonLine(const Tokenizer& tokenizer, std::string_view line, bool decode);

// Answers every line of `in` with a line on `out`, each as soon as it is read. Empty lines are skipped.
Status RunTokenize(const TokenizeOptions& options, std::istream& in, std::ostream& out);

}  // namespace kvasir
