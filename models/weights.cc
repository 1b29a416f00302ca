#include "models/weights.h"

#include <algorithm>

#include "models/weights_plan.h"
#include "models/weights_read.h"

namespace kvasir {
namespace {

Status PackGroup(const PartGroup& group, const std::byte* data, const ModelWeights& weights, Device* device) {
  std::vector<HostMatrix> parts;
  for (const Part& part : group.parts) {
    parts.push_back({data + part.offset, part.dtype, part.out_rows, part.out_cols, part.name, part.quant});
    if (!part.quant) continue;
    parts.back().order = part.quant.ordered ? part.input_order.data() : nullptr;
    parts.back().scales = data + part.scales_offset;
    if (part.quant.kind == QuantFormat::Kind::kInt4)
      parts.back().lows = reinterpret_cast<const uint16_t*>(data + part.lows_offset);
  }
  const auto pack = [&]() -> StatusOr<Weight> {
    switch (group.kind) {
      case PartGroup::Kind::kEmbedding:
        return device->PackEmbedding(parts[0], weights.dtype);
      case PartGroup::Kind::kLinear:
        return device->PackLinear(parts, group.float32 ? DType::kF32 : weights.dtype, group.quant);
      case PartGroup::Kind::kVector:
        return device->PackVector(parts);
    }
    return Internal("unknown kind of weight");
  };
  KVASIR_ASSIGN_OR_RETURN(*group.packed, pack());
  if (group.also_linear != nullptr) {
    KVASIR_ASSIGN_OR_RETURN(*group.also_linear, device->PackLinear(parts, weights.dtype, group.also_quant));
  }
  return OkStatus();
}

std::string Hex(const XXH128_hash_t& hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

size_t PackedBytes(const Weight& weight) {
  if (weight.quant) return weight.quant.Bytes(weight.rows, weight.cols);
  return static_cast<size_t>(weight.rows) * weight.cols * SizeOf(weight.dtype);
}

// A weight of the plan, and how it is packed. In the plan's order.
struct PlannedWeight {
  PackingKind kind;
  Weight* weight;
};

std::vector<PlannedWeight> ListWeights(const std::vector<PartGroup>& groups) {
  std::vector<PlannedWeight> all;
  for (const PartGroup& group : groups) {
    const PackingKind kind = group.kind == PartGroup::Kind::kEmbedding ? PackingKind::kEmbedding
                             : group.kind == PartGroup::Kind::kVector  ? PackingKind::kVector
                                                                       : PackingKind::kLinear;
    all.push_back({kind, group.packed});
    if (group.also_linear != nullptr) all.push_back({PackingKind::kLinear, group.also_linear});
  }
  return all;
}

// Points the plan's weights into a file of the packed cache. It was written for the same key, so that it can only fit; all the
// same, a file that does not is not used.
bool AdoptWeights(const PackedFile& file, const std::vector<PartGroup>& groups, Device* device) {
  const std::vector<PlannedWeight> all = ListWeights(groups);
  if (file.weights().size() != all.size()) return false;
  for (size_t i = 0; i < all.size(); ++i) {
    const PackedWeight& stored = file.weights()[i];
    if (stored.kind != all[i].kind || stored.bytes != device->PackedBytes(stored.kind, stored.weight)) return false;
  }
  for (size_t i = 0; i < all.size(); ++i) {
    const PackedWeight& stored = file.weights()[i];
    auto weight = device->AdoptPacked(stored.kind, stored.weight, stored.weight.packed);
    if (!weight.ok()) return false;
    *all[i].weight = *weight;
  }
  return true;
}

std::vector<PackedWeight> WeightsToKeep(const std::vector<PartGroup>& groups, const Device& device) {
  std::vector<PackedWeight> kept;
  for (const PlannedWeight& planned : ListWeights(groups))
    kept.push_back({planned.kind, *planned.weight, device.PackedBytes(planned.kind, *planned.weight)});
  return kept;
}

void CountBytes(const PartGroup& group, ModelWeights* weights) {
  const size_t linear = group.also_linear != nullptr ? PackedBytes(*group.also_linear) : 0;
  const size_t packed = PackedBytes(*group.packed);
  weights->bytes += packed + linear;
  weights->linear_bytes += linear + (group.kind == PartGroup::Kind::kLinear ? packed : 0);
}

// Names the formats of the linear weights, that of the most values first. Routers, which are float32 always, and the head are
// left out.
void DescribeFormats(const std::vector<PartGroup>& groups, const QuantizedConfig& stored, ModelWeights* weights) {
  struct Format {
    QuantFormat quant;
    int64_t values = 0;
    int weights = 0;
  };
  std::vector<Format> formats;
  for (const PartGroup& group : groups) {
    if (group.kind != PartGroup::Kind::kLinear || group.float32 || group.head) continue;
    auto format = std::find_if(formats.begin(), formats.end(), [&](const Format& f) { return f.quant == group.packed->quant; });
    if (format == formats.end()) format = formats.insert(format, {group.packed->quant});
    format->values += group.packed->rows * group.packed->cols;
    format->weights += 1;
  }
  std::stable_sort(formats.begin(), formats.end(), [](const Format& a, const Format& b) { return a.values > b.values; });
  if (!formats.empty()) weights->quantization = formats[0].quant;
  for (const Format& format : formats) {
    const std::string name = format.quant ? Name(format.quant) : std::string(Name(weights->dtype));
    weights->formats += fmt::format("{}{}", weights->formats.empty() ? "" : ", ", name);
    if (formats.size() > 1) weights->formats += fmt::format(" in {}", format.weights);
  }
  if (formats.size() > 1) weights->formats += " linear weights";
  if (stored) weights->formats += fmt::format(" (from {})", Name(stored.method));
}

}  // namespace

StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const std::string& dir, const ModelConfig& config,
                                   const Family& family, Device* device, const WeightsOptions& options) {
  ModelWeights weights;
  WeightsPlan plan(checkpoint, config, family, options);
  plan.Build(&weights);
  KVASIR_RETURN_IF_ERROR(plan.Check(dir));
  std::vector<PartGroup>& groups = plan.groups();
  weights.dtype = plan.dtype();

  std::string key;
  const std::string asked = options.quantization ? Name(*options.quantization) : config.quantized ? "as stored" : "none";
  if (!options.packed_cache.dir.empty())
    key = PackedCacheKey(checkpoint, options.config_text, fmt::format("{} {}", Name(weights.dtype), asked), *device);
  if (auto file = FindPacked(options.packed_cache, key); file != nullptr && AdoptWeights(*file, groups, device)) {
    for (const PartGroup& group : groups) CountBytes(group, &weights);
    DescribeFormats(groups, config.quantized, &weights);
    weights.hash = file->weights_hash();
    weights.mapped = std::move(file);
    if (options.progress && !options.progress(1.0, "packed weights")) return Cancelled("{}: loading was stopped", dir);
    return weights;
  }
  size_t total = 0, done = 0;
  for (const PartGroup& group : groups) total += group.bytes;
  std::string identity;
  ReadAhead reader(groups, kReadAheadBytes);
  for (size_t i = 0; i < groups.size(); ++i) {
    const PartGroup& group = groups[i];
    StatusOr<const std::byte*> data = reader.Wait(i);
    if (!data.ok()) return AtPlace(dir, data.status());
    if (const Status status = PackGroup(group, *data, weights, device); !status.ok())
      return AtPlace(fmt::format("{}: packing '{}'", dir, group.parts[0].name), status);
    reader.Release(i);
    for (const Part& part : group.parts)
      identity += fmt::format("{} {} {} {} {}\n", part.name, part.place.tensor->type->name, part.place.tensor->ShapeText(),
                              part.first_row, Hex(part.hash));
    CountBytes(group, &weights);
    done += group.bytes;
    const double fraction = static_cast<double>(done) / static_cast<double>(std::max<size_t>(total, 1));
    if (options.progress && !options.progress(fraction, group.parts[0].name)) return Cancelled("{}: loading was stopped", dir);
  }
  DescribeFormats(groups, config.quantized, &weights);
  weights.hash = Hex(XXH3_128bits(identity.data(), identity.size()));
  if (!key.empty())
    weights.keeper = std::make_shared<PackedKeeper>(options.packed_cache, key, weights.hash, WeightsToKeep(groups, *device));
  return weights;
}

}  // namespace kvasir
