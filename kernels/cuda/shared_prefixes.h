// Which sequences of a step begin with the same blocks, because their texts begin alike. Kept from step to step: tables grow and
// seldom change, so a step looks at those that came, and at none of the others. Used by PlanAttention.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kv_page.h"

namespace kvasir {

// A sequence's table as the host sees it.
struct PrefixTable {
  const uint32_t* blocks = nullptr;
  int32_t num_blocks = 0;
  uint32_t row = 0;    // small and of this table alone in the step
  uint64_t stamp = 0;  // of this table alone in all steps: where it comes again, its entries are the same (SequenceTable)
};

class SharedPrefixes {
 public:
  struct Neighbour {
    int32_t table = 0;  // index of the step's
    int32_t alike = 0;  // blocks at its beginning that are those of the one before
  };
  // The tables in an order in which those that begin alike are neighbours: any two have as many blocks in common as all between
  // them have. The order depends on the tables alone, not on how it was come by.
  std::span<const Neighbour> Update(std::span<const PrefixTable> tables);

 private:
  struct Place {
    uint64_t stamp = 0;
    uint32_t row = 0;
    int32_t num_blocks = 0;  // when it was last seen
    int32_t alike = 0;       // with the place before
    int32_t table = -1;      // of this step
  };
  void Keep();
  void Insert(int32_t table);
  bool IsBefore(const PrefixTable& a, const PrefixTable& b) const;

  std::span<const PrefixTable> tables_;  // of the step
  std::vector<Place> places_;
  std::vector<int32_t> table_of_;  // by row: the step's table that has no place yet, or -1
  std::vector<Neighbour> neighbours_;
};

}  // namespace kvasir
