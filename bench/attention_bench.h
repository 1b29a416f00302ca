// The attention part of kvasir bench kernels: decode over many blocks, long contexts, shared prefixes, each beside streaming
// reads measured in turn with it.
#pragma once

#include <functional>
#include <string>

#include "kernels/device.h"

namespace kvasir {

struct AttentionBench {
  Device* device = nullptr;
  std::function<bool(const char* id)> wanted;
  std::function<double()> stream_bytes_per_second;  // measures once
  std::function<void(const char* id, std::string name, double value, const char* unit, double ceiling, double ratio)> print;
};

Status RunAttentionBench(const AttentionBench& bench);

}  // namespace kvasir
