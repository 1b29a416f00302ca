// The proof of the tester: memory and scheduler are compiled once more with known bugs behind a switch, and the simulator must
// find each within 2,000 seeds. A bug may also show as a failed check (abort); so each runs in a child process.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "gtest/gtest.h"
#include "memory/mutations.h"
#include "spdlog/spdlog.h"
#include "tests/scheduler/simulator.h"

namespace kvasir {
namespace {

constexpr uint64_t kSeeds = 2000;
constexpr int kFound = 3, kNotFound = 4;

struct NamedMutation {
  Mutation mutation;
  const char* name;
};

constexpr NamedMutation kMutations[] = {
    {Mutation::kPublishEarly, "PublishEarly"},
    {Mutation::kPublishTooFar, "PublishTooFar"},
    {Mutation::kDropSaltOnMatch, "DropSaltOnMatch"},
    {Mutation::kMatchEverything, "MatchEverything"},
    {Mutation::kLeakOnCancel, "LeakOnCancel"},
    {Mutation::kSkipCopy, "SkipCopy"},
    {Mutation::kWriteShared, "WriteShared"},
    {Mutation::kCounterFromStep, "CounterFromStep"},
    {Mutation::kStreamZero, "StreamZero"},
    {Mutation::kForgetEnd, "ForgetEnd"},
    {Mutation::kResumeOffByOne, "ResumeOffByOne"},
    {Mutation::kEndTwice, "EndTwice"},
    {Mutation::kRepeatPromptEvents, "RepeatPromptEvents"},
    {Mutation::kForgetRetry, "ForgetRetry"},
    {Mutation::kPinWithoutPromise, "PinWithoutPromise"},
    {Mutation::kLatestFirst, "LatestFirst"},
    {Mutation::kKeepPending, "KeepPending"},
    {Mutation::kPendingUncounted, "PendingUncounted"},
    {Mutation::kComputeTooSoon, "ComputeTooSoon"},
    {Mutation::kFreeTooSoon, "FreeTooSoon"},
    {Mutation::kAdmitBeside, "AdmitBeside"},
    {Mutation::kTrimTooFar, "TrimTooFar"},
    {Mutation::kTrimForgets, "TrimForgets"},
    {Mutation::kMatchWithoutWindow, "MatchWithoutWindow"},
    {Mutation::kForgetToUnpublish, "ForgetToUnpublish"},
    {Mutation::kCopyTooLittle, "CopyTooLittle"},
    {Mutation::kForgetMove, "ForgetMove"},
    {Mutation::kCopyUnderStamp, "CopyUnderStamp"},
    {Mutation::kPublishUnderStamp, "PublishUnderStamp"},
    {Mutation::kForkStamp, "ForkStamp"},
    {Mutation::kReuseStamp, "ReuseStamp"},
};
static_assert(std::size(kMutations) + 1 == size_t(Mutation::kCount), "every mutation is tried");

class SimulationMutationTest : public testing::TestWithParam<NamedMutation> {};

TEST_P(SimulationMutationTest, IsFound) {
  int progress[2];
  ASSERT_EQ(pipe(progress), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    spdlog::set_level(spdlog::level::off);
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(9);
    active_mutation = GetParam().mutation;
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      [[maybe_unused]] const auto told = write(progress[1], &seed, sizeof(seed));
      if (!RunSimulation(seed).failure.empty()) _exit(kFound);
    }
    _exit(kNotFound);
  }
  close(progress[1]);
  uint64_t seed = 0, last = 0;
  while (read(progress[0], &seed, sizeof(seed)) == ssize_t(sizeof(seed))) last = seed;
  close(progress[0]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  const bool found = WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != kNotFound);
  EXPECT_TRUE(found) << GetParam().name << " was not found in " << kSeeds << " seeds";
  std::printf("%s: found by seed %llu%s\n", GetParam().name, (unsigned long long)last,
              WIFSIGNALED(status) ? " (a check failed)" : "");
}

INSTANTIATE_TEST_SUITE_P(All, SimulationMutationTest, testing::ValuesIn(kMutations),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SimulationMutationControl, WithoutAMutationNothingIsFound) {
  spdlog::set_level(spdlog::level::off);
  for (uint64_t seed = 1; seed <= 200; ++seed) EXPECT_EQ(RunSimulation(seed).failure, "") << seed;
}

}  // namespace
}  // namespace kvasir
