// Linear on the CPU: the driver that spreads one Linear over the team, in tiles that gemm_kernels.h provides. Called by
// CpuDevice.
//
// Every tile shape sums an output element in the same order (gemm_kernels.h), so a row's result depends neither on the other
// rows nor on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/tensor.h"

namespace kvasir {

// One product among several that are done together: out[i, :] = in[i, :] * weight^T (+ bias). Strides in floats.
struct LinearJob {
  const float* in = nullptr;
  int64_t in_stride = 0;
  int64_t rows = 0;
  const Weight* weight = nullptr;
  const float* bias = nullptr;  // float32 [weight.rows] or null
  float* out = nullptr;
  int64_t out_stride = 0;
};

// Scratch that grows to what the largest call needs and then stays.
class GemmScratch {
 public:
  std::byte* Reserve(size_t bytes);  // 64-byte aligned, contents undefined

  // How one job of a call is cut; see gemm.cc.
  struct Plan {
    const std::byte* a = nullptr;  // the rows of activations as the tiles read them
    int64_t a_stride = 0;          // bytes
    size_t a_offset = 0;           // in this scratch, when they are copied there
    bool copied = false;
    int64_t first_row = 0;  // among the copied rows of all jobs
    int64_t strips = 0;
    int64_t tiles = 0;
    int64_t runs = 0;
    int64_t first_piece = 0;
  };
  std::vector<Plan> plans;

 private:
  struct FreeDeleter {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte[], FreeDeleter> data_;
  size_t bytes_ = 0;
};

// All the jobs in one parallel region: many small products (experts, heads) keep the team as busy as one large one.
void PanelLinears(const GemmKernels& kernels, ThreadTeam& team, GemmScratch& scratch, std::span<const LinearJob> jobs);

// Device::Linear. bias: float32 [weight.rows] or null.
void PanelLinear(const GemmKernels& kernels, ThreadTeam& team, GemmScratch& scratch, const float* in, int64_t rows,
                 const Weight& weight, const float* bias, float* out);

}  // namespace kvasir
