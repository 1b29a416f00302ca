#include "server/openai_logprobs.h"

#include <set>

#include "models/unicode.h"
#include "server/json_text.h"

namespace kvasir {
namespace {

int64_t CountCharacters(std::string_view text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

void AppendTokenObject(std::string& out, const TokenNaming& naming, int32_t token, float logprob) {
  out += "{\"token\":";
  AppendJsonString(out, TokenString(naming, token));
  out += ",\"logprob\":";
  AppendJsonLogprob(out, logprob);
  out += ",\"bytes\":[";
  bool first = true;
  for (const char c : naming.tokenizer->TokenBytes(token)) {
    if (!first) out.push_back(',');
    first = false;
    AppendJsonInt(out, static_cast<unsigned char>(c));
  }
  out.push_back(']');
}

void Comma(std::string& out) {
  if (!out.empty()) out.push_back(',');
}

}  // namespace

std::string TokenString(const TokenNaming& naming, int32_t token) {
  if (naming.as_ids) return fmt::format("token_id:{}", token);
  if (naming.hide_special && naming.tokenizer->IsSpecial(token)) return {};
  std::string text;
  AppendLossyUtf8(naming.tokenizer->TokenBytes(token), /*at_end=*/true, &text);
  return text;
}

void AppendChatLogprob(std::string& out, const TokenNaming& naming, const SampleResult& sample) {
  AppendTokenObject(out, naming, sample.token, sample.logprob);
  out += ",\"top_logprobs\":[";
  for (size_t i = 0; i < sample.top.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendTokenObject(out, naming, sample.top[i].token, sample.top[i].logprob);
    out.push_back('}');
  }
  out += "]}";
}

void LegacyLogprobs::AddToken(const std::string& name, const std::string& text) {
  Comma(tokens);
  AppendJsonString(tokens, name);
  Comma(text_offset);
  AppendJsonInt(text_offset, offset);
  offset += CountCharacters(text);
}

void LegacyLogprobs::AddFirst(const TokenNaming& naming, int32_t token, const std::string& text) {
  AddToken(naming.as_ids ? TokenString(naming, token) : text, text);
  token_logprobs += "null";
  top_logprobs += "null";
}

void LegacyLogprobs::Add(const TokenNaming& naming, const SampleResult& sample) {
  const std::string name = TokenString(naming, sample.token);
  AddNamed(name,
           naming.as_ids ? TokenString({.tokenizer = naming.tokenizer, .hide_special = naming.hide_special}, sample.token) : name,
           naming, sample);
}

void LegacyLogprobs::AddNamed(const std::string& name, const std::string& text, const TokenNaming& naming,
                              const SampleResult& sample) {
  AddToken(name, text);
  Comma(token_logprobs);
  AppendJsonLogprob(token_logprobs, sample.logprob);
  Comma(top_logprobs);
  top_logprobs.push_back('{');
  std::set<std::string> seen;  // several tokens may look alike; the likeliest is shown
  const auto add = [&](const std::string& key, float logprob) {
    if (!seen.insert(key).second) return;
    if (seen.size() > 1) top_logprobs.push_back(',');
    AppendJsonString(top_logprobs, key);
    top_logprobs.push_back(':');
    AppendJsonLogprob(top_logprobs, logprob);
  };
  bool chosen = false;
  for (const TokenLogprob& alternative : sample.top) {
    chosen = chosen || alternative.token == sample.token;
    add(alternative.token == sample.token ? name : TokenString(naming, alternative.token), alternative.logprob);
  }
  if (!chosen) add(name, sample.logprob);
  top_logprobs.push_back('}');
}

void LegacyLogprobs::AppendJson(std::string& out) const {
  out += "{\"tokens\":[" + tokens + "],\"token_logprobs\":[" + token_logprobs + "],\"top_logprobs\":[" + top_logprobs +
         "],\"text_offset\":[" + text_offset + "]}";
}

void LegacyLogprobs::Clear() {
  tokens.clear();
  token_logprobs.clear();
  top_logprobs.clear();
  text_offset.clear();
}

void AppendPromptLogprobs(std::string& out, const TokenNaming& naming, std::span<const SampleResult> scores) {
  out += "[null";
  for (const SampleResult& score : scores) {
    out += ",{";
    bool chosen = false;
    const auto add = [&](int32_t token, float logprob, int64_t rank) {
      out += "\"";
      AppendJsonInt(out, token);
      out += "\":{\"logprob\":";
      AppendJsonLogprob(out, logprob);
      out += ",\"rank\":";
      AppendJsonInt(out, rank);
      out += ",\"decoded_token\":";
      AppendJsonString(out, TokenString(naming, token));
      out.push_back('}');
    };
    for (size_t i = 0; i < score.top.size(); ++i) {
      if (i > 0) out.push_back(',');
      chosen = chosen || score.top[i].token == score.token;
      add(score.top[i].token, score.top[i].logprob, int64_t(i) + 1);
    }
    if (!chosen) {
      if (!score.top.empty()) out.push_back(',');
      add(score.token, score.logprob, score.rank);
    }
    out.push_back('}');
  }
  out.push_back(']');
}

}  // namespace kvasir
