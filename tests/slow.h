// Where computing is slow, and tests that only try more of the same try less: under sanitizers, ten to twenty times, and on an
// emulated GPU.
#pragma once

#include <string>

#include "kernels/device.h"

namespace kvasir {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitized = true;
#else
inline constexpr bool kThreadSanitized = false;
#endif
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = kThreadSanitized;
#endif

// A hundred thousand times slower than the GPU it stands for.
inline bool IsEmulated(const Device& device) {
  return device.Info().name.find("emulated") != std::string::npos;
}

}  // namespace kvasir
