#include "models/tiktoken.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <vector>

#include "models/bpe.h"
#include "models/charsmap.h"
#include "models/text_map.h"
#include "models/unicode.h"

namespace kvasir {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxTokenBytes = 4096;  // real ones stay below 200

constexpr std::string_view kGpt2 = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kCl100k =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr std::string_view kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Family {
  std::string_view sign;  // in the file's name or in tokenizer_class, in lower case
  std::string_view pattern;
  bool nfc;
};
constexpr Family kFamilies[] = {
    {"qwen", kQwen, true},  {"o200k", kO200k, false}, {"cl100k", kCl100k, false}, {"gpt2", kGpt2, false},
    {"r50k", kGpt2, false}, {"p50k", kGpt2, false},   {"llama", kLlama3, false},  {"pretrainedtokenizerfast", kLlama3, false}};

std::string LowerAscii(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

StatusOr<Family> FindFamily(std::string_view file_name, const TokenizerConfig& config) {
  // transformers takes Llama 3's pattern for every tokenizer.model of this format, unless the folder brings code of its own.
  if (file_name.ends_with(".model") && !config.has_auto_map) return Family{"llama", kLlama3, false};
  for (const std::string_view where : {file_name, std::string_view(config.tokenizer_class)}) {
    const std::string name = LowerAscii(where);
    for (const Family& family : kFamilies) {
      if (name.find(family.sign) != std::string::npos) return family;
    }
  }
  return InvalidArgument(
      "a tiktoken vocabulary says nothing of its pattern, and neither the file's name nor tokenizer_class '{}' names a known "
      "family: qwen, o200k, "
      "cl100k, gpt2, r50k, p50k, llama; add tokenizer.json (transformers' save_pretrained makes it)",
      config.tokenizer_class);
}

struct Line {
  std::string_view base64;
  std::string_view rank;
};

// Takes the next line that is not empty.
bool NextLine(std::string_view* rest, Line* line) {
  while (!rest->empty()) {
    const size_t end = std::min(rest->find('\n'), rest->size());
    std::string_view text = rest->substr(0, end);
    rest->remove_prefix(std::min(end + 1, rest->size()));
    if (text.ends_with('\r')) text.remove_suffix(1);
    if (text.empty()) continue;
    const size_t space = std::min(text.find(' '), text.size());
    *line = {text.substr(0, space), text.substr(std::min(space + 1, text.size()))};
    return true;
  }
  return false;
}

struct Vocabulary {
  std::vector<std::pair<std::string, int32_t>> tokens;  // in the order of their ranks
  TextViewMap<int32_t> ranks;
};

Status ReadVocabulary(std::string_view bytes, Vocabulary* vocabulary) {
  Line line;
  for (int64_t number = 1; NextLine(&bytes, &line); ++number) {
    auto token = DecodeBase64(line.base64);
    if (!token.ok()) return InvalidArgument("line {}: {}", number, Message(token.status()));
    int32_t rank = -1;
    const auto parsed = std::from_chars(line.rank.data(), line.rank.data() + line.rank.size(), rank);
    if (parsed.ec != std::errc() || parsed.ptr != line.rank.data() + line.rank.size() || rank < 0 || rank > kMaxTokenId) {
      return InvalidArgument("line {}: '{}' is not a rank; it must be an integer from 0 to {}", number, line.rank.substr(0, 40),
                             kMaxTokenId);
    }
    if (token->empty() || token->size() > kMaxTokenBytes) {
      return InvalidArgument("line {}: a token of {} bytes; it must have 1 to {}", number, token->size(), kMaxTokenBytes);
    }
    vocabulary->tokens.emplace_back(*std::move(token), rank);
  }
  auto& tokens = vocabulary->tokens;
  std::stable_sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && tokens[i].second == tokens[i - 1].second) return InvalidArgument("rank {} is there twice", tokens[i].second);
    if (!vocabulary->ranks.emplace(tokens[i].first, tokens[i].second).second) {
      return InvalidArgument("the token of rank {} has a rank before", tokens[i].second);
    }
  }
  return OkStatus();
}

// Every way to make a token of two others, by its rank; of equal ones, by the ranks of the parts.
Json Merges(const Vocabulary& vocabulary) {
  struct Cut {
    int32_t left, right;
    size_t at;
  };
  Json list = Json::array();
  std::vector<Cut> cuts;
  for (const auto& [token, rank] : vocabulary.tokens) {
    cuts.clear();
    const std::string_view text = token;
    for (size_t at = 1; at < text.size(); ++at) {
      const auto left = vocabulary.ranks.find(text.substr(0, at));
      if (left == vocabulary.ranks.end()) continue;
      const auto right = vocabulary.ranks.find(text.substr(at));
      if (right != vocabulary.ranks.end()) cuts.push_back({left->second, right->second, at});
    }
    std::sort(cuts.begin(), cuts.end(),
              [](const Cut& a, const Cut& b) { return std::pair(a.left, a.right) < std::pair(b.left, b.right); });
    for (const Cut& cut : cuts)
      list.push_back(Json::array({ByteLevelEncode(text.substr(0, cut.at)), ByteLevelEncode(text.substr(cut.at))}));
  }
  return list;
}

}  // namespace

bool LooksLikeTiktoken(std::string_view bytes) {
  std::string_view rest = bytes.substr(0, 8192);
  Line line;
  if (!NextLine(&rest, &line) || line.base64.empty() || line.rank.empty() || line.rank.size() > 10) return false;
  return line.rank.find_first_not_of("0123456789") == std::string_view::npos && DecodeBase64(line.base64).ok();
}

StatusOr<Json> TokenizerJsonOfTiktoken(std::string_view bytes, std::string_view file_name, const TokenizerConfig& config) {
  KVASIR_ASSIGN_OR_RETURN(const Family family, FindFamily(file_name, config));
  Vocabulary vocabulary;
  KVASIR_RETURN_IF_ERROR(ReadVocabulary(bytes, &vocabulary));
  Json vocab = Json::object();
  for (const auto& [token, rank] : vocabulary.tokens) vocab[ByteLevelEncode(token)] = static_cast<uint32_t>(rank);
  const Json split = {{"type", "Split"}, {"pattern", {{"Regex", family.pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  const Json level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  return Json{{"added_tokens", Json::array()},
              {"normalizer", family.nfc ? Json{{"type", "NFC"}} : Json()},
              {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, level}}}},
              {"post_processor", nullptr},
              {"decoder", {{"type", "ByteLevel"}}},
              {"model", {{"type", "BPE"}, {"vocab", std::move(vocab)}, {"merges", Merges(vocabulary)}, {"ignore_merges", true}}}};
}

}  // namespace kvasir
