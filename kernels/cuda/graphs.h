// Steps recorded as CUDA graphs: the ops of a step of decoding are a few hundred kernels that differ from those of the next step
// in nothing but the arrays StepTables has taken to the device, so they are noted once for each shape of step (StepTables::shape)
// and then started at once. Recorded when a shape comes for the second time: by then all scratch memory has been taken, and
// shapes that come once cost nothing. Owned by CudaDevice.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "kernels/cuda/context.h"

namespace kvasir {

class StepGraphs {
 public:
  explicit StepGraphs(CudaContext* context) : context_(*context) {}
  ~StepGraphs() { Clear(); }
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  void Enable(bool enabled) { enabled_ = enabled; }
  // True: a step of this shape was recorded and has been started again. Else its ops are to be called. An empty shape never was.
  bool Replay(std::span<const int64_t> shape);
  // After the ops of a step that was not replayed. False: recording it has failed, and they must be called again.
  bool Finish();
  int64_t replayed() const { return replayed_; }

 private:
  static constexpr size_t kMostGraphs = 128;
  struct Graph {
    cudaGraphExec_t recorded = nullptr;
    int64_t last_used = 0;
    bool seen = false, never = false;
  };
  void Clear();
  void DropOldest();

  CudaContext& context_;
  bool enabled_ = true;
  std::map<std::vector<int64_t>, Graph> graphs_;
  std::vector<int64_t> shape_;  // of the step
  Graph* recording_ = nullptr;
  uint64_t generation_ = 0;
  int64_t uses_ = 0, replayed_ = 0;
};

}  // namespace kvasir
