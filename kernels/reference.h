// The oracle's sampler, activations, expert routing and recurrent layers as free functions: written as the definitions read, with
// full sorts and doubles. Used by ReferenceDevice (kernels/reference.cc) and by tests; nothing that serves a request calls it.
//
// Fixed points of the sampler's definition (sampling.h), which every device shares:
//  * Adjusted logits are float32, each step rounded: mask (-Inf), + bias, repetition (l > 0 ? l / r : l * r, once per distinct
//    token of prompt and output), - frequency * count, - presence (both over output). Ids outside [0, vocab) are ignored.
//  * The order of tokens is by adjusted logit, larger first, ties to the lower id. Rank is the place in the raw order, from 1.
//  * Temperature 0: the first in that order; min_p, top_k and top_p cannot change it.
//  * Otherwise weight(i) = exp((l_i - l_max) / temperature). min_p keeps l_i - l_max >= temperature * log(min_p); top_k then
//    keeps the first k; top_p then keeps the shortest prefix of the order whose weight is at least top_p of what is left.
//  * The draw walks the kept tokens by rising id and takes the first whose running sum exceeds
//    UniformDouble(seed, stream, counter) * (sum of kept weights).
//  * NaN or +Inf in the raw row, +Inf or NaN after adjusting, or no token above -Inf: finite = false and token = 0.
#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/sampling.h"

namespace kvasir {

void ReferenceSample(const float* logits, int vocab, const SampleRow& row, SampleResult& result);
// out of one element; up is 1 when not gated.
double ReferenceActivation(const ActivationParams& activation, double x, double up);
// One row of Device::Route.
void ReferenceRoute(const float* logits, const MoeRouting& routing, int32_t* ids, float* weights);
// One text of Device::CausalConv and of Device::DeltaRule. The state is rounded to float32 after every token, as if each were
// computed by itself.
void ReferenceConv(const float* in, int64_t in_stride, const DeltaNet& net, const Weight& weight, int layer,
                   const SequenceSlice& slice, const PagedKv& kv, float* out);
void ReferenceDeltaRule(const float* qkv, const float* gates, int64_t gate_stride, const DeltaNet& net, const Weight& a_log,
                        const Weight& dt_bias, int layer, const SequenceSlice& slice, const PagedKv& kv, float* out);
void ReferenceScore(const float* logits, int vocab, int32_t token, int32_t num_top, SampleResult& result);

}  // namespace kvasir
