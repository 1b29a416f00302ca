// What config.json says of a checkpoint whose linear weights are stored quantised ("quantization_config"). Used by config parsing
// and weights loading.
//
// The method names the family of formats and is checked in full; what is not supported is refused by name. Which weights are
// quantised, with how many bits, and how finely, is told by the tensors themselves (quantized_tensors.h): lists of exceptions
// ("ignore", "modules_to_not_convert", "lm_head", "re:" patterns) say nothing that a tensor's name and type do not say.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

enum class QuantMethod : uint8_t { kNone, kMxfp4, kGptq, kAwq, kCompressedTensors, kFp8, kFbgemmFp8 };
std::string_view Name(QuantMethod method);  // as "quant_method" says it

struct QuantizedConfig {
  QuantMethod method = QuantMethod::kNone;
  bool zeros_minus_one = false;            // GPTQ's first format stores zero points less one
  std::vector<int64_t> group_sizes;        // inputs that share a scale, as the config names them: for rows they do not divide
  int64_t block_rows = 0, block_cols = 0;  // 0 = scales are not of blocks

  explicit operator bool() const { return method != QuantMethod::kNone && method != QuantMethod::kMxfp4; }
};

// The value of "quantization_config". mxfp4_experts: the family stores its experts that way.
StatusOr<QuantizedConfig> ParseQuantizedConfig(const nlohmann::json& value, bool mxfp4_experts);

}  // namespace kvasir
