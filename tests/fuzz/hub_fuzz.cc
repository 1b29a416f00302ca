// Fuzz target: any bytes as what a hub says: URLs and redirects, file names, ETags, revisions, the index of shards, and an answer
// with retry times. What is accepted must be harmless: no path leads outside its folder, no URL loses its encryption or gains a
// line.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "server/hub_cache.h"
#include "server/hub_files.h"
#include "server/hub_session.h"
#include "server/hub_url.h"

namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

bool IsPrintable(std::string_view text) {
  return text.find_first_of(std::string_view("\0\r\n\x1b\x7f", 5)) == std::string_view::npos;
}

// The path stays below the folder it is put into, as text: no link is involved yet.
bool StaysBelow(std::string_view name) {
  const std::filesystem::path root = "/cache/snapshots/commit";
  const std::string joined = (root / std::filesystem::path(name)).lexically_normal().string();
  return joined.starts_with("/cache/snapshots/commit/") && joined.size() > root.string().size() + 1;
}

void CheckUrl(const kvasir::HubUrl& url) {
  Check(!url.host.empty() && url.port != 0 && url.target.starts_with('/'));
  Check(IsPrintable(url.Text()) && url.Text().find(' ') == std::string::npos);
  const auto again = kvasir::ParseHubUrl(url.Text());
  Check(again.ok() && again->Text() == url.Text() && again->Origin() == url.Origin());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto short_message = [](const kvasir::Status& status) { Check(status.ok() || status.message().size() < 3000); };
  if (const auto url = kvasir::ParseHubUrl(text); url.ok()) {
    CheckUrl(*url);
    (void)kvasir::ChooseProxy({.http = std::string(text), .https = std::string(text), .no_proxy = std::string(text)}, *url);
  } else {
    short_message(url.status());
  }
  kvasir::HubUrl base;
  base.tls = true;
  base.host = "hub.example";
  base.port = 443;
  base.target = "/a/b?c";
  if (const auto url = kvasir::FollowLocation(base, text); url.ok()) {
    Check(url->tls);
    CheckUrl(*url);
  }
  if (const auto status = kvasir::CheckFileName(text); status.ok()) {
    Check(StaysBelow(text) && IsPrintable(text));
    Check(kvasir::QuoteUrl(text, "/").find_first_of(" ?#%\r\n") == std::string::npos ||
          text.size() < kvasir::QuoteUrl(text, "/").size());
  } else {
    short_message(status);
  }
  if (const auto etag = kvasir::NormalizeEtag(text); etag.ok()) Check(StaysBelow(*etag) && etag->find('/') == std::string::npos);
  if (const auto name = kvasir::ParseRepoName(text, ""); name.ok()) {
    const kvasir::RepoFolder folder("/cache", name->repo);
    Check(std::filesystem::path(folder.path).parent_path() == "/cache");
    Check(StaysBelow(name->revision) && IsPrintable(name->Text()));
  } else {
    short_message(name.status());
  }
  if (const auto shards = kvasir::ShardsOfIndex(text); shards.ok()) {
    Check(!shards->empty());
    for (const std::string& shard : *shards) Check(StaysBelow(shard) && shard.find('/') == std::string::npos);
  }
  kvasir::FetchReply reply;
  reply.status = 429;
  for (const char* header : {"retry-after", "ratelimit"}) {
    reply.headers = {{header, std::string(text)}};
    const int64_t seconds = kvasir::RetryAfterSeconds(reply);
    Check(seconds >= 0 && seconds <= 1'000'000);
  }
  Check(IsPrintable(kvasir::Quoted(text)));
  return 0;
}
