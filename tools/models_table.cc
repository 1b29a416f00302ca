// Prints docs/models.md: the families table as people read it, each row with the golden checkpoints that verify it. A test
// compares the file with what this prints.
//
// Use: models_table SOURCE_DIR
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/families.h"

namespace kvasir {
namespace {

namespace stdfs = std::filesystem;

// Architecture -> folders of tests/data that hold a checkpoint of it.
std::map<std::string, std::vector<std::string>> Goldens(const stdfs::path& source) {
  std::map<std::string, std::vector<std::string>> goldens;
  for (const char* place : {"tests/data/tiny", "tests/data/families"}) {
    if (!stdfs::is_directory(source / place)) continue;
    for (const auto& entry : stdfs::directory_iterator(source / place)) {
      std::ifstream file(entry.path() / "config.json");
      const auto config = nlohmann::json::parse(file, nullptr, false);
      if (config.is_discarded() || !config.contains("architectures")) continue;
      goldens[config["architectures"][0].get<std::string>()].push_back(entry.path().filename());
    }
  }
  for (auto& [architecture, folders] : goldens) std::sort(folders.begin(), folders.end());
  return goldens;
}

std::string Features(const Family& family) {
  std::vector<std::string> features;
  const auto add = [&](bool has, const char* feature) {
    if (has) features.push_back(feature);
  };
  add(family.latent, "latent attention (MLA, absorbed)");
  add(!family.latent, "grouped-query attention");
  add(family.attention_gate, "gated attention");
  add(family.delta_net, "gated delta nets (recurrent state beside KV)");
  add(family.qk_norm == QkNorm::kPerHead, "q/k norm per head");
  add(family.qk_norm == QkNorm::kWhole, "q/k norm over all heads");
  add(family.sinks, "attention sinks");
  add(family.softcaps, "soft-caps");
  add(family.windows == WindowRule::kAll, "sliding window");
  add(family.windows == WindowRule::kPattern, "alternating sliding windows");
  add(family.windows != WindowRule::kAll && family.windows != WindowRule::kPattern && family.windows != WindowRule::kNone,
      "optional sliding window");
  add(family.positions == PositionRule::kLearned, "learned positions");
  add(family.positions == PositionRule::kLocalGlobal, "two rotary bases");
  add(family.positions == PositionRule::kSlidingOnly || family.positions == PositionRule::kNoRopeLayers,
      "layers without rotation");
  add(family.partial_rotary, "partial rotation");
  add(family.norm == NormKind::kLayer, "LayerNorm");
  add(family.block == BlockForm::kSandwich, "norms before and after");
  add(family.block == BlockForm::kPostNorm, "norms after");
  add(family.block == BlockForm::kParallel || family.block == BlockForm::kParallelTwo, "parallel blocks");
  add(family.moe != MoeRule::kNone, "mixture of experts");
  add(family.multipliers, "multipliers");
  add(family.expert_storage == ExpertStorage::kInterleaved, "MXFP4 experts (widened at load)");
  std::string text;
  for (const std::string& feature : features) text += (text.empty() ? "" : ", ") + feature;
  return text;
}

void Print(const stdfs::path& source) {
  std::printf(
      "# Supported models\n\n"
      "Made by `tools/models_table.cc` from the families table (`models/families.cc`); a test keeps this page equal to it.\n\n"
      "A model is a Hugging Face folder: `config.json`, `*.safetensors` in float32, float16 or bfloat16, or quantised\n"
      "([which forms](quantization.md)), and its tokenizer. RoPE\n"
      "scalings: default, linear, dynamic, llama3, yarn, longrope. Every row is computed by one decoder (`models/decoder.cc`).\n"
      "\"Verified by\" names folders of `tests/data/tiny` and `tests/data/families`: small random checkpoints whose logits, "
      "log-probabilities\n"
      "and 32 greedy tokens for four prompts are those of transformers, on every instruction set, whole and in chunks.\n\n"
      "| models | architecture | what it takes | verified by |\n|---|---|---|---|\n");
  const auto goldens = Goldens(source);
  for (const Family& family : Families()) {
    const auto found = goldens.find(std::string(family.architecture));
    std::string folders;
    if (found != goldens.end())
      for (const std::string& folder : found->second) folders += (folders.empty() ? "`" : ", `") + folder + "`";
    std::printf("| %s | `%s` | %s | %s |\n", std::string(family.models).c_str(), std::string(family.architecture).c_str(),
                Features(family).c_str(), folders.empty() ? "-" : folders.c_str());
  }
  std::printf(
      "\n`kv_owner` in `config.json` (a list: for each layer the layer whose KV it reads) makes any row but latent attention "
      "share KV\n"
      "across layers; such layers have no key and value weights and take no KV memory.\n\n"
      "Not supported, and refused by name: forms of quantisation that are not in [quantization.md](quantization.md), "
      "encoder-decoder and encoder-only\n"
      "models (embeddings, reranking), images and sound (the text part of a Gemma 3 checkpoint is served), and every "
      "architecture that is\n"
      "not in the table.\n");
}

}  // namespace
}  // namespace kvasir

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "use: models_table SOURCE_DIR\n");
    return 2;
  }
  kvasir::Print(argv[1]);
  return 0;
}
