// Which processors this process may use, how they are made, and where the threads of a ThreadTeam go. Used by CpuDevice and the
// benchmarks. A file that is missing or makes no sense means "unknown: all alike", never a failure. The root of the file system
// is a parameter, so that tests can make machines up.
//
// What PlaceThreads decides when nobody says how many threads there shall be:
//  * One thread per core where a core has several processors (SMT): its dot-product units and its misses under way are shared, so
//    one thread keeps them busy. Not under a hypervisor: what it says about siblings may be untrue, or change as it moves them;
//    twice a thread too many costs a little, half of the threads costs half.
//  * Performance cores only, where there are slower ones (below 3/4 of the best): every region of a step waits for the last
//    piece, and a slow core's piece is the last one; memory, which limits decoding, is used up by the fast cores. Except where
//    slow cores are so many (2 + 8 in thin laptops) that the pace at least doubles even if all go at the slowest one's.
//  * Never more than the cgroup's CPU quota.
// Threads are held to the chosen processors of one node (not to one processor each: the system may still make way for others)
// when some processors are left free or there are several nodes; neighbours among the workers share a node. When there are fewer
// threads than chosen processors, the system places them: it knows who else is there.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

// "0-3,8,10-11\n" as in /sys: ascending, no overlaps, ids below 65536; an empty list is one. nullopt: not such a list.
std::optional<std::vector<int>> ParseCpuList(std::string_view text);

struct Processor {
  int id = 0;
  int core = 0;      // the same for siblings
  int node = 0;      // of memory
  double speed = 1;  // beside the machine's best
  bool operator==(const Processor&) const = default;
};

struct Topology {
  std::vector<Processor> processors;  // usable ones, by id; at least one
  std::vector<int> memory_nodes;      // of the machine, those with memory
  int quota = 0;                      // CPUs the cgroup allows, rounded up; 0 = no limit
  bool hypervisor = false;            // under one
};

// Of the processors in `usable`. root: "" or where another machine's /sys and /proc lie.
Topology ReadTopology(const std::vector<int>& usable, const std::string& root = "");
// Of this process's.
Topology ReadTopology();

struct Placement {
  int threads = 1;
  std::string reason;                     // why so many, unless it is all there are or what was asked for
  std::vector<std::vector<int>> workers;  // the processors each may run on; empty: wherever the process may
  std::vector<int> nodes;                 // memory nodes to spread large buffers over; empty: leave them to the system
};

// asked: the number of threads, or 0 for the best one.
Placement PlaceThreads(const Topology& topology, int asked);

// CPUs this process may use: the affinity mask, cut by the cgroup's CPU quota (rounded up). At least 1.
int UsableCpus();
// The threads PlaceThreads gives this process when none are asked for.
int DefaultThreads();

// Holds the calling thread to these processors. False: not allowed; nothing changed.
bool BindThread(const std::vector<int>& processors);

}  // namespace kvasir
