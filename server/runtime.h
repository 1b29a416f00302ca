// Runtime: everything between a model folder and an engine, put together once from EngineOptions: device, model, tokenizer, chat
// template, KV cache, executor, engine. Used by the serve, generate and bench commands. Members are destroyed in reverse order.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "kernels/clock.h"
#include "kernels/device.h"
#include "memory/kv_cache.h"
#include "models/chat_template.h"
#include "models/model.h"
#include "models/tokenizer.h"
#include "scheduler/engine.h"
#include "scheduler/model_executor.h"
#include "server/cli.h"

namespace kvasir {

struct Runtime {
  SteadyClock clock;
  std::unique_ptr<Device> device;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;  // unset: the model has none
  GenerationDefaults generation_defaults;     // as --generation-config and --override-generation-config choose
  std::unique_ptr<Model> model;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<ModelExecutor> executor;
  std::unique_ptr<Engine> engine;  // not started

  std::vector<KvGroup> kv_groups;  // of the model's layers, longest kept first
  KvLayout kv_layout;              // of the first
  int64_t num_blocks = 0;          // extents of the KV pool: blocks, with one group
  int64_t pool_tokens = 0;         // the longest text whose KV fits alone
  int64_t max_model_len = 0;
  double weights_seconds = 0;  // of the start: reading them and bringing them into the device's layout

  // `max_logprobs`: most alternatives a request may ask for; `progress` as in LoadOptions. Errors name the flag that helps.
  static StatusOr<std::unique_ptr<Runtime>> Create(const EngineOptions& options, int64_t max_logprobs,
                                                   std::function<bool(double fraction, std::string_view what)> progress);
  // What was loaded, how much memory KV gets, and how many tokens that is: the lines serve prints.
  std::string Describe() const;

 private:
  Status CreateKv(const EngineOptions& options);
};

StatusOr<std::unique_ptr<Device>> MakeDevice(const EngineOptions& options);

// "1.5 GiB", "312 KiB".
std::string FormatBytes(double bytes);

}  // namespace kvasir
