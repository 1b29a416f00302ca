// The safetensors format: parsing a header apart from reading a file. Used by weights loading, tools and the fuzz target.
//
// The rules are those of the reference implementation, enforced in full before anything is believed: an 8-byte little-endian
// header length, at most 100,000,000 and inside the file; a UTF-8 JSON object that starts with '{' and repeats no key at any
// level; offsets that start at 0 and follow one another without gap or overlap; the size of each tensor equal to its shape times
// its type, computed with overflow checks; the file covered to its last byte. Stricter than the reference in three places: an
// unknown field of a tensor, more than kMaxTensors tensors and more than kMaxRank dimensions are refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "kernels/tensor.h"
#include "models/fs.h"

namespace kvasir {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes
inline constexpr size_t kMaxTensors = 200'000;
inline constexpr size_t kMaxRank = 16;

// Every type the format knows. Only F32, F16 and BF16 can be used as weights.
struct StoredType {
  std::string_view name;        // "BF16"
  int bits = 0;                 // per element
  std::optional<DType> usable;  // how the engine reads it
};
const StoredType* FindStoredType(std::string_view name);

struct StoredTensor {
  std::string name;
  const StoredType* type = nullptr;
  std::vector<uint64_t> shape;    // empty = scalar
  uint64_t begin = 0, end = 0;    // bytes of the file, from its start; begin <= end <= file size
  std::string ShapeText() const;  // "[4096, 1024]"
};

struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;            // by place in the file
  std::map<std::string, std::string> metadata;  // the "__metadata__" object
  const StoredTensor* Find(std::string_view name) const;

  std::map<std::string, size_t, std::less<>> index;  // name -> place in tensors
};

// header_json: the bytes after the length field. file_size: of the whole file.
StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view header_json, uint64_t file_size);
// A whole file in memory.
StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file);
// Reads and checks the header only. Nothing is allocated for a length that the file cannot hold.
StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const File& file);

}  // namespace kvasir
