#include "models/normalizer.h"

namespace kvasir {
namespace {

constexpr int kMaxDepth = 16;  // of nested Sequences
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
    if (!IsMark(c.code)) out.append(text, i, c.length);
    i += c.length;
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
  if (depth > kMaxDepth) return InvalidArgument("{}: Sequences are nested deeper than {}", node.path(), kMaxDepth);
  KVASIR_ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "Sequence") {
    KVASIR_ASSIGN_OR_RETURN(const auto parts, node.Array("normalizers"));
    for (const JsonNode& part : parts) KVASIR_RETURN_IF_ERROR(Add(part, depth + 1));
    return OkStatus();
  }
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
  } else {
    return InvalidArgument(
        "{}.type '{}' is not supported; supported: Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, "
        "ByteLevel",
        node.path(), type);
  }
  steps_.push_back(std::move(step));
  return OkStatus();
}

StatusOr<std::string> Normalizer::Apply(std::string_view input, bool* start_moved) const {
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
    }
  }
  return text;
}

}  // namespace kvasir
