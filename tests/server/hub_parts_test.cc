// The parts of the hub client that touch no network: URLs, names of repositories and files, the cache's layout, settings, blobs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "server/hub_blob.h"
#include "server/hub_cache.h"
#include "server/hub_files.h"
#include "server/hub_settings.h"
#include "server/hub_url.h"

namespace kvasir {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

std::string FreshFolder(const std::string& name) {
  const std::string path = fmt::format("{}kvasir_hub_parts_{}_{}", testing::TempDir(), getpid(), name);
  fs::remove_all(path);
  fs::create_directories(path);
  return path;
}

void Write(const std::string& path, std::string_view text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(HubUrlTest, Parses) {
  const auto url = ParseHubUrl("HTTPS://Hub.Example.com/a/b?c=d#e");
  ASSERT_TRUE(url.ok()) << url.status();
  EXPECT_TRUE(url->tls);
  EXPECT_EQ(url->host, "hub.example.com");
  EXPECT_EQ(url->port, 443);
  EXPECT_EQ(url->target, "/a/b?c=d");
  EXPECT_EQ(url->Origin(), "https://hub.example.com");
  EXPECT_EQ(ParseHubUrl("http://[::1]:8080")->Text(), "http://[::1]:8080/");
  EXPECT_EQ(ParseHubUrl("http://h:80?q")->Text(), "http://h/?q");
}

TEST(HubUrlTest, RefusesTheRest) {
  for (const char* bad : {"", "ftp://h/", "file:///etc/passwd", "http://", "http:///x", "http://h:0/", "http://h:65536/",
                          "http://h:x/", "http://user:secret@h/", "http://h/a b", "http://h/a\r\nX: y", "http://h\x01/",
                          "http://[::1/", "https//h", "http://[::1]x/", "http://h/\xc3\xa9", "http://a<b/"})
    EXPECT_FALSE(ParseHubUrl(bad).ok()) << bad;
  EXPECT_FALSE(ParseHubUrl("http://h/" + std::string(9000, 'a')).ok());
  EXPECT_THAT(Message(ParseHubUrl("http://user:secret@h/").status()), testing::Not(HasSubstr("secret")));
}

TEST(HubUrlTest, FollowsLocations) {
  const HubUrl base = *ParseHubUrl("https://h/a/b?c");
  EXPECT_EQ(FollowLocation(base, "/x?y=/z")->Text(), "https://h/x?y=/z");
  EXPECT_EQ(FollowLocation(base, "x?u=http://z")->Text(), "https://h/a/x?u=http://z");
  EXPECT_EQ(FollowLocation(base, "//cdn/x")->Text(), "https://cdn/x");
  EXPECT_EQ(FollowLocation(base, "https://cdn:99/x")->Text(), "https://cdn:99/x");
  EXPECT_THAT(Message(FollowLocation(base, "http://h/x").status()), HasSubstr("not encrypted"));
  EXPECT_FALSE(FollowLocation(base, "file:///etc/passwd").ok());
  EXPECT_FALSE(FollowLocation(base, "/a\x01").ok());
}

TEST(HubUrlTest, Quotes) {
  EXPECT_EQ(QuoteUrl("refs/pr/1"), "refs%2Fpr%2F1");
  EXPECT_EQ(QuoteUrl("a b/c%\xc3\xa9?", "/"), "a%20b/c%25%C3%A9%3F");
}

TEST(HubUrlTest, ChoosesProxies) {
  const HubUrl tls = *ParseHubUrl("https://hub.example.com/"), plain = *ParseHubUrl("http://mirror:9/");
  ProxySettings settings{.http = "", .https = "http://us%65r:p%40ss@proxy:3128/", .no_proxy = "localhost,.other.com, xample.com"};
  const auto proxy = ChooseProxy(settings, tls);
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  EXPECT_EQ(proxy->host, "proxy");
  EXPECT_EQ(proxy->port, 3128);
  EXPECT_EQ(proxy->authorization, "Basic dXNlcjpwQHNz");  // user:p@ss
  EXPECT_EQ(ChooseProxy(settings, plain)->host, "");
  for (const char* off : {"*", "example.com", ".example.com", "HUB.example.com", "a,hub.example.com"}) {
    settings.no_proxy = off;
    EXPECT_EQ(ChooseProxy(settings, tls)->host, "") << off;
  }
  settings.no_proxy = "";
  settings.https = "socks5://proxy:1080";
  EXPECT_THAT(Message(ChooseProxy(settings, tls).status()), testing::AllOf(HasSubstr("HTTPS_PROXY"), HasSubstr("socks5")));
}

TEST(HubFilesTest, RefusesNamesThatAreNotPlain) {
  for (const char* good : {"config.json", "a/b/c.txt", "..a", "a..b", "caf\xc3\xa9.txt", "additional_chat_templates/x.jinja"})
    EXPECT_TRUE(CheckFileName(good).ok()) << good;
  for (const std::string bad : {"", "/etc/passwd", "../x", "a/../b", "a/..", "..", ".", "a//b", "a/", "a\\b", "a\nb", "a\x1b[2J",
                                "a\x7f", "\xff\xfe", "./a"})
    EXPECT_FALSE(CheckFileName(bad).ok()) << bad;
  EXPECT_FALSE(CheckFileName(std::string("a\0b", 3)).ok());
  EXPECT_FALSE(CheckFileName(std::string(256, 'a')).ok());
  EXPECT_FALSE(CheckFileName(std::string(2000, 'a')).ok());
  EXPECT_THAT(Message(CheckFileName("a\x1b[2J")), testing::Not(HasSubstr("\x1b")));
}

TEST(HubFilesTest, ChoosesWhatAModelNeeds) {
  const std::vector<std::string> names = {".gitattributes",
                                          "README.md",
                                          "config.json",
                                          "generation_config.json",
                                          "tokenizer.json",
                                          "tokenizer_config.json",
                                          "tokenizer.model",
                                          "qwen.tiktoken",
                                          "chat_template.jinja",
                                          "vocab.json",
                                          "merges.txt",
                                          "added_tokens.json",
                                          "special_tokens_map.json",
                                          "model.safetensors",
                                          "model.safetensors.index.json",
                                          "model-00001-of-00002.safetensors",
                                          "pytorch_model.bin",
                                          "consolidated.safetensors",
                                          "onnx/model.onnx",
                                          "onnx/tokenizer.json",
                                          "tokenizer.pkl",
                                          "tokenizer.py",
                                          "additional_chat_templates/tool_use.jinja",
                                          "additional_chat_templates/a/b.jinja",
                                          "modeling_x.py"};
  const auto model = ChooseFiles(names, PullWhat::kModel);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(*model,
              ElementsAre("added_tokens.json", "additional_chat_templates/tool_use.jinja", "chat_template.jinja", "config.json",
                          "generation_config.json", "merges.txt", "model.safetensors", "qwen.tiktoken", "special_tokens_map.json",
                          "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"));
  EXPECT_THAT(*ChooseFiles({"config.json", "model.safetensors.index.json", "model-1.safetensors"}, PullWhat::kModel),
              ElementsAre("config.json", "model.safetensors.index.json"));
  EXPECT_THAT(*ChooseFiles({"tokenizer.json", "model.safetensors"}, PullWhat::kText), ElementsAre("tokenizer.json"));
  EXPECT_THAT(Message(ChooseFiles({"config.json", "pytorch_model.bin"}, PullWhat::kModel).status()),
              HasSubstr("pytorch_model.bin"));
  EXPECT_THAT(Message(ChooseFiles({"q4.gguf"}, PullWhat::kModel).status()), HasSubstr("q4.gguf"));
  EXPECT_FALSE(ChooseFiles({"README.md"}, PullWhat::kText).ok());
}

TEST(HubFilesTest, ReadsShards) {
  EXPECT_THAT(*ShardsOfIndex(R"({"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}})"),
              ElementsAre("1.safetensors", "2.safetensors"));
  for (const char* bad : {"", "[]", "{}", R"({"weight_map": {}})", R"({"weight_map": {"a": 1}})",
                          R"({"weight_map": {"a": "../x.safetensors"}})", R"({"weight_map": {"a": "x/y.safetensors"}})",
                          R"({"weight_map": {"a": "/x.safetensors"}})", R"({"weight_map": {"a": "pytorch_model.bin"}})"})
    EXPECT_FALSE(ShardsOfIndex(bad).ok()) << bad;
}

TEST(HubFilesTest, TellsWhatAFolderLacks) {
  const std::string dir = FreshFolder("missing");
  EXPECT_THAT(MissingFiles(dir, PullWhat::kModel), ElementsAre("tokenizer.json", "config.json", "model.safetensors"));
  Write(dir + "/config.json", "{}");
  Write(dir + "/tokenizer.model", "x");
  EXPECT_THAT(MissingFiles(dir, PullWhat::kText), ElementsAre());
  EXPECT_THAT(MissingFiles(dir, PullWhat::kModel), ElementsAre("model.safetensors"));
  Write(dir + "/model.safetensors.index.json", R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  Write(dir + "/1.safetensors", "x");
  fs::create_symlink("nowhere", dir + "/2.safetensors");  // a link to a blob that is gone
  EXPECT_THAT(MissingFiles(dir, PullWhat::kModel), ElementsAre("2.safetensors"));
  Write(dir + "/nowhere", "x");
  EXPECT_THAT(MissingFiles(dir, PullWhat::kModel), ElementsAre());
}

TEST(HubCacheTest, ParsesNames) {
  const auto name = ParseRepoName("Org-1/Na.me_2@refs/pr/1", "");
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_EQ(name->repo, "Org-1/Na.me_2");
  EXPECT_EQ(name->revision, "refs/pr/1");
  EXPECT_EQ(ParseRepoName("gpt2", "")->revision, "main");
  EXPECT_EQ(ParseRepoName("gpt2", "v1")->Text(), "gpt2@v1");
  EXPECT_TRUE(ParseRepoName("gpt2@v1", "v1").ok());
  EXPECT_THAT(Message(ParseRepoName("gpt2@v1", "v2").status()), HasSubstr("--revision"));
  for (const char* bad : {"",       "/",      "a/",      "/a",         "a/b/c",   "../a",    "a/..",       "a--b", "a/b--c",
                          "a..b",   ".a",     "a-",      "-a/b",       "a b",     "a/b.git", "a\nb",       "a/b@", "a/b@../x",
                          "a/b@/x", "a/b@-x", "a/b@x y", "a/b@x/../y", "a/b@x:y", "a/b@x^",  "caf\xc3\xa9"})
    EXPECT_FALSE(ParseRepoName(bad, "").ok()) << bad;
  EXPECT_FALSE(ParseRepoName(std::string(97, 'a'), "").ok());
  EXPECT_FALSE(ParseRepoName("a/b", "../../x").ok());
}

TEST(HubCacheTest, NormalizesEtags) {
  EXPECT_EQ(*NormalizeEtag("\"abc\""), "abc");
  EXPECT_EQ(*NormalizeEtag("W/\"abc-1\""), "abc-1");
  EXPECT_EQ(*NormalizeEtag("abc"), "abc");
  for (const char* bad : {"", "\"\"", "\"../x\"", "\"a/b\"", "\".\"", "\"..\"", "a b", "a\"b", "\"a\nb\""})
    EXPECT_FALSE(NormalizeEtag(bad).ok()) << bad;
  EXPECT_FALSE(NormalizeEtag(std::string(300, 'a')).ok());
}

TEST(HubCacheTest, LinksAndRefs) {
  const RepoFolder folder(FreshFolder("links"), "org/name");
  const std::string commit(40, 'c');
  Write(folder.Blob("e1"), "one");
  Write(folder.Blob("e2"), "two");
  ASSERT_TRUE(LinkIntoSnapshot(folder, commit, "config.json", "e1").ok());
  ASSERT_TRUE(LinkIntoSnapshot(folder, commit, "sub/x.jinja", "e2").ok());
  EXPECT_EQ(fs::read_symlink(folder.Snapshot(commit) + "/config.json"), "../../blobs/e1");
  EXPECT_EQ(fs::read_symlink(folder.Snapshot(commit) + "/sub/x.jinja"), "../../../blobs/e2");
  EXPECT_EQ(Read(folder.Snapshot(commit) + "/sub/x.jinja"), "two");
  ASSERT_TRUE(LinkIntoSnapshot(folder, commit, "config.json", "e2").ok());
  EXPECT_EQ(Read(folder.Snapshot(commit) + "/config.json"), "two");

  EXPECT_EQ(folder.CommitOf("main").status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(WriteRef(folder, "main", commit).ok());
  ASSERT_TRUE(WriteRef(folder, "refs/pr/1", commit).ok());
  EXPECT_EQ(Read(folder.path + "/refs/refs/pr/1"), commit);
  EXPECT_EQ(*folder.CommitOf("main"), commit);
  EXPECT_EQ(*folder.CommitOf(commit), commit);
  Write(folder.Ref("bad"), "../../etc");
  EXPECT_FALSE(folder.CommitOf("bad").ok());
}

TEST(HubCacheTest, LockIsExclusive) {
  const RepoFolder folder(FreshFolder("lock"), "org/name");
  int asked = 0;
  {
    const auto lock = BlobLock::Take(folder, "e", {});
    ASSERT_TRUE(lock.ok()) << lock.status();
    const auto second = BlobLock::Take(folder, "e", [&] { return ++asked < 3; });
    EXPECT_EQ(second.status().code(), StatusCode::kCancelled);
    EXPECT_EQ(asked, 3);
    EXPECT_TRUE(BlobLock::Take(folder, "other", {}).ok());
  }
  EXPECT_TRUE(BlobLock::Take(folder, "e", [] { return false; }).ok());
}

Environment Variables(std::map<std::string, std::string> values) {
  return [values](const char* name) -> std::optional<std::string> {
    const auto found = values.find(name);
    return found == values.end() ? std::nullopt : std::optional<std::string>(found->second);
  };
}

TEST(HubSettingsTest, CacheFollowsTheVariables) {
  const auto cache = [](std::map<std::string, std::string> values) {
    values.emplace("HOME", "/home/u");
    const auto settings = ReadHubSettings(Variables(std::move(values)));
    return settings.ok() ? settings->cache_dir : Message(settings.status());
  };
  EXPECT_EQ(cache({}), "/home/u/.cache/huggingface/hub");
  EXPECT_EQ(cache({{"XDG_CACHE_HOME", "/x"}}), "/x/huggingface/hub");
  EXPECT_EQ(cache({{"HF_HOME", "/h"}, {"XDG_CACHE_HOME", "/x"}}), "/h/hub");
  EXPECT_EQ(cache({{"HF_HOME", "~/h"}}), "/home/u/h/hub");
  EXPECT_EQ(cache({{"HUGGINGFACE_HUB_CACHE", "/old"}, {"HF_HOME", "/h"}}), "/old");
  EXPECT_EQ(cache({{"HF_HUB_CACHE", "/new"}, {"HUGGINGFACE_HUB_CACHE", "/old"}, {"HF_HOME", "/h"}}), "/new");
  EXPECT_EQ(cache({{"HF_HUB_CACHE", ""}, {"HF_HOME", "/h"}}), "/h/hub");
}

TEST(HubSettingsTest, TokenEndpointAndSwitches) {
  const std::string home = FreshFolder("settings");
  Write(home + "/token", "from-file\n");
  const auto read = [&](std::map<std::string, std::string> values) {
    values.emplace("HF_HOME", home);
    return ReadHubSettings(Variables(std::move(values)));
  };
  EXPECT_EQ(read({})->token, "from-file");
  EXPECT_EQ(read({})->token_place, home + "/token");
  EXPECT_EQ(read({{"HF_TOKEN", " given\n"}})->token, "given");
  EXPECT_EQ(read({{"HF_TOKEN", "x"}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"}})->token, "");
  EXPECT_THAT(Message(read({{"HF_TOKEN", "a\r\nX-Evil: b"}}).status()),
              testing::AllOf(HasSubstr("HF_TOKEN"), testing::Not(HasSubstr("Evil"))));
  Write(home + "/other", "elsewhere");
  EXPECT_EQ(read({{"HF_TOKEN_PATH", home + "/other"}})->token, "elsewhere");

  EXPECT_EQ(read({})->endpoint.Text(), "https://huggingface.co");
  EXPECT_EQ(read({{"HF_ENDPOINT", "http://mirror:8/hf/"}})->endpoint.Text(), "http://mirror:8/hf");
  EXPECT_THAT(Message(read({{"HF_ENDPOINT", "mirror"}}).status()), HasSubstr("HF_ENDPOINT"));
  EXPECT_FALSE(read({{"HF_ENDPOINT", "http://m/?x"}}).ok());
  EXPECT_FALSE(read({})->offline);
  EXPECT_FALSE(read({{"HF_HUB_OFFLINE", "0"}})->offline);
  EXPECT_TRUE(read({{"HF_HUB_OFFLINE", "yes"}})->offline);
  EXPECT_EQ(read({{"TRANSFORMERS_OFFLINE", "1"}})->offline_variable, "TRANSFORMERS_OFFLINE");
  EXPECT_EQ(read({{"HF_HUB_DOWNLOAD_TIMEOUT", "33"}})->timeout_seconds, 33);
  for (const char* bad : {"0", "x", "1.5", "99999"}) EXPECT_FALSE(read({{"HF_HUB_DOWNLOAD_TIMEOUT", bad}}).ok()) << bad;
  EXPECT_EQ(read({{"REQUESTS_CA_BUNDLE", "/b"}})->ca_file, "/b");
  EXPECT_EQ(read({{"ALL_PROXY", "http://a"}, {"https_proxy", "http://b"}})->proxies.https, "http://b");
  EXPECT_EQ(read({{"ALL_PROXY", "http://a"}, {"https_proxy", "http://b"}})->proxies.http, "http://a");
}

// From 'printf hello | sha256sum' and 'printf hello | git hash-object --stdin'.
constexpr char kHello256[] = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
constexpr char kHelloGit[] = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";

TEST(BlobFileTest, ChecksAndResumes) {
  const std::string dir = FreshFolder("blob");
  for (const char* etag : {kHello256, kHelloGit, "mirror-etag"}) {
    const std::string path = dir + "/" + etag;
    {
      auto blob = BlobFile::Open(path, etag, 5);
      ASSERT_TRUE(blob.ok()) << blob.status();
      ASSERT_TRUE(blob->Append("he").ok());
      EXPECT_EQ(blob->Commit().code(), StatusCode::kUnavailable);
    }
    auto blob = BlobFile::Open(path, etag, 5);
    ASSERT_TRUE(blob.ok()) << blob.status();
    EXPECT_TRUE(blob->resumed());
    EXPECT_EQ(blob->received(), 2);
    EXPECT_EQ(blob->has_checksum(), etag != std::string_view("mirror-etag"));
    ASSERT_TRUE(blob->Append("l").ok());
    ASSERT_TRUE(blob->Append("lo").ok());
    ASSERT_TRUE(blob->Commit().ok());
    EXPECT_EQ(Read(path), "hello");
    EXPECT_FALSE(fs::exists(path + ".incomplete"));
  }
}

TEST(BlobFileTest, SizeMayBeUnknown) {
  const std::string dir = FreshFolder("blob_unsized");
  for (const char* etag : {kHello256, kHelloGit}) {
    auto blob = BlobFile::Open(dir + "/" + etag, etag, std::nullopt);
    ASSERT_TRUE(blob.ok() && blob->Append("hello").ok());
    EXPECT_TRUE(blob->Commit().ok()) << etag;
  }
}

TEST(BlobFileTest, WrongBytesAreRemoved) {
  const std::string dir = FreshFolder("blob_wrong");
  for (const char* etag : {kHello256, kHelloGit}) {
    auto blob = BlobFile::Open(dir + "/" + etag, etag, 5);
    ASSERT_TRUE(blob.ok() && blob->Append("hallo").ok());
    const Status status = blob->Commit();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_THAT(Message(status), testing::AllOf(HasSubstr(etag), HasSubstr("removed")));
    EXPECT_TRUE(fs::is_empty(dir));
  }
}

TEST(BlobFileTest, TooManyBytesAndOldRemains) {
  const std::string dir = FreshFolder("blob_more");
  auto blob = BlobFile::Open(dir + "/e", "e", 3);
  ASSERT_TRUE(blob.ok() && blob->Append("abc").ok());
  EXPECT_EQ(blob->Append("d").code(), StatusCode::kDataLoss);
  EXPECT_EQ(fs::file_size(dir + "/e.incomplete"), 3);
  Write(dir + "/f.incomplete", "more than three");
  EXPECT_EQ(BlobFile::Open(dir + "/f", "f", 3)->received(), 0);
  Write(dir + "/target", "precious");
  fs::create_symlink("target", dir + "/g.incomplete");
  EXPECT_FALSE(BlobFile::Open(dir + "/g", "g", 8).ok());
  EXPECT_EQ(Read(dir + "/target"), "precious");
  EXPECT_FALSE(BlobFile::Open(dir + "/no/folder", "h", 8).ok());
}

}  // namespace
}  // namespace kvasir
