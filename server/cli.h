// The command line: flags, environment and config file become plain option structs. Names are vLLM's where vLLM has them; '_' and
// '-' are alike; sizes may be written 32k or 4GiB. Order of precedence: flag, environment (KVASIR_PORT for --port), --config
// file, default. A name that does not exist is an error with the nearest match. Used by main only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kv_quant.h"
#include "kernels/status.h"

namespace kvasir {

// What is loaded and how it runs: shared by serve, generate and bench engine.
struct EngineOptions {
  std::string model;                               // a folder, or ORG/NAME[@REVISION] of a hub until ResolveModel has made it one
  std::string revision;                            // of a hub model; empty = main, or what the model's name says
  std::string download_dir;                        // empty = the cache shared with Hugging Face's tools
  bool pull = true;                                // fetch a hub model that is not in the cache
  std::string device = "auto";                     // auto | cpu | reference | cuda
  int threads = 0;                                 // 0 = all the process may use
  std::string dtype = "auto";                      // auto | float32 | float16 | bfloat16
  std::string quantization = "auto";               // auto = as stored; see ParseQuantFormat
  std::string load_format = "auto";                // auto, safetensors | dummy: made-up weights
  std::string packed_cache = "auto";               // auto = ~/.cache/kvasir/packed | off | a folder
  int64_t packed_cache_limit = int64_t{32} << 30;  // bytes
  std::string kv_cache_dtype = "auto";             // auto | float32 | float16 | bfloat16 | fp8 | int8 | int4
  int64_t max_model_len = 0;                       // 0 = the model's own
  int64_t max_num_batched_tokens = 512;
  int64_t max_num_seqs = 256;
  int64_t max_waiting_requests = 1024;
  int64_t long_prefill_token_threshold = 0;
  int64_t block_size = 0;                // 0 = 16, or 256 for a model with recurrent state
  int64_t num_blocks = 0;                // --num-gpu-blocks-override; 0 = from memory
  double gpu_memory_utilization = 0.92;  // of a GPU's memory, for weights, activations and KV together
  int64_t kv_cache_memory_bytes = 0;     // 0 = chosen from what the machine has
  int64_t kv_host_memory = 0;            // bytes of the host's memory below the device's KV cache; 0 = none
  bool enable_prefix_caching = true;
  std::string scheduling_policy = "fcfs";  // fcfs | priority
  bool reserve_to_finish = false;
  bool check_invariants = false;
  std::string generation_config = "auto";  // auto = the folder's generation_config.json; vllm = neutral defaults; else a folder
  std::string override_generation_config;  // a JSON object laid over those defaults
  std::string chat_template;               // a file; empty = the model's own
  std::string chat_template_content_format = "auto";  // auto | string | openai
  uint64_t seed = 0;                                  // for requests that give none; 0 = drawn anew for each
};

struct ServeOptions {
  EngineOptions engine;
  std::string host = "127.0.0.1";
  int port = 8000;
  int grpc_port = 8001;  // -1 = no gRPC
  std::vector<std::string> served_model_names;
  std::vector<std::string> api_keys;
  std::string api_key_file;
  bool insecure_no_auth = false;
  std::vector<std::string> allowed_origins = {"*"};
  int io_threads = 1;
  int64_t max_logprobs = 20;
  int64_t max_connections = 10000;
  int64_t max_body_bytes = int64_t{64} << 20;
  int64_t drain_timeout_seconds = 30;
  bool grpc_reflection = true;
  bool disable_log_stats = false;
  bool enable_log_requests = false;
  std::string log_level = "info";
  bool trust_request_chat_template = false;
  bool check_config = false;  // print the effective configuration and exit
};

struct GenerateOptions {
  EngineOptions engine;
  std::string prompt;
  bool chat = false;        // the prompt is a user message, rendered with the chat template
  std::string token_ids;    // "1,2,3": instead of a prompt
  std::string prompt_file;  // - = standard input
  int64_t max_tokens = 128;
  std::optional<double> temperature, top_p;  // unset: of a generation config that is named by flag, else greedy
  std::optional<int64_t> top_k;
  uint64_t request_seed = 0;
  bool ignore_eos = false;
  bool json = false;  // one JSON line: prompt ids, token ids, logprobs, text
  int64_t logprobs = -1;
};

struct PullOptions {
  std::string model, revision, download_dir;
  bool text_only = false;  // no weights
};

struct RenderOptions {
  std::string model, revision, download_dir;
  bool pull = true;
  std::string chat_template;  // a file; empty = the model's own
  std::string chat_template_content_format = "auto";
  bool from_wire = false;
};

struct TokenizeOptions {
  std::string model, revision, download_dir;
  bool pull = true;
  bool decode = false;  // ids to text
};

struct BenchOptions {
  EngineOptions engine;
  std::string what;  // "engine" or "kernels"
  std::vector<int64_t> batches = {1, 8, 32};
  int64_t prompt_tokens = 256;
  int64_t decode_tokens = 64;
  int64_t repetitions = 3;
  bool null_model = false;         // the engine's own cost instead
  std::vector<std::string> cases;  // of the kernels: only those with these ids; empty = all
  bool json = false;
};

struct CommandLine {
  enum class Command { kServe, kGenerate, kPull, kRender, kTokenize, kBench, kVersion, kHelp } command = Command::kHelp;
  ServeOptions serve;
  GenerateOptions generate;
  PullOptions pull;
  RenderOptions render;
  TokenizeOptions tokenize;
  BenchOptions bench;
  std::string help;                   // text to print for kHelp
  std::vector<std::string> warnings;  // for the log, once it is set up
};

// argv without the program's name. InvalidArgument has the remedy; the caller prints it and exits with 2.
StatusOr<CommandLine> ParseCommandLine(std::vector<std::string> arguments);

// --dtype: nullopt for "auto" and for what the command line refuses.
std::optional<DType> ParseDType(std::string_view text);

// --kv-cache-dtype: nullopt for "auto"; the spellings of --dtype, and fp8 (fp8_e4m3), int8, int4.
StatusOr<std::optional<KvFormat>> ParseKvCacheDType(std::string_view text);

// "32k" -> 32768 (k, m, g are powers of 1024; "kb", "KiB" likewise), "1000" -> 1000.
StatusOr<int64_t> ParseSize(std::string_view text);
// The name among `known` nearest to `name` by edit distance, or "" when none is near.
std::string NearestName(std::string_view name, const std::vector<std::string>& known);
// The effective configuration as YAML that --config accepts, secrets masked.
std::string DescribeOptions(const ServeOptions& options);

}  // namespace kvasir
