#include <gmock/gmock.h>

#include <bit>
#include <limits>
#include <map>
#include <set>

#include "tests/kernels/kv_fixture.h"

namespace kvasir::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class SampleTest : public ::testing::TestWithParam<DeviceChoice> {
 protected:
  std::vector<SampleResult> Sample(const std::vector<float>& logits, int vocab, const std::vector<SampleRow>& rows) {
    auto* p = static_cast<float*>(device_->Allocate(logits.size() * 4, "logits").value());
    device_->CopyToDevice(p, logits.data(), logits.size() * 4);
    std::vector<SampleResult> results(rows.size());
    device_->Sample(p, vocab, rows, results);
    std::vector<float> after(logits.size());
    device_->CopyToHost(after.data(), p, logits.size() * 4);
    EXPECT_EQ(std::memcmp(after.data(), logits.data(), logits.size() * 4), 0) << "the sampler changed the logits";
    device_->Free(p);
    return results;
  }
  SampleResult One(const std::vector<float>& logits, const SamplingParams& params, SampleRow row = {}) {
    row.params = &params;
    return Sample(logits, int(logits.size()), {row})[0];
  }
  // The tokens that `draws` draws with counters 0, 1, ... give.
  std::map<int32_t, int> Histogram(const std::vector<float>& logits, const SamplingParams& params, int draws,
                                   uint64_t stream = 0) {
    const int vocab = int(logits.size());
    std::vector<float> rows;
    std::vector<SampleRow> requests;
    for (int i = 0; i < draws; ++i) {
      rows.insert(rows.end(), logits.begin(), logits.end());
      requests.push_back({&params, {}, {}, {}, stream, uint64_t(i)});
    }
    std::map<int32_t, int> histogram;
    for (const SampleResult& r : Sample(rows, vocab, requests)) {
      EXPECT_TRUE(r.finite);
      ++histogram[r.token];
    }
    return histogram;
  }

  std::unique_ptr<Device> device_ = MakeDevice(GetParam());
};

SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

TEST_P(SampleTest, GreedyTakesTheLargestAndTheLowerIdOfATie) {
  EXPECT_EQ(One({1, 3, 2}, Greedy()).token, 1);
  EXPECT_EQ(One({1, 3, 3, 2}, Greedy()).token, 1);
  EXPECT_EQ(One({-kInf, -kInf, -5}, Greedy()).token, 2);
  EXPECT_EQ(One({-7}, Greedy()).token, 0);
  std::vector<float> wide(70'001, -1.0f);
  wide[65'537] = wide[66'000] = 2;
  EXPECT_EQ(One(wide, Greedy()).token, 65'537);
  SamplingParams params = Greedy();  // filters cannot change the arg-max
  params.top_k = 1, params.top_p = 0.01f, params.min_p = 1;
  EXPECT_EQ(One(wide, params).token, 65'537);
}

TEST_P(SampleTest, PenaltiesByHand) {
  SamplingParams params = Greedy();
  SampleRow row;
  const std::vector<int32_t> prompt = {0, 0, 9}, output = {1, 1, 2};
  row.prompt = prompt, row.output = output;

  params.repetition_penalty = 2;  // seen: 4 / 2, 6 / 2, -1 * 2; unseen token 3 stays
  EXPECT_EQ(One({4, 6, -1, 3.1f}, params, row).token, 3);
  EXPECT_EQ(One({4, 6.4f, -1, 3.1f}, params, row).token, 1);
  EXPECT_EQ(One({-1, -1.5f, -1, -1.9f}, params, row).token, 3);  // -2, -3, -2, -1.9

  params.repetition_penalty = 1, params.frequency_penalty = 1;  // output only: token 1 loses 2, token 2 loses 1
  EXPECT_EQ(One({5, 6.9f, 5.8f, 0}, params, row).token, 0);
  EXPECT_EQ(One({5, 7.1f, 5.8f, 0}, params, row).token, 1);
  EXPECT_EQ(One({5, 6.9f, 6.1f, 0}, params, row).token, 2);

  params.frequency_penalty = 0, params.presence_penalty = 1.5f;  // once, however often
  EXPECT_EQ(One({5, 6.4f, 6.4f, 0}, params, row).token, 0);
  EXPECT_EQ(One({5, 6.6f, 6.4f, 0}, params, row).token, 1);

  params.presence_penalty = -2;  // a reward
  EXPECT_EQ(One({5, 2, 3.5f, 0}, params, row).token, 2);

  params = Greedy();
  params.repetition_penalty = 2, params.presence_penalty = 1;  // repetition first: 6 / 2 - 1
  EXPECT_EQ(One({0, 6, 0, 2.1f}, params, row).token, 3);
  EXPECT_EQ(One({0, 6, 0, 1.9f}, params, row).token, 1);

  const std::vector<int32_t> strange = {-1, 4, 1 << 30};  // ids that are no token are passed over
  row.prompt = strange, row.output = strange;
  EXPECT_EQ(One({1, 2, 3, 4}, params, row).token, 3);
}

TEST_P(SampleTest, MasksAndBiasByHand) {
  SamplingParams params = Greedy();
  params.allowed_token_ids = {2, 0, 99};
  EXPECT_EQ(One({1, 9, 2, 8}, params).token, 2);
  params.logit_bias = {{1, 100.0f}, {0, 1.5f}};  // bias cannot unmask
  EXPECT_EQ(One({1, 9, 2, 8}, params).token, 0);
  const std::vector<int32_t> suppressed = {0};
  SampleRow row;
  row.suppressed = suppressed;
  EXPECT_EQ(One({1, 9, 2, 8}, params, row).token, 2);
  params.allowed_token_ids.clear();
  params.logit_bias = {{1, -5.0f}, {1, -5.0f}, {700, 100.0f}};  // twice is twice; unknown ids are passed over
  EXPECT_EQ(One({1, 9, 2, -2}, params, row).token, 2);
}

TEST_P(SampleTest, RowsThatCannotBeSampledSaySo) {
  SamplingParams greedy = Greedy(), drawn, logprobs;
  drawn.top_p = 0.9f;
  logprobs.num_logprobs = 3;
  for (int vocab : {1, 5, 40, 1000}) {
    for (const SamplingParams* params : {&greedy, &drawn, &logprobs}) {
      for (float bad : {kNan, -kNan, kInf}) {
        for (int at : {0, vocab / 2, vocab - 1}) {
          std::vector<float> logits(vocab, 0.5f);
          logits[at] = bad;
          const SampleResult r = One(logits, *params);
          EXPECT_FALSE(r.finite) << vocab << " " << bad;
          EXPECT_GE(r.token, 0);
          EXPECT_LT(r.token, vocab);
        }
      }
      EXPECT_FALSE(One(std::vector<float>(vocab, -kInf), *params).finite);
      SamplingParams none = *params;
      none.allowed_token_ids = {vocab + 1};
      EXPECT_FALSE(One(std::vector<float>(vocab, 1.0f), none).finite);
      const std::vector<int32_t> last = {vocab - 1};
      SampleRow row;
      row.suppressed = last;
      std::vector<float> only(vocab, -kInf);
      only[vocab - 1] = 1;
      EXPECT_FALSE(One(only, *params, row).finite);
      EXPECT_TRUE(One(only, *params).finite);
      EXPECT_EQ(One(only, *params).token, vocab - 1);
    }
  }
}

TEST_P(SampleTest, ABadRowLeavesItsNeighboursAlone) {
  SamplingParams params;
  params.num_logprobs = 2;
  const int vocab = 300;
  Rng rng(5);
  std::vector<float> clean(vocab * 3);
  for (float& l : clean) l = float(rng.Uniform() * 8);
  std::vector<float> mixed = clean;
  for (int i = 0; i < vocab; ++i) mixed[vocab + i] = i % 2 ? kNan : kInf;
  std::vector<SampleRow> rows(3);
  for (int i = 0; i < 3; ++i) rows[i] = {&params, {}, {}, {}, 0, uint64_t(i)};
  const auto want = Sample(clean, vocab, rows), got = Sample(mixed, vocab, rows);
  EXPECT_FALSE(got[1].finite);
  for (int i : {0, 2}) {
    EXPECT_TRUE(got[i].finite);
    EXPECT_EQ(got[i].token, want[i].token);
    EXPECT_EQ(got[i].logprob, want[i].logprob);
  }
}

TEST_P(SampleTest, DrawsFollowTheDistribution) {
  // Chi-square with 7 degrees of freedom: 29.9 is exceeded once in 10,000 correct samplers; the seeds are fixed.
  const std::vector<float> logits = {0, 1, -1, 2, 0.5f, 1.5f, -2, 0};
  constexpr int kDraws = 8'000;
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    for (uint64_t seed : {1u, 2u, 77u}) {
      SamplingParams params;
      params.temperature = temperature;
      params.seed = seed;
      auto histogram = Histogram(logits, params, kDraws);
      double total = 0, chi = 0;
      for (float l : logits) total += std::exp(l / temperature);
      for (int i = 0; i < 8; ++i) {
        const double want = kDraws * std::exp(logits[i] / temperature) / total;
        chi += (histogram[i] - want) * (histogram[i] - want) / want;
      }
      EXPECT_LT(chi, 29.9) << "seed " << seed << " temperature " << temperature;
    }
  }
}

TEST_P(SampleTest, FiltersKeepExactlyTheirTokens) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.2f), std::log(0.1f)};
  const auto kept = [&](const SamplingParams& params) {
    std::set<int32_t> tokens;
    for (const auto& [token, n] : Histogram(logits, params, 200)) tokens.insert(token);
    return tokens;
  };
  using ::testing::ElementsAre;
  SamplingParams params;
  EXPECT_THAT(kept(params), ElementsAre(0, 1, 2, 3, 4));
  params.top_k = 1;
  EXPECT_THAT(kept(params), ElementsAre(1));
  params.top_k = 2;  // the tie at 0.2 goes to the lower id
  EXPECT_THAT(kept(params), ElementsAre(1, 2));
  params.top_k = 4;
  EXPECT_THAT(kept(params), ElementsAre(0, 1, 2, 3));
  params.top_k = 100;
  EXPECT_THAT(kept(params), ElementsAre(0, 1, 2, 3, 4));
  params.top_k = 0, params.top_p = 1e-6f;
  EXPECT_THAT(kept(params), ElementsAre(1));
  params.top_p = 0.39f;
  EXPECT_THAT(kept(params), ElementsAre(1));
  params.top_p = 0.5f;  // the token that crosses is kept
  EXPECT_THAT(kept(params), ElementsAre(1, 2));
  params.top_p = 0.7f;
  EXPECT_THAT(kept(params), ElementsAre(1, 2, 3));
  params.top_p = 0.95f;
  EXPECT_THAT(kept(params), ElementsAre(0, 1, 2, 3, 4));
  params.top_k = 3, params.top_p = 0.7f;  // of 0.8 that top_k leaves: 0.6 / 0.8 = 0.75
  EXPECT_THAT(kept(params), ElementsAre(1, 2));
  params.top_k = 0, params.top_p = 1, params.min_p = 0.4f;
  EXPECT_THAT(kept(params), ElementsAre(1, 2, 3));
  params.min_p = 0.6f;
  EXPECT_THAT(kept(params), ElementsAre(1));
  params.min_p = 1;
  EXPECT_THAT(kept(params), ElementsAre(1));
  params.min_p = 0.2f, params.top_p = 0.9f, params.temperature = 0.5f;  // 0.1, 0.4 -> 1 : 16 is below 0.2
  EXPECT_THAT(kept(params), ElementsAre(1, 2, 3));
}

TEST_P(SampleTest, ExtremeTemperatures) {
  SamplingParams params;
  for (float cold : {1e-3f, 1e-20f, 1e-40f}) {
    params.temperature = cold;
    EXPECT_EQ(One({1, 5, 4.9f, -kInf}, params).token, 1) << cold;
    params.top_p = 0.5f;
    EXPECT_EQ(One({1, 5, 4.9f, -kInf}, params).token, 1) << cold;
    params.top_p = 1;
  }
  params.temperature = 1e6f;  // nearly even
  const auto histogram = Histogram({1, 50, -300, 7}, params, 4000);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(histogram.at(i), 1000, 150);
  params.temperature = 1;
  EXPECT_EQ(One({3e38f, -3e38f, 0}, params).token, 0);
}

TEST_P(SampleTest, ADrawDependsOnSeedStreamAndCounterOnly) {
  const int vocab = 500, rows = 64;
  Rng rng(3);
  std::vector<float> logits(vocab);
  for (float& l : logits) l = float(rng.Uniform() * 3);
  SamplingParams a, b;
  b.seed = 9;
  std::vector<float> many;
  std::vector<SampleRow> requests;
  for (int i = 0; i < rows; ++i) {
    many.insert(many.end(), logits.begin(), logits.end());
    requests.push_back({i % 2 ? &a : &b, {}, {}, {}, uint64_t(i % 5), uint64_t(i / 7)});
  }
  const auto together = Sample(many, vocab, requests);
  std::set<int32_t> tokens;
  for (int i = rows - 1; i >= 0; --i) {
    EXPECT_EQ(Sample(logits, vocab, {requests[i]})[0].token, together[i].token) << i;
    tokens.insert(together[i].token);
  }
  EXPECT_GT(tokens.size(), 20u);
}

TEST_P(SampleTest, LogprobsAreOfTheRawLogits) {
  SamplingParams params = Greedy();
  params.num_logprobs = 3;
  params.logit_bias = {{3, 100.0f}};
  const std::vector<float> logits = {std::log(0.25f), std::log(0.5f), std::log(0.125f), std::log(0.125f)};
  const SampleResult r = One(logits, params);
  EXPECT_EQ(r.token, 3);
  EXPECT_NEAR(r.logprob, std::log(0.125), 1e-6);
  EXPECT_EQ(r.rank, 4);  // token 2 is as likely and has the lower id
  ASSERT_EQ(r.top.size(), 3u);
  EXPECT_EQ(r.top[0].token, 1);
  EXPECT_EQ(r.top[1].token, 0);
  EXPECT_EQ(r.top[2].token, 2);
  EXPECT_NEAR(r.top[0].logprob, std::log(0.5), 1e-6);
  params.num_logprobs = 0;
  EXPECT_TRUE(One(logits, params).top.empty());
  EXPECT_EQ(One(logits, params).rank, 4);
  params.num_logprobs = 20;  // more than there are
  EXPECT_EQ(One(logits, params).top.size(), 4u);
}

TEST_P(SampleTest, ScoresGivenTokens) {
  const int vocab = 1000, rows = 5;
  Rng rng(8);
  std::vector<float> logits(vocab * rows);
  for (float& l : logits) l = float(rng.Uniform() * 10 - 5);
  logits[3 * vocab + 17] = kNan;
  logits[4 * vocab + 5] = -kInf;
  auto* p = static_cast<float*>(device_->Allocate(logits.size() * 4, "logits").value());
  device_->CopyToDevice(p, logits.data(), logits.size() * 4);
  const std::vector<int32_t> tokens = {0, 999, 500, 1, 5}, num_top = {0, 1, 20, 2, 3};
  std::vector<SampleResult> got(rows), want(rows);
  device_->ScoreTokens(p, vocab, tokens, num_top, got);
  const auto reference = MakeReferenceDevice();
  reference->ScoreTokens(logits.data(), vocab, tokens, num_top, want);
  for (int i = 0; i < rows; ++i) {
    EXPECT_EQ(got[i].token, tokens[i]);
    EXPECT_EQ(got[i].finite, i != 3);
    if (i == 3) continue;
    if (i == 4) {
      EXPECT_EQ(got[i].logprob, -kInf);
      EXPECT_EQ(got[i].rank, vocab);
    } else {
      EXPECT_NEAR(got[i].logprob, want[i].logprob, 1e-5);
      EXPECT_EQ(got[i].rank, want[i].rank);
    }
    ASSERT_EQ(got[i].top.size(), size_t(num_top[i]));
    for (size_t j = 0; j < got[i].top.size(); ++j) EXPECT_EQ(got[i].top[j].token, want[i].top[j].token);
  }
}

// Everything at once, against the definition: the fast sampler must choose the token the oracle chooses.
TEST_P(SampleTest, AgreesWithTheDefinitionOnRandomRequests) {
  const auto reference = MakeReferenceDevice();
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed, 4);
    constexpr int kVocabs[] = {1, 2, 17, 100, 255, 256, 257, 700, 3000};
    const int vocab = kVocabs[rng.Below(std::size(kVocabs))];
    const double spread = std::pow(10.0, rng.Uniform() * 3 - 1);
    std::vector<float> logits(vocab);
    for (float& l : logits) l = float((rng.Uniform() + rng.Uniform() + rng.Uniform() - 1.5) * spread);
    if (rng.Chance(0.3)) {  // ties
      for (float& l : logits) l = std::round(l);
    }
    if (rng.Chance(0.2)) {
      for (float& l : logits) l = rng.Chance(0.5) ? -kInf : l;
    }
    const auto some_ids = [&](int most) {
      std::vector<int32_t> ids(rng.Below(most));
      for (int32_t& id : ids) id = int32_t(rng.Between(-1, vocab));
      return ids;
    };
    SamplingParams params;
    params.temperature = rng.Chance(0.2) ? 0 : float(0.1 + rng.Uniform() * 2);
    if (rng.Chance(0.4)) params.top_k = int32_t(rng.Between(1, 2 * vocab > 60 && rng.Chance(0.7) ? 60 : 2 * vocab));
    if (rng.Chance(0.4)) params.top_p = float(std::max(1e-3, rng.Chance(0.1) ? 0.999999 : rng.Uniform()));
    if (rng.Chance(0.3)) params.min_p = float(rng.Uniform() * rng.Uniform());
    if (rng.Chance(0.3)) params.repetition_penalty = float(0.5 + rng.Uniform() * 1.5);
    if (rng.Chance(0.3)) params.frequency_penalty = float(rng.Uniform() * 4 - 2);
    if (rng.Chance(0.3)) params.presence_penalty = float(rng.Uniform() * 4 - 2);
    if (rng.Chance(0.2)) params.allowed_token_ids = some_ids(40);
    if (rng.Chance(0.3)) {
      for (int32_t id : some_ids(10)) params.logit_bias.push_back({id, float(rng.Uniform() * 20 - 10)});
    }
    params.seed = rng.Next();
    params.num_logprobs = int32_t(rng.Between(-1, 20));
    const auto prompt = some_ids(50), output = some_ids(50), suppressed = some_ids(4);
    for (uint64_t counter = 0; counter < 3; ++counter) {
      const SampleRow row = {&params, prompt, output, suppressed, seed % 3, counter};
      SampleResult want;
      reference->Sample(logits.data(), vocab, {&row, 1}, {&want, 1});
      const SampleResult got = Sample(logits, vocab, {row})[0];
      ASSERT_EQ(got.finite, want.finite);
      ASSERT_EQ(got.token, want.token);
      if (!want.finite || params.num_logprobs < 0) continue;
      ASSERT_EQ(got.rank, want.rank);
      ASSERT_NEAR(got.logprob, want.logprob, 2e-5);
      ASSERT_EQ(got.top.size(), want.top.size());
      for (size_t i = 0; i < want.top.size(); ++i) {
        ASSERT_EQ(got.top[i].token, want.top[i].token);
        if (std::isfinite(want.top[i].logprob)) {
          ASSERT_NEAR(got.top[i].logprob, want.top[i].logprob, 2e-5);
        } else {
          ASSERT_EQ(got.top[i].logprob, want.top[i].logprob);
        }
      }
    }
  }
}

// Vocabularies of many tiles, filters that keep few and many tokens, and ties across all of the row.
TEST_P(SampleTest, AgreesWithTheDefinitionOnWideRows) {
  const auto reference = MakeReferenceDevice();
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed, 5);
    const int vocab = int(rng.Between(4000, 20'000));
    const double spread = std::pow(10.0, rng.Uniform() * 2 - 1);
    std::vector<float> logits(vocab);
    for (float& l : logits) l = float((rng.Uniform() + rng.Uniform() + rng.Uniform() - 1.5) * spread);
    if (seed % 3 == 0) {  // ties
      for (float& l : logits) l = std::round(l * 4) / 4;
    }
    SamplingParams params;
    params.temperature = float(0.3 + rng.Uniform());
    if (seed % 4 >= 2) params.top_k = int32_t(rng.Between(1, rng.Chance(0.5) ? vocab : 60));
    if (seed % 2 == 1) params.top_p = float(0.05 + 0.949 * rng.Uniform());
    if (seed % 5 == 0) params.min_p = float(rng.Uniform() * 0.5);
    if (seed % 6 == 0) params.repetition_penalty = 1.3f;
    params.seed = rng.Next();
    params.num_logprobs = seed % 4 == 1 ? int32_t(rng.Between(0, 100)) : -1;
    std::vector<int32_t> prompt(3000);
    for (int32_t& id : prompt) id = int32_t(rng.Below(vocab));
    for (uint64_t counter = 0; counter < 3; ++counter) {
      const SampleRow row = {&params, prompt, {}, {}, 0, counter};
      SampleResult want;
      reference->Sample(logits.data(), vocab, {&row, 1}, {&want, 1});
      const SampleResult got = Sample(logits, vocab, {row})[0];
      ASSERT_EQ(got.finite, want.finite);
      ASSERT_EQ(got.token, want.token);
      if (params.num_logprobs < 0) continue;
      ASSERT_EQ(got.rank, want.rank);
      ASSERT_NEAR(got.logprob, want.logprob, 2e-5);
      ASSERT_EQ(got.top.size(), want.top.size());
      for (size_t i = 0; i < want.top.size(); ++i) ASSERT_EQ(got.top[i].token, want.top[i].token);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, SampleTest, ::testing::ValuesIn(AllDevices()), ChoiceName);

}  // namespace
}  // namespace kvasir::testing
