#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <limits>

namespace kvasir {
namespace {

constexpr int kBoxColumns = 64;

}  // namespace

#ifdef KVASIR_SIMT
bool MakeTensorMap(const std::byte* base, int columns, int box_rows, gpu::TensorMap& map) {
  map = {base, int64_t{columns} * 2, kBoxColumns, box_rows};
  return true;
}
#else
namespace {

// The driver's function, asked for here so that the program starts where there is no driver; nullptr where it has none.
decltype(&cuTensorMapEncodeTiled) FindEncode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  constexpr unsigned kSince = 12000;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kSince, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  if (error == cudaSuccess && result == cudaDriverEntryPointSuccess)
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  cudaGetLastError();
  return nullptr;
}

}  // namespace

bool MakeTensorMap(const std::byte* base, int columns, int box_rows, gpu::TensorMap& map) {
  static const auto encode = FindEncode();  // for every layer of a step
  if (encode == nullptr) return false;
  const cuuint64_t sizes[] = {cuuint64_t(columns), cuuint64_t(std::numeric_limits<int32_t>::max())};
  const cuuint64_t strides[] = {cuuint64_t(columns) * 2};  // of all but the first
  const cuuint32_t box[] = {kBoxColumns, cuuint32_t(box_rows)}, steps[] = {1, 1};
  // Of 16-bit numbers only the size matters to a copy.
  return encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<std::byte*>(base), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
#endif

}  // namespace kvasir
