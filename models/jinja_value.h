// The values a Jinja template computes with: a closed set of Python-like types, and the heap that accounts for them.
//
// Used by the Jinja interpreter only. Lists, tuples, dicts and strings never change once made (the sandbox forbids it), so values
// share structure freely; only namespaces, generators and loop state change. Every object is charged to the rendering's Heap and
// refunded when it dies; no value outlives its Heap. Containers know how deep they nest, so that recursion over values is
// bounded.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "models/jinja.h"

namespace kvasir::jinja {

__extension__ typedef __int128 Int;  // wide enough for every JSON integer; Python's are unbounded, ours fail on overflow

constexpr int kMaxValueDepth = 200;  // lists in lists, generators over generators

enum class Type : uint8_t {
  kMissing,  // no value at all: an unset variable or an absent argument; never visible to a template
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kNamespace,
  kMacro,
  kFunction,
  kMethod,
  kGenerator,
  kView,
  kRange,
  kLoop,
};

// Base of everything that lives on the heap of one rendering.
struct Object {
  Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  virtual ~Object() {
    if (account != nullptr) *account -= charged;
  }
  size_t* account = nullptr;  // the Heap's count of live bytes
  size_t charged = 0;
  int depth = 1;
  bool hashable = true;  // may be the key of a dict
  int64_t weight = 1;    // how many nodes a walk over the value visits (shared parts count each time), saturating
};

struct StrObj;
struct SeqObj;
struct DictObj;

class Value {
 public:
  Value() = default;  // missing
  static Value None() { return Value(Type::kNone); }
  static Value Undefined() { return Value(Type::kUndefined); }
  static Value Bool(bool b) {
    Value v(Type::kBool);
    v.i_ = b;
    return v;
  }
  static Value Integer(Int i) {
    Value v(Type::kInt);
    v.i_ = i;
    return v;
  }
  static Value Float(double d) {
    Value v(Type::kFloat);
    v.d_ = d;
    return v;
  }
  Value(Type type, std::shared_ptr<Object> object) : type_(type), object_(std::move(object)) {}

  Type type() const { return type_; }
  bool is(Type t) const { return type_ == t; }
  bool missing() const { return type_ == Type::kMissing; }
  bool undefined() const { return type_ == Type::kUndefined; }
  bool is_string() const { return type_ == Type::kString; }
  bool is_integral() const { return type_ == Type::kInt || type_ == Type::kBool; }
  bool is_number() const { return is_integral() || type_ == Type::kFloat; }
  bool is_sequence() const { return type_ == Type::kList || type_ == Type::kTuple; }

  bool bool_value() const { return i_ != 0; }
  Int int_value() const { return i_; }
  double double_value() const { return type_ == Type::kFloat ? d_ : static_cast<double>(i_); }
  inline const StrObj& str() const;
  inline std::string_view text() const;
  inline bool markup() const;
  inline const std::vector<Value>& items() const;  // of a list or tuple
  inline const DictObj& dict() const;
  template <typename T>
  T& object() const {
    return *static_cast<T*>(object_.get());
  }
  Object* raw() const { return object_.get(); }
  int depth() const { return object_ ? object_->depth : 0; }
  bool hashable() const { return !object_ || object_->hashable; }
  int64_t weight() const { return object_ ? object_->weight : 1; }

 private:
  explicit Value(Type type) : type_(type) {}
  Type type_ = Type::kMissing;
  union {
    Int i_ = 0;
    double d_;
  };
  std::shared_ptr<Object> object_;
};

struct StrObj : Object {
  std::string text;
  bool ascii = true;
  bool markup = false;  // made by |safe or |escape: joining it with plain text escapes the plain text
};
struct SeqObj : Object {
  std::vector<Value> items;
};
struct UndefinedObj : Object {
  std::string message;  // what using the value says
};

// Insertion-ordered; keys are hashable values.
struct DictObj : Object {
  std::vector<std::pair<Value, Value>> items;
  std::unordered_multimap<size_t, uint32_t> index;  // hash to position, once there are more than 8 items
  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  void Set(const Value& key, const Value& value);
};
struct NamespaceObj : Object {
  std::vector<std::pair<std::string, Value>> attributes;
  std::unordered_map<std::string, size_t> index;
};
// A lazily computed sequence that can be walked once. `next` puts the next item in its argument and returns false at the end.
struct GeneratorObj : Object {
  std::function<StatusOr<bool>(Value*)> next;
};
enum class ViewKind : uint8_t { kKeys, kValues, kItems };
struct ViewObj : Object {
  Value dict;
  ViewKind kind;
};
struct RangeObj : Object {
  Int start = 0, stop = 0, step = 1;
  Int size() const;
};
struct FunctionObj : Object {
  std::string name;
};
struct MethodObj : Object {
  Value self;
  std::string name;
};

const StrObj& Value::str() const {
  return object<StrObj>();
}
std::string_view Value::text() const {
  return object<StrObj>().text;
}
bool Value::markup() const {
  return type_ == Type::kString && object<StrObj>().markup;
}
const std::vector<Value>& Value::items() const {
  return object<SeqObj>().items;
}
const DictObj& Value::dict() const {
  return object<DictObj>();
}

// Makes values and enforces the memory and step limits of one rendering.
class Heap {
 public:
  explicit Heap(const JinjaLimits& limits) : limits_(limits), steps_left_(limits.steps) {}
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  Status Step(int64_t n = 1);
  // Whether `bytes` more would still fit.
  Status Check(Int bytes) const;
  // Check, and pays the steps for building that many bytes. Called before they are built.
  Status Reserve(Int bytes);

  StatusOr<Value> String(std::string text, bool markup = false);
  StatusOr<Value> List(std::vector<Value> items) { return Sequence(Type::kList, std::move(items)); }
  StatusOr<Value> Tuple(std::vector<Value> items) { return Sequence(Type::kTuple, std::move(items)); }
  StatusOr<Value> Sequence(Type type, std::vector<Value> items);
  StatusOr<Value> Dict(const std::vector<std::pair<Value, Value>>& items);  // a later equal key replaces the value
  StatusOr<Value> Namespace();
  Status SetAttribute(const Value& ns, std::string_view name, const Value& value);
  StatusOr<Value> Generator(int depth, std::function<StatusOr<bool>(Value*)> next);
  StatusOr<Value> View(const Value& dict, ViewKind kind);
  StatusOr<Value> Range(Int start, Int stop, Int step);
  StatusOr<Value> Function(std::string name);
  StatusOr<Value> Method(const Value& self, std::string name);
  StatusOr<Value> Undefined(std::string message);
  StatusOr<Value> FromJson(const nlohmann::ordered_json& json, int depth = 0);
  // Registers any other object: charges it and checks the limits.
  Status Adopt(Object* object, size_t bytes);

 private:
  JinjaLimits limits_;
  int64_t steps_left_;
  size_t live_ = 0;
  std::vector<std::shared_ptr<NamespaceObj>>
      namespaces_;  // emptied at the end, since namespaces may refer to each other in circles
};

// Walks any iterable. `Start` fails for a value that cannot be iterated.
class Iterator {
 public:
  static StatusOr<Iterator> Start(const Value& source);
  StatusOr<bool> Next(Heap& heap, Value* out);

 private:
  Value source_;
  size_t at_ = 0;
};

const char* TypeName(const Value& v);  // as Python names it: 'str', 'dict', 'NoneType'
bool Truthy(const Value& v);
StatusOr<Int> Length(const Value& v);  // len(); fails where Python's does
Int StringLength(const Value& v);      // code points
size_t Hash(const Value& v);
bool Equal(const Value& a, const Value& b);
StatusOr<bool> Less(const Value& a, const Value& b);                  // a < b; fails for types without an order
int CompareNumbers(const Value& a, const Value& b, bool* unordered);  // -1, 0, 1
bool Same(const Value& a, const Value& b);                            // Python's `is`
StatusOr<std::vector<Value>> ToVector(Heap& heap, const Value& iterable);
// str() and repr(), appended to `out`. Both are bounded by the heap's budget.
Status AppendStr(Heap& heap, const Value& v, std::string* out);
Status AppendRepr(Heap& heap, const Value& v, std::string* out, int depth = 0);
StatusOr<std::string> ToStr(Heap& heap, const Value& v);
std::string IntToString(Int i);

// json.dumps. `indent` is the text of one level, or null for one line.
struct JsonStyle {
  const std::string* indent = nullptr;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};
Status AppendJson(Heap& heap, const Value& v, const JsonStyle& style, int level, std::string* out);

}  // namespace kvasir::jinja
