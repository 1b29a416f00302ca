#include "models/dummy_checkpoint.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <bit>

namespace kvasir {
namespace {

constexpr float kLargest = 0.0346f;

uint64_t Scramble(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

class DummyFile : public File {
 public:
  DummyFile(uint64_t seed, bool ones, uint64_t size) : seed_(seed), ones_(ones), size_(size) {}
  uint64_t size() const override { return size_; }
  Status ReadAt(uint64_t offset, void* out, size_t bytes) const override {
    KVASIR_CHECK(offset % 2 == 0 && bytes % 2 == 0 && offset + bytes <= size_, "{} bytes at {} of {}", bytes, offset, size_);
    auto* const values = static_cast<uint16_t*>(out);
    const uint64_t first = offset / 2;
    for (size_t i = 0; i < bytes / 2; ++i) values[i] = Value(first + i);
    return OkStatus();
  }

 private:
  uint16_t Value(uint64_t i) const {
    constexpr uint16_t kOne = 0x3f80;
    if (ones_) return kOne;
    const auto random = int16_t(Scramble(seed_ ^ (i / 4)) >> (16 * (i % 4)));
    return uint16_t(std::bit_cast<uint32_t>(float(random) * (kLargest / 32768)) >> 16);
  }
  const uint64_t seed_;
  const bool ones_;
  const uint64_t size_;
};

}  // namespace

Checkpoint::Place DummyTensors::Invent(const std::string& name, const std::vector<uint64_t>& shape) {
  auto invented = std::make_unique<Invented>();
  uint64_t elements = 1;
  for (const uint64_t size : shape) elements *= size;
  const bool norm = shape.size() == 1 && (name.find("norm") != std::string::npos || name.find("ln_") != std::string::npos);
  const bool ones = norm && !name.ends_with("bias");
  invented->tensor = {.name = name, .type = FindStoredType("BF16"), .shape = shape, .begin = 0, .end = 2 * elements};
  invented->shard.name = "made up";
  invented->shard.file = std::make_unique<DummyFile>(XXH3_64bits(name.data(), name.size()), ones, 2 * elements);
  tensors_.push_back(std::move(invented));
  return {&tensors_.back()->shard, &tensors_.back()->tensor};
}

Checkpoint DummyCheckpoint() {
  Checkpoint checkpoint;
  checkpoint.dummy = std::make_shared<DummyTensors>();
  return checkpoint;
}

}  // namespace kvasir
