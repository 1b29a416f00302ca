#include "models/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

namespace kvasir {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian and values are used as stored");

constexpr std::array<StoredType, 22> kStoredTypes = {{
    {"BOOL", 8, {}},        {"F4", 4, {}},      {"F6_E2M3", 6, {}},       {"F6_E3M2", 6, {}},       {"U8", 8, {}},
    {"I8", 8, {}},          {"F8_E5M2", 8, {}}, {"F8_E4M3", 8, {}},       {"F8_E8M0", 8, {}},       {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}}, {"I16", 16, {}},    {"U16", 16, {}},          {"F16", 16, DType::kF16}, {"BF16", 16, DType::kBF16},
    {"I32", 32, {}},        {"U32", 32, {}},    {"F32", 32, DType::kF32}, {"C64", 64, {}},          {"F64", 64, {}},
    {"I64", 64, {}},        {"U64", 64, {}},
}};

std::string Shown(const std::string& name) {
  return name.size() <= 120 ? name : name.substr(0, 117) + "...";
}

// Receives the parse events of a header: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}.
// Anything that does not fit is refused on the spot, so memory is bounded by the tensors accepted so far.
class HeaderReader {
 public:
  explicit HeaderReader(SafetensorsHeader* header) : header_(header) {}
  Status status_ = OkStatus();

  bool null() { return (place_ == Place::kTop && key_ == "__metadata__") || Refuse("null"); }
  bool boolean(bool) { return Refuse("a boolean"); }
  bool number_integer(int64_t value) { return Refuse(fmt::format("the number {}", value)); }
  bool number_float(double, const std::string& text) { return Refuse(fmt::format("the number {}", text.substr(0, 40))); }
  bool binary(nlohmann::json::binary_t&) { return Refuse("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (place_ == Place::kShape && numbers_->size() < kMaxRank) return numbers_->push_back(value), true;
    if (place_ == Place::kOffsets && numbers_->size() < 2) return numbers_->push_back(value), true;
    return Refuse(fmt::format("the number {}", value));
  }

  bool string(std::string& value) {
    if (place_ == Place::kMetadata) return header_->metadata[key_] = std::move(value), true;
    if (place_ != Place::kTensor || key_ != "dtype") return Refuse("a string");
    tensor_.type = FindStoredType(value);
    if (tensor_.type != nullptr) return true;
    return Fail(InvalidArgument("tensor '{}' has the unknown dtype '{}'", Shown(tensor_.name), Shown(value)));
  }

  bool start_object(size_t) {
    if (place_ == Place::kStart) return place_ = Place::kTop, true;
    if (place_ != Place::kTop) return Refuse("an object");
    if (key_ == "__metadata__") return place_ = Place::kMetadata, true;
    if (header_->tensors.size() == kMaxTensors) return Fail(InvalidArgument("more than {} tensors", kMaxTensors));
    tensor_ = {.name = key_};
    offsets_.clear();
    has_shape_ = has_offsets_ = false;
    return place_ = Place::kTensor, true;
  }

  bool end_object() {
    if (place_ == Place::kMetadata) return place_ = Place::kTop, true;
    if (place_ == Place::kTop) return place_ = Place::kEnd, true;
    if (tensor_.type == nullptr || !has_shape_ || offsets_.size() != 2)
      return Fail(InvalidArgument("tensor '{}' needs dtype, shape and data_offsets [begin, end]", Shown(tensor_.name)));
    tensor_.begin = offsets_[0];
    tensor_.end = offsets_[1];
    header_->tensors.push_back(std::move(tensor_));
    return place_ = Place::kTop, true;
  }

  bool start_array(size_t) {
    if (place_ != Place::kTensor || key_ == "dtype") return Refuse("an array");
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    numbers_ = place_ == Place::kShape ? &tensor_.shape : &offsets_;
    (place_ == Place::kShape ? has_shape_ : has_offsets_) = true;
    return true;
  }
  bool end_array() { return place_ = Place::kTensor, true; }

  bool key(std::string& name) {
    bool fresh = true;
    switch (place_) {
      case Place::kTop:
        fresh = name == "__metadata__" ? !std::exchange(has_metadata_, true)
                                       : header_->index.emplace(name, header_->index.size()).second;
        break;
      case Place::kMetadata:
        fresh = header_->metadata.emplace(name, "").second;
        break;
      default:
        if (name != "dtype" && name != "shape" && name != "data_offsets")
          return Fail(InvalidArgument("tensor '{}' has the unknown field '{}'", Shown(tensor_.name), Shown(name)));
        fresh = name == "dtype" ? tensor_.type == nullptr : name == "shape" ? !has_shape_ : !has_offsets_;
    }
    if (!fresh) return Fail(InvalidArgument("the key '{}' appears twice in one object", Shown(name)));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) {
    return Fail(InvalidArgument("header is not valid JSON at byte {}: {}", position, Shown(error.what())));
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  bool Fail(Status status) {
    status_ = std::move(status);
    return false;
  }
  bool Refuse(std::string_view found) {
    switch (place_) {
      case Place::kStart:
      case Place::kEnd:
        return Fail(InvalidArgument("header is {} where an object is wanted", found));
      case Place::kTop:
        return Fail(InvalidArgument("tensor '{}' is {} where an object is wanted", Shown(key_), found));
      case Place::kMetadata:
        return Fail(InvalidArgument("__metadata__ '{}' is {} where a string is wanted", Shown(key_), found));
      case Place::kTensor:
        return Fail(InvalidArgument("tensor '{}': field '{}' cannot be {}", Shown(tensor_.name), key_, found));
      case Place::kShape:
        return Fail(InvalidArgument("tensor '{}': shape holds {}; wanted at most {} non-negative whole numbers",
                                    Shown(tensor_.name), found, kMaxRank));
      case Place::kOffsets:
        return Fail(InvalidArgument("tensor '{}': data_offsets holds {}; wanted two non-negative whole numbers",
                                    Shown(tensor_.name), found));
    }
    return false;
  }

  SafetensorsHeader* header_;
  Place place_ = Place::kStart;
  std::string key_;
  StoredTensor tensor_;
  std::vector<uint64_t> offsets_;
  std::vector<uint64_t>* numbers_ = nullptr;
  bool has_shape_ = false, has_offsets_ = false, has_metadata_ = false;
};

// Bytes of a tensor by its shape and type, or nullopt when that overflows or is not a whole number of bytes.
std::optional<uint64_t> ByteSize(const StoredTensor& tensor) {
  uint64_t bits = tensor.type->bits;
  // Like the reference: dimensions are multiplied in order, so a zero does not excuse an overflow before it.
  uint64_t elements = 1;
  for (const uint64_t dim : tensor.shape)
    if (__builtin_mul_overflow(elements, dim, &elements)) return std::nullopt;
  if (__builtin_mul_overflow(elements, bits, &bits) || bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

Status CheckSize(const StoredTensor& tensor) {
  const std::string name = Shown(tensor.name);
  const std::optional<uint64_t> bytes = ByteSize(tensor);
  if (!bytes)
    return InvalidArgument("tensor '{}': the size of shape {} of {} overflows or is no whole number of bytes", name,
                           tensor.ShapeText(), tensor.type->name);
  if (tensor.end < tensor.begin)
    return InvalidArgument("tensor '{}': data_offsets [{}, {}] end before they begin", name, tensor.begin, tensor.end);
  if (tensor.end - tensor.begin != *bytes)
    return InvalidArgument("tensor '{}' has {} bytes by its data_offsets [{}, {}] but shape {} of {} needs {}", name,
                           tensor.end - tensor.begin, tensor.begin, tensor.end, tensor.ShapeText(), tensor.type->name, *bytes);
  return OkStatus();
}

// Offsets relative to the data become offsets in the file; every byte of data belongs to exactly one tensor.
Status CheckLayout(uint64_t data_start, uint64_t file_size, SafetensorsHeader* header) {
  auto& tensors = header->tensors;
  for (const StoredTensor& tensor : tensors) KVASIR_RETURN_IF_ERROR(CheckSize(tensor));
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  const uint64_t data_bytes = file_size - data_start;
  uint64_t next = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    StoredTensor& tensor = tensors[i];
    if (tensor.begin != next)
      return InvalidArgument("tensor '{}' begins at data byte {} but the one before it ends at {}: {}", Shown(tensor.name),
                             tensor.begin, next, tensor.begin < next ? "they overlap" : "there is a gap");
    if (tensor.end > data_bytes)
      return DataLoss("tensor '{}' ends at data byte {} but the file has only {}; it is truncated: fetch it again",
                      Shown(tensor.name), tensor.end, data_bytes);
    next = tensor.end;
    tensor.begin += data_start;
    tensor.end += data_start;
    header->index[tensor.name] = i;
  }
  if (next != data_bytes)
    return InvalidArgument("the tensors end at data byte {} but the file has {}: bytes belong to no tensor", next, data_bytes);
  return OkStatus();
}

// The header length of a file of `file_size` bytes, checked.
StatusOr<uint64_t> HeaderLength(const std::byte (&field)[8], uint64_t file_size) {
  uint64_t length;
  std::memcpy(&length, field, 8);
  if (length > kMaxSafetensorsHeader)
    return InvalidArgument("header length is {} but the limit is {}; this is not a safetensors file", length,
                           kMaxSafetensorsHeader);
  if (length > file_size - 8)
    return DataLoss("header length is {} but the file has only {} bytes; it is truncated: fetch it again", length, file_size);
  return length;
}

Status CheckFirstByte(char first) {
  return first == '{' ? OkStatus() : InvalidArgument("header does not start with '{{'; this is not a safetensors file");
}

}  // namespace

const StoredType* FindStoredType(std::string_view name) {
  for (const StoredType& type : kStoredTypes)
    if (type.name == name) return &type;
  return nullptr;
}

std::string StoredTensor::ShapeText() const {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

const StoredTensor* SafetensorsHeader::Find(std::string_view name) const {
  const auto found = index.find(name);
  return found == index.end() ? nullptr : &tensors[found->second];
}

StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view header_json, uint64_t file_size) {
  if (header_json.size() > kMaxSafetensorsHeader || file_size < 8 || header_json.size() > file_size - 8)
    return InvalidArgument("header of {} bytes does not fit the file of {} bytes", header_json.size(), file_size);
  KVASIR_RETURN_IF_ERROR(CheckFirstByte(header_json.empty() ? '\0' : header_json[0]));
  // The JSON parser takes a NUL byte for the end of its input.
  if (header_json.find('\0') != std::string_view::npos) return InvalidArgument("header holds a NUL byte");
  SafetensorsHeader header;
  HeaderReader reader(&header);
  const bool parsed = nlohmann::json::sax_parse(header_json.begin(), header_json.end(), &reader);
  KVASIR_RETURN_IF_ERROR(reader.status_);
  if (!parsed) return InvalidArgument("header is not valid JSON");
  KVASIR_RETURN_IF_ERROR(CheckLayout(8 + header_json.size(), file_size, &header));
  return header;
}

StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file) {
  if (file.size() < 8) return DataLoss("file has {} bytes; a safetensors file has at least 8", file.size());
  std::byte field[8];
  std::memcpy(field, file.data(), 8);
  KVASIR_ASSIGN_OR_RETURN(const uint64_t length, HeaderLength(field, file.size()));
  return ParseSafetensorsHeader({reinterpret_cast<const char*>(file.data()) + 8, length}, file.size());
}

StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const File& file) {
  if (file.size() < 8) return DataLoss("file has {} bytes; a safetensors file has at least 8", file.size());
  std::byte field[8];
  KVASIR_RETURN_IF_ERROR(file.ReadAt(0, field, 8));
  KVASIR_ASSIGN_OR_RETURN(const uint64_t length, HeaderLength(field, file.size()));
  if (length > 0) {
    char first;
    KVASIR_RETURN_IF_ERROR(file.ReadAt(8, &first, 1));
    KVASIR_RETURN_IF_ERROR(CheckFirstByte(first));  // before taking memory for what is no header
  }
  std::string header_json(length, '\0');
  KVASIR_RETURN_IF_ERROR(file.ReadAt(8, header_json.data(), length));
  return ParseSafetensorsHeader(header_json, file.size());
}

}  // namespace kvasir
