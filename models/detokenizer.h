// IncrementalDetokenizer: one token at a time to text, for streaming.
//
// One per streamed choice, used by the server's I/O threads; not thread-safe, and the Tokenizer must outlive it. It never splits a
// character: bytes wait until their character is complete, and come out as U+FFFD only when it cannot become valid any
// more. O(length of the token) per call. The texts of all Append() calls and Finish() together are the text that Tokenizer::Decode
// gives for prompt and answer, less what it gives for the prompt. One difference is wanted: where a run of <0xNN> tokens is
// not valid as a whole, Decode blanks all of it, which a stream cannot take back; here the valid characters stay.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "models/tokenizer.h"

namespace kvasir {

class IncrementalDetokenizer {
 public:
  // `prompt` is what stands before the first token: the whole prompt, or enough of its end to hold one token that is not skipped.
  // It decides whether a leading space is dropped, and its last bytes, where they are half a character, join the first token.
  IncrementalDetokenizer(const Tokenizer* tokenizer, bool skip_special_tokens, std::span<const int32_t> prompt);

  std::string Append(int32_t id);  // the text that is complete now, possibly empty
  std::string Finish();            // what was held back

 private:
  std::string Decode(const std::string& piece, bool last);
  std::string Take(std::string bytes);  // adds bytes, returns the complete text

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool at_start_ = true;      // no token has been decoded yet
  int64_t strip_left_ = 0;    // characters still to be dropped at the start of the text
  std::string pending_;       // the beginning of a character
  const std::string* held_ = nullptr;  // a token that waits for the next, where the last one is written differently
};

}  // namespace kvasir
