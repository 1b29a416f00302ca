#include "models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kvasir {

std::vector<double> RopeFrequencies(const ModelConfig& config, int64_t max_model_len) {
  const RopeScaling& scaling = config.rope_scaling;
  using Kind = RopeScaling::Kind;
  const double d = config.head_dim;
  double base = config.rope_theta;
  if (scaling.kind == Kind::kDynamic) {
    const double original = static_cast<double>(scaling.original_max_position);
    const double length = std::max(static_cast<double>(max_model_len), original);
    base *= std::pow(scaling.factor * length / original - (scaling.factor - 1), d / (d - 2));
  }
  std::vector<double> frequencies(config.head_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double f = std::pow(base, -2.0 * static_cast<double>(i) / d);
    if (scaling.kind == Kind::kLinear) f /= scaling.factor;
    if (scaling.kind == Kind::kLlama3) {
      const double original = static_cast<double>(scaling.original_max_position);
      const double wavelength = 2 * std::numbers::pi / f;
      if (wavelength > original / scaling.low_freq_factor) {
        f /= scaling.factor;
      } else if (wavelength >= original / scaling.high_freq_factor) {
        const double keep =
            (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
        f = (1 - keep) * f / scaling.factor + keep * f;
      }
    }
    frequencies[i] = f;
  }
  return frequencies;
}

void FillRope(const std::vector<double>& frequencies, int64_t first, int64_t count, float* cos, float* sin) {
  for (int64_t p = 0; p < count; ++p) {
    for (const double f : frequencies) {
      const double angle = static_cast<double>(first + p) * f;
      *cos++ = static_cast<float>(std::cos(angle));
      *sin++ = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace kvasir
