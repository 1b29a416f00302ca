#include "kernels/cuda/graphs.h"

#include <algorithm>

namespace kvasir {

bool StepGraphs::Replay(std::span<const int64_t> shape) {
  KVASIR_CHECK(recording_ == nullptr, "a step begins while another one is recorded");
  if (!enabled_ || shape.empty() || !context_.status().ok()) return false;
  if (generation_ != context_.generation()) {
    Clear();
    generation_ = context_.generation();
  }
  shape_.assign(shape.begin(), shape.end());
  auto found = graphs_.find(shape_);
  if (found == graphs_.end()) {
    if (graphs_.size() >= kMostGraphs) DropOldest();
    found = graphs_.emplace(shape_, Graph{}).first;
  }
  Graph& graph = found->second;
  graph.last_used = ++uses_;
  if (graph.recorded != nullptr) {
    ++replayed_;
    return context_.Check(cudaGraphLaunch(graph.recorded, context_.stream()), "starting a recorded step");
  }
  if (!std::exchange(graph.seen, true) || graph.never) return false;
  if (context_.StartRecording()) recording_ = &graph;
  return false;
}

bool StepGraphs::Finish() {
  if (recording_ == nullptr) return true;
  Graph& graph = *std::exchange(recording_, nullptr);
  graph.recorded = context_.FinishRecording();
  graph.never = graph.recorded == nullptr;
  if (graph.never) return false;
  context_.Check(cudaGraphLaunch(graph.recorded, context_.stream()), "starting a recorded step");
  return true;
}

void StepGraphs::Clear() {
  for (auto& [shape, graph] : graphs_)
    if (graph.recorded != nullptr) cudaGraphExecDestroy(graph.recorded);
  graphs_.clear();
}

void StepGraphs::DropOldest() {
  const auto oldest = std::min_element(graphs_.begin(), graphs_.end(),
                                       [](const auto& a, const auto& b) { return a.second.last_used < b.second.last_used; });
  if (oldest->second.recorded != nullptr) cudaGraphExecDestroy(oldest->second.recorded);
  graphs_.erase(oldest);
}

}  // namespace kvasir
