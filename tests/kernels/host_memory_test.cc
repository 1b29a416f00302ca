#include "kernels/cpu/host_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace kvasir {
namespace {

using testing::HasSubstr;

constexpr size_t kLarge = size_t{8} << 20;

// The memory policy of the page at `address`; -1 where that cannot be asked.
int PolicyOf(void* address) {
  int mode = -1;
  constexpr unsigned long kOfAddress = 2;  // MPOL_F_ADDR
  return syscall(SYS_get_mempolicy, &mode, nullptr, 0, address, kOfAddress) == 0 ? mode : -1;
}

void* Large(HostMemory& memory) {
  const StatusOr<void*> buffer = memory.Allocate(kLarge, "a test", /*huge_pages=*/true);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return *buffer;
}

TEST(HostMemory, LeavesPagesToTheSystemUnlessSeveralNodesAreNamed) {
  for (const std::vector<int>& nodes : {std::vector<int>{}, std::vector<int>{0}}) {
    HostMemory memory;
    memory.InterleaveOver(nodes);
    void* const buffer = Large(memory);
    EXPECT_LE(PolicyOf(buffer), 0);  // the default, if it can be asked for
    EXPECT_EQ(memory.interleave_failure(), "");
  }
}

TEST(HostMemory, DealsLargeBuffersOutOverNodes) {
  HostMemory memory;
  memory.InterleaveOver({0, 0});  // this machine may have no other; the system is asked all the same
  void* const buffer = Large(memory);
  if (memory.interleave_failure().empty()) {
    EXPECT_EQ(PolicyOf(buffer), 3);  // MPOL_INTERLEAVE
  } else {
    EXPECT_THAT(memory.interleave_failure(), testing::AnyOf(HasSubstr("not permitted"), HasSubstr("not implemented")));
  }
  std::memset(buffer, 1, kLarge);
  const StatusOr<void*> small = memory.Allocate(size_t{1} << 20, "a small one", false);
  ASSERT_TRUE(small.ok());
  EXPECT_LE(PolicyOf(*small), 0);
}

TEST(HostMemory, GoesOnWithoutNodesThatAreNotThere) {
  HostMemory memory;
  memory.InterleaveOver({1022, 1023});
  void* const buffer = Large(memory);
  EXPECT_NE(memory.interleave_failure(), "");
  const std::string first = memory.interleave_failure();
  std::memset(buffer, 1, kLarge);
  memory.Free(buffer);
  std::memset(Large(memory), 1, kLarge);
  EXPECT_EQ(memory.interleave_failure(), first);
}

}  // namespace
}  // namespace kvasir
