// StopMatcher against a plain search, over all ways to cut a text.
#include "server/stop_matcher.h"

#include <random>

#include "gtest/gtest.h"

namespace kvasir {
namespace {

struct Outcome {
  std::string text;
  std::string matched;
  bool operator==(const Outcome&) const = default;
};

Outcome Feed(const std::string& text, const std::vector<std::string>& stops, bool include, const std::vector<size_t>& cuts) {
  StopMatcher matcher(&stops, include);
  Outcome outcome;
  size_t at = 0;
  for (size_t i = 0; i <= cuts.size(); ++i) {
    const size_t end = i < cuts.size() ? cuts[i] : text.size();
    if (matcher.Append(text.substr(at, end - at), outcome.text)) {
      outcome.matched = matcher.matched();
      return outcome;
    }
    at = end;
  }
  matcher.Finish(outcome.text);
  return outcome;
}

// The stop string that is complete first; among those, the one that began first.
Outcome Search(const std::string& text, const std::vector<std::string>& stops, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0 && stop.size() > best.size()) best = stop;
    }
    if (!best.empty()) return {text.substr(0, include ? end : end - best.size()), best};
  }
  return {text, ""};
}

TEST(StopMatcher, AllCutsGiveTheSame) {
  const std::vector<std::vector<std::string>> sets = {{"STOP"},         {"aab"}, {"ab", "aab"}, {"b", "ab"}, {"aaaa"},
                                                      {"\xE4\xBD\xA0"}, {}};
  const std::vector<std::string> texts = {"xxSTOPyy", "aaaaab", "aab", "xSTOSTOPx", "STO", "aaaaaaaa", "q\xE4\xBD\xA0z", ""};
  for (const auto& stops : sets) {
    for (const std::string& text : texts) {
      for (const bool include : {false, true}) {
        const Outcome expected = Search(text, stops, include);
        const size_t places = text.empty() ? 0 : text.size() - 1;
        for (uint32_t mask = 0; mask < (1u << places); ++mask) {
          std::vector<size_t> cuts;
          for (size_t i = 0; i < places; ++i) {
            if (mask >> i & 1) cuts.push_back(i + 1);
          }
          ASSERT_EQ(Feed(text, stops, include, cuts), expected) << text << " cut by " << mask;
        }
      }
    }
  }
}

TEST(StopMatcher, RandomTextsAgreeWithTheSearch) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20000; ++round) {
    const auto word = [&](size_t longest) {
      std::string text;
      for (size_t i = 1 + random() % longest; i > 0; --i) text.push_back("ab\xC3"[random() % 3]);
      return text;
    };
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(word(5));
    const std::string text = word(30);
    std::vector<size_t> cuts;
    for (size_t i = 1; i < text.size(); ++i) {
      if (random() % 2) cuts.push_back(i);
    }
    const bool include = random() % 2;
    ASSERT_EQ(Feed(text, stops, include, cuts), Search(text, stops, include)) << text;
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatCouldBecomeAStop) {
  const std::vector<std::string> stops = {"STOP"};
  StopMatcher matcher(&stops, false);
  std::string out;
  EXPECT_FALSE(matcher.Append("all STO", out));
  EXPECT_EQ(out, "all ");
  EXPECT_FALSE(matcher.Append("RE", out));
  EXPECT_EQ(out, "all STORE");
}

}  // namespace
}  // namespace kvasir
