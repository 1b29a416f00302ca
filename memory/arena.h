// Arena: which granule of one big device buffer belongs to whom. The buffer is cut into chunks, each the size of one
// default-format block; a chunk belongs to one size class at a time and is carved into equal objects of that class (a block of
// some format, or a page pair of some format). Objects are named by the 32-bit index of their first granule, which is what block
// tables hold. Allocate and Free are O(1). The arena never touches the bytes. Used by BlockPool (whole blocks) and by ragged
// sequences (page pairs).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

class Arena {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  // class_granules[c]: size of an object of class c in granules, 1 .. chunk_granules. num_chunks * chunk_granules must stay below
  // 2^32 - 1.
  Arena(int64_t num_chunks, int chunk_granules, std::vector<int> class_granules);

  // The first granule of a free object of this class, or kNone. Partly used chunks are filled before a new chunk is opened.
  uint32_t Allocate(int size_class);
  void Free(uint32_t granule, int size_class);

  // Objects of this class that Allocate could still hand out, whole free chunks included.
  int64_t FreeObjects(int size_class) const;
  int64_t UsedObjects(int size_class) const { return classes_[size_class].used; }
  int64_t free_chunks() const { return int64_t(free_chunks_.size()); }
  int64_t num_chunks() const { return int64_t(chunks_.size()); }
  int chunk_granules() const { return chunk_granules_; }

  Status Check() const;  // conservation: every granule is in exactly one place. O(granules).

 private:
  struct Chunk {
    int32_t size_class = -1;              // -1: free
    int32_t used = 0;                     // objects handed out
    uint32_t first_free = kNone;          // list of freed objects inside, by granule
    int32_t carved = 0;                   // objects carved so far; the rest of the chunk has never been handed out
    uint32_t prev = kNone, next = kNone;  // among chunks of the class with room
  };
  struct Class {
    int granules = 0;
    int per_chunk = 0;
    uint32_t with_room = kNone;  // head of the list of chunks with room
    int64_t used = 0;
    int64_t room = 0;  // free objects in the listed chunks
  };
  void Link(uint32_t chunk, Class& cls);
  void Unlink(uint32_t chunk, Class& cls);

  int chunk_granules_;
  std::vector<Chunk> chunks_;
  std::vector<Class> classes_;
  std::vector<uint32_t> free_chunks_;  // a stack
  std::vector<uint32_t> next_free_;    // per granule: link of the free list, or kNone
};

}  // namespace kvasir
