// Rotary tables, computed on the host in double and stored as float32. Used by the model; devices only read the tables.
//
// Frequencies follow the published definitions: inv_freq[i] = base^(-2i / rotary_dim), then
//  * linear   (kaiokendev, 2023): inv_freq / factor;
//  * llama3   (Llama 3.1): long wavelengths divided by factor, short ones kept, a smooth blend between;
//  * dynamic  (NTK-aware): base * (factor * L / original - (factor - 1))^(d / (d - 2)) for a text of L > original tokens;
//  * yarn     (arXiv 2309.00071): dimensions that turn less than beta_slow times over the original length divided by factor,
//  those
//             that turn more than beta_fast times kept, a linear ramp between; cos and sin times an attention factor;
//  * longrope (arXiv 2402.13753): inv_freq / short_factor[i], or long_factor[i] for texts longer than the original length; cos
//  and
//             sin times an attention factor.
//
// Dynamic NTK and LongRoPE as published rotate all keys anew when a text outgrows the original length: a cached key would be
// wrong one token later, and an answer would depend on chunking. Here the length is fixed when the model is loaded: the longest
// text the server will accept (LoadOptions::max_model_len), or the original length if that is longer. So while max_model_len is
// at most the original length the result is the published one for every text; with a longer max_model_len every position uses the
// rotation of that length, and KV may be cached and shared.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config.h"

namespace kvasir {

// [rotary_dim / 2] angles per position, in radians.
std::vector<double> RopeFrequencies(const Rope& rope, int64_t max_model_len);

// cos and sin of positions [first, first + count) times `scale`, each [count, frequencies.size()].
void FillRope(const std::vector<double>& frequencies, double scale, int64_t first, int64_t count, float* cos, float* sin);

}  // namespace kvasir
