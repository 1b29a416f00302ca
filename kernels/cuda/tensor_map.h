// Rows of 16-bit numbers in device memory as the copy engine of sm_90 addresses them (TMA). Made by the host, passed to kernels
// by value as const __grid_constant__; used through CopyBox of hopper.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef KVASIR_SIMT
namespace kvasir::gpu {
struct alignas(64) TensorMap {
  const std::byte* base;
  int64_t row_bytes;
  int32_t box_columns, box_rows;
};
}  // namespace kvasir::gpu
#define KVASIR_GRID_CONSTANT
#else
#include <cuda.h>
namespace kvasir::gpu {
using TensorMap = CUtensorMap;
}
#define KVASIR_GRID_CONSTANT __grid_constant__
#endif

namespace kvasir {

// Boxes of 64 columns by `box_rows` rows, 128 bytes each, in the swizzle that hopper.cuh tells of. `columns` is a multiple of 8,
// `base` is aligned to 16 bytes. Where rows end is not known to the map: the rows asked for must be there. False: the driver
// does not make such maps.
bool MakeTensorMap(const std::byte* base, int columns, int box_rows, gpu::TensorMap& map);

}  // namespace kvasir
