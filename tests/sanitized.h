// Whether this build has a sanitizer, and whether it is ThreadSanitizer. Computing is then ten to twenty times slower, and tests
// that only try more of the same try less.
#pragma once

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

}  // namespace kvasir
