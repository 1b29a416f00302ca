// API keys: who may ask. Keys are kept as SHA-256 digests only; a candidate is compared with every key in constant time. Used by
// both fronts.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvasir {

// A digest that cannot be compared or printed by accident.
class Secret {
 public:
  explicit Secret(std::string_view key);
  bool operator==(const Secret&) const = delete;
  // Takes the same time whatever differs.
  bool Matches(const Secret& other) const;
  std::string TenantName() const;  // stable within and between starts; does not reveal the key

 private:
  std::array<unsigned char, 32> digest_{};
};

class ApiKeys {
 public:
  ApiKeys() = default;
  explicit ApiKeys(const std::vector<std::string>& keys);
  bool empty() const { return keys_.empty(); }
  // The tenant of `key`; nothing when it is not one of ours. All keys are looked at.
  std::optional<std::string> Tenant(std::string_view key) const;
  // From the value of an Authorization header ("Bearer KEY"), else from an x-api-key header.
  std::optional<std::string> TenantOfHeaders(std::string_view authorization, std::string_view x_api_key) const;

 private:
  std::vector<Secret> keys_;
};

}  // namespace kvasir
