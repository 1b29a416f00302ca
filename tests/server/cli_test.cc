// The command line: names, precedence, hints, and that every flag with one wrong letter is refused.
#include "server/cli.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace kvasir {
namespace {

using testing::HasSubstr;

StatusOr<CommandLine> Parse(std::vector<std::string> arguments) {
  return ParseCommandLine(std::move(arguments));
}

std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

TEST(CliTest, DefaultsAndFlags) {
  const auto line = Parse({"serve", "--model", "m", "--port=9000", "--max_num_seqs", "8", "--max-model-len", "32k",
                           "--no-enable-prefix-caching", "--served-model-name", "a", "b", "--enable-chunked-prefill"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->command, CommandLine::Command::kServe);
  EXPECT_EQ(line->serve.engine.model, "m");
  EXPECT_EQ(line->serve.port, 9000);
  EXPECT_EQ(line->serve.engine.max_num_seqs, 8);
  EXPECT_EQ(line->serve.engine.max_model_len, 32768);
  EXPECT_FALSE(line->serve.engine.enable_prefix_caching);
  EXPECT_THAT(line->serve.served_model_names, testing::ElementsAre("a", "b"));
  EXPECT_EQ(line->serve.host, "127.0.0.1");
  EXPECT_EQ(line->serve.grpc_port, 8001);
}

TEST(CliTest, ModelMayBePositional) {
  const auto line = Parse({"serve", "some/folder", "--port", "1"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->serve.engine.model, "some/folder");
}

TEST(CliTest, ModelsOfAHub) {
  const auto pull = Parse({"pull", "org/name@v1", "--text-only", "--cache-dir", "/c"});
  ASSERT_TRUE(pull.ok()) << pull.status();
  EXPECT_EQ(pull->command, CommandLine::Command::kPull);
  EXPECT_EQ(pull->pull.model, "org/name@v1");
  EXPECT_EQ(pull->pull.download_dir, "/c");
  EXPECT_TRUE(pull->pull.text_only);
  EXPECT_THAT(Message(Parse({"pull"}).status()), HasSubstr("model"));
  EXPECT_THAT(Message(Parse({"pul", "x"}).status()), HasSubstr("did you mean 'pull'?"));
  const auto serve =
      Parse({"serve", "org/name", "--revision", "main", "--no-pull", "--override-generation-config", R"({"top_k": 5})"});
  ASSERT_TRUE(serve.ok()) << serve.status();
  EXPECT_EQ(serve->serve.engine.revision, "main");
  EXPECT_FALSE(serve->serve.engine.pull);
  EXPECT_EQ(serve->serve.engine.override_generation_config, R"({"top_k": 5})");
  EXPECT_THAT(DescribeOptions(serve->serve), HasSubstr(R"(override-generation-config: '{"top_k": 5}')"));
}

TEST(CliTest, TyposGetTheNearestName) {
  EXPECT_THAT(Message(Parse({"serve", "--model", "m", "--prot", "1"}).status()), HasSubstr("did you mean --port?"));
  EXPECT_THAT(Message(Parse({"serve", "--model", "m", "--max-num-seq", "1"}).status()), HasSubstr("--max-num-seqs"));
  EXPECT_THAT(Message(Parse({"sevre"}).status()), HasSubstr("did you mean 'serve'?"));
  EXPECT_THAT(Message(Parse({"serve"}).status()), HasSubstr("--model is missing"));
}

TEST(CliTest, EveryFlagWithOneWrongLetterIsRefused) {
  const auto help = Parse({"serve", "--help"});
  ASSERT_TRUE(help.ok());
  std::istringstream words(help->help);
  int flags = 0;
  for (std::string word; words >> word;) {
    const size_t at = word.find("--");
    if (at == std::string::npos || word.size() < at + 6) continue;
    std::string flag = word.substr(at, word.find_first_of(",=[ ", at) - at);
    flag.back() = flag.back() == 'z' ? 'y' : 'z';
    EXPECT_FALSE(Parse({"serve", "--model", "m", flag, "1"}).ok()) << flag;
    ++flags;
  }
  EXPECT_GT(flags, 25);
}

TEST(CliTest, BadValuesNameTheFlag) {
  EXPECT_THAT(Message(Parse({"serve", "--model", "m", "--port", "70000"}).status()), HasSubstr("--port"));
  EXPECT_THAT(Message(Parse({"serve", "--model", "m", "--block-size", "257"}).status()), HasSubstr("--block-size"));
  EXPECT_THAT(Message(Parse({"serve", "--model", "m", "--max-model-len", "32q"}).status()), HasSubstr("'32q' is not a size"));
  EXPECT_THAT(Message(Parse({"serve", "--model", "m", "--device", "tpu"}).status()), HasSubstr("--device"));
  EXPECT_FALSE(Parse({"serve", "--model", "m", "--tensor-parallel-size", "2"}).ok());
}

TEST(CliTest, KvCacheFormats) {
  for (const char* format : {"auto", "float32", "fp16", "bfloat16", "fp8", "fp8_e4m3", "int8", "int4"}) {
    const auto line = Parse({"serve", "--model", "m", "--kv-cache-dtype", format});
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_THAT(DescribeOptions(line->serve), HasSubstr(fmt::format("kv-cache-dtype: {}\n", format)));
    EXPECT_EQ(ParseKvCacheDType(format)->has_value(), format != std::string("auto"));
  }
  EXPECT_EQ(**ParseKvCacheDType("fp8_e4m3"), KvFormat(KvQuant::kFp8));
  EXPECT_EQ(**ParseKvCacheDType("half"), KvFormat(DType::kF16));
  const std::string message = Message(Parse({"serve", "--model", "m", "--kv-cache-dtype", "fp4"}).status());
  EXPECT_THAT(message, HasSubstr("--kv-cache-dtype"));
  EXPECT_THAT(message, HasSubstr("'fp4'"));
  EXPECT_THAT(message, HasSubstr("supported: float32, float16, bfloat16, fp8, int8, int4"));
}

TEST(CliTest, ConfigFileBelowFlags) {
  const std::string path = WriteFile(
      "ok.yaml", "model: from-file\nport: 9001\nmax_num_seqs: 4\nserved-model-name: [x, y]\nenable-prefix-caching: false\n");
  const auto line = Parse({"serve", "--config", path, "--port", "9002"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->serve.engine.model, "from-file");
  EXPECT_EQ(line->serve.port, 9002) << "the flag wins";
  EXPECT_EQ(line->serve.engine.max_num_seqs, 4);
  EXPECT_FALSE(line->serve.engine.enable_prefix_caching);
  EXPECT_EQ(line->serve.served_model_names.size(), 2u);
}

TEST(CliTest, ConfigFileErrorsNameTheLine) {
  const std::string typo = WriteFile("typo.yaml", "model: m\nprot: 9001\n");
  EXPECT_THAT(Message(Parse({"serve", "--config", typo}).status()),
              HasSubstr("typo.yaml:2: unknown key 'prot': did you mean 'port'?"));
  const std::string broken = WriteFile("broken.yaml", "a: [1, 2\n");
  EXPECT_THAT(Message(Parse({"serve", "--config", broken}).status()), HasSubstr("not valid YAML"));
  const std::string nested = WriteFile("nested.yaml", "model: {a: b}\n");
  EXPECT_THAT(Message(Parse({"serve", "--config", nested}).status()), HasSubstr("must be a value"));
  EXPECT_FALSE(Parse({"serve", "--config", "/no/such/file"}).ok());
}

TEST(CliTest, EnvironmentBelowFlags) {
  setenv("KVASIR_PORT", "7777", 1);
  EXPECT_EQ(Parse({"serve", "--model", "m"})->serve.port, 7777);
  EXPECT_EQ(Parse({"serve", "--model", "m", "--port", "1"})->serve.port, 1);
  unsetenv("KVASIR_PORT");
}

TEST(CliTest, UnknownFlagsCanBeIgnoredOnRequest) {
  const auto line =
      Parse({"serve", "--model", "m", "--enforce-eager", "--swap-space", "4", "--port", "5", "--ignore-unknown-flags"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->serve.port, 5);
  EXPECT_EQ(line->warnings.size(), 2u);
}

TEST(CliTest, DescribedOptionsReadBackAndHideKeys) {
  auto line = Parse({"serve", "--model", "m", "--port", "1234", "--api-key", "sesame", "--seed", "7"});
  ASSERT_TRUE(line.ok()) << line.status();
  const std::string text = DescribeOptions(line->serve);
  EXPECT_EQ(text.find("sesame"), std::string::npos);
  const auto again = Parse({"serve", "--config", WriteFile("again.yaml", text)});
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << text;
  EXPECT_EQ(DescribeOptions(again->serve).substr(0, 400), text.substr(0, 400));
}

TEST(CliTest, Sizes) {
  EXPECT_EQ(*ParseSize("32k"), 32768);
  EXPECT_EQ(*ParseSize("4GiB"), int64_t{4} << 30);
  EXPECT_EQ(*ParseSize("auto"), 0);
  EXPECT_FALSE(ParseSize("99999999999g").ok());
  EXPECT_FALSE(ParseSize("-5").ok());
  EXPECT_FALSE(ParseSize("").ok());
}

TEST(CliTest, GenerateAndBench) {
  const auto generate = Parse({"generate", "-m", "m", "-p", "Once", "-n", "5", "--json"});
  ASSERT_TRUE(generate.ok()) << generate.status();
  EXPECT_EQ(generate->generate.max_tokens, 5);
  EXPECT_TRUE(generate->generate.json);
  const auto bench = Parse({"bench", "engine", "--null-model", "--batch", "1,8"});
  ASSERT_TRUE(bench.ok()) << bench.status();
  EXPECT_THAT(bench->bench.batches, testing::ElementsAre(1, 8));
  EXPECT_FALSE(Parse({"bench", "kernel"}).ok());
  EXPECT_EQ(Parse({"bench", "kernels", "--json"})->bench.what, "kernels");
}

}  // namespace
}  // namespace kvasir
