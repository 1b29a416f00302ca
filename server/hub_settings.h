// What the environment says about a hub: the variables of huggingface_hub, read the same way, so that one set-up serves every
// tool.
//   HF_ENDPOINT; HF_TOKEN, or the file HF_TOKEN_PATH (default HF_HOME/token), or nothing with HF_HUB_DISABLE_IMPLICIT_TOKEN;
//   HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub; HF_HUB_OFFLINE; HF_HUB_DOWNLOAD_TIMEOUT (seconds);
//   SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE; HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY in either case.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "kernels/status.h"
#include "server/hub_url.h"

namespace kvasir {

struct HubSettings {
  HubUrl endpoint;          // its target is a prefix of every path, without a slash at the end ("" mostly)
  std::string token;        // empty = none
  std::string token_place;  // "HF_TOKEN" or the file it was read from
  std::string cache_dir;    // holds models--ORG--NAME
  bool offline = false;
  std::string ca_file;  // empty = the system's store
  ProxySettings proxies;
  int timeout_seconds = 10;      // to connect, and between two pieces of an answer
  int retry_millis = 1000;       // the first pause before another try; doubles each time
  int parallel_files = 4;        // fetched at once
  std::string offline_variable;  // the one that said so
};

// Unset and empty variables are the same.
using Environment = std::function<std::optional<std::string>(const char* name)>;
Environment ProcessEnvironment();

// Errors name the variable.
StatusOr<HubSettings> ReadHubSettings(const Environment& environment);

}  // namespace kvasir
