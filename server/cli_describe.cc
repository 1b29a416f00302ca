// The effective configuration in the form --config reads.
#include "server/cli.h"

namespace kvasir {

std::string DescribeOptions(const ServeOptions& o) {
  const EngineOptions& e = o.engine;
  std::string text;
  const auto line = [&text](std::string_view key, const auto& value) { text += fmt::format("{}: {}\n", key, value); };
  line("model", e.model);
  if (!e.revision.empty()) line("revision", e.revision);
  if (!e.download_dir.empty()) line("download-dir", e.download_dir);
  line("pull", e.pull);
  line("device", e.device);
  line("threads", e.threads);
  line("dtype", e.dtype);
  line("quantization", e.quantization);
  line("load-format", e.load_format);
  line("packed-cache", e.packed_cache);
  line("packed-cache-limit", e.packed_cache_limit);
  line("kv-cache-dtype", e.kv_cache_dtype);
  line("max-model-len", e.max_model_len);
  line("max-num-batched-tokens", e.max_num_batched_tokens);
  line("max-num-seqs", e.max_num_seqs);
  line("max-waiting-requests", e.max_waiting_requests);
  line("long-prefill-token-threshold", e.long_prefill_token_threshold);
  line("block-size", e.block_size);
  line("num-gpu-blocks-override", e.num_blocks);
  line("gpu-memory-utilization", e.gpu_memory_utilization);
  line("kv-cache-memory-bytes", e.kv_cache_memory_bytes);
  line("kv-host-memory", e.kv_host_memory);
  line("enable-prefix-caching", e.enable_prefix_caching);
  line("scheduling-policy", e.scheduling_policy);
  line("reserve-to-finish", e.reserve_to_finish);
  line("generation-config", e.generation_config);
  if (!e.override_generation_config.empty()) line("override-generation-config", "'" + e.override_generation_config + "'");
  if (!e.chat_template.empty()) line("chat-template", e.chat_template);
  if (e.chat_template_content_format != "auto") line("chat-template-content-format", e.chat_template_content_format);
  line("seed", e.seed);
  line("host", o.host);
  line("port", o.port);
  line("grpc-port", o.grpc_port);
  for (const std::string& name : o.served_model_names) line("served-model-name", name);
  text += fmt::format("# api keys: {} (not shown)\n", o.api_keys.size());
  if (!o.api_key_file.empty()) line("api-key-file", o.api_key_file);
  line("insecure-no-auth", o.insecure_no_auth);
  line("io-threads", o.io_threads);
  line("max-logprobs", o.max_logprobs);
  line("max-connections", o.max_connections);
  line("max-body-bytes", o.max_body_bytes);
  line("drain-timeout", o.drain_timeout_seconds);
  line("grpc-reflection", o.grpc_reflection);
  line("disable-log-stats", o.disable_log_stats);
  line("enable-log-requests", o.enable_log_requests);
  line("log-level", o.log_level);
  return text;
}

}  // namespace kvasir
