// URLs of a hub, as far as downloading needs them: http and https, split, joined with a redirect's Location, and quoted. And
// which proxy the environment wants for one. Used by the hub client; parses what servers send, so everything odd is refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace kvasir {

struct HubUrl {
  bool tls = false;
  std::string host;  // lower case; an IPv6 address without brackets
  uint16_t port = 0;
  std::string target = "/";  // path and query, as they go into the request line

  // "https://host:port", the port only when it is not the scheme's own. Equal origins may be sent the same token.
  std::string Origin() const;
  std::string Text() const { return Origin() + target; }
  // For the Host field and for messages: "host" or "host:port".
  std::string HostPort() const;
};

// Refuses other schemes, user names in the URL, spaces, control characters and what is longer than 8 KiB. A fragment is dropped.
StatusOr<HubUrl> ParseHubUrl(std::string_view text);
// What a Location field of an answer to `base` means. A step from https down to http is refused.
StatusOr<HubUrl> FollowLocation(const HubUrl& base, std::string_view location);

// Percent-encodes everything but letters, digits, "-._~" and the characters of `keep`.
std::string QuoteUrl(std::string_view text, std::string_view keep = "");

// Proxies by environment, as other tools read them: each is a URL "http://[user:password@]host:port" or empty.
struct ProxySettings {
  std::string http, https;  // for http:// and https:// URLs
  std::string no_proxy;     // comma-separated host suffixes; * = never a proxy
};

struct Proxy {
  std::string host;  // empty = connect directly
  uint16_t port = 0;
  std::string authorization;  // the value of Proxy-Authorization, or empty
};

// Refuses proxies of kinds that are not supported (socks5://, https://), by name.
StatusOr<Proxy> ChooseProxy(const ProxySettings& settings, const HubUrl& url);

}  // namespace kvasir
