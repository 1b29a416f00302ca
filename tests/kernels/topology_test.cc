#include "kernels/cpu/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <thread>

namespace kvasir {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// A made-up machine's /sys and /proc.
class Machine {
 public:
  Machine() {
    std::string folder = (std::filesystem::temp_directory_path() / "kvasir-topology-XXXXXX").string();
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    root_ = folder;
  }
  ~Machine() { std::filesystem::remove_all(root_); }

  Machine& File(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
    return *this;
  }
  Machine& Cpu(int id, const std::string& file, const std::string& text) {
    return File(fmt::format("/sys/devices/system/cpu/cpu{}/{}", id, file), text);
  }
  Machine& Node(int id, const std::string& cpus) {
    return File(fmt::format("/sys/devices/system/node/node{}/cpulist", id), cpus + "\n");
  }
  Topology Read(int processors) const {
    std::vector<int> usable(processors);
    std::iota(usable.begin(), usable.end(), 0);
    return ReadTopology(usable, root_);
  }
  Placement Place(int processors, int asked = 0) const { return PlaceThreads(Read(processors), asked); }
  const std::string& root() const { return root_; }

 private:
  std::string root_;
};

std::vector<int> UpTo(int first, int last) {
  std::vector<int> ids(last - first + 1);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

// Processors 0 to n/2 - 1 are the first ones of their cores, the others their siblings.
void PairUp(Machine& machine, int processors) {
  for (int id = 0; id < processors; ++id) {
    const int core = id % (processors / 2);
    machine.Cpu(id, "topology/thread_siblings_list", fmt::format("{},{}\n", core, core + processors / 2));
  }
}

TEST(ParseCpuList, ReadsWhatTheSystemWrites) {
  EXPECT_EQ(ParseCpuList("0\n"), UpTo(0, 0));
  EXPECT_EQ(ParseCpuList("0-3,8,10-11\n"), (std::vector<int>{0, 1, 2, 3, 8, 10, 11}));
  EXPECT_EQ(ParseCpuList("65535"), UpTo(65535, 65535));
  EXPECT_EQ(ParseCpuList(""), std::vector<int>());
  EXPECT_EQ(ParseCpuList("\n"), std::vector<int>());
}

TEST(ParseCpuList, RefusesEverythingElse) {
  for (const char* text : {" ",       "a",   "0,",  ",0",   "0,,1", "0-", "-1",    "0--1",  "3-1",     "1,1",
                           "0-3,2",   "2,1", "0 1", "0, 1", " 0",   "0 ", "0\n\n", "65536", "0-65536", "99999999999999999999",
                           "0-3:1/2", "+1",  "0x1", "1.5"}) {
    EXPECT_EQ(ParseCpuList(text), std::nullopt) << "'" << text << "'";
  }
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  for (int i = 0; i < 20000; ++i) {
    std::string text(rng() % 12, ' ');
    for (char& c : text) c = "0123456789,-\n "[rng() % 14];
    const auto ids = ParseCpuList(text);
    if (!ids) continue;
    for (size_t j = 1; j < ids->size(); ++j) ASSERT_LT((*ids)[j - 1], (*ids)[j]) << text;
  }
}

TEST(Topology, NothingKnownMeansAllAlike) {
  const Machine machine;
  const Topology topology = machine.Read(3);
  EXPECT_THAT(topology.processors, ElementsAre(Processor{0, 0}, Processor{1, 1}, Processor{2, 2}));
  EXPECT_EQ(topology.quota, 0);
  EXPECT_FALSE(topology.hypervisor);
  const Placement placement = machine.Place(3);
  EXPECT_EQ(placement.threads, 3);
  EXPECT_EQ(placement.reason, "");
  EXPECT_THAT(placement.workers, IsEmpty());
  EXPECT_THAT(placement.nodes, IsEmpty());
}

TEST(Topology, NonsenseMeansAllAlike) {
  for (const char* nonsense : {"", "\n", "garbage\n", "-5\n", "0\n", "7-3\n", "99999999999999999999999\n", "5,6\n"}) {
    Machine machine;
    for (int id = 0; id < 4; ++id) {
      for (const char* file : {"topology/thread_siblings_list", "topology/physical_package_id", "cpu_capacity",
                               "acpi_cppc/highest_perf", "cpufreq/cpuinfo_max_freq"}) {
        machine.Cpu(id, file, id == 0 && nonsense[0] == '0' ? "x" : nonsense);
      }
      machine.Cpu(id, "topology/core_id", "0\n");
    }
    machine.File("/sys/devices/system/node/online", "0-1\n").Node(0, nonsense).Node(1, nonsense);
    machine.File("/sys/devices/cpu_core/cpus", nonsense).File("/sys/devices/cpu_atom/cpus", nonsense);
    machine.File("/sys/fs/cgroup/cpu.max", nonsense).File("/proc/self/cgroup", nonsense).File("/proc/cpuinfo", nonsense);
    const Placement placement = machine.Place(4);
    if (nonsense[0] != '0') {
      EXPECT_EQ(placement.threads, 4) << nonsense;
      EXPECT_EQ(placement.reason, "") << nonsense;
    }
    EXPECT_THAT(placement.nodes, IsEmpty()) << nonsense;
  }
}

TEST(Topology, OneThreadForEachCore) {
  Machine machine;
  PairUp(machine, 8);
  const Placement placement = machine.Place(8);
  EXPECT_EQ(placement.threads, 4);
  EXPECT_EQ(placement.reason, "one per core of 8 CPUs");
  EXPECT_THAT(placement.workers, SizeIs(4));
  for (const auto& worker : placement.workers) EXPECT_EQ(worker, UpTo(0, 3));
  // Of the siblings only one is usable.
  EXPECT_EQ(PlaceThreads(ReadTopology({2, 5}, machine.root()), 0).threads, 2);
  EXPECT_EQ(PlaceThreads(ReadTopology({2, 6}, machine.root()), 0).threads, 1);
}

TEST(Topology, CoresByNumberWhereSiblingsAreNotListed) {
  Machine machine;
  for (int id = 0; id < 8; ++id) {  // two packages of two cores of two
    machine.Cpu(id, "topology/core_id", fmt::format("{}\n", id / 2 % 2));
    machine.Cpu(id, "topology/physical_package_id", fmt::format("{}\n", id / 4));
  }
  EXPECT_EQ(machine.Place(8).threads, 4);
  machine.Cpu(1, "topology/die_id", "1\n");  // a core of another die now
  EXPECT_EQ(machine.Place(8).threads, 5);
}

TEST(Topology, SiblingsOfVirtualMachinesAreNotBelieved) {
  Machine machine;
  PairUp(machine, 2);
  EXPECT_EQ(machine.Place(2).threads, 1);
  machine.File("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vme avx512f hypervisor\n");
  EXPECT_EQ(machine.Place(2).threads, 2);
  EXPECT_THAT(machine.Place(2).workers, IsEmpty());
  machine.File("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu nohypervisor hypervisors\n");
  EXPECT_EQ(machine.Place(2).threads, 1);
  machine.File("/sys/class/dmi/id/sys_vendor", "QEMU\n").File("/proc/cpuinfo", "processor : 0\n");
  EXPECT_EQ(machine.Place(2).threads, 2);
}

// 8 performance cores of two, 4 efficiency cores: 20 processors.
TEST(Topology, PerformanceCoresOnly) {
  Machine machine;
  for (int id = 0; id < 20; ++id) {
    const int first = id / 2 * 2;
    machine.Cpu(id, "topology/thread_siblings_list",
                id < 16 ? fmt::format("{}-{}\n", first, first + 1) : fmt::format("{}\n", id));
  }
  machine.File("/sys/devices/cpu_core/cpus", "0-15\n").File("/sys/devices/cpu_atom/cpus", "16-19\n");
  const Placement placement = machine.Place(20);
  EXPECT_EQ(placement.threads, 8);
  EXPECT_EQ(placement.reason, "one per performance core of 20 CPUs");
  ASSERT_THAT(placement.workers, SizeIs(8));
  EXPECT_THAT(placement.workers[3], ElementsAre(0, 2, 4, 6, 8, 10, 12, 14));
  for (int id = 0; id < 20; ++id) machine.Cpu(id, "cpu_capacity", id < 16 ? "1024\n" : "800\n");  // the list knows better
  EXPECT_EQ(machine.Place(20).threads, 8);
  EXPECT_EQ(PlaceThreads(ReadTopology({16, 17, 18, 19}, machine.root()), 0).threads, 4);  // all we have
}

TEST(Topology, SpeedsByCapacityFirmwareOrClock) {
  for (const auto& [file, fast, slow] : {std::tuple{"cpu_capacity", "1024\n", "446\n"},
                                         {"acpi_cppc/highest_perf", "65\n", "42\n"},
                                         {"cpufreq/cpuinfo_max_freq", "5000000\n", "3400000\n"}}) {
    Machine machine;
    for (int id = 0; id < 8; ++id) machine.Cpu(id, file, id < 4 ? fast : slow);
    for (int id = 0; id < 8; ++id) {
      if (std::string_view(file) != "cpu_capacity") machine.Cpu(id, "cpu_capacity", "1024\n");  // says nothing
    }
    EXPECT_EQ(machine.Place(8).threads, 4) << file;
    EXPECT_EQ(machine.Place(8).reason, "the performance cores of 8 CPUs") << file;
    machine.Cpu(5, file, "");  // half of the truth is none
    EXPECT_EQ(machine.Place(8).threads, 8) << file;
  }
}

TEST(Topology, CoresThatHardlyDifferAreAlike) {
  Machine machine;  // preferred cores of one kind
  for (int id = 0; id < 8; ++id) machine.Cpu(id, "acpi_cppc/highest_perf", fmt::format("{}\n", 236 - 5 * id));
  EXPECT_EQ(machine.Place(8).threads, 8);
  EXPECT_THAT(machine.Place(8).workers, IsEmpty());
}

TEST(Topology, ManySlowCoresAreNotLeftOut) {
  for (const auto& [fast, slow, threads] : {std::tuple{2, 8, 10}, {8, 16, 8}, {6, 8, 6}, {4, 4, 4}}) {
    Machine machine;
    for (int id = 0; id < fast + slow; ++id) machine.Cpu(id, "cpu_capacity", id < fast ? "1000\n" : "600\n");
    EXPECT_EQ(machine.Place(fast + slow).threads, threads) << fast << " + " << slow;
  }
}

TEST(Topology, QuotasOfTheCgroupAndThoseAround) {
  const auto threads = [](const std::string& cgroup, const std::string& file, const std::string& text) {
    return Machine().File("/proc/self/cgroup", cgroup).File(file, text).Place(16).threads;
  };
  EXPECT_EQ(threads("0::/\n", "/sys/fs/cgroup/cpu.max", "150000 100000\n"), 2);
  EXPECT_EQ(threads("0::/\n", "/sys/fs/cgroup/cpu.max", "max 100000\n"), 16);
  EXPECT_EQ(threads("0::/\n", "/sys/fs/cgroup/cpu.max", "100 100000\n"), 1);
  EXPECT_EQ(threads("0::/\n", "/sys/fs/cgroup/cpu.max", "9000000 100000\n"), 16);
  EXPECT_EQ(threads("0::/\n", "/sys/fs/cgroup/cpu.max", "5 0\n"), 16);
  EXPECT_EQ(threads("0::/a/b\n", "/sys/fs/cgroup/a/b/cpu.max", "300000 100000\n"), 3);
  EXPECT_EQ(threads("0::/a/b\n", "/sys/fs/cgroup/a/cpu.max", "400000 100000\n"), 4);
  EXPECT_EQ(threads("0::/a/../b\n", "/sys/fs/cgroup/b/cpu.max", "400000 100000\n"), 16);
  Machine both;
  both.File("/proc/self/cgroup", "0::/a\n").File("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  both.File("/sys/fs/cgroup/a/cpu.max", "500000 100000\n");
  EXPECT_EQ(both.Place(16).threads, 2);
  EXPECT_EQ(both.Place(16).reason, "the cgroup's CPU quota, of 16 CPUs");
  EXPECT_THAT(both.Place(16).workers, IsEmpty());
  EXPECT_EQ(both.Place(16, 5).threads, 5);
  Machine first;  // version 1
  first.File("/proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n").File("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "250000\n");
  first.File("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n").File("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(first.Place(16).threads, 3);
}

TEST(Topology, AskedForIsGiven) {
  Machine machine;
  PairUp(machine, 8);
  for (const int asked : {1, 3, 4, 5, 8, 100}) {
    const Placement placement = machine.Place(8, asked);
    EXPECT_EQ(placement.threads, asked);
    EXPECT_EQ(placement.reason, "");
    EXPECT_THAT(placement.workers, SizeIs(asked == 4 ? 4 : 0)) << asked;  // one for each core: siblings stay apart
  }
}

TEST(Topology, WorkersStayOnTheirNodeAndLargeBuffersOnAll) {
  Machine machine;
  machine.File("/sys/devices/system/node/online", "0,2\n").Node(0, "0-1,4-5").Node(2, "2-3,6-7");
  PairUp(machine, 8);
  Placement placement = machine.Place(8);
  EXPECT_EQ(placement.threads, 4);
  EXPECT_THAT(placement.workers, ElementsAre(UpTo(0, 1), UpTo(0, 1), UpTo(2, 3), UpTo(2, 3)));
  EXPECT_THAT(placement.nodes, ElementsAre(0, 2));
  placement = machine.Place(8, 8);
  const std::vector<int> first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  EXPECT_THAT(placement.workers, ElementsAre(first, first, first, first, second, second, second, second));
  placement = machine.Place(8, 2);  // the system chooses where, so memory is everywhere
  EXPECT_THAT(placement.workers, IsEmpty());
  EXPECT_THAT(placement.nodes, ElementsAre(0, 2));
  // One node is all we may use.
  placement = PlaceThreads(ReadTopology({2, 3, 6, 7}, machine.root()), 0);
  EXPECT_EQ(placement.threads, 2);
  EXPECT_THAT(placement.workers, ElementsAre(UpTo(2, 3), UpTo(2, 3)));
  EXPECT_THAT(placement.nodes, IsEmpty());
  // A node without memory.
  machine.File("/sys/devices/system/node/has_memory", "0\n");
  EXPECT_THAT(machine.Place(8).nodes, IsEmpty());
  EXPECT_THAT(machine.Place(8).workers, SizeIs(4));
  // A processor of no node.
  EXPECT_THAT(machine.Place(9).nodes, IsEmpty());
}

TEST(Topology, OfThisMachine) {
  const Topology topology = ReadTopology();
  ASSERT_FALSE(topology.processors.empty());
  EXPECT_GE(UsableCpus(), 1);
  EXPECT_LE(UsableCpus(), int(std::thread::hardware_concurrency()));
  EXPECT_GE(DefaultThreads(), 1);
  EXPECT_LE(DefaultThreads(), UsableCpus());
  if (topology.hypervisor) {
    EXPECT_EQ(DefaultThreads(), UsableCpus());
  }
  std::thread([&] {
    EXPECT_FALSE(BindThread({}));
    EXPECT_FALSE(BindThread({60000}));
    EXPECT_EQ(ReadTopology().processors.size(), topology.processors.size());
    EXPECT_TRUE(BindThread({topology.processors.back().id}));
    EXPECT_EQ(ReadTopology().processors.size(), 1u);
  }).join();
}

}  // namespace
}  // namespace kvasir
