// Decoder: the one transformer loop, for every row of the families table. It owns the activations and the rotary tables; the
// weights lie on the device. Made by Model::Load; one thread.
#pragma once

#include <string>
#include <vector>

#include "models/kv_plan.h"
#include "models/model.h"
#include "models/weights.h"

namespace kvasir {

class Decoder : public Model {
 public:
  Decoder(Device* device, ModelConfig config, GenerationDefaults defaults, ModelWeights weights, const LoadOptions& options);
  ~Decoder() override;

  const ModelConfig& config() const override { return config_; }
  const GenerationDefaults& generation_defaults() const override { return defaults_; }
  size_t weight_bytes() const override { return weights_.bytes; }
  size_t linear_bytes() const override { return weights_.linear_bytes; }
  QuantFormat quantization() const override { return weights_.quantization; }
  std::string formats() const override { return weights_.formats; }
  bool weights_mapped() const override { return weights_.mapped != nullptr; }
  int64_t max_model_len() const override { return max_model_len_; }
  std::vector<KvGroup> kv_groups(int block_tokens, std::optional<KvFormat> kv_format) const override;
  std::string fingerprint() const override;

  Status AllocateActivations();
  Status Forward(const ForwardInput& input, bool logits) override;
  StatusOr<const float*> Logits(std::span<const int32_t> rows) override;

 private:
  // A rotary table on the device, filled as far as texts have grown.
  struct Rotation {
    std::vector<double> frequencies;
    double scale = 1;
    float* cos = nullptr;  // [max_model_len, frequencies.size()]
    float* sin = nullptr;
    int64_t filled = 0;
  };

  StatusOr<float*> AllocateRows(int64_t rows, int64_t width, std::string_view what);
  Status AllocateLatent();
  Status AllocateDelta();
  Status AllocateExperts();
  Status CheckInput(const ForwardInput& input) const;
  Status CheckKv(const ForwardInput& input) const;
  void RotateUpTo(Rotation& rotation, int64_t position);
  RopeTable Table(int rope) const;
  Norm MakeNorm(const NormWeights& weights) const;

  // All layers, for so many rows.
  void RunLayers(const ForwardInput& input, int rows);
  void ComputeLogits(const float* in, int rows);
  // With room for the rows that a device fills a step up with.
  int logits_rows() const { return (max_logits_rows_ + 31) / 32 * 32; }
  // The halves of a layer; each reads `in` and writes `out`, both [rows, hidden].
  void Attend(const ForwardInput& input, int layer, int rows, const float* in, float* out);
  void AttendLatent(const ForwardInput& input, int layer, int rows, const float* in, float* out);
  void AttendDelta(const ForwardInput& input, int layer, int rows, const float* in, float* out);
  void Mlp(const MlpWeights& mlp, int64_t width, int rows, const float* in, float* out);
  void Experts(const ExpertsWeights& experts, int rows, const float* in, float* out);
  void FeedForward(int layer, int rows, const float* in, float* out);

  Device* const device_;
  ModelConfig config_;
  const GenerationDefaults defaults_;
  const ModelWeights weights_;
  const int max_step_tokens_;
  const int max_logits_rows_;
  const int64_t max_model_len_;
  const KvPlan kv_plan_;
  const uint64_t program_;           // StepInput::program; the next one is that with logits
  std::vector<Rotation> rotations_;  // one per ModelConfig::ropes

  // Device memory, taken once; [max_step_tokens, width] unless said.
  std::vector<void*> owned_;
  float* residual_ = nullptr;   // [, hidden]
  float* normed_ = nullptr;     // [, hidden]; after Forward the final hidden states
  float* delta_ = nullptr;      // [, hidden]: what a block adds to the residual stream
  float* other_ = nullptr;      // [, hidden]: a second block's, or a shared expert's
  float* qkv_ = nullptr;        // [, (Hq + 2 Hkv) * head_dim]; latent attention: the queries
  float* q_ = nullptr;          // [, Hq * head_dim]
  float* attended_ = nullptr;   // [, Hq * head_dim]; latent attention: Hq * kv_rank
  float* up_ = nullptr;         // [, 2 * widest feed-forward]
  float* activated_ = nullptr;  // [, widest feed-forward]
  float* picked_ = nullptr;     // [max_logits_rows, hidden]
  float* logits_ = nullptr;     // [logits_rows, vocab]
  float* gate_ = nullptr;       // [, Hq * head_dim]: of the attention's output
  // Gated delta nets.
  float* delta_in_ = nullptr;   // [, channels + values + 2 * value_heads]: q, k, v, z, b, a
  float* convolved_ = nullptr;  // [, channels]
  float* delta_out_ = nullptr;  // [, values]
  // Latent attention.
  float* q_down_ = nullptr;  // [, q_rank]
  float* latent_ = nullptr;  // [, kv_rank + rope]
  float* values_ = nullptr;  // [, Hq * value_dim]
  // Mixture of experts.
  float* router_logits_ = nullptr;   // [, experts]
  float* expert_weights_ = nullptr;  // [, top_k]
  int32_t* expert_ids_ = nullptr;    // [, top_k]
  float* shared_gate_ = nullptr;     // [, 1]
  int64_t last_rows_ = 0;            // rows of the last Forward
  bool has_logits_ = false;          // of all of them, in logits_
};

}  // namespace kvasir
