// Quantised pages on their way to tensor cores: codes are copied to shared memory as they lie, and each thread turns the pieces
// it has copied itself into the float16 tile, before the barrier that the tile needs anyway. Used by attention_tile.cuh. What a
// code becomes is exact for fp8, one rounding to float16 for int8 and int4, and the same in every tile.
#pragma once

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_unit.cuh"

namespace kvasir::gpu {

constexpr int CodeBits(KvQuant quant) {
  return quant == KvQuant::kInt4 ? 4 : 8;
}

// How a row of codes is cut among lanes: pieces of 16 bytes, a warp takes whole rows.
template <typename T>
struct CodePieces {
  static constexpr int kPieces = T::kCodeRow / 16;
  static constexpr int kLanes = kPieces <= 2 ? 2 : kPieces <= 4 ? 4 : kPieces <= 8 ? 8 : 16;
  static constexpr int kRowsAtOnce = kWarp / kLanes;
  KVASIR_DEVICE static int Piece() { return Lane() % kLanes; }
  KVASIR_DEVICE static int FirstRow() { return WarpIndex() * kRowsAtOnce + Lane() / kLanes; }
  static constexpr int kRowStep = T::kThreads / kLanes;
  // Other rows are read element by element, when they are needed.
  KVASIR_DEVICE static bool Whole(const StepKv& kv) { return kv.head_dim * CodeBits(T::kQuant) % 128 == 0; }
};

// From a key's row to its scale, for FindKeys.
KVASIR_DEVICE int ScaleFromRow(const StepKv& kv, int slot) {
  return kv.scales_offset + slot % kv.block_tokens * (4 - kv.row_bytes);
}

// Starts to copy the codes and scales of a tile's keys (part 0) or values (part 1).
template <typename T>
KVASIR_DEVICE void LoadCodes(const AttentionArgs& args, const UnitView& view, int tile, int part, int stage,
                             typename T::Shared& s) {
  using Cut = CodePieces<T>;
  if (!Cut::Whole(args.kv)) return;
  const int piece = Cut::Piece(), bytes = args.kv.row_bytes;
  const int64_t offset = part * args.kv.page_bytes;
#pragma unroll 4
  for (int row = Cut::FirstRow(); row < T::kSlots; row += Cut::kRowStep) {
    const int slot = tile + row;
    const bool there = slot >= view.begin && slot < view.end;
    const std::byte* const from = there ? s.keys[slot % T::kKeyRing] + offset : args.kv.base;
    if (16 * piece < bytes) CopyAsync16(&s.codes[stage][part][row][16 * piece], there ? from + 16 * piece : from, there);
    if (T::kQuant != KvQuant::kFp8 && piece == 0)
      CopyAsync4(&s.scales[stage][part][row], there ? from + s.scale_from_row[slot % T::kKeyRing] : from, there);
  }
}

// A word of codes as pairs of float16: two of 8 bits, four of 4.
template <KvQuant kQuant>
KVASIR_DEVICE void DecodeWord(uint32_t codes, uint32_t scale, uint32_t low, uint32_t* pairs) {
  if constexpr (kQuant == KvQuant::kFp8) {
    pairs[0] = Fp8x2ToF16x2(codes);
    pairs[1] = Fp8x2ToF16x2(codes >> 16);
  } else if constexpr (kQuant == KvQuant::kInt8) {
    const uint32_t unsigned_codes = codes ^ 0x80808080u;  // 1024 + q + 128, as float16: 0x6400 is 1024, and its last place 1
    pairs[0] = MulF16x2(SubF16x2(PermuteBytes(unsigned_codes, 0x64u, 0x4140u), 0x64806480u), scale);
    pairs[1] = MulF16x2(SubF16x2(PermuteBytes(unsigned_codes, 0x64u, 0x4342u), 0x64806480u), scale);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[i] = FmaF16x2(SubF16x2((codes >> 4 * i & 0x000f000fu) | 0x64006400u, 0x64006400u), scale, low);
  }
}

// The slow way, for rows that are no whole pieces.
template <typename T>
KVASIR_DEVICE void DecodeElements(const AttentionArgs& args, const UnitView& view, int tile, int part, uint16_t (*to)[T::kStride],
                                  const typename T::Shared& s) {
  constexpr int kPerWord = 32 / CodeBits(T::kQuant);
  const int d = args.kv.head_dim, words = (d + kPerWord - 1) / kPerWord;
  for (int i = int(threadIdx.x); i < T::kSlots * words; i += T::kThreads) {
    const int row = i / words, word = i % words, slot = tile + row;
    uint32_t pairs[kPerWord / 2] = {};
    if (slot >= view.begin && slot < view.end) {
      const std::byte* const from = s.keys[slot % T::kKeyRing] + part * args.kv.page_bytes;
      uint32_t pair = 0;
      if (T::kQuant != KvQuant::kFp8) pair = *reinterpret_cast<const uint32_t*>(from + s.scale_from_row[slot % T::kKeyRing]);
      DecodeWord<T::kQuant>(reinterpret_cast<const uint32_t*>(from)[word], PermuteBytes(pair, 0, 0x1010u),
                            PermuteBytes(pair, 0, 0x3232u), pairs);
    }
    for (int e = 0; e < kPerWord && word * kPerWord + e < d; ++e)
      to[row][word * kPerWord + e] = uint16_t(pairs[e / 2] >> 16 * (e % 2));
  }
}

// What LoadCodes has brought, or what it left, as a tile. This thread's copies have landed; other threads' are not looked at, but
// for the scales, which a lane of the warp has copied for the others.
template <typename T>
KVASIR_DEVICE void DecodeTile(const AttentionArgs& args, const UnitView& view, int tile, int part, int stage,
                              uint16_t (*to)[T::kStride], const typename T::Shared& s) {
  using Cut = CodePieces<T>;
  constexpr int kPairs = 16 / CodeBits(T::kQuant);  // of a word
  if (!Cut::Whole(args.kv)) return DecodeElements<T>(args, view, tile, part, to, s);
  SyncWarp();
  const int piece = Cut::Piece();
  if (16 * piece >= args.kv.row_bytes) return;
#pragma unroll 2
  for (int row = Cut::FirstRow(); row < T::kSlots; row += Cut::kRowStep) {
    const uint4 codes = *reinterpret_cast<const uint4*>(&s.codes[stage][part][row][16 * piece]);
    const uint32_t pair = T::kQuant == KvQuant::kFp8 ? 0 : s.scales[stage][part][row];
    const uint32_t scale = PermuteBytes(pair, 0, 0x1010u), low = PermuteBytes(pair, 0, 0x3232u);
    uint32_t pairs[4 * kPairs];
    DecodeWord<T::kQuant>(codes.x, scale, low, pairs);
    DecodeWord<T::kQuant>(codes.y, scale, low, pairs + kPairs);
    DecodeWord<T::kQuant>(codes.z, scale, low, pairs + 2 * kPairs);
    DecodeWord<T::kQuant>(codes.w, scale, low, pairs + 3 * kPairs);
    auto* const out = reinterpret_cast<uint4*>(&to[row][8 * kPairs * piece]);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) out[i] = make_uint4(pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]);
  }
}

}  // namespace kvasir::gpu
