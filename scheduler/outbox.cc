#include "scheduler/outbox.h"

namespace kvasir {

SinkEntry* Outbox::Acquire(std::shared_ptr<TokenSink> sink) {
  std::unique_ptr<SinkEntry>& entry = entries_[sink.get()];
  if (entry == nullptr) {
    entry = std::make_unique<SinkEntry>();
    entry->sink = std::move(sink);
  }
  ++entry->requests;
  return entry.get();
}

void Outbox::Release(SinkEntry* entry) {
  if (--entry->requests == 0 && !entry->touched) entries_.erase(entry->sink.get());
}

void Outbox::EndStep() {
  for (SinkEntry* entry : touched_) {
    entry->sink->OnStepEnd();
    entry->touched = false;
    if (entry->requests == 0) entries_.erase(entry->sink.get());
  }
  touched_.clear();
}

}  // namespace kvasir
