#include "server/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <fmt/format.h>

namespace kvasir {

Secret::Secret(std::string_view key) {
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest_.data());
}

bool Secret::Matches(const Secret& other) const {
  return CRYPTO_memcmp(digest_.data(), other.digest_.data(), digest_.size()) == 0;
}

std::string Secret::TenantName() const {
  // A digest of the digest: the name may show up in places where the digest itself should not.
  std::array<unsigned char, 32> name;
  SHA256(digest_.data(), digest_.size(), name.data());
  std::string out = "key-";
  for (int i = 0; i < 8; ++i) out += fmt::format("{:02x}", name[size_t(i)]);
  return out;
}

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) {
    if (!key.empty()) keys_.emplace_back(key);
  }
}

std::optional<std::string> ApiKeys::Tenant(std::string_view key) const {
  const Secret candidate(key);
  const Secret* found = nullptr;
  for (const Secret& secret : keys_) {
    if (secret.Matches(candidate)) found = &secret;
  }
  if (found == nullptr) return std::nullopt;
  return found->TenantName();
}

std::optional<std::string> ApiKeys::TenantOfHeaders(std::string_view authorization, std::string_view x_api_key) const {
  constexpr std::string_view kScheme = "bearer ";
  std::string_view key = x_api_key;
  if (authorization.size() > kScheme.size()) {
    bool bearer = true;
    for (size_t i = 0; i < kScheme.size(); ++i) bearer = bearer && (authorization[i] | 0x20) == (kScheme[i] | 0x20);
    if (bearer) {
      key = authorization.substr(kScheme.size());
      while (!key.empty() && key.front() == ' ') key.remove_prefix(1);
    }
  }
  return Tenant(key);
}

}  // namespace kvasir
