// KvCache: examples that draw the expected tree, then random operations against a model that knows which tokens every block
// holds.
#include "memory/kv_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "kernels/rng.h"

namespace kvasir {
namespace {

using Tokens = std::vector<int32_t>;
using Salt = std::array<std::byte, 32>;

Salt MakeSalt(int tenant) {
  Salt salt{};
  salt[0] = std::byte(tenant);
  return salt;
}
const Salt kPublic = MakeSalt(0);

KvCacheConfig Config(int64_t blocks, int block_tokens = 4) {
  return {.num_blocks = blocks, .block_tokens = block_tokens, .fingerprint = "m"};
}

Tokens Iota(int n, int first = 0) {
  Tokens tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Computes all of `tokens` as one request would, publishes, and returns how many came from the cache.
int32_t RunPrompt(KvCache& cache, const Tokens& tokens, SequenceKv& kv, const Salt& salt = kPublic) {
  std::vector<BlockCopy> copies;
  const int32_t hit = cache.Match(tokens, salt, int32_t(tokens.size()) - 1, true, kv);
  EXPECT_TRUE(cache.Grow(kv, int32_t(tokens.size()), hit, copies));
  cache.Publish(kv, tokens, int32_t(tokens.size()), salt);
  return hit;
}

TEST(KvCacheTest, FindsWholeBlocksOfAnEarlierPrompt) {
  KvCache cache(Config(16));
  SequenceKv a, b;
  EXPECT_EQ(RunPrompt(cache, Iota(10), a), 0);  // root - [0..3] - [4..7], and 8 9 in a private block
  Tokens other = Iota(12);
  other[9] = 77;
  EXPECT_EQ(RunPrompt(cache, other, b), 8);  // shares two blocks; its third is [8 77 10 11]
  EXPECT_EQ(a.tables[0][0], b.tables[0][0]);
  EXPECT_EQ(a.tables[0][1], b.tables[0][1]);
  EXPECT_NE(a.tables[0][2], b.tables[0][2]);
  const SequenceKv* live[] = {&a, &b};
  EXPECT_TRUE(cache.Check(live).ok()) << cache.Check(live);
  EXPECT_EQ(cache.stats().hit_tokens, 8);
  EXPECT_EQ(cache.stats().queried_tokens, 22);
  EXPECT_EQ(cache.stats().used_blocks, 4);
  cache.Release(a);
  cache.Release(b);
  EXPECT_EQ(cache.stats().used_blocks, 0);
  EXPECT_EQ(cache.stats().cached_blocks, 3);
  EXPECT_TRUE(cache.Check({}).ok()) << cache.Check({});
}

TEST(KvCacheTest, LeavesOneTokenToCompute) {
  KvCache cache(Config(16));
  SequenceKv a, b;
  RunPrompt(cache, Iota(8), a);
  EXPECT_EQ(cache.Match(Iota(8), kPublic, 7, true, b), 4) << "two blocks are cached, but the last token's logits are needed";
  cache.Release(a);
  cache.Release(b);
}

TEST(KvCacheTest, TenantsNeverShare) {
  KvCache cache(Config(16));
  SequenceKv a, b, c;
  RunPrompt(cache, Iota(9), a, MakeSalt(1));
  EXPECT_EQ(RunPrompt(cache, Iota(9), b, MakeSalt(2)), 0);
  EXPECT_EQ(RunPrompt(cache, Iota(9), c, MakeSalt(1)), 8);
  cache.Release(a);
  cache.Release(b);
  cache.Release(c);
  EXPECT_TRUE(cache.Check({}).ok()) << cache.Check({});
}

TEST(KvCacheTest, SamePromptsComputedAtOnceKeepOneCopy) {
  KvCache cache(Config(16));
  SequenceKv a, b;
  std::vector<BlockCopy> copies;
  cache.Match(Iota(8), kPublic, 7, true, a);
  cache.Match(Iota(8), kPublic, 7, true, b);
  ASSERT_TRUE(cache.Grow(a, 8, 0, copies) && cache.Grow(b, 8, 0, copies));
  EXPECT_EQ(cache.stats().used_blocks, 4);
  cache.Publish(a, Iota(8), 8, kPublic);
  cache.Publish(b, Iota(8), 8, kPublic);
  EXPECT_EQ(cache.stats().used_blocks, 2);
  EXPECT_EQ(a.tables[0], b.tables[0]);
  const SequenceKv* live[] = {&a, &b};
  EXPECT_TRUE(cache.Check(live).ok()) << cache.Check(live);
  cache.Release(a);
  cache.Release(b);
}

TEST(KvCacheTest, EvictsTheLeastRecentlyUsedLeafFirst) {
  KvCache cache(Config(4));
  SequenceKv a, b;
  RunPrompt(cache, Iota(8), a);  // root - [0..3] - [4..7]
  cache.Release(a);
  RunPrompt(cache, Iota(8, 100), b);  // root - [100..] - [104..]
  cache.Release(b);
  EXPECT_EQ(cache.Peek(Iota(8), kPublic, 8), 8);
  SequenceKv c;
  std::vector<BlockCopy> copies;
  ASSERT_TRUE(cache.Grow(c, 4, 0, copies));  // one block: the leaf [4..7] goes, its parent stays
  EXPECT_EQ(cache.Peek(Iota(8), kPublic, 8), 4);
  EXPECT_EQ(cache.Peek(Iota(8, 100), kPublic, 8), 8);
  SequenceKv touch;
  cache.Match(Iota(8), kPublic, 8, false, touch);  // using [0..3] makes the other prompt the older one
  cache.Release(touch);
  ASSERT_TRUE(cache.Grow(c, 8, 4, copies));
  EXPECT_EQ(cache.Peek(Iota(8), kPublic, 8), 4);
  EXPECT_EQ(cache.Peek(Iota(8, 100), kPublic, 8), 4);
  EXPECT_FALSE(cache.Grow(c, 20, 8, copies)) << "five blocks of four";
  EXPECT_EQ(c.tables[0].size(), 2u) << "all or nothing";
  cache.Release(c);
  EXPECT_TRUE(cache.Check({}).ok()) << cache.Check({});
}

TEST(KvCacheTest, ForkCopiesTheSharedLastBlockBeforeWriting) {
  KvCache cache(Config(8));
  SequenceKv a, b;
  RunPrompt(cache, Iota(6), a);
  cache.Fork(a, b, 6);
  std::vector<BlockCopy> copies;
  ASSERT_TRUE(cache.Grow(a, 7, 6, copies));
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].from, b.tables[0][1]);
  EXPECT_EQ(copies[0].to, a.tables[0][1]);
  ASSERT_TRUE(cache.Grow(b, 7, 6, copies));
  EXPECT_EQ(copies.size(), 1u) << "b is alone on its block by now";
  EXPECT_EQ(a.tables[0][0], b.tables[0][0]);
  const SequenceKv* live[] = {&a, &b};
  EXPECT_TRUE(cache.Check(live).ok()) << cache.Check(live);
  cache.Release(a);
  cache.Release(b);
}

// A stamp stays while entries are appended and let go, and goes with an entry that is replaced.
TEST(KvCacheTest, StampsStayWhileTablesGrow) {
  KvCacheConfig config = Config(32);
  config.groups = {{.block_bytes = 64}, {.block_bytes = 64, .window_tokens = 5}};
  KvCache cache(config);
  SequenceKv a, b, c;
  std::vector<BlockCopy> copies;
  RunPrompt(cache, Iota(14), a);
  const uint64_t first = a.stamp;
  ASSERT_NE(first, 0u);
  ASSERT_TRUE(cache.Grow(a, 17, 14, copies));
  ASSERT_GE(14, a.next_trim);
  cache.Trim(a, 14);
  EXPECT_EQ(a.tables[1][0], UINT32_MAX);
  EXPECT_EQ(a.stamp, first);
  cache.Fork(a, b, 14);
  EXPECT_EQ(a.stamp, first);
  EXPECT_GE(b.stamp, first + kMaxKvGroups) << "each group's table has one of its own";
  ASSERT_TRUE(cache.Grow(a, 17, 14, copies));
  EXPECT_GT(copies.size(), 0u);
  EXPECT_GT(a.stamp, b.stamp) << "its tail was shared and is another one now";
  const uint64_t forked = b.stamp;
  ASSERT_TRUE(cache.Grow(b, 17, 14, copies));
  EXPECT_EQ(b.stamp, forked) << "alone on its tail by now";
  // A text that was computed twice at once is kept once.
  cache.Match(Iota(8, 100), kPublic, 7, true, c);
  ASSERT_TRUE(cache.Grow(c, 8, 0, copies));
  SequenceKv d;
  RunPrompt(cache, Iota(8, 100), d);
  const uint64_t own = c.stamp;
  cache.Publish(c, Iota(8, 100), 8, kPublic);
  EXPECT_NE(c.stamp, own);
  std::set<uint64_t> stamps = {a.stamp, b.stamp, c.stamp, d.stamp, first, own};
  for (SequenceKv* const kv : {&a, &b, &c, &d}) cache.Release(*kv);
  RunPrompt(cache, Iota(8, 100), c);
  EXPECT_TRUE(stamps.insert(c.stamp).second) << "of another table before";
  cache.Release(c);
}

TEST(KvCacheTest, OffMeansOff) {
  KvCacheConfig config = Config(8);
  config.enable_prefix_caching = false;
  KvCache cache(config);
  SequenceKv a, b;
  RunPrompt(cache, Iota(9), a);
  EXPECT_EQ(RunPrompt(cache, Iota(9), b), 0);
  cache.Release(a);
  cache.Release(b);
  EXPECT_EQ(cache.stats().free_blocks, 8);
}

TEST(KvCacheTest, DropCachedForgetsEverythingUnused) {
  KvCache cache(Config(8));
  SequenceKv a, b;
  RunPrompt(cache, Iota(8), a);
  RunPrompt(cache, Iota(8, 50), b);
  cache.Release(a);
  cache.DropCached();
  EXPECT_EQ(cache.Peek(Iota(8), kPublic, 8), 0);
  EXPECT_EQ(cache.Peek(Iota(8, 50), kPublic, 8), 8) << "b is still in use";
  cache.Release(b);
}

TEST(KvCacheTest, WhatIsGivenUpMovesToTheHostAndComesBack) {
  KvCacheConfig config = Config(4);
  config.host_blocks = 3;
  KvCache cache(config);
  SequenceKv a, b;
  RunPrompt(cache, Iota(10), a);  // two blocks are published, the third is not
  const std::vector<uint32_t> was = a.tables[0];
  cache.Release(a);
  std::vector<BlockCopy> copies;
  EXPECT_EQ(cache.Match(Iota(16, 50), kPublic, 15, true, b), 0);
  ASSERT_TRUE(cache.Grow(b, 16, 0, copies));
  ASSERT_EQ(copies.size(), 2u) << "the deeper block first";
  EXPECT_EQ(copies[0].from, was[1]);
  EXPECT_EQ(copies[1].from, was[0]);
  for (const BlockCopy& copy : copies) EXPECT_GE(copy.to, cache.first_host_granule());
  const uint32_t places[] = {copies[1].to, copies[0].to};
  cache.Publish(b, Iota(16, 50), 16, kPublic);
  EXPECT_EQ(cache.stats().host_used_blocks, 2);
  EXPECT_EQ(cache.stats().evicted_blocks, 0);
  EXPECT_EQ(cache.Peek(Iota(10), kPublic, 9), 8);

  // Nothing is free: a match in the host is held, and cannot grow.
  copies.clear();
  EXPECT_EQ(cache.Match(Iota(10), kPublic, 9, true, a), 8);
  EXPECT_EQ(cache.HeldExtents(a, 0), 0);
  EXPECT_FALSE(cache.Grow(a, 10, 8, copies));
  EXPECT_TRUE(copies.empty());
  cache.Release(a);
  cache.Release(b);

  EXPECT_EQ(cache.Match(Iota(10), kPublic, 9, true, a), 8);
  ASSERT_TRUE(cache.Grow(a, 10, 8, copies));
  // For each of three blocks one of b's goes; the first two are filled from the host, in whose place b's second one then lies.
  ASSERT_EQ(copies.size(), 5u);
  EXPECT_EQ(copies[1].from, places[0]);
  EXPECT_EQ(copies[1].to, copies[0].from) << "into what has just been moved out";
  EXPECT_EQ(copies[3].from, places[1]);
  for (const uint32_t entry : a.tables[0]) EXPECT_LT(entry, cache.first_host_granule());
  const SequenceKv* live[] = {&a};
  EXPECT_TRUE(cache.Check(live).ok()) << cache.Check(live);
  EXPECT_EQ(cache.stats().moved_in_blocks, 2);
  EXPECT_EQ(cache.stats().host_hit_tokens, 8 + 8);
  EXPECT_EQ(cache.Peek(Iota(16, 50), kPublic, 16), 16) << "one block on the device, three in the host";
  cache.DropCached();
  EXPECT_EQ(cache.Peek(Iota(16, 50), kPublic, 16), 0);
  EXPECT_EQ(cache.stats().host_used_blocks, 0);
  cache.Release(a);
}

TEST(KvCacheTest, WhatStepsWillTakeIsMovedOutAhead) {
  KvCacheConfig config = Config(16);
  config.host_blocks = 20;
  KvCache cache(config);
  SequenceKv kv;
  std::vector<BlockCopy> copies;
  RunPrompt(cache, Iota(64), kv);
  cache.MoveOutAhead(copies);
  EXPECT_TRUE(copies.empty()) << "all is in use";
  cache.Release(kv);
  EXPECT_EQ(cache.stats().free_blocks, 0);
  cache.MoveOutAhead(copies);
  ASSERT_EQ(copies.size(), 2u) << "an eighth of all at most";
  EXPECT_EQ(cache.stats().free_blocks, 2);
  EXPECT_EQ(cache.stats().moved_out_blocks, 2);
  for (const BlockCopy& copy : copies) EXPECT_GE(copy.to, cache.first_host_granule());
  cache.MoveOutAhead(copies);
  EXPECT_EQ(copies.size(), 2u) << "as much is free already";
  EXPECT_TRUE(cache.Check({}).ok()) << cache.Check({});
  // What was moved is still found, and what is free is taken without a copy.
  EXPECT_EQ(cache.Peek(Iota(64), kPublic, 64), 64);
  copies.clear();
  EXPECT_EQ(cache.Match(Iota(8, 100), kPublic, 7, true, kv), 0);
  ASSERT_TRUE(cache.Grow(kv, 8, 0, copies));
  EXPECT_TRUE(copies.empty());
  cache.Release(kv);
}

TEST(KvCacheTest, TheHostForgetsWhatWasUnusedForLongest) {
  KvCacheConfig config = Config(2);
  config.host_blocks = 2;
  KvCache cache(config);
  SequenceKv kv;
  for (const int first : {0, 50, 100}) {
    RunPrompt(cache, Iota(8, first), kv);
    cache.Release(kv);
  }
  EXPECT_EQ(cache.Peek(Iota(8, 100), kPublic, 8), 8);
  EXPECT_EQ(cache.Peek(Iota(8, 50), kPublic, 8), 8);
  EXPECT_EQ(cache.Peek(Iota(8), kPublic, 8), 0);
  EXPECT_EQ(cache.stats().evicted_blocks, 2);
  // Computed again though it lies in the host (all of it, for the scores of its tokens): the new blocks are kept.
  std::vector<BlockCopy> copies;
  EXPECT_EQ(cache.Match(Iota(8, 50), kPublic, 0, true, kv), 0);
  ASSERT_TRUE(cache.Grow(kv, 8, 0, copies));
  cache.Publish(kv, Iota(8, 50), 8, kPublic);
  const SequenceKv* live[] = {&kv};
  EXPECT_TRUE(cache.Check(live).ok()) << cache.Check(live);
  cache.Release(kv);
}

TEST(KvCacheDeathTest, MisuseIsOurBug) {
  KvCache cache(Config(8));
  SequenceKv a;
  RunPrompt(cache, Iota(9), a);
  std::vector<BlockCopy> copies;
  EXPECT_DEATH(cache.Grow(a, 9, 4, copies), "published and about to be written");
  EXPECT_DEATH(cache.Match(Iota(4), kPublic, 3, true, a), "empty sequence");
  cache.Release(a);
}

// The model: what every block really holds, as (salt, position, token), written as a device would write it. Whatever Match
// returns must hold exactly the prefix asked for.
struct Written {
  int tenant = -1;
  int32_t position = -1;
  Tokens chain;  // all tokens of the text up to and including this slot
};

struct Live {
  int tenant = 0;
  Tokens tokens;
  int32_t computed = 0;
  SequenceKv kv;
};

class Fuzzer {
 public:
  Fuzzer(uint64_t seed, int hash_bits, bool host = false)
      : rng_(seed), block_tokens_(int(rng_.Between(1, 5))), cache_(MakeConfig(hash_bits, host)) {
    slots_.resize(size_t(cache_.config().num_blocks + cache_.config().host_blocks) * block_tokens_);
  }

  void Run(int operations) {
    for (int i = 0; i < operations && !testing::Test::HasFatalFailure(); ++i) {
      const uint64_t op = rng_.Below(10);
      if (cache_.config().host_blocks > 0 && rng_.Chance(0.1)) Finish(rng_.Below(live_.size() + 1));
      if (op < 3)
        Admit();
      else if (op < 7)
        Compute();
      else if (op < 8)
        ForkOne();
      else if (op < 9)
        Finish(rng_.Below(live_.size() + 1));
      else if (rng_.Chance(0.02))
        cache_.DropCached();
      CheckAll();
    }
    while (!live_.empty()) Finish(0);
    CheckAll();
    EXPECT_EQ(cache_.stats().used_blocks, 0);
  }
  int64_t hits() const { return cache_.stats().hit_tokens; }
  int64_t collisions() const { return cache_.stats().collisions; }
  const KvCacheStats stats() const { return cache_.stats(); }

 private:
  KvCacheConfig MakeConfig(int hash_bits, bool host) {
    KvCacheConfig config = {
        .num_blocks = rng_.Between(1, 40), .block_tokens = block_tokens_, .fingerprint = "m", .hash_bits = hash_bits};
    if (host) config.num_blocks = rng_.Between(2, 16), config.host_blocks = rng_.Between(1, 40);
    return config;
  }
  void Admit() {
    if (live_.size() >= 8) return;
    Live seq{.tenant = int(rng_.Below(3))};
    const int length = int(rng_.Between(1, 30));
    for (int i = 0; i < length; ++i) seq.tokens.push_back(int32_t(rng_.Below(2)));  // a tiny vocabulary meets often
    if (cache_.config().host_blocks > 0 && !past_.empty() && rng_.Chance(0.7)) {    // a text that may have gone to the host
      const Live& past = past_[rng_.Below(past_.size())];
      seq.tenant = past.tenant, seq.tokens = past.tokens;
      seq.tokens.push_back(0);
    }
    const int32_t longest = int32_t(seq.tokens.size()) - 1;
    const int32_t peek = cache_.Peek(seq.tokens, MakeSalt(seq.tenant), longest);
    seq.computed = cache_.Match(seq.tokens, MakeSalt(seq.tenant), longest, true, seq.kv);
    ASSERT_EQ(seq.computed, peek);
    if (cache_.config().host_blocks > 0) {
      std::vector<BlockCopy> copies;
      if (rng_.Chance(0.3)) {
        cache_.MoveOutAhead(copies);
        Do(copies);
        copies.clear();
      }
      if (rng_.Chance(0.1) || !cache_.Grow(seq.kv, seq.computed + 1, seq.computed, copies)) return cache_.Release(seq.kv);
      Do(copies);
    }
    Verify(seq);
    live_.push_back(std::move(seq));
  }
  // Writes the next tokens of a sequence into its slots, as a step would, then maybe publishes.
  void Compute() {
    if (live_.empty()) return;
    Live& seq = live_[rng_.Below(live_.size())];
    if (seq.computed == int32_t(seq.tokens.size())) seq.tokens.push_back(int32_t(rng_.Below(2)));
    const int32_t upto = int32_t(rng_.Between(seq.computed + 1, int64_t(seq.tokens.size())));
    std::vector<BlockCopy> copies;
    const SequenceKv before = seq.kv;
    if (!cache_.Grow(seq.kv, upto, seq.computed, copies)) {
      ASSERT_EQ(before.tables[0], seq.kv.tables[0]);
      return;
    }
    Do(copies);
    for (int32_t p = seq.computed; p < upto; ++p) {
      slots_[size_t(seq.kv.tables[0][p / block_tokens_]) * block_tokens_ + p % block_tokens_] = {
          seq.tenant, p, Tokens(seq.tokens.begin(), seq.tokens.begin() + p + 1)};
    }
    seq.computed = upto;
    if (rng_.Chance(0.7)) cache_.Publish(seq.kv, seq.tokens, seq.computed, MakeSalt(seq.tenant));
  }
  void Do(const std::vector<BlockCopy>& copies) {
    for (const BlockCopy& copy : copies) {
      for (int i = 0; i < block_tokens_; ++i)
        slots_[size_t(copy.to) * block_tokens_ + i] = slots_[size_t(copy.from) * block_tokens_ + i];
    }
  }
  void ForkOne() {
    if (live_.empty() || live_.size() >= 8) return;
    Live& parent = live_[rng_.Below(live_.size())];
    cache_.Publish(parent.kv, parent.tokens, parent.computed, MakeSalt(parent.tenant));  // as the scheduler does before it forks
    Live child{parent.tenant, Tokens(parent.tokens.begin(), parent.tokens.begin() + parent.computed), parent.computed};
    cache_.Fork(parent.kv, child.kv, parent.computed);
    live_.push_back(std::move(child));
  }
  void Finish(size_t index) {
    if (index >= live_.size()) return;
    cache_.Release(live_[index].kv);
    if (past_.size() < 8) past_.push_back({live_[index].tenant, live_[index].tokens});
    live_.erase(live_.begin() + int64_t(index));
  }
  void Verify(const Live& seq) {
    for (int32_t p = 0; p < seq.computed; ++p) {
      const Written& slot = slots_[size_t(seq.kv.tables[0][p / block_tokens_]) * block_tokens_ + p % block_tokens_];
      ASSERT_EQ(slot.tenant, seq.tenant) << "position " << p;
      ASSERT_EQ(slot.position, p);
      ASSERT_EQ(slot.chain, Tokens(seq.tokens.begin(), seq.tokens.begin() + p + 1));
    }
  }
  void CheckAll() {
    std::vector<const SequenceKv*> all;
    std::set<uint64_t> stamps;
    for (const Live& seq : live_) {
      Verify(seq);
      all.push_back(&seq.kv);
      // Under a stamp a table only grows; no other has it.
      ASSERT_TRUE(seq.kv.stamp > 0 && stamps.insert(seq.kv.stamp).second) << seq.kv.stamp;
      const std::vector<uint32_t>& table = seq.kv.tables[0];
      std::vector<uint32_t>& known = stamped_[seq.kv.stamp];
      ASSERT_LE(known.size(), table.size());
      ASSERT_TRUE(std::equal(known.begin(), known.end(), table.begin())) << "stamp " << seq.kv.stamp;
      known = table;
    }
    const Status status = cache_.Check(all);
    ASSERT_TRUE(status.ok()) << status;
  }

  Rng rng_;
  int block_tokens_;
  KvCache cache_;
  std::vector<Written> slots_;
  std::vector<Live> live_, past_;
  std::map<uint64_t, std::vector<uint32_t>> stamped_;
};

TEST(KvCacheTest, RandomOperationsNeverServeForeignKv) {
  int64_t hits = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Fuzzer fuzzer(seed, 128);
    fuzzer.Run(300);
    hits += fuzzer.hits();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(hits, 1000) << "the test no longer meets the cache";
}

TEST(KvCacheTest, RandomOperationsOverAHost) {
  int64_t out = 0, in = 0;
  for (uint64_t seed = 0; seed < 600; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Fuzzer fuzzer(seed, 128, true);
    fuzzer.Run(300);
    out += fuzzer.stats().moved_out_blocks, in += fuzzer.stats().moved_in_blocks;
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(out, 1000);
  EXPECT_GT(in, 1000);
}

TEST(KvCacheTest, AHashOfThreeBitsIsSlowButNeverWrong) {
  int64_t collisions = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Fuzzer fuzzer(seed, 3);
    fuzzer.Run(300);
    collisions += fuzzer.collisions();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(collisions, 1000);
}

}  // namespace
}  // namespace kvasir
