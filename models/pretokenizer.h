// The pre-tokenizer of tokenizer.json: cuts normalized text into the words that BPE sees one at a time.
//
// Built once by Tokenizer::Parse, then immutable and thread-safe. Supported: Sequence, ByteLevel, Split, Digits, Punctuation, Metaspace,
// Whitespace, WhitespaceSplit, BertPreTokenizer, CharDelimiterSplit, FixedLength. Where ByteLevel comes last (nearly always), the words
// stay raw bytes and `raw_bytes()` tells the model so: the text is never rewritten in the byte-level alphabet.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "models/json_node.h"
#include "models/normalizer.h"

namespace kvasir {

// A word. `at_start`: it begins where the original text begins (Metaspace with prepend_scheme "first" asks).
struct Piece {
  std::string_view text;
  bool at_start = false;
};

class PreTokenizer {
 public:
  static StatusOr<PreTokenizer> Parse(const JsonNode& node);

  // The last step is ByteLevel and is left to the model; ForceCharacters() makes Split write its alphabet after all.
  bool raw_bytes() const { return raw_bytes_; }
  void ForceCharacters() { raw_bytes_ = false; }

  // Replaces *pieces with the words of `text`, in order, none empty. They refer to `text` or to strings appended to *storage.
  Status Split(Piece text, std::vector<Piece>* pieces, std::deque<std::string>* storage) const;

 private:
  enum class Kind { kByteLevel, kSplit, kDigits, kPunctuation, kMetaspace, kWhitespace, kWhitespaceSplit, kDelimiter, kFixedLength };
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Step {
    Kind kind;
    CutPattern pattern;  // Split, and the pattern built into ByteLevel
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    bool cuts = true;               // ByteLevel.use_regex, Metaspace.split
    bool add_prefix_space = false;  // ByteLevel
    Prepend prepend = Prepend::kAlways;
    std::string replacement;  // Metaspace, CharDelimiterSplit: one character
    int64_t length = 0;       // FixedLength
  };
  Status Add(const JsonNode& node, int depth);
  static Status AddSplit(const JsonNode& node, Step* step);
  static Status AddMetaspace(const JsonNode& node, Step* step);
  static StatusOr<Behavior> ParseBehavior(const JsonNode& node, std::string_view otherwise);
  static Status Cut(const Step& step, std::string_view text, std::vector<Span>* spans);
  static void Emit(Behavior behavior, const Piece& piece, const std::vector<Span>& spans, std::vector<Piece>* out);

  std::vector<Step> steps_;
  bool raw_bytes_ = false;
};

}  // namespace kvasir
