// Linear on the CPU: the driver that spreads one Linear over the team, in tiles that gemm_kernels.h provides. Called by
// CpuDevice.
//
// Every tile shape sums an output element in the same order (gemm_kernels.h), so a row's result depends neither on the other
// rows nor on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/tensor.h"

namespace kvasir {

// Scratch that grows to what the largest call needs and then stays.
class GemmScratch {
 public:
  std::byte* Reserve(size_t bytes);  // 64-byte aligned, contents undefined

 private:
  struct FreeDeleter {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte[], FreeDeleter> data_;
  size_t bytes_ = 0;
};

// Device::Linear. bias: float32 [weight.rows] or null.
void PanelLinear(const GemmKernels& kernels, ThreadTeam& team, GemmScratch& scratch, const float* in, int64_t rows,
                 const Weight& weight, const float* bias, float* out);

}  // namespace kvasir
