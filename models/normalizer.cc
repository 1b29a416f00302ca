#include "models/normalizer.h"

#include "models/unicode_ages.h"

namespace kvasir {
namespace {

constexpr size_t kMaxNormalizedBytes = size_t{1} << 30;

std::string_view StripLeft(std::string_view text) {
  while (!text.empty()) {
    const Character c = CharacterAt(text, 0);
    if (!IsWhitespace(c.code)) break;
    text.remove_prefix(c.length);
  }
  return text;
}

std::string_view StripRight(std::string_view text) {
  while (!text.empty()) {
    const size_t last = PreviousCharacter(text, text.size());
    if (!IsWhitespace(CharacterAt(text, last).code)) break;
    text.remove_suffix(text.size() - last);
  }
  return text;
}

std::string WithoutMarks(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Character c = CharacterAt(text, i);
    // U+1CF2 and U+1CF3 were marks once.
    const bool removed = c.code == 0x1CF2 || c.code == 0x1CF3 || (IsMark(c.code) && !IsYoungMark(c.code));
    if (!removed) out.append(text, i, c.length);
    i += c.length;
  }
  return out;
}

std::string WithoutNonspacingMarks(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Character c = CharacterAt(text, i);
    const bool removed = c.code == 0x1734 || (IsNonspacingMark(c.code) && !IsYoungNonspacingMark(c.code));  // U+1734 was one once
    if (!removed) out.append(text, i, c.length);
    i += c.length;
  }
  return out;
}

bool IsChinese(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

// What neural translation models leave out, and the spaces in the place of what they see as one.
std::string WithoutNmtControls(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Character character = CharacterAt(text, i);
    const char32_t c = character.code;
    const bool dropped = (c >= 1 && c <= 8) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
    const bool space = c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 ||
                       c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
    if (space) {
      out.push_back(' ');
    } else if (!dropped) {
      out.append(text, i, character.length);
    }
    i += character.length;
  }
  return out;
}

}  // namespace

StatusOr<CutPattern> CutPattern::Parse(const JsonNode& owner) {
  KVASIR_ASSIGN_OR_RETURN(const JsonNode node, owner.Field("pattern"));
  CutPattern pattern;
  if (node.Has("String")) {
    KVASIR_ASSIGN_OR_RETURN(pattern.literal, node.String("String"));
    if (pattern.literal.empty()) return node.Wrong("String", "a non-empty string");
    return pattern;
  }
  if (!node.Has("Regex")) return owner.Wrong("pattern", "{\"String\": ...} or {\"Regex\": ...}");
  KVASIR_ASSIGN_OR_RETURN(const std::string source, node.String("Regex"));
  auto regex = TextRegex::Compile(source);
  if (!regex.ok()) return AtPlace(node.path() + ".Regex", regex.status());
  pattern.is_regex = true;
  pattern.regex = *std::move(regex);
  return pattern;
}

Status CutPattern::Cut(std::string_view text, std::vector<Span>* spans) const {
  if (is_regex) return regex.Cut(text, spans);
  CutAtLiteral(text, literal, spans);
  return OkStatus();
}

StatusOr<std::string> CutPattern::Replace(std::string_view text, std::string_view content, bool* removed_start) const {
  std::vector<Span> spans;
  KVASIR_RETURN_IF_ERROR(Cut(text, &spans));
  std::string out;
  out.reserve(text.size());
  for (const Span& span : spans) {
    if (!span.is_match) {
      out.append(text, span.begin, span.end - span.begin);
    } else {
      if (removed_start != nullptr && span.begin == 0 && span.end > 0 && content.empty()) *removed_start = true;
      out.append(content);
      if (out.size() > kMaxNormalizedBytes) return InvalidArgument("the normalized text exceeds {} bytes; send less text", kMaxNormalizedBytes);
    }
  }
  return out;
}

StatusOr<Normalizer> Normalizer::Parse(const JsonNode& node) {
  Normalizer normalizer;
  if (!node.value().is_null()) KVASIR_RETURN_IF_ERROR(normalizer.Add(node, 0));
  return normalizer;
}

Status Normalizer::Add(const JsonNode& node, int depth) {
  if (depth > kMaxSequenceDepth) return InvalidArgument("{}: Sequences are nested deeper than {}", node.path(), kMaxSequenceDepth);
  KVASIR_ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "Sequence") {
    KVASIR_ASSIGN_OR_RETURN(const auto parts, node.Array("normalizers"));
    for (const JsonNode& part : parts) KVASIR_RETURN_IF_ERROR(Add(part, depth + 1));
    return OkStatus();
  }
  KVASIR_ASSIGN_OR_RETURN(Step step, ParseStep(node, type));
  steps_.push_back(std::move(step));
  return OkStatus();
}

StatusOr<Normalizer::Step> Normalizer::ParseStep(const JsonNode& node, std::string_view type) {
  Step step{};
  if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    KVASIR_ASSIGN_OR_RETURN(step.content, node.String("prepend"));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    KVASIR_ASSIGN_OR_RETURN(step.content, node.String("content"));
    KVASIR_ASSIGN_OR_RETURN(step.pattern, CutPattern::Parse(node));
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    step.kind = Kind::kForm;
    step.form = type == "NFC" ? NormalForm::kNfc : type == "NFD" ? NormalForm::kNfd : type == "NFKC" ? NormalForm::kNfkc : NormalForm::kNfkd;
  } else if (type == "Lowercase") {
    step.kind = Kind::kLowercase;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    KVASIR_ASSIGN_OR_RETURN(step.left, node.BoolOr("strip_left", true));
    KVASIR_ASSIGN_OR_RETURN(step.right, node.BoolOr("strip_right", true));
  } else if (type == "StripAccents") {
    step.kind = Kind::kStripAccents;
  } else if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else if (type == "Precompiled") {
    step.kind = Kind::kPrecompiled;
    KVASIR_ASSIGN_OR_RETURN(step.charsmap, Charsmap::FromField(node, "precompiled_charsmap"));
  } else if (type == "BertNormalizer") {
    KVASIR_RETURN_IF_ERROR(ParseBert(node, &step));
  } else if (type == "Nmt") {
    step.kind = Kind::kNmt;
  } else if (type == "SentencePieceText") {
    KVASIR_RETURN_IF_ERROR(ParseSentencePiece(node, &step));
  } else {
    return InvalidArgument(
        "{}.type '{}' is not supported; supported: Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, "
        "ByteLevel, Precompiled, BertNormalizer, Nmt",
        node.path(), type);
  }
  return step;
}

Status Normalizer::ParseBert(const JsonNode& node, Step* step) {
  step->kind = Kind::kBert;
  KVASIR_ASSIGN_OR_RETURN(step->clean, node.BoolOr("clean_text", true));
  KVASIR_ASSIGN_OR_RETURN(step->spaces_chinese, node.BoolOr("handle_chinese_chars", true));
  KVASIR_ASSIGN_OR_RETURN(step->lowercases, node.BoolOr("lowercase", true));
  KVASIR_ASSIGN_OR_RETURN(step->strips_accents, node.BoolOr("strip_accents", step->lowercases));
  return OkStatus();
}

Status Normalizer::ParseSentencePiece(const JsonNode& node, Step* step) {
  step->kind = Kind::kSentencePiece;
  KVASIR_ASSIGN_OR_RETURN(step->prefix, node.BoolOr("add_dummy_prefix", true));
  KVASIR_ASSIGN_OR_RETURN(step->prefix_everywhere, node.BoolOr("prefix_everywhere", false));
  KVASIR_ASSIGN_OR_RETURN(step->removes_spaces, node.BoolOr("remove_extra_whitespaces", true));
  if (!node.Has("precompiled_charsmap")) return OkStatus();
  KVASIR_ASSIGN_OR_RETURN(step->charsmap, Charsmap::FromField(node, "precompiled_charsmap"));
  return OkStatus();
}

std::string Normalizer::Bert(const Step& step, std::string text) {
  std::string out;
  if (step.clean || step.spaces_chinese) {
    for (size_t i = 0; i < text.size();) {
      const Character c = CharacterAt(text, i);
      const bool line = c.code == '\t' || c.code == '\n' || c.code == '\r';
      const bool dropped = step.clean && !line && (c.code == 0 || c.code == 0xFFFD || (IsOther(c.code) && !IsYoungControl(c.code)));
      if (dropped) {
        // no trace
      } else if (step.clean && IsWhitespace(c.code)) {
        out.push_back(' ');
      } else if (step.spaces_chinese && IsChinese(c.code)) {
        out.push_back(' ');
        out.append(text, i, c.length);
        out.push_back(' ');
      } else {
        out.append(text, i, c.length);
      }
      i += c.length;
    }
    text.swap(out);
  }
  if (step.strips_accents) text = WithoutNonspacingMarks(Normalize(text, NormalForm::kNfd));
  return step.lowercases ? Lowercase(text) : text;
}

// What SentencePiece itself does to a text: its charsmap (longest match), spaces collapsed, a leading space, spaces as U+2581.
std::string Normalizer::SentencePieceText(const Step& step, std::string_view text, bool at_start) {
  constexpr std::string_view kSpace = "\u2581";
  std::string mapped = step.charsmap.ReplaceLongest(text);
  std::string out;
  out.reserve(mapped.size() + 8);
  bool after_space = step.removes_spaces && at_start;
  for (const char c : mapped) {
    if (c == ' ') {
      if (!after_space) out += kSpace;
      after_space = step.removes_spaces;
    } else {
      out.push_back(c);
      after_space = false;
    }
  }
  if (step.removes_spaces) {
    while (out.ends_with(kSpace)) out.resize(out.size() - kSpace.size());
  }
  if (step.prefix && (at_start || step.prefix_everywhere) && !out.empty()) out.insert(0, kSpace);
  return out;
}

StatusOr<std::string> Normalizer::Apply(std::string_view input, bool* start_moved, bool at_start) const {
  std::string text(input);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kPrepend:
        if (!text.empty()) text.insert(0, step.content);
        break;
      case Kind::kReplace: {
        KVASIR_ASSIGN_OR_RETURN(text, step.pattern.Replace(text, step.content, start_moved));
        break;
      }
      case Kind::kForm:
        text = Normalize(text, step.form);
        break;
      case Kind::kLowercase:
        text = Lowercase(text);
        break;
      case Kind::kStrip: {
        std::string_view rest = text;
        if (step.left) rest = StripLeft(rest);
        if (rest.size() < text.size()) *start_moved = true;
        if (step.right) rest = StripRight(rest);
        text = std::string(rest);
        break;
      }
      case Kind::kStripAccents:
        text = WithoutMarks(text);
        break;
      case Kind::kByteLevel:
        text = ByteLevelEncode(text);
        break;
      case Kind::kPrecompiled:
        text = step.charsmap.ReplaceByGrapheme(text);
        break;
      case Kind::kBert:
        text = Bert(step, std::move(text));
        break;
      case Kind::kNmt:
        text = WithoutNmtControls(text);
        break;
      case Kind::kSentencePiece:
        text = SentencePieceText(step, text, at_start);
        break;
    }
  }
  return text;
}

}  // namespace kvasir
