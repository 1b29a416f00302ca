#include "memory/arena.h"

namespace kvasir {

Arena::Arena(int64_t num_chunks, int chunk_granules, std::vector<int> class_granules) : chunk_granules_(chunk_granules) {
  KVASIR_CHECK(num_chunks >= 0 && chunk_granules >= 1, "{} chunks of {} granules", num_chunks, chunk_granules);
  KVASIR_CHECK(num_chunks * chunk_granules < int64_t{kNone}, "{} granules do not fit 32-bit table entries",
               num_chunks * chunk_granules);
  for (const int granules : class_granules) {
    KVASIR_CHECK(granules >= 1 && granules <= chunk_granules, "class of {} granules in chunks of {}", granules, chunk_granules);
    classes_.push_back({granules, chunk_granules / granules});
  }
  chunks_.resize(size_t(num_chunks));
  next_free_.assign(size_t(num_chunks * chunk_granules), kNone);
  free_chunks_.reserve(size_t(num_chunks));
  for (int64_t i = num_chunks - 1; i >= 0; --i) free_chunks_.push_back(uint32_t(i));  // chunk 0 is handed out first
}

void Arena::Link(uint32_t index, Class& cls) {
  Chunk& chunk = chunks_[index];
  chunk.prev = kNone;
  chunk.next = cls.with_room;
  if (cls.with_room != kNone) chunks_[cls.with_room].prev = index;
  cls.with_room = index;
}

void Arena::Unlink(uint32_t index, Class& cls) {
  Chunk& chunk = chunks_[index];
  (chunk.prev == kNone ? cls.with_room : chunks_[chunk.prev].next) = chunk.next;
  if (chunk.next != kNone) chunks_[chunk.next].prev = chunk.prev;
  chunk.prev = chunk.next = kNone;
}

uint32_t Arena::Allocate(int size_class) {
  Class& cls = classes_[size_class];
  uint32_t index = cls.with_room;
  if (index == kNone) {
    if (free_chunks_.empty()) return kNone;
    index = free_chunks_.back();
    free_chunks_.pop_back();
    chunks_[index] = {.size_class = size_class};
    Link(index, cls);
    cls.room += cls.per_chunk;
  }
  Chunk& chunk = chunks_[index];
  uint32_t granule = chunk.first_free;
  if (granule != kNone) {
    chunk.first_free = next_free_[granule];
  } else {
    granule = index * uint32_t(chunk_granules_) + uint32_t(chunk.carved++ * cls.granules);
  }
  ++chunk.used;
  ++cls.used;
  --cls.room;
  if (chunk.used == cls.per_chunk) Unlink(index, cls);
  return granule;
}

void Arena::Free(uint32_t granule, int size_class) {
  const uint32_t index = granule / uint32_t(chunk_granules_);
  KVASIR_CHECK(index < chunks_.size(), "granule {}", granule);
  Chunk& chunk = chunks_[index];
  Class& cls = classes_[size_class];
  KVASIR_CHECK(chunk.size_class == size_class && chunk.used > 0,
               "granule {} freed as class {}, chunk is of class {} with {} used", granule, size_class, chunk.size_class,
               chunk.used);
  if (chunk.used == cls.per_chunk) Link(index, cls);
  --chunk.used;
  --cls.used;
  ++cls.room;
  if (chunk.used == 0) {  // the chunk may serve another class now
    Unlink(index, cls);
    cls.room -= cls.per_chunk;
    chunk = {};
    free_chunks_.push_back(index);
    return;
  }
  next_free_[granule] = chunk.first_free;
  chunk.first_free = granule;
}

int64_t Arena::FreeObjects(int size_class) const {
  const Class& cls = classes_[size_class];
  return cls.room + int64_t(free_chunks_.size()) * cls.per_chunk;
}

Status Arena::Check() const {
  std::vector<int64_t> used(classes_.size()), room(classes_.size());
  std::vector<char> is_free(chunks_.size());
  for (const uint32_t chunk : free_chunks_) {
    if (chunks_[chunk].size_class != -1 || is_free[chunk]) return Internal("chunk {} is free and in use, or free twice", chunk);
    is_free[chunk] = 1;
  }
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const Chunk& chunk = chunks_[i];
    if (chunk.size_class < 0) {
      if (!is_free[i]) return Internal("chunk {} is lost", i);
      continue;
    }
    const Class& cls = classes_[chunk.size_class];
    int freed = 0;
    for (uint32_t g = chunk.first_free; g != kNone; g = next_free_[g]) {
      if (g / chunk_granules_ != i || ++freed > cls.per_chunk)
        return Internal("free list of chunk {} is torn at granule {}", i, g);
    }
    if (chunk.used + freed != chunk.carved) {
      return Internal("chunk {}: {} used + {} free != {} carved", i, chunk.used, freed, chunk.carved);
    }
    used[chunk.size_class] += chunk.used;
    room[chunk.size_class] += cls.per_chunk - chunk.used;
  }
  for (size_t c = 0; c < classes_.size(); ++c) {
    if (used[c] != classes_[c].used || room[c] != classes_[c].room) return Internal("counters of size class {} are wrong", c);
    for (uint32_t i = classes_[c].with_room; i != kNone; i = chunks_[i].next) room[c] -= classes_[c].per_chunk - chunks_[i].used;
    if (room[c] != 0) return Internal("the list of chunks with room of class {} misses some", c);
  }
  return OkStatus();
}

}  // namespace kvasir
