#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/pack.h"
#include "kernels/status.h"

namespace kvasir {
namespace {

// Less work than this (multiply-adds) is done by the caller: waking the team would cost more than it gives.
constexpr int64_t kSerialWork = 32 * 1024;
constexpr int kPiecesPerThread = 4;  // so that a thread which loses its core does not hold up the others

// The rows of activations as the tiles read them.
struct Activations {
  const std::byte* data = nullptr;
  int64_t stride = 0;  // bytes
};

// An odd number of cache lines, so that the rows of a tile fall into different cache sets.
int64_t PaddedStride(int64_t bytes) {
  return ((bytes + 63) / 64 | 1) * 64;
}

Activations Prepare(const GemmKernels& kernels, ThreadTeam& team, GemmScratch& scratch, const float* in, int64_t rows, int64_t k,
                    DType dtype) {
  const bool round = dtype == DType::kBF16;
  const int64_t row_bytes = k * int64_t{sizeof(float)};
  // Rows at a power-of-two distance would fight for one cache set while a tile reads them side by side.
  const bool collide = rows > 4 && row_bytes % 1024 == 0;
  if (!round && !collide) return {reinterpret_cast<const std::byte*>(in), row_bytes};
  const int64_t stride = PaddedStride(round ? (k + 1) / 2 * 2 * kernels.bf16_bytes : row_bytes);
  std::byte* data = scratch.Reserve(size_t(rows * stride));
  const int64_t grain = std::max<int64_t>(1, kSerialWork / k);
  team.ParallelFor(rows, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      if (round) {
        kernels.round_bf16(in + row * k, k, data + row * stride);
      } else {
        std::memcpy(data + row * stride, in + row * k, size_t(row_bytes));
      }
    }
  });
  return {data, stride};
}

GemmKernels::Tile TileOf(const GemmKernels& kernels, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return kernels.f32;
    case DType::kF16:
      return kernels.f16;
    case DType::kBF16:
      return kernels.bf16;
  }
  return nullptr;
}

}  // namespace

void GemmScratch::FreeDeleter::operator()(std::byte* p) const {
  std::free(p);
}

std::byte* GemmScratch::Reserve(size_t bytes) {
  if (bytes > bytes_) {
    data_.reset();
    bytes_ = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(64, bytes_)));
    KVASIR_CHECK(data_ != nullptr, "no memory for {} bytes of scratch of a linear layer", bytes_);
  }
  return data_.get();
}

void PanelLinear(const GemmKernels& kernels, ThreadTeam& team, GemmScratch& scratch, const float* in, int64_t rows,
                 const Weight& weight, const float* bias, float* out) {
  if (rows <= 0) return;
  const int64_t k = weight.cols, n = weight.rows;
  const Activations a = Prepare(kernels, team, scratch, in, rows, k, weight.dtype);
  const GemmKernels::Tile tile = TileOf(kernels, weight.dtype);
  const auto* packed = static_cast<const std::byte*>(weight.packed);
  const int64_t panels = PanelsOf(n);
  const int64_t panel_bytes = PanelBytes(k, weight.dtype);

  // Rows are cut into tiles of nearly equal height. One piece of work is a panel and a run of tiles: all of them, unless there
  // are too few panels to keep the team busy.
  const int64_t tiles = (rows + kernels.max_rows - 1) / kernels.max_rows;
  const int64_t wanted = int64_t{kPiecesPerThread} * team.size();
  const int64_t runs = team.size() == 1 ? 1 : std::clamp<int64_t>((wanted + panels - 1) / panels, 1, tiles);
  const int64_t pieces = panels * runs;
  const int64_t grain = rows * n * k < kSerialWork ? pieces : std::max<int64_t>(1, pieces / wanted);
  team.ParallelFor(pieces, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t panel = piece / runs, run = piece % runs;
      const int64_t column = panel * kPanelColumns;
      const int columns = int(std::min<int64_t>(kPanelColumns, n - column));
      const int64_t tile_end = tiles * (run + 1) / runs;
      for (int64_t t = tiles * run / runs; t < tile_end; ++t) {
        const int64_t row = rows * t / tiles, row_end = rows * (t + 1) / tiles;
        tile(a.data + row * a.stride, a.stride, int(row_end - row), packed + panel * panel_bytes, k,
             bias != nullptr ? bias + column : nullptr, out + row * n + column, n, columns);
      }
    }
  });
}

}  // namespace kvasir
