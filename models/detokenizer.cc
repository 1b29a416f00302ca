#include "models/detokenizer.h"

#include <algorithm>
#include <utility>

#include "models/unicode.h"

namespace kvasir {

IncrementalDetokenizer::IncrementalDetokenizer(const Tokenizer* tokenizer, bool skip_special_tokens, std::span<const int32_t> prompt)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens), strip_left_(tokenizer->decoder_.start_strip().count) {
  const auto decoded = [&](int32_t id) { return tokenizer_->IsKnown(id) && !(skip_special_tokens_ && tokenizer_->IsSpecial(id)); };
  // Only the last few bytes of the prompt can be an unfinished character; four decoded tokens are enough to hold them.
  size_t from = prompt.size();
  int kept = 0;
  for (; from > 0 && kept < 4; --from) kept += decoded(prompt[from - 1]) ? 1 : 0;
  if (kept == 0) return;
  for (const int32_t id : prompt.subspan(from)) Append(id);
  at_start_ = false;
  // A long prompt may have begun with the characters to drop; whether it did no longer matters after four tokens.
  if (kept == 4) strip_left_ = 0;
}

std::string IncrementalDetokenizer::Append(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return {};
  const std::string* piece = tokenizer_->Piece(id);
  if (piece == nullptr) return {};
  if (!tokenizer_->decoder_.last_differs()) return Decode(*piece, false);
  const std::string* before = std::exchange(held_, piece);
  return before == nullptr ? std::string() : Decode(*before, false);
}

std::string IncrementalDetokenizer::Decode(const std::string& piece, bool last) {
  std::string bytes = tokenizer_->decoder_.DecodeOne(piece, at_start_, last);
  at_start_ = false;
  return Take(std::move(bytes));
}

std::string IncrementalDetokenizer::Take(std::string bytes) {
  const std::string& strip = tokenizer_->decoder_.start_strip().character;
  while (strip_left_ > 0 && !bytes.empty()) {
    if (!bytes.starts_with(strip)) {
      strip_left_ = 0;
    } else {
      bytes.erase(0, strip.size());
      --strip_left_;
    }
  }
  pending_ += bytes;
  std::string text;
  pending_.erase(0, AppendLossyUtf8(pending_, false, &text));
  return text;
}

std::string IncrementalDetokenizer::Finish() {
  std::string text;
  if (const std::string* last = std::exchange(held_, nullptr)) text = Decode(*last, true);
  AppendLossyUtf8(pending_, true, &text);
  pending_.clear();
  return text;
}

}  // namespace kvasir
