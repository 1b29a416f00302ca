// The decoder of tokenizer.json: token strings back to text.
//
// Used by Tokenizer (whole sequences, exactly as the reference) and by IncrementalDetokenizer (one token at a time, through
// DecodeOne). Supported: Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, WordPiece,
// BPEDecoder; a null decoder joins with spaces. CTC is for speech and refused.
// Immutable after Parse, thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "models/json_node.h"
#include "models/normalizer.h"

namespace kvasir {

class TokenDecoder {
 public:
  static StatusOr<TokenDecoder> Parse(const JsonNode& node);

  std::string Decode(std::vector<std::string> tokens) const;

  // The bytes `token` adds to a text, which may be part of a character. `first`: nothing has been decoded before it.
  // `last`: nothing will be decoded after it; matters only where last_differs().
  std::string DecodeOne(std::string_view token, bool first, bool last = false) const;
  // The last token of a text is written differently (BPEDecoder: no space after it), so a stream must hold one token back.
  bool last_differs() const { return last_differs_; }

  // At the very start of a text up to `count` times this character is dropped (Strip after Fuse).
  struct StartStrip {
    std::string character;
    int64_t count = 0;
  };
  const StartStrip& start_strip() const { return start_strip_; }

 private:
  enum class Kind { kByteLevel, kReplace, kByteFallback, kFuse, kStrip, kMetaspace, kWordPiece, kBpe };
  struct Step {
    Kind kind;
    CutPattern pattern;   // Replace
    std::string content;  // Replace; Strip and Metaspace: one character; WordPiece: the prefix, BPEDecoder: the suffix
    int64_t start = 0, stop = 0;  // Strip
    bool drops_first = false;     // Metaspace: the first token loses its markers
    bool cleans = false;          // WordPiece
  };
  Status Add(const JsonNode& node, int depth);
  Status ParseStep(const JsonNode& node, std::string_view type, Step* step);
  static void Apply(const Step& step, std::vector<std::string>* tokens);
  static std::string JoinWordPiece(const Step& step, std::string_view token, bool first);
  static std::string ReplaceMarkers(const Step& step, std::string_view token, bool first);

  std::vector<Step> steps_;
  StartStrip start_strip_;
  bool last_differs_ = false;
  bool fused_ = false;  // while parsing: the tokens have become one string
};

// The value of "<0xNN>", or -1.
int ByteTokenValue(std::string_view token);

}  // namespace kvasir
