// The table of attention kernels of one ISA, and how K and V lie inside a page of the CPU device. Used by attention.cc and
// fused.cc (ordinary code) and by attention_kernels.cc (compiled once per ISA): plain structs and internal functions only.
//
// A page is a permutation of slot x dim, so it fills page_bytes() exactly, for any block_tokens and head_dim:
//   float32, float16   K [head_dim][slots]         V [slots][head_dim]
//   bfloat16           K [head_dim / 2][slots][2]  V [slots / 2][head_dim][2]   (pairs for vdpbf16ps; an odd last one plain)
//   fp8, int8          K [head_dim][slots]         V [slots][head_dim], rows of whole words
//   int4               K [half][slots]             V [slots][half]: byte i holds dims i (low) and half + i, half = head_dim / 2
//   up
// So 16 neighbouring slots of one dim (pair) are one vector of scores, and no sum runs across lanes. Codes are turned into tiles
// of float32, and then it is the attention of float32 KV, bit for bit.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kvasir {

enum class AttendCodes : uint8_t { kNone, kFp8, kInt8, kInt4 };  // KvQuant (kv_page.h), for sources compiled per ISA

// Partial softmax is kept per split of this many slots at absolute positions, and splits are merged in order. Both are part
// of the result's definition on this device: changing them changes last bits, never per batch, chunk or thread.
constexpr int kSplitSlots = 512;
constexpr int kStepSlots = 64;  // slots scored at once inside a split

// Element index in a page of block_tokens slots. `paired`: two-byte pairs (bfloat16).
static inline int64_t KElement(bool paired, int block_tokens, int head_dim, int slot, int dim) {
  if (!paired) return int64_t(dim) * block_tokens + slot;
  if (dim == head_dim - 1 && (head_dim & 1)) return int64_t(dim) * block_tokens + slot;
  return int64_t(dim >> 1) * 2 * block_tokens + 2 * slot + (dim & 1);
}
static inline int64_t VElement(bool paired, int block_tokens, int head_dim, int slot, int dim) {
  if (!paired) return int64_t(slot) * head_dim + dim;
  if (slot == block_tokens - 1 && (block_tokens & 1)) return int64_t(slot) * head_dim + dim;
  return int64_t(slot >> 1) * 2 * head_dim + 2 * dim + (slot & 1);
}

// Bytes that the codes of one token and head take.
static constexpr int CodeBytes(bool int4, int head_dim) {
  return int4 ? (head_dim + 1) / 2 : head_dim;
}

// Neighbouring query rows of one sequence, with all query heads of one KV head.
struct AttendTask {
  const unsigned char* pages = nullptr;  // K page i at pages + entries[i] * granule_bytes; its V page page_bytes further
  const uint32_t* entries = nullptr;
  size_t granule_bytes = 0;
  size_t page_bytes = 0;
  int block_tokens = 0;
  int head_dim = 0;
  int value_dim = 0;       // of the output: head_dim, or the leading part of a key where keys are values too
  bool keys_only = false;  // values are the keys' first value_dim elements
  // Codes instead of elements: their rows in V pages, and where the scales lie.
  AttendCodes codes = AttendCodes::kNone;
  size_t row_bytes = 0;
  size_t scales_offset = 0;

  // Rows of several sequences, over splits that all of them share and see whole: row r is row_ids[r] then.
  const int32_t* row_ids = nullptr;
  const float* q = nullptr;  // query (row, head) at q + row * row_stride + head * head_dim
  float* out = nullptr;      // output at out + row * out_stride + head * value_dim
  int64_t row_stride = 0, out_stride = 0;
  int rows = 0;
  int group = 0;  // query heads per KV head
  float scale = 0;
  float softcap = 0;             // > 0: a score s becomes softcap * tanh(s / softcap)
  const float* sinks = nullptr;  // [group]: a logit without a value in each head's softmax
  int window = 0;                // 0 = all
  int64_t first_end = 0;         // row r sees slots [max(0, first_end + r - window), first_end + r)

  // Partials of the splits before split_begin, computed with other sequences: the first of this task's queries in each.
  const float* const* prior = nullptr;
  int64_t num_prior = 0;
  int64_t split_begin = 0;  // splits this call computes (or merges)
  int64_t split_end = 0;
  float* partials = nullptr;  // nullptr: merge on the way and write out. Else [split_end - split_begin][AttendPartialFloats]
  unsigned char* workspace = nullptr;  // AttendWorkspaceBytes, 64-byte aligned, one per thread
};

static constexpr int PaddedHeadDim(int head_dim) {
  return (head_dim + 15) / 16 * 16;
}
// One query's (max, sum, accumulator), padded to whole cache lines.
static constexpr int64_t AttendPartialFloats(int queries, int head_dim) {
  return int64_t(queries) * (PaddedHeadDim(head_dim) + 16);
}
static constexpr size_t AttendWorkspaceBytes(int queries, int head_dim) {
  const size_t padded = size_t(PaddedHeadDim(head_dim));
  return 4 * (size_t(queries) * (3 * padded + 3 * 16) + 2 * 4 * kStepSlots + 2 * kStepSlots * padded) + 1280;
}

// Indexed by DType of the KV.
struct AttentionKernels {
  void (*attend[3])(const AttendTask& task);
  // Merges the partials of splits [split_begin, split_end) in order and writes out.
  void (*merge)(const AttendTask& task);
};

}  // namespace kvasir
