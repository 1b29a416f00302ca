// Counter-based random numbers (Philox4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
// A draw depends only on (seed, stream, counter), never on call order, so a request's samples do not depend on its batch.
#pragma once

#include <array>
#include <cstdint>

namespace kvasir {

constexpr std::array<uint32_t, 4> Philox4x32(uint64_t seed, uint64_t stream, uint64_t counter) {
  std::array<uint32_t, 4> x = {uint32_t(counter), uint32_t(counter >> 32), uint32_t(stream), uint32_t(stream >> 32)};
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * x[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * x[2];
    x = {uint32_t(b >> 32) ^ x[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ x[3] ^ k1, uint32_t(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return x;
}

// Uniform in [0, 1) with 53 bits.
constexpr double UniformDouble(uint64_t seed, uint64_t stream, uint64_t counter) {
  const auto r = Philox4x32(seed, stream, counter);
  return double((uint64_t{r[0]} << 32 | r[1]) >> 11) * 0x1p-53;
}

// A small sequential generator over the same function, for tests and simulation.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}
  uint64_t Next() {
    const auto r = Philox4x32(seed_, stream_, counter_++);
    return uint64_t{r[0]} << 32 | r[1];
  }
  uint64_t Below(uint64_t bound) { return bound == 0 ? 0 : uint64_t((unsigned __int128)Next() * bound >> 64); }
  int64_t Between(int64_t low, int64_t high) { return low + int64_t(Below(uint64_t(high - low + 1))); }
  double Uniform() { return double(Next() >> 11) * 0x1p-53; }
  bool Chance(double p) { return Uniform() < p; }

 private:
  uint64_t seed_, stream_, counter_ = 0;
};

}  // namespace kvasir
