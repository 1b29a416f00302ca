// The two halves of a layer: attention (plain, latent, gated delta net) and feed-forward (dense and mixture of experts).
#include "models/decoder.h"

namespace kvasir {

void Decoder::Attend(const ForwardInput& input, int i, int rows, const float* in, float* out) {
  const LayerWeights& layer = weights_.layers[i];
  if (layer.latent) return AttendLatent(input, i, rows, in, out);
  if (layer.delta) return AttendDelta(input, i, rows, in, out);
  const AttentionWeights& attention = *layer.attention;
  const LayerSpec& spec = config_.layers[i];
  const KvPlan::Place place = kv_plan_.layers[i];
  const PagedKv& kv = input.kv[place.group];
  const int d = config_.head_dim;
  const int q_heads = config_.num_q_heads, kv_heads = config_.num_kv_heads;
  const bool own_kv = spec.kv_owner == i;
  const int64_t q_width = int64_t{q_heads} * d, stride = q_width + (own_kv ? 2 * int64_t{kv_heads} * d : 0);

  device_->Linear(in, rows, attention.qkv, OrNull(attention.qkv_bias), own_kv ? qkv_ : q_);
  float* const qkv = own_kv ? qkv_ : q_;
  if (config_.qk_norm != QkNorm::kNone) {
    const bool whole = config_.qk_norm == QkNorm::kWhole;
    const auto norm = [&](const Weight& weight, int64_t offset, int heads) {
      const Slices slices = {
          .stride = stride, .offset = offset, .groups = whole ? 1 : heads, .group_stride = d, .width = whole ? heads * d : d};
      device_->NormSlices(qkv, rows, slices, {.kind = config_.norm, .weight = &weight, .eps = config_.norm_eps});
    };
    norm(*attention.q_norm, 0, q_heads);
    if (own_kv) norm(*attention.k_norm, q_width, kv_heads);
  }
  const RopeTable rope = Table(spec.rope);
  if (own_kv) {
    device_->RopeAppend(qkv_, input.positions, rope, q_heads, place.layer, input.slices, kv, q_);
  } else if (spec.rope >= 0) {
    device_->RotateSlices(q_, rows, {.stride = q_width, .groups = q_heads, .group_stride = d, .width = d}, input.positions, rope);
  }
  const AttentionParams params = {
      .num_q_heads = q_heads,
      .scale = config_.attention_scale / (config_.attention_scale_by_layer ? static_cast<float>(i + 1) : 1.0f),
      .window = spec.window,
      .softcap = config_.attention_softcap,
      .sinks = OrNull(attention.sinks)};
  device_->Attention(q_, place.layer, params, input.slices, kv, attended_);
  if (attention.gate) {
    device_->Linear(in, rows, *attention.gate, OrNull(attention.gate_bias), gate_);
    device_->MultiplyGate(attended_, GateKind::kSigmoid, gate_, q_width, rows, static_cast<int>(q_width));
  }
  device_->Linear(attended_, rows, attention.o, OrNull(attention.o_bias), out);
}

// Multi-head latent attention (DeepSeek-V2, section 2.1), absorbed: a query's unrotated part is taken into the latent space by
// the key up-projection, compared there with the cached latents, and the weighted latent is taken out by the value up-projection.
void Decoder::AttendLatent(const ForwardInput& input, int i, int rows, const float* in, float* out) {
  const LatentWeights& latent = *weights_.layers[i].latent;
  const LatentSpec& spec = *config_.latent;
  const KvPlan::Place place = kv_plan_.layers[i];
  const PagedKv& kv = input.kv[place.group];
  const int heads = config_.num_q_heads;
  const int64_t head = spec.nope_dim + spec.rope_dim, key = spec.kv_rank + spec.rope_dim;
  const RopeTable rope = Table(config_.layers[i].rope);
  // The norms of the two latents have an epsilon of their own in transformers, whatever rms_norm_eps says.
  const auto norm = [&](const Weight& weight) { return Norm{.kind = config_.norm, .weight = &weight, .eps = 1e-6f}; };

  const float* query_input = in;
  if (latent.q_down) {
    device_->Linear(in, rows, *latent.q_down, OrNull(latent.q_down_bias), q_down_);
    device_->NormSlices(q_down_, rows, {.stride = spec.q_rank, .width = spec.q_rank}, norm(*latent.q_norm));
    query_input = q_down_;
  }
  device_->Linear(query_input, rows, latent.q, nullptr, qkv_);
  const Slices query_rope = {
      .stride = heads * head, .offset = spec.nope_dim, .groups = heads, .group_stride = head, .width = spec.rope_dim};
  device_->RotateSlices(qkv_, rows, query_rope, input.positions, rope);

  device_->Linear(in, rows, latent.kv_down, OrNull(latent.kv_down_bias), latent_);
  device_->NormSlices(latent_, rows, {.stride = key, .width = spec.kv_rank}, norm(latent.kv_norm));
  device_->RotateSlices(latent_, rows, {.stride = key, .offset = spec.kv_rank, .width = spec.rope_dim}, input.positions, rope);
  device_->AppendLatent(latent_, place.layer, input.slices, kv);

  device_->LinearHeads(qkv_, rows, latent.query_up,
                       {.in_stride = heads * head, .in_head_stride = head, .out_stride = heads * key, .out_head_stride = key},
                       q_);
  const Slices key_rope = {
      .stride = heads * key, .offset = spec.kv_rank, .groups = heads, .group_stride = key, .width = spec.rope_dim};
  device_->CopySlices(qkv_, query_rope, rows, q_, key_rope);

  const AttentionParams params = {.num_q_heads = heads, .scale = config_.attention_scale, .window = config_.layers[i].window};
  device_->Attention(q_, place.layer, params, input.slices, kv, attended_);
  device_->LinearHeads(attended_, rows, latent.value_up,
                       {.in_stride = int64_t{heads} * spec.kv_rank,
                        .in_head_stride = spec.kv_rank,
                        .out_stride = int64_t{heads} * spec.value_dim,
                        .out_head_stride = spec.value_dim},
                       values_);
  device_->Linear(values_, rows, latent.o, OrNull(latent.o_bias), out);
}

// Gated delta net (see DeltaNet) as Qwen3-Next has it: a short convolution before, a norm and a gate behind.
void Decoder::AttendDelta(const ForwardInput& input, int i, int rows, const float* in, float* out) {
  const DeltaWeights& delta = *weights_.layers[i].delta;
  const DeltaNet& net = *config_.delta;
  const KvPlan::Place place = kv_plan_.layers[i];
  const PagedKv& kv = input.kv[place.group];
  const int64_t channels = net.channels(), values = net.values(), stride = delta.in.rows;
  device_->Linear(in, rows, delta.in, nullptr, delta_in_);
  device_->CausalConv(delta_in_, stride, net, delta.conv, place.layer, input.slices, kv, convolved_);
  device_->DeltaRule(convolved_, delta_in_ + channels + values, stride, net, delta.a_log, delta.dt_bias, place.layer,
                     input.slices, kv, delta_out_);
  const Slices heads = {.stride = values, .groups = net.value_heads, .group_stride = net.value_dim, .width = net.value_dim};
  device_->NormSlices(delta_out_, rows, heads, {.kind = NormKind::kRms, .weight = &delta.norm, .eps = config_.norm_eps});
  device_->MultiplyGate(delta_out_, GateKind::kSilu, delta_in_ + channels, stride, rows, static_cast<int>(values));
  device_->Linear(delta_out_, rows, delta.o, nullptr, out);
}

void Decoder::Mlp(const MlpWeights& mlp, int64_t width, int rows, const float* in, float* out) {
  device_->Linear(in, rows, mlp.up, OrNull(mlp.up_bias), up_);
  device_->Activate(config_.activation, config_.gated, up_, rows, static_cast<int>(width), activated_);
  device_->Linear(activated_, rows, mlp.down, OrNull(mlp.down_bias), out);
}

void Decoder::Experts(const ExpertsWeights& experts, int rows, const float* in, float* out) {
  const MoeSpec& moe = *config_.moe;
  MoeRouting routing = moe.routing;
  routing.correction = OrNull(experts.correction);
  device_->Linear(in, rows, experts.router, OrNull(experts.router_bias), router_logits_);
  device_->Route(router_logits_, rows, routing, expert_ids_, expert_weights_);
  const MoeWeights weights = {
      .gate_up = experts.up, .down = experts.down, .gate_up_bias = experts.up_bias, .down_bias = experts.down_bias};
  device_->Experts(in, rows, weights, config_.activation, moe.top_k, expert_ids_, expert_weights_, out);
  if (!experts.shared) return;
  const int hidden = static_cast<int>(config_.hidden_size);
  Mlp(*experts.shared, moe.shared_intermediate_size, rows, in, other_);
  if (experts.shared_gate) {
    device_->Linear(in, rows, *experts.shared_gate, nullptr, shared_gate_);
    device_->AddGated(out, other_, shared_gate_, rows, hidden);
  } else {
    device_->Add(out, other_, 1, rows, hidden);
  }
}

void Decoder::FeedForward(int i, int rows, const float* in, float* out) {
  const LayerWeights& layer = weights_.layers[i];
  if (layer.experts) return Experts(*layer.experts, rows, in, out);
  Mlp(*layer.mlp, config_.intermediate_size, rows, in, out);
}

}  // namespace kvasir
