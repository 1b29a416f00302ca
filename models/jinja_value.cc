#include "models/jinja_value.h"

#include <algorithm>
#include <cmath>

#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

constexpr size_t kObjectBytes = 64;
constexpr int64_t kMaxWeight = int64_t{1} << 40;

size_t Mix(size_t a, size_t b) {
  return (a ^ (b + 0x9e3779b97f4a7c15ull + (a << 6) + (a >> 2))) * 0xff51afd7ed558ccdull;
}

Status TooDeep() {
  return InvalidArgument("template budget exceeded: values nest deeper than {} levels; simplify the template or its input",
                         kMaxValueDepth);
}

}  // namespace

const Value* DictObj::Find(const Value& key) const {
  if (index.empty()) {
    for (const auto& [k, v] : items) {
      if (Equal(k, key)) return &v;
    }
    return nullptr;
  }
  const auto [first, last] = index.equal_range(Hash(key));
  for (auto it = first; it != last; ++it) {
    if (Equal(items[it->second].first, key)) return &items[it->second].second;
  }
  return nullptr;
}

const Value* DictObj::Find(std::string_view key) const {
  const auto matches = [&](const Value& k) { return k.is_string() && k.text() == key; };
  if (index.empty()) {
    for (const auto& [k, v] : items) {
      if (matches(k)) return &v;
    }
    return nullptr;
  }
  const auto [first, last] = index.equal_range(std::hash<std::string_view>()(key));
  for (auto it = first; it != last; ++it) {
    if (matches(items[it->second].first)) return &items[it->second].second;
  }
  return nullptr;
}

void DictObj::Set(const Value& key, const Value& value) {
  if (const Value* found = Find(key)) {
    *const_cast<Value*>(found) = value;
    return;
  }
  items.emplace_back(key, value);
  if (!index.empty()) {
    index.emplace(Hash(key), static_cast<uint32_t>(items.size() - 1));
  } else if (items.size() > 8) {
    for (size_t i = 0; i < items.size(); i++) index.emplace(Hash(items[i].first), static_cast<uint32_t>(i));
  }
}

Int RangeObj::size() const {
  if (step > 0) return start < stop ? (stop - start - 1) / step + 1 : 0;
  return start > stop ? (start - stop - 1) / -step + 1 : 0;
}

Heap::~Heap() {
  for (auto& ns : namespaces_) ns->attributes.clear();
}

Status Heap::Step(int64_t n) {
  steps_left_ -= n;
  if (steps_left_ >= 0) return OkStatus();
  return InvalidArgument("template budget exceeded: more than {} steps; simplify the template or shorten its input",
                         limits_.steps);
}

Status Heap::Check(Int bytes) const {
  if (bytes > static_cast<Int>(limits_.memory_bytes) || live_ + static_cast<size_t>(bytes) > limits_.memory_bytes) {
    return InvalidArgument("template budget exceeded: more than {} bytes of memory; simplify the template or shorten its input",
                           limits_.memory_bytes);
  }
  return OkStatus();
}

Status Heap::Reserve(Int bytes) {
  KVASIR_RETURN_IF_ERROR(Check(bytes));
  return Step(static_cast<int64_t>(bytes / 64));
}

Status Heap::Adopt(Object* object, size_t bytes) {
  bytes += kObjectBytes;
  KVASIR_RETURN_IF_ERROR(Reserve(static_cast<Int>(bytes)));
  if (object->depth > kMaxValueDepth) return TooDeep();
  object->account = &live_;
  object->charged = bytes;
  live_ += bytes;
  return OkStatus();
}

StatusOr<Value> Heap::String(std::string text, bool markup) {
  auto object = std::make_shared<StrObj>();
  object->ascii = IsAscii(text);
  object->text = std::move(text);
  object->markup = markup;
  object->weight = 1 + static_cast<int64_t>(object->text.size() / 64);
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), object->text.size()));
  return Value(Type::kString, std::move(object));
}

StatusOr<Value> Heap::Sequence(Type type, std::vector<Value> items) {
  auto object = std::make_shared<SeqObj>();
  object->hashable = type == Type::kTuple;
  for (const Value& v : items) {
    object->hashable &= v.hashable();
    object->depth = std::max(object->depth, v.depth() + 1);
    object->weight = std::min(object->weight + v.weight(), kMaxWeight);
  }
  object->items = std::move(items);
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), object->items.size() * sizeof(Value)));
  return Value(type, std::move(object));
}

StatusOr<Value> Heap::Dict(const std::vector<std::pair<Value, Value>>& items) {
  KVASIR_RETURN_IF_ERROR(Reserve(static_cast<Int>(items.size()) * 160));
  auto object = std::make_shared<DictObj>();
  object->hashable = false;
  for (const auto& [k, v] : items) {
    if (!k.hashable()) return InvalidArgument("unhashable type: '{}' cannot be the key of a dict", TypeName(k));
    object->depth = std::max({object->depth, k.depth() + 1, v.depth() + 1});
    object->weight = std::min(object->weight + k.weight() + v.weight(), kMaxWeight);
    if (k.weight() > 1) KVASIR_RETURN_IF_ERROR(Step(8 * k.weight()));
    object->Set(k, v);
  }
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), object->items.size() * 160));
  return Value(Type::kDict, std::move(object));
}

StatusOr<Value> Heap::Namespace() {
  auto object = std::make_shared<NamespaceObj>();
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), 128));
  namespaces_.push_back(object);
  return Value(Type::kNamespace, std::move(object));
}

Status Heap::SetAttribute(const Value& ns, std::string_view name, const Value& value) {
  if (name.starts_with('_')) {
    return InvalidArgument("a namespace cannot hold '{}': names that begin with an underscore are refused; rename it", name);
  }
  auto& object = ns.object<NamespaceObj>();
  object.depth = std::max(object.depth, value.depth() + 1);
  if (object.depth > kMaxValueDepth) return TooDeep();
  const auto [it, added] = object.index.try_emplace(std::string(name), object.attributes.size());
  if (!added) {
    object.attributes[it->second].second = value;
    return OkStatus();
  }
  object.attributes.emplace_back(name, value);
  KVASIR_RETURN_IF_ERROR(Reserve(200));
  live_ += 200;
  object.charged += 200;
  return OkStatus();
}

StatusOr<Value> Heap::Generator(int depth, std::function<StatusOr<bool>(Value*)> next) {
  auto object = std::make_shared<GeneratorObj>();
  object->depth = depth + 1;
  object->next = std::move(next);
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), 256));
  return Value(Type::kGenerator, std::move(object));
}

StatusOr<Value> Heap::View(const Value& dict, ViewKind kind) {
  auto object = std::make_shared<ViewObj>();
  object->dict = dict;
  object->kind = kind;
  object->hashable = kind == ViewKind::kValues;
  object->depth = dict.depth() + 1;
  object->weight = dict.weight();
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), sizeof(ViewObj)));
  return Value(Type::kView, std::move(object));
}

StatusOr<Value> Heap::Range(Int start, Int stop, Int step) {
  auto object = std::make_shared<RangeObj>();
  object->start = start;
  object->stop = stop;
  object->step = step;
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), sizeof(RangeObj)));
  return Value(Type::kRange, std::move(object));
}

StatusOr<Value> Heap::Function(std::string name) {
  auto object = std::make_shared<FunctionObj>();
  object->name = std::move(name);
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), sizeof(FunctionObj)));
  return Value(Type::kFunction, std::move(object));
}

StatusOr<Value> Heap::Method(const Value& self, std::string name) {
  auto object = std::make_shared<MethodObj>();
  object->self = self;
  object->name = std::move(name);
  object->depth = self.depth() + 1;
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), sizeof(MethodObj)));
  return Value(Type::kMethod, std::move(object));
}

StatusOr<Value> Heap::Undefined(std::string message) {
  auto object = std::make_shared<UndefinedObj>();
  object->message = std::move(message);
  KVASIR_RETURN_IF_ERROR(Adopt(object.get(), object->message.size()));
  return Value(Type::kUndefined, std::move(object));
}

StatusOr<Value> Heap::FromJson(const nlohmann::ordered_json& json, int depth) {
  if (depth > kMaxValueDepth) return TooDeep();
  switch (json.type()) {
    case nlohmann::json::value_t::boolean:
      return Value::Bool(json.get<bool>());
    case nlohmann::json::value_t::number_integer:
      return Value::Integer(json.get<int64_t>());
    case nlohmann::json::value_t::number_unsigned:
      return Value::Integer(json.get<uint64_t>());
    case nlohmann::json::value_t::number_float:
      return Value::Float(json.get<double>());
    case nlohmann::json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (!IsValidUtf8(text)) return InvalidArgument("the template's input holds text that is not valid UTF-8");
      return String(text);
    }
    case nlohmann::json::value_t::array: {
      std::vector<Value> items;
      for (const auto& element : json) {
        KVASIR_ASSIGN_OR_RETURN(Value v, FromJson(element, depth + 1));
        items.push_back(std::move(v));
      }
      return List(std::move(items));
    }
    case nlohmann::json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      for (const auto& [key, element] : json.items()) {
        if (!IsValidUtf8(key)) return InvalidArgument("the template's input holds a key that is not valid UTF-8");
        KVASIR_ASSIGN_OR_RETURN(Value k, String(key));
        KVASIR_ASSIGN_OR_RETURN(Value v, FromJson(element, depth + 1));
        items.emplace_back(std::move(k), std::move(v));
      }
      return Dict(items);
    }
    default:
      return Value::None();
  }
}

StatusOr<Iterator> Iterator::Start(const Value& source) {
  switch (source.type()) {
    case Type::kUndefined:
    case Type::kString:
    case Type::kList:
    case Type::kTuple:
    case Type::kDict:
    case Type::kGenerator:
    case Type::kView:
    case Type::kRange: {
      Iterator it;
      it.source_ = source;
      return it;
    }
    default:
      return InvalidArgument("'{}' object is not iterable", TypeName(source));
  }
}

StatusOr<bool> Iterator::Next(Heap& heap, Value* out) {
  KVASIR_RETURN_IF_ERROR(heap.Step());
  switch (source_.type()) {
    case Type::kString: {
      const std::string_view text = source_.text();
      if (at_ >= text.size()) return false;
      const size_t begin = at_;
      NextCodePoint(text, &at_);
      KVASIR_ASSIGN_OR_RETURN(*out, heap.String(std::string(text.substr(begin, at_ - begin))));
      return true;
    }
    case Type::kList:
    case Type::kTuple:
      if (at_ >= source_.items().size()) return false;
      *out = source_.items()[at_++];
      return true;
    case Type::kDict:
      if (at_ >= source_.dict().items.size()) return false;
      *out = source_.dict().items[at_++].first;
      return true;
    case Type::kGenerator: {
      const Value keep = source_;  // the generator may be the last owner of itself
      return keep.object<GeneratorObj>().next(out);
    }
    case Type::kView: {
      const auto& view = source_.object<ViewObj>();
      if (at_ >= view.dict.dict().items.size()) return false;
      const auto& [k, v] = view.dict.dict().items[at_++];
      if (view.kind == ViewKind::kItems) {
        KVASIR_ASSIGN_OR_RETURN(*out, heap.Tuple({k, v}));
      } else {
        *out = view.kind == ViewKind::kKeys ? k : v;
      }
      return true;
    }
    case Type::kRange: {
      const auto& range = source_.object<RangeObj>();
      if (static_cast<Int>(at_) >= range.size()) return false;
      *out = Value::Integer(range.start + range.step * static_cast<Int>(at_++));
      return true;
    }
    default:
      return false;
  }
}

StatusOr<std::vector<Value>> ToVector(Heap& heap, const Value& iterable) {
  KVASIR_ASSIGN_OR_RETURN(Iterator it, Iterator::Start(iterable));
  std::vector<Value> out;
  while (true) {
    Value v;
    KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(heap, &v));
    if (!more) return out;
    if (out.size() % 1024 == 1023) KVASIR_RETURN_IF_ERROR(heap.Reserve(static_cast<Int>(out.size() * sizeof(Value))));
    out.push_back(std::move(v));
  }
}

const char* TypeName(const Value& v) {
  switch (v.type()) {
    case Type::kMissing:
      return "missing";
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "NoneType";
    case Type::kBool:
      return "bool";
    case Type::kInt:
      return "int";
    case Type::kFloat:
      return "float";
    case Type::kString:
      return v.markup() ? "Markup" : "str";
    case Type::kList:
      return "list";
    case Type::kTuple:
      return "tuple";
    case Type::kDict:
      return "dict";
    case Type::kNamespace:
      return "namespace";
    case Type::kMacro:
      return "macro";
    case Type::kFunction:
      return "function";
    case Type::kMethod:
      return "method";
    case Type::kGenerator:
      return "generator";
    case Type::kView:
      return "dict view";
    case Type::kRange:
      return "range";
    case Type::kLoop:
      return "loop";
  }
  return "?";
}

bool Truthy(const Value& v) {
  switch (v.type()) {
    case Type::kMissing:
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBool:
    case Type::kInt:
      return v.int_value() != 0;
    case Type::kFloat:
      return v.double_value() != 0;
    case Type::kString:
      return !v.text().empty();
    case Type::kList:
    case Type::kTuple:
      return !v.items().empty();
    case Type::kDict:
      return !v.dict().items.empty();
    case Type::kView:
      return !v.object<ViewObj>().dict.dict().items.empty();
    case Type::kRange:
      return v.object<RangeObj>().size() != 0;
    default:
      return true;
  }
}

Int StringLength(const Value& v) {
  return v.str().ascii ? static_cast<Int>(v.text().size()) : static_cast<Int>(CodePointCount(v.text()));
}

StatusOr<Int> Length(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
      return Int{0};
    case Type::kString:
      return StringLength(v);
    case Type::kList:
    case Type::kTuple:
      return static_cast<Int>(v.items().size());
    case Type::kDict:
      return static_cast<Int>(v.dict().items.size());
    case Type::kView:
      return static_cast<Int>(v.object<ViewObj>().dict.dict().items.size());
    case Type::kRange:
      return v.object<RangeObj>().size();
    default:
      return InvalidArgument("object of type '{}' has no length", TypeName(v));
  }
}

size_t Hash(const Value& v) {
  switch (v.type()) {
    case Type::kBool:
    case Type::kInt:
    case Type::kFloat:
      return std::hash<double>()(v.double_value() + 0.0);  // 1, 1.0 and true are one key
    case Type::kString:
      return std::hash<std::string_view>()(v.text());
    case Type::kTuple: {
      size_t h = 17;
      for (const Value& item : v.items()) h = Mix(h, Hash(item));
      return h;
    }
    case Type::kNone:
    case Type::kUndefined:
      return static_cast<size_t>(v.type());
    default:
      return std::hash<const void*>()(v.raw());
  }
}

int CompareNumbers(const Value& a, const Value& b, bool* unordered) {
  *unordered = false;
  if (a.is_integral() && b.is_integral()) return a.int_value() < b.int_value() ? -1 : a.int_value() > b.int_value();
  if (a.is_integral()) return -CompareNumbers(b, a, unordered);
  const double x = a.double_value();
  if (b.is(Type::kFloat)) {
    const double y = b.double_value();
    *unordered = std::isnan(x) || std::isnan(y);
    return x < y ? -1 : x > y;
  }
  // A float against an integer, exactly.
  *unordered = std::isnan(x);
  if (std::isnan(x)) return 0;
  if (x >= 1e38) return 1;
  if (x <= -1e38) return -1;
  const Int whole = static_cast<Int>(std::floor(x));
  if (whole != b.int_value()) return whole < b.int_value() ? -1 : 1;
  return x > std::floor(x) ? 1 : 0;
}

bool Equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    bool unordered;
    return CompareNumbers(a, b, &unordered) == 0 && !unordered;
  }
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kUndefined:
    case Type::kNone:
      return true;
    case Type::kString:
      return a.text() == b.text();
    case Type::kList:
    case Type::kTuple:
      return a.raw() == b.raw() || std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(), Equal);
    case Type::kDict:
      if (a.raw() == b.raw()) return true;
      return a.dict().items.size() == b.dict().items.size() &&
             std::all_of(a.dict().items.begin(), a.dict().items.end(), [&](const auto& item) {
               const Value* other = b.dict().Find(item.first);
               return other != nullptr && Equal(item.second, *other);
             });
    case Type::kView: {  // views of keys and of items compare as sets
      const auto &x = a.object<ViewObj>(), &y = b.object<ViewObj>();
      if (&x == &y) return true;
      if (x.kind != y.kind || x.kind == ViewKind::kValues) return false;
      if (x.kind == ViewKind::kItems) return Equal(x.dict, y.dict);
      const auto &keys = x.dict.dict().items, &others = y.dict.dict().items;
      return keys.size() == others.size() &&
             std::all_of(keys.begin(), keys.end(), [&](const auto& item) { return y.dict.dict().Find(item.first) != nullptr; });
    }
    case Type::kRange: {
      const auto &x = a.object<RangeObj>(), &y = b.object<RangeObj>();
      if (x.size() != y.size()) return false;
      return x.size() == 0 || (x.start == y.start && (x.size() == 1 || x.step == y.step));
    }
    case Type::kMethod: {
      const auto &x = a.object<MethodObj>(), &y = b.object<MethodObj>();
      return x.name == y.name && Same(x.self, y.self);
    }
    default:
      return a.raw() == b.raw();
  }
}

StatusOr<bool> Less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    bool unordered;
    const int order = CompareNumbers(a, b, &unordered);
    return order < 0 && !unordered;
  }
  if (a.is_string() && b.is_string()) return a.text() < b.text();
  if (a.is_sequence() && a.type() == b.type()) {
    const auto &x = a.items(), &y = b.items();
    for (size_t i = 0; i < x.size() && i < y.size(); i++) {
      if (!Equal(x[i], y[i])) return Less(x[i], y[i]);
    }
    return x.size() < y.size();
  }
  if (a.undefined() || b.undefined()) return InvalidArgument("an undefined value cannot be ordered");
  return InvalidArgument("'<' not supported between instances of '{}' and '{}'", TypeName(a), TypeName(b));
}

bool Same(const Value& a, const Value& b) {
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kNone:
      return true;
    case Type::kBool:
    case Type::kInt:
      return a.int_value() == b.int_value();
    case Type::kFloat:
      return a.double_value() == b.double_value();
    case Type::kString:
      return a.text() == b.text();
    default:
      return a.raw() == b.raw();
  }
}

}  // namespace kvasir::jinja
