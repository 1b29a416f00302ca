#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/cpu/pack.h"
#include "kernels/status.h"

namespace kvasir {
namespace {

// Less work than this (multiply-adds) is done by the caller: waking the team would cost more than it gives.
constexpr int64_t kSerialWork = 32 * 1024;
constexpr int kPiecesPerThread = 4;  // so that a thread which loses its core does not hold up the others

// An odd number of cache lines, so that the rows of a tile fall into different cache sets.
int64_t PaddedStride(int64_t bytes) {
  return ((bytes + 63) / 64 | 1) * 64;
}

// Whether the tile reads activations rounded to bfloat16.
bool RoundsActivations(const Weight& weight) {
  return weight.quant ? !weight.quant.integer() : weight.dtype == DType::kBF16;
}

// Rows at a power-of-two distance would fight for one cache set while a tile reads them side by side.
bool MustCopy(const LinearJob& job) {
  return job.weight->quant || RoundsActivations(*job.weight) ||
         (job.rows > 4 && job.in_stride * int64_t{sizeof(float)} % 1024 == 0);
}

// The job that item `item` belongs to, when the items of all jobs are numbered one job after another. A job without items begins
// where the next one does, so the last job that begins at or before the item is the one.
template <int64_t GemmScratch::Plan::*kFirst>
size_t JobOf(std::span<const GemmScratch::Plan> plans, int64_t item) {
  if (plans.size() == 1) return 0;
  const auto after = std::upper_bound(plans.begin(), plans.end(), item,
                                      [](int64_t i, const GemmScratch::Plan& plan) { return i < plan.*kFirst; });
  return size_t(after - plans.begin()) - 1;
}

// Cuts the rows of a job into strips of nearly equal height, and the strips into tiles.
void CutRows(const GemmKernels& kernels, const LinearJob& job, GemmScratch::Plan& plan) {
  const bool quant = job.weight->quant.integer();
  const int strip_rows = quant ? kernels.quant->strip_rows : kernels.strip_rows,
            max_rows = quant ? kernels.quant->max_rows : kernels.max_rows;
  plan.strips = (job.rows + strip_rows - 1) / strip_rows;
  plan.tiles = (plan.strips * strip_rows + max_rows - 1) / max_rows;
}

int64_t TileBegin(const LinearJob& job, const GemmScratch::Plan& plan, int64_t tile) {
  return PartBegin(job.rows, plan.strips, PartBegin(plan.strips, plan.tiles, tile));
}

// One tile: `rows` rows of activations at `a` and one panel.
void RunTile(const GemmKernels& kernels, const Weight& weight, const std::byte* a, int64_t a_stride, int rows,
             const std::byte* panel, const float* bias, float* out, int64_t out_stride, int columns) {
  const int64_t k = weight.cols;
  if (weight.quant.kind == QuantFormat::Kind::kFp8)
    return kernels.fp8(a, a_stride, rows, panel, k, weight.quant.GroupSize(k), bias, out, out_stride, columns);
  if (weight.quant.kind == QuantFormat::Kind::kMxfp4)
    return kernels.mxfp4(a, a_stride, rows, panel, k, bias, out, out_stride, columns);
  if (weight.quant) {
    const auto tile = weight.quant.kind == QuantFormat::Kind::kInt8 ? kernels.quant->int8 : kernels.quant->int4;
    const int64_t blocks = (k + kQuantBlock - 1) / kQuantBlock, group_blocks = weight.quant.GroupSize(k) / kQuantBlock;
    return tile(a, rows, panel, blocks, group_blocks, bias, out, out_stride, columns);
  }
  const auto tile = weight.dtype == DType::kF32 ? kernels.f32 : weight.dtype == DType::kF16 ? kernels.f16 : kernels.bf16;
  tile(a, a_stride, rows, panel, k, bias, out, out_stride, columns);
}

// Quantises one row of a job to its place in its strip (quant_kernels.h).
void QuantizeRow(const QuantKernels& kernels, const LinearJob& job, const GemmScratch::Plan& plan, const float* from, int64_t row,
                 std::byte* to) {
  const int64_t k = job.weight->cols, blocks = (k + kQuantBlock - 1) / kQuantBlock;
  const int64_t tile = PartOf(plan.strips, plan.tiles, PartOf(job.rows, plan.strips, row)), first = TileBegin(job, plan, tile);
  const int64_t height = TileBegin(job, plan, tile + 1) - first;
  const int64_t strips = (height + kernels.strip_rows - 1) / kernels.strip_rows, strip = PartOf(height, strips, row - first);
  const int64_t strip_first = PartBegin(height, strips, strip), inside = row - first - strip_first;
  const int64_t strip_rows = PartBegin(height, strips, strip + 1) - strip_first;
  auto* block = reinterpret_cast<QuantBlock*>(to + (first + strip_first) * plan.a_stride);
  auto* sums = reinterpret_cast<float*>(block + blocks * strip_rows);
  if (job.weight->quant.ordered) {
    thread_local std::vector<float> ordered;
    ordered.resize(std::max(ordered.size(), size_t(k)));
    const int32_t* order = OrderOf(*job.weight);
    for (int64_t i = 0; i < k; ++i) ordered[size_t(i)] = from[order[i]];
    from = ordered.data();
  }
  kernels.quantize_row(from, k, job.weight->quant.GroupSize(k) / kQuantBlock, strip_rows, block + inside, sums + inside);
}

// Rounds, quantises or copies the activations of the jobs that want it.
void Prepare(const GemmKernels& kernels, ThreadTeam& team, GemmScratch& scratch, std::span<const LinearJob> jobs) {
  std::span<GemmScratch::Plan> plans = scratch.plans;
  size_t bytes = 0;
  int64_t rows = 0, widest = 1;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const LinearJob& job = jobs[i];
    GemmScratch::Plan& plan = plans[i];
    const int64_t k = job.weight->cols;
    plan.copied = MustCopy(job);
    plan.first_row = rows;
    if (!plan.copied) {
      plan.a = reinterpret_cast<const std::byte*>(job.in);
      plan.a_stride = job.in_stride * int64_t{sizeof(float)};
      continue;
    }
    const bool round = RoundsActivations(*job.weight);
    plan.a_stride = job.weight->quant.integer()
                        ? QuantRowBytes(k, job.weight->quant)
                        : PaddedStride(round ? (k + 1) / 2 * 2 * kernels.bf16_bytes : k * int64_t{sizeof(float)});
    plan.a_offset = bytes;
    bytes += size_t(job.rows * plan.a_stride + 63) / 64 * 64;
    rows += job.rows;
    widest = std::max(widest, k);
  }
  if (rows == 0) return;
  std::byte* data = scratch.Reserve(bytes);
  for (GemmScratch::Plan& plan : plans) {
    if (plan.copied) plan.a = data + plan.a_offset;
  }
  team.ParallelFor(rows, std::max<int64_t>(1, kSerialWork / widest), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const size_t i = JobOf<&GemmScratch::Plan::first_row>(plans, row);
      const LinearJob& job = jobs[i];
      const GemmScratch::Plan& plan = plans[i];
      const float* from = job.in + (row - plan.first_row) * job.in_stride;
      std::byte* to = data + plan.a_offset + (row - plan.first_row) * plan.a_stride;
      if (job.weight->quant.integer()) {
        QuantizeRow(*kernels.quant, job, plan, from, row - plan.first_row, data + plan.a_offset);
      } else if (RoundsActivations(*job.weight)) {
        kernels.round_bf16(from, job.weight->cols, to);
      } else {
        std::memcpy(to, from, size_t(job.weight->cols) * sizeof(float));
      }
    }
  });
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

void PanelLinears(const GemmKernels& kernels, ThreadTeam& team, GemmScratch& scratch, std::span<const LinearJob> jobs) {
  std::vector<GemmScratch::Plan>& plans = scratch.plans;
  plans.assign(jobs.size(), {});
  for (size_t i = 0; i < jobs.size(); ++i) CutRows(kernels, jobs[i], plans[i]);
  Prepare(kernels, team, scratch, jobs);

  // One piece of work is a panel and a run of tiles: all of them, unless there
  // are too few panels to keep the team busy.
  int64_t panels = 0, work = 0, pieces = 0;
  for (const LinearJob& job : jobs) {
    panels += PanelsOf(job.weight->rows);
    work += job.rows * job.weight->rows * job.weight->cols;
  }
  if (work == 0) return;
  const int64_t wanted = int64_t{kPiecesPerThread} * team.size();
  for (size_t i = 0; i < jobs.size(); ++i) {
    plans[i].runs = std::min(team.size() == 1 ? 1 : (wanted + panels - 1) / panels, plans[i].tiles);
    plans[i].first_piece = pieces;
    pieces += PanelsOf(jobs[i].weight->rows) * plans[i].runs;
  }
  const int64_t grain = work < kSerialWork ? pieces : std::max<int64_t>(1, pieces / wanted);
  team.ParallelFor(pieces, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const size_t i = JobOf<&GemmScratch::Plan::first_piece>(plans, piece);
      const LinearJob& job = jobs[i];
      const GemmScratch::Plan& plan = plans[i];
      const Weight& weight = *job.weight;
      const int64_t panel = (piece - plan.first_piece) / plan.runs, run = (piece - plan.first_piece) % plan.runs,
                    column = panel * kPanelColumns;
      const auto* packed =
          static_cast<const std::byte*>(weight.packed) + panel * PanelBytes(weight.cols, weight.dtype, weight.quant);
      const int columns = int(std::min<int64_t>(kPanelColumns, weight.rows - column));
      const int64_t tile_end = plan.tiles * (run + 1) / plan.runs, tile_begin = plan.tiles * run / plan.runs;
      for (int64_t t = tile_begin; t < tile_end; ++t) {
        const int64_t row = TileBegin(job, plan, t), row_end = TileBegin(job, plan, t + 1);
        RunTile(kernels, weight, plan.a + row * plan.a_stride, plan.a_stride, int(row_end - row), packed,
                job.bias != nullptr ? job.bias + column : nullptr, job.out + row * job.out_stride + column, job.out_stride,
                columns);
      }
    }
  });
}

void PanelLinear(const GemmKernels& kernels, ThreadTeam& team, GemmScratch& scratch, const float* in, int64_t rows,
                 const Weight& weight, const float* bias, float* out) {
  if (rows <= 0) return;
  const LinearJob job = {in, weight.cols, rows, &weight, bias, out, weight.rows};
  PanelLinears(kernels, team, scratch, {&job, 1});
}

}  // namespace kvasir
