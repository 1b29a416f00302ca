#include "server/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <numeric>

#include "kernels/quant.h"
#include "server/cli_config_file.h"

namespace kvasir {
namespace {

const std::vector<std::string> kDTypes = {"auto", "float32", "float16", "bfloat16", "float", "half", "bf16", "fp16", "fp32"};

// CLI11 reports what a validator returns; sizes are rewritten to plain numbers before conversion.
CLI::Validator Size() {
  return CLI::Validator(
      [](std::string& text) {
        const auto size = ParseSize(text);
        if (!size.ok()) return Message(size.status());
        text = std::to_string(*size);
        return std::string();
      },
      "N[k|m|g]", "size");
}

CLI::Validator Quantization() {
  return CLI::Validator(
      [](std::string& text) {
        if (text == "auto") return std::string();
        const auto format = ParseQuantFormat(text);
        return format.ok() ? std::string() : Message(format.status());
      },
      "FORMAT", "quantization");
}

CLI::Validator KvCacheDType() {
  return CLI::Validator(
      [](std::string& text) {
        const auto format = ParseKvCacheDType(text);
        return format.ok() ? std::string() : Message(format.status());
      },
      "FORMAT", "KV cache format");
}

CLI::Option* Env(CLI::Option* option) {
  std::string name = "KVASIR_" + option->get_lnames().front();
  for (char& c : name) c = c == '-' ? '_' : char(std::toupper(c));
  return option->envname(name)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

void AddModelOptions(CLI::App& app, EngineOptions& o) {
  Env(app.add_option("--model,-m", o.model,
                     "Model folder in Hugging Face layout, or ORG/NAME[@REV] of a hub (cached, else pulled)"))
      ->group("Model");
  Env(app.add_option("--revision", o.revision, "Branch, tag or commit of a hub model"))->group("Model");
  Env(app.add_option("--download-dir", o.download_dir,
                     "Cache of hub models; default HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub"))
      ->group("Model");
  Env(app.add_flag("--pull,!--no-pull", o.pull, "Fetch a hub model that is not in the cache (on by default)"))->group("Model");
  Env(app.add_option("--device", o.device, "Where to compute"))
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "reference"}))
      ->capture_default_str()
      ->group("Model");
  Env(app.add_option("--threads,-t", o.threads, "Compute threads; 0 = what the CPU, affinity and cgroup make best"))
      ->check(CLI::Range(0, 1024))
      ->capture_default_str()
      ->group("Model");
  const auto dtypes = CLI::IsMember(kDTypes);
  Env(app.add_option("--dtype", o.dtype, "Weights; auto = as stored"))->check(dtypes)->capture_default_str()->group("Model");
  Env(app.add_option(
          "--quantization,-q", o.quantization,
          "Linear weights: auto = as stored; none = never quantised; or quantised at load: int8, fp8, int4, or with a group: "
          "int8|fp8:channel, int8|fp8|int4:32|64|128"))
      ->check(Quantization())
      ->capture_default_str()
      ->group("Model");
  Env(app.add_option("--load-format", o.load_format,
                     "auto, safetensors: the folder's weights; dummy: made-up ones, to measure a shape without its files"))
      ->check(CLI::IsMember({"auto", "safetensors", "dummy"}))
      ->capture_default_str()
      ->group("Model");
  Env(app.add_option(
          "--packed-cache", o.packed_cache,
          "Folder where packed weights are kept, so that the next start maps them; auto = ~/.cache/kvasir/packed; off"))
      ->capture_default_str()
      ->group("Model");
  Env(app.add_option("--packed-cache-limit", o.packed_cache_limit, "Bytes it may hold; what was unused for longest goes first"))
      ->transform(Size())
      ->capture_default_str()
      ->group("Model");
  Env(app.add_option("--max-model-len,--ctx-size,-c", o.max_model_len, "Longest prompt + answer; 0 = the model's own"))
      ->transform(Size())
      ->capture_default_str()
      ->group("Model");
  Env(app.add_option(
          "--generation-config", o.generation_config,
          "Sampling defaults: auto = the model's generation_config.json; vllm = neutral ones; else that of this folder"))
      ->capture_default_str()
      ->group("Model");
  Env(app.add_option("--override-generation-config", o.override_generation_config,
                     "JSON object laid over the sampling defaults, as {\"temperature\": 0.5}"))
      ->group("Model");
  Env(app.add_option("--chat-template", o.chat_template, "File with a Jinja chat template instead of the model's"))
      ->check(CLI::ExistingFile)
      ->group("Model");
  Env(app.add_option("--chat-template-content-format", o.chat_template_content_format,
                     "How the template wants message content: string, openai (lists of parts), auto = as it looks"))
      ->check(CLI::IsMember({"auto", "string", "openai"}))
      ->capture_default_str()
      ->group("Model");
  Env(app.add_option("--seed", o.seed, "Seed of requests that give none; 0 = a new one each"))
      ->capture_default_str()
      ->group("Model");
}

void AddSchedulerAndCacheOptions(CLI::App& app, EngineOptions& o) {
  Env(app.add_option("--kv-cache-dtype", o.kv_cache_dtype,
                     "KV cache; auto = as the weights, or float32, float16, bfloat16, or quantised: fp8, int8, int4"))
      ->check(KvCacheDType())
      ->capture_default_str()
      ->group("KV cache");
  Env(app.add_option("--max-num-batched-tokens", o.max_num_batched_tokens, "Tokens computed per step"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str()
      ->group("Scheduler");
  Env(app.add_option("--max-num-seqs,--parallel", o.max_num_seqs, "Sequences running at once"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str()
      ->group("Scheduler");
  Env(app.add_option("--max-waiting-requests", o.max_waiting_requests, "Queue length; beyond it clients get 429"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str()
      ->group("Scheduler");
  Env(app.add_option("--long-prefill-token-threshold", o.long_prefill_token_threshold,
                     "Largest share of a step one prompt may take; 0 = all"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str()
      ->group("Scheduler");
  Env(app.add_option("--scheduling-policy", o.scheduling_policy, "Order of waiting requests"))
      ->check(CLI::IsMember({"fcfs", "priority"}))
      ->capture_default_str()
      ->group("Scheduler");
  Env(app.add_flag("--reserve-to-finish", o.reserve_to_finish, "Admit only what can finish without preemption"))
      ->group("Scheduler");
  Env(app.add_option("--block-size", o.block_size,
                     "Tokens per KV block; 0 = 16, or 256 where layers keep a recurrent state and every block a snapshot of it"))
      ->check(CLI::Range(int64_t{0}, int64_t{256}))
      ->capture_default_str()
      ->group("KV cache");
  Env(app.add_option("--num-gpu-blocks-override,--num-blocks", o.num_blocks,
                     "Blocks of the device's KV pool (also on CPU); 0 = from memory"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str()
      ->group("KV cache");
  Env(app.add_option("--gpu-memory-utilization", o.gpu_memory_utilization,
                     "Part of a GPU's memory that weights and KV may take together; what weights leave of it is KV"))
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str()
      ->group("KV cache");
  Env(app.add_option("--kv-cache-memory-bytes", o.kv_cache_memory_bytes, "Memory for KV; 0 = chosen from what is free"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 50))
      ->capture_default_str()
      ->group("KV cache");
  Env(app.add_option(
          "--kv-host-memory", o.kv_host_memory,
          "Memory of the host that KV moves to when a GPU's is full, and comes back from instead of being computed again"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 50))
      ->capture_default_str()
      ->group("KV cache");
  Env(app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", o.enable_prefix_caching,
                   "Reuse KV of equal prefixes (on by default)"))
      ->group("KV cache");
  Env(app.add_flag("--check-invariants", o.check_invariants, "Verify the KV cache after every step (slow; for debugging)"))
      ->group("KV cache");
}

void AddEngineOptions(CLI::App& app, EngineOptions& o) {
  AddModelOptions(app, o);
  AddSchedulerAndCacheOptions(app, o);
}

void AddServeOptions(CLI::App& app, ServeOptions& o) {
  app.add_option("model_positional", o.engine.model, "Model folder, as --model")->group("");
  AddEngineOptions(app, o.engine);
  Env(app.add_option("--host", o.host, "Address to listen on; 0.0.0.0 = all (needs API keys or --insecure-no-auth)"))
      ->capture_default_str()
      ->group("Server");
  Env(app.add_option("--port", o.port, "HTTP port; 0 = any free one"))
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group("Server");
  Env(app.add_option("--grpc-port", o.grpc_port, "gRPC port; 0 = any free one, -1 = no gRPC"))
      ->check(CLI::Range(-1, 65535))
      ->capture_default_str()
      ->group("Server");
  app.add_option("--served-model-name,--alias,-a", o.served_model_names, "Names clients may use; default: the folder's name")
      ->group("Server");
  app.add_option("--api-key", o.api_keys,
                 "Key clients must send (repeatable; visible in the process list: prefer --api-key-file or KVASIR_API_KEY)")
      ->group("Server");
  Env(app.add_option("--api-key-file", o.api_key_file, "File with one key per line"))->group("Server");
  Env(app.add_flag("--insecure-no-auth", o.insecure_no_auth, "Allow a non-loopback --host without API keys"))->group("Server");
  app.add_option("--allowed-origins", o.allowed_origins, "CORS origins")->capture_default_str()->group("Server");
  Env(app.add_option("--io-threads", o.io_threads, "Threads for HTTP"))
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group("Server");
  Env(app.add_flag("--trust-request-chat-template", o.trust_request_chat_template,
                   "Let requests bring a chat_template of their own; it runs in the sandbox, under limits"))
      ->group("Server");
  Env(app.add_option("--max-logprobs", o.max_logprobs, "Most alternatives a request may ask for"))
      ->check(CLI::Range(int64_t{0}, int64_t{1000}))
      ->capture_default_str()
      ->group("Server");
  Env(app.add_option("--max-connections", o.max_connections, "Open HTTP connections"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str()
      ->group("Server");
  Env(app.add_option("--max-body-bytes", o.max_body_bytes, "Largest request body"))
      ->transform(Size())
      ->check(CLI::Range(int64_t{1024}, int64_t{1} << 31))
      ->capture_default_str()
      ->group("Server");
  Env(app.add_option("--drain-timeout", o.drain_timeout_seconds, "Seconds open requests get after SIGTERM"))
      ->check(CLI::Range(int64_t{0}, int64_t{86400}))
      ->capture_default_str()
      ->group("Server");
  Env(app.add_flag("--grpc-reflection,!--no-grpc-reflection", o.grpc_reflection, "Serve gRPC reflection (on by default)"))
      ->group("Server");
  Env(app.add_flag("--disable-log-stats", o.disable_log_stats, "No statistics line every few seconds"))->group("Server");
  Env(app.add_flag("--enable-log-requests", o.enable_log_requests, "Log every request (never its text)"))->group("Server");
  Env(app.add_option("--log-level", o.log_level, "Log level"))
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}))
      ->capture_default_str()
      ->group("Server");
  app.add_flag("--check-config", o.check_config, "Print the effective configuration and exit")->group("Server");
  app.add_option("--config", "YAML file with these options (without the dashes)")->group("Server");
  // Flags of other servers whose meaning is always on here: accepted so that a pasted command works.
  static bool always_on = true;
  for (const char* name :
       {"--enable-chunked-prefill", "--enable-prompt-tokens-details", "--enable-request-id-headers", "--jinja", "--metrics"}) {
    app.add_flag(name, always_on)->group("");
  }
  static int one = 1;
  app.add_option("--tensor-parallel-size,--tp", one, "Only 1 here")->check(CLI::Range(1, 1))->group("");
}

void AddGenerateOptions(CLI::App& app, GenerateOptions& o) {
  AddEngineOptions(app, o.engine);
  app.add_option("--prompt,-p", o.prompt, "Text to continue")->group("Request");
  app.add_option("--prompt-file,-f", o.prompt_file, "File with the text; - = standard input")->group("Request");
  app.add_option("--token-ids", o.token_ids, "Token ids instead of text: 1,2,3")->group("Request");
  app.add_flag("--chat", o.chat, "Treat the prompt as a user's message")->group("Request");
  app.add_option("--max-tokens,-n", o.max_tokens, "Tokens to generate")
      ->transform(Size())
      ->capture_default_str()
      ->group("Request");
  app.add_option("--temperature", o.temperature, "0 = greedy, the default unless a generation config is named")->group("Request");
  app.add_option("--top-p", o.top_p, "Nucleus")->group("Request");
  app.add_option("--top-k", o.top_k, "0 = off")->group("Request");
  app.add_option("--request-seed", o.request_seed, "Seed of the draw")->capture_default_str()->group("Request");
  app.add_option("--logprobs", o.logprobs, "Alternatives per token in --json")->group("Request");
  app.add_flag("--ignore-eos", o.ignore_eos, "Go on after end tokens")->group("Request");
  app.add_flag("--json", o.json, "Print one JSON object instead of streaming text")->group("Request");
}

void AddPullOptions(CLI::App& app, PullOptions& o) {
  app.add_option("model", o.model, "ORG/NAME or ORG/NAME@REVISION")->required();
  app.add_option("--revision", o.revision, "Branch, tag or commit; default main");
  app.add_option("--download-dir,--cache-dir", o.download_dir, "Default: HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub");
  app.add_flag("--text-only", o.text_only, "Configuration, tokenizer and templates; no weights");
}

void AddRenderOptions(CLI::App& app, RenderOptions& o) {
  app.add_option("--model,-m", o.model, "Folder with tokenizer_config.json or template files, or ORG/NAME[@REV] of a hub");
  app.add_option("--revision", o.revision, "Branch, tag or commit of a hub model");
  app.add_option("--download-dir", o.download_dir, "Cache of hub models");
  app.add_flag("--pull,!--no-pull", o.pull, "Fetch a hub model that is not in the cache (on by default)");
  app.add_option("--chat-template", o.chat_template, "File with a Jinja chat template instead of the model's")
      ->check(CLI::ExistingFile);
  app.add_option("--chat-template-content-format", o.chat_template_content_format, "With --from-wire: string, openai or auto")
      ->check(CLI::IsMember({"auto", "string", "openai"}));
  app.add_flag("--from-wire", o.from_wire,
               "Prepare messages as the HTTP API does: parse tool call arguments, join text parts; else as transformers does");
}

void AddTokenizeOptions(CLI::App& app, TokenizeOptions& o) {
  app.add_option("--model,-m", o.model, "Folder with tokenizer files, or ORG/NAME[@REV] of a hub")->required();
  app.add_option("--revision", o.revision, "Branch, tag or commit of a hub model");
  app.add_option("--download-dir", o.download_dir, "Cache of hub models");
  app.add_flag("--pull,!--no-pull", o.pull, "Fetch a hub model that is not in the cache (on by default)");
  app.add_flag("--decode", o.decode,
               "Lines {ids, skip_special_tokens} to {text}, instead of {text, add_special_tokens} to {ids, pieces}");
}

void AddBenchOptions(CLI::App& app, BenchOptions& o) {
  o.engine.packed_cache = "off";  // writing it would disturb what is measured
  AddEngineOptions(app, o.engine);
  app.add_option("what", o.what, "What to measure: engine (with a model), kernels")
      ->required()
      ->check(CLI::IsMember({"engine", "kernels"}));
  app.add_option("--batch", o.batches, "Sequences decoded at once")->delimiter(',')->capture_default_str()->group("Bench");
  app.add_option("--prompt-tokens", o.prompt_tokens, "Prompt length")->transform(Size())->capture_default_str()->group("Bench");
  app.add_option("--decode-tokens", o.decode_tokens, "Tokens to decode")
      ->transform(Size())
      ->capture_default_str()
      ->group("Bench");
  app.add_option("--repetitions", o.repetitions, "Of each case of a model; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->group("Bench");
  app.add_option("--case", o.cases, "Of the kernels: only cases with these ids (a1 and a3 come together)")
      ->delimiter(',')
      ->check(CLI::IsMember({"a1", "a2", "a3", "a4", "a5", "a8", "a10"}))
      ->group("Bench");
  app.add_flag("--null-model", o.null_model, "The engine's own cost instead, with a model that computes nothing")->group("Bench");
  app.add_flag("--json", o.json, "One JSON line per case")->group("Bench");
}

// Flags with '_' for '-' and "--flag=value" are made regular; unknown ones are reported with the nearest name.
Status NormalizeFlags(const CLI::App& app, std::vector<std::string>& arguments, bool ignore_unknown,
                      std::vector<std::string>& warnings) {
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    for (const std::string& name : option->get_fnames()) known.push_back("--" + name);
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    std::string& argument = arguments[i];
    if (argument == "--") break;
    if (argument.size() < 3 || argument.compare(0, 2, "--") != 0) continue;
    const size_t end = std::min(argument.find('='), argument.size());
    std::replace(argument.begin(), argument.begin() + int64_t(end), '_', '-');
    const std::string name = argument.substr(0, end);
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string nearest = NearestName(name, known);
    const std::string hint = nearest.empty() ? "see 'kvasir " + app.get_name() + " --help'" : "did you mean " + nearest + "?";
    if (!ignore_unknown) return InvalidArgument("unknown flag {}: {}", name, hint);
    warnings.push_back(fmt::format("ignoring unknown flag {}", name));
    size_t last = i + 1;  // its value, if the next word is not a flag
    if (end == argument.size() && last < arguments.size() && arguments[last].compare(0, 1, "-") != 0) ++last;
    arguments.erase(arguments.begin() + int64_t(i), arguments.begin() + int64_t(last));
    --i;
  }
  return OkStatus();
}

// Takes `flag` (with its value, when it has one) out of the arguments; the last one counts.
std::optional<std::string> TakeFlag(std::vector<std::string>& arguments, std::string_view flag, bool has_value) {
  std::optional<std::string> value;
  for (size_t i = 0; i < arguments.size();) {
    const std::string& argument = arguments[i];
    size_t used = 0;
    if (argument == flag && has_value && i + 1 < arguments.size()) {
      value = arguments[i + 1];
      used = 2;
    } else if (argument == flag && !has_value) {
      value = "";
      used = 1;
    } else if (has_value && argument.size() > flag.size() && argument.compare(0, flag.size(), flag) == 0 &&
               argument[flag.size()] == '=') {
      value = argument.substr(flag.size() + 1);
      used = 1;
    }
    arguments.erase(arguments.begin() + int64_t(i), arguments.begin() + int64_t(i + used));
    if (used == 0) ++i;
  }
  return value;
}

constexpr std::string_view kOverview = R"(Kvasir: an LLM inference server whose first-class citizen is the KV cache.

Usage: kvasir COMMAND [FLAGS]

  serve     --model DIR|ORG/NAME  serve a model over HTTP (OpenAI style) and gRPC
  generate  --model DIR -p TEXT  one prompt on the terminal, streaming
  pull      ORG/NAME[@REV]     fetch a model from a hub (HF_ENDPOINT, HF_TOKEN) into the cache shared with its tools
  render    --model DIR | --chat-template FILE   chats from JSON lines on standard input to the model's prompt text
  tokenize  --model DIR [--decode]   texts from JSON lines on standard input to token ids, or back
  bench     engine --model DIR | kernels   measure the engine or the CPU kernels beside the machine's ceilings
  version                      print the version

'kvasir COMMAND --help' lists the flags of a command. Every flag can also be set by environment (KVASIR_PORT for --port).
)";

Status CheckServe(ServeOptions& o) {
  for (const char* name : {"KVASIR_API_KEY", "VLLM_API_KEY"}) {
    if (const char* key = std::getenv(name); key != nullptr && *key != '\0') o.api_keys.push_back(key);
  }
  if (o.api_key_file.empty()) {
    for (const std::string& key : o.api_keys) {
      if (key.empty()) return InvalidArgument("--api-key is empty: give a key, or leave the flag out");
    }
  }
  return OkStatus();
}

Status CheckModel(const EngineOptions& o, std::string_view command) {
  if (o.model.empty())
    return InvalidArgument("--model is missing: kvasir {} --model DIR (a folder with config.json and *.safetensors, or ORG/NAME)",
                           command);
  return OkStatus();
}

Status RunParser(CLI::App& app, std::vector<std::string> arguments, CommandLine& line) {
  std::reverse(arguments.begin(), arguments.end());  // CLI11 wants them so
  try {
    app.parse(arguments);
  } catch (const CLI::CallForHelp&) {
    line.command = CommandLine::Command::kHelp;
    line.help = app.help();
  } catch (const CLI::ParseError& error) {
    return InvalidArgument("{} (see 'kvasir {} --help')", error.what(), app.get_name());
  }
  return OkStatus();
}

}  // namespace

std::optional<DType> ParseDType(std::string_view text) {
  if (text == "float32" || text == "float" || text == "fp32") return DType::kF32;
  if (text == "float16" || text == "half" || text == "fp16") return DType::kF16;
  if (text == "bfloat16" || text == "bf16") return DType::kBF16;
  return std::nullopt;
}

StatusOr<std::optional<KvFormat>> ParseKvCacheDType(std::string_view text) {
  if (text == "auto") return std::nullopt;
  if (const std::optional<DType> dtype = ParseDType(text)) return KvFormat(*dtype);
  if (text == "fp8_e4m3") text = "fp8";
  KVASIR_ASSIGN_OR_RETURN(const KvFormat format, ParseKvFormat(text));
  return format;
}

StatusOr<int64_t> ParseSize(std::string_view text) {
  int64_t number = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text == "auto" || text == "-1") return 0;
  std::string unit(rest, text.data() + text.size());
  for (char& c : unit) c = char(std::tolower(c));
  int shift = -1;
  if (unit.empty()) shift = 0;
  if (unit == "k" || unit == "kb" || unit == "kib") shift = 10;
  if (unit == "m" || unit == "mb" || unit == "mib") shift = 20;
  if (unit == "g" || unit == "gb" || unit == "gib") shift = 30;
  if (error != std::errc() || shift < 0 || number < 0 || number > (INT64_MAX >> shift)) {
    return InvalidArgument("'{}' is not a size: write a number, with k, m or g behind it if you like", text);
  }
  return number << shift;
}

std::string NearestName(std::string_view name, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 4) + 1;
  std::vector<size_t> row;
  for (const std::string& candidate : known) {
    row.resize(candidate.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < name.size(); ++i) {
      size_t diagonal = row[0]++;
      for (size_t j = 0; j < candidate.size(); ++j) {
        const size_t substitute = diagonal + (name[i] != candidate[j]);
        diagonal = row[j + 1];
        row[j + 1] = std::min({substitute, row[j] + 1, row[j + 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

StatusOr<CommandLine> ParseCommandLine(std::vector<std::string> arguments) {
  CommandLine line;
  line.help = kOverview;
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h" || arguments[0] == "help") return line;
  const std::string command = arguments[0];
  arguments.erase(arguments.begin());
  if (command == "version" || command == "--version") {
    line.command = CommandLine::Command::kVersion;
    return line;
  }
  CLI::App app{"", command};
  app.option_defaults()->always_capture_default();
  if (command == "serve") {
    line.command = CommandLine::Command::kServe;
    AddServeOptions(app, line.serve);
  } else if (command == "generate") {
    line.command = CommandLine::Command::kGenerate;
    AddGenerateOptions(app, line.generate);
  } else if (command == "pull") {
    line.command = CommandLine::Command::kPull;
    AddPullOptions(app, line.pull);
  } else if (command == "render") {
    line.command = CommandLine::Command::kRender;
    AddRenderOptions(app, line.render);
  } else if (command == "tokenize") {
    line.command = CommandLine::Command::kTokenize;
    AddTokenizeOptions(app, line.tokenize);
  } else if (command == "bench") {
    line.command = CommandLine::Command::kBench;
    AddBenchOptions(app, line.bench);
  } else {
    const std::string nearest =
        NearestName(command, {"serve", "generate", "pull", "render", "tokenize", "bench", "version", "help"});
    return InvalidArgument("unknown command '{}'{}", command,
                           nearest.empty() ? ": see 'kvasir --help'" : ": did you mean '" + nearest + "'?");
  }
  const bool ignore_unknown = TakeFlag(arguments, "--ignore-unknown-flags", false).has_value();
  KVASIR_RETURN_IF_ERROR(NormalizeFlags(app, arguments, ignore_unknown, line.warnings));
  if (const auto file = TakeFlag(arguments, "--config", true)) {
    KVASIR_ASSIGN_OR_RETURN(std::vector<std::string> from_file, ArgumentsFromConfigFile(*file, app));
    arguments.insert(arguments.begin(), from_file.begin(), from_file.end());  // flags come later and win
  }
  KVASIR_RETURN_IF_ERROR(RunParser(app, std::move(arguments), line));
  if (line.command == CommandLine::Command::kServe) {
    KVASIR_RETURN_IF_ERROR(CheckModel(line.serve.engine, "serve"));
    KVASIR_RETURN_IF_ERROR(CheckServe(line.serve));
  }
  if (line.command == CommandLine::Command::kGenerate) KVASIR_RETURN_IF_ERROR(CheckModel(line.generate.engine, "generate"));
  if (line.command == CommandLine::Command::kRender && line.render.model.empty() && line.render.chat_template.empty()) {
    return InvalidArgument("--model is missing: kvasir render --model DIR, or --chat-template FILE");
  }
  if (line.command == CommandLine::Command::kBench && line.bench.what == "engine" && !line.bench.null_model)
    KVASIR_RETURN_IF_ERROR(CheckModel(line.bench.engine, "bench engine"));
  return line;
}

}  // namespace kvasir
