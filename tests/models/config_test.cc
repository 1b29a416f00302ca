// config.json and generation_config.json: what is read, what defaults mean, and what is refused by name.
#include "models/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/rng.h"
#include "tests/models/test_folder.h"

namespace kvasir {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// kTestConfig with more fields put in front; a field named there replaces the one of the same name.
std::string With(std::string fields) {
  std::string text = kTestConfig;
  for (size_t at = 0; (at = fields.find("\"", at)) != std::string::npos;) {
    const size_t end = fields.find("\"", at + 1);
    const std::string key = fields.substr(at, end - at + 1);
    if (const size_t old = text.find("\n  " + key + ":"); old != std::string::npos)
      text.replace(old + 3, key.size(), "\"x" + key.substr(1));
    if (const size_t old = text.find(" " + key + ":"); old != std::string::npos)
      text.replace(old + 1, key.size(), "\"x" + key.substr(1));
    if (const size_t old = text.find("{" + key + ":"); old != std::string::npos)
      text.replace(old + 1, key.size(), "\"x" + key.substr(1));
    at = end + 1;
  }
  return "{" + fields + ", " + text.substr(1);
}

StatusOr<ModelConfig> Parse(const std::string& fields, const std::string& generation = "") {
  return ParseModelConfig(With(fields), generation);
}

TEST(Config, ReadsAPlainLlama) {
  const auto config = ParseModelConfig(kTestConfig, "");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
  EXPECT_EQ(config->hidden_size, 8);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->num_kv_heads, 1);
  EXPECT_EQ(config->ropes[0].scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_EQ(config->dtype, DType::kF32);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_EQ(config->parameter_count(), 2 * 11 * 8 + 8 + 2 * (2 * 8 * 8 + 2 * 4 * 8 + 3 * 6 * 8 + 2 * 8));
}

TEST(Config, MissingFieldsMeanWhatTheyMeanToTransformers) {
  EXPECT_EQ(Parse(R"("num_key_value_heads": null)")->num_kv_heads, 2);
  EXPECT_EQ(Parse(R"("rope_theta": null)")->ropes[0].theta, 10000.0);
  EXPECT_FLOAT_EQ(Parse(R"("rms_norm_eps": null)")->norm_eps, 1e-6f);
  EXPECT_FALSE(Parse(R"("tie_word_embeddings": null)")->tie_word_embeddings);
  EXPECT_EQ(Parse(R"("architectures": null)")->architecture, "LlamaForCausalLM");
  EXPECT_EQ(Parse(R"("head_dim": 6)")->head_dim, 6);
  EXPECT_EQ(Parse(R"("architectures": ["MistralForCausalLM"], "model_type": "mistral")")->layers[1].window, 4096);
  EXPECT_EQ(
      Parse(R"("architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": null)")->layers[1].window, 0);
  EXPECT_EQ(Parse(R"("architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 7)")->layers[1].window,
            7);
}

TEST(Config, ReadsEverySpellingOfRopeScaling) {
  using Kind = RopeScaling::Kind;
  const auto linear = Parse(R"("rope_scaling": {"type": "linear", "factor": 2})");
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->ropes[0].scaling.kind, Kind::kLinear);
  EXPECT_EQ(linear->ropes[0].scaling.factor, 2.0);
  EXPECT_EQ(linear->max_context(), 64);
  EXPECT_EQ(Parse(R"("rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 2.5})")->ropes[0].scaling.kind,
            Kind::kDynamic);
  const auto llama3 =
      Parse(R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 16})");
  ASSERT_TRUE(llama3.ok()) << llama3.status();
  EXPECT_EQ(llama3->ropes[0].scaling.kind, Kind::kLlama3);
  EXPECT_EQ(llama3->ropes[0].scaling.original_max_position, 16);
  EXPECT_EQ(llama3->max_context(), 32);
  const auto v5 = Parse(R"("rope_parameters": {"rope_type": "default", "rope_theta": 123.5})");
  ASSERT_TRUE(v5.ok()) << v5.status();
  EXPECT_EQ(v5->ropes[0].theta, 123.5);
  EXPECT_EQ(v5->ropes[0].scaling.kind, Kind::kNone);
  EXPECT_TRUE(Parse(R"("rope_scaling": null)").ok());
}

TEST(Config, EndTokens) {
  EXPECT_THAT(Parse(R"("eos_token_id": [3, 4, 3])")->eos_token_ids, ElementsAre(3, 4));
  EXPECT_THAT(Parse(R"("eos_token_id": [3])", R"({"eos_token_id": [5, 6]})")->eos_token_ids, ElementsAre(5, 6));
  EXPECT_THAT(Parse(R"("eos_token_id": [3])", R"({"eos_token_id": 7})")->eos_token_ids, ElementsAre(7));
  EXPECT_THAT(Parse(R"("eos_token_id": [3])", R"({"eos_token_id": null})")->eos_token_ids, ElementsAre(3));
  EXPECT_THAT(Parse(R"("eos_token_id": [3, 11, 2147483647])")->eos_token_ids, ElementsAre(3)) << "beyond the vocabulary";
  EXPECT_THAT(Parse(R"("eos_token_id": null)")->eos_token_ids, ElementsAre());
}

TEST(Config, DTypes) {
  EXPECT_EQ(Parse(R"("torch_dtype": "bfloat16")")->dtype, DType::kBF16);
  EXPECT_EQ(Parse(R"("dtype": "float16")")->dtype, DType::kF16);
  EXPECT_EQ(Parse(R"("torch_dtype": "torch.float32")")->dtype, DType::kF32);
}

TEST(Config, RefusesByName) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("architectures": ["BertForMaskedLM"])",
       "'BertForMaskedLM' is not supported (an encoder: embeddings and other pooled outputs are not served yet); supported: "
       "LlamaFor"},
      {R"("architectures": ["Qwen2ForSequenceClassification"])", "a model that scores texts: reranking"},
      {R"("architectures": ["MistralModel"])", "a model without an output head: embeddings"},
      {R"("architectures": ["T5ForConditionalGeneration"])", "an encoder-decoder or multimodal model"},
      {R"("architectures": ["MambaForCausalLM"])",
       "'MambaForCausalLM' is not supported; supported: LlamaForCausalLM, MistralForCausalLM"},
      {R"("architectures": [])", "architectures is a list of 0"},
      {R"("architectures": [7])", "architectures"},
      {R"("architectures": "LlamaForCausalLM")", "architectures"},
      {R"("architectures": null, "model_type": "bert")", "model_type 'bert'"},
      {R"("model_type": "mistral")", "model_type is 'mistral'"},
      {R"("hidden_act": "mish")", "hidden_act 'mish' is not supported; supported: silu"},
      {R"("hidden_act": 3)", "hidden_act is 3"},
      {R"("hidden_size": null)", "hidden_size is missing"},
      {R"("hidden_size": 0)", "hidden_size is 0; wanted a whole number from 1 to 131072"},
      {R"("hidden_size": -8)", "hidden_size is -8"},
      {R"("hidden_size": 8.5)", "hidden_size is 8.5"},
      {R"("hidden_size": "8")", "hidden_size is \"8\""},
      {R"("hidden_size": true)", "hidden_size is true"},
      {R"("hidden_size": [8])", "hidden_size is a list of 1"},
      {R"("hidden_size": 1e300)", "hidden_size is 1e+300"},
      {R"("hidden_size": 18446744073709551615)", "hidden_size is 18446744073709551615"},
      {R"("hidden_size": 9)", "hidden_size 9 is not a multiple of num_attention_heads 2"},
      {R"("hidden_size": 6)", "head_dim is 3; rotary embedding needs an even one"},
      {R"("hidden_size": 4096)", "head_dim (hidden_size / num_attention_heads) is 2048"},
      {R"("num_hidden_layers": 0)", "num_hidden_layers is 0"},
      {R"("num_hidden_layers": 100000)", "num_hidden_layers is 100000; wanted a whole number from 1 to 1024"},
      {R"("num_attention_heads": 0)", "num_attention_heads is 0"},
      {R"("num_key_value_heads": 0)", "num_key_value_heads is 0"},
      {R"("num_attention_heads": 4, "num_key_value_heads": 3)",
       "num_attention_heads is 4, which is not a multiple of num_key_value_heads 3"},
      {R"("head_dim": 5)", "head_dim is 5"},
      {R"("head_dim": 1000000)", "head_dim is 1000000"},
      {R"("vocab_size": 4294967296)", "vocab_size is 4294967296"},
      {R"("intermediate_size": 1e9)", "intermediate_size is 1000000000"},
      {R"("max_position_embeddings": 0)", "max_position_embeddings is 0"},
      {R"("rms_norm_eps": -1)", "rms_norm_eps is -1"},
      {R"("rms_norm_eps": "1e-5")", "rms_norm_eps"},
      {R"("rope_theta": 0)", "rope_theta is 0"},
      {R"("rope_theta": 1e400)", "config.json"},
      {R"("rope_scaling": 4)", "rope_scaling is 4"},
      {R"("rope_scaling": {"factor": 2})", "rope_scaling.rope_type is missing"},
      {R"("rope_scaling": {"type": "xpos", "factor": 2})",
       "rope_type 'xpos' is not supported; supported: default, linear, dynamic, llama3, yarn, longrope"},
      {R"("rope_scaling": {"rope_type": "longrope"})", "short_factor is missing; wanted a list of 2 numbers"},
      {R"("rope_scaling": {"rope_type": "longrope", "short_factor": [1, 2], "long_factor": [1]})", "long_factor is a list of 1"},
      {R"("rope_scaling": {"type": "linear"})", "rope_scaling.factor is missing"},
      {R"("rope_scaling": {"type": "linear", "factor": 0.5})", "rope_scaling.factor is 0.5"},
      {R"("rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2})",
       "rope_scaling.type is 'linear' but rope_scaling.rope_type is 'dynamic'"},
      {R"("rope_scaling": {"type": "dynamic", "factor": 2, "original_max_position_embeddings": 16})", "must be equal"},
      {R"("rope_scaling": {"rope_type": "llama3", "factor": 8})", "low_freq_factor is missing"},
      {R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
           "original_max_position_embeddings": 16})",
       "high_freq_factor is 4"},
      {R"("rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"})",
       "rope_scaling and rope_parameters"},
      {R"("rope_parameters": {"full_attention": {"rope_type": "default"}})", "rope_parameters.full_attention is an object"},
      {R"("rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5})", "partial_rotary_factor"},
      {R"("partial_rotary_factor": 0.25)", "partial_rotary_factor"},
      {R"("quantization_config": {"quant_method": "gptq", "bits": 3})", "bits is 3; supported: 4, 8"},
      {R"("quantization_config": 3)", "quantization_config"},
      {R"("attention_bias": 1)", "attention_bias is 1; wanted true or false"},
      {R"("architectures": ["MistralForCausalLM"], "model_type": "mistral", "attention_bias": true)",
       "attention_bias is true but MistralForCausalLM"},
      {R"("architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": -1)", "sliding_window is -1"},
      {R"("sliding_window": 128)", "sliding_window is set but LlamaForCausalLM has none"},
      {R"("layer_types": ["full_attention", "sliding_attention"])",
       "layer_types says 'sliding_attention' for layer 1 but sliding_window is not set"},
      {R"("torch_dtype": "float64")", "torch_dtype 'float64' is not supported"},
      {R"("dtype": "int8")", "dtype 'int8'"},
      {R"("tie_word_embeddings": "yes")", "tie_word_embeddings"},
      {R"("is_encoder_decoder": true)", "is_encoder_decoder"},
      {R"("num_local_experts": 8)", "no mixture of experts"},
      {R"("eos_token_id": "2")", "eos_token_id holds \"2\""},
      {R"("eos_token_id": [2, -1])", "eos_token_id holds -1"},
      {R"("eos_token_id": [2, 2.5])", "eos_token_id holds 2.5"},
      {R"("bos_token_id": {})", "bos_token_id"},
  };
  for (const auto& [fields, words] : cases) {
    const auto config = Parse(fields);
    ASSERT_FALSE(config.ok()) << fields;
    EXPECT_THAT(Message(config.status()), HasSubstr(words));
    EXPECT_THAT(Message(config.status()), HasSubstr("config.json: "));
    EXPECT_EQ(config.status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(Config, GenerationDefaults) {
  const auto defaults =
      ParseGenerationDefaults(R"({"temperature": 0.6, "top_p": 0.9, "top_k": -1, "min_p": null, "max_new_tokens": 100,
      "repetition_penalty": 1.1, "do_sample": true, "transformers_version": "4.1"})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_FLOAT_EQ(*defaults->temperature, 0.6f);
  EXPECT_FLOAT_EQ(*defaults->top_p, 0.9f);
  EXPECT_EQ(defaults->top_k, 0);
  EXPECT_FALSE(defaults->min_p.has_value());
  EXPECT_EQ(defaults->max_new_tokens, 100);
  EXPECT_TRUE(ParseGenerationDefaults("").ok());
  for (const char* bad :
       {R"({"temperature": -1})", R"({"temperature": "hot"})", R"({"top_p": 0})", R"({"top_p": 1.5})", R"({"top_k": -2})",
        R"({"min_p": 2})", R"({"repetition_penalty": 0})", R"({"max_new_tokens": 0})", R"([])", R"({)"})
    EXPECT_THAT(Message(ParseGenerationDefaults(bad).status()), HasSubstr("generation_config.json: ")) << bad;
}

// Any edit of the text gives a config within bounds or an error; never a crash.
TEST(Config, RandomEditsNeverCrash) {
  const uint64_t seed = 20261123;
  SCOPED_TRACE(seed);
  Rng rng(seed);
  const std::vector<std::string> scraps = {
      "null", "-1", "0", "1e308", "99999999999999999999", "[]", "{}", "\"\"", "true", ",", "}", "{", "\"", ":", "[[[["};
  for (int round = 0; round < 20000; ++round) {
    std::string text =
        With(R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 16})");
    for (uint64_t edits = 1 + rng.Below(3); edits > 0; --edits) {
      const size_t at = rng.Below(text.size()), length = rng.Below(std::min<size_t>(12, text.size() - at) + 1);
      text.replace(at, length, scraps[rng.Below(scraps.size())]);
    }
    const auto config = ParseModelConfig(text, "");
    if (!config.ok()) continue;
    EXPECT_GT(config->parameter_count(), 0);
    EXPECT_EQ(config->num_q_heads % config->num_kv_heads, 0);
    EXPECT_EQ(config->head_dim % 2, 0);
    EXPECT_GE(config->max_context(), 1);
  }
}

}  // namespace
}  // namespace kvasir
