#include "server/hub_url.h"

#include <openssl/evp.h>

#include <algorithm>
#include <charconv>

namespace kvasir {
namespace {

constexpr size_t kMaxUrlBytes = 8192;

bool StartsWithFolded(std::string_view text, std::string_view prefix) {
  return text.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), text.begin(),
                                                    [](char a, char b) { return a == char(std::tolower(uint8_t(b))); });
}

// A URL for a message: short, and without what a terminal would obey.
std::string Shown(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, 120)) shown += c > 0x20 && c < 0x7f ? c : '?';
  return text.size() > 120 ? shown + "..." : shown;
}

// "host", "host:port", "[::1]:port".
Status SplitAuthority(std::string_view authority, std::string_view whole, HubUrl* url) {
  std::string_view host = authority, port;
  if (authority.starts_with('[')) {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) return InvalidArgument("URL {}: '[' without ']'", Shown(whole));
    host = authority.substr(1, close - 1);
    if (close + 1 < authority.size()) {
      if (authority[close + 1] != ':') return InvalidArgument("URL {}: expected ':' after ']'", Shown(whole));
      port = authority.substr(close + 2);
    }
  } else if (const size_t colon = authority.find(':'); colon != std::string_view::npos) {
    host = authority.substr(0, colon);
    port = authority.substr(colon + 1);
  }
  if (host.empty()) return InvalidArgument("URL {}: has no host", Shown(whole));
  for (const char c : host) {
    const bool name = std::isalnum(uint8_t(c)) || c == '-' || c == '.' || c == '_' || c == ':';
    if (!name) return InvalidArgument("URL {}: the host holds a character that names do not have", Shown(whole));
    url->host += char(std::tolower(uint8_t(c)));
  }
  url->port = url->tls ? 443 : 80;
  if (port.empty()) return OkStatus();
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), url->port);
  if (error != std::errc() || end != port.data() + port.size() || url->port == 0)
    return InvalidArgument("URL {}: the port must be 1 to 65535", Shown(whole));
  return OkStatus();
}

std::string Base64(std::string_view text) {
  std::string out(4 * ((text.size() + 2) / 3) + 1, '\0');
  const int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                   reinterpret_cast<const unsigned char*>(text.data()), int(text.size()));
  out.resize(size_t(size));
  return out;
}

std::string Unquote(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 3, value, 16).ptr == text.data() + i + 3) {
      out += char(value);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool ProxyIsOff(std::string_view no_proxy, std::string_view host) {
  while (!no_proxy.empty()) {
    const size_t comma = std::min(no_proxy.find(','), no_proxy.size());
    std::string_view entry = no_proxy.substr(0, comma);
    no_proxy.remove_prefix(std::min(comma + 1, no_proxy.size()));
    while (!entry.empty() && entry.front() == ' ') entry.remove_prefix(1);
    while (!entry.empty() && entry.back() == ' ') entry.remove_suffix(1);
    if (entry == "*") return true;
    if (entry.starts_with('.')) entry.remove_prefix(1);
    if (entry.empty() || entry.size() > host.size()) continue;
    std::string folded(entry);
    for (char& c : folded) c = char(std::tolower(uint8_t(c)));
    const bool whole_label = host.size() == folded.size() || host[host.size() - folded.size() - 1] == '.';
    if (host.ends_with(folded) && whole_label) return true;
  }
  return false;
}

}  // namespace

std::string HubUrl::HostPort() const {
  const std::string name = host.find(':') == std::string::npos ? host : "[" + host + "]";
  return port == (tls ? 443 : 80) ? name : fmt::format("{}:{}", name, port);
}

std::string HubUrl::Origin() const {
  return (tls ? "https://" : "http://") + HostPort();
}

StatusOr<HubUrl> ParseHubUrl(std::string_view text) {
  const std::string_view whole = text;
  HubUrl url;
  if (text.size() > kMaxUrlBytes)
    return InvalidArgument("URL {}: has {} bytes, more than {}", Shown(text), text.size(), kMaxUrlBytes);
  if (StartsWithFolded(text, "https://")) {
    url.tls = true;
    text.remove_prefix(8);
  } else if (StartsWithFolded(text, "http://")) {
    text.remove_prefix(7);
  } else {
    return InvalidArgument("URL {}: must begin with https:// or http://", Shown(text));
  }
  if (std::any_of(text.begin(), text.end(), [](char c) { return c <= 0x20 || c >= 0x7f; }))
    return InvalidArgument("URL {}: holds a space, a control character or one that is not ASCII", Shown(whole));
  text = text.substr(0, text.find('#'));
  const size_t end = std::min(text.find_first_of("/?"), text.size());
  const std::string_view authority = text.substr(0, end);
  if (authority.find('@') != std::string_view::npos)
    return InvalidArgument("URL with a user name (...@{}): not supported; set HF_TOKEN instead",
                           Shown(authority.substr(authority.rfind('@') + 1)));
  KVASIR_RETURN_IF_ERROR(SplitAuthority(authority, whole, &url));
  url.target = std::string(text.substr(end));
  if (url.target.empty() || url.target[0] != '/') url.target.insert(0, "/");
  return url;
}

StatusOr<HubUrl> FollowLocation(const HubUrl& base, std::string_view location) {
  std::string absolute;
  if (location.starts_with("//")) {
    absolute = (base.tls ? "https:" : "http:") + std::string(location);
  } else if (location.starts_with('/')) {
    absolute = base.Origin() + std::string(location);
  } else if (location.find("://") < location.find_first_of("/?#")) {
    absolute = std::string(location);
  } else {
    const std::string_view path = std::string_view(base.target).substr(0, base.target.find('?'));
    absolute = base.Origin() + std::string(path.substr(0, path.rfind('/') + 1)) + std::string(location);
  }
  KVASIR_ASSIGN_OR_RETURN(HubUrl url, ParseHubUrl(absolute));
  if (base.tls && !url.tls)
    return InvalidArgument("{} redirects to {}, which is not encrypted; not followed", base.Origin(), url.Origin());
  return url;
}

std::string QuoteUrl(std::string_view text, std::string_view keep) {
  std::string out;
  for (const char c : text) {
    const bool plain = std::isalnum(uint8_t(c)) || c == '-' || c == '.' || c == '_' || c == '~' || keep.find(c) != keep.npos;
    if (plain && uint8_t(c) < 0x80) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", uint8_t(c));
    }
  }
  return out;
}

StatusOr<Proxy> ChooseProxy(const ProxySettings& settings, const HubUrl& url) {
  std::string text = url.tls ? settings.https : settings.http;
  Proxy proxy;
  if (text.empty() || ProxyIsOff(settings.no_proxy, url.host)) return proxy;
  const char* variable = url.tls ? "HTTPS_PROXY" : "HTTP_PROXY";
  if (text.find("://") == std::string::npos) text.insert(0, "http://");
  if (!StartsWithFolded(text, "http://"))
    return InvalidArgument("{} names a proxy of kind '{}', which is not supported: use an http:// proxy, or list {} in NO_PROXY",
                           variable, Shown(text.substr(0, text.find("://"))), url.host);
  if (const size_t at = text.rfind('@'); at != std::string::npos) {
    proxy.authorization = "Basic " + Base64(Unquote(std::string_view(text).substr(7, at - 7)));
    text = "http://" + text.substr(at + 1);
  }
  auto parsed = ParseHubUrl(text);
  if (!parsed.ok()) return AtPlace(variable, parsed.status());
  proxy.host = parsed->host;
  proxy.port = parsed->port;
  return proxy;
}

}  // namespace kvasir
