// StopMatcher: finds stop strings in a text that arrives in pieces, and holds back exactly the text that could still become one.
// One per choice, on the loop's thread. What it lets out never depends on how the text was cut into pieces.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace kvasir {

class StopMatcher {
 public:
  // `stops` outlive the matcher and hold no empty string.
  StopMatcher(const std::vector<std::string>* stops, bool include_stop) : stops_(stops), include_stop_(include_stop) {}

  // Appends what is certain now to `out`. When a stop string is complete: the text before it (with it, if wanted), and true; the
  // matcher is done then. The one that is complete first wins; among several complete at the same byte, the one that began first.
  bool Append(std::string_view text, std::string& out) {
    if (stops_->empty()) {
      out += text;
      return false;
    }
    held_ += text;
    size_t best_begin = std::string::npos, best_end = std::string::npos;
    for (const std::string& stop : *stops_) {
      const size_t begin = held_.find(stop);
      if (begin == std::string::npos) continue;
      const size_t end = begin + stop.size();
      if (end < best_end || (end == best_end && begin < best_begin)) {
        best_begin = begin;
        best_end = end;
        matched_ = stop;
      }
    }
    if (best_end != std::string::npos) {
      out.append(held_, 0, include_stop_ ? best_end : best_begin);
      held_.clear();
      return true;
    }
    const size_t keep = LongestPossibleStart();
    out.append(held_, 0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return false;
  }

  // The end of the text: nothing can become a stop string any more.
  void Finish(std::string& out) {
    out += held_;
    held_.clear();
  }
  std::string_view matched() const { return matched_; }

 private:
  // Length of the longest end of held_ that is a proper beginning of a stop string.
  size_t LongestPossibleStart() const {
    size_t longest = 0;
    const std::string_view held = held_;
    for (const std::string& stop : *stops_) {
      for (size_t length = std::min(stop.size() - 1, held.size()); length > longest; --length) {
        if (held.substr(held.size() - length) == std::string_view(stop).substr(0, length)) longest = length;
      }
    }
    return longest;
  }

  const std::vector<std::string>* stops_;
  bool include_stop_;
  std::string held_;
  std::string_view matched_;
};

}  // namespace kvasir
