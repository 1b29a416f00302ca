// Starting kernels: on the GPU through the runtime, in the emulation of tests/simt as fibers. Used by the host side of
// kernels/cuda.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>

#ifdef KVASIR_SIMT
#include <tuple>

#include "tests/simt/simt.h"
#include "tests/simt/stream.h"
#endif

namespace kvasir {

// Whether kernels may start before the one ahead of them in the stream is done (programmatic dependent launch, sm_90): they wait
// for it by themselves (WaitForPreviousKernel), and what starting one costs is passed meanwhile. Set before kernels are started.
inline bool launch_ahead = false;

// Starts kernel(args...) on grid x block threads with `shared` bytes of shared memory. An error is kept by the runtime and seen
// by CudaContext::CheckLaunch.
template <typename... Params, typename... Args>
void Launch(void (*kernel)(Params...), dim3 grid, int block, size_t shared, cudaStream_t stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef KVASIR_SIMT
  simt::Enqueue(stream, [=, params = std::tuple<Params...>(Params(args)...)] {
    simt::Run(grid, block, shared, [&] { std::apply(kernel, params); });
  });
#else
  // Beyond 48 KB a kernel must be allowed to; the call is cheap and remembered by the driver.
  if (shared > 48 * 1024)
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute ahead = {};
  ahead.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  ahead.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &ahead;
  config.numAttrs = launch_ahead ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, Params(args)...);
#endif
}

}  // namespace kvasir
