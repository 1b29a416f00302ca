#include "models/weights_read.h"

#include <algorithm>
#include <new>

namespace kvasir {

ReadAhead::ReadAhead(std::vector<PartGroup>& groups, size_t limit) : groups_(groups), limit_(limit), slots_(groups.size()) {
  const size_t count = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 4);
  for (size_t i = 0; i < std::min(count, groups.size()); ++i) readers_.emplace_back([this] { ReadLoop(); });
}

ReadAhead::~ReadAhead() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& reader : readers_) reader.join();
}

StatusOr<const std::byte*> ReadAhead::Wait(size_t i) {
  std::unique_lock lock(mutex_);
  wanted_ = i;
  changed_.notify_all();
  changed_.wait(lock, [&] { return slots_[i].done; });
  if (!slots_[i].status.ok()) return slots_[i].status;
  return slots_[i].buffer.bytes.get();
}

void ReadAhead::Release(size_t i) {
  {
    std::lock_guard lock(mutex_);
    in_flight_ -= groups_[i].bytes;
    spare_.push_back(std::move(slots_[i].buffer));
    if (spare_.size() > 4)
      spare_.erase(std::min_element(spare_.begin(), spare_.end(), [](auto& a, auto& b) { return a.capacity < b.capacity; }));
  }
  changed_.notify_all();
}

void ReadAhead::ReadLoop() {
  std::unique_lock lock(mutex_);
  while (next_ < groups_.size() && !stop_) {
    const size_t i = next_++;
    PartGroup& group = groups_[i];
    changed_.wait(lock, [&] { return stop_ || i == wanted_ || in_flight_ + group.bytes <= limit_; });
    if (stop_) return;
    in_flight_ += group.bytes;
    Buffer buffer = TakeSpare(group.bytes);
    lock.unlock();
    Status status = Fill(group, &buffer);
    lock.lock();
    slots_[i].buffer = std::move(buffer);
    slots_[i].status = std::move(status);
    slots_[i].done = true;
    changed_.notify_all();
  }
}

// Reusing a buffer saves the page faults of a fresh one, which cost as much as the copy from the page cache.
ReadAhead::Buffer ReadAhead::TakeSpare(size_t bytes) {
  for (Buffer& spare : spare_) {
    if (spare.capacity < bytes || spare.capacity > 2 * bytes + 4096) continue;
    Buffer taken = std::move(spare);
    std::swap(spare, spare_.back());
    spare_.pop_back();
    return taken;
  }
  return {};
}

Status ReadAhead::Fill(PartGroup& group, Buffer* buffer) {
  if (buffer->capacity < group.bytes) {
    buffer->bytes.reset(new (std::nothrow) std::byte[group.bytes]);
    if (buffer->bytes == nullptr)
      return ResourceExhausted("no memory to read '{}': {} bytes; free memory or use a smaller model", group.parts[0].name,
                               group.bytes);
    buffer->capacity = group.bytes;
  }
  for (Part& part : group.parts) {
    const Status status = FillPart(part, buffer->bytes.get());
    if (!status.ok()) return AtPlace(fmt::format("tensor '{}'", part.name), status);
  }
  return OkStatus();
}

Status ReadAhead::FillPart(Part& part, std::byte* buffer) {
  std::byte* raw = buffer + part.raw_offset;
  const size_t blocks = part.raw_bytes - part.scales_bytes;
  const StoredTensor& tensor = *part.place.tensor;
  const uint64_t row_bytes = part.scales_bytes > 0 ? static_cast<uint64_t>(part.cols) / 2
                                                   : static_cast<uint64_t>(part.cols) * SizeOf(*tensor.type->usable);
  const uint64_t skip = static_cast<uint64_t>(part.first_row) * row_bytes;
  KVASIR_RETURN_IF_ERROR(part.place.shard->file->ReadAt(tensor.begin + skip, raw, blocks));
  if (part.scales_bytes > 0) {
    const uint64_t skip_scales = static_cast<uint64_t>(part.first_row) * part.cols / 32;
    KVASIR_RETURN_IF_ERROR(
        part.scales.shard->file->ReadAt(part.scales.tensor->begin + skip_scales, raw + blocks, part.scales_bytes));
  }
  part.hash = XXH3_128bits(raw, part.raw_bytes);
  if (part.scales_bytes > 0) {
    std::vector<std::byte> wide(part.scales_bytes * 64);
    WidenMxfp4(raw, raw + blocks, static_cast<int64_t>(part.scales_bytes), wide.data());
    ApplyRearrange(part.rearrange, wide.data(), DType::kBF16, part.rows, part.cols, buffer + part.offset);
  } else if (!part.rearrange.empty()) {
    ApplyRearrange(part.rearrange, raw, *tensor.type->usable, part.rows, part.cols, buffer + part.offset);
  }
  return OkStatus();
}

}  // namespace kvasir
