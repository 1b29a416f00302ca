// Host matrices into the CPU device's weight layouts, with conversion of the element type. Used by CpuDevice at load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cpu/thread_team.h"
#include "kernels/tensor.h"

namespace kvasir {

// Panels of a linear weight with `rows` output features, and bytes of one (layouts in gemm_kernels.h and quant_kernels.h).
int64_t PanelsOf(int64_t rows);
int64_t PanelBytes(int64_t cols, DType dtype, QuantFormat quant);
// The order of inputs lies behind the panels of an ordered weight.
const int32_t* OrderOf(const Weight& weight);
int64_t OrderBytes(int64_t cols, QuantFormat quant);
// A row's share of a strip of quantised activations.
int64_t QuantRowBytes(int64_t cols, QuantFormat quant);

// Packs the parts, one under another, as panels. dst: PanelsOf(total rows) * PanelBytes(cols) + OrderBytes(cols) bytes, zeroed,
// 64-byte aligned.
void PackPanels(ThreadTeam& team, std::span<const HostMatrix> parts, DType dtype, QuantFormat quant, void* dst);

// Row-major copy of one matrix. dst: rows * cols elements.
void PackRows(ThreadTeam& team, const HostMatrix& matrix, DType dtype, void* dst);

// `count` elements as float32. src may be unaligned.
void ToFloat(const void* src, DType dtype, int64_t count, float* dst);

}  // namespace kvasir
