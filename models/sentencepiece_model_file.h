// What a SentencePiece .model file holds: pieces, scores and how text is normalized.
//
// Used by sentencepiece_model.cc. The file is a small protobuf, read by hand: every length is checked against what is left,
// unknown fields are skipped, nesting is two deep. Plain data.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

struct SpPiece {
  enum Type : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  std::string text;
  float score = 0;
  uint64_t type = kNormal;
};

struct SpModel {
  struct Role {
    int64_t id;  // negative: there is none
    std::string piece;
  };
  std::vector<SpPiece> pieces;  // by id
  uint64_t type = 1;            // UNIGRAM 1, BPE 2; WORD and CHAR are refused
  Role unk = {0, "<unk>"}, bos = {1, "<s>"}, eos = {2, "</s>"};
  bool byte_fallback = false, whitespace_as_suffix = false;
  std::string charsmap;
  bool add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;
};

StatusOr<SpModel> ReadSentencePieceModel(std::string_view bytes);

}  // namespace kvasir
