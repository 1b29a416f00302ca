#include "kernels/cpu/topology.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <set>
#include <thread>
#include <tuple>

namespace kvasir {
namespace {

constexpr int kMaxId = 65536;         // of processors and nodes
constexpr double kSlow = 0.75;        // of the best one's speed
constexpr double kUnknownSlow = 0.5;  // of cores that are only known to be the slow ones
constexpr double kWorthIt = 2;        // how much faster slow cores must make the whole

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::string text(4096 * 4, '\0');
  if (!file.read(text.data(), std::streamsize(text.size())) && !file.eof()) return std::nullopt;
  text.resize(size_t(file.gcount()));
  if (text.empty() || file.good()) return std::nullopt;  // nothing, or longer than anything asked for here
  return text;
}

std::optional<std::vector<int>> ReadList(const std::string& path) {
  const std::optional<std::string> text = ReadFile(path);
  return text ? ParseCpuList(*text) : std::nullopt;
}

// A number that fills the file but for white space after it.
std::optional<int64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> text = ReadFile(path);
  if (!text) return std::nullopt;
  const char* const end = text->data() + (text->find_last_not_of(" \n") + 1);
  int64_t value = 0;
  const auto [rest, error] = std::from_chars(text->data(), end, value);
  if (error != std::errc() || rest != end) return std::nullopt;
  return value;
}

std::string CpuFolder(const std::string& root, int id) {
  return fmt::format("{}/sys/devices/system/cpu/cpu{}", root, id);
}

// Siblings have one core number: their least id. Without any, the processor is a core of its own.
void FindCores(const std::string& root, std::vector<Processor>& processors) {
  std::map<std::tuple<int64_t, int64_t, int64_t>, int> by_number;
  for (Processor& processor : processors) {
    const std::string folder = CpuFolder(root, processor.id) + "/topology/";
    processor.core = processor.id;
    const auto siblings = ReadList(folder + "thread_siblings_list");
    if (siblings && std::binary_search(siblings->begin(), siblings->end(), processor.id)) {
      processor.core = siblings->front();
      continue;
    }
    const auto core = ReadNumber(folder + "core_id"), package = ReadNumber(folder + "physical_package_id");
    if (!core || !package || *core < 0 || *package < 0) continue;
    const int64_t die = ReadNumber(folder + "die_id").value_or(0);
    processor.core = by_number.try_emplace({*package, die, *core}, processor.id).first->second;
  }
}

void FindNodes(const std::string& root, Topology& topology) {
  const std::string folder = root + "/sys/devices/system/node/";
  const auto online = ReadList(folder + "online");
  if (!online) return;
  std::map<int, int> node_of;
  for (const int node : *online) {
    const auto cpus = ReadList(fmt::format("{}node{}/cpulist", folder, node));
    if (!cpus) return;  // half of the truth is worse than none
    for (const int cpu : *cpus) node_of.emplace(cpu, node);
  }
  for (const Processor& processor : topology.processors) {
    if (!node_of.contains(processor.id)) return;
  }
  for (Processor& processor : topology.processors) processor.node = node_of[processor.id];
  topology.memory_nodes = ReadList(folder + "has_memory").value_or(*online);
}

// What `number` says of each processor, beside the best one's; nothing when it does not know all of them, or no difference.
template <typename F>
bool SpeedsFrom(std::vector<Processor>& processors, F number) {
  std::vector<double> numbers;
  for (const Processor& processor : processors) numbers.push_back(double(number(processor.id).value_or(0)));
  const auto [least, most] = std::minmax_element(numbers.begin(), numbers.end());
  if (*least <= 0 || *least == *most) return false;
  for (size_t i = 0; i < processors.size(); ++i) processors[i].speed = numbers[i] / *most;
  return true;
}

// Newer systems know capacities (Arm, and Intel's hybrids); else the firmware's performance levels or the highest clock. Intel's
// hybrids also list their classes, whose clocks differ less than their speeds.
void FindSpeeds(const std::string& root, std::vector<Processor>& processors) {
  for (const char* file : {"/cpu_capacity", "/acpi_cppc/highest_perf", "/cpufreq/cpuinfo_max_freq"}) {
    if (SpeedsFrom(processors, [&](int id) { return ReadNumber(CpuFolder(root, id) + file); })) break;
  }
  const auto fast = ReadList(root + "/sys/devices/cpu_core/cpus"), slow = ReadList(root + "/sys/devices/cpu_atom/cpus");
  if (!fast || !slow) return;
  const auto is_slow = [&](const Processor& p) { return std::binary_search(slow->begin(), slow->end(), p.id); };
  const size_t count = size_t(std::count_if(processors.begin(), processors.end(), is_slow));
  if (count == processors.size()) return;  // only slow ones are usable
  for (Processor& processor : processors) {
    if (!is_slow(processor)) {
      processor.speed = 1;
    } else if (processor.speed >= kSlow) {
      processor.speed = kUnknownSlow;
    }
  }
}

bool UnderHypervisor(const std::string& root) {
  std::ifstream info(root + "/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("flags")) return (line + ' ').find(" hypervisor ") != std::string::npos;
  }
  // Not on Arm, where firmware tells by its maker.
  const std::string vendor = ReadFile(root + "/sys/class/dmi/id/sys_vendor").value_or("");
  for (const char* maker : {"QEMU", "Amazon EC2", "Google", "VMware", "Microsoft", "Xen", "KVM"}) {
    if (vendor.starts_with(maker)) return true;
  }
  return false;
}

// The quota of one cgroup in CPUs; 0: none.
double QuotaOf(const std::string& folder, bool version_2) {
  double quota = 0, period = 0;
  if (version_2) {
    std::ifstream file(folder + "/cpu.max");
    if (!(file >> quota >> period)) return 0;  // "max" is no number
  } else {
    std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
    if (!(quota_file >> quota) || !(period_file >> period)) return 0;
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

// The least quota of this process's cgroup and those it lies in. In a container they usually end at its own, seen as the root.
int CgroupQuota(const std::string& root) {
  double least = 0;
  const auto look = [&](const std::string& mount, std::string path, bool version_2) {
    while (true) {
      if (path == "/") path.clear();
      const double quota = QuotaOf(root + mount + path, version_2);
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      if (path.empty()) return;
      path.erase(std::min(path.size(), path.rfind('/')));
    }
  };
  look("/sys/fs/cgroup", "", true);
  look("/sys/fs/cgroup/cpu", "", false);
  std::ifstream file(root + "/proc/self/cgroup");  // "0::/path", or "4:cpu,cpuacct:/path"
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", std::string_view(line).substr(first + 1, second - first - 1));
    const std::string path = line.substr(second + 1);
    if (!path.starts_with('/') || path.find("/..") != std::string::npos) continue;  // of a cgroup we cannot see
    if (controllers == ",,") look("/sys/fs/cgroup", path, true);
    if (controllers.find(",cpu,") != std::string::npos) look("/sys/fs/cgroup/cpu", path, false);
  }
  if (least == 0) return 0;
  return int(std::clamp(least + 0.999, 1.0, double(kMaxId)));
}

std::vector<int> AffinityMask() {
  for (int size = 1024; size <= kMaxId; size *= 4) {
    cpu_set_t* const set = CPU_ALLOC(size);
    const size_t bytes = CPU_ALLOC_SIZE(size);
    std::vector<int> ids;
    if (sched_getaffinity(0, bytes, set) == 0) {
      for (int id = 0; id < size; ++id) {
        if (CPU_ISSET_S(id, bytes, set)) ids.push_back(id);
      }
    }
    CPU_FREE(set);
    if (!ids.empty()) return ids;  // else the mask is longer
  }
  std::vector<int> ids(std::max(1u, std::thread::hardware_concurrency()));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = int(i);
  return ids;
}

// One processor of each core, the first.
std::vector<Processor> OnePerCore(const std::vector<Processor>& processors) {
  std::vector<Processor> chosen;
  std::set<int> cores;
  for (const Processor& processor : processors) {
    if (cores.insert(processor.core).second) chosen.push_back(processor);
  }
  return chosen;
}

// Without the slow ones, unless those are too many to leave.
std::vector<Processor> WithoutSlow(const std::vector<Processor>& processors) {
  std::vector<Processor> fast;
  double slowest = 1;
  for (const Processor& processor : processors) {
    slowest = std::min(slowest, processor.speed);
    if (processor.speed >= kSlow) fast.push_back(processor);
  }
  if (fast.empty() || double(processors.size()) * slowest >= kWorthIt * double(fast.size())) return processors;
  return fast;
}

std::vector<int> NodesOf(const std::vector<Processor>& processors) {
  std::set<int> nodes;
  for (const Processor& processor : processors) nodes.insert(processor.node);
  return {nodes.begin(), nodes.end()};
}

}  // namespace

std::optional<std::vector<int>> ParseCpuList(std::string_view text) {
  if (text.ends_with('\n')) text.remove_suffix(1);
  std::vector<int> ids;
  const auto number = [&](int* value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
    if (error != std::errc() || *value < 0 || *value >= kMaxId || text.front() == '-') return false;
    text.remove_prefix(size_t(end - text.data()));
    return true;
  };
  while (!text.empty()) {
    int first = 0, last = 0;
    if (!number(&first)) return std::nullopt;
    last = first;
    if (text.starts_with('-')) {
      text.remove_prefix(1);
      if (text.empty() || !number(&last)) return std::nullopt;
    }
    if (last < first || (!ids.empty() && first <= ids.back())) return std::nullopt;
    for (int id = first; id <= last; ++id) ids.push_back(id);
    if (text.empty()) break;
    if (!text.starts_with(',') || text.size() == 1) return std::nullopt;
    text.remove_prefix(1);
  }
  return ids;
}

Topology ReadTopology(const std::vector<int>& usable, const std::string& root) {
  Topology topology;
  for (const int id : usable) topology.processors.push_back({.id = id, .core = id});
  FindCores(root, topology.processors);
  FindNodes(root, topology);
  FindSpeeds(root, topology.processors);
  topology.quota = CgroupQuota(root);
  topology.hypervisor = UnderHypervisor(root);
  return topology;
}

Topology ReadTopology() {
  return ReadTopology(AffinityMask());
}

Placement PlaceThreads(const Topology& topology, int asked) {
  const int all = int(topology.processors.size());
  std::vector<Processor> chosen = topology.hypervisor ? topology.processors : OnePerCore(topology.processors);
  const bool one_per_core = int(chosen.size()) < all;
  const size_t cores = chosen.size();
  chosen = WithoutSlow(chosen);
  const bool fast_only = chosen.size() < cores;

  Placement placement;
  placement.threads = asked > 0 ? asked : int(chosen.size());
  if (asked > int(chosen.size()) && asked <= all) chosen = topology.processors;
  if (asked == 0 && topology.quota > 0 && topology.quota < placement.threads) {
    placement.threads = topology.quota;
    placement.reason = fmt::format("the cgroup's CPU quota, of {} CPUs", all);
  } else if (asked == 0 && (one_per_core || fast_only)) {
    placement.reason = fmt::format("{} {}core{} of {} CPUs", one_per_core ? "one per" : "the", fast_only ? "performance " : "",
                                   one_per_core ? "" : "s", all);
  }
  const std::vector<int> nodes = NodesOf(chosen);
  if (nodes.size() > 1) {
    std::set_intersection(nodes.begin(), nodes.end(), topology.memory_nodes.begin(), topology.memory_nodes.end(),
                          std::back_inserter(placement.nodes));
    if (placement.nodes.size() < 2) placement.nodes.clear();
  }
  if (placement.threads != int(chosen.size()) || (nodes.size() == 1 && int(chosen.size()) == all)) return placement;
  for (const int node : nodes) {
    std::vector<int> processors;
    for (const Processor& processor : chosen) {
      if (processor.node == node) processors.push_back(processor.id);
    }
    placement.workers.insert(placement.workers.end(), processors.size(), processors);
  }
  return placement;
}

int UsableCpus() {
  const int cpus = int(AffinityMask().size()), quota = CgroupQuota("");
  return quota > 0 ? std::min(cpus, quota) : cpus;
}

int DefaultThreads() {
  return PlaceThreads(ReadTopology(), 0).threads;
}

bool BindThread(const std::vector<int>& processors) {
  if (processors.empty()) return false;
  const int size = *std::max_element(processors.begin(), processors.end()) + 1;
  cpu_set_t* const set = CPU_ALLOC(size);
  const size_t bytes = CPU_ALLOC_SIZE(size);
  CPU_ZERO_S(bytes, set);
  for (const int id : processors) CPU_SET_S(id, bytes, set);
  const bool bound = sched_setaffinity(0, bytes, set) == 0;
  CPU_FREE(set);
  return bound;
}

}  // namespace kvasir
