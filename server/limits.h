// Every limit of the fronts in one place. Sizes in bytes, times in milliseconds; tests make them small.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvasir {

struct ServerLimits {
  // Requests.
  size_t body_bytes = size_t{64} << 20;
  size_t header_bytes = 64 << 10;
  size_t uri_bytes = 8 << 10;
  int json_depth = 64;
  size_t json_nodes = 2'000'000;
  size_t prompts = 256;    // prompts in one completions request
  size_t choices = 512;    // prompts * n
  size_t messages = 4096;  // of a chat
  size_t stop_strings = 16;
  size_t stop_bytes = 256;  // of one stop string
  size_t cache_salt_bytes = 128;
  size_t request_id_bytes = 128;
  // Connections.
  int64_t connections = 10'000;
  int64_t header_millis = 10'000;  // from the first byte to the end of the headers
  int64_t body_millis = 60'000;    // plus the time body_bytes_per_second allows for what has arrived
  int64_t body_bytes_per_second = 1024;
  int64_t idle_millis = 75'000;                // between requests
  int64_t stall_millis = 30'000;               // without write progress while there is something to write
  int64_t ping_millis = 15'000;                // of silence on a stream, then a comment is sent
  size_t stream_buffer_bytes = 1 << 20;        // unsent output of a stream; beyond it a stalled reader is cut off
  size_t stream_buffer_hard_bytes = 16 << 20;  // beyond it any reader is cut off
  // Work before the engine.
  int worker_threads = 2;
  size_t worker_queue = 4096;
  size_t inline_prompt_bytes = 4096;            // longer prompts, and all chats, are prepared on a worker
  size_t long_prompt_bytes = size_t{64} << 10;  // longer ones on a worker of low priority: they take milliseconds
};

}  // namespace kvasir
