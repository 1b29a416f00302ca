// The normalizer of tokenizer.json: what happens to text before it is cut into words.
//
// Built once by Tokenizer::Parse, then immutable and thread-safe. Supported: Sequence, Prepend, Replace (String, Regex), NFC, NFD,
// NFKC, NFKD, Lowercase, Strip, StripAccents, ByteLevel, Precompiled, BertNormalizer, Nmt, and SentencePieceText, which is what a
// SentencePiece .model asks for (no tokenizer.json has it). Any other type is refused at load.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "models/charsmap.h"
#include "models/json_node.h"
#include "models/text_regex.h"
#include "models/unicode.h"

namespace kvasir {

// A pattern field {"String": ...} or {"Regex": ...}, of normalizers, pre-tokenizers and decoders.
struct CutPattern {
  bool is_regex = false;
  std::string literal;
  TextRegex regex;

  static StatusOr<CutPattern> Parse(const JsonNode& owner);  // reads owner.pattern
  Status Cut(std::string_view text, std::vector<Span>* spans) const;
  // `text` with every match replaced by `content`, taken literally. *removed_start: the first character went without a trace.
  StatusOr<std::string> Replace(std::string_view text, std::string_view content, bool* removed_start = nullptr) const;
};

class Normalizer {
 public:
  // `node` is the value of "normalizer"; null gives a normalizer that changes nothing.
  static StatusOr<Normalizer> Parse(const JsonNode& node);

  bool empty() const { return steps_.empty(); }

  // *start_moved is set when the text no longer begins with what stood first in the original.
  // `at_start`: the text is the beginning of what is encoded; only SentencePieceText asks.
  StatusOr<std::string> Apply(std::string_view text, bool* start_moved, bool at_start = true) const;

 private:
  enum class Kind { kPrepend, kReplace, kForm, kLowercase, kStrip, kStripAccents, kByteLevel, kPrecompiled, kBert, kNmt, kSentencePiece };
  struct Step {
    Kind kind;
    std::string content;  // Prepend, Replace
    CutPattern pattern;   // Replace
    NormalForm form = NormalForm::kNfc;
    bool left = false, right = false;  // Strip
    Charsmap charsmap;                 // Precompiled, SentencePieceText
    bool clean = false, spaces_chinese = false, strips_accents = false, lowercases = false;          // BertNormalizer
    bool prefix = false, prefix_everywhere = false, removes_spaces = false;                          // SentencePieceText
  };
  static StatusOr<Step> ParseStep(const JsonNode& node, std::string_view type);
  static Status ParseBert(const JsonNode& node, Step* step);
  static Status ParseSentencePiece(const JsonNode& node, Step* step);
  static std::string Bert(const Step& step, std::string text);
  static std::string SentencePieceText(const Step& step, std::string_view text, bool at_start);
  Status Add(const JsonNode& node, int depth);

  std::vector<Step> steps_;
};

}  // namespace kvasir
