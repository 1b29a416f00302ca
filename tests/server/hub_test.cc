// Pulling from a hub, against a scripted server: what arrives, what is refused, what is resumed, and where the token goes.
#include "server/hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "server/hub_http.h"
#include "tests/server/scripted_server.h"

namespace kvasir {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string Hash(const EVP_MD* md, const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), digest, &size, md, nullptr);
  std::string out;
  for (unsigned int i = 0; i < size; ++i) out += fmt::format("{:02x}", digest[i]);
  return out;
}
std::string Sha256(const std::string& text) {
  return Hash(EVP_sha256(), text);
}
std::string GitSha1(const std::string& text) {
  return Hash(EVP_sha1(), fmt::format("blob {}", text.size()) + std::string(1, '\0') + text);
}

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// --- the HTTP client ----------------------------------------------------------------------------------------------------

StatusOr<FetchReply> Get(const ScriptedServer& server, FetchOptions options = {}, std::string_view path = "/",
                         size_t limit = 1 << 20) {
  HttpFetcher fetcher(std::move(options));
  return fetcher.Send({.url = *ParseHubUrl(server.Url() + std::string(path)), .body_limit = limit});
}

TEST(HttpFetcherTest, ReadsEveryKindOfBody) {
  const std::string big(700'000, 'x');
  ScriptedServer server([&](const SeenRequest& request) -> RawAnswer {
    if (request.target == "/sized") return Answer200("hello", "X-A: 1\r\nx-b:  two \r\n");
    if (request.target == "/chunked")
      return {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: z\r\n\r\n"};
    if (request.target == "/until-close") return {"HTTP/1.0 200 OK\r\n\r\nto the end", true};
    if (request.target == "/interim")
      return {"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"};
    if (request.target == "/empty") return {"HTTP/1.1 204 No\r\n\r\n"};
    return Answer200(big);
  });
  HttpFetcher fetcher({});
  const auto get = [&](const std::string& path) {
    return fetcher.Send({.url = *ParseHubUrl(server.Url() + path), .headers = {{"X-C", "d"}}, .body_limit = 1 << 20});
  };
  const auto sized = get("/sized");
  ASSERT_TRUE(sized.ok()) << sized.status();
  EXPECT_EQ(sized->body, "hello");
  EXPECT_EQ(sized->Header("x-a"), "1");
  EXPECT_EQ(sized->Header("x-b"), "two");
  EXPECT_EQ(sized->Header("x-none"), "");
  EXPECT_EQ(get("/chunked")->body, "abcde");
  EXPECT_EQ(get("/interim")->body, "ok");
  EXPECT_EQ(get("/empty")->status, 204);
  EXPECT_EQ(get("/big")->body, big);
  EXPECT_EQ(get("/until-close")->body, "to the end");
  EXPECT_EQ(get("/sized")->body, "hello");
  EXPECT_EQ(server.Seen()[0].Header("x-c"), "d");
  EXPECT_EQ(server.Seen()[0].Header("host"), fmt::format("127.0.0.1:{}", server.port()));
}

TEST(HttpFetcherTest, KeepsItsConnection) {
  std::atomic<int> answers{0};
  ScriptedServer server([&](const SeenRequest&) {
    RawAnswer answer = Answer200("x");
    answer.close = ++answers == 2;  // closed without a word after the second: the third goes through a new connection
    return answer;
  });
  HttpFetcher fetcher({});
  for (int i = 0; i < 4; ++i) {
    const auto reply = fetcher.Send({.url = *ParseHubUrl(server.Url())});
    ASSERT_TRUE(reply.ok()) << i << " " << reply.status();
  }
  EXPECT_EQ(server.connections(), 2);
}

TEST(HttpFetcherTest, TellsWhatIsWrong) {
  const auto with = [](RawAnswer answer, FetchOptions options = {}, size_t limit = 1 << 20) {
    ScriptedServer server([&](const SeenRequest&) { return answer; });
    return Get(server, std::move(options), "/", limit).status();
  };
  EXPECT_EQ(with({"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive5", true}).code(), StatusCode::kUnavailable);
  EXPECT_EQ(with({"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", true}).code(), StatusCode::kUnavailable);
  EXPECT_EQ(with({"HTTP/1.1 200 OK\r\nContent-Le", true}).code(), StatusCode::kUnavailable);
  EXPECT_EQ(with({"", true}).code(), StatusCode::kUnavailable);
  EXPECT_EQ(with({"SSH-2.0-OpenSSH_9.2\r\n", true}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(with({"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", true}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(with({"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", true}).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(with({"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", true}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(with({"HTTP/1.1 200 OK\r\nX: " + std::string(100'000, 'a'), true}).code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(with(Answer200(std::string(3000, 'x')), {}, 1000)), HasSubstr("more than 1000 bytes"));
  std::string interim;
  for (int i = 0; i < 20; ++i) interim += "HTTP/1.1 100 Continue\r\n\r\n";
  EXPECT_EQ(with({interim}).code(), StatusCode::kInvalidArgument);
}

TEST(HttpFetcherTest, DoesNotWaitForEver) {
  ScriptedServer server([](const SeenRequest&) {
    RawAnswer answer = Answer200("late");
    answer.stall_millis = 60'000;
    return answer;
  });
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Get(server, {.idle_timeout = std::chrono::milliseconds(200)}).status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Get(server, {.keep_going = [] { return false; }}).status().code(), StatusCode::kCancelled);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(HttpFetcherTest, TellsWhyItCannotConnect) {
  int port = 0;
  {
    ScriptedServer gone([](const SeenRequest&) { return Answer200(""); });
    port = gone.port();
  }
  HttpFetcher fetcher({});
  const Status refused = fetcher.Send({.url = *ParseHubUrl(fmt::format("http://127.0.0.1:{}/", port))}).status();
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(refused), HasSubstr("refused"));
  HttpFetcher no_store({.ca_file = "/no/such/bundle.pem"});
  ScriptedServer server([](const SeenRequest&) { return Answer200(""); });
  EXPECT_THAT(Message(no_store.Send({.url = *ParseHubUrl(fmt::format("https://127.0.0.1:{}/", server.port()))}).status()),
              HasSubstr("/no/such/bundle.pem"));
}

TEST(HttpFetcherTest, GoesThroughAProxy) {
  ScriptedServer proxy([](const SeenRequest& request) -> RawAnswer {
    if (request.method == "CONNECT") return {"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"};
    return Answer200("from the proxy for " + request.target);
  });
  const std::string url = fmt::format("http://me:pw@127.0.0.1:{}", proxy.port());
  HttpFetcher fetcher({.proxies = {.http = url, .https = url, .no_proxy = ""}});
  EXPECT_EQ(fetcher.Send({.url = *ParseHubUrl("http://mirror.test/x?y")})->body, "from the proxy for http://mirror.test/x?y");
  EXPECT_EQ(proxy.Seen()[0].Header("proxy-authorization"), "Basic bWU6cHc=");
  const Status refused = fetcher.Send({.url = *ParseHubUrl("https://hub.test/x")}).status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(refused), AllOf(HasSubstr("HTTPS_PROXY"), HasSubstr("403")));
  EXPECT_EQ(proxy.Seen()[1].target, "hub.test:443");
}

// --- pulling ------------------------------------------------------------------------------------------------------------

// A hub of one repository. Files named *.safetensors lie on a CDN: the same server under another name, another origin.
class FakeHub {
 public:
  FakeHub()
      : server_([this](const SeenRequest& request) {
          if (before) {
            if (auto answer = before(request); !answer.bytes.empty()) return answer;
          }
          return Answer(request);
        }) {
    settings.endpoint = *ParseHubUrl(server_.Url("127.0.0.1"));
    settings.endpoint.target.clear();
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    settings.cache_dir = fmt::format("{}kvasir_hub_{}_{}", testing::TempDir(), getpid(), test->name());
    settings.retry_millis = 5;
    settings.timeout_seconds = 5;
    fs::remove_all(settings.cache_dir);
    files = {{"config.json", R"({"model_type": "llama"})"},
             {"tokenizer.json", "{}"},
             {"model.safetensors", Weights(100'000)},
             {"README.md", "# not needed"},
             {"pytorch_model.bin", "a pickle"}};
  }

  ~FakeHub() { fs::remove_all(settings.cache_dir); }

  static std::string Weights(size_t size) {
    std::string bytes(size, '\0');
    for (size_t i = 0; i < size; ++i) bytes[i] = char((i * 2654435761u) >> 13);
    return bytes;
  }

  StatusOr<Pulled> Pull(const std::string& name = "org/model", PullWhat what = PullWhat::kModel,
                        std::function<bool()> keep_going = {}) {
    return PullSnapshot(settings, *ParseRepoName(name, ""), what,
                        {.keep_going = std::move(keep_going), .remark = [this](const std::string& line) {
                           const std::lock_guard lock(mutex_);
                           remarks += line + "\n";
                         }});
  }
  RepoFolder folder() const { return RepoFolder(settings.cache_dir, "org/model"); }
  std::string InSnapshot(const std::string& name) const { return Read(folder().Snapshot(commit) + "/" + name); }
  int Count(const std::string& method, const std::string& part) const {
    const auto seen = server_.Seen();
    return int(std::count_if(seen.begin(), seen.end(),
                             [&](const SeenRequest& r) { return r.method == method && r.target.find(part) != r.target.npos; }));
  }
  const ScriptedServer& server() const { return server_; }

  HubSettings settings;
  std::map<std::string, std::string> files;
  std::string commit = std::string(40, 'c');
  nlohmann::json extra_names = nlohmann::json::array();
  std::function<RawAnswer(const SeenRequest&)> before;  // answers first; empty bytes = the usual answer
  std::string remarks;

 private:
  bool OnCdn(const std::string& name) const { return name.ends_with(".safetensors"); }

  RawAnswer Answer(const SeenRequest& request) {
    const std::string path = request.target.substr(0, request.target.find('?'));
    if (path.starts_with("/api/models/org/model/revision/")) {
      nlohmann::json list = extra_names;
      for (const auto& [name, bytes] : files) list.push_back({{"rfilename", name}});
      return Answer200(nlohmann::json({{"sha", commit}, {"siblings", list}}).dump());
    }
    if (path.starts_with("/api/")) return Answer200("{}", "X-Error-Code: RepoNotFound\r\n", 404);
    const bool cdn = path.starts_with("/cdn/");
    const std::string prefix = cdn ? "/cdn/" : fmt::format("/org/model/resolve/{}/", commit);
    const std::string name = path.starts_with(prefix) ? path.substr(prefix.size()) : "";
    if (!files.contains(name)) return Answer200("{}", "X-Error-Code: EntryNotFound\r\n", 404);
    const std::string& bytes = files.at(name);
    const bool head = request.method == "HEAD";
    if (OnCdn(name) && !cdn) {
      return {
          fmt::format("HTTP/1.1 302 X\r\nX-Repo-Commit: {}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nETag: \"other\"\r\n"
                      "Location: {}/cdn/{}?sig=1\r\nContent-Length: 0\r\n\r\n",
                      commit, Sha256(bytes), bytes.size(), server_.Url("localhost"), name)};
    }
    size_t from = 0;
    if (const std::string range = request.Header("range"); !range.empty()) from = std::stoul(range.substr(6));
    if (from > bytes.size() || (from > 0 && from == bytes.size())) return Answer200("", "", 416);
    std::string text = fmt::format("HTTP/1.1 {} X\r\nX-Repo-Commit: {}\r\nETag: \"{}\"\r\nContent-Length: {}\r\n",
                                   from > 0 ? 206 : 200, commit, GitSha1(bytes), bytes.size() - from);
    if (from > 0) text += fmt::format("Content-Range: bytes {}-{}/{}\r\n", from, bytes.size() - 1, bytes.size());
    return {text + "\r\n" + (head ? "" : bytes.substr(from))};
  }

  std::mutex mutex_;
  ScriptedServer server_;
};

bool Gets(const SeenRequest& request, std::string_view part) {
  return request.method == "GET" && request.target.find(part) != std::string::npos;
}

TEST(HubTest, PullsWhatIsNeededIntoTheCache) {
  FakeHub hub;
  const auto pulled = hub.Pull();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(pulled->commit, hub.commit);
  EXPECT_EQ(pulled->files, 3);
  EXPECT_EQ(pulled->bytes, pulled->fetched_bytes);
  EXPECT_EQ(pulled->path, hub.folder().Snapshot(hub.commit));
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"})
    EXPECT_EQ(hub.InSnapshot(name), hub.files[name]) << name;
  EXPECT_FALSE(fs::exists(pulled->path + "/README.md"));
  EXPECT_FALSE(fs::exists(pulled->path + "/pytorch_model.bin"));
  EXPECT_EQ(fs::read_symlink(pulled->path + "/model.safetensors"), "../../blobs/" + Sha256(hub.files["model.safetensors"]));
  EXPECT_EQ(Read(hub.folder().Ref("main")), hub.commit);
  EXPECT_EQ(hub.remarks, "");

  const int before = int(hub.server().Seen().size());
  const auto again = hub.Pull();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->fetched_bytes, 0);
  EXPECT_EQ(int(hub.server().Seen().size()), before + 1);  // only the list
}

TEST(HubTest, NewCommitReusesBlobs) {
  FakeHub hub;
  ASSERT_TRUE(hub.Pull().ok());
  hub.commit = std::string(40, 'd');
  hub.files["config.json"] = "{\"changed\": 1}";
  const auto pulled = hub.Pull();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(pulled->fetched_bytes, hub.files["config.json"].size());
  EXPECT_EQ(hub.InSnapshot("config.json"), hub.files["config.json"]);
  EXPECT_EQ(Read(hub.folder().Ref("main")), hub.commit);
  EXPECT_EQ(Read(hub.folder().Snapshot(std::string(40, 'c')) + "/config.json"), R"({"model_type": "llama"})");
}

TEST(HubTest, TokenStaysWithTheHub) {
  FakeHub hub;
  hub.settings.token = "hf_secret";
  ASSERT_TRUE(hub.Pull().ok());
  int on_cdn = 0, on_hub = 0;
  for (const SeenRequest& request : hub.server().Seen()) {
    const bool cdn = request.target.starts_with("/cdn/");
    EXPECT_EQ(request.Header("authorization"), cdn ? "" : "Bearer hf_secret") << request.target;
    ++(cdn ? on_cdn : on_hub);
  }
  EXPECT_GE(on_cdn, 1);
  EXPECT_GE(on_hub, 5);
}

TEST(HubTest, ShardsComeFromTheIndex) {
  FakeHub hub;
  hub.files.erase("model.safetensors");
  hub.files["model-1.safetensors"] = FakeHub::Weights(5000);
  hub.files["model-2.safetensors"] = FakeHub::Weights(6000);
  hub.files["unused.safetensors"] = FakeHub::Weights(7000);
  hub.files["model.safetensors.index.json"] = R"({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})";
  const auto pulled = hub.Pull();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(hub.InSnapshot("model-2.safetensors"), hub.files["model-2.safetensors"]);
  EXPECT_FALSE(fs::exists(pulled->path + "/unused.safetensors"));

  hub.files["model.safetensors.index.json"] = R"({"weight_map": {"a": "model-9.safetensors"}})";
  hub.commit = std::string(40, 'd');
  EXPECT_THAT(Message(hub.Pull().status()), AllOf(HasSubstr("model-9.safetensors"), HasSubstr("the repository does not have")));
  EXPECT_EQ(hub.Count("HEAD", "model-9"), 0);
  EXPECT_EQ(Read(hub.folder().Ref("main")), std::string(40, 'c'));  // the old one still holds
}

TEST(HubTest, TextOnlyLeavesTheWeights) {
  FakeHub hub;
  const auto pulled = hub.Pull("org/model", PullWhat::kText);
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_FALSE(fs::exists(pulled->path + "/model.safetensors"));
  EXPECT_TRUE(fs::exists(pulled->path + "/tokenizer.json"));
}

TEST(HubTest, ResumesACutDownload) {
  FakeHub hub;
  const std::string bytes = hub.files["model.safetensors"];
  std::atomic<int> gets{0};
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    if (!Gets(request, "/cdn/") || ++gets > 1) return {};
    return {fmt::format("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n{}", bytes.size(), bytes.substr(0, 40'000)), true};
  };
  const auto pulled = hub.Pull();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(hub.InSnapshot("model.safetensors"), bytes);
  std::string range;
  for (const SeenRequest& request : hub.server().Seen())
    if (Gets(request, "/cdn/")) range = request.Header("range");
  EXPECT_EQ(range, "bytes=40000-");
  EXPECT_THAT(hub.remarks, HasSubstr("trying again"));
}

TEST(HubTest, ResumesWhatAnEarlierProcessLeft) {
  FakeHub hub;
  const std::string bytes = hub.files["model.safetensors"];
  const std::string blob = hub.folder().Blob(Sha256(bytes));
  fs::create_directories(hub.folder().path + "/blobs");
  std::ofstream(blob + ".incomplete", std::ios::binary) << bytes.substr(0, 70'000);
  const auto pulled = hub.Pull();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(hub.InSnapshot("model.safetensors"), bytes);
  EXPECT_LT(pulled->fetched_bytes, 35'000);
  EXPECT_FALSE(fs::exists(blob + ".incomplete"));

  // All of it was there already, only the rename was missing.
  fs::remove_all(hub.settings.cache_dir);
  fs::create_directories(hub.folder().path + "/blobs");
  std::ofstream(blob + ".incomplete", std::ios::binary) << bytes;
  const int before = hub.Count("GET", "/cdn/");
  ASSERT_TRUE(hub.Pull().ok());
  EXPECT_EQ(hub.Count("GET", "/cdn/"), before);
}

TEST(HubTest, DamagedRemainsAreFetchedAnew) {
  FakeHub hub;
  const std::string bytes = hub.files["model.safetensors"];
  fs::create_directories(hub.folder().path + "/blobs");
  std::ofstream(hub.folder().Blob(Sha256(bytes)) + ".incomplete", std::ios::binary) << std::string(70'000, 'z');
  const auto pulled = hub.Pull();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(hub.InSnapshot("model.safetensors"), bytes);
  EXPECT_THAT(hub.remarks, HasSubstr("damaged"));
}

TEST(HubTest, ServersWithoutProperRanges) {
  const std::string bytes = FakeHub::Weights(100'000);
  const auto sized = [&](int status, const std::string& headers, const std::string& body) {
    return Answer200(body, headers, status);
  };
  for (const RawAnswer& to_range :
       {sized(200, "", bytes), sized(416, "", ""), sized(206, "Content-Range: bytes 5-99999/100000\r\n", bytes.substr(5)),
        sized(206, "", bytes.substr(10))}) {
    FakeHub hub;
    fs::create_directories(hub.folder().path + "/blobs");
    std::ofstream(hub.folder().Blob(Sha256(bytes)) + ".incomplete", std::ios::binary) << bytes.substr(0, 10);
    hub.before = [&](const SeenRequest& request) -> RawAnswer {
      return Gets(request, "/cdn/") && !request.Header("range").empty() ? to_range : RawAnswer{};
    };
    const auto pulled = hub.Pull();
    ASSERT_TRUE(pulled.ok()) << pulled.status() << to_range.bytes.substr(0, 60);
    EXPECT_EQ(hub.InSnapshot("model.safetensors"), bytes);
  }
}

TEST(HubTest, WrongBytesAreRemovedAndNamed) {
  for (const char* name : {"model.safetensors", "config.json"}) {
    FakeHub hub;
    std::string wrong = hub.files[name];
    wrong[wrong.size() / 2] ^= 1;
    hub.before = [&](const SeenRequest& request) -> RawAnswer {
      const bool cdn = request.target.starts_with("/cdn/");
      return Gets(request, name) && cdn == (name == std::string("model.safetensors")) ? Answer200(wrong) : RawAnswer{};
    };
    const Status status = hub.Pull().status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
    EXPECT_THAT(Message(status), AllOf(HasSubstr(name), HasSubstr("checksum"), HasSubstr("removed")));
    const std::string etag = name == std::string("config.json") ? GitSha1(hub.files[name]) : Sha256(hub.files[name]);
    EXPECT_FALSE(fs::exists(hub.folder().Blob(etag)));
    EXPECT_FALSE(fs::exists(hub.folder().Blob(etag + ".incomplete")));
    EXPECT_FALSE(fs::exists(hub.folder().Ref("main")));
    EXPECT_FALSE(fs::exists(hub.folder().Snapshot(hub.commit) + "/" + name));
  }
}

TEST(HubTest, MoreBytesThanAnnounced) {
  FakeHub hub;
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    return Gets(request, "/cdn/") ? Answer200(hub.files["model.safetensors"] + "more") : RawAnswer{};
  };
  EXPECT_THAT(Message(hub.Pull().status()), HasSubstr("announced"));
}

TEST(HubTest, SaysWhatTheHubRefuses) {
  const auto refused = [](int status, const std::string& code, const std::string& token, const std::string& part) {
    FakeHub hub;
    hub.settings.token = token;
    hub.settings.token_place = "HF_TOKEN";
    hub.before = [&](const SeenRequest& request) -> RawAnswer {
      if (request.target.find(part) == std::string::npos) return {};
      return {
          fmt::format("HTTP/1.1 {} X\r\nX-Error-Code: {}\r\nX-Error-Message: said \x9b"
                      "2Jthe hub\r\nContent-Length: 0\r\n\r\n",
                      status, code)};
    };
    const Status result = hub.Pull("org/model@rev").status();
    EXPECT_FALSE(result.ok());
    EXPECT_THAT(Message(result), Not(HasSubstr("\x9b")));
    EXPECT_EQ(hub.remarks, "") << "nothing to try again";
    return Message(result);
  };
  EXPECT_THAT(refused(401, "GatedRepo", "", "/resolve/"),
              AllOf(HasSubstr("HF_TOKEN"), HasSubstr("licence"), HasSubstr("/org/model"), HasSubstr("org/model/")));
  EXPECT_THAT(refused(403, "GatedRepo", "tok", "/resolve/"),
              AllOf(HasSubstr("token of HF_TOKEN"), HasSubstr("licence"), Not(HasSubstr("tok "))));
  EXPECT_THAT(refused(404, "RevisionNotFound", "", "/api/"), AllOf(HasSubstr("'rev'"), HasSubstr("org/model")));
  EXPECT_THAT(refused(404, "RepoNotFound", "", "/api/"), AllOf(HasSubstr("no such model"), HasSubstr("HF_TOKEN")));
  EXPECT_THAT(refused(401, "", "tok", "/api/"), AllOf(HasSubstr("no such model"), HasSubstr("not valid")));
  EXPECT_THAT(refused(404, "EntryNotFound", "", "/resolve/"), HasSubstr("pull again"));
  EXPECT_THAT(refused(418, "", "", "/api/"), HasSubstr("status 418"));
}

TEST(HubTest, TriesAgainWhereThatHelps) {
  FakeHub hub;
  std::atomic<int> failures{0};
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    if (request.target.find("/api/") != std::string::npos && failures < 2)
      return ++failures, Answer200("", "Retry-After: 0\r\n", 503);
    if (request.method == "HEAD" && failures < 3) return ++failures, Answer200("", "", 429);
    if (Gets(request, "/cdn/") && failures < 5) return ++failures, RawAnswer{"HTTP/1.1 500 X\r\nContent-Length: 3\r\n\r\nbad"};
    return {};
  };
  const auto pulled = hub.Pull();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(failures, 5);
  EXPECT_THAT(hub.remarks, AllOf(HasSubstr("503"), HasSubstr("429"), HasSubstr("500")));
}

TEST(HubTest, GivesUpInTime) {
  FakeHub hub;
  hub.before = [](const SeenRequest&) { return Answer200("", "", 503); };
  EXPECT_THAT(Message(hub.Pull().status()), HasSubstr("503"));
  EXPECT_EQ(hub.server().Seen().size(), 5);
  hub.before = [](const SeenRequest&) { return Answer200("", "Retry-After: 86400\r\n", 429); };
  EXPECT_THAT(Message(hub.Pull().status()), HasSubstr("86400 s"));
  EXPECT_EQ(hub.server().Seen().size(), 6);
  hub.before = [](const SeenRequest&) { return Answer200("", "Retry-After: 100\r\n", 429); };
  std::atomic<int> asked{0};
  EXPECT_EQ(hub.Pull("org/model", PullWhat::kModel, [&] { return ++asked < 4; }).status().code(), StatusCode::kCancelled);
}

TEST(HubTest, SlowServerTimesOut) {
  FakeHub hub;
  hub.settings.timeout_seconds = 1;
  std::atomic<int> stalls{0};
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    if (!Gets(request, "/cdn/") || ++stalls > 1) return {};
    RawAnswer answer = Answer200("x");
    answer.stall_millis = 30'000;
    return answer;
  };
  ASSERT_TRUE(hub.Pull().ok());
  EXPECT_THAT(hub.remarks, HasSubstr("no answer in time"));
}

TEST(HubTest, HostileListsAreRefused) {
  const auto with_name = [](const nlohmann::json& name) {
    FakeHub hub;
    hub.extra_names.push_back({{"rfilename", name}});
    const Status status = hub.Pull().status();
    EXPECT_EQ(hub.server().Seen().size(), 1) << name;  // nothing was fetched
    EXPECT_FALSE(fs::exists(hub.folder().path)) << name;
    return status;
  };
  for (const std::string name :
       {"../evil.json", "/etc/passwd", "a/../../config.json", "tokenizer\x1b.json", "a\\b.json", "./config.json", ""})
    EXPECT_EQ(with_name(name).code(), StatusCode::kInvalidArgument) << name;
  EXPECT_FALSE(with_name(std::string("tokenizer\0.json", 15)).ok());
  EXPECT_FALSE(with_name(7).ok());

  for (const char* body :
       {"", "null", "[]", "{}", "<html>not a hub</html>", R"({"sha": "../../x", "siblings": []})",
        R"({"sha": "cccccccccccccccccccccccccccccccccccccccc"})",
        R"({"sha": "cccccccccccccccccccccccccccccccccccccccc", "siblings": [1]})", R"({"sha": 5, "siblings": []})"}) {
    FakeHub hub;
    hub.before = [&](const SeenRequest&) { return Answer200(body); };
    EXPECT_THAT(Message(hub.Pull().status()), HasSubstr("HF_ENDPOINT")) << body;
  }
}

TEST(HubTest, HostileMetadataIsRefused) {
  const auto with_head = [](const std::string& headers) {
    FakeHub hub;
    hub.before = [&](const SeenRequest& request) -> RawAnswer {
      return request.method == "HEAD" ? RawAnswer{"HTTP/1.1 200 X\r\n" + headers + "\r\n"} : RawAnswer{};
    };
    const Status status = hub.Pull().status();
    EXPECT_FALSE(fs::exists(hub.settings.cache_dir + "/evil")) << headers;
    return Message(status);
  };
  EXPECT_THAT(with_head("ETag: \"../../../evil\"\r\nContent-Length: 5\r\n"), HasSubstr("ETag"));
  EXPECT_THAT(with_head("Content-Length: 5\r\n"), HasSubstr("ETag"));
  EXPECT_THAT(with_head("ETag: \"abc\"\r\nContent-Length: 99999999999999\r\n"), HasSubstr("refused"));
  EXPECT_THAT(with_head("ETag: \"abc\"\r\nX-Repo-Commit: other\r\nContent-Length: 5\r\n"), HasSubstr("commit other"));
  EXPECT_THAT(with_head("ETag: \"abc\"\r\nContent-Length: 3000000000000\r\n"), HasSubstr("free space"));
}

TEST(HubTest, AnotherCommitThanAskedForIsRefused) {
  FakeHub hub;
  EXPECT_THAT(Message(hub.Pull("org/model@" + std::string(40, 'd')).status()), HasSubstr("another commit"));
  EXPECT_TRUE(hub.Pull("org/model@" + hub.commit).ok());
  EXPECT_FALSE(fs::exists(hub.folder().path + "/refs"));  // a commit needs no ref
}

TEST(HubTest, RedirectsEnd) {
  FakeHub hub;
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    return request.method == "HEAD" ? RawAnswer{"HTTP/1.1 302 X\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"} : RawAnswer{};
  };
  EXPECT_THAT(Message(hub.Pull().status()), HasSubstr("redirects"));
  EXPECT_LT(hub.server().Seen().size(), 50);
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    return request.method == "HEAD" ? RawAnswer{"HTTP/1.1 302 X\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"}
                                    : RawAnswer{};
  };
  EXPECT_FALSE(hub.Pull().ok());
}

TEST(HubTest, RenamedRepositoryIsFollowed) {
  FakeHub hub;
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    const size_t at = request.target.find("org/old");
    if (at == std::string::npos) return {};
    std::string target = request.target;
    target.replace(at, 7, "org/model");
    return {fmt::format("HTTP/1.1 307 X\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", target)};
  };
  const auto pulled = hub.Pull("org/old");
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(Read(pulled->path + "/model.safetensors"), hub.files["model.safetensors"]);
}

TEST(HubTest, UnknownEtagsAreTakenWithARemark) {
  FakeHub hub;
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    if (request.method != "HEAD" || request.target.find("tokenizer.json") == std::string::npos) return {};
    return {"HTTP/1.1 200 X\r\nETag: W/\"mirror-1\"\r\nContent-Length: 2\r\n\r\n"};
  };
  ASSERT_TRUE(hub.Pull().ok());
  EXPECT_THAT(hub.remarks, AllOf(HasSubstr("tokenizer.json"), HasSubstr("only its size")));
  EXPECT_EQ(Read(hub.folder().Blob("mirror-1")), "{}");
}

TEST(HubTest, TwoPullsAtOnce) {
  FakeHub hub;
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    if (Gets(request, "/cdn/")) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return {};
  };
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 3; ++i) threads.emplace_back([&] { good += hub.Pull().ok(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 3);
  EXPECT_EQ(hub.InSnapshot("model.safetensors"), hub.files["model.safetensors"]);
  EXPECT_EQ(hub.Count("GET", "/cdn/"), 1);
}

TEST(HubTest, OneFailureStopsTheOthers) {
  FakeHub hub;
  hub.settings.timeout_seconds = 60;
  hub.before = [&](const SeenRequest& request) -> RawAnswer {
    if (Gets(request, "config.json")) return Answer200("", "", 418);
    if (!Gets(request, "/cdn/")) return {};
    RawAnswer answer = Answer200("x");
    answer.stall_millis = 50'000;
    return answer;
  };
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(Message(hub.Pull().status()), HasSubstr("status 418"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(HubTest, OfflineAsksNobody) {
  FakeHub hub;
  hub.settings.offline = true;
  hub.settings.offline_variable = "HF_HUB_OFFLINE";
  EXPECT_THAT(Message(hub.Pull().status()), HasSubstr("HF_HUB_OFFLINE"));
  EXPECT_TRUE(hub.server().Seen().empty());
}

TEST(HubTest, CacheThatCannotBeWritten) {
  FakeHub hub;
  std::ofstream(hub.settings.cache_dir) << "a file where the folder should be";
  EXPECT_THAT(Message(hub.Pull().status()), AllOf(HasSubstr("cannot be written"), HasSubstr("HF_HUB_CACHE")));
  fs::remove(hub.settings.cache_dir);
}

TEST(HubTest, NotAModel) {
  FakeHub hub;
  hub.files.erase("model.safetensors");
  EXPECT_THAT(Message(hub.Pull().status()),
              AllOf(HasSubstr("org/model"), HasSubstr("pytorch_model.bin"), HasSubstr("safetensors")));
}

}  // namespace
}  // namespace kvasir
