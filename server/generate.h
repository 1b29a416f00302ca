// kvasir generate: one prompt on the terminal, streaming, through the same engine the server runs.
#pragma once

#include "kernels/status.h"
#include "server/cli.h"

namespace kvasir {

// Prints to standard output; progress and errors go to standard error.
Status RunGenerate(const GenerateOptions& options);

// A one-line progress bar on standard error, only when that is a terminal. True: go on.
bool ShowLoadProgress(double fraction, std::string_view what);

}  // namespace kvasir
