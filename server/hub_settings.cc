#include "server/hub_settings.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <fstream>

namespace kvasir {
namespace {

constexpr size_t kMaxTokenBytes = 4096;

// Reads variables by several names, the first that is set.
class Variables {
 public:
  explicit Variables(const Environment& environment) : environment_(environment) {}
  std::string Get(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      if (auto value = environment_(name); value && !value->empty()) return *value;
    }
    return "";
  }
  bool IsTrue(const char* name) const {
    std::string value = Get({name});
    for (char& c : value) c = char(std::toupper(uint8_t(c)));
    return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
  }

 private:
  const Environment& environment_;
};

std::string HomeFolder(const Variables& variables) {
  if (std::string home = variables.Get({"HOME"}); !home.empty()) return home;
  const passwd* user = getpwuid(getuid());
  return user != nullptr && user->pw_dir != nullptr ? user->pw_dir : "";
}

std::string ExpandHome(std::string path, const std::string& home) {
  return path == "~" || path.starts_with("~/") ? home + path.substr(1) : path;
}

Status CheckToken(std::string_view token, std::string_view place) {
  const bool plain = std::all_of(token.begin(), token.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (plain && token.size() <= kMaxTokenBytes) return OkStatus();
  return InvalidArgument("{}: the token must be one line of at most {} plain characters without spaces", place, kMaxTokenBytes);
}

std::string Trim(std::string text) {
  while (!text.empty() && std::isspace(uint8_t(text.back()))) text.pop_back();
  size_t first = 0;
  while (first < text.size() && std::isspace(uint8_t(text[first]))) ++first;
  return text.substr(first);
}

Status ReadToken(const Variables& variables, const std::string& file, HubSettings* settings) {
  if (variables.IsTrue("HF_HUB_DISABLE_IMPLICIT_TOKEN")) return OkStatus();
  settings->token_place = "HF_TOKEN";
  settings->token = Trim(variables.Get({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}));
  if (settings->token.empty()) {
    settings->token_place = file;
    std::ifstream stream(file);
    std::string text(kMaxTokenBytes + 16, '\0');
    stream.read(text.data(), int64_t(text.size()));
    text.resize(size_t(stream.gcount()));
    settings->token = Trim(text);
  }
  return CheckToken(settings->token, settings->token_place);
}

}  // namespace

Environment ProcessEnvironment() {
  return [](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
}

StatusOr<HubSettings> ReadHubSettings(const Environment& environment) {
  const Variables variables(environment);
  HubSettings settings;
  std::string endpoint = variables.Get({"HF_ENDPOINT"});
  if (endpoint.empty()) endpoint = "https://huggingface.co";
  auto url = ParseHubUrl(endpoint);
  if (!url.ok()) return AtPlace("HF_ENDPOINT", url.status());
  settings.endpoint = std::move(url).value();
  while (settings.endpoint.target.ends_with('/')) settings.endpoint.target.pop_back();
  if (settings.endpoint.target.find('?') != std::string::npos)
    return InvalidArgument("HF_ENDPOINT is {}: it must not hold a query ('?')", endpoint.substr(0, 200));

  const std::string user = HomeFolder(variables);
  std::string home = variables.Get({"HF_HOME"});
  if (home.empty()) {
    const std::string cache = variables.Get({"XDG_CACHE_HOME"});
    home = (cache.empty() ? user + "/.cache" : cache) + "/huggingface";
  }
  home = ExpandHome(home, user);
  settings.cache_dir = ExpandHome(variables.Get({"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}), user);
  if (settings.cache_dir.empty()) settings.cache_dir = home + "/hub";
  std::string token_file = ExpandHome(variables.Get({"HF_TOKEN_PATH"}), user);
  if (token_file.empty()) token_file = home + "/token";
  KVASIR_RETURN_IF_ERROR(ReadToken(variables, token_file, &settings));

  for (const char* name : {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}) {
    if (settings.offline || !variables.IsTrue(name)) continue;
    settings.offline = true;
    settings.offline_variable = name;
  }
  settings.ca_file = variables.Get({"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"});
  const std::string all = variables.Get({"ALL_PROXY", "all_proxy"});
  settings.proxies.https = variables.Get({"HTTPS_PROXY", "https_proxy"});
  settings.proxies.http = variables.Get({"HTTP_PROXY", "http_proxy"});
  if (settings.proxies.https.empty()) settings.proxies.https = all;
  if (settings.proxies.http.empty()) settings.proxies.http = all;
  settings.proxies.no_proxy = variables.Get({"NO_PROXY", "no_proxy"});
  if (const std::string text = variables.Get({"HF_HUB_DOWNLOAD_TIMEOUT"}); !text.empty()) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), settings.timeout_seconds);
    if (error != std::errc() || end != text.data() + text.size() || settings.timeout_seconds < 1 ||
        settings.timeout_seconds > 3600)
      return InvalidArgument("HF_HUB_DOWNLOAD_TIMEOUT is '{}': write whole seconds, 1 to 3600", text.substr(0, 40));
  }
  return settings;
}

}  // namespace kvasir
