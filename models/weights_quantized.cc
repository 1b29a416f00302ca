// The tensors of linear weights that a checkpoint stores quantised: found, measured against the config, and what they hold told
// from their shapes and types.
#include <algorithm>
#include <cstring>

#include "models/weights_plan.h"

namespace kvasir {
namespace {

constexpr std::string_view kScaleTypes = "F32, F16, BF16";

bool IsFp8(const StoredTensor& tensor) {
  return tensor.type->name == "F8_E4M3" || tensor.type->name == "F8_E5M2";
}

// The name without ".weight".
std::string BaseOf(const std::string& name) {
  return name.substr(0, name.size() - std::string_view(".weight").size());
}

uint64_t CeilDiv(uint64_t a, uint64_t b) {
  return (a + b - 1) / b;
}

// Whether `type` is in a list like "F32, F16".
bool IsListed(std::string_view list, std::string_view type) {
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find(", ", at), list.size());
    if (list.substr(at, end - at) == type) return true;
    at = end + 2;
  }
  return false;
}

StatusOr<std::vector<std::byte>> ReadWhole(const Checkpoint::Place& place) {
  std::vector<std::byte> bytes(static_cast<size_t>(place.tensor->end - place.tensor->begin));
  KVASIR_RETURN_IF_ERROR(place.shard->file->ReadAt(place.tensor->begin, bytes.data(), bytes.size()));
  return bytes;
}

}  // namespace

bool WeightsPlan::IsStoredQuantized(const Part& part) const {
  if (!config_.quantized || part.shape.size() != 2 || !part.name.ends_with(".weight")) return false;
  const std::string base = BaseOf(part.name);
  if (checkpoint_.tensors.contains(base + ".qweight") || checkpoint_.tensors.contains(base + ".weight_packed")) return true;
  const auto found = checkpoint_.tensors.find(part.name);
  if (found == checkpoint_.tensors.end()) return false;
  return found->second.tensor->type->name == "I8" || IsFp8(*found->second.tensor);
}

bool WeightsPlan::Complain(std::string problem) {
  if (problems_.empty() || problems_.back() != problem) problems_.push_back(std::move(problem));
  return false;
}

// The tensor when it is there with one of these types and shapes; else it is complained of, once.
const StoredTensor* WeightsPlan::Want(const std::string& name, std::string_view types,
                                      const std::vector<std::vector<uint64_t>>& shapes, Checkpoint::Place* place) {
  const bool first = wanted_.insert(name).second;
  const auto found = checkpoint_.tensors.find(name);
  std::string problem;
  if (found == checkpoint_.tensors.end()) {
    problem = fmt::format("tensor '{}' is missing; a weight that is stored quantised needs it", name);
  } else {
    const auto& [shard, tensor] = found->second;
    std::string wanted;
    for (const std::vector<uint64_t>& shape : shapes)
      wanted += fmt::format("{}[{}]", wanted.empty() ? "" : " or ", fmt::join(shape, ", "));
    if (!IsListed(types, tensor->type->name)) {
      problem = fmt::format("{}: tensor '{}' has dtype {}; wanted {}", shard->name, name, tensor->type->name, types);
    } else if (!shapes.empty() && std::find(shapes.begin(), shapes.end(), tensor->shape) == shapes.end()) {
      problem = fmt::format("{}: tensor '{}' has shape {}; config.json and the other tensors of this weight ask for {}",
                            shard->name, name, tensor->ShapeText(), wanted);
    } else {
      *place = found->second;
      return tensor;
    }
  }
  if (first) Complain(std::move(problem));
  return nullptr;
}

bool WeightsPlan::LocateQuantized(Part* part) {
  if (family_.storage == Storage::kConv1d)
    return Complain(fmt::format("'{}': quantised weights of {} are not supported; use the float32, float16 or bfloat16 model",
                                part->name, family_.architecture));
  const std::string base = BaseOf(part->name);
  StoredQuant stored = {.rows = static_cast<int64_t>(part->shape[0]), .cols = static_cast<int64_t>(part->shape[1])};
  const auto has = [&](std::string_view suffix) { return checkpoint_.tensors.contains(fmt::format("{}{}", base, suffix)); };
  const bool located = has(".qweight")         ? LocateByInput(base, &stored, part)
                       : has(".weight_packed") ? LocatePacked(base, &stored, part)
                                               : LocateBytes(base, &stored, part);
  if (!located) return false;
  stored.scale_type = *ScaleTypeOf(part->scales.tensor->type->name);
  part->stored = std::move(stored);
  return true;
}

// How many inputs share a scale, from how many scales a row has; the config decides where the row is no multiple of that.
bool WeightsPlan::SetGroups(const std::string& name, uint64_t groups, StoredQuant* stored) {
  const uint64_t cols = static_cast<uint64_t>(stored->cols);
  stored->groups = static_cast<int64_t>(groups);
  stored->group = 0;
  if (groups == 1) return true;
  for (const int64_t size : config_.quantized.group_sizes)
    if (CeilDiv(cols, static_cast<uint64_t>(size)) == groups) stored->group = size;
  if (stored->group == 0 && groups > 0 && groups <= cols && cols % groups == 0)
    stored->group = static_cast<int64_t>(cols / groups);
  if (stored->group > 0) return true;
  return Complain(fmt::format("tensor '{}' has {} groups of scales for {} inputs, which is no group_size of config.json", name,
                              groups, cols));
}

// GPTQ and AWQ: qweight, qzeros and scales, whose rows are inputs or groups of them.
bool WeightsPlan::LocateByInput(const std::string& base, StoredQuant* stored, Part* part) {
  const uint64_t n = part->shape[0], k = part->shape[1];
  const QuantMethod method = config_.quantized.method;
  const bool awq = method == QuantMethod::kAwq;
  const std::string name = base + ".qweight";
  if (!awq && method != QuantMethod::kGptq)
    return Complain(fmt::format("tensor '{}' is of gptq or awq, but quant_method is {}", name, Name(method)));
  const std::vector<std::vector<uint64_t>> shapes =
      awq ? std::vector<std::vector<uint64_t>>{{k, n / 8}} : std::vector<std::vector<uint64_t>>{{k / 8, n}, {k / 4, n}};
  const StoredTensor* codes = Want(name, "I32, U32", shapes, &part->place);
  if (codes == nullptr) {
    for (const std::string_view other : {".qzeros", ".scales", ".g_idx"}) wanted_.insert(fmt::format("{}{}", base, other));
    return false;
  }
  stored->form = awq ? CodeForm::kAwq : CodeForm::kGptq;
  stored->bits = awq || codes->shape[0] * 8 == k ? 4 : 8;
  const uint64_t per_word = 32 / static_cast<uint64_t>(stored->bits);
  if (n % per_word != 0 || (!awq && k % per_word != 0))
    return Complain(fmt::format("'{}' is [{}, {}]; {} bits need multiples of {}", part->name, n, k, stored->bits, per_word));
  const auto scales = checkpoint_.tensors.find(base + ".scales");
  const uint64_t groups = scales == checkpoint_.tensors.end() || scales->second.tensor->shape.size() != 2
                              ? CeilDiv(k, 128)
                              : scales->second.tensor->shape[0];
  stored->zeros = true;
  stored->zeros_minus_one = config_.quantized.zeros_minus_one;
  const bool has_scales = Want(base + ".scales", kScaleTypes, {{groups, n}}, &part->scales) != nullptr;
  if (Want(base + ".qzeros", "I32, U32", {{groups, n / per_word}}, &part->zeros) == nullptr || !has_scales) {
    wanted_.insert(base + ".g_idx");
    return false;
  }
  if (!SetGroups(base + ".scales", groups, stored)) return false;
  if (!awq && checkpoint_.tensors.contains(base + ".g_idx") && !LocateGroupOf(base + ".g_idx", stored, part)) return false;
  return DropPlainZeros(stored, part);
}

// compressed-tensors, codes in words along the inputs.
bool WeightsPlan::LocatePacked(const std::string& base, StoredQuant* stored, Part* part) {
  const uint64_t n = part->shape[0], k = part->shape[1];
  wanted_.insert(base + ".weight_shape");
  const StoredTensor* codes = Want(base + ".weight_packed", "I32, U32", {{n, CeilDiv(k, 8)}, {n, CeilDiv(k, 4)}}, &part->place);
  const auto scales = checkpoint_.tensors.find(base + ".weight_scale");
  const uint64_t groups =
      scales == checkpoint_.tensors.end() || scales->second.tensor->shape.size() != 2 ? 1 : scales->second.tensor->shape[1];
  const bool has_scales =
      Want(base + ".weight_scale", kScaleTypes, {{n, groups}, {1}, std::vector<uint64_t>()}, &part->scales) != nullptr;
  if (codes == nullptr || !has_scales) return false;
  stored->form = CodeForm::kPacked;
  stored->bits = codes->shape[1] == CeilDiv(k, 8) ? 4 : 8;
  const bool whole = part->scales.tensor->shape.size() != 2;
  if (whole) stored->scale_rows = stored->rows;
  if (!SetGroups(base + ".weight_scale", whole ? 1 : groups, stored)) return false;
  if (checkpoint_.tensors.contains(base + ".weight_zero_point")) {
    const uint64_t words = CeilDiv(n, 32 / static_cast<uint64_t>(stored->bits));
    const StoredTensor* zeros = Want(base + ".weight_zero_point", "I32, I8", {{words, groups}, {n, groups}, {1}}, &part->zeros);
    if (zeros == nullptr) return false;
    stored->zeros = true;
    stored->zeros_packed = zeros->type->name == "I32";
    const std::vector<uint64_t> fitting =
        stored->zeros_packed ? std::vector<uint64_t>{words, groups} : part->scales.tensor->shape;
    if (zeros->shape != fitting)
      return Complain(fmt::format("tensor '{}.weight_zero_point' has shape {}; wanted [{}]", base, zeros->ShapeText(),
                                  fmt::join(fitting, ", ")));
  }
  return !checkpoint_.tensors.contains(base + ".weight_g_idx") || LocateGroupOf(base + ".weight_g_idx", stored, part);
}

// One byte per code: int8 and fp8. The shape of the scales says what shares one.
bool WeightsPlan::LocateBytes(const std::string& base, StoredQuant* stored, Part* part) {
  const uint64_t n = part->shape[0], k = part->shape[1];
  const StoredTensor* codes = Want(part->name, "I8, F8_E4M3, F8_E5M2", {part->shape}, &part->place);
  const std::string scale_name =
      base + (checkpoint_.tensors.contains(base + ".weight_scale_inv") ? ".weight_scale_inv" : ".weight_scale");
  const StoredTensor* scales = Want(scale_name, "F32, F16, BF16, F8_E8M0", {}, &part->scales);
  if (codes == nullptr || scales == nullptr) return false;
  stored->form = codes->type->name == "I8"        ? CodeForm::kInt8
                 : codes->type->name == "F8_E4M3" ? CodeForm::kFp8E4M3
                                                  : CodeForm::kFp8E5M2;
  const std::vector<uint64_t>& shape = scales->shape;
  const uint64_t block_rows = static_cast<uint64_t>(config_.quantized.block_rows);
  const uint64_t block_cols = static_cast<uint64_t>(config_.quantized.block_cols);
  const uint64_t count = shape.empty() ? 1 : shape[0];
  if (shape.size() <= 1 && count == 1) {
    stored->scale_rows = stored->rows;  // one for all
  } else if (shape.size() == 2 && shape[0] == 1 && shape[1] == 1) {
    stored->scale_rows = stored->rows;
  } else if (block_rows > 0 && shape == std::vector<uint64_t>{CeilDiv(n, block_rows), CeilDiv(k, block_cols)}) {
    stored->scale_rows = static_cast<int64_t>(block_rows);
    stored->groups = static_cast<int64_t>(shape[1]);
    stored->group = stored->groups == 1 ? 0 : static_cast<int64_t>(block_cols);
  } else if ((shape.size() == 1 || shape.size() == 2) && count == n) {
    if (!SetGroups(scale_name, shape.size() == 2 ? shape[1] : 1, stored)) return false;
  } else {
    return Complain(
        fmt::format("{}: tensor '{}' has shape {}; a weight of [{}, {}] has one scale, {} of them, [{}, groups], or as "
                    "weight_block_size says",
                    part->scales.shard->name, scale_name, scales->ShapeText(), n, k, n, n));
  }
  if (stored->fp8() || !checkpoint_.tensors.contains(base + ".weight_zero_point")) return true;
  stored->zeros = true;
  stored->zeros_packed = false;
  return Want(base + ".weight_zero_point", "I8", {shape}, &part->zeros) != nullptr && DropPlainZeros(stored, part);
}

// Which group each input belongs to (act-order). Dropped where it is the plain order.
bool WeightsPlan::LocateGroupOf(const std::string& name, StoredQuant* stored, Part* part) {
  const StoredTensor* tensor = Want(name, "I32, I64", {{static_cast<uint64_t>(stored->cols)}}, &part->group_of);
  if (tensor == nullptr) return false;
  const StatusOr<std::vector<std::byte>> bytes = ReadWhole(part->group_of);
  if (!bytes.ok()) return Complain(Message(bytes.status()));
  const size_t size = tensor->type->name == "I32" ? 4 : 8;
  std::vector<int32_t> groups;
  bool plain = true, unset = true;
  for (int64_t i = 0; i < stored->cols; ++i) {
    int64_t group = 0;
    if (size == 4) {
      int32_t narrow;
      std::memcpy(&narrow, bytes->data() + static_cast<size_t>(i) * size, size);
      group = narrow;
    } else {
      std::memcpy(&group, bytes->data() + static_cast<size_t>(i) * size, size);
    }
    unset = unset && group == -1;
    if (!unset && (group < 0 || group >= stored->groups))
      return Complain(fmt::format("{}: tensor '{}' says {} at {}; the weight has {} groups", part->group_of.shard->name, name,
                                  group, i, stored->groups));
    plain = plain && group == (stored->group == 0 ? 0 : i / stored->group);
    groups.push_back(static_cast<int32_t>(group));
  }
  if (!plain && !unset) stored->group_of = std::move(groups);
  return true;
}

// Zero points of eight bits that are all the middle are the same as none, and then the weight fits our int8.
bool WeightsPlan::DropPlainZeros(StoredQuant* stored, Part* part) {
  if (stored->bits != 8) return true;
  const StatusOr<std::vector<std::byte>> zeros = ReadWhole(part->zeros);
  if (!zeros.ok()) return Complain(Message(zeros.status()));
  const int middle = stored->form == CodeForm::kInt8 ? 0 : 128 - (stored->zeros_minus_one ? 1 : 0);
  stored->zeros = std::any_of(zeros->begin(), zeros->end(), [&](std::byte b) { return std::to_integer<int>(b) != middle; });
  return true;
}

// How a group of parts is packed: as asked for; otherwise in the one format that holds all of them exactly, or as values. Inputs
// may have another order only when it is one for all parts.
QuantFormat WeightsPlan::ChooseFormat(const PartGroup& group) const {
  if (group.kind != PartGroup::Kind::kLinear || group.float32) return {};
  const auto asked = [&]() -> QuantFormat {
    if (!asked_quantization_) return {};
    return group.head ? FormatOfHead(*asked_quantization_) : *asked_quantization_;
  };
  QuantFormat common;
  for (const Part& part : group.parts) {
    const bool codes = part.stored && !part.rearrange.transpose && group.parts[0].stored &&
                       part.stored->group_of == group.parts[0].stored->group_of;
    const QuantFormat exact = codes ? ExactFormat(*part.stored) : QuantFormat();
    // Kernels for small floats read activations as bfloat16, which is what the user gets who has not asked for more.
    if (!exact || (!exact.integer() && dtype_ != DType::kBF16)) return asked();
    if (!common || Holds(exact, common)) {
      common = exact;
    } else if (!Holds(common, exact)) {
      return asked();
    }
  }
  if (!asked_quantization_ || !common.ordered) return asked_quantization_ ? asked() : common;
  QuantFormat ordered = asked();
  ordered.ordered = true;
  return Holds(ordered, common) ? ordered : asked();
}

}  // namespace kvasir
