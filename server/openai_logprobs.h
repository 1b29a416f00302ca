// Log-probabilities as OpenAI and vLLM write them: the chat form (one object per token), the legacy form of completions (four
// parallel arrays), and vLLM's prompt_logprobs. Appended as JSON text. Used by openai_response.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/sampling.h"
#include "models/tokenizer.h"

namespace kvasir {

struct TokenNaming {
  const Tokenizer* tokenizer = nullptr;
  bool as_ids = false;        // "token_id:42" instead of the text
  bool hide_special = false;  // special tokens have no text, as in the answer's text
};

// The text of one token. A token may be part of a character: what is not valid UTF-8 shows as U+FFFD, the bytes tell the truth.
std::string TokenString(const TokenNaming& naming, int32_t token);

// {"token":...,"logprob":...,"bytes":[...],"top_logprobs":[...]}
void AppendChatLogprob(std::string& out, const TokenNaming& naming, const SampleResult& sample);

// The four arrays of the legacy form, without their brackets.
struct LegacyLogprobs {
  std::string tokens, token_logprobs, top_logprobs, text_offset;
  int64_t offset = 0;  // characters of text before the next token

  void Add(const TokenNaming& naming, const SampleResult& sample);
  void AddFirst(const TokenNaming& naming, int32_t token,
                const std::string& text);  // the prompt's first token has no log-probability
  void AddNamed(const std::string& name, const std::string& text, const TokenNaming& naming, const SampleResult& sample);
  void AppendJson(std::string& out) const;
  void Clear();  // keeps the offset

 private:
  void AddToken(const std::string& name, const std::string& text);
};

// [null,{"42":{"logprob":-0.5,"rank":1,"decoded_token":"x"},...},...]
void AppendPromptLogprobs(std::string& out, const TokenNaming& naming, std::span<const SampleResult> scores);

}  // namespace kvasir
