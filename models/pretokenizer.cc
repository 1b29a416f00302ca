#include "models/pretokenizer.h"

namespace kvasir {
namespace {

constexpr std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Cuts text into single characters for which `matches` holds and the stretches between them.
template <typename Predicate>
void CutAtCharacters(std::string_view text, Predicate matches, std::vector<Span>* spans) {
  spans->clear();
  size_t previous = 0;
  for (size_t i = 0; i < text.size();) {
    const Character c = CharacterAt(text, i);
    const size_t next = i + c.length;
    if (matches(c.code)) {
      if (previous < i) spans->push_back({previous, i, false});
      spans->push_back({i, next, true});
      previous = next;
    }
    i = next;
  }
  if (previous < text.size()) spans->push_back({previous, text.size(), false});
}

// \w+|[^\w\s]+ : runs of word characters and runs of the rest, white space between them.
void CutAtWords(std::string_view text, std::vector<Span>* spans) {
  spans->clear();
  int previous = -1;
  for (size_t i = 0; i < text.size();) {
    const Character c = CharacterAt(text, i);
    const int kind = IsWord(c.code) ? 1 : IsWhitespace(c.code) ? 0 : 2;
    if (kind == previous) {
      spans->back().end += c.length;
    } else {
      spans->push_back({i, i + c.length, kind != 0});
    }
    previous = kind;
    i += c.length;
  }
}

// Every `length` characters, and what is left.
void CutAtLength(std::string_view text, int64_t length, std::vector<Span>* spans) {
  spans->clear();
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    for (int64_t n = 0; n < length && i < text.size(); ++n) i += CharacterAt(text, i).length;
    spans->push_back({begin, i, true});
  }
}

}  // namespace

StatusOr<PreTokenizer> PreTokenizer::Parse(const JsonNode& node) {
  PreTokenizer result;
  if (node.value().is_null()) return result;
  KVASIR_RETURN_IF_ERROR(result.Add(node, 0));
  result.raw_bytes_ = !result.steps_.empty() && result.steps_.back().kind == Kind::kByteLevel;
  return result;
}

StatusOr<PreTokenizer::Behavior> PreTokenizer::ParseBehavior(const JsonNode& node, std::string_view otherwise) {
  KVASIR_ASSIGN_OR_RETURN(const std::string name, node.StringOr("behavior", otherwise));
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return node.Wrong("behavior", "one of Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
}

Status PreTokenizer::AddSplit(const JsonNode& node, Step* step) {
  step->kind = Kind::kSplit;
  KVASIR_ASSIGN_OR_RETURN(step->pattern, CutPattern::Parse(node));
  if (!node.Has("behavior")) return node.Wrong("behavior", "a string");
  KVASIR_ASSIGN_OR_RETURN(step->behavior, ParseBehavior(node, ""));
  KVASIR_ASSIGN_OR_RETURN(step->invert, node.BoolOr("invert", false));
  return OkStatus();
}

Status PreTokenizer::AddMetaspace(const JsonNode& node, Step* step) {
  step->kind = Kind::kMetaspace;
  step->behavior = Behavior::kMergedWithNext;
  KVASIR_ASSIGN_OR_RETURN(step->replacement, node.CharacterOr("replacement", "\u2581"));
  KVASIR_ASSIGN_OR_RETURN(step->cuts, node.BoolOr("split", true));
  // Older files have add_prefix_space; newer ones prepend_scheme; in between, both.
  KVASIR_ASSIGN_OR_RETURN(const bool add_prefix_space, node.BoolOr("add_prefix_space", true));
  KVASIR_ASSIGN_OR_RETURN(const std::string scheme, node.StringOr("prepend_scheme", add_prefix_space ? "always" : "never"));
  if (scheme == "always") {
    step->prepend = Prepend::kAlways;
  } else if (scheme == "first") {
    step->prepend = Prepend::kFirst;
  } else if (scheme == "never") {
    step->prepend = Prepend::kNever;
  } else {
    return node.Wrong("prepend_scheme", "one of always, first, never");
  }
  if (!add_prefix_space && step->prepend != Prepend::kNever) {
    return node.Wrong("prepend_scheme", "never, since add_prefix_space is false");
  }
  return OkStatus();
}

Status PreTokenizer::Add(const JsonNode& node, int depth) {
  if (depth > kMaxSequenceDepth) return InvalidArgument("{}: Sequences are nested deeper than {}", node.path(), kMaxSequenceDepth);
  KVASIR_ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "Sequence") {
    KVASIR_ASSIGN_OR_RETURN(const auto parts, node.Array("pretokenizers"));
    for (const JsonNode& part : parts) KVASIR_RETURN_IF_ERROR(Add(part, depth + 1));
    return OkStatus();
  }
  Step step{};
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
    KVASIR_ASSIGN_OR_RETURN(step.add_prefix_space, node.BoolOr("add_prefix_space", true));
    KVASIR_ASSIGN_OR_RETURN(step.cuts, node.BoolOr("use_regex", true));
    KVASIR_ASSIGN_OR_RETURN(step.pattern.regex, TextRegex::Compile(kGpt2Pattern));
    step.pattern.is_regex = true;
  } else if (type == "Split") {
    KVASIR_RETURN_IF_ERROR(AddSplit(node, &step));
  } else if (type == "Digits") {
    step.kind = Kind::kDigits;
    KVASIR_ASSIGN_OR_RETURN(const bool individual, node.BoolOr("individual_digits", false));
    step.behavior = individual ? Behavior::kIsolated : Behavior::kContiguous;
  } else if (type == "Punctuation") {
    step.kind = Kind::kPunctuation;
    KVASIR_ASSIGN_OR_RETURN(step.behavior, ParseBehavior(node, "Isolated"));
  } else if (type == "Metaspace") {
    KVASIR_RETURN_IF_ERROR(AddMetaspace(node, &step));
  } else if (type == "Whitespace") {
    step.kind = Kind::kWhitespace;
    step.behavior = Behavior::kRemoved;
    step.invert = true;
  } else if (type == "WhitespaceSplit") {
    step.kind = Kind::kWhitespaceSplit;
    step.behavior = Behavior::kRemoved;
  } else if (type == "BertPreTokenizer") {  // two steps: white space goes, punctuation stands alone
    step.kind = Kind::kWhitespaceSplit;
    step.behavior = Behavior::kRemoved;
    steps_.push_back(step);
    step.kind = Kind::kPunctuation;
    step.behavior = Behavior::kIsolated;
  } else if (type == "CharDelimiterSplit") {
    step.kind = Kind::kDelimiter;
    step.behavior = Behavior::kRemoved;
    if (!node.Has("delimiter")) return node.Wrong("delimiter", "one character");
    KVASIR_ASSIGN_OR_RETURN(step.replacement, node.CharacterOr("delimiter", ""));
  } else if (type == "FixedLength") {
    step.kind = Kind::kFixedLength;
    KVASIR_ASSIGN_OR_RETURN(step.length, node.Integer("length"));
    if (step.length < 1) return node.Wrong("length", "1 or more");
  } else {
    return InvalidArgument(
        "{}.type '{}' is not supported; supported: Sequence, ByteLevel, Split, Digits, Punctuation, Metaspace, Whitespace, WhitespaceSplit, "
        "BertPreTokenizer, CharDelimiterSplit, FixedLength",
        node.path(), type);
  }
  steps_.push_back(std::move(step));
  return OkStatus();
}

Status PreTokenizer::Cut(const Step& step, std::string_view text, std::vector<Span>* spans) {
  switch (step.kind) {
    case Kind::kByteLevel:
    case Kind::kSplit:
      KVASIR_RETURN_IF_ERROR(step.pattern.Cut(text, spans));
      break;
    case Kind::kDigits:
      CutAtCharacters(text, IsNumeric, spans);
      break;
    case Kind::kPunctuation:
      CutAtCharacters(text, IsPunctuation, spans);
      break;
    case Kind::kMetaspace:
    case Kind::kDelimiter:
      CutAtLiteral(text, step.replacement, spans);
      break;
    case Kind::kFixedLength:
      CutAtLength(text, step.length, spans);
      break;
    case Kind::kWhitespace:
      CutAtWords(text, spans);
      break;
    case Kind::kWhitespaceSplit:
      CutAtCharacters(text, IsWhitespace, spans);
      break;
  }
  if (step.invert) {
    for (Span& span : *spans) span.is_match = !span.is_match;
  }
  return OkStatus();
}

void PreTokenizer::Emit(Behavior behavior, const Piece& piece, const std::vector<Span>& spans, std::vector<Piece>* out) {
  size_t begin = 0, end = 0;  // the stretch being gathered
  const auto flush = [&] {
    if (begin < end) out->push_back({piece.text.substr(begin, end - begin), piece.at_start && begin == 0});
  };
  bool previous_match = false;
  for (size_t i = 0; i < spans.size(); ++i) {
    const Span& span = spans[i];
    bool joins = false;  // this span continues the stretch
    switch (behavior) {
      case Behavior::kIsolated:
        break;
      case Behavior::kRemoved:
        if (span.is_match) continue;
        break;
      case Behavior::kContiguous:
        joins = i > 0 && span.is_match == previous_match;
        break;
      case Behavior::kMergedWithPrevious:  // a match joins what stands before it, unless that is a match too
        joins = i > 0 && span.is_match && !previous_match;
        break;
      case Behavior::kMergedWithNext:  // seen from the other end: a match takes in the non-match after it
        joins = i > 0 && previous_match && !span.is_match;
        break;
    }
    if (!joins) {
      flush();
      begin = span.begin;
    }
    end = span.end;
    previous_match = span.is_match;
  }
  flush();
}

Status PreTokenizer::Split(Piece text, std::vector<Piece>* pieces, std::deque<std::string>* storage) const {
  pieces->assign(1, text);
  std::vector<Piece> next;
  std::vector<Span> spans;
  for (size_t s = 0; s < steps_.size(); ++s) {
    const Step& step = steps_[s];
    const bool writes_alphabet = step.kind == Kind::kByteLevel && !(raw_bytes_ && s + 1 == steps_.size());
    if (step.kind == Kind::kByteLevel && !writes_alphabet && !step.cuts && !step.add_prefix_space) continue;
    next.clear();
    for (Piece piece : *pieces) {
      if (step.kind == Kind::kByteLevel && step.add_prefix_space && !piece.text.starts_with(' ')) {
        piece.text = storage->emplace_back(" " + std::string(piece.text));
      }
      if (step.kind == Kind::kMetaspace) {
        std::string& replaced = storage->emplace_back();
        for (const char c : piece.text) c == ' ' ? void(replaced += step.replacement) : replaced.push_back(c);
        const bool wants = step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && piece.at_start);
        if (wants && !replaced.starts_with(step.replacement)) replaced.insert(0, step.replacement);
        piece.text = replaced;
      }
      if (!step.cuts) {
        next.push_back(piece);
        continue;
      }
      KVASIR_RETURN_IF_ERROR(Cut(step, piece.text, &spans));
      Emit(step.behavior, piece, spans, &next);
    }
    if (writes_alphabet) {
      for (Piece& piece : next) piece.text = storage->emplace_back(ByteLevelEncode(piece.text));
    }
    pieces->swap(next);
  }
  return OkStatus();
}

}  // namespace kvasir
