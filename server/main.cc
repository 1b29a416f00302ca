// The composition root: the only file that may include every room.
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <new>

#include "bench/engine_bench.h"
#include "bench/kernel_bench.h"
#include "server/cli.h"
#include "server/generate.h"
#include "server/pull_command.h"
#include "server/render_command.h"
#include "server/serve.h"
#include "server/tokenize_command.h"

namespace kvasir {
namespace {

// Exit codes: 0 done, 2 something the user can mend (flag, port, model folder, memory), 70 the engine failed while serving.
int ExitCode(const Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "kvasir: %s\n", Message(status).c_str());
  return status.code() == StatusCode::kInternal || status.code() == StatusCode::kAborted ? 70 : 2;
}

int Main(int argc, char** argv) {
  // Standard output is for answers. serve sets up its own log.
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("", std::make_shared<spdlog::sinks::stderr_sink_mt>()));
  spdlog::set_level(spdlog::level::warn);
  auto line = ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc));
  if (!line.ok()) return ExitCode(line.status());
  for (const std::string& warning : line->warnings) std::fprintf(stderr, "kvasir: %s\n", warning.c_str());
  switch (line->command) {
    case CommandLine::Command::kHelp:
      std::fputs(line->help.c_str(), stdout);
      return 0;
    case CommandLine::Command::kVersion:
      std::printf("kvasir %s\n", KVASIR_VERSION);
      return 0;
    case CommandLine::Command::kServe:
      return ExitCode(RunServe(line->serve));
    case CommandLine::Command::kGenerate:
      return ExitCode(RunGenerate(line->generate));
    case CommandLine::Command::kPull:
      return ExitCode(RunPull(line->pull));
    case CommandLine::Command::kRender:
      return ExitCode(RunRender(line->render, std::cin, std::cout));
    case CommandLine::Command::kTokenize:
      return ExitCode(RunTokenize(line->tokenize, std::cin, std::cout));
    case CommandLine::Command::kBench:
      return ExitCode(line->bench.what == "kernels" ? RunBenchKernels(line->bench) : RunBenchEngine(line->bench));
  }
  return 2;
}

}  // namespace
}  // namespace kvasir

int main(int argc, char** argv) {
  // Libraries below may throw (out of memory, a broken locale); none of it should end in abort without a word.
  try {
    return kvasir::Main(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("kvasir: out of memory: use a smaller model, --max-model-len or --kv-cache-memory-bytes\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kvasir: %s\n", error.what());
  }
  return 2;
}
