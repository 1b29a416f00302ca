// Makes small model folders as maps of file name -> content, well-formed until a test breaks them.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "kernels/rng.h"
#include "kernels/status.h"

namespace kvasir {

using Files = std::map<std::string, std::string>;

struct TestTensor {
  std::string name;
  std::vector<uint64_t> shape;
  std::string dtype = "F32";
  size_t element_bytes = 4;
};

// header length, header and `data_bytes` bytes of small random floats.
inline std::string SafetensorsFile(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += header;
  Rng rng(7);
  for (size_t i = 0; i + 4 <= data_bytes; i += 4) {
    const float value = static_cast<float>(rng.Uniform() - 0.5);
    file.append(reinterpret_cast<const char*>(&value), 4);
  }
  file.resize(8 + header.size() + data_bytes, '\0');
  return file;
}

inline std::string SafetensorsFile(const std::vector<TestTensor>& tensors) {
  std::string header;
  size_t at = 0;
  for (const TestTensor& tensor : tensors) {
    size_t bytes = tensor.element_bytes;
    for (const uint64_t dim : tensor.shape) bytes *= dim;
    header += fmt::format(R"({}"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", header.empty() ? "{" : ",",
                          tensor.name, tensor.dtype, fmt::join(tensor.shape, ","), at, at + bytes);
    at += bytes;
  }
  return SafetensorsFile(header + "}", at);
}

// hidden 8, 2 layers, 2 query heads and 1 KV head of 4, ffn 6, vocabulary 11, context 32.
inline constexpr char kTestConfig[] =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8,
  "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11,
  "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float32",
  "bos_token_id": 1, "eos_token_id": 2})";

inline std::vector<TestTensor> TestTensors() {
  std::vector<TestTensor> tensors = {{"model.embed_tokens.weight", {11, 8}}};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    tensors.push_back({prefix + "input_layernorm.weight", {8}});
    tensors.push_back({prefix + "self_attn.q_proj.weight", {8, 8}});
    tensors.push_back({prefix + "self_attn.k_proj.weight", {4, 8}});
    tensors.push_back({prefix + "self_attn.v_proj.weight", {4, 8}});
    tensors.push_back({prefix + "self_attn.o_proj.weight", {8, 8}});
    tensors.push_back({prefix + "post_attention_layernorm.weight", {8}});
    tensors.push_back({prefix + "mlp.gate_proj.weight", {6, 8}});
    tensors.push_back({prefix + "mlp.up_proj.weight", {6, 8}});
    tensors.push_back({prefix + "mlp.down_proj.weight", {8, 6}});
  }
  tensors.push_back({"model.norm.weight", {8}});
  tensors.push_back({"lm_head.weight", {11, 8}});
  return tensors;
}

inline Files TestFolder() {
  return {{"m/config.json", kTestConfig}, {"m/model.safetensors", SafetensorsFile(TestTensors())}};
}

// The same tensors in two shards with an index.
inline Files ShardedTestFolder() {
  const std::vector<TestTensor> all = TestTensors();
  std::string weight_map;
  std::vector<TestTensor> shards[2];
  for (size_t i = 0; i < all.size(); ++i) {
    const int shard = i < all.size() / 2 ? 0 : 1;
    shards[shard].push_back(all[i]);
    weight_map += fmt::format("{}\"{}\": \"part-{}.safetensors\"", i == 0 ? "" : ", ", all[i].name, shard + 1);
  }
  return {{"m/config.json", kTestConfig},
          {"m/model.safetensors.index.json", "{\"metadata\": {}, \"weight_map\": {" + weight_map + "}}"},
          {"m/part-1.safetensors", SafetensorsFile(shards[0])},
          {"m/part-2.safetensors", SafetensorsFile(shards[1])}};
}

inline void Replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  KVASIR_CHECK(at != std::string::npos, "no '{}' to replace", from);
  text.replace(at, from.size(), to);
}

}  // namespace kvasir
