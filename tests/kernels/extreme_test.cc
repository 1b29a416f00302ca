// The largest sizes: texts of 131,072 tokens, 4,096 sequences in a step, a KV pool of 100 GB whose blocks lie anywhere in it,
// rows of activations gigabytes apart. What is looked for are offsets and counts that do not fit where they are kept. CUDA only,
// beside the reference; over the emulated GPU of tests/simt with fewer layers and heads, where of a pool only pages that are
// touched take memory.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/kernels/kv_fixture.h"

namespace kvasir::testing {
namespace {

// The emulated GPU is as large here as the one it stands for.
const int kEmulatedMemory = setenv("KVASIR_SIMT_GIB", "140", 0);

constexpr size_t kPoolBytes = 100'000'000'000;
// Entries count granules: with granules as small as these they pass 2^31 within the pool.
constexpr size_t kGranule = 32;
constexpr int kBlockTokens = 16;
constexpr int kLongText = 131072;

// 100 GB, or what there is room for on a smaller device.
size_t PoolBytes(const Device& device) {
  constexpr double kShare = 0.9;
  const size_t bytes = std::min(kPoolBytes, size_t(kShare * double(device.Info().memory_bytes)));
  if (bytes < kPoolBytes) std::fprintf(stderr, "a pool of %.1f GB: there is no room for 100 GB\n", double(bytes) / 1e9);
  return bytes;
}

struct ExtremeShape {
  KvFormat format;
  int layers, kv_heads, group, head_dim;
  int value_dim = 0;
  int window = 0;

  int q_heads() const { return kv_heads * group; }
  int out_dim() const { return value_dim > 0 ? value_dim : head_dim; }
  int rotary_dim() const { return value_dim > 0 ? 0 : head_dim / 2; }
  KvLayout layout() const {
    KvLayout layout = {format.dtype, kBlockTokens, layers, kv_heads, head_dim, value_dim};
    layout.quant = format.quant;
    return layout;
  }
};

// Floats on a device.
class Floats {
 public:
  Floats(Device& device, size_t count)
      : device_(device), data_(static_cast<float*>(device.Allocate(count * 4, "test").value())) {}
  Floats(Device& device, std::span<const float> values) : Floats(device, values.size()) {
    if (!values.empty()) device.CopyToDevice(data_, values.data(), values.size_bytes());
  }
  ~Floats() { device_.Free(data_); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data() const { return data_; }
  std::vector<float> Read(size_t at, size_t count) const {
    std::vector<float> out(count);
    device_.CopyToHost(out.data(), data_ + at, count * 4);
    return out;
  }

 private:
  Device& device_;
  float* const data_;
};

std::vector<float> Random(uint64_t seed, size_t count, float scale = 1) {
  Rng rng(seed);
  std::vector<float> out(count);
  for (float& v : out) v = scale * float(rng.Uniform() + rng.Uniform() + rng.Uniform() - 1.5);
  return out;
}

// A device with a pool of blocks. The first kPatterns blocks are patterns, which texts are made of by copying: every text has one
// pattern everywhere, but at three places a needle, a token that its queries look for. A block that is read from elsewhere, or
// not at all, changes what attention finds. The reference, which has no room, has the patterns alone: its texts name them again
// and again, and have a block of their own at the end.
class Side {
 public:
  static constexpr int kOrdinary = 13, kNeedles = 3, kPatterns = kOrdinary + kNeedles;

  // `bytes` of pool, for a reference so many blocks. `slots`: of a text; a needle weighs as much as all the rest of it.
  Side(Device& device, const ExtremeShape& shape, size_t bytes, int slots)
      : device_(device), shape_(shape), layout_(shape.layout()), num_blocks_(bytes / layout_.block_bytes()) {
    base_ = static_cast<std::byte*>(device.Allocate(num_blocks_ * layout_.block_bytes(), "pool").value());
    const int d = shape.head_dim, width = Width();
    std::vector<uint32_t> blocks;
    for (int i = 0; i < kPatterns; ++i) blocks.push_back(Entry(size_t(i)));
    const int rows = kPatterns * kBlockTokens;
    const SequenceTable table = {blocks.data(), rows, nullptr};
    const SequenceSlice slice = {0, rows, 0};
    const PagedKv kv = {base_, kGranule, layout_, {&table, 1}};
    const std::vector<int32_t> positions(size_t(rows), 0);
    std::vector<float> values = Random(7, size_t(rows) * width);
    for (int row = kOrdinary * kBlockTokens; row < rows; row += kBlockTokens) {
      // The key of a needle: in the half that is not rotated, along what queries have there.
      for (int h = 0; h < shape.kv_heads; ++h) {
        float* const key = &values[size_t(row) * width + (shape.value_dim > 0 ? 0 : (shape.q_heads() + h) * d)];
        for (int j = 0; j < d; ++j) key[j] = j < d / 2 ? 0.0f : Direction(j) * Strength(slots);
      }
    }
    const Floats in(device, values), q(device, size_t(rows) * shape.q_heads() * d);
    if (shape.value_dim > 0)
      device.AppendLatent(in.data(), Layer(), {&slice, 1}, kv);
    else
      device.RopeAppend(in.data(), positions, {}, shape.q_heads(), Layer(), {&slice, 1}, kv, q.data());
    EXPECT_TRUE(device.Synchronize().ok());
  }
  ~Side() { device_.Free(base_); }

  // All floats of a row that is appended.
  int Width() const {
    return shape_.value_dim > 0 ? shape_.head_dim : (shape_.q_heads() + 2 * shape_.kv_heads) * shape_.head_dim;
  }
  int Layer() const { return shape_.layers - 1; }  // that there is KV in: the one that lies farthest in a block
  size_t num_blocks() const { return num_blocks_; }
  uint32_t Entry(size_t block) const { return uint32_t(block * (layout_.block_bytes() / kGranule)); }
  std::byte* Address(uint32_t entry) const { return base_ + size_t{entry} * kGranule; }
  void CopyPattern(uint32_t entry, int pattern) {
    device_.CopyOnDevice(Address(entry), Address(Entry(size_t(pattern))), layout_.block_bytes());
  }
  PagedKv View(std::span<const SequenceTable> tables) const { return {base_, kGranule, layout_, tables}; }
  Device& device() const { return device_; }

  // What queries have in element j, of those that are not rotated.
  static float Direction(int j) { return j % 3 == 0 ? 1.0f : -0.5f; }
  float Strength(int slots) const {
    const int d = shape_.head_dim;
    double square = 0;
    for (int j = d / 2; j < d; ++j) square += Direction(j) * Direction(j);
    return float(std::log(double(slots)) * std::sqrt(double(d)) / square);
  }

 private:
  Device& device_;
  const ExtremeShape shape_;
  const KvLayout layout_;
  const size_t num_blocks_;
  std::byte* base_ = nullptr;
};

// Which pattern is block `block` of `blocks` of text `text`.
int PatternOf(int text, int block, int blocks) {
  if (block == 0) return Side::kOrdinary;
  if (block == blocks / 2) return Side::kOrdinary + 1;
  if (block == blocks - 2) return Side::kOrdinary + 2;
  return text % Side::kOrdinary;
}

// So many texts, each with `slots` slots after a last step of `rows` tokens, on both sides.
class Texts {
 public:
  Texts(Device& device, const ExtremeShape& shape, int count, int slots, int rows)
      : shape_(shape),
        count_(count),
        slots_(slots),
        rows_(rows),
        reference_device_(MakeReferenceDevice()),
        pool_(device, shape, PoolBytes(device), slots),
        reference_(*reference_device_, shape, shape.layout().block_bytes() * size_t(Side::kPatterns + count * TailBlocks()),
                   slots) {
    Place();
    const int half = shape.rotary_dim() / 2, positions = slots;
    cos_ = Random(11, size_t(positions) * half), sin_ = Random(12, size_t(positions) * half);
    std::vector<float> q = Random(13, size_t(count) * rows * shape.q_heads() * shape.head_dim, 0.5f);
    for (size_t i = 0; i < q.size(); ++i) {
      const int j = int(i % size_t(shape.head_dim));
      q[i] = BF16ToF32(F32ToBF16(j < shape.head_dim / 2 ? q[i] : Side::Direction(j)));  // needles are found in any format
    }
    q_ = std::move(q);
    appended_ = Random(14, size_t(count) * rows * pool_.Width());
    if (shape.value_dim > 0) return;
    for (int row = 0; row < count * rows; ++row) {  // q heads lie at the front
      const size_t heads = size_t(shape.q_heads()) * shape.head_dim;
      std::copy_n(&q_[size_t(row) * heads], heads, &appended_[size_t(row) * pool_.Width()]);
    }
  }

  // One step, all texts together; what attention finds for the last row of those in `sampled` equals the reference's.
  void StepAndCompare(std::span<const int> sampled, double tolerance) {
    std::vector<int> all(static_cast<size_t>(count_));
    std::iota(all.begin(), all.end(), 0);
    constexpr int kLookedAt = 1;  // the reference takes seconds for a row
    const std::vector<float> found = Step(pool_, entries_, all, rows_), wanted = Step(reference_, patterns_, sampled, kLookedAt);
    const size_t row = size_t(shape_.q_heads()) * shape_.out_dim(), text = row * rows_, skipped = row * (rows_ - kLookedAt);
    double largest = 0, worst = 0;
    for (size_t i = 0; i < sampled.size(); ++i) {
      for (size_t j = skipped; j < text; ++j) {
        const float want = wanted[i * text + j], got = found[size_t(sampled[i]) * text + j];
        largest = std::max(largest, double(std::abs(want)));
        ASSERT_NEAR(got, want, tolerance) << Name(shape_.format) << " text " << sampled[i] << " element " << j;
        worst = std::max(worst, double(std::abs(got - want)));
      }
    }
    EXPECT_GT(largest, 0.2);  // else the tolerance would say nothing
    std::printf("  %s: %d x %d slots, largest %.3f, worst difference %.2e\n", std::string(Name(shape_.format)).c_str(), count_,
                slots_, largest, worst);
  }

 private:
  int Blocks() const { return (slots_ + kBlockTokens - 1) / kBlockTokens; }
  // Blocks that a step writes to are a text's own.
  int TailBlocks() const { return Blocks() - (slots_ - rows_) / kBlockTokens; }

  // Blocks of texts lie at even distances over the whole pool, to its last, in an order that knows no text.
  void Place() {
    const size_t wanted = size_t(count_) * Blocks(), room = pool_.num_blocks() - Side::kPatterns;
    ASSERT_LE(wanted, room);
    std::vector<uint32_t> places(wanted);
    for (size_t i = 0; i < wanted; ++i) {
      const size_t from_end = size_t((__uint128_t(i) * room) / wanted);
      places[i] = pool_.Entry(pool_.num_blocks() - 1 - from_end);
    }
    Rng rng(15);
    for (size_t i = wanted; i > 1; --i) std::swap(places[i - 1], places[rng.Below(i)]);
    size_t next = 0, own = Side::kPatterns;
    for (int text = 0; text < count_; ++text) {
      entries_.emplace_back(), patterns_.emplace_back();
      for (int block = 0; block < Blocks(); ++block) {
        const int pattern = PatternOf(text, block, Blocks());
        entries_.back().push_back(places[next++]);
        pool_.CopyPattern(entries_.back().back(), pattern);
        const bool tail = block >= Blocks() - TailBlocks();
        patterns_.back().push_back(reference_.Entry(tail ? own++ : size_t(pattern)));
        if (tail) reference_.CopyPattern(patterns_.back().back(), pattern);
      }
    }
    if (shape_.window == 0) return;
    for (std::vector<uint32_t>& entries : entries_)  // blocks before the window may have been given back
      for (int block = 0; (block + 1) * kBlockTokens <= slots_ - rows_ + 1 - shape_.window; ++block)
        entries[size_t(block)] = kNoBlock;
  }

  // [text of `which`, row, head, element]; of the last `looked_at` rows of each.
  std::vector<float> Step(Side& side, const std::vector<std::vector<uint32_t>>& entries, std::span<const int> which,
                          int looked_at) {
    Device& device = side.device();
    const size_t q_width = size_t(shape_.q_heads()) * shape_.head_dim, width = size_t(side.Width());
    std::vector<SequenceTable> tables;
    std::vector<SequenceSlice> slices;
    std::vector<int32_t> positions;
    std::vector<float> appended, queries;
    for (const int text : which) {
      slices.push_back({int32_t(slices.size()) * rows_, rows_, int32_t(tables.size())});
      tables.push_back({entries[size_t(text)].data(), slots_, nullptr});
      for (int i = 0; i < rows_; ++i) positions.push_back(slots_ - rows_ + i);
      const size_t row = size_t(text) * rows_;
      appended.insert(appended.end(), &appended_[row * width], &appended_[row * width] + rows_ * width);
      queries.insert(queries.end(), &q_[row * q_width], &q_[row * q_width] + rows_ * q_width);
    }
    const PagedKv kv = side.View(tables);
    const Floats in(device, appended), q(device, queries), cos(device, cos_), sin(device, sin_),
        out(device, positions.size() * shape_.q_heads() * shape_.out_dim());
    const RopeTable rope = {cos.data(), sin.data(), shape_.rotary_dim(), slots_};
    device.StartStep({.positions = positions, .slices = slices, .kv = {&kv, 1}}, int(positions.size()));
    if (shape_.value_dim > 0)
      device.AppendLatent(in.data(), side.Layer(), slices, kv);
    else
      device.RopeAppend(in.data(), positions, rope, shape_.q_heads(), side.Layer(), slices, kv, q.data());
    std::vector<SequenceSlice> last = slices;
    for (SequenceSlice& slice : last) slice.first_row += rows_ - looked_at, slice.num_rows = looked_at;
    const AttentionParams params = {shape_.q_heads(), float(1 / std::sqrt(double(shape_.head_dim))), shape_.window};
    device.Attention(q.data(), side.Layer(), params, looked_at == rows_ ? slices : last, kv, out.data());
    const std::vector<float> found = out.Read(0, positions.size() * shape_.q_heads() * shape_.out_dim());
    EXPECT_TRUE(device.FinishStep());
    EXPECT_TRUE(device.Synchronize().ok()) << device.Synchronize();
    return found;
  }

  const ExtremeShape shape_;
  const int count_, slots_, rows_;
  const std::unique_ptr<Device> reference_device_;
  Side pool_, reference_;
  std::vector<std::vector<uint32_t>> entries_, patterns_;  // [text][block]: on the device, and the reference's
  std::vector<float> cos_, sin_, q_, appended_;
};

class ExtremeTest : public ::testing::TestWithParam<DeviceChoice> {
 protected:
  ExtremeShape Shape(KvFormat format) const {
    return emulated_ ? ExtremeShape{format, 2, 1, 2, 32} : ExtremeShape{format, 64, 4, 4, 128};
  }
  void Check(const ExtremeShape& shape, int count, int slots, int rows, std::vector<int> sampled) {
    constexpr double kTolerance = 5e-3;  // rounding of q and weights, at scores of twelve
    Texts texts(*device_, shape, count, slots, rows);
    if (!HasFatalFailure()) texts.StepAndCompare(sampled, kTolerance);
  }
  const std::unique_ptr<Device> device_ = MakeDevice(GetParam());
  const bool emulated_ = IsEmulated(*device_);
};

TEST_P(ExtremeTest, TextsOf128kAnywhereInAPoolOf100GB) {
  std::vector<KvFormat> formats = {DType::kBF16, KvQuant::kInt8, DType::kF32};
  if (emulated_) formats.push_back(KvQuant::kInt4);  // with large heads the reference takes many seconds for it
  for (const KvFormat format : formats) {
    const ExtremeShape shape = Shape(format);
    const size_t text_bytes = shape.layout().block_bytes() * (kLongText / kBlockTokens + 1);
    Check(shape, emulated_ ? 1 : int(std::min<size_t>(5, PoolBytes(*device_) / text_bytes)), kLongText + 11, 1, {0});
  }
}

TEST_P(ExtremeTest, TheEndOfAPromptOf128k) {
  Check(Shape(DType::kBF16), 1, kLongText + 3, emulated_ ? 20 : 300, {0});
}

TEST_P(ExtremeTest, AWindowAndLatentKeysAt128k) {
  ExtremeShape window = Shape(DType::kBF16);
  window.window = 1000;
  Check(window, 1, kLongText + 1, 1, {0});
  const ExtremeShape latent =
      emulated_ ? ExtremeShape{DType::kBF16, 2, 1, 2, 288, 256} : ExtremeShape{DType::kBF16, 60, 1, 8, 576, 512};
  Check(latent, 1, (emulated_ ? 16384 : kLongText) + 1, 1, {0});
}

TEST_P(ExtremeTest, AStepOf4096Sequences) {
  constexpr int kSequences = 4096;
  ExtremeShape shape = Shape(DType::kBF16);
  const size_t room = PoolBytes(*device_) / shape.layout().block_bytes() / kSequences;  // on a GPU they fill the pool
  const int slots = emulated_ ? 70 : int(std::min<size_t>(room, 11)) * kBlockTokens - 5;
  Check(shape, kSequences, slots, 1, {0, 1, 63, 2047, 2048, 3000, 4094, 4095});
}

// A block of the pool's end comes to the host and back, and to another place.
TEST_P(ExtremeTest, BlocksOfThePoolsEndAreCopied) {
  const ExtremeShape shape = Shape(DType::kBF16);
  const size_t bytes = shape.layout().block_bytes(), pool_bytes = PoolBytes(*device_);
  Side pool(*device_, shape, pool_bytes, 100);
  void* const host = device_->AllocateHost(bytes, "a block").value();
  std::vector<unsigned char> pattern(bytes), back(bytes);
  device_->CopyToHost(pattern.data(), pool.Address(pool.Entry(3)), bytes);
  const uint32_t last = pool.Entry(pool.num_blocks() - 1), middle = pool.Entry(pool.num_blocks() / 2);
  if (pool_bytes == kPoolBytes) {
    EXPECT_GT(last, uint32_t{1} << 31);
  }
  pool.CopyPattern(last, 3);
  device_->CopyOut(host, pool.Address(last), bytes);
  device_->CopyIn(pool.Address(middle), host, bytes);
  device_->CopyToHost(back.data(), pool.Address(middle), bytes);
  EXPECT_EQ(back, pattern);
  device_->FreeHost(host);
}

// Recurrent state at the end of a text of 128k: read from one block of the pool's end, kept in two others.
TEST_P(ExtremeTest, RecurrentStateAt128k) {
  const DeltaNet net = emulated_ ? DeltaNet{1, 2, 16, 16, 4} : DeltaNet{16, 32, 128, 128, 4};
  constexpr int kBlock = 256, kRows = 5;
  const int layers = emulated_ ? 2 : 36, slots = kLongText + 3, blocks = (slots + kBlock - 1) / kBlock;
  const int64_t stride = net.channels() + 2 * net.value_heads;
  KvLayout layout = {DType::kF32, kBlock, layers, 1, 1};
  layout.state_floats = net.state_floats();
  const std::vector<float> rows = Random(1, size_t(kRows * stride)), before = Random(2, size_t(net.state_floats()), 0.1f),
                           weights = Random(3, size_t(net.kernel * net.channels())),
                           gates = Random(4, size_t(2 * net.value_heads));
  const auto run = [&](Device& device, size_t pool_bytes) {
    const size_t room = pool_bytes / layout.block_bytes();
    auto* const base = static_cast<std::byte*>(device.Allocate(room * layout.block_bytes(), "pool").value());
    std::vector<uint32_t> entries(size_t(blocks), kNoBlock);  // a window of two tokens leaves no others
    for (int i = 1; i <= 2; ++i) entries[size_t(blocks - i)] = uint32_t((room - i) * (layout.block_bytes() / kGranule));
    const SequenceTable table = {entries.data(), slots, nullptr};
    const SequenceSlice slice = {0, kRows, 0};
    const PagedKv kv = {base, kGranule, layout, {&table, 1}};
    device.CopyToDevice(kv.State(0, layers - 1, blocks - 2), before.data(), before.size() * 4);
    const auto vector = [&](const std::vector<float>& values, size_t first, size_t count) {
      const HostMatrix part = {values.data() + first, DType::kF32, 1, int64_t(count), "v"};
      return device.PackVector({&part, 1}).value();
    };
    const size_t heads = size_t(net.value_heads);
    const Weight conv = vector(weights, 0, weights.size()), a_log = vector(gates, 0, heads),
                 dt_bias = vector(gates, heads, heads);
    const Floats in(device, rows), convolved(device, size_t(kRows * net.channels())), out(device, size_t(kRows * net.values()));
    device.CausalConv(in.data(), stride, net, conv, layers - 1, {&slice, 1}, kv, convolved.data());
    device.DeltaRule(convolved.data(), in.data() + net.channels(), stride, net, a_log, dt_bias, layers - 1, {&slice, 1}, kv,
                     out.data());
    std::vector<float> found = out.Read(0, size_t(kRows * net.values()));
    for (int i = 2; i >= 1; --i) {
      std::vector<float> state(size_t(net.state_floats()));
      device.CopyToHost(state.data(), kv.State(0, layers - 1, blocks - i), state.size() * 4);
      found.insert(found.end(), state.begin(), state.end());
    }
    EXPECT_TRUE(device.Synchronize().ok());
    device.Free(base);
    return found;
  };
  const auto reference = MakeReferenceDevice();
  const std::vector<float> found = run(*device_, PoolBytes(*device_)), wanted = run(*reference, 2 * layout.block_bytes());
  for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(found[i], wanted[i], 1e-4) << i;
}

// Ops over three rows that lie 8 GiB from each other: beside the reference over rows that lie close.
TEST_P(ExtremeTest, RowsThatLieFarApart) {
  constexpr int kRows = 3, kGroups = 2, kWidth = 32, kUsed = kGroups * kWidth, kGathered = 40000, kFarRow = 60000;
  const std::vector<float> values = Random(1, kRows * kUsed), gate = Random(2, kRows * kUsed),
                           weights = Random(3, kWidth * kWidth);
  const std::vector<float> cos = Random(4, kLongText * kWidth / 2), sin = Random(5, kLongText * kWidth / 2);
  const std::vector<int32_t> positions = {0, kLongText - 1, 77};
  const auto run = [&](Device& device, int64_t stride) {
    const Floats far(device, size_t(2 * stride + kUsed)), gates(device, gate), close(device, kRows * kUsed);
    for (int64_t i = 0; i < kRows; ++i) device.CopyToDevice(far.data() + i * stride, &values[size_t(i) * kUsed], kUsed * 4);
    const Floats on_cos(device, cos), on_sin(device, sin);
    const Slices spread = {stride, 0, kGroups, kWidth, kWidth}, packed = {kUsed, 0, kGroups, kWidth, kWidth};
    std::vector<float> found;
    const auto keep = [&] {
      const std::vector<float> now = close.Read(0, kRows * kUsed);
      found.insert(found.end(), now.begin(), now.end());
    };
    const auto look = [&] {
      device.CopySlices(far.data(), spread, kRows, close.data(), packed);
      keep();
    };
    device.NormSlices(far.data(), kRows, spread, {});
    look();
    device.RotateSlices(far.data(), kRows, spread, positions, {on_cos.data(), on_sin.data(), kWidth, kLongText});
    look();
    device.CopySlices(gates.data(), packed, kRows, close.data(), packed);
    device.MultiplyGate(close.data(), GateKind::kSilu, far.data(), stride, kRows, kUsed);
    keep();
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      std::vector<Weight> heads;
      for (int h = 0; h < kGroups; ++h) {
        const HostMatrix part = {weights.data(), DType::kF32, kWidth, kWidth, "w"};
        heads.push_back(device.PackLinear({&part, 1}, dtype).value());
      }
      device.LinearHeads(gates.data(), kRows, heads, {kUsed, kWidth, stride, kWidth}, far.data());
      look();
      device.LinearHeads(far.data(), kRows, heads, {stride, kWidth, kUsed, kWidth}, close.data());
      keep();
    }
    EXPECT_TRUE(device.Synchronize().ok());
    return found;
  };
  const auto reference = MakeReferenceDevice();
  const std::vector<float> found = run(*device_, (int64_t{1} << 31) + 64), wanted = run(*reference, kUsed);
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(found[i], wanted[i], 2e-2 * std::max(1.0f, std::abs(wanted[i]))) << i;

  const Floats table(*device_, size_t{kFarRow + 1} * kGathered), row(*device_, kGathered);
  device_->CopyToDevice(table.data() + size_t{kFarRow} * kGathered, values.data(), kUsed * 4);
  device_->GatherRows(table.data(), std::vector<int32_t>{kFarRow}, kGathered, row.data());
  EXPECT_EQ(row.Read(0, kUsed), std::vector<float>(values.begin(), values.begin() + kUsed)) << "of row " << kFarRow;
}

// The rows of 4,096 sequences through the ops around attention, with as many logits as a large vocabulary has.
TEST_P(ExtremeTest, LogitsOf4096Sequences) {
  const int rows = 4096, width = emulated_ ? 64 : 896, vocab = emulated_ ? 500 : 151936;
  const std::vector<float> table = Random(1, size_t(vocab) * width);
  std::vector<int32_t> ids;
  for (int i = 0; i < rows; ++i) ids.push_back(int32_t(int64_t{i} * 7919 % vocab));
  const HostMatrix matrix = {table.data(), DType::kF32, vocab, width, "head"};
  struct Found {
    std::vector<float> hidden, logits;
  };
  const auto run = [&](Device& device, std::span<const int32_t> ids, std::span<SampleResult> results,
                       std::span<const int> looked_at) {
    const Weight embedding = device.PackEmbedding(matrix, DType::kBF16).value();
    const Weight head = device.PackLinear({&matrix, 1}, DType::kBF16).value();
    const size_t count = ids.size();
    const Floats x(device, count * width), normed(device, count * width), active(device, count * width),
        logits(device, count * vocab);
    device.Embed(embedding, ids, 1, x.data());
    device.AddNorm(x.data(), nullptr, 1, {}, int(count), width, normed.data());
    device.Activate(Activation::kSilu, false, normed.data(), int(count), width, active.data());
    device.Linear(active.data(), int(count), head, nullptr, logits.data());
    const SamplingParams greedy = {.temperature = 0};
    const std::vector<SampleRow> wanted(count, {.params = &greedy});
    if (!results.empty()) device.Sample(logits.data(), vocab, wanted, results);
    std::vector<Found> found;
    for (const int row : looked_at)
      found.push_back({active.Read(size_t(row) * width, size_t(width)), logits.Read(size_t(row) * vocab, size_t(vocab))});
    EXPECT_TRUE(device.Synchronize().ok());
    return found;
  };
  const std::vector<int> sampled = {0, 1, 127, 128, 2048, 3500, 4095};
  std::vector<int32_t> sampled_ids;
  for (const int row : sampled) sampled_ids.push_back(ids[size_t(row)]);
  std::vector<int> all(sampled.size());
  std::iota(all.begin(), all.end(), 0);
  std::vector<SampleResult> results(rows);
  const auto found = run(*device_, ids, results, sampled);
  const auto reference = MakeReferenceDevice();
  const auto wanted = run(*reference, sampled_ids, {}, all);
  for (size_t i = 0; i < sampled.size(); ++i) {
    for (size_t j = 0; j < size_t(width); ++j) ASSERT_NEAR(found[i].hidden[j], wanted[i].hidden[j], 1e-4) << sampled[i];
    for (size_t j = 0; j < size_t(vocab); ++j)
      ASSERT_NEAR(found[i].logits[j], wanted[i].logits[j], 0.05) << sampled[i] << " " << j;
    const auto& logits = found[i].logits;
    EXPECT_EQ(results[size_t(sampled[i])].token, std::max_element(logits.begin(), logits.end()) - logits.begin()) << sampled[i];
  }
}

std::vector<DeviceChoice> Gpus() {
  std::vector<DeviceChoice> all = AllDevices();
  std::erase_if(all, [](const DeviceChoice& choice) { return choice.name != "cuda"; });
  return all;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ExtremeTest);  // without a GPU
INSTANTIATE_TEST_SUITE_P(Devices, ExtremeTest, ::testing::ValuesIn(Gpus()), ChoiceName);

}  // namespace
}  // namespace kvasir::testing
