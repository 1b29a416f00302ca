// How weights come to the device (functions of gemm.h), and where their parts lie (linear_layout.h).
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/pack_kernels.cuh"

namespace kvasir {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 40;  // of one weight: keeps every size below in 64 bits
constexpr size_t kStagingBytes = size_t{32} << 20;  // of a host matrix on its way
constexpr int kThreads = 256;

Status CheckMatrix(const HostMatrix& matrix, int64_t max_elements) {
  if (matrix.rows <= 0 || matrix.cols <= 0 || matrix.data == nullptr) {
    return InvalidArgument("'{}' is [{}, {}]{}; a weight needs at least one row and one column", matrix.name, matrix.rows,
                           matrix.cols, matrix.data == nullptr ? " without data" : "");
  }
  if (matrix.rows > max_elements / matrix.cols) {
    return InvalidArgument("'{}' is [{}, {}]; the limit is {} elements", matrix.name, matrix.rows, matrix.cols, max_elements);
  }
  return OkStatus();
}

unsigned Blocks(int64_t work, int64_t per_block) {
  constexpr int64_t kMost = 1 << 16;  // kernels loop over the rest
  return unsigned(std::clamp<int64_t>((work + per_block - 1) / per_block, 1, kMost));
}

// Host bytes into device memory that is written again by the next call. The host's may change when this returns.
std::byte* Stage(CudaContext& context, CudaContext::Scratch use, const void* host, size_t bytes) {
  std::byte* const staged = context.Temporary<std::byte>(use, std::max<size_t>(bytes, 1));
  if (staged == nullptr) return nullptr;
  context.Check(cudaMemcpyAsync(staged, host, bytes, cudaMemcpyHostToDevice, context.stream()), "copying a weight");
  context.Check(cudaStreamSynchronize(context.stream()), "copying a weight");
  return context.status().ok() ? staged : nullptr;
}

// `count` elements to `to`, as elements of `dtype`.
void CopyElements(CudaContext& context, const HostMatrix& part, DType dtype, std::byte* to) {
  const int64_t count = part.rows * part.cols, from_bytes = int64_t(SizeOf(part.dtype)), to_bytes = int64_t(SizeOf(dtype));
  const auto* const from = static_cast<const std::byte*>(part.data);
  if (part.dtype == dtype) {
    context.Check(cudaMemcpyAsync(to, from, size_t(count * to_bytes), cudaMemcpyHostToDevice, context.stream()),
                  "copying a weight");
    context.Check(cudaStreamSynchronize(context.stream()), "copying a weight");
    return;
  }
  const int64_t most = int64_t(kStagingBytes) / from_bytes;
  for (int64_t first = 0; first < count; first += most) {
    const int64_t n = std::min(most, count - first);
    const std::byte* const staged =
        Stage(context, CudaContext::Scratch::kInputs, from + first * from_bytes, size_t(n * from_bytes));
    if (staged == nullptr) return;
    Launch(ConvertElementsKernel, dim3(Blocks(n, kThreads)), kThreads, 0, context.stream(), staged, part.dtype, n,
           to + first * to_bytes, dtype);
    context.CheckLaunch("converting a weight");
  }
}

float LoadHost(const void* data, DType dtype, int64_t index) {
  const auto* const at = static_cast<const std::byte*>(data) + index * int64_t(SizeOf(dtype));
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return dtype == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}

float Rounded(float value, DType dtype) {
  if (dtype == DType::kBF16) return BF16ToF32(F32ToBF16(value));
  return dtype == DType::kF16 ? F16ToF32(F32ToF16(value)) : value;
}

// Codes and scales of some rows, as HostMatrix has them of quantised parts.
struct Quantised {
  std::vector<uint8_t> codes;    // [rows, cols]
  std::vector<uint16_t> scales;  // int8, int4: [rows, groups]
  std::vector<uint16_t> lows;
  std::vector<float> float_scales;  // fp8
};

// Quantises rows of a plain part on the host's cores.
Quantised QuantiseRows(const HostMatrix& part, int64_t first, int64_t rows, DType dtype, QuantFormat quant) {
  const int64_t cols = part.cols, size = quant.GroupSize(cols), groups = quant.Groups(cols);
  Quantised out;
  out.codes.resize(size_t(rows * cols));
  (quant.integer() ? out.scales.resize(size_t(rows * groups)) : out.float_scales.resize(size_t(rows * groups)));
  if (quant.kind == QuantFormat::Kind::kInt4) out.lows.resize(size_t(rows * groups));
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t i; (i = next++) < rows;) {
      for (int64_t j = 0; j < cols; ++j) row[size_t(j)] = Rounded(LoadHost(part.data, part.dtype, (first + i) * cols + j), dtype);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = g * size, count = std::min(size, cols - begin), at = i * groups + g;
        uint8_t* const codes = out.codes.data() + i * cols + begin;
        if (!quant.integer()) {
          out.float_scales[size_t(at)] = QuantizeFp8Group(row.data() + begin, count, codes);
          continue;
        }
        const QuantGroup group = QuantizeGroup(quant.kind, row.data() + begin, count, reinterpret_cast<int8_t*>(codes));
        out.scales[size_t(at)] = group.scale;
        if (!out.lows.empty()) out.lows[size_t(at)] = group.low;
      }
    }
  };
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < std::min<unsigned>(std::thread::hardware_concurrency(), 16) && int64_t{i} * 64 < rows; ++i)
    helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return out;
}

// Scales of rows row0 .. row0 + rows to where they lie in the packed weight, a host copy of that part of it.
void PlaceScales(const LinearLayout& layout, const void* scales, const uint16_t* lows, int64_t row0, int64_t rows,
                 std::byte* to) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = row0 + i, r = row % kTileRows;
    for (int64_t g = 0; g < layout.groups; ++g) {
      const int64_t at = ((row / kTileRows * layout.groups + g) * 8 + r % 8) * 2 + r / 8, from = i * layout.groups + g;
      const auto* const bytes = static_cast<const std::byte*>(scales);
      if (layout.format == LinearFormat::kInt4) {
        std::memcpy(to + at * 4, bytes + from * 2, 2);
        std::memcpy(to + at * 4 + 2, lows + from, 2);
      } else if (layout.format == LinearFormat::kInt8) {
        std::memcpy(to + at * 2, bytes + from * 2, 2);
      } else if (layout.format == LinearFormat::kFp8) {
        std::memcpy(to + at * 4, bytes + from * 4, 4);
      } else {  // the exponent; of 2^-127, which is no normal float, 0
        uint32_t bits;
        std::memcpy(&bits, bytes + from * 4, 4);
        to[at] = std::byte(bits >> 23);
      }
    }
  }
}

// The runs of rows of a part; `data` are its elements or codes of these rows.
void PackRuns(CudaContext& context, const void* data, DType dtype, int64_t element_bytes, int64_t rows, int64_t row0,
              const LinearLayout& layout, std::byte* packed) {
  const int64_t row_bytes = layout.cols * element_bytes, most = std::max<int64_t>(1, int64_t(kStagingBytes) / row_bytes);
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t n = std::min(most, rows - first);
    const std::byte* const staged = Stage(context, CudaContext::Scratch::kInputs,
                                          static_cast<const std::byte*>(data) + first * row_bytes, size_t(n * row_bytes));
    if (staged == nullptr) return;
    Launch(PackRunsKernel, dim3(Blocks(n * layout.cols, kThreads)), kThreads, 0, context.stream(), staged, dtype, n, row0 + first,
           layout, packed);
    context.CheckLaunch("packing a weight");
  }
}

void PackPart(CudaContext& context, const HostMatrix& part, int64_t row0, DType dtype, QuantFormat quant,
              const LinearLayout& layout, std::byte* packed, std::byte* host_scales) {
  if (!quant) return PackRuns(context, part.data, part.dtype, int64_t(SizeOf(part.dtype)), part.rows, row0, layout, packed);
  if (part.quant) {
    PlaceScales(layout, part.scales, part.lows, row0, part.rows, host_scales);
    return PackRuns(context, part.data, DType::kF32, 1, part.rows, row0, layout, packed);
  }
  const int64_t most = std::max<int64_t>(1, int64_t(kStagingBytes) / part.cols);
  for (int64_t first = 0; first < part.rows; first += most) {
    const int64_t n = std::min(most, part.rows - first);
    const Quantised rows = QuantiseRows(part, first, n, dtype, quant);
    const void* const scales =
        quant.integer() ? static_cast<const void*>(rows.scales.data()) : static_cast<const void*>(rows.float_scales.data());
    PlaceScales(layout, scales, rows.lows.data(), row0 + first, n, host_scales);
    PackRuns(context, rows.codes.data(), DType::kF32, 1, n, row0 + first, layout, packed);
  }
}

}  // namespace

LinearLayout LayoutOf(const Weight& weight) {
  using Kind = QuantFormat::Kind;
  LinearLayout layout;
  layout.rows = weight.rows;
  layout.cols = weight.cols;
  if (!weight.quant) {
    layout.format = weight.dtype == DType::kF32   ? LinearFormat::kF32
                    : weight.dtype == DType::kF16 ? LinearFormat::kF16
                                                  : LinearFormat::kBF16;
  } else {
    layout.format = weight.quant.kind == Kind::kInt8   ? LinearFormat::kInt8
                    : weight.quant.kind == Kind::kInt4 ? LinearFormat::kInt4
                    : weight.quant.kind == Kind::kFp8  ? LinearFormat::kFp8
                                                       : LinearFormat::kMxfp4;
    layout.groups = int(weight.quant.Groups(weight.cols));
    layout.blocks_per_group = int(weight.quant.GroupSize(weight.cols) / kQuantBlock);
  }
  if (layout.format == LinearFormat::kF32) {
    layout.bytes = size_t(weight.rows * weight.cols) * sizeof(float);
    return layout;
  }
  layout.row_tiles = int((weight.rows + kTileRows - 1) / kTileRows);
  layout.stages = int((weight.cols + kStageCols - 1) / kStageCols);
  layout.blocks = int((weight.cols + kQuantBlock - 1) / kQuantBlock);
  const auto align = [](size_t at) { return (at + 255) / 256 * 256; };
  layout.scales = align(size_t(layout.row_tiles) * size_t(layout.stages) * size_t(WeightRuns(layout.format)) * 512);
  const int scale_bytes = layout.format == LinearFormat::kMxfp4 ? 1 : layout.format == LinearFormat::kInt8 ? 2 : 4;
  layout.order = align(layout.scales + size_t(layout.row_tiles) * size_t(layout.groups) * kTileRows * size_t(scale_bytes));
  layout.bytes = layout.order + (weight.quant.ordered ? size_t(weight.cols) * sizeof(int32_t) : 0);
  return layout;
}

StatusOr<Weight> CudaPackLinear(CudaContext& context, std::span<const HostMatrix> parts, DType dtype, QuantFormat quant) {
  if (parts.empty()) return InvalidArgument("a linear weight needs at least one matrix");
  Weight weight{dtype, 0, parts[0].cols, nullptr, quant};
  for (const HostMatrix& part : parts) {
    KVASIR_RETURN_IF_ERROR(CheckMatrix(part, kMaxElements / 2 - weight.rows * weight.cols));
    if (part.cols != weight.cols) {
      return InvalidArgument("'{}' has {} columns but '{}', packed with it, has {}", part.name, part.cols, parts[0].name,
                             weight.cols);
    }
    KVASIR_RETURN_IF_ERROR(CheckQuantized(part, parts[0], quant));
    weight.rows += part.rows;
  }
  const LinearLayout layout = LayoutOf(weight);
  KVASIR_ASSIGN_OR_RETURN(weight.packed, context.Allocate(layout.bytes, parts[0].name));
  auto* const packed = static_cast<std::byte*>(weight.packed);
  std::vector<std::byte> scales(layout.order - layout.scales);
  int64_t row = 0;
  for (const HostMatrix& part : parts) {
    if (layout.format == LinearFormat::kF32) {
      CopyElements(context, part, DType::kF32, packed + row * weight.cols * int64_t{sizeof(float)});
    } else {
      PackPart(context, part, row, dtype, quant, layout, packed, scales.data());
    }
    row += part.rows;
  }
  const auto copy = [&](size_t at, const void* from, size_t bytes) {
    if (bytes == 0) return;
    context.Check(cudaMemcpyAsync(packed + at, from, bytes, cudaMemcpyHostToDevice, context.stream()), "copying a weight");
  };
  copy(layout.scales, scales.data(), scales.size());
  if (quant.ordered) copy(layout.order, parts[0].order, size_t(weight.cols) * sizeof(int32_t));
  KVASIR_RETURN_IF_ERROR(context.Synchronize());  // `scales` goes away
  return weight;
}

StatusOr<Weight> CudaPackEmbedding(CudaContext& context, const HostMatrix& table, DType dtype) {
  KVASIR_RETURN_IF_ERROR(CheckMatrix(table, kMaxElements));
  Weight weight{dtype, table.rows, table.cols, nullptr, {}};
  KVASIR_ASSIGN_OR_RETURN(weight.packed, context.Allocate(size_t(table.rows) * size_t(table.cols) * SizeOf(dtype), table.name));
  CopyElements(context, table, dtype, static_cast<std::byte*>(weight.packed));
  KVASIR_RETURN_IF_ERROR(context.status());
  return weight;
}

StatusOr<Weight> CudaPackVector(CudaContext& context, std::span<const HostMatrix> parts) {
  if (parts.empty()) return InvalidArgument("a vector weight needs at least one part");
  Weight weight{DType::kF32, 1, 0, nullptr, {}};
  for (const HostMatrix& part : parts) {
    KVASIR_RETURN_IF_ERROR(CheckMatrix(part, kMaxElements - weight.cols));
    weight.cols += part.rows * part.cols;
  }
  KVASIR_ASSIGN_OR_RETURN(weight.packed, context.Allocate(size_t(weight.cols) * sizeof(float), parts[0].name));
  auto* to = static_cast<std::byte*>(weight.packed);
  for (const HostMatrix& part : parts) {
    CopyElements(context, part, DType::kF32, to);
    to += size_t(part.rows * part.cols) * sizeof(float);
  }
  KVASIR_RETURN_IF_ERROR(context.status());
  return weight;
}

}  // namespace kvasir
