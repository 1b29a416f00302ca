// Kernels that bring host matrices, once uploaded, into the layouts of linear_layout.h. Used by pack.cu only.
#pragma once

#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/simt.cuh"
#include "kernels/tensor.h"

namespace kvasir {

KVASIR_DEVICE float LoadElement(const std::byte* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(data)[index];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[index];
  return dtype == DType::kBF16 ? gpu::Bf16ToFloat(bits) : gpu::F16ToFloat(bits);
}

__global__ void ConvertElementsKernel(const std::byte* from, DType from_type, int64_t count, std::byte* to, DType to_type) {
  gpu::WaitForPreviousKernel();
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const float value = LoadElement(from, from_type, i);
    if (to_type == DType::kF32)
      reinterpret_cast<float*>(to)[i] = value;
    else
      reinterpret_cast<uint16_t*>(to)[i] = uint16_t(to_type == DType::kBF16 ? gpu::PackBf16(value, 0) : gpu::PackF16(value, 0));
  }
}

// Rows row0 .. row0 + rows of a weight, given as elements of `from_type` or as codes of a byte each, into its runs. A thread
// writes one byte or one 16-bit value, made of the one or two inputs that share it.
__global__ void PackRunsKernel(const std::byte* from, DType from_type, int64_t rows, int64_t row0, LinearLayout layout,
                               std::byte* to) {
  gpu::WaitForPreviousKernel();
  const LinearFormat format = layout.format;
  const bool nibbles = format == LinearFormat::kInt4 || format == LinearFormat::kMxfp4;
  const int64_t items = nibbles ? int64_t{layout.stages} * kStageCols / 2 : layout.cols;  // of a row
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < rows * items; at += step) {
    const int64_t row = at / items, item = at % items, global_row = row0 + row;
    // The first input of the item: of int4 its second is 32 further, of mxfp4 the next.
    const int64_t k = format == LinearFormat::kInt4    ? item / 32 * kStageCols + item % 32
                      : format == LinearFormat::kMxfp4 ? item * 2
                                                       : item;
    const int64_t stage = k / kStageCols;
    const int in_stage = int(k % kStageCols), r = int(global_row % kTileRows), g = r % 8, upper = r / 8;
    std::byte* const runs = to + (global_row / kTileRows * layout.stages + stage) * WeightRuns(format) * 512;
    const auto code = [&](int64_t input) { return input < layout.cols ? uint32_t(from[row * layout.cols + input]) : 0u; };
    if (format == LinearFormat::kInt8 || format == LinearFormat::kInt4) {
      const int h = in_stage / 32, kk = in_stage % 32, lane = g * 4 + kk % 16 / 4;
      const int byte = lane * 16 + (upper + 2 * (kk / 16)) * 4 + kk % 4;
      if (format == LinearFormat::kInt8)
        runs[h * 512 + byte] = std::byte(code(k));
      else
        runs[byte] = std::byte(code(k) | code(k + 32) << 4);
      continue;
    }
    const int i = in_stage / 16, kk = in_stage % 16, lane = g * 4 + kk % 8 / 2, reg = upper + 2 * (kk / 8), e = kk % 2;
    if (format == LinearFormat::kFp8) {
      runs[i / 2 * 512 + lane * 16 + i % 2 * 8 + reg * 2 + e] = std::byte(code(k));
    } else if (format == LinearFormat::kMxfp4) {
      runs[lane * 16 + i * 4 + reg] = std::byte(code(k) | code(k + 1) << 4);
    } else {
      const float value = LoadElement(from, from_type, row * layout.cols + k);
      const uint32_t bits = format == LinearFormat::kBF16 ? gpu::PackBf16(value, 0) : gpu::PackF16(value, 0);
      *reinterpret_cast<uint16_t*>(runs + i * 512 + lane * 16 + reg * 4 + e * 2) = uint16_t(bits);
    }
  }
}

}  // namespace kvasir
