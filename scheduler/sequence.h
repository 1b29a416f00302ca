// Run state of a request and of its choices, as the scheduler keeps it. Plain data, owned by Scheduler, touched on the engine
// thread only.
//
// A request starts as one sequence (its root). When the prompt is computed, the root forks into one sequence per open choice;
// from then on each choice runs, waits and is preempted on its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "memory/kv_cache.h"
#include "scheduler/policies.h"
#include "scheduler/request.h"

namespace kvasir {

struct Request;
struct SinkEntry;

struct Sequence {
  enum class Place : uint8_t { kWaiting, kRunning, kDone };

  // Hot: what every step reads. The first few repeat the request's, so that a decode row touches this one object.
  Request* request = nullptr;
  SinkEntry* sink = nullptr;
  RequestId request_id = 0;
  const int32_t* end_ids = nullptr;  // of the request, sorted
  int32_t num_end_ids = 0;
  int32_t prompt_size = 0;
  int32_t final_size = 0;  // prompt + max_tokens
  int32_t min_size = 0;    // prompt + min_tokens: end ids are suppressed until then
  int32_t choice = 0;
  int32_t computed = 0;  // leading tokens whose KV lies in slots
  int32_t launched = 0;  // the same once the steps under way are done
  int32_t granted = 0;   // tokens to compute in the step being planned
  int32_t pending = 0;   // < 0: a step under way samples its next token, under this name (PendingToken)
  int32_t preemptions = 0;
  Place place = Place::kWaiting;
  uint8_t pending_step = 0;  // the step that `pending` is of, modulo 256
  bool scores_prompt = false;
  bool forked = false;          // samples for itself alone; a root samples for all choices of its request
  std::vector<int32_t> tokens;  // prompt + generated; filled when the sequence is first considered for a step
  SequenceKv kv;
  Rank rank;

  explicit Sequence(Request& owner);
  // Tokens there are once the step under way is done.
  int32_t known() const { return int32_t(tokens.size()) + (pending < 0 ? 1 : 0); }
};

struct Choice {
  std::unique_ptr<Sequence> sequence;  // null before the fork, except for the root, and after the end
  bool open = true;
};

struct Request {
  Request(RequestId request_id, ValidatedRequest validated) : id(request_id), params(std::move(validated)) {}

  RequestId id;
  ValidatedRequest params;
  SinkEntry* sink = nullptr;
  std::vector<Choice> choices;  // [n]
  int32_t open_choices = 0;
  bool any_finished = false;  // a choice ended by itself: then the end is OK though others were cancelled
  bool started = false;       // kStarted was sent
  bool admitted = false;      // was put into a step
  bool counted = false;       // the prefix cache's statistics have seen it
  bool ended = false;         // kEnd was sent
  int32_t cached_tokens = 0;
  int32_t next_prompt_event = 1;  // index of the next prompt token to score (prompt_logprobs)
  int64_t scheduled_micros = 0;
  std::vector<int32_t> end_ids;  // sorted: ids that end a choice

  std::span<const int32_t> prompt() const { return params->prompt; }
  int32_t prompt_size() const { return int32_t(params->prompt.size()); }
  int32_t final_size() const { return prompt_size() + int32_t(params.max_tokens()); }
  bool scores_prompt() const { return params->sampling.num_prompt_logprobs >= 0; }
};

inline Sequence::Sequence(Request& owner)
    : request(&owner),
      sink(owner.sink),
      request_id(owner.id),
      end_ids(owner.end_ids.data()),
      num_end_ids(int32_t(owner.end_ids.size())),
      prompt_size(owner.prompt_size()),
      final_size(owner.final_size()),
      min_size(owner.prompt_size() + int32_t(owner.params->min_tokens)),
      scores_prompt(owner.scores_prompt()) {}

}  // namespace kvasir
