// How KV lies in memory, and the one view of it that every kernel reads.
//
// A block holds `block_tokens` consecutive tokens of KV for all layers, heads, keys and values in one contiguous extent.
// Inside lie pages: one page is the keys (or the values) of one KV head of one layer. How elements lie inside a page belongs
// to the device; above kernels/ a page is bytes. A sequence is normally dense (a list of blocks); a KV policy can make it
// ragged: each (layer, KV head) then has its own list of page pairs with its own length. Kernels read both through PageRun.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace kvasir {

// Layers that keep KV equally long and in equal shape form a group, and a block belongs to one group; most models have one. What
// follows describes one group: "layer" is the index among the layers of the group that store KV of their own.

// Keys and values stored as codes (kv_quant.h).
enum class KvQuant : uint8_t { kNone, kFp8, kInt8, kInt4 };

// How elements are stored: as values of a type, or as codes, and then dtype says nothing.
struct KvFormat {
  DType dtype = DType::kF32;
  KvQuant quant = KvQuant::kNone;

  constexpr KvFormat() = default;
  constexpr KvFormat(DType type) : dtype(type) {}
  constexpr KvFormat(KvQuant codes) : quant(codes) {}
  bool operator==(const KvFormat&) const = default;
};

// Geometry of one block extent. Offsets and sizes in bytes.
struct KvLayout {
  DType dtype = DType::kF32;
  int block_tokens = 16;
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  // Latent attention (MLA): the values are the first value_dim elements of each key, so there are no V pages. 0 = V pages of
  // head_dim.
  int value_dim = 0;
  // Recurrent state in the place of pages (DeltaNet in device.h): so many float32 values per layer, as they are after the block's
  // last computed token. A step goes on from the block before, so the group's window is 2, and a block once full is a snapshot
  // that others can go on from. Heads, head_dim and dtype say nothing then. 0 = keys and values.
  int64_t state_floats = 0;

  // Not kNone: a page holds codes, and after them the scales of its tokens; see scales_offset(). Not with latent attention.
  KvQuant quant = KvQuant::kNone;

  bool operator==(const KvLayout&) const = default;
  KvFormat format() const { return quant == KvQuant::kNone ? KvFormat(dtype) : KvFormat(quant); }
  // The elements of one token in a page; codes fill whole words.
  size_t row_bytes() const {
    if (quant == KvQuant::kNone) return size_t(head_dim) * SizeOf(dtype);
    return quant == KvQuant::kInt4 ? (size_t(head_dim) + 7) / 8 * 4 : (size_t(head_dim) + 3) / 4 * 4;
  }
  // int8 and int4: where in a page its KvScale [block_tokens] lies.
  size_t scales_offset() const { return (block_tokens * row_bytes() + 15) / 16 * 16; }
  bool scaled() const { return quant == KvQuant::kInt8 || quant == KvQuant::kInt4; }
  // One K or V page, rounded up to 64 bytes so that every page starts on a cache line.
  size_t page_bytes() const {
    const size_t bytes = scaled() ? scales_offset() + size_t(block_tokens) * 2 * sizeof(uint16_t) : block_tokens * row_bytes();
    return (bytes + 63) / 64 * 64;
  }
  int pages_per_head() const { return value_dim > 0 ? 1 : 2; }
  // The state of one layer, rounded up alike.
  size_t state_bytes() const { return (size_t(state_floats) * sizeof(float) + 63) / 64 * 64; }
  size_t block_bytes() const {
    return num_layers * (state_floats > 0 ? state_bytes() : page_bytes() * num_kv_heads * pages_per_head());
  }
  // Bytes of KV one token takes, padding included.
  size_t token_bytes() const { return block_bytes() / block_tokens; }
  // Inside a block: [layer][head][K page, V page]. K and V of a head are neighbours, so a ragged page pair
  // has the same inner shape as a dense one.
  size_t k_page_offset(int layer, int head) const {
    return (size_t{1} * layer * num_kv_heads + head) * pages_per_head() * page_bytes();
  }
};

// A group of layers as memory sees it: the extent of one block, and how long its tokens are needed.
struct KvGroup {
  KvLayout layout;
  int window = 0;  // a token is read only by itself and the window - 1 tokens after it; 0 = as long as the sequence lives
};

// The pages of one (sequence, layer, KV head), dense or ragged. Slot s lives in page s / block_tokens.
// K page i is at base + entries[i] * granule_bytes + k_offset; its V page follows at + page_bytes().
struct PageRun {
  const uint32_t* entries = nullptr;
  size_t k_offset = 0;
  int32_t num_slots = 0;  // slots in use after this step's append
};

// The table of one sequence in a step. Pointers stay valid until the step is done.
//
// The stamp lets a device keep tables from step to step and take only what is new there. Where two tables, of whatever steps,
// have the same stamp, the entries that both have are equal, except that one that is kNoBlock in the later table may have been
// let go since. So tables only grow under a stamp, and whoever changes an entry takes a new stamp that nothing ever had.
struct SequenceTable {
  const uint32_t* blocks = nullptr;  // dense: granule index of each block, in token order
  int32_t num_slots = 0;             // dense: slots in use after this step's append
  const PageRun* ragged = nullptr;   // ragged: [num_layers * num_kv_heads] runs of page pairs; then the two above are unused
  uint64_t stamp = 0;                // dense: below 2^63; 0 = nothing is known of the table
};

// One step's KV of one group, for all sequences of the batch. With a window, entries of blocks that lie wholly before what any
// row of the step sees may be kNoBlock; kernels must not touch them.
inline constexpr uint32_t kNoBlock = UINT32_MAX;
struct PagedKv {
  std::byte* base = nullptr;  // device address of granule 0
  size_t granule_bytes = 0;   // table entries count granules
  KvLayout layout;
  std::span<const SequenceTable> tables;  // [num_seqs]

  PageRun Lookup(int seq, int layer, int head) const {
    const SequenceTable& table = tables[seq];
    if (table.ragged != nullptr) return table.ragged[layer * layout.num_kv_heads + head];
    return {table.blocks, layout.k_page_offset(layer, head), table.num_slots};
  }
  std::byte* KPage(const PageRun& run, int page) const { return base + size_t{run.entries[page]} * granule_bytes + run.k_offset; }
  std::byte* VPage(const PageRun& run, int page) const { return KPage(run, page) + layout.page_bytes(); }
  // With recurrent state: that of a layer after the tokens of a block.
  float* State(int seq, int layer, int64_t block) const {
    return reinterpret_cast<float*>(base + size_t{tables[seq].blocks[block]} * granule_bytes + layer * layout.state_bytes());
  }
};

}  // namespace kvasir
