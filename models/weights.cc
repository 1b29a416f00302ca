#include "models/weights.h"

#include <spdlog/spdlog.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <new>
#include <set>
#include <thread>

namespace kvasir {
namespace {

// One tensor the config asks for, and where it lies.
struct Part {
  std::string name;
  int64_t rows = 0, cols = 0;  // a vector has rows = 1 and is stored as [cols]
  Checkpoint::Place place;
  size_t offset = 0;  // in the buffer of its group
  XXH128_hash_t hash = {};
};

// Tensors read into one buffer and packed together.
struct Group {
  enum class Kind { kEmbedding, kLinear, kVector } kind = Kind::kLinear;
  std::vector<Part> parts;
  Weight* packed = nullptr;
  Weight* also_linear = nullptr;  // tied output weights
  size_t bytes = 0;
};

// The list of everything to load, with every problem found on the way.
class Plan {
 public:
  Plan(const Checkpoint& checkpoint, const ModelConfig& config, const Family& family)
      : checkpoint_(checkpoint), config_(config), names_(family.names) {}

  void Build(ModelWeights* weights) {
    const int64_t hidden = config_.hidden_size;
    AddGroup(Group::Kind::kEmbedding, &weights->embed, {{std::string(names_.embed), config_.vocab_size, hidden}});
    if (config_.tie_word_embeddings) groups_.back().also_linear = &weights->lm_head;
    weights->layers.resize(config_.num_layers);
    for (int i = 0; i < config_.num_layers; ++i) AddLayer(fmt::format("{}{}.", names_.layer_prefix, i), &weights->layers[i]);
    AddGroup(Group::Kind::kVector, &weights->final_norm, {{std::string(names_.final_norm), 1, hidden}});
    if (!config_.tie_word_embeddings)
      AddGroup(Group::Kind::kLinear, &weights->lm_head, {{std::string(names_.lm_head), config_.vocab_size, hidden}});
  }

  Status Check(const std::string& dir) const {
    if (!problems_.empty()) return ListProblems(dir, problems_);
    std::vector<std::string> extra;
    for (const auto& [name, place] : checkpoint_.tensors) {
      // Tables that old checkpoints carry, and the second name of a tied weight: known and not needed.
      const bool known = name.ends_with("rotary_emb.inv_freq") || (config_.tie_word_embeddings && name == names_.lm_head);
      if (!known && !wanted_.contains(name)) extra.push_back(name);
    }
    const size_t num_extra = extra.size();
    extra.resize(std::min<size_t>(num_extra, 5));
    if (num_extra > 0)
      spdlog::warn("{}: {} tensors are not part of the model and are ignored: {}", dir, num_extra, fmt::join(extra, ", "));
    return OkStatus();
  }

  std::vector<Group>& groups() { return groups_; }

 private:
  void AddLayer(const std::string& prefix, LayerWeights* layer) {
    const int64_t hidden = config_.hidden_size, ffn = config_.intermediate_size;
    const int64_t q_rows = int64_t{config_.num_q_heads} * config_.head_dim,
                  kv_rows = int64_t{config_.num_kv_heads} * config_.head_dim;
    const auto weight = [&](std::string_view name, int64_t rows, int64_t cols) {
      return Part{fmt::format("{}{}.weight", prefix, name), rows, cols};
    };
    const auto bias = [&](std::string_view name, int64_t cols) { return Part{fmt::format("{}{}.bias", prefix, name), 1, cols}; };
    using Kind = Group::Kind;
    AddGroup(Kind::kVector, &layer->input_norm, {weight(names_.input_norm, 1, hidden)});
    AddGroup(Kind::kLinear, &layer->qkv,
             {weight(names_.q, q_rows, hidden), weight(names_.k, kv_rows, hidden), weight(names_.v, kv_rows, hidden)});
    AddGroup(Kind::kLinear, &layer->o, {weight(names_.o, hidden, q_rows)});
    if (config_.attention_bias) {
      AddGroup(Kind::kVector, &layer->qkv_bias.emplace(),
               {bias(names_.q, q_rows), bias(names_.k, kv_rows), bias(names_.v, kv_rows)});
      AddGroup(Kind::kVector, &layer->o_bias.emplace(), {bias(names_.o, hidden)});
    }
    AddGroup(Kind::kVector, &layer->post_norm, {weight(names_.post_norm, 1, hidden)});
    AddGroup(Kind::kLinear, &layer->gate_up, {weight(names_.gate, ffn, hidden), weight(names_.up, ffn, hidden)});
    AddGroup(Kind::kLinear, &layer->down, {weight(names_.down, hidden, ffn)});
    if (config_.mlp_bias) {
      AddGroup(Kind::kVector, &layer->gate_up_bias.emplace(), {bias(names_.gate, ffn), bias(names_.up, ffn)});
      AddGroup(Kind::kVector, &layer->down_bias.emplace(), {bias(names_.down, hidden)});
    }
  }

  void AddGroup(Group::Kind kind, Weight* packed, std::vector<Part> parts) {
    Group group{.kind = kind, .packed = packed};
    for (Part& part : parts) {
      wanted_.insert(part.name);
      if (!Locate(kind, &part)) continue;
      part.offset = group.bytes;
      // The header proved that no size leaves the file, so this sum cannot overflow.
      group.bytes += (part.place.tensor->end - part.place.tensor->begin + 63) / 64 * 64;
      group.parts.push_back(std::move(part));
    }
    groups_.push_back(std::move(group));
  }

  bool Locate(Group::Kind kind, Part* part) {
    const auto found = checkpoint_.tensors.find(part->name);
    if (found == checkpoint_.tensors.end()) {
      std::string hint;
      if (part->name == names_.lm_head) hint = "; a model without it has \"tie_word_embeddings\": true in config.json";
      problems_.push_back(fmt::format("tensor '{}' is missing{}", part->name, hint));
      return false;
    }
    part->place = found->second;
    const StoredTensor& tensor = *part->place.tensor;
    const std::string& file = part->place.shard->name;
    std::vector<uint64_t> shape = {static_cast<uint64_t>(part->rows), static_cast<uint64_t>(part->cols)};
    if (kind == Group::Kind::kVector) shape.erase(shape.begin());
    const bool fits = tensor.shape == shape;
    if (!fits)
      problems_.push_back(fmt::format("{}: tensor '{}' has shape {} but config.json asks for [{}]", file, part->name,
                                      tensor.ShapeText(), fmt::join(shape, ", ")));
    if (!tensor.type->usable)
      problems_.push_back(
          fmt::format("{}: tensor '{}' has dtype {}; supported: F32, F16, BF16", file, part->name, tensor.type->name));
    return fits && tensor.type->usable.has_value();
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const TensorNames& names_;
  std::vector<Group> groups_;
  std::set<std::string, std::less<>> wanted_;
  std::vector<std::string> problems_;
};

// Reads groups ahead of the packing thread, in order, within a limit of bytes. The group the packing thread waits for may always
// be read, so a group larger than the limit does not block.
class ReadAhead {
 public:
  ReadAhead(std::vector<Group>& groups, size_t limit) : groups_(groups), limit_(limit), slots_(groups.size()) {
    const size_t count = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 4);
    for (size_t i = 0; i < std::min(count, groups.size()); ++i) readers_.emplace_back([this] { ReadLoop(); });
  }
  ~ReadAhead() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& reader : readers_) reader.join();
  }

  // Waits for group i; must be called for 0, 1, 2, ... and each followed by Release(i).
  StatusOr<const std::byte*> Wait(size_t i) {
    std::unique_lock lock(mutex_);
    wanted_ = i;
    changed_.notify_all();
    changed_.wait(lock, [&] { return slots_[i].done; });
    if (!slots_[i].status.ok()) return slots_[i].status;
    return slots_[i].buffer.bytes.get();
  }
  void Release(size_t i) {
    {
      std::lock_guard lock(mutex_);
      in_flight_ -= groups_[i].bytes;
      spare_.push_back(std::move(slots_[i].buffer));
      if (spare_.size() > 4)
        spare_.erase(std::min_element(spare_.begin(), spare_.end(), [](auto& a, auto& b) { return a.capacity < b.capacity; }));
    }
    changed_.notify_all();
  }

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

  void ReadLoop() {
    std::unique_lock lock(mutex_);
    while (next_ < groups_.size() && !stop_) {
      const size_t i = next_++;
      Group& group = groups_[i];
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
  Buffer TakeSpare(size_t bytes) {
    for (Buffer& spare : spare_) {
      if (spare.capacity < bytes || spare.capacity > 2 * bytes + 4096) continue;
      Buffer taken = std::move(spare);
      std::swap(spare, spare_.back());
      spare_.pop_back();
      return taken;
    }
    return {};
  }

  static Status Fill(Group& group, Buffer* buffer) {
    if (buffer->capacity < group.bytes) {
      buffer->bytes.reset(new (std::nothrow) std::byte[group.bytes]);
      if (buffer->bytes == nullptr)
        return ResourceExhausted("no memory to read '{}': {} bytes; free memory or use a smaller model", group.parts[0].name,
                                 group.bytes);
      buffer->capacity = group.bytes;
    }
    for (Part& part : group.parts) {
      const StoredTensor& tensor = *part.place.tensor;
      std::byte* data = buffer->bytes.get() + part.offset;
      const Status status = part.place.shard->file->ReadAt(tensor.begin, data, tensor.end - tensor.begin);
      if (!status.ok()) return AtPlace(fmt::format("tensor '{}'", part.name), status);
      part.hash = XXH3_128bits(data, tensor.end - tensor.begin);
    }
    return OkStatus();
  }

  std::vector<Group>& groups_;
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

Status PackGroup(const Group& group, const std::byte* data, DType dtype, Device* device) {
  std::vector<HostMatrix> parts;
  for (const Part& part : group.parts)
    parts.push_back({data + part.offset, *part.place.tensor->type->usable, part.rows, part.cols, part.name});
  const auto pack = [&]() -> StatusOr<Weight> {
    switch (group.kind) {
      case Group::Kind::kEmbedding:
        return device->PackEmbedding(parts[0], dtype);
      case Group::Kind::kLinear:
        return device->PackLinear(parts, dtype);
      case Group::Kind::kVector:
        return device->PackVector(parts);
    }
    return Internal("unknown kind of weight");
  };
  KVASIR_ASSIGN_OR_RETURN(*group.packed, pack());
  if (group.also_linear != nullptr) {
    KVASIR_ASSIGN_OR_RETURN(*group.also_linear, device->PackLinear(parts, dtype));
  }
  return OkStatus();
}

std::string Hex(const XXH128_hash_t& hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

size_t PackedBytes(const Weight& weight) {
  return static_cast<size_t>(weight.rows) * weight.cols * SizeOf(weight.dtype);
}

}  // namespace

StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const std::string& dir, const ModelConfig& config,
                                   const Family& family, Device* device, const WeightsOptions& options) {
  ModelWeights weights;
  Plan plan(checkpoint, config, family);
  plan.Build(&weights);
  KVASIR_RETURN_IF_ERROR(plan.Check(dir));
  std::vector<Group>& groups = plan.groups();
  const DType stored = *groups[0].parts[0].place.tensor->type->usable;
  weights.dtype = options.dtype.value_or(stored);

  size_t total = 0, done = 0;
  for (const Group& group : groups) total += group.bytes;
  std::string identity;
  ReadAhead reader(groups, kReadAheadBytes);
  for (size_t i = 0; i < groups.size(); ++i) {
    const Group& group = groups[i];
    StatusOr<const std::byte*> data = reader.Wait(i);
    if (!data.ok()) return AtPlace(dir, data.status());
    if (const Status status = PackGroup(group, *data, weights.dtype, device); !status.ok())
      return AtPlace(fmt::format("{}: packing '{}'", dir, group.parts[0].name), status);
    reader.Release(i);
    for (const Part& part : group.parts)
      identity +=
          fmt::format("{} {} {} {}\n", part.name, part.place.tensor->type->name, part.place.tensor->ShapeText(), Hex(part.hash));
    weights.bytes += PackedBytes(*group.packed) + (group.also_linear != nullptr ? PackedBytes(*group.also_linear) : 0);
    done += group.bytes;
    if (options.progress)
      options.progress(static_cast<double>(done) / static_cast<double>(std::max<size_t>(total, 1)), group.parts[0].name);
  }
  weights.hash = Hex(XXH3_128bits(identity.data(), identity.size()));
  return weights;
}

}  // namespace kvasir
