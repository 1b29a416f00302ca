// Whether this build has a sanitizer. Computing is then ten to twenty times slower, and tests that only try more of the same try
// less.
#pragma once

namespace kvasir {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace kvasir
