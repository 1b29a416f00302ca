// Which instruction set the CPU kernels use, and the table of kernels for each.
//
// Kernel sources (those listed in KVASIR_ISA_SOURCES of kernels/CMakeLists.txt) are compiled once for every ISA, with that
// ISA's compiler flags and with KVASIR_ISA defined to its namespace: avx512_bf16, avx512, avx2, portable (avx512_vnni has
// quantised Linear of its own and shares the rest with avx512). Such a file
//  * puts everything in `namespace kvasir::KVASIR_ISA` (helpers in an unnamed namespace within),
//  * branches with the compiler's own macros (__AVX512BF16__, __AVX512F__, __AVX2__),
//  * includes nothing that defines inline functions or templates (no <vector>, <string>, <algorithm>): the linker keeps one
//    copy of an inline function, and it could be the copy with AVX-512 in it. Raw pointers, <immintrin.h> and headers of plain
//    structs only,
//  * exports one constant table, e.g. `extern const GemmKernels kGemmKernels;`, that isa.cc collects.
// Everything above (partitioning, threads, argument checks) is ordinary code that calls through the table.
#pragma once

#include <string_view>
#include <vector>

namespace kvasir {

struct GemmKernels;       // kernels/cpu/gemm.h
struct AttentionKernels;  // kernels/cpu/attention_kernels.h
struct DeltaKernels;      // kernels/cpu/delta_kernels.h
struct FusedKernels;      // kernels/cpu/fused_kernels.h
struct SampleKernels;     // kernels/cpu/sample_kernels.h

struct CpuKernels {
  const char* name = nullptr;  // "avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"
  const GemmKernels* gemm = nullptr;
  const AttentionKernels* attention = nullptr;
  const DeltaKernels* delta = nullptr;
  const FusedKernels* fused = nullptr;
  const SampleKernels* sample = nullptr;
};

// The kernels of a named ISA that this machine can run; nullptr when the name is unknown or the machine cannot.
const CpuKernels* KernelsFor(std::string_view isa);

// The best of this machine, or the one KVASIR_CPU_ISA names. nullptr when KVASIR_CPU_ISA names one that cannot run here.
const CpuKernels* DefaultKernels();

}  // namespace kvasir
