#include "models/quantized_config.h"

#include <algorithm>
#include <array>
#include <string>

#include "models/config_fields.h"

namespace kvasir {
namespace {

using nlohmann::json;

constexpr int64_t kMaxGroup = 1 << 20;

constexpr std::string_view kSupported =
    "supported: gptq and awq with 4 bits, gptq with 8 bits, compressed-tensors (pack-quantized, int-quantized, float-quantized, "
    "naive-quantized), fp8, fbgemm_fp8, and mxfp4 for gpt-oss; use one of these, or the float32, float16 or bfloat16 model "
    "(--quantization int8, fp8 or int4 quantises it at load)";

// One of `known`, whatever its case.
bool IsOneOf(std::string text, std::initializer_list<std::string_view> known) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return std::find(known.begin(), known.end(), text) != known.end();
}

void AddGroupSize(Fields& fields, QuantizedConfig* config) {
  const int64_t size = fields.OptionalInt("group_size", -1, kMaxGroup).value_or(-1);
  if (size == 0) fields.Fail(InvalidArgument("group_size is 0; wanted -1 (a scale for a whole row) or a number of inputs"));
  if (size > 0) config->group_sizes.push_back(size);
}

void CheckBits(Fields& fields, std::string_view key, std::initializer_list<int64_t> supported) {
  const int64_t bits = fields.OptionalInt(key, 1, 32).value_or(4);
  if (std::find(supported.begin(), supported.end(), bits) == supported.end())
    fields.Fail(InvalidArgument("{} is {}; supported: {}", key, bits, fmt::join(supported, ", ")));
}

void ParseGptq(Fields& fields, QuantizedConfig* config) {
  CheckBits(fields, "bits", {4, 8});
  AddGroupSize(fields, config);
  const std::string format = fields.StringOr("checkpoint_format", "gptq");
  if (!IsOneOf(format, {"gptq", "gptq_v2"}))
    fields.Fail(InvalidArgument("checkpoint_format '{}' is not supported; supported: gptq, gptq_v2", format.substr(0, 100)));
  if (fields.BoolOr("is_marlin_format", false))
    fields.Fail(
        InvalidArgument("is_marlin_format: weights in Marlin's order are not supported; use the checkpoint in gptq's own"));
  config->zeros_minus_one = !IsOneOf(format, {"gptq_v2"});
}

void ParseAwq(Fields& fields, QuantizedConfig* config) {
  CheckBits(fields, fields.Mentions("w_bit") ? "w_bit" : "bits", {4});
  AddGroupSize(fields, config);
  const std::string version = fields.StringOr("version", "gemm");
  if (!IsOneOf(version, {"gemm"}))
    fields.Fail(InvalidArgument("version '{}' of awq is not supported; supported: gemm", version.substr(0, 100)));
}

void ParseBlock(Fields& fields, std::string_view key, QuantizedConfig* config) {
  const auto block = fields.OptionalInts(key, 2, 1, kMaxGroup);
  if (!block) return;
  if (block->size() != 2) return fields.Fail(InvalidArgument("{} has {} numbers; wanted [rows, columns]", key, block->size()));
  config->block_rows = (*block)[0];
  config->block_cols = (*block)[1];
}

// {"group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, ...}, "targets": [...], ...}}
void ParseConfigGroup(const json& value, const std::string& where, Status* status, QuantizedConfig* config) {
  Fields group(value, where + ".", status);
  const json* weights = value.is_object() ? group.Find("weights") : nullptr;
  if (weights == nullptr) return;  // only activations, say of keys and values
  if (!weights->is_object()) return group.Fail(InvalidArgument("{}.weights is {}; wanted an object", where, Shown(*weights)));
  Fields fields(*weights, where + ".weights.", status);
  const std::string type = fields.StringOr("type", "int"), strategy = fields.StringOr("strategy", "tensor");
  if (type == "int") {
    CheckBits(fields, "num_bits", {4, 8});
  } else if (type == "float") {
    CheckBits(fields, "num_bits", {8});
  } else {
    fields.Fail(InvalidArgument("{}.weights.type is '{}'; supported: int, float", where, type.substr(0, 100)));
  }
  if (!IsOneOf(strategy, {"tensor", "channel", "group", "block"}))
    fields.Fail(
        InvalidArgument("{}.weights.strategy is '{}'; supported: tensor, channel, group, block", where, strategy.substr(0, 100)));
  AddGroupSize(fields, config);
  ParseBlock(fields, "block_structure", config);
}

void ParseCompressedTensors(Fields& fields, QuantizedConfig* config) {
  Status* status = fields.status();
  const auto check_format = [&](const std::string& format) {
    if (!IsOneOf(format, {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense"}))
      fields.Fail(InvalidArgument(
          "format '{}' of compressed-tensors is not supported; supported: pack-quantized, int-quantized, float-quantized, "
          "naive-quantized",
          format.substr(0, 100)));
  };
  check_format(fields.StringOr("format", "dense"));
  if (const json* sparsity = fields.Find("sparsity_config"); sparsity != nullptr && sparsity->is_object()) {
    Fields sparse(*sparsity, "quantization_config.sparsity_config.", status);
    if (const std::string format = sparse.StringOr("format", "dense"); format != "dense")
      fields.Fail(InvalidArgument("sparsity_config: format '{}' is not supported; supported: dense", format.substr(0, 100)));
  }
  if (const json* transform = fields.Find("transform_config"); transform != nullptr && transform->is_object() &&
                                                               transform->contains("config_groups") &&
                                                               !(*transform)["config_groups"].empty())
    fields.Fail(InvalidArgument("transform_config: weights that need activations to be rotated are not supported"));
  const json* groups = fields.Find("config_groups");
  if (groups == nullptr) return;
  if (!groups->is_object()) return fields.Fail(InvalidArgument("config_groups is {}; wanted an object", Shown(*groups)));
  for (const auto& [name, group] : groups->items()) {
    const std::string where = fmt::format("config_groups.{}", name.substr(0, 100));
    if (!group.is_object()) return fields.Fail(InvalidArgument("{} is {}; wanted an object", where, Shown(group)));
    if (const auto format = group.find("format"); format != group.end() && format->is_string())
      check_format(format->get<std::string>());
    ParseConfigGroup(group, where, status, config);
  }
}

}  // namespace

std::string_view Name(QuantMethod method) {
  switch (method) {
    case QuantMethod::kNone:
      return "none";
    case QuantMethod::kMxfp4:
      return "mxfp4";
    case QuantMethod::kGptq:
      return "gptq";
    case QuantMethod::kAwq:
      return "awq";
    case QuantMethod::kCompressedTensors:
      return "compressed-tensors";
    case QuantMethod::kFp8:
      return "fp8";
    case QuantMethod::kFbgemmFp8:
      return "fbgemm_fp8";
  }
  return "?";
}

StatusOr<QuantizedConfig> ParseQuantizedConfig(const json& value, bool mxfp4_experts) {
  if (!value.is_object()) return InvalidArgument("is {}; wanted an object with quant_method", Shown(value));
  Status status = OkStatus();
  Fields fields(value, "", &status);
  const std::string method = fields.StringOr("quant_method", fields.Mentions("config_groups") ? "compressed-tensors" : "");
  QuantizedConfig config;
  if (method == "mxfp4" && mxfp4_experts) {
    config.method = QuantMethod::kMxfp4;
  } else if (method == "gptq") {
    config.method = QuantMethod::kGptq;
    ParseGptq(fields, &config);
  } else if (method == "awq") {
    config.method = QuantMethod::kAwq;
    ParseAwq(fields, &config);
  } else if (method == "compressed-tensors") {
    config.method = QuantMethod::kCompressedTensors;
    ParseCompressedTensors(fields, &config);
  } else if (method == "fp8") {
    config.method = QuantMethod::kFp8;
    ParseBlock(fields, "weight_block_size", &config);
  } else if (method == "fbgemm_fp8") {
    config.method = QuantMethod::kFbgemmFp8;
  } else if (status.ok()) {
    return InvalidArgument("quantised weights ({}) are not supported; {}",
                           method.empty() ? "no quant_method" : fmt::format("quant_method '{}'", method.substr(0, 100)),
                           kSupported);
  }
  if (!status.ok()) return status;
  return config;
}

}  // namespace kvasir
