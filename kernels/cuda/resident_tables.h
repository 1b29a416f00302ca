// Page tables that stay on the device from step to step: a step brings only the entries that its tables have more than before.
// Tables are known by their stamps (SequenceTable in kernels/kv_page.h). Owned by StepTables.
//
// A table has a row of memory of the next power of two, and moves to a larger one when it has outgrown that. Rows of tables that
// have not come for a while are given to others; else memory is taken, in chunks that never move, so what is taken follows the
// most that was ever in use, and a steady state takes none. A row is written in the order of the stream (WriteStep), so steps
// that are under way read what was theirs.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/context.h"

namespace kvasir {

// Entries to be written, words [first, first + count) of the step's. Read by WriteStep.
struct TableUpdate {
  uint32_t* to = nullptr;  // of the device
  int32_t first = 0;
  int32_t count = 0;
};

class ResidentTables {
 public:
  struct Row {
    uint32_t* entries = nullptr;  // of the device: where the table lies
    uint64_t stamp = 0;           // of the table, or one that no other table has
    int64_t last_used = 0;        // step
    int32_t held = 0;             // entries that are there
    int32_t place = 0;            // among the tables of the step it was last used in
    uint8_t size = 0;             // room for kLeastEntries << size
  };
  // Forgets what the last step was to write.
  void StartStep();
  // The row, by its number, of a table of so many entries; stamp 0: it is a row of this step alone. It is written by updates().
  uint32_t Place(CudaContext& context, uint64_t stamp, const uint32_t* entries, int32_t count);
  const Row& row(uint32_t number) const { return rows_[number]; }
  // A stamp of no table.
  uint64_t OwnStamp() { return kOwn | ++own_stamps_; }

  const std::vector<TableUpdate>& updates() const { return updates_; }
  const std::vector<uint32_t>& words() const { return words_; }

 private:
  static constexpr int32_t kLeastEntries = 64;
  static constexpr size_t kSizes = 26;
  static constexpr size_t kFirstChunk = size_t{1} << 18;  // entries
  static constexpr int64_t kKeptSteps = 64;               // without being used
  static constexpr uint64_t kOwn = uint64_t{1} << 63;

  static constexpr uint32_t kNoRow = UINT32_MAX;

  uint32_t Find(uint64_t stamp);
  uint32_t NewRow(CudaContext& context, uint64_t stamp, int32_t count);
  uint32_t* Take(CudaContext& context, size_t entries);
  void FreeUnused();

  std::vector<Row> rows_;
  std::unordered_map<uint64_t, uint32_t> row_of_;        // by stamp
  std::array<std::vector<uint32_t>, kSizes> free_rows_;  // by size
  std::vector<uint32_t> leaving_;                        // rows that are free from the next step on
  // Tables come in much the same order every step: the one behind the last found is looked at first.
  std::vector<uint32_t> order_, last_order_;
  size_t next_ = 0;                  // of last_order_
  int64_t step_ = 0, freed_in_ = 0;  // the step that FreeUnused was last called in
  uint64_t own_stamps_ = 0;
  uint32_t* chunk_ = nullptr;                  // what is left of the last; chunks are the context's
  size_t chunk_left_ = 0, chunk_entries_ = 0;  // ... and of how many it was
  std::vector<TableUpdate> updates_;
  std::vector<uint32_t> words_;
};

}  // namespace kvasir
