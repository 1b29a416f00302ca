// Typed reads of a JSON object's fields, and the steps of parsing a config. Internal to config parsing (config*.cc).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"
#include "models/families.h"

namespace kvasir {

// Bounds on what a config may ask for. Far above any published model, and low enough that no product of them overflows 63 bits.
inline constexpr int64_t kMaxWidth = 1 << 17;  // hidden_size
inline constexpr int64_t kMaxFfn = 1 << 20;    // intermediate_size
inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxHeads = 1024;
inline constexpr int64_t kMaxHeadDim = 1024;
inline constexpr int64_t kMaxVocab = 1 << 24;
inline constexpr int64_t kMaxPositions = 1 << 24;
inline constexpr int64_t kMaxExperts = 4096;
inline constexpr int64_t kMaxTokenId = std::numeric_limits<int32_t>::max();

// A value as an error message shows it.
std::string Shown(const nlohmann::json& value);

// The first problem is kept and later reads give defaults, so that parsing reads as a list of fields; the caller asks status()
// once. A missing field and null are the same, as they are to transformers.
class Fields {
 public:
  Fields(const nlohmann::json& object, std::string where, Status* status)
      : object_(object), where_(std::move(where)), status_(status) {}

  const nlohmann::json* Find(std::string_view key) const;
  bool Mentions(std::string_view key) const { return object_.contains(key); }
  std::optional<int64_t> OptionalInt(std::string_view key, int64_t low, int64_t high);
  int64_t Int(std::string_view key, int64_t low, int64_t high);
  std::optional<double> OptionalReal(std::string_view key, double low, double high);
  double Real(std::string_view key, double low, double high);
  bool BoolOr(std::string_view key, bool otherwise);
  std::string StringOr(std::string_view key, std::string_view otherwise);
  std::vector<int32_t> TokenIds(std::string_view key);  // one id or a list of them
  // A list of exactly `count` numbers, whole ones where asked.
  std::vector<double> Reals(std::string_view key, size_t count, double low, double high);
  std::optional<std::vector<int64_t>> OptionalInts(std::string_view key, size_t most, int64_t low, int64_t high);
  std::optional<std::vector<std::string>> OptionalStrings(std::string_view key, size_t count);

  void Fail(Status status);
  Status* status() const { return status_; }
  const nlohmann::json& object() const { return object_; }

 private:
  const nlohmann::json& object_;
  const std::string where_;  // "" or "rope_scaling."
  Status* status_;
};

// Steps of ParseModelConfig, in this order.
void ParseRopes(Fields& fields, const Family& family, ModelConfig* config);
void ParseLatent(Fields& fields, const Family& family, ModelConfig* config);
void ParseMoe(Fields& fields, const Family& family, ModelConfig* config);
void ParseLayers(Fields& fields, const Family& family, ModelConfig* config);

}  // namespace kvasir
