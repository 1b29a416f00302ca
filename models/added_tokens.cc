#include "models/added_tokens.h"

#include <algorithm>

#include "models/unicode.h"

namespace kvasir {

void AddedTokenMatcher::Add(const AddedToken& token) {
  const std::string_view written = token.written;
  if (written.empty()) return;
  uint32_t node = 0;
  for (size_t i = 0; i < written.size(); ++i) {
    const auto byte = static_cast<uint8_t>(written[i]);
    uint32_t& next = i == 0 ? root_[byte] : children_[static_cast<uint64_t>(node) << 8 | byte];
    if (next == 0) {
      next = static_cast<uint32_t>(terminal_.size());
      terminal_.push_back(-1);
    }
    node = next;
  }
  if (terminal_[node] >= 0) return;
  terminal_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

int AddedTokenMatcher::LongestAt(std::string_view text, size_t at, size_t* length) const {
  int found = -1;
  uint32_t node = root_[static_cast<uint8_t>(text[at])];
  for (size_t i = at + 1; node != 0; ++i) {
    if (terminal_[node] >= 0) {
      found = terminal_[node];
      *length = i - at;
    }
    if (i >= text.size()) break;
    const auto it = children_.find(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(text[i]));
    node = it == children_.end() ? 0 : it->second;
  }
  return found;
}

void AddedTokenMatcher::Cut(std::string_view text, std::vector<TextSegment>* segments) const {
  size_t done = 0;  // everything before is in a segment
  size_t at = 0;
  while (!tokens_.empty() && at < text.size()) {
    size_t length = 0;
    const int index = LongestAt(text, at, &length);
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = at, end = at + length;
    at = end;
    if (token.single_word) {
      const bool word_before = begin > 0 && IsWord(CharacterAt(text, PreviousCharacter(text, begin)).code);
      const bool word_after = end < text.size() && IsWord(CharacterAt(text, end).code);
      if (word_before || word_after) continue;
    }
    if (token.lstrip) {
      while (begin > done) {
        const size_t previous = PreviousCharacter(text, begin);
        if (!IsWhitespace(CharacterAt(text, previous).code)) break;
        begin = previous;
      }
      begin = std::max(begin, done);
    }
    if (token.rstrip) {
      while (end < text.size()) {
        const Character c = CharacterAt(text, end);
        if (!IsWhitespace(c.code)) break;
        end += c.length;
      }
    }
    begin = std::min(begin, end);  // the token before may have taken the white space this one begins with
    if (begin > done) segments->push_back({text.substr(done, begin - done), -1});
    segments->push_back({text.substr(begin, end - begin), token.id});
    done = end;
  }
  if (done < text.size()) segments->push_back({text.substr(done), -1});
}

}  // namespace kvasir
