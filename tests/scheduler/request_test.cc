// Every limit of a request, and the messages that name the field, the value and the remedy.
#include "scheduler/request.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvasir {
namespace {

RequestLimits SomeLimits() {
  return {.vocab_size = 100,
          .max_model_len = 64,
          .pool_tokens = 48,
          .block_tokens = 16,
          .max_n = 8,
          .max_logprobs = 20,
          .max_stop_token_ids = 4,
          .max_logit_bias = 3};
}

RequestDraft SomeDraft() {
  RequestDraft draft;
  draft.prompt = {1, 2, 3};
  draft.max_tokens = 5;
  return draft;
}

struct BadCase {
  const char* name;
  const char* field;
  void (*spoil)(RequestDraft&);
  StatusCode code = StatusCode::kInvalidArgument;
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

const BadCase kBadCases[] = {
    {"EmptyPrompt", "prompt", [](RequestDraft& d) { d.prompt.clear(); }},
    {"NegativeId", "prompt", [](RequestDraft& d) { d.prompt[1] = -1; }},
    {"IdPastVocabulary", "prompt", [](RequestDraft& d) { d.prompt[1] = 100; }},
    {"PromptFillsContext", "prompt", [](RequestDraft& d) { d.prompt.assign(64, 1); }, StatusCode::kOutOfRange},
    {"PromptOverPool", "prompt", [](RequestDraft& d) { d.prompt.assign(49, 1), d.max_tokens.reset(); }, StatusCode::kOutOfRange},
    {"MaxTokensZero", "max_tokens", [](RequestDraft& d) { d.max_tokens = 0; }},
    {"MaxTokensNegative", "max_tokens", [](RequestDraft& d) { d.max_tokens = INT64_MIN; }},
    {"MaxTokensOverContext", "max_tokens", [](RequestDraft& d) { d.max_tokens = 62; }, StatusCode::kOutOfRange},
    {"MaxTokensHuge", "max_tokens", [](RequestDraft& d) { d.max_tokens = INT64_MAX; }, StatusCode::kOutOfRange},
    {"MaxTokensOverPool", "max_tokens", [](RequestDraft& d) { d.max_tokens = 47; }, StatusCode::kOutOfRange},
    {"MinTokensNegative", "min_tokens", [](RequestDraft& d) { d.min_tokens = -1; }},
    {"MinTokensOverMax", "min_tokens", [](RequestDraft& d) { d.min_tokens = 6; }},
    {"NZero", "n", [](RequestDraft& d) { d.n = 0; }},
    {"NTooMany", "n", [](RequestDraft& d) { d.n = 9; }},
    {"StopIdsTooMany", "stop_token_ids", [](RequestDraft& d) { d.stop_token_ids.assign(5, 1); }},
    {"StopIdPastVocabulary", "stop_token_ids", [](RequestDraft& d) { d.stop_token_ids = {100}; }},
    {"TemperatureNan", "temperature", [](RequestDraft& d) { d.sampling.temperature = kNan; }},
    {"TemperatureNegative", "temperature", [](RequestDraft& d) { d.sampling.temperature = -0.1f; }},
    {"TemperatureHigh", "temperature", [](RequestDraft& d) { d.sampling.temperature = 2.1f; }},
    {"TopPZero", "top_p", [](RequestDraft& d) { d.sampling.top_p = 0; }},
    {"TopPHigh", "top_p", [](RequestDraft& d) { d.sampling.top_p = 1.5f; }},
    {"TopPInf", "top_p", [](RequestDraft& d) { d.sampling.top_p = kInf; }},
    {"MinPNegative", "min_p", [](RequestDraft& d) { d.sampling.min_p = -1; }},
    {"PresenceLow", "presence_penalty", [](RequestDraft& d) { d.sampling.presence_penalty = -2.5f; }},
    {"FrequencyInf", "frequency_penalty", [](RequestDraft& d) { d.sampling.frequency_penalty = -kInf; }},
    {"RepetitionZero", "repetition_penalty", [](RequestDraft& d) { d.sampling.repetition_penalty = 0; }},
    {"TopKNegative", "top_k", [](RequestDraft& d) { d.sampling.top_k = -1; }},
    {"LogprobsTooMany", "logprobs", [](RequestDraft& d) { d.sampling.num_logprobs = 21; }},
    {"PromptLogprobsTooMany", "prompt_logprobs", [](RequestDraft& d) { d.sampling.num_prompt_logprobs = 21; }},
    {"PromptLogprobsLow", "prompt_logprobs", [](RequestDraft& d) { d.sampling.num_prompt_logprobs = -2; }},
    {"BiasTooMany", "logit_bias",
     [](RequestDraft& d) {
       d.sampling.logit_bias.assign(4, {1, 1.0f});
     }},
    {"BiasIdOutside", "logit_bias",
     [](RequestDraft& d) {
       d.sampling.logit_bias = {{100, 1.0f}};
     }},
    {"BiasTooBig", "logit_bias",
     [](RequestDraft& d) {
       d.sampling.logit_bias = {{1, 100.5f}};
     }},
    {"BiasNan", "logit_bias",
     [](RequestDraft& d) {
       d.sampling.logit_bias = {{1, kNan}};
     }},
    {"AllowedOutside", "allowed_token_ids", [](RequestDraft& d) { d.sampling.allowed_token_ids = {-5}; }},
    {"AllowedTooMany", "allowed_token_ids", [](RequestDraft& d) { d.sampling.allowed_token_ids.assign(101, 1); }},
    {"PriorityNotServed", "priority", [](RequestDraft& d) { d.priority = 1; }},
    {"DeadlineNegative", "deadline", [](RequestDraft& d) { d.deadline_micros = -1; }},
};

class BadRequestTest : public testing::TestWithParam<BadCase> {};

TEST_P(BadRequestTest, IsRefusedByName) {
  RequestDraft draft = SomeDraft();
  GetParam().spoil(draft);
  const auto made = ValidatedRequest::Make(std::move(draft), SomeLimits());
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), GetParam().code) << made.status();
  EXPECT_THAT(Message(made.status()), testing::StartsWith("`" + std::string(GetParam().field) + "`"));
}

INSTANTIATE_TEST_SUITE_P(All, BadRequestTest, testing::ValuesIn(kBadCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(RequestTest, EdgesAreAccepted) {
  RequestDraft draft = SomeDraft();
  draft.max_tokens = 46;  // 3 + 46 - 1 = 48 slots: the last token is never fed back
  draft.min_tokens = 46;
  draft.n = 8;
  draft.sampling.temperature = 2.0f;
  draft.sampling.min_p = 1.0f;
  draft.sampling.logit_bias = {{0, -100.0f}, {99, 100.0f}};
  draft.sampling.num_logprobs = 0;
  EXPECT_TRUE(ValidatedRequest::Make(draft, SomeLimits()).ok());
}

TEST(RequestTest, OpenMaxTokensIsTheRestOfContextOrPool) {
  RequestDraft draft = SomeDraft();
  draft.max_tokens.reset();
  RequestLimits limits = SomeLimits();
  EXPECT_EQ(ValidatedRequest::Make(draft, limits)->max_tokens(), 46);
  limits.pool_tokens = 1000;
  EXPECT_EQ(ValidatedRequest::Make(draft, limits)->max_tokens(), 61);
}

TEST(RequestTest, ChoicesMustFitTogetherWhereMemoryIsReserved) {
  RequestDraft draft = SomeDraft();  // 3 + 5 - 1 = 7 slots: one block of 16 each
  draft.n = 3;
  RequestLimits limits = SomeLimits();
  limits.reserve_to_finish = true;
  const Status refused = ValidatedRequest::Make(draft, limits).status();  // and one block to copy the shared one
  EXPECT_TRUE(absl::IsOutOfRange(refused));
  EXPECT_THAT(std::string(refused.message()), testing::StartsWith("`n` is 3 but so many choices of 5 tokens need 4 blocks"));
  draft.n = 2;
  EXPECT_TRUE(ValidatedRequest::Make(draft, limits).ok());
}

TEST(RequestTest, PriorityIsAcceptedWhereItIsServed) {
  RequestDraft draft = SomeDraft();
  draft.priority = -3;
  RequestLimits limits = SomeLimits();
  limits.priority_allowed = true;
  EXPECT_TRUE(ValidatedRequest::Make(draft, limits).ok());
}

}  // namespace
}  // namespace kvasir
