#include "models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kvasir {
namespace {

using Kind = RopeScaling::Kind;

double Llama3Frequency(const RopeScaling& scaling, double f) {
  const double original = static_cast<double>(scaling.original_max_position);
  const double wavelength = 2 * std::numbers::pi / f;
  if (wavelength > original / scaling.low_freq_factor) return f / scaling.factor;
  if (wavelength < original / scaling.high_freq_factor) return f;
  const double keep = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - keep) * f / scaling.factor + keep * f;
}

// The pairs between which YaRN blends: those that turn beta_fast and beta_slow times over the original length.
struct Ramp {
  double low = 0, high = 0;
};
Ramp YarnRamp(const Rope& rope) {
  const RopeScaling& scaling = rope.scaling;
  const auto pair_that_turns = [&](double times) {
    return rope.rotary_dim * std::log(static_cast<double>(scaling.original_max_position) / (times * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  Ramp ramp = {pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)};
  if (scaling.truncate) ramp = {std::floor(ramp.low), std::ceil(ramp.high)};
  ramp = {std::max(ramp.low, 0.0), std::min(ramp.high, rope.rotary_dim - 1.0)};
  if (ramp.low == ramp.high) ramp.high += 0.001;
  return ramp;
}

}  // namespace

std::vector<double> RopeFrequencies(const Rope& rope, int64_t max_model_len) {
  const RopeScaling& scaling = rope.scaling;
  const double d = rope.rotary_dim;
  double base = rope.theta;
  if (scaling.kind == Kind::kDynamic) {
    const double original = static_cast<double>(scaling.original_max_position);
    const double length = std::max(static_cast<double>(max_model_len), original);
    base *= std::pow(scaling.factor * length / original - (scaling.factor - 1), d / (d - 2));
  }
  const Ramp ramp = scaling.kind == Kind::kYarn ? YarnRamp(rope) : Ramp();
  const std::vector<double>& divisors =
      max_model_len > scaling.original_max_position ? scaling.long_factor : scaling.short_factor;
  std::vector<double> frequencies(rope.rotary_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double f = std::pow(base, -2.0 * static_cast<double>(i) / d);
    frequencies[i] = f;
    if (scaling.kind == Kind::kLinear) frequencies[i] = f / scaling.factor;
    if (scaling.kind == Kind::kLlama3) frequencies[i] = Llama3Frequency(scaling, f);
    if (scaling.kind == Kind::kLongRope) frequencies[i] = f / divisors[i];
    if (scaling.kind == Kind::kYarn) {
      const double interpolate = std::clamp((static_cast<double>(i) - ramp.low) / (ramp.high - ramp.low), 0.0, 1.0);
      frequencies[i] = f / scaling.factor * interpolate + f * (1 - interpolate);
    }
  }
  return frequencies;
}

void FillRope(const std::vector<double>& frequencies, double scale, int64_t first, int64_t count, float* cos, float* sin) {
  for (int64_t p = 0; p < count; ++p) {
    for (const double f : frequencies) {
      const double angle = static_cast<double>(first + p) * f;
      *cos++ = static_cast<float>(std::cos(angle) * scale);
      *sin++ = static_cast<float>(std::sin(angle) * scale);
    }
  }
}

}  // namespace kvasir
