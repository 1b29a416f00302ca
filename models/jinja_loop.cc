// The `loop` variable of a for-statement.
#include "models/jinja_eval.h"

namespace kvasir::jinja {

StatusOr<bool> LoopObj::Fetch(Heap& heap, Value* out) {
  if (drained_at < drained.size()) {
    *out = drained[drained_at++];
    return true;
  }
  if (ended) return false;
  KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(heap, out));
  ended = !more;
  return more;
}

Status LoopObj::Peek(Heap& heap) {
  if (after_peeked) return OkStatus();
  Value next;
  KVASIR_ASSIGN_OR_RETURN(const bool more, Fetch(heap, &next));
  if (more) {
    after = std::move(next);
    after_peeked = true;
  }
  return OkStatus();
}

StatusOr<bool> LoopObj::Advance(Heap& heap) {
  Value next;
  if (after_peeked) {
    next = std::move(after);
    after = Value();
    after_peeked = false;
  } else {
    KVASIR_ASSIGN_OR_RETURN(const bool more, Fetch(heap, &next));
    if (!more) return false;
  }
  index0++;
  before = std::move(current);
  current = std::move(next);
  return true;
}

StatusOr<Int> LoopObj::Count(Heap& heap) {
  if (length >= 0) return length;
  if (closed) return Int{0};
  const StatusOr<Int> known = Length(iterable);
  if (known.ok()) return length = *known;
  while (true) {
    Value v;
    KVASIR_ASSIGN_OR_RETURN(const bool more, it.Next(heap, &v));
    if (!more) break;
    drained.push_back(std::move(v));
  }
  ended = true;
  length = static_cast<Int>(drained.size()) + index0 + 1 + (after_peeked ? 1 : 0);
  return length;
}

void LoopObj::Close() {
  closed = true;
  before = current = after = last_changed = iterable = Value();
  it = Iterator();
  drained.clear();
  drained_at = 0;
  after_peeked = false;
  ended = true;
}

StatusOr<Value> Evaluator::LoopAttribute(const Value& loop, const std::string& name) {
  auto& state = loop.object<LoopObj>();
  if (name == "index") return Value::Integer(state.index0 + 1);
  if (name == "index0") return Value::Integer(state.index0);
  if (name == "first") return Value::Bool(state.index0 == 0);
  if (name == "depth") return Value::Integer(state.depth0 + 1);
  if (name == "depth0") return Value::Integer(state.depth0);
  if (name == "previtem") return state.index0 == 0 ? heap_.Undefined("there is no previous item") : state.before;
  if (name == "last" || name == "nextitem") {
    KVASIR_RETURN_IF_ERROR(state.Peek(heap_));
    if (name == "last") return Value::Bool(!state.after_peeked);
    return state.after_peeked ? state.after : heap_.Undefined("there is no next item");
  }
  if (name == "length" || name == "revindex" || name == "revindex0") {
    KVASIR_ASSIGN_OR_RETURN(const Int length, state.Count(heap_));
    return Value::Integer(name == "length" ? length : name == "revindex" ? length - state.index0 : length - state.index0 - 1);
  }
  if (name == "cycle" || name == "changed") return heap_.Method(loop, name);
  return heap_.Undefined(fmt::format("the loop variable has no attribute '{}'", name));
}

StatusOr<Value> Evaluator::CallLoopMethod(const Value& loop, const std::string& name, Args args) {
  auto& state = loop.object<LoopObj>();
  if (!args.named.empty()) return InvalidArgument("loop.{}() takes no keyword arguments", name);
  if (name == "cycle") {
    if (args.positional.empty()) return InvalidArgument("loop.cycle() needs items to cycle through");
    return args.positional[static_cast<size_t>(state.index0 % static_cast<Int>(args.positional.size()))];
  }
  KVASIR_ASSIGN_OR_RETURN(const Value now, heap_.Tuple(std::move(args.positional)));
  if (!state.last_changed.missing() && Equal(state.last_changed, now)) return Value::Bool(false);
  if (!state.closed) state.last_changed = now;
  return Value::Bool(true);
}

}  // namespace kvasir::jinja
