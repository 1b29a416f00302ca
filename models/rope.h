// Rotary tables, computed on the host in double and stored as float32. Used by the model; devices only read the tables.
//
// Frequencies follow the published definitions: inv_freq[i] = base^(-2i / head_dim), then
//  * linear  (kaiokendev, 2023): inv_freq / factor;
//  * llama3  (Llama 3.1): long wavelengths divided by factor, short ones kept, a smooth blend between;
//  * dynamic (NTK-aware): base * (factor * L / original - (factor - 1))^(d / (d - 2)) for a text of L > original tokens.
//
// Dynamic NTK as published rotates all keys anew whenever the text grows: a cached key would be wrong one token later, and an
// answer would depend on chunking. Here L is fixed when the model is loaded: the longest text the server will accept
// (LoadOptions::max_model_len), or the original length if that is longer. So while max_model_len is at most the original length
// the result is the published one; with a longer max_model_len every position uses the one base of that length, and KV may be
// cached and shared.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config.h"

namespace kvasir {

// [head_dim / 2] angles per position, in radians.
std::vector<double> RopeFrequencies(const ModelConfig& config, int64_t max_model_len);

// cos and sin of positions [first, first + count), each [count, head_dim / 2].
void FillRope(const std::vector<double>& frequencies, int64_t first, int64_t count, float* cos, float* sin);

}  // namespace kvasir
