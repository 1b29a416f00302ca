// Known bugs, for the proof that the simulator finds them: a test target compiles memory and scheduler with KVASIR_MUTATIONS and
// switches one on at a time. Everywhere else KVASIR_MUTATED is the constant false and leaves no code behind.
#pragma once

namespace kvasir {

enum class Mutation : int {
  kNone,
  kPublishEarly,        // blocks are published when planned, before they are computed
  kPublishTooFar,       // a block is published one token before it is full
  kDropSaltOnMatch,     // prefix lookup forgets the tenant
  kMatchEverything,     // the last token is taken from the cache too: nothing is left to sample from
  kLeakOnCancel,        // a cancelled choice keeps its blocks
  kSkipCopy,            // the copy before a write to a shared block is lost
  kWriteShared,         // a shared block is written without a copy
  kCounterFromStep,     // the random counter counts samples of the request, not tokens of the choice
  kStreamZero,          // all choices draw from stream 0
  kForgetEnd,           // a request cancelled while waiting never gets its kEnd
  kResumeOffByOne,      // a resumed sequence takes one token more for computed than the cache gave
  kEndTwice,            // the last choice's end is told twice
  kRepeatPromptEvents,  // scores of prompt tokens start over after preemption
  kForgetRetry,         // a queue whose head did not fit once is never looked at again
  kPinWithoutPromise,   // a sequence at its limit of preemptions comes back without memory to its end
  kLatestFirst,         // the newest waiting request is served first
  kKeepPending,         // a token that has been read is still planned with by the name of its sample
  kPendingUncounted,    // a token under way is not counted where the next one is drawn
  kComputeTooSoon,      // a sequence is computed in the step beside which its KV comes from the host
  kFreeTooSoon,         // what is moved to the host beside a step is overwritten by it
  kAdmitBeside,         // others are admitted behind one whose KV comes beside the step
  // In memory/:
  kTrimTooFar,          // a window's block is let go while the next token still reads it
  kTrimForgets,         // a window's blocks leave the table but are never given back
  kMatchWithoutWindow,  // a prefix counts as found though blocks of its window are gone
  kForgetToUnpublish,   // memory goes to a new holder while its old blocks can still be found
  kCopyTooLittle,       // a copy takes one block's bytes where several are kept
  kForgetMove,          // what moves between device and host is not copied
  kCopyUnderStamp,      // a table keeps its stamp though a shared block was replaced before it is written
  kPublishUnderStamp,   // ... though a block was replaced by an equal one that was published first
  kForkStamp,           // a fork goes on under its parent's stamp
  kReuseStamp,          // another text's table begins under the stamp of the one before it
  kCount,
};

#ifdef KVASIR_MUTATIONS
extern Mutation active_mutation;
#define KVASIR_MUTATED(name) (::kvasir::active_mutation == ::kvasir::Mutation::name)
#else
#define KVASIR_MUTATED(name) false
#endif

}  // namespace kvasir
