#include "kernels/cpu/isa.h"

#include <cstdlib>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/delta_kernels.h"
#include "kernels/cpu/fused_kernels.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/sample_kernels.h"
#include "kernels/device.h"

namespace kvasir {

#define KVASIR_DECLARE_TABLES(isa)                 \
  namespace isa {                                  \
  extern const AttentionKernels kAttentionKernels; \
  extern const DeltaKernels kDeltaKernels;         \
  extern const FusedKernels kFusedKernels;         \
  extern const GemmKernels kGemmKernels;           \
  extern const SampleKernels kSampleKernels;       \
  }
#define KVASIR_TABLES(isa)                                                                                            \
  CpuKernels {                                                                                                        \
#isa, &isa::kGemmKernels, &isa::kAttentionKernels, &isa::kDeltaKernels, &isa::kFusedKernels, &isa::kSampleKernels \
  }

KVASIR_DECLARE_TABLES(portable)
#if defined(__x86_64__)
KVASIR_DECLARE_TABLES(avx2)
KVASIR_DECLARE_TABLES(avx512)
KVASIR_DECLARE_TABLES(avx512_bf16)
namespace avx512_vnni {
extern const QuantKernels kQuantKernels;
}
#endif

namespace {

#if defined(__x86_64__)
enum Level { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16 };

// What VNNI adds to AVX-512.
const GemmKernels kVnniGemmKernels = [] {
  GemmKernels kernels = avx512::kGemmKernels;
  kernels.quant = &avx512_vnni::kQuantKernels;
  return kernels;
}();

uint64_t EnabledState() {  // XCR0: what the operating system saves at a context switch
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

Level DetectLevel() {
  constexpr uint64_t kYmmState = 0x6, kZmmState = 0xe6;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return kPortable;
  const bool osxsave = c >> 27 & 1, avx = c >> 28 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!osxsave || !avx || !fma || !f16c) return kPortable;
  const uint64_t state = EnabledState();
  if ((state & kYmmState) != kYmmState) return kPortable;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b >> 5 & 1)) return kPortable;
  const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
  if (!f || !dq || !bw || !vl || (state & kZmmState) != kZmmState) return kAvx2;
  if (!(c >> 11 & 1)) return kAvx512;
  const bool vbmi = c >> 1 & 1;  // what has dots of bfloat16 has this too, but for Cooper Lake
  if (!vbmi || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return kAvx512Vnni;
  return kAvx512Bf16;
}

constexpr CpuKernels kTables[] = {KVASIR_TABLES(portable),
                                  KVASIR_TABLES(avx2),
                                  KVASIR_TABLES(avx512),
                                  {"avx512_vnni", &kVnniGemmKernels, &avx512::kAttentionKernels, &avx512::kDeltaKernels,
                                   &avx512::kFusedKernels, &avx512::kSampleKernels},
                                  KVASIR_TABLES(avx512_bf16)};
#else
enum Level { kPortable };
Level DetectLevel() {
  return kPortable;
}
constexpr CpuKernels kTables[] = {KVASIR_TABLES(portable)};
#endif

Level MachineLevel() {
  static const Level level = DetectLevel();
  return level;
}

}  // namespace

const CpuKernels* KernelsFor(std::string_view isa) {
  for (int level = 0; level <= MachineLevel(); ++level) {
    if (isa == kTables[level].name) return &kTables[level];
  }
  return nullptr;
}

const CpuKernels* DefaultKernels() {
  const char* forced = std::getenv("KVASIR_CPU_ISA");
  if (forced != nullptr && *forced != 0) return KernelsFor(forced);
  return &kTables[MachineLevel()];
}

std::vector<std::string> CpuIsaNames() {
  std::vector<std::string> names;
  for (int level = MachineLevel(); level >= 0; --level) names.push_back(kTables[level].name);
  return names;
}

}  // namespace kvasir
