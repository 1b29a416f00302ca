#include "models/jinja_list_filters.h"

#include <algorithm>
#include <memory>

#include "models/jinja_eval.h"
#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

// Text lowered for comparison, anything else as it is.
StatusOr<Value> IgnoreCase(Evaluator& eval, const Value& v) {
  if (!v.is_string()) return v;
  KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(v.text().size())));
  return eval.heap().String(Lower(v.text()));
}

StatusOr<Value> KeyOf(Evaluator& eval, const Value& item, const Value& attribute, bool case_sensitive) {
  KVASIR_ASSIGN_OR_RETURN(const Value v, GetPath(eval, item, attribute));
  return case_sensitive ? StatusOr<Value>(v) : IgnoreCase(eval, v);
}

StatusOr<Value> Empty(Evaluator& eval, const char* message) {
  return eval.heap().Undefined(message);
}

StatusOr<Value> FirstFilter(Evaluator& eval, const Value& v, Bound&) {
  KVASIR_ASSIGN_OR_RETURN(Iterator it, Iterator::Start(v));
  Value first;
  KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(eval.heap(), &first));
  return more ? StatusOr<Value>(first) : Empty(eval, "no first item, the sequence was empty");
}

bool Reversible(const Value& v) {
  return v.is_string() || v.is_sequence() || v.is(Type::kDict) || v.is(Type::kView) || v.is(Type::kRange) || v.undefined();
}

StatusOr<Value> LastFilter(Evaluator& eval, const Value& v, Bound&) {
  if (!Reversible(v)) return InvalidArgument("last: '{}' object is not reversible", TypeName(v));
  if (v.is_sequence() && !v.items().empty()) return v.items().back();
  KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> items, ToVector(eval.heap(), v));
  return items.empty() ? Empty(eval, "no last item, the sequence was empty") : StatusOr<Value>(items.back());
}

StatusOr<Value> FromVector(Evaluator& eval, std::vector<Value> items) {
  KVASIR_ASSIGN_OR_RETURN(const Value list, eval.heap().List(std::move(items)));
  auto at = std::make_shared<size_t>(0);
  return eval.heap().Generator(list.depth(), [&eval, list, at](Value* out) -> StatusOr<bool> {
    KVASIR_RETURN_IF_ERROR(eval.heap().Step());
    if (*at >= list.items().size()) return false;
    *out = list.items()[(*at)++];
    return true;
  });
}

StatusOr<Value> ReverseFilter(Evaluator& eval, const Value& v, Bound&) {
  if (v.is_string()) {
    std::string out;
    KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(static_cast<Int>(v.text().size())));
    for (size_t at = v.text().size(); at > 0;) {
      const size_t begin = PreviousStart(v.text(), at);
      out.append(v.text().substr(begin, at - begin));
      at = begin;
    }
    return eval.heap().String(std::move(out), v.markup());
  }
  StatusOr<std::vector<Value>> items = ToVector(eval.heap(), v);
  if (!items.ok()) return items.status();
  std::reverse(items->begin(), items->end());
  return Reversible(v) ? FromVector(eval, std::move(*items)) : eval.heap().List(std::move(*items));
}

StatusOr<Value> ListFilter(Evaluator& eval, const Value& v, Bound&) {
  KVASIR_ASSIGN_OR_RETURN(std::vector<Value> items, ToVector(eval.heap(), v));
  return eval.heap().List(std::move(items));
}

StatusOr<Value> ItemsFilter(Evaluator& eval, const Value& v, Bound&) {
  if (v.undefined()) return FromVector(eval, {});
  if (!v.is(Type::kDict)) return InvalidArgument("items: can only get item pairs from a mapping, not {}", TypeName(v));
  KVASIR_ASSIGN_OR_RETURN(const Value view, eval.heap().View(v, ViewKind::kItems));
  KVASIR_ASSIGN_OR_RETURN(std::vector<Value> items, ToVector(eval.heap(), view));
  return FromVector(eval, std::move(items));
}

StatusOr<Value> JoinFilter(Evaluator& eval, const Value& v, Bound& args) {
  std::string separator;
  if (args.has(0)) {
    KVASIR_ASSIGN_OR_RETURN(separator, ToStr(eval.heap(), args[0]));
  }
  KVASIR_ASSIGN_OR_RETURN(Iterator it, Iterator::Start(v));
  std::string out;
  for (bool first = true;; first = false) {
    Value item;
    KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(eval.heap(), &item));
    if (!more) break;
    KVASIR_ASSIGN_OR_RETURN(item, GetPath(eval, item, args[1]));
    KVASIR_RETURN_IF_ERROR(eval.heap().Check(static_cast<Int>(out.size() + separator.size())));
    KVASIR_RETURN_IF_ERROR(eval.heap().Step(static_cast<int64_t>(separator.size() / 64)));
    if (!first) out += separator;
    KVASIR_RETURN_IF_ERROR(AppendStr(eval.heap(), item, &out));
    KVASIR_RETURN_IF_ERROR(eval.heap().Check(static_cast<Int>(out.size())));
  }
  return eval.heap().String(std::move(out));
}

StatusOr<Value> SortFilter(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(std::vector<Value> items, ToVector(eval.heap(), v));
  const bool case_sensitive = args.has(1) && Truthy(args[1]);
  std::vector<Value> paths = {args[2]};
  if (args[2].is_string() && args[2].text().find(',') != std::string_view::npos) {
    paths.clear();
    for (const auto part : Split(args[2].text(), ",", -1)) {
      KVASIR_ASSIGN_OR_RETURN(Value path, eval.heap().String(std::string(part)));
      paths.push_back(std::move(path));
    }
  }
  std::vector<Value> keys;
  for (const Value& item : items) {
    std::vector<Value> key;
    for (const Value& path : paths) {
      KVASIR_ASSIGN_OR_RETURN(Value part, KeyOf(eval, item, path, case_sensitive));
      key.push_back(std::move(part));
    }
    KVASIR_ASSIGN_OR_RETURN(Value tuple, eval.heap().List(std::move(key)));
    keys.push_back(std::move(tuple));
  }
  KVASIR_ASSIGN_OR_RETURN(items, SortedBy(eval.heap(), std::move(items), keys, args.has(0) && Truthy(args[0])));
  return eval.heap().List(std::move(items));
}

StatusOr<Value> DictSortFilter(Evaluator& eval, const Value& v, Bound& args) {
  if (v.undefined()) return UndefinedError(v);
  std::string_view by = "key";
  if (args.has(1)) {
    if (!args[1].is_string()) return InvalidArgument("dictsort: sort by 'key' or 'value'");
    by = args[1].text();
  }
  if (by != "key" && by != "value") return InvalidArgument("dictsort: sort by 'key' or 'value'");
  if (!v.is(Type::kDict)) return InvalidArgument("dictsort: '{}' object has no items", TypeName(v));
  std::vector<Value> items, keys;
  for (const auto& [key, value] : v.dict().items) {
    KVASIR_ASSIGN_OR_RETURN(Value pair, eval.heap().Tuple({key, value}));
    items.push_back(std::move(pair));
    KVASIR_ASSIGN_OR_RETURN(Value k, KeyOf(eval, by == "key" ? key : value, Value(), args.has(0) && Truthy(args[0])));
    keys.push_back(std::move(k));
  }
  KVASIR_ASSIGN_OR_RETURN(items, SortedBy(eval.heap(), std::move(items), keys, args.has(2) && Truthy(args[2])));
  return eval.heap().List(std::move(items));
}

template <bool kMax>
StatusOr<Value> ExtremeFilter(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(Iterator it, Iterator::Start(v));
  Value best, best_key;
  while (true) {
    Value item;
    KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(eval.heap(), &item));
    if (!more) break;
    KVASIR_ASSIGN_OR_RETURN(const Value key, KeyOf(eval, item, args[1], args.has(0) && Truthy(args[0])));
    if (!best.missing()) {
      KVASIR_RETURN_IF_ERROR(eval.heap().Step(std::min(key.weight(), best_key.weight())));
      KVASIR_ASSIGN_OR_RETURN(const bool better, kMax ? Less(best_key, key) : Less(key, best_key));
      if (!better) continue;
    }
    best = item;
    best_key = key;
  }
  return best.missing() ? Empty(eval, "no aggregated item, the sequence was empty") : StatusOr<Value>(best);
}

StatusOr<Value> SumFilter(Evaluator& eval, const Value& v, Bound& args) {
  Value total = args.has(1) ? args[1] : Value::Integer(0);
  if (total.is_string()) return InvalidArgument("sum: strings cannot be summed, use join");
  KVASIR_ASSIGN_OR_RETURN(Iterator it, Iterator::Start(v));
  while (true) {
    Value item;
    KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(eval.heap(), &item));
    if (!more) return total;
    KVASIR_ASSIGN_OR_RETURN(item, GetPath(eval, item, args[0]));
    KVASIR_ASSIGN_OR_RETURN(total, Binary(eval.heap(), Op::kAdd, total, item));
  }
}

StatusOr<Value> UniqueFilter(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(Iterator start, Iterator::Start(v));
  auto it = std::make_shared<Iterator>(std::move(start));
  auto seen = std::make_shared<std::unordered_multimap<size_t, Value>>();
  const bool case_sensitive = args.has(0) && Truthy(args[0]);
  return eval.heap().Generator(v.depth(), [&eval, it, seen, case_sensitive, path = args[1]](Value* out) -> StatusOr<bool> {
    while (true) {
      KVASIR_ASSIGN_OR_RETURN(const bool more, it->Next(eval.heap(), out));
      if (!more) return false;
      KVASIR_ASSIGN_OR_RETURN(const Value key, KeyOf(eval, *out, path, case_sensitive));
      if (!key.hashable()) return InvalidArgument("unique: unhashable type: '{}'", TypeName(key));
      KVASIR_RETURN_IF_ERROR(eval.heap().Step(2 * key.weight()));
      const auto [first, last] = seen->equal_range(Hash(key));
      if (std::any_of(first, last, [&](const auto& s) { return Equal(s.second, key); })) continue;
      KVASIR_RETURN_IF_ERROR(eval.heap().Check(static_cast<Int>(seen->size() * 128)));
      seen->emplace(Hash(key), key);
      return true;
    }
  });
}

StatusOr<Value> BatchFilter(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const Int count, AsIndex(args[0], "batch"));
  KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> items, ToVector(eval.heap(), v));
  std::vector<Value> batches, batch;
  const auto flush = [&]() -> Status {
    KVASIR_ASSIGN_OR_RETURN(Value list, eval.heap().List(std::exchange(batch, {})));
    batches.push_back(std::move(list));
    return OkStatus();
  };
  for (const Value& item : items) {
    if (static_cast<Int>(batch.size()) == count) KVASIR_RETURN_IF_ERROR(flush());
    batch.push_back(item);
  }
  if (!batch.empty()) {
    const bool fill = args.has(1) && !args[1].is(Type::kNone);
    if (fill && count > static_cast<Int>(batch.size())) {
      const Int missing = count - static_cast<Int>(batch.size());
      KVASIR_RETURN_IF_ERROR(eval.heap().Reserve(missing > (Int{1} << 40) ? missing : missing * static_cast<Int>(sizeof(Value))));
      batch.resize(static_cast<size_t>(count), args[1]);
    }
    KVASIR_RETURN_IF_ERROR(flush());
  }
  return FromVector(eval, std::move(batches));
}

StatusOr<Value> SliceFilter(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(const Int slices, AsIndex(args[0], "slice"));
  KVASIR_ASSIGN_OR_RETURN(const std::vector<Value> items, ToVector(eval.heap(), v));
  if (slices == 0) return InvalidArgument("division by zero");
  if (slices > 100'000)
    return InvalidArgument("template budget exceeded: slice({}) but the limit is 100000", IntToString(slices));
  std::vector<Value> out;
  size_t at = 0;
  for (Int i = 0; i < slices; i++) {
    const auto size = static_cast<Int>(items.size());
    const Int take = size / slices + (i < size % slices ? 1 : 0);
    std::vector<Value> part(items.begin() + static_cast<int64_t>(at),
                            items.begin() + static_cast<int64_t>(at) + static_cast<int64_t>(take));
    at += static_cast<size_t>(take);
    if (args.has(1) && !args[1].is(Type::kNone) && i >= size % slices) part.push_back(args[1]);
    KVASIR_ASSIGN_OR_RETURN(Value list, eval.heap().List(std::move(part)));
    out.push_back(std::move(list));
  }
  return FromVector(eval, std::move(out));
}

StatusOr<Value> GroupByFilter(Evaluator& eval, const Value& v, Bound& args) {
  KVASIR_ASSIGN_OR_RETURN(std::vector<Value> items, ToVector(eval.heap(), v));
  const bool case_sensitive = args.has(2) && Truthy(args[2]);
  const auto key_of = [&](const Value& item, bool folded) -> StatusOr<Value> {
    KVASIR_ASSIGN_OR_RETURN(Value key, GetPath(eval, item, args[0]));
    if (key.undefined() && args.has(1) && !args[1].is(Type::kNone)) key = args[1];
    return folded ? IgnoreCase(eval, key) : StatusOr<Value>(key);
  };
  std::vector<Value> keys;
  for (const Value& item : items) {
    KVASIR_ASSIGN_OR_RETURN(Value key, key_of(item, !case_sensitive));
    keys.push_back(std::move(key));
  }
  KVASIR_ASSIGN_OR_RETURN(items, SortedBy(eval.heap(), std::move(items), keys, false));
  std::vector<Value> groups, group;
  Value current;
  const auto flush = [&]() -> Status {
    KVASIR_ASSIGN_OR_RETURN(Value name, key_of(group[0], false));
    KVASIR_ASSIGN_OR_RETURN(Value list, eval.heap().List(std::exchange(group, {})));
    KVASIR_ASSIGN_OR_RETURN(Value pair, eval.heap().Tuple({std::move(name), std::move(list)}));
    groups.push_back(std::move(pair));
    return OkStatus();
  };
  for (const Value& item : items) {
    KVASIR_ASSIGN_OR_RETURN(const Value key, key_of(item, !case_sensitive));
    KVASIR_RETURN_IF_ERROR(eval.heap().Step(key.weight()));
    if (!group.empty() && !Equal(key, current)) KVASIR_RETURN_IF_ERROR(flush());
    current = key;
    group.push_back(item);
  }
  if (!group.empty()) KVASIR_RETURN_IF_ERROR(flush());
  return eval.heap().List(std::move(groups));
}

// --- map, select, reject: lazy, and empty for anything false ---

StatusOr<Value> MapFilter(Evaluator& eval, const Value& v, Bound& args) {
  if (!Truthy(v)) return FromVector(eval, {});
  Args& raw = args.raw;
  Value path, fallback;
  const FilterSpec* filter = nullptr;
  Status failure = OkStatus();  // wrong arguments are noticed when the first item is asked for, as Python's generators do
  if (raw.positional.empty()) {
    for (auto& [name, value] : raw.named) {
      if (name == "attribute")
        path = value;
      else if (name == "default")
        fallback = value;
      else
        failure = InvalidArgument("map: unexpected keyword argument '{}'", name);
    }
    if (path.missing()) failure = InvalidArgument("map requires a filter argument");
  } else {
    if (raw.positional[0].is_string()) filter = FindFilter(raw.positional[0].text());
    if (filter == nullptr) failure = InvalidArgument("map: no such filter");
    raw.positional.erase(raw.positional.begin());
  }
  KVASIR_ASSIGN_OR_RETURN(Iterator start, Iterator::Start(v));
  auto it = std::make_shared<Iterator>(std::move(start));
  return eval.heap().Generator(v.depth(),
                               [&eval, it, filter, path, fallback, failure, raw = std::move(raw)](Value* out) -> StatusOr<bool> {
                                 if (!failure.ok() && !path.missing()) return failure;
                                 Value item;
                                 KVASIR_ASSIGN_OR_RETURN(const bool more, it->Next(eval.heap(), &item));
                                 if (!more) return false;
                                 if (!failure.ok()) return failure;
                                 if (filter != nullptr) {
                                   KVASIR_ASSIGN_OR_RETURN(*out, RunFilter(eval, *filter, item, raw));
                                   return true;
                                 }
                                 KVASIR_ASSIGN_OR_RETURN(*out, GetPath(eval, item, path));
                                 if (out->undefined() && !fallback.missing() && !fallback.is(Type::kNone)) *out = fallback;
                                 return true;
                               });
}

template <bool kKeep, bool kAttribute>
StatusOr<Value> SelectFilter(Evaluator& eval, const Value& v, Bound& args) {
  if (!Truthy(v)) return FromVector(eval, {});
  Args& raw = args.raw;
  Value path;
  const FilterSpec* test = nullptr;
  Status failure = OkStatus();
  if (kAttribute) {
    if (raw.positional.empty()) {
      failure = InvalidArgument("missing parameter for attribute name");
    } else {
      path = raw.positional[0];
      raw.positional.erase(raw.positional.begin());
    }
  }
  if (!raw.positional.empty()) {
    if (raw.positional[0].is_string()) test = FindTest(raw.positional[0].text());
    if (test == nullptr)
      failure = InvalidArgument("no test named '{}'", raw.positional[0].is_string() ? raw.positional[0].text() : "?");
    raw.positional.erase(raw.positional.begin());
  }
  KVASIR_ASSIGN_OR_RETURN(Iterator start, Iterator::Start(v));
  auto it = std::make_shared<Iterator>(std::move(start));
  return eval.heap().Generator(v.depth(), [&eval, it, test, path, failure, raw = std::move(raw)](Value* out) -> StatusOr<bool> {
    while (true) {
      KVASIR_ASSIGN_OR_RETURN(const bool more, it->Next(eval.heap(), out));
      if (!more) return false;
      if (!failure.ok()) return failure;
      KVASIR_ASSIGN_OR_RETURN(Value subject, GetPath(eval, *out, path));
      if (test != nullptr) {
        KVASIR_ASSIGN_OR_RETURN(subject, RunFilter(eval, *test, subject, raw));
      }
      if (Truthy(subject) == kKeep) return true;
    }
  });
}

constexpr FilterSpec kListFilters[] = {
    {"batch", "linecount!fill_with", BatchFilter},
    {"dictsort", "case_sensitive,by,reverse", DictSortFilter},
    {"first", "", FirstFilter},
    {"groupby", "attribute!default,case_sensitive", GroupByFilter},
    {"items", "", ItemsFilter},
    {"join", "d,attribute", JoinFilter},
    {"last", "", LastFilter},
    {"list", "", ListFilter},
    {"map", "*", MapFilter},
    {"max", "case_sensitive,attribute", ExtremeFilter<true>},
    {"min", "case_sensitive,attribute", ExtremeFilter<false>},
    {"reject", "*", SelectFilter<false, false>},
    {"rejectattr", "*", SelectFilter<false, true>},
    {"reverse", "", ReverseFilter},
    {"select", "*", SelectFilter<true, false>},
    {"selectattr", "*", SelectFilter<true, true>},
    {"slice", "slices!fill_with", SliceFilter},
    {"sort", "reverse,case_sensitive,attribute", SortFilter},
    {"sum", "attribute,start", SumFilter},
    {"unique", "case_sensitive,attribute", UniqueFilter},
};

}  // namespace

std::span<const FilterSpec> ListFilters() {
  return kListFilters;
}

StatusOr<std::vector<Value>> SortedBy(Heap& heap, std::vector<Value> items, const std::vector<Value>& keys, bool reverse) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = i;
  Status failure = OkStatus();
  // Stable in both directions: equal keys keep their order.
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (!failure.ok()) return false;
    failure = heap.Step(std::min(keys[a].weight(), keys[b].weight()));
    if (!failure.ok()) return false;
    const StatusOr<bool> less = reverse ? Less(keys[b], keys[a]) : Less(keys[a], keys[b]);
    if (!less.ok()) failure = less.status();
    return less.ok() && *less;
  });
  KVASIR_RETURN_IF_ERROR(failure);
  std::vector<Value> out;
  for (const size_t i : order) out.push_back(std::move(items[i]));
  return out;
}

}  // namespace kvasir::jinja
