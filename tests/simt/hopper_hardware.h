// The wrappers of kernels/cuda/hopper.cuh as host code. Included by it, with KVASIR_SIMT defined.
#pragma once

#include <array>

#include "tests/simt/hardware.h"

namespace kvasir::gpu {

inline void MakeBarrier(Barrier& barrier, int arrivals) {
  simt::BarrierMake(&barrier, arrivals);
}
inline void Arrive(Barrier& barrier) {
  simt::BarrierArrive(&barrier, 0);
}
inline void ArriveExpecting(Barrier& barrier, int bytes) {
  simt::BarrierArrive(&barrier, bytes);
}
inline void Wait(Barrier& barrier, int parity) {
  simt::BarrierWait(&barrier, parity);
}
template <int kNumber>
void SyncThreads(int threads) {
  static_assert(kNumber >= 1 && kNumber <= 15);
  simt::MeetNumbered(kNumber, threads);
}
inline void ShowToProducts() {}

[[noreturn]] inline void Refuse(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}
// Offset in the block's shared memory, which lies at a multiple of 1024 as on the device.
inline uint32_t SharedAddress(const void* at) {
  const auto offset = reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(simt::SharedMemory());
  if (offset >= simt::SharedBytes()) Refuse("an address is not of shared memory");
  return uint32_t(offset);
}
inline uint32_t Swizzled(uint32_t address) {
  return address ^ (address >> 7 & 7) << 4;
}

inline void CopyBulk(void* shared, const void* global, int bytes, Barrier& barrier) {
  if (SharedAddress(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0 || bytes % 16 != 0 || bytes <= 0)
    Refuse("a bulk copy is not aligned");
  simt::CopyBulkLater(&barrier, {{shared, global, size_t(bytes)}});
}
inline void CopyBox(void* shared, const TensorMap& map, int x, int y, Barrier& barrier) {
  if (SharedAddress(shared) % 1024 != 0) Refuse("a box is not aligned to 1024 bytes");
  if (x < 0 || y < 0 || (int64_t{x} + map.box_columns) * 2 > map.row_bytes) Refuse("a box is not inside its rows");
  std::vector<simt::Piece> pieces;
  for (int row = 0; row < map.box_rows; ++row) {
    for (int at = 0; at < map.box_columns * 2; at += 16) {
      const uint32_t to = Swizzled(SharedAddress(shared) + uint32_t(row * 128 + at));
      pieces.push_back({simt::SharedMemory() + to, map.base + (int64_t{y} + row) * map.row_bytes + x * 2 + at, 16});
    }
  }
  simt::CopyBulkLater(&barrier, std::move(pieces));
}

inline uint64_t MatrixBits(const void* at, int leading_bytes, int stride_bytes, uint64_t swizzle) {
  const auto field = [](uint32_t bytes) {
    if (bytes % 16 != 0 || bytes >> 4 > 0x3fffu) Refuse("a distance in shared memory cannot be described");
    return uint64_t(bytes >> 4);
  };
  return field(SharedAddress(at)) | field(uint32_t(leading_bytes)) << 16 | field(uint32_t(stride_bytes)) << 32 | swizzle << 62;
}
inline uint64_t ColumnsInRows(const void* at, int group_bytes) {
  return MatrixBits(at, 16, group_bytes, 1);
}
inline uint64_t DepthInRows(const void* at, int block_bytes) {
  return MatrixBits(at, block_bytes, 1024, 1);
}
inline uint64_t PlainMatrix(const void* at, int depth_bytes, int column_bytes) {
  return MatrixBits(at, depth_bytes, column_bytes, 0);
}

// Where B[k, n] of a described matrix lies, as the bits say (PTX ISA, "Matrix Descriptor Format", and the canonical layouts).
inline const uint16_t* MatrixElement(uint64_t bits, bool depth_in_rows, int k, int n) {
  const auto field = [&](int at) { return uint32_t(bits >> at & 0x3fffu) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  uint32_t address = 0;
  if (bits >> 62 == 1) {
    address = depth_in_rows ? start + n / 64 * leading + n % 64 * 2 + k / 8 * stride + k % 8 * 128
                            : start + n / 8 * stride + n % 8 * 128 + k * 2;
    address = Swizzled(address);
  } else if (bits >> 62 == 0 && !depth_in_rows) {
    address = start + n / 8 * stride + n % 8 * 16 + k / 8 * leading + k % 8 * 2;
  } else {
    Refuse("a matrix is of a kind that is not emulated");
  }
  if (address + 2 > simt::SharedBytes()) Refuse("a matrix is not inside the block's shared memory");
  return reinterpret_cast<const uint16_t*>(simt::SharedMemory() + address);
}

inline void FenceProducts() {}
inline void CommitProducts() {
  simt::CloseProducts();
}
template <int kPending>
void WaitProducts() {
  simt::FinishProducts(kPending);
}
template <int kCount>
void KeepInPlace(float (&)[kCount]) {}

// Rows of A that a lane's part of D needs, from the four lanes that have them.
struct ProductLane {
  const uint32_t* a;
  uint64_t b;
  std::array<std::array<uint16_t, 16>, 2> rows;
};
inline void GatherRows(void* const* all, int lanes) {
  const auto at = [&](int i) { return static_cast<ProductLane*>(all[i]); };
  for (int i = 0; i < lanes; ++i) {
    if (at(i)->b != at(0)->b) Refuse("threads of a warpgroup multiply with different matrices");
    for (int t = 0; t < 4; ++t) {
      const uint32_t* const a = at(i / 4 * 4 + t)->a;
      for (int r = 0; r < 4; ++r) {
        for (int e = 0; e < 2; ++e) at(i)->rows[size_t(r % 2)][size_t(2 * t + e + r / 2 * 8)] = uint16_t(a[r] >> 16 * e);
      }
    }
  }
}

// The order of sums is that of MmaBf16.
template <DType kType, bool kDepthInRows, int kHalfColumns>
void Multiply(float (&d)[kHalfColumns], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(kHalfColumns == 32 || kHalfColumns == 64);
  ProductLane mine = {a, b, {}};
  simt::MeetGroup("Multiply", &mine, GatherRows);
  const auto value = [](uint16_t bits) { return kType == DType::kBF16 ? BF16ToF32(bits) : F16ToF32(bits); };
  simt::MultiplyLater([&d, b, add, value, rows = mine.rows, column = Lane() % 4 * 2] {
    for (int i = 0; i < kHalfColumns; ++i) {
      const int n = i / 4 * 8 + column + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k)
        sum += value(rows[size_t(i / 2 % 2)][size_t(k)]) * value(*MatrixElement(b, kDepthInRows, k, n));
      d[i] = add ? d[i] + sum : sum;
    }
  });
}

template <int kCount>
void ShrinkRegisters() {}
template <int kCount>
void GrowRegisters() {}

}  // namespace kvasir::gpu
