// ReadAhead: the bytes of a plan's groups, read in order by a few threads while the loading thread packs them. Internal to
// weights loading (weights*.cc).
//
// Reads within a limit of bytes; the group the packing thread waits for may always be read, so a group larger than the limit does
// not block.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "models/weights_plan.h"

namespace kvasir {

class ReadAhead {
 public:
  ReadAhead(std::vector<PartGroup>& groups, size_t limit);
  ~ReadAhead();

  // Waits for group i; must be called for 0, 1, 2, ... and each followed by Release(i).
  StatusOr<const std::byte*> Wait(size_t i);
  void Release(size_t i);

 private:
  struct Buffer {
    std::unique_ptr<std::byte[]> bytes;
    size_t capacity = 0;
  };
  struct Slot {
    Buffer buffer;
    Status status = OkStatus();
    bool done = false;
  };

  void ReadLoop();
  Buffer TakeSpare(size_t bytes);
  static Status Fill(PartGroup& group, Buffer* buffer);
  static Status FillPart(Part& part, std::byte* buffer);
  static Status FillQuantized(const Part& part, std::byte* buffer);

  std::vector<PartGroup>& groups_;
  const size_t limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_, except that a slot being filled belongs to its reader.
  std::vector<Slot> slots_;
  std::vector<Buffer> spare_;
  size_t next_ = 0, wanted_ = 0, in_flight_ = 0;
  bool stop_ = false;
  std::vector<std::thread> readers_;
};

}  // namespace kvasir
