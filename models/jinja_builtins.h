// The filters, tests, functions and methods that a Jinja template may use, found by name at parse time.
//
// Used by the parser (to refuse unknown names with their line) and by the evaluator. Arguments are bound to parameter names here,
// by Python's rules, before a built-in runs.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "models/jinja_value.h"

namespace kvasir::jinja {

class Evaluator;

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// The value of each declared parameter; missing where the caller gave none.
struct Bound {
  std::vector<Value> values;
  Args raw;  // for specs that take anything
  const Value& operator[](size_t i) const { return values[i]; }
  bool has(size_t i) const { return !values[i].missing(); }
};

// A filter or test `name(value, params...)`. `params` lists parameter names; a leading '/' makes them positional only, "*" takes
// anything. Names before '!' are required.
struct FilterSpec {
  const char* name;
  const char* params;
  StatusOr<Value> (*run)(Evaluator& eval, const Value& value, Bound& args);
};

const FilterSpec* FindFilter(std::string_view name);
const FilterSpec* FindTest(std::string_view name);
std::string FilterNames();  // "abs, attr, ...", for errors
std::string TestNames();
StatusOr<Value> RunFilter(Evaluator& eval, const FilterSpec& spec, const Value& value, Args args);

// The names every template can see: range, namespace, dict, raise_exception, strftime_now. CallFunction also knows dict.fromkeys.
extern const std::vector<std::string_view> kGlobalFunctions;
StatusOr<Value> CallFunction(Evaluator& eval, const std::string& name, Args args);

// Whether Python's type of `self` has this method; `mutates` when the sandbox forbids it.
bool HasMethod(const Value& self, std::string_view name, bool* mutates);
StatusOr<Value> CallMethod(Evaluator& eval, const Value& self, const std::string& name, Args args);

StatusOr<Bound> BindArgs(const std::string& what, std::string_view params, Args args);

// Arguments with Python's type checks.
StatusOr<Int> AsIndex(const Value& v, const char* what);  // int or bool
StatusOr<std::string_view> AsText(const Value& v, const char* what);

// Operators; `eval` supplies the heap.
StatusOr<Value> GetAttr(Evaluator& eval, const Value& object, const std::string& name);
StatusOr<Value> GetItem(Evaluator& eval, const Value& object, const Value& key);
StatusOr<Value> GetPath(Evaluator& eval, const Value& object, const Value& path);  // "a.b.0" of |map(attribute=...)
StatusOr<Value> GetSlice(Heap& heap, const Value& object, const Value& start, const Value& stop, const Value& step);
StatusOr<bool> Contains(Heap& heap, const Value& container, const Value& item);
StatusOr<Value> PercentFormat(Heap& heap, const Value& format, const Value& args);
StatusOr<Value> BraceFormat(Evaluator& eval, const Value& format, const Args& args);
Status UndefinedError(const Value& v);

// Stable, by Python's `<` on keys.
StatusOr<std::vector<Value>> SortedBy(Heap& heap, std::vector<Value> items, const std::vector<Value>& keys, bool reverse);

}  // namespace kvasir::jinja
