// Where sampling defaults and end tokens come from, by the rules of vLLM: --generation-config auto takes the model's
// generation_config.json, vllm takes none of its sampling defaults, a folder takes that folder's file;
// --override-generation-config lays a JSON object over them. As in vLLM, do_sample is not looked at: a temperature says what is
// meant. Used by Runtime.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "models/config.h"

namespace kvasir {

struct GenerationChoice {
  bool of_model = true;                             // auto
  GenerationDefaults base;                          // of the folder, where one is named
  std::optional<std::vector<int32_t>> folder_ends;  // eos_token_id of that folder's file, where it gives any
  GenerationDefaults laid_over;                     // what the override gives
  std::vector<std::string> unset;                   // names the override sets to null: back to neutral

  GenerationDefaults Defaults(const GenerationDefaults& of_the_model) const;
  // The ids that end a text: those of the generation config (or of config.json), and the tokenizer's own end token, which chat
  // models made from base models often name only there (<|im_end|>). Ids outside the vocabulary are left out.
  std::vector<int32_t> EndTokens(const std::vector<int32_t>& of_the_model, std::optional<int32_t> of_tokenizer,
                                 int64_t vocab_size) const;
};

// Reads what the two flags name; before a model is loaded, so that a mistake is told at once.
StatusOr<GenerationChoice> ReadGenerationChoice(const std::string& generation_config, const std::string& override_json);

}  // namespace kvasir
