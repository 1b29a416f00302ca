// How values become text: str(), repr() and json.dumps().
#include <algorithm>
#include <cmath>

#include "models/jinja_eval.h"
#include "models/jinja_text.h"

namespace kvasir::jinja {
namespace {

Status AppendSequence(Heap& heap, const std::vector<Value>& items, int depth, std::string* out) {
  for (size_t i = 0; i < items.size(); i++) {
    if (i > 0) *out += ", ";
    KVASIR_RETURN_IF_ERROR(AppendRepr(heap, items[i], out, depth));
  }
  return OkStatus();
}

Status AppendDictBody(Heap& heap, const DictObj& dict, int depth, std::string* out) {
  *out += '{';
  for (size_t i = 0; i < dict.items.size(); i++) {
    if (i > 0) *out += ", ";
    KVASIR_RETURN_IF_ERROR(AppendRepr(heap, dict.items[i].first, out, depth));
    *out += ": ";
    KVASIR_RETURN_IF_ERROR(AppendRepr(heap, dict.items[i].second, out, depth));
  }
  *out += '}';
  return OkStatus();
}

Status AppendView(Heap& heap, const ViewObj& view, int depth, std::string* out) {
  *out += view.kind == ViewKind::kKeys ? "dict_keys([" : view.kind == ViewKind::kValues ? "dict_values([" : "dict_items([";
  bool first = true;
  for (const auto& [k, v] : view.dict.dict().items) {
    if (!first) *out += ", ";
    first = false;
    if (view.kind == ViewKind::kItems) *out += '(';
    if (view.kind != ViewKind::kValues) KVASIR_RETURN_IF_ERROR(AppendRepr(heap, k, out, depth));
    if (view.kind == ViewKind::kItems) *out += ", ";
    if (view.kind != ViewKind::kKeys) KVASIR_RETURN_IF_ERROR(AppendRepr(heap, v, out, depth));
    if (view.kind == ViewKind::kItems) *out += ')';
  }
  *out += "])";
  return OkStatus();
}

Status AppendNamespace(Heap& heap, const NamespaceObj& ns, int depth, std::string* out) {
  *out += "<Namespace {";
  bool first = true;
  for (const auto& [name, v] : ns.attributes) {
    if (!first) *out += ", ";
    first = false;
    *out += ReprString(name) + ": ";
    KVASIR_RETURN_IF_ERROR(AppendRepr(heap, v, out, depth));
  }
  *out += "}>";
  return OkStatus();
}

Status AppendScalarRepr(const Value& v, std::string* out) {
  switch (v.type()) {
    case Type::kNone:
      *out += "None";
      break;
    case Type::kBool:
      *out += v.bool_value() ? "True" : "False";
      break;
    case Type::kInt:
      *out += IntToString(v.int_value());
      break;
    case Type::kFloat:
      *out += ReprFloat(v.double_value());
      break;
    case Type::kRange: {
      const auto& r = v.object<RangeObj>();
      *out += fmt::format("range({}, {}", IntToString(r.start), IntToString(r.stop));
      *out += r.step == 1 ? ")" : fmt::format(", {})", IntToString(r.step));
      break;
    }
    case Type::kUndefined:
      *out += "Undefined";
      break;
    case Type::kMacro: {
      const auto& macro = v.object<MacroObj>();
      *out += macro.stmt->kind == StmtKind::kMacro ? fmt::format("<Macro {}>", ReprString(macro.name)) : "<Macro anonymous>";
      break;
    }
    default:
      *out += fmt::format("<{}>", TypeName(v));  // Python prints an address here, which nothing can rely on
  }
  return OkStatus();
}

void AppendIndent(const JsonStyle& style, int level, std::string* out) {
  if (style.indent == nullptr) return;
  *out += '\n';
  for (int i = 0; i < level; i++) *out += *style.indent;
}

// Dict keys become strings; only plain scalars may be keys.
StatusOr<std::string> JsonKey(const Value& key) {
  switch (key.type()) {
    case Type::kString:
      return std::string(key.text());
    case Type::kNone:
      return std::string("null");
    case Type::kBool:
      return std::string(key.bool_value() ? "true" : "false");
    case Type::kInt:
      return IntToString(key.int_value());
    case Type::kFloat: {
      const double d = key.double_value();
      return std::string(std::isnan(d) ? "NaN" : std::isinf(d) ? (d < 0 ? "-Infinity" : "Infinity") : ReprFloat(d));
    }
    default:
      return InvalidArgument("tojson: keys must be str, int, float, bool or None, not {}", TypeName(key));
  }
}

// Orders (key, value) pairs by key, stopping at the first pair that has no order.
StatusOr<std::vector<const std::pair<Value, Value>*>> SortedItems(Heap& heap, const DictObj& dict) {
  std::vector<const std::pair<Value, Value>*> items;
  for (const auto& item : dict.items) items.push_back(&item);
  KVASIR_RETURN_IF_ERROR(heap.Step(static_cast<int64_t>(items.size()) * 4));
  Status failure = OkStatus();
  std::stable_sort(items.begin(), items.end(), [&](const auto* a, const auto* b) {
    if (!failure.ok()) return false;
    const StatusOr<bool> less = Less(a->first, b->first);
    if (!less.ok()) failure = less.status();
    return less.ok() && *less;
  });
  KVASIR_RETURN_IF_ERROR(failure);
  return items;
}

Status AppendJsonDict(Heap& heap, const DictObj& dict, const JsonStyle& style, int level, std::string* out) {
  if (dict.items.empty()) {
    *out += "{}";
    return OkStatus();
  }
  std::vector<const std::pair<Value, Value>*> items;
  if (style.sort_keys) {
    KVASIR_ASSIGN_OR_RETURN(items, SortedItems(heap, dict));
  } else {
    for (const auto& item : dict.items) items.push_back(&item);
  }
  *out += '{';
  bool first = true;
  for (const auto* item : items) {
    if (!first) *out += style.item_separator;
    first = false;
    AppendIndent(style, level + 1, out);
    KVASIR_ASSIGN_OR_RETURN(const std::string key, JsonKey(item->first));
    AppendJsonString(key, style.ensure_ascii, out);
    *out += style.key_separator;
    KVASIR_RETURN_IF_ERROR(AppendJson(heap, item->second, style, level + 1, out));
  }
  AppendIndent(style, level, out);
  *out += '}';
  return OkStatus();
}

}  // namespace

std::string IntToString(Int i) {
  if (i == 0) return "0";
  const bool negative = i < 0;
  std::string digits;
  while (i != 0) {
    const int digit = static_cast<int>(i % 10);
    digits.push_back(static_cast<char>('0' + (digit < 0 ? -digit : digit)));
    i /= 10;
  }
  if (negative) digits.push_back('-');
  std::reverse(digits.begin(), digits.end());
  return digits;
}

Status AppendRepr(Heap& heap, const Value& v, std::string* out, int depth) {
  KVASIR_RETURN_IF_ERROR(heap.Step());
  // Only namespaces can contain themselves; everything else was bounded when it was made.
  if (depth > kMaxValueDepth)
    return InvalidArgument("template budget exceeded: a value nests deeper than {} levels", kMaxValueDepth);
  KVASIR_RETURN_IF_ERROR(heap.Check(static_cast<Int>(out->size())));
  switch (v.type()) {
    case Type::kString: {
      KVASIR_RETURN_IF_ERROR(heap.Check(static_cast<Int>(out->size() + 4 * v.text().size())));
      KVASIR_RETURN_IF_ERROR(heap.Step(static_cast<int64_t>(v.text().size() / 16)));
      *out += v.markup() ? fmt::format("Markup({})", ReprString(v.text())) : ReprString(v.text());
      return OkStatus();
    }
    case Type::kList:
      *out += '[';
      KVASIR_RETURN_IF_ERROR(AppendSequence(heap, v.items(), depth + 1, out));
      *out += ']';
      return OkStatus();
    case Type::kTuple:
      *out += '(';
      KVASIR_RETURN_IF_ERROR(AppendSequence(heap, v.items(), depth + 1, out));
      *out += v.items().size() == 1 ? ",)" : ")";
      return OkStatus();
    case Type::kDict:
      return AppendDictBody(heap, v.dict(), depth + 1, out);
    case Type::kNamespace:
      return AppendNamespace(heap, v.object<NamespaceObj>(), depth + 1, out);
    case Type::kView:
      return AppendView(heap, v.object<ViewObj>(), depth + 1, out);
    case Type::kLoop: {
      auto& loop = v.object<LoopObj>();
      KVASIR_ASSIGN_OR_RETURN(const Int length, loop.Count(heap));
      *out += fmt::format("<LoopContext {}/{}>", IntToString(loop.index0 + 1), IntToString(length));
      return OkStatus();
    }
    default:
      return AppendScalarRepr(v, out);
  }
}

Status AppendStr(Heap& heap, const Value& v, std::string* out) {
  if (v.undefined()) return OkStatus();
  if (!v.is_string()) return AppendRepr(heap, v, out);
  KVASIR_RETURN_IF_ERROR(heap.Reserve(static_cast<Int>(v.text().size())));
  out->append(v.text());
  return OkStatus();
}

StatusOr<std::string> ToStr(Heap& heap, const Value& v) {
  std::string out;
  KVASIR_RETURN_IF_ERROR(AppendStr(heap, v, &out));
  return out;
}

Status AppendJson(Heap& heap, const Value& v, const JsonStyle& style, int level, std::string* out) {
  KVASIR_RETURN_IF_ERROR(heap.Step(1 + (style.indent ? level * static_cast<int64_t>(style.indent->size()) / 16 : 0)));
  KVASIR_RETURN_IF_ERROR(heap.Check(static_cast<Int>(out->size())));
  switch (v.type()) {
    case Type::kNone:
    case Type::kBool:
    case Type::kInt:
    case Type::kFloat: {
      KVASIR_ASSIGN_OR_RETURN(const std::string text, JsonKey(v));
      *out += text;
      return OkStatus();
    }
    case Type::kString:
      KVASIR_RETURN_IF_ERROR(heap.Check(static_cast<Int>(out->size() + 6 * v.text().size())));
      KVASIR_RETURN_IF_ERROR(heap.Step(static_cast<int64_t>(v.text().size() / 32)));
      AppendJsonString(v.text(), style.ensure_ascii, out);
      return OkStatus();
    case Type::kList:
    case Type::kTuple: {
      if (v.items().empty()) {
        *out += "[]";
        return OkStatus();
      }
      *out += '[';
      for (size_t i = 0; i < v.items().size(); i++) {
        if (i > 0) *out += style.item_separator;
        AppendIndent(style, level + 1, out);
        KVASIR_RETURN_IF_ERROR(AppendJson(heap, v.items()[i], style, level + 1, out));
      }
      AppendIndent(style, level, out);
      *out += ']';
      return OkStatus();
    }
    case Type::kDict:
      return AppendJsonDict(heap, v.dict(), style, level, out);
    default:
      return InvalidArgument("tojson: an object of type {} is not JSON serializable", TypeName(v));
  }
}

}  // namespace kvasir::jinja
