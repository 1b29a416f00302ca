#include "models/families.h"

#include <array>

namespace kvasir {
namespace {

// Defaults are those of the configuration classes of transformers: what a missing field means to everybody else.
constexpr BiasRule kAlways = {"", true};
constexpr BiasRule kAttentionBias = {"attention_bias", false};
constexpr BiasRule kMlpBias = {"mlp_bias", false};

constexpr TensorNames kLlamaNames = {};
constexpr TensorNames kFusedNames = {.qkv = "self_attn.qkv_proj", .gate_up = "mlp.gate_up_proj"};
constexpr TensorNames kSandwichNames = {.post_attention_norm = "post_attention_layernorm",
                                        .mlp_norm = "pre_feedforward_layernorm",
                                        .post_mlp_norm = "post_feedforward_layernorm"};
constexpr TensorNames kMixtralNames = {.router = "block_sparse_moe.gate",
                                       .experts = "block_sparse_moe.experts.",
                                       .expert_gate = "w1",
                                       .expert_up = "w3",
                                       .expert_down = "w2"};
constexpr TensorNames kQwenMoeNames = {.shared = "mlp.shared_expert"};
constexpr TensorNames kDeepSeekNames = {.shared = "mlp.shared_experts"};
constexpr TensorNames kGraniteMoeNames = {.router = "block_sparse_moe.router.layer",
                                          .experts = "block_sparse_moe.",
                                          .expert_gate = "input_linear",
                                          .expert_down = "output_linear"};

constexpr Family kLlama = {.architecture = "LlamaForCausalLM",
                           .model_type = "llama",
                           .models = "Llama 2, 3, 3.1, 3.2, 3.3, Falcon-3, SmolLM2, TinyLlama",
                           .qkv_bias = kAttentionBias,
                           .o_bias = kAttentionBias,
                           .mlp_bias = kMlpBias,
                           .names = kLlamaNames};

constexpr Family kMistral = {.architecture = "MistralForCausalLM",
                             .model_type = "mistral",
                             .models = "Mistral 7B v0.1 to v0.3, Nemo, Small",
                             .default_window = 4096,
                             .default_kv_heads = 8,
                             .windows = WindowRule::kAll};

constexpr Family kMixtral = {.architecture = "MixtralForCausalLM",
                             .model_type = "mixtral",
                             .models = "Mixtral 8x7B, 8x22B",
                             .default_eps = 1e-5,
                             .default_theta = 1e6,
                             .default_kv_heads = 8,
                             .windows = WindowRule::kAll,
                             .moe = MoeRule::kMixtral,
                             .names = kMixtralNames};

constexpr Family kQwen2 = {.architecture = "Qwen2ForCausalLM",
                           .model_type = "qwen2",
                           .models = "Qwen2, Qwen2.5, QwQ",
                           .default_window = 4096,
                           .default_kv_heads = 32,
                           .default_positions = 32768,
                           .qkv_bias = kAlways,
                           .windows = WindowRule::kQwen2};

constexpr Family kQwen2Moe = {.architecture = "Qwen2MoeForCausalLM",
                              .model_type = "qwen2_moe",
                              .models = "Qwen1.5-MoE, Qwen2-57B-A14B",
                              .default_window = 4096,
                              .default_kv_heads = 16,
                              .default_positions = 32768,
                              .qkv_bias = {"qkv_bias", true},
                              .windows = WindowRule::kQwen2Moe,
                              .moe = MoeRule::kQwen,
                              .names = kQwenMoeNames};

constexpr Family kQwen3 = {.architecture = "Qwen3ForCausalLM",
                           .model_type = "qwen3",
                           .models = "Qwen3 (dense)",
                           .default_window = 4096,
                           .default_kv_heads = 32,
                           .default_head_dim = 128,
                           .default_positions = 32768,
                           .qk_norm = QkNorm::kPerHead,
                           .qkv_bias = kAttentionBias,
                           .o_bias = kAttentionBias,
                           .windows = WindowRule::kQwen2};

constexpr Family kQwen3Moe = {.architecture = "Qwen3MoeForCausalLM",
                              .model_type = "qwen3_moe",
                              .models = "Qwen3-30B-A3B, Qwen3-235B-A22B",
                              .default_window = 4096,
                              .default_kv_heads = 4,
                              .default_positions = 32768,
                              .qk_norm = QkNorm::kPerHead,
                              .qkv_bias = kAttentionBias,
                              .o_bias = kAttentionBias,
                              .windows = WindowRule::kQwen3Moe,
                              .moe = MoeRule::kQwen};

constexpr Family kQwen3Next = {.architecture = "Qwen3NextForCausalLM",
                               .model_type = "qwen3_next",
                               .models = "Qwen3-Next-80B-A3B",
                               .default_partial_rotary = 0.25,
                               .default_kv_heads = 2,
                               .default_head_dim = 256,
                               .default_positions = 32768,
                               .norm_plus_one = true,
                               .qk_norm = QkNorm::kPerHead,
                               .qkv_bias = kAttentionBias,
                               .o_bias = kAttentionBias,
                               .partial_rotary = true,
                               .delta_net = true,
                               .attention_gate = true,
                               .moe = MoeRule::kQwen,
                               .default_normalized_experts = true,
                               .names = kQwenMoeNames};

constexpr Family kPhi3 = {.architecture = "Phi3ForCausalLM",
                          .model_type = "phi3",
                          .models = "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
                          .default_eps = 1e-5,
                          .default_positions = 4096,
                          .partial_rotary = true,
                          .windows = WindowRule::kAll,
                          .names = kFusedNames};

constexpr Family kGemma = {.architecture = "GemmaForCausalLM",
                           .model_type = "gemma",
                           .models = "Gemma 1, CodeGemma",
                           .default_activation = "gelu_pytorch_tanh",
                           .default_head_dim = 256,
                           .default_tied = true,
                           .default_positions = 8192,
                           .norm_plus_one = true,
                           .qkv_bias = kAttentionBias,
                           .o_bias = kAttentionBias,
                           .embed_sqrt_hidden = true};

constexpr Family kGemma2 = {.architecture = "Gemma2ForCausalLM",
                            .model_type = "gemma2",
                            .models = "Gemma 2",
                            .activation_key = "hidden_activation",
                            .default_activation = "gelu_pytorch_tanh",
                            .default_window = 4096,
                            .default_kv_heads = 4,
                            .default_head_dim = 256,
                            .default_tied = true,
                            .default_positions = 8192,
                            .norm_plus_one = true,
                            .block = BlockForm::kSandwich,
                            .qkv_bias = kAttentionBias,
                            .o_bias = kAttentionBias,
                            .windows = WindowRule::kPattern,
                            .window_period = 2,
                            .embed_sqrt_hidden = true,
                            .query_scalar = true,
                            .softcaps = true,
                            .default_attention_softcap = 50,
                            .default_logit_softcap = 30,
                            .names = kSandwichNames};

constexpr Family Gemma3(std::string_view architecture, std::string_view model_type, std::string_view models) {
  Family family = kGemma2;
  family.architecture = architecture;
  family.model_type = model_type;
  family.models = models;
  family.default_theta = 1e6;
  family.default_positions = 131072;
  family.qk_norm = QkNorm::kPerHead;
  family.positions = PositionRule::kLocalGlobal;
  family.window_period = 6;
  family.default_attention_softcap = family.default_logit_softcap = 0;
  return family;
}

// The text part of the multimodal checkpoints.
constexpr Family Gemma3Wrapper() {
  Family family = Gemma3("Gemma3ForConditionalGeneration", "gemma3", "Gemma 3 4B, 12B, 27B (text)");
  family.text_key = "text_config";
  family.root = "language_model.model.";
  family.other_root = "model.language_model.";
  return family;
}

constexpr Family kSmolLm3 = {.architecture = "SmolLM3ForCausalLM",
                             .model_type = "smollm3",
                             .models = "SmolLM3",
                             .default_theta = 2e6,
                             .default_kv_heads = 4,
                             .default_tied = true,
                             .default_positions = 32768,
                             .qkv_bias = kAttentionBias,
                             .o_bias = kAttentionBias,
                             .mlp_bias = kMlpBias,
                             .positions = PositionRule::kNoRopeLayers,
                             .windows = WindowRule::kSmolLm3};

constexpr Family kOlmo2 = {
    .architecture = "Olmo2ForCausalLM",
    .model_type = "olmo2",
    .models = "OLMo 2",
    .default_eps = 1e-5,
    .default_positions = 2048,
    .block = BlockForm::kPostNorm,
    .qk_norm = QkNorm::kWhole,
    .qkv_bias = kAttentionBias,
    .o_bias = kAttentionBias,
    .names = {.post_attention_norm = "post_attention_layernorm", .post_mlp_norm = "post_feedforward_layernorm"}};

constexpr Family kGranite = {.architecture = "GraniteForCausalLM",
                             .model_type = "granite",
                             .models = "Granite 3.x (dense)",
                             .qkv_bias = kAttentionBias,
                             .o_bias = kAttentionBias,
                             .mlp_bias = kMlpBias,
                             .multipliers = true};

constexpr Family kGraniteMoe = {.architecture = "GraniteMoeForCausalLM",
                                .model_type = "granitemoe",
                                .models = "Granite 3.x MoE",
                                .qkv_bias = kAttentionBias,
                                .o_bias = kAttentionBias,
                                .moe = MoeRule::kGranite,
                                .multipliers = true,
                                .expert_storage = ExpertStorage::kStacked,
                                .names = kGraniteMoeNames};

constexpr Family kStarcoder2 = {.architecture = "Starcoder2ForCausalLM",
                                .model_type = "starcoder2",
                                .models = "StarCoder2",
                                .eps_key = "norm_epsilon",
                                .default_eps = 1e-5,
                                .default_activation = "gelu_pytorch_tanh",
                                .default_kv_heads = 2,
                                .default_tied = true,
                                .default_positions = 4096,
                                .norm = NormKind::kLayer,
                                .norm_bias = true,
                                .qkv_bias = {"use_bias", true},
                                .o_bias = {"use_bias", true},
                                .mlp_bias = {"use_bias", true},
                                .gated = false,
                                .windows = WindowRule::kAll,
                                .names = {.up = "mlp.c_fc", .down = "mlp.c_proj"}};

constexpr Family kGpt2 = {.architecture = "GPT2LMHeadModel",
                          .model_type = "gpt2",
                          .models = "GPT-2",
                          .hidden_key = "n_embd",
                          .ffn_key = "n_inner",
                          .layers_key = "n_layer",
                          .heads_key = "n_head",
                          .positions_key = "n_positions",
                          .eps_key = "layer_norm_epsilon",
                          .activation_key = "activation_function",
                          .default_eps = 1e-5,
                          .default_activation = "gelu_new",
                          .default_tied = true,
                          .default_positions = 1024,
                          .default_ffn_factor = 4,
                          .norm = NormKind::kLayer,
                          .norm_bias = true,
                          .qkv_bias = kAlways,
                          .o_bias = kAlways,
                          .mlp_bias = kAlways,
                          .gated = false,
                          .positions = PositionRule::kLearned,
                          .storage = Storage::kConv1d,
                          .names = {.layers = "h.",
                                    .embed = "wte",
                                    .final_norm = "ln_f",
                                    .positions = "wpe",
                                    .input_norm = "ln_1",
                                    .mlp_norm = "ln_2",
                                    .o = "attn.c_proj",
                                    .qkv = "attn.c_attn",
                                    .up = "mlp.c_fc",
                                    .down = "mlp.c_proj"},
                          .root = "",
                          .other_root = "transformer."};

constexpr Family kGptNeoX = {.architecture = "GPTNeoXForCausalLM",
                             .model_type = "gpt_neox",
                             .models = "GPT-NeoX, Pythia",
                             .eps_key = "layer_norm_eps",
                             .default_eps = 1e-5,
                             .default_activation = "gelu",
                             .default_partial_rotary = 0.25,
                             .default_positions = 2048,
                             .norm = NormKind::kLayer,
                             .norm_bias = true,
                             .block = BlockForm::kParallelTwo,
                             .qkv_bias = {"attention_bias", true},
                             .o_bias = {"attention_bias", true},
                             .mlp_bias = kAlways,
                             .gated = false,
                             .partial_rotary = true,
                             .storage = Storage::kHeadwiseQkv,
                             .names = {.embed = "embed_in",
                                       .final_norm = "final_layer_norm",
                                       .lm_head = "embed_out.weight",
                                       .o = "attention.dense",
                                       .qkv = "attention.query_key_value",
                                       .up = "mlp.dense_h_to_4h",
                                       .down = "mlp.dense_4h_to_h"},
                             .root = "gpt_neox."};

constexpr Family kCohere2 = {.architecture = "Cohere2ForCausalLM",
                             .model_type = "cohere2",
                             .models = "Command R7B, Command A, Aya (Cohere-2)",
                             .eps_key = "layer_norm_eps",
                             .default_eps = 1e-5,
                             .default_window = 4096,
                             .default_tied = true,
                             .default_positions = 8192,
                             .norm = NormKind::kLayer,
                             .block = BlockForm::kParallel,
                             .qkv_bias = kAttentionBias,
                             .o_bias = kAttentionBias,
                             .rope_interleaved = true,
                             .positions = PositionRule::kSlidingOnly,
                             .windows = WindowRule::kPattern,
                             .window_period = 4,
                             .default_logit_scale = 0.0625};

constexpr Family kDeepSeekV2 = {.architecture = "DeepseekV2ForCausalLM",
                                .model_type = "deepseek_v2",
                                .models = "DeepSeek-V2, V2-Lite, V2.5, Coder-V2",
                                .default_positions = 2048,
                                .qkv_bias = kAttentionBias,
                                .o_bias = kAttentionBias,
                                .rope_interleaved = true,
                                .latent = true,
                                .moe = MoeRule::kDeepSeekV2,
                                .names = kDeepSeekNames};

constexpr Family kDeepSeekV3 = {.architecture = "DeepseekV3ForCausalLM",
                                .model_type = "deepseek_v3",
                                .models = "DeepSeek-V3, R1 (16-bit checkpoints)",
                                .default_positions = 4096,
                                .qkv_bias = kAttentionBias,
                                .o_bias = kAttentionBias,
                                .rope_interleaved = true,
                                .latent = true,
                                .moe = MoeRule::kDeepSeekV3,
                                .names = kDeepSeekNames};

constexpr Family kGptOss = {
    .architecture = "GptOssForCausalLM",
    .model_type = "gpt_oss",
    .models = "gpt-oss-20b, gpt-oss-120b",
    .default_eps = 1e-5,
    .default_theta = 150000.0,
    .default_window = 128,
    .default_kv_heads = 8,
    .default_head_dim = 64,
    .default_positions = 131072,
    .qkv_bias = {"attention_bias", true},
    .o_bias = {"attention_bias", true},
    .sinks = true,
    .windows = WindowRule::kPattern,
    .window_period = 2,
    .moe = MoeRule::kGptOss,
    .expert_storage = ExpertStorage::kInterleaved,
    .names = {.router = "mlp.router", .experts = "mlp.experts.", .expert_gate = "gate_up_proj", .expert_down = "down_proj"}};

constexpr std::array kFamilies = {
    kLlama,          kMistral,    kMixtral,    kQwen2,
    kQwen2Moe,       kQwen3,      kQwen3Moe,   kQwen3Next,
    kPhi3,           kGemma,      kGemma2,     Gemma3("Gemma3ForCausalLM", "gemma3_text", "Gemma 3 270M, 1B"),
    Gemma3Wrapper(), kSmolLm3,    kOlmo2,      kGranite,
    kGraniteMoe,     kStarcoder2, kGpt2,       kGptNeoX,
    kCohere2,        kDeepSeekV2, kDeepSeekV3, kGptOss,
};

}  // namespace

std::span<const Family> Families() {
  return kFamilies;
}

const Family* FindFamily(std::string_view architecture) {
  for (const Family& family : kFamilies)
    if (family.architecture == architecture) return &family;
  return nullptr;
}

const Family* FindFamilyByModelType(std::string_view model_type) {
  for (const Family& family : kFamilies)
    if (family.model_type == model_type) return &family;
  return nullptr;
}

std::string SupportedArchitectures() {
  std::string names;
  for (const Family& family : kFamilies) names += (names.empty() ? "" : ", ") + std::string(family.architecture);
  return names;
}

}  // namespace kvasir
