#include "kernels/status.h"

#include <cstdio>
#include <cstdlib>

namespace kvasir {

void CheckFailed(const char* file, int line, const char* condition, const std::string& detail) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s%s%s\nThis is a bug in Kvasir; please report it with this line.\n", file, line,
               condition, detail.empty() ? "" : ": ", detail.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace kvasir
