// Outbox: where the scheduler's events leave. It knows which sinks were touched in a step and tells each of them once when the
// step ends, also when several requests share a sink. Used by Scheduler on the engine thread.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "scheduler/request.h"

namespace kvasir {

struct SinkEntry {
  std::shared_ptr<TokenSink> sink;
  int64_t requests = 0;  // open requests that use it
  bool touched = false;  // got an event since the last EndStep
};

class Outbox {
 public:
  SinkEntry* Acquire(std::shared_ptr<TokenSink> sink);
  // The last release drops the sink, after the OnStepEnd that its events still owe it.
  void Release(SinkEntry* entry);
  void Send(SinkEntry* entry, TokenEvent&& event) {
    entry->sink->OnEvent(std::move(event));
    if (!entry->touched) {
      entry->touched = true;
      touched_.push_back(entry);
    }
  }
  void EndStep();

 private:
  std::unordered_map<TokenSink*, std::unique_ptr<SinkEntry>> entries_;
  std::vector<SinkEntry*> touched_;
};

}  // namespace kvasir
