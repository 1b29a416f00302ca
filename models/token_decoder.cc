#include "models/token_decoder.h"

#include <algorithm>

#include "models/unicode.h"

namespace kvasir {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string Strip(std::string_view token, std::string_view character, int64_t start, int64_t stop) {
  for (; start > 0 && token.starts_with(character); --start) token.remove_prefix(character.size());
  for (; stop > 0 && token.ends_with(character); --stop) token.remove_suffix(character.size());
  return std::string(token);
}

// Runs of <0xNN> become the text they spell; a run that is not valid UTF-8 becomes one U+FFFD for each byte.
std::vector<std::string> JoinByteTokens(std::vector<std::string> tokens) {
  std::vector<std::string> out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (FirstInvalidUtf8(bytes) == std::string_view::npos) {
      out.push_back(bytes);
    } else {
      for (size_t i = 0; i < bytes.size(); ++i) out.emplace_back(kReplacementCharacter);
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    const int byte = ByteTokenValue(token);
    if (byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
      continue;
    }
    flush();
    out.push_back(std::move(token));
  }
  flush();
  return out;
}

std::string Join(const std::vector<std::string>& tokens, std::string_view between = "") {
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) out += between;
    out += tokens[i];
  }
  return out;
}

std::string ByteLevelBytes(std::string_view token) { return ByteLevelDecode(token).value_or(std::string(token)); }

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::vector<Span> spans;
  CutAtLiteral(text, from, &spans);
  std::string out;
  for (const Span& span : spans) span.is_match ? out.append(to) : out.append(text, span.begin, span.end - span.begin);
  return out;
}

// English spacing, in the reference's order.
std::string CleanEnglish(std::string text) {
  constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"},
      {" 've", "'ve"}, {" 're", "'re"}};
  if (text.find(' ') == std::string::npos) return text;
  for (const auto& [from, to] : kRules) {
    if (text.find(from) != std::string::npos) text = ReplaceAll(text, from, to);
  }
  return text;
}

}  // namespace

int ByteTokenValue(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = token[3] == '+' ? 0 : HexDigit(token[3]);  // the reference's number parser lets a plus sign through
  const int low = HexDigit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

StatusOr<TokenDecoder> TokenDecoder::Parse(const JsonNode& node) {
  TokenDecoder decoder;
  if (!node.value().is_null()) KVASIR_RETURN_IF_ERROR(decoder.Add(node, 0));
  return decoder;
}

Status TokenDecoder::ParseStep(const JsonNode& node, std::string_view type, Step* step) {
  if (type == "ByteLevel") {
    step->kind = Kind::kByteLevel;
  } else if (type == "Replace") {
    step->kind = Kind::kReplace;
    KVASIR_ASSIGN_OR_RETURN(step->pattern, CutPattern::Parse(node));
    KVASIR_ASSIGN_OR_RETURN(step->content, node.String("content"));
  } else if (type == "ByteFallback") {
    step->kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step->kind = Kind::kFuse;
  } else if (type == "Strip") {
    step->kind = Kind::kStrip;
    KVASIR_ASSIGN_OR_RETURN(step->content, node.CharacterOr("content", " "));
    KVASIR_ASSIGN_OR_RETURN(step->start, node.Integer("start"));
    KVASIR_ASSIGN_OR_RETURN(step->stop, node.Integer("stop"));
    if (step->start < 0) return node.Wrong("start", "0 or more");
    if (step->stop < 0) return node.Wrong("stop", "0 or more");
  } else if (type == "Metaspace") {
    step->kind = Kind::kMetaspace;
    KVASIR_ASSIGN_OR_RETURN(step->content, node.CharacterOr("replacement", "\u2581"));
    KVASIR_ASSIGN_OR_RETURN(const bool add_prefix_space, node.BoolOr("add_prefix_space", true));
    KVASIR_ASSIGN_OR_RETURN(const std::string scheme, node.StringOr("prepend_scheme", add_prefix_space ? "always" : "never"));
    if (scheme != "always" && scheme != "first" && scheme != "never") return node.Wrong("prepend_scheme", "one of always, first, never");
    step->drops_first = scheme != "never";
  } else if (type == "WordPiece") {
    step->kind = Kind::kWordPiece;
    KVASIR_ASSIGN_OR_RETURN(step->content, node.StringOr("prefix", "##"));
    KVASIR_ASSIGN_OR_RETURN(step->cleans, node.BoolOr("cleanup", true));
  } else if (type == "BPEDecoder") {
    step->kind = Kind::kBpe;
    KVASIR_ASSIGN_OR_RETURN(step->content, node.StringOr("suffix", "</w>"));
    if (step->content.empty()) return node.Wrong("suffix", "a non-empty string");
    if (!steps_.empty()) return InvalidArgument("{}: BPEDecoder after other decoders is not supported; it must come first", node.path());
    last_differs_ = true;
  } else {
    return InvalidArgument(
        "{}.type '{}' is not supported; supported: Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, WordPiece, BPEDecoder",
        node.path(), type);
  }
  return OkStatus();
}

Status TokenDecoder::Add(const JsonNode& node, int depth) {
  if (depth > kMaxSequenceDepth) return InvalidArgument("{}: Sequences are nested deeper than {}", node.path(), kMaxSequenceDepth);
  KVASIR_ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "Sequence") {
    KVASIR_ASSIGN_OR_RETURN(const auto parts, node.Array("decoders"));
    for (const JsonNode& part : parts) KVASIR_RETURN_IF_ERROR(Add(part, depth + 1));
    return OkStatus();
  }
  Step step{};
  KVASIR_RETURN_IF_ERROR(ParseStep(node, type, &step));
  // Text is streamed token by token, so what comes after the tokens were joined may look at the start of the text only.
  if (fused_) {
    const bool starts_only = step.kind == Kind::kStrip && step.stop == 0 && start_strip_.count == 0;
    if (!starts_only && step.kind != Kind::kFuse) {
      return InvalidArgument("{}: '{}' after Fuse or ByteLevel is not supported; supported there: one Strip with stop 0", node.path(), type);
    }
    if (starts_only) start_strip_ = {step.content, step.start};
  }
  if (step.kind == Kind::kFuse || step.kind == Kind::kByteLevel) fused_ = true;
  steps_.push_back(std::move(step));
  return OkStatus();
}

std::string TokenDecoder::JoinWordPiece(const Step& step, std::string_view token, bool first) {
  std::string text(token);
  if (!first) {
    if (text.starts_with(step.content)) {
      text.erase(0, step.content.size());
    } else {
      text.insert(0, " ");
    }
  }
  return step.cleans ? CleanEnglish(std::move(text)) : text;
}

std::string TokenDecoder::ReplaceMarkers(const Step& step, std::string_view token, bool first) {
  std::vector<Span> spans;
  CutAtLiteral(token, step.content, &spans);
  std::string out;
  for (const Span& span : spans) {
    if (!span.is_match) {
      out.append(token, span.begin, span.end - span.begin);
    } else if (!(first && step.drops_first)) {
      out.push_back(' ');
    }
  }
  return out;
}

void TokenDecoder::Apply(const Step& step, std::vector<std::string>* tokens) {
  switch (step.kind) {
    case Kind::kByteLevel: {
      std::string bytes, text;
      for (const std::string& token : *tokens) bytes += ByteLevelBytes(token);
      AppendLossyUtf8(bytes, true, &text);
      tokens->assign(1, std::move(text));
      break;
    }
    case Kind::kReplace:
      for (std::string& token : *tokens) token = step.pattern.Replace(token, step.content).value_or(token);
      break;
    case Kind::kByteFallback:
      *tokens = JoinByteTokens(std::move(*tokens));
      break;
    case Kind::kFuse:
      tokens->assign(1, Join(*tokens));
      break;
    case Kind::kStrip:
      for (std::string& token : *tokens) token = Strip(token, step.content, step.start, step.stop);
      break;
    case Kind::kMetaspace:
      for (size_t i = 0; i < tokens->size(); ++i) (*tokens)[i] = ReplaceMarkers(step, (*tokens)[i], i == 0);
      break;
    case Kind::kWordPiece:
      for (size_t i = 0; i < tokens->size(); ++i) (*tokens)[i] = JoinWordPiece(step, (*tokens)[i], i == 0);
      break;
    case Kind::kBpe:
      for (size_t i = 0; i < tokens->size(); ++i) (*tokens)[i] = ReplaceAll((*tokens)[i], step.content, i + 1 == tokens->size() ? "" : " ");
      break;
  }
}

std::string TokenDecoder::Decode(std::vector<std::string> tokens) const {
  if (steps_.empty()) return Join(tokens, " ");
  for (const Step& step : steps_) Apply(step, &tokens);
  return Join(tokens);
}

std::string TokenDecoder::DecodeOne(std::string_view token, bool first, bool last) const {
  std::string text(token);
  if (steps_.empty()) return first ? text : " " + text;
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kByteLevel:
        return ByteLevelBytes(text);
      case Kind::kReplace:
        text = step.pattern.Replace(text, step.content).value_or(text);
        break;
      case Kind::kByteFallback:
        if (const int byte = ByteTokenValue(text); byte >= 0) return std::string(1, static_cast<char>(byte));
        break;
      case Kind::kFuse:
        return text;  // a Strip after it is start_strip()
      case Kind::kStrip:
        text = Strip(text, step.content, step.start, step.stop);
        break;
      case Kind::kMetaspace:
        text = ReplaceMarkers(step, text, first);
        break;
      case Kind::kWordPiece:
        text = JoinWordPiece(step, text, first);
        break;
      case Kind::kBpe:
        text = ReplaceAll(text, step.content, last ? "" : " ");
        break;
    }
  }
  return text;
}

}  // namespace kvasir
