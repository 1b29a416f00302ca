// The families table as configs meet it: what each family's config means, what is refused, and how much KV it keeps.
#include "models/families.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "models/config.h"
#include "models/kv_plan.h"

namespace kvasir {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// A small config of a family; `fields` replace or add, null removes.
json Config(const std::string& architecture, const json& fields = json::object()) {
  const Family* family = FindFamily(architecture);
  KVASIR_CHECK(family != nullptr);
  json config = {{"architectures", {architecture}}, {"model_type", std::string(family->model_type)}};
  json text = {{std::string(family->hidden_key), 32},
               {std::string(family->ffn_key), 48},
               {std::string(family->layers_key), 4},
               {std::string(family->heads_key), 4},
               {std::string(family->positions_key), 256},
               {"num_key_value_heads", 2},
               {"vocab_size", 100}};
  for (const auto& [key, value] : fields.items()) {
    text[key] = value;
    if (value.is_null()) text.erase(key);
  }
  if (family->text_key.empty()) {
    config.update(text);
  } else {
    config[std::string(family->text_key)] = text;
  }
  return config;
}

StatusOr<ModelConfig> Parse(const json& config) {
  return ParseModelConfig(config.dump(), "");
}

ModelConfig Parsed(const std::string& architecture, const json& fields = json::object()) {
  const auto config = Parse(Config(architecture, fields));
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

std::vector<int> Windows(const ModelConfig& config) {
  std::vector<int> windows;
  for (const LayerSpec& layer : config.layers) windows.push_back(layer.window);
  return windows;
}

std::vector<int> Ropes(const ModelConfig& config) {
  std::vector<int> ropes;
  for (const LayerSpec& layer : config.layers) ropes.push_back(layer.rope);
  return ropes;
}

const json kQwenMoe = {
    {"num_experts", 8}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 16}, {"shared_expert_intermediate_size", 20}};
const json kDeepSeek = {{"n_routed_experts", 8},
                        {"num_experts_per_tok", 2},
                        {"moe_intermediate_size", 16},
                        {"n_shared_experts", 2},
                        {"kv_lora_rank", 24},
                        {"q_lora_rank", nullptr},
                        {"qk_nope_head_dim", 8},
                        {"qk_rope_head_dim", 4},
                        {"v_head_dim", 10},
                        {"n_group", 4},
                        {"topk_group", 2},
                        {"first_k_dense_replace", 1},
                        {"num_key_value_heads", 4}};

TEST(Families, NamesAreUniqueAndEveryRowParses) {
  std::set<std::string_view> names;
  for (const Family& family : Families()) {
    SCOPED_TRACE(std::string(family.architecture));
    EXPECT_TRUE(names.insert(family.architecture).second);
    EXPECT_EQ(FindFamily(family.architecture), &family);
    json fields = json::object();
    if (family.moe == MoeRule::kQwen) fields = kQwenMoe;
    if (family.latent) fields = kDeepSeek;
    if (family.moe != MoeRule::kNone && fields.empty()) fields = {{"num_local_experts", 4}, {"num_experts_per_tok", 2}};
    const ModelConfig config = Parsed(std::string(family.architecture), fields);
    EXPECT_EQ(config.layers.size(), 4u);
    EXPECT_GT(config.parameter_count(), 0);
    EXPECT_EQ(config.moe.has_value(), family.moe != MoeRule::kNone);
    EXPECT_GT(config.attention_scale, 0);
  }
}

TEST(Families, WindowsOfEachLayer) {
  EXPECT_THAT(Windows(Parsed("Gemma2ForCausalLM", {{"sliding_window", 7}})), ElementsAre(7, 0, 7, 0));
  EXPECT_THAT(Windows(Parsed("Gemma3ForCausalLM", {{"sliding_window", 7}, {"sliding_window_pattern", 2}})),
              ElementsAre(7, 0, 7, 0));
  EXPECT_THAT(Windows(Parsed("Gemma3ForCausalLM", {{"sliding_window", 7}})), ElementsAre(7, 7, 7, 7)) << "every sixth sees all";
  EXPECT_THAT(Windows(Parsed("Cohere2ForCausalLM", {{"sliding_window", 7}})), ElementsAre(7, 7, 7, 0));
  const json types = {"full_attention", "sliding_attention", "full_attention", "full_attention"};
  EXPECT_THAT(Windows(Parsed("Cohere2ForCausalLM", {{"sliding_window", 7}, {"layer_types", types}})), ElementsAre(0, 7, 0, 0));
  EXPECT_THAT(Windows(Parsed("Qwen2ForCausalLM", {{"sliding_window", 7}})), ElementsAre(0, 0, 0, 0)) << "not switched on";
  EXPECT_THAT(
      Windows(Parsed("Qwen2ForCausalLM", {{"sliding_window", 7}, {"use_sliding_window", true}, {"max_window_layers", 3}})),
      ElementsAre(0, 0, 0, 7));
  EXPECT_THAT(Windows(Parsed("MistralForCausalLM")), ElementsAre(4096, 4096, 4096, 4096));
  EXPECT_THAT(Windows(Parsed("Phi3ForCausalLM")), ElementsAre(0, 0, 0, 0));
}

TEST(Families, RotationOfEachLayer) {
  EXPECT_THAT(Ropes(Parsed("SmolLM3ForCausalLM")), ElementsAre(0, 0, 0, -1));
  EXPECT_THAT(Ropes(Parsed("SmolLM3ForCausalLM", {{"no_rope_layers", {0, 1, 1, 0}}})), ElementsAre(-1, 0, 0, -1));
  EXPECT_THAT(Ropes(Parsed("Cohere2ForCausalLM")), ElementsAre(0, 0, 0, -1));
  EXPECT_THAT(Ropes(Parsed("GPT2LMHeadModel")), ElementsAre(-1, -1, -1, -1));
  const ModelConfig gemma = Parsed("Gemma3ForCausalLM", {{"sliding_window_pattern", 2},
                                                         {"rope_local_base_freq", 500.0},
                                                         {"rope_scaling", {{"rope_type", "linear"}, {"factor", 8.0}}}});
  EXPECT_THAT(Ropes(gemma), ElementsAre(1, 0, 1, 0));
  ASSERT_EQ(gemma.ropes.size(), 2u);
  EXPECT_EQ(gemma.ropes[0].theta, 1e6);
  EXPECT_EQ(gemma.ropes[0].scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(gemma.ropes[1].theta, 500.0);
  EXPECT_EQ(gemma.ropes[1].scaling.kind, RopeScaling::Kind::kNone) << "local layers are not scaled";
  EXPECT_EQ(Parsed("GPTNeoXForCausalLM", {{"rotary_pct", 0.5}, {"rotary_emb_base", 77}}).ropes[0].rotary_dim, 4);
}

TEST(Families, ScalesAndSoftCaps) {
  const ModelConfig gemma = Parsed("Gemma2ForCausalLM", {{"query_pre_attn_scalar", 64}, {"final_logit_softcapping", nullptr}});
  EXPECT_FLOAT_EQ(gemma.attention_scale, 0.125f);
  EXPECT_FLOAT_EQ(gemma.embed_scale, std::sqrt(32.0f));
  EXPECT_FLOAT_EQ(gemma.attention_softcap, 50.0f);
  EXPECT_FLOAT_EQ(gemma.logit_softcap, 30.0f) << "missing means the default";
  json off = Config("Gemma2ForCausalLM");
  off["attn_logit_softcapping"] = nullptr;
  EXPECT_EQ(Parse(off)->attention_softcap, 0.0f) << "null means none";
  const ModelConfig granite = Parsed(
      "GraniteForCausalLM",
      {{"embedding_multiplier", 12.0}, {"residual_multiplier", 0.22}, {"attention_multiplier", 0.0625}, {"logits_scaling", 8.0}});
  EXPECT_FLOAT_EQ(granite.embed_scale, 12.0f);
  EXPECT_FLOAT_EQ(granite.residual_scale, 0.22f);
  EXPECT_FLOAT_EQ(granite.attention_scale, 0.0625f);
  EXPECT_FLOAT_EQ(granite.logit_scale, 0.125f);
  EXPECT_FLOAT_EQ(Parsed("Cohere2ForCausalLM").logit_scale, 0.0625f);
  // DeepSeek's yarn: (0.1 * mscale_all_dim * ln(factor) + 1)^2 over the square root of the query's width.
  json fields = kDeepSeek;
  fields["rope_scaling"] = {
      {"type", "yarn"}, {"factor", 40.0}, {"original_max_position_embeddings", 64}, {"mscale", 0.707}, {"mscale_all_dim", 0.707}};
  EXPECT_NEAR(Parsed("DeepseekV2ForCausalLM", fields).attention_scale, std::pow(0.0707 * std::log(40.0) + 1, 2) / std::sqrt(12.0),
              1e-6);
}

TEST(Families, ExpertsOfEachLayer) {
  json fields = kQwenMoe;
  fields["decoder_sparse_step"] = 2;
  fields["mlp_only_layers"] = {3};
  const ModelConfig qwen = Parsed("Qwen2MoeForCausalLM", fields);
  EXPECT_FALSE(qwen.layers[0].experts);
  EXPECT_TRUE(qwen.layers[1].experts);
  EXPECT_FALSE(qwen.layers[3].experts) << "mlp_only_layers";
  EXPECT_EQ(qwen.moe->shared_intermediate_size, 20);
  EXPECT_FALSE(qwen.moe->routing.normalize);
  const ModelConfig v3 = Parsed("DeepseekV3ForCausalLM", kDeepSeek);
  EXPECT_FALSE(v3.layers[0].experts);
  EXPECT_TRUE(v3.layers[1].experts);
  EXPECT_EQ(v3.moe->shared_intermediate_size, 32);
  EXPECT_EQ(v3.moe->routing.num_groups, 4);
  EXPECT_TRUE(v3.moe->routing.group_score_top2 && v3.moe->correction_bias && v3.moe->routing.normalize);
  EXPECT_FLOAT_EQ(v3.moe->routing.scale, 2.5f);
}

TEST(Families, DeltaNetsAmongAttention) {
  const auto deltas = [](const ModelConfig& config) {
    std::vector<bool> layers;
    for (const LayerSpec& layer : config.layers) layers.push_back(layer.delta);
    return layers;
  };
  const ModelConfig published = Parsed("Qwen3NextForCausalLM", kQwenMoe);
  EXPECT_THAT(deltas(published), ElementsAre(true, true, true, false)) << "every fourth layer attends";
  EXPECT_THAT(Ropes(published), ElementsAre(-1, -1, -1, 0));
  EXPECT_EQ(published.delta->channels(), 2 * 16 * 128 + 32 * 128);
  EXPECT_EQ(published.delta->state_floats(), 32 * 128 * 128 + 3 * 8192);
  EXPECT_TRUE(published.attention_gate && published.moe->routing.normalize && published.moe->shared_gate);
  EXPECT_EQ(published.ropes[0].rotary_dim, 64);
  json fields = kQwenMoe;
  fields["full_attention_interval"] = 2;
  EXPECT_THAT(deltas(Parsed("Qwen3NextForCausalLM", fields)), ElementsAre(true, false, true, false));
  fields["layer_types"] = json(4, "full_attention");
  EXPECT_FALSE(Parsed("Qwen3NextForCausalLM", fields).delta.has_value());
}

TEST(Families, RefuseWhatTheyCannotCompute) {
  const auto refused = [](const std::string& architecture, const json& base, const json& fields, const char* words) {
    json all = base;
    all.update(fields);
    const auto config = Parse(Config(architecture, all));
    ASSERT_FALSE(config.ok()) << architecture << " " << fields;
    EXPECT_THAT(Message(config.status()), HasSubstr(words));
  };
  const json none = json::object();
  refused("Qwen2MoeForCausalLM", kQwenMoe, {{"num_experts_per_tok", 9}}, "num_experts_per_tok is 9 but there are 8 experts");
  refused("Qwen2MoeForCausalLM", kQwenMoe, {{"num_experts", 1 << 20}}, "num_experts is 1048576");
  refused("DeepseekV3ForCausalLM", kDeepSeek, {{"n_group", 3}}, "8 experts in 3 groups");
  refused("DeepseekV3ForCausalLM", kDeepSeek, {{"topk_group", 5}}, "of which 5 are chosen");
  refused("DeepseekV3ForCausalLM", kDeepSeek, {{"n_group", 8}, {"topk_group", 8}}, "a group needs two");
  refused("DeepseekV3ForCausalLM", kDeepSeek, {{"topk_method", "greedy"}}, "topk_method 'greedy'");
  refused("DeepseekV2ForCausalLM", kDeepSeek, {{"norm_topk_prob", true}}, "norm_topk_prob is true");
  refused("DeepseekV2ForCausalLM", kDeepSeek, {{"kv_lora_rank", 1023}}, "above the limit of 1024");
  refused("LlamaForCausalLM", none, {{"quantization_config", {{"quant_method", "mxfp4"}}}},
          "quantised weights (quant_method 'mxfp4') are not supported");
  refused("LlamaForCausalLM", none, {{"partial_rotary_factor", 0.5}}, "rotates whole heads");
  refused("GPTNeoXForCausalLM", none, {{"rotary_pct", 0.4}}, "wanted an even number");
  refused("SmolLM3ForCausalLM", none, {{"no_rope_layers", {1, 0}}}, "no_rope_layers has 2 entries for 4 layers");
  refused("Gemma3ForCausalLM", none, {{"layer_types", {"chunked", "x", "y", "z"}}}, "layer_types holds 'chunked'");
  refused("MistralForCausalLM", none, {{"layer_types", json(4, "full_attention")}}, "slides its window of 4096 over every layer");
  refused("Phi3ForCausalLM", none, {{"rope_scaling", {{"type", "longrope"}, {"short_factor", {1, 1}}, {"long_factor", {1}}}}},
          "short_factor is a list of 2; wanted a list of 4 numbers");
  refused("GPT2LMHeadModel", none, {{"add_cross_attention", true}}, "add_cross_attention is true");
  refused("LlamaForCausalLM", none, {{"kv_owner", {0, 0, 3, 3}}}, "kv_owner of layer 2 is 3");
  refused("LlamaForCausalLM", none, {{"kv_owner", {0, 0, 1, 0}}},
          "kv_owner of layer 2 is 1; wanted itself or an earlier layer that owns");
  refused("Gemma2ForCausalLM", none, {{"kv_owner", {0, 0, 2, 3}}}, "another sliding window");
  refused("LlamaForCausalLM", none, {{"num_local_experts", 8}}, "no mixture of experts");
  refused("Qwen3NextForCausalLM", kQwenMoe, {{"layer_types", json(4, "mamba")}},
          "layer_types holds 'mamba'; supported for Qwen3");
  refused("Qwen3NextForCausalLM", kQwenMoe, {{"linear_num_value_heads", 17}}, "not a multiple of linear_num_key_heads 16");
  refused("Qwen3NextForCausalLM", kQwenMoe, {{"linear_conv_kernel_dim", 65}}, "linear_conv_kernel_dim is 65");
  refused("Qwen3NextForCausalLM", kQwenMoe, {{"use_sliding_window", true}}, "has no sliding window");
  refused("Qwen3NextForCausalLM", kQwenMoe, {{"kv_owner", {0, 1, 2, 2}}}, "keeps no keys");
}

// Bytes of KV per token, as each family's paper says, without padding: 64-byte pages hold 16 tokens of every width used here.
int64_t TokenBytes(const KvGroup& group) {
  return static_cast<int64_t>(group.layout.token_bytes());
}

TEST(KvPlan, OneGroupOfAllLayers) {
  const KvPlan plan = PlanKv(Parsed("LlamaForCausalLM"), 16, DType::kBF16);
  ASSERT_EQ(plan.groups.size(), 1u);
  EXPECT_EQ(TokenBytes(plan.groups[0]), 4 * 2 * 2 * 8 * 2) << "layers x (K, V) x heads x head_dim x 2 bytes";
  EXPECT_EQ(plan.layers[3].layer, 3);
}

TEST(KvPlan, WindowsMakeGroupsLongestKeptFirst) {
  const KvPlan plan = PlanKv(Parsed("Gemma2ForCausalLM", {{"sliding_window", 7}, {"head_dim", 8}}), 16, DType::kF32);
  ASSERT_EQ(plan.groups.size(), 2u);
  EXPECT_EQ(plan.groups[0].window, 0);
  EXPECT_EQ(plan.groups[1].window, 7);
  EXPECT_EQ(plan.groups[0].layout.num_layers, 2);
  EXPECT_EQ(TokenBytes(plan.groups[0]) + TokenBytes(plan.groups[1]), 4 * 2 * 2 * 8 * 4);
  EXPECT_EQ(plan.layers[0].group, 1);
  EXPECT_EQ(plan.layers[3].group, 0);
  EXPECT_EQ(plan.layers[3].layer, 1);
}

TEST(KvPlan, SharedLayersTakeNone) {
  const KvPlan plan = PlanKv(Parsed("LlamaForCausalLM", {{"kv_owner", {0, 0, 2, 0}}}), 16, DType::kBF16);
  ASSERT_EQ(plan.groups.size(), 1u);
  EXPECT_EQ(plan.groups[0].layout.num_layers, 2);
  EXPECT_EQ(TokenBytes(plan.groups[0]), 2 * 2 * 2 * 8 * 2);
  EXPECT_EQ(plan.layers[1].layer, 0);
  EXPECT_EQ(plan.layers[2].layer, 1);
  EXPECT_EQ(plan.layers[3].layer, 0);
}

TEST(KvPlan, WhichModelsHaveQuantisedKv) {
  const ModelConfig llama = Parsed("LlamaForCausalLM");
  for (const KvFormat format : {KvFormat(KvQuant::kFp8), KvFormat(KvQuant::kInt8), KvFormat(KvQuant::kInt4)}) {
    EXPECT_TRUE(CheckKvFormat(llama, format).ok());
    EXPECT_EQ(PlanKv(llama, 16, format).groups[0].layout.format(), format);
    EXPECT_THAT(Message(CheckKvFormat(Parsed("DeepseekV2ForCausalLM", kDeepSeek), format)),
                ::testing::HasSubstr(std::string(Name(format)) + ": the latent keys"));
    ModelConfig wide = llama;
    wide.head_dim = 264;
    EXPECT_THAT(Message(CheckKvFormat(wide, format)), ::testing::HasSubstr("heads of 264 elements, at most 256"));
  }
  EXPECT_TRUE(CheckKvFormat(Parsed("DeepseekV2ForCausalLM", kDeepSeek), DType::kBF16).ok());
}

TEST(KvPlan, LatentIsAllThatIsKept) {
  const KvPlan plan = PlanKv(Parsed("DeepseekV2ForCausalLM", kDeepSeek), 16, DType::kBF16);
  ASSERT_EQ(plan.groups.size(), 1u);
  EXPECT_EQ(TokenBytes(plan.groups[0]), 4 * (24 + 4) * 2)
      << "layers x (kv_lora_rank + qk_rope_head_dim) x 2 bytes, whatever the heads";
}

TEST(KvPlan, RecurrentStateIsAGroupOfItsOwn) {
  json fields = kQwenMoe;
  fields.update(
      {{"linear_num_key_heads", 2}, {"linear_num_value_heads", 4}, {"linear_key_head_dim", 6}, {"linear_value_head_dim", 5}});
  const KvPlan plan = PlanKv(Parsed("Qwen3NextForCausalLM", fields), 16, DType::kBF16);
  ASSERT_EQ(plan.groups.size(), 2u);
  EXPECT_EQ(plan.groups[0].layout.num_layers, 1);
  EXPECT_EQ(TokenBytes(plan.groups[0]), 1 * 2 * 2 * 256 * 2);
  const KvLayout& state = plan.groups[1].layout;
  EXPECT_EQ(plan.groups[1].window, 2) << "a token reads what the one before it left";
  EXPECT_EQ(state.num_layers, 3);
  const size_t floats = 4 * 6 * 5 + 3 * (2 * 2 * 6 + 4 * 5);
  EXPECT_EQ(state.block_bytes(), 3 * ((floats * 4 + 63) / 64 * 64)) << "one state, however many tokens a block has";
  EXPECT_EQ(plan.layers[2].group, 1);
  EXPECT_EQ(plan.layers[2].layer, 2);
  EXPECT_EQ(plan.layers[3].group, 0);
}

}  // namespace
}  // namespace kvasir
