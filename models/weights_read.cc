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
  XXH3_state_t hash;
  XXH3_128bits_reset(&hash);
  for (const Part::Piece& piece : part.pieces) {
    KVASIR_RETURN_IF_ERROR(
        piece.place.shard->file->ReadAt(piece.place.tensor->begin + piece.skip, buffer + piece.offset, piece.bytes));
    XXH3_128bits_update(&hash, buffer + piece.offset, piece.bytes);
  }
  part.hash = XXH3_128bits_digest(&hash);
  if (part.stored) return FillQuantized(part, buffer);
  const std::byte* raw = buffer + part.pieces[0].offset;
  if (!part.rearrange.empty())
    ApplyRearrange(part.rearrange, raw, *part.place.tensor->type->usable, part.rows, part.cols, buffer + part.offset);
  return OkStatus();
}

Status ReadAhead::FillQuantized(const Part& part, std::byte* buffer) {
  const StoredQuant& stored = *part.stored;
  const std::byte* zeros = stored.zeros ? buffer + part.pieces[2].offset : nullptr;
  const StoredBytes bytes = {buffer + part.pieces[0].offset, buffer + part.pieces[1].offset, zeros, part.scales_row};
  const UnpackedQuant unpacked = Unpack(stored, bytes, part.first_row, part.rows);
  std::byte* out = buffer + part.offset;
  if (part.quant)
    return WriteCodes(stored, unpacked, part.quant, part.input_order, part.rearrange.rows, reinterpret_cast<int8_t*>(out),
                      buffer + part.scales_offset, reinterpret_cast<uint16_t*>(buffer + part.lows_offset));
  if (part.rearrange.empty()) {
    WriteValues(stored, unpacked, part.dtype, out);
    return OkStatus();
  }
  std::vector<std::byte> values(unpacked.codes.size() * SizeOf(part.dtype));
  WriteValues(stored, unpacked, part.dtype, values.data());
  ApplyRearrange(part.rearrange, values.data(), part.dtype, part.rows, part.cols, out);
  return OkStatus();
}

}  // namespace kvasir
