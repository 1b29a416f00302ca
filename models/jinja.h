// A Jinja2 interpreter for chat templates: the public face.
//
// A template is parsed once and rendered many times, from any number of threads. The language is the part of Jinja2 3.1 that chat
// templates use, rendered byte for byte as Hugging Face transformers renders it (immutable sandbox, trim_blocks, lstrip_blocks,
// loop controls, `{% generation %}`, tojson without HTML escaping, raise_exception, strftime_now). Templates are untrusted:
// values are a closed set of plain types, nothing of the host is reachable, and every rendering runs under the limits below. Used
// by models/chat_template.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace kvasir {

namespace jinja {
struct Template;
}

// A template or a rendering that exceeds one of these is refused with "template budget exceeded: ...".
struct JinjaLimits {
  int64_t steps = 2'000'000;       // evaluated nodes, plus one for every 64 bytes built
  size_t output_bytes = 16 << 20;  // of text written, at all capture levels together
  size_t memory_bytes = 64 << 20;  // of values alive at one time
  int depth = 64;                  // macro calls inside each other; expressions and statements may nest 16 times as deep
};

inline constexpr size_t kMaxJinjaSourceBytes = 1 << 20;

class JinjaTemplate {
 public:
  // InvalidArgument with the line for anything that is not a valid template of the supported language.
  static StatusOr<std::shared_ptr<const JinjaTemplate>> Parse(std::string source);
  ~JinjaTemplate();
  JinjaTemplate(const JinjaTemplate&) = delete;
  JinjaTemplate& operator=(const JinjaTemplate&) = delete;

  // `context` must be an object; its members are the template's variables. `now_unix_seconds` is what strftime_now() formats, in
  // local time. InvalidArgument with the line when the template fails; raise_exception(text) gives exactly `text`.
  StatusOr<std::string> Render(const nlohmann::ordered_json& context, const JinjaLimits& limits = {},
                               int64_t now_unix_seconds = 0) const;

  // Whether the template reads `name` from its context somewhere.
  bool UsesVariable(std::string_view name) const;
  // Whether some for-loop runs over `x.member` or `x['member']` (or a variable set from it): such a template expects a list
  // there.
  bool IteratesMember(std::string_view member) const;
  const std::string& source() const { return source_; }

 private:
  explicit JinjaTemplate(std::string source);
  std::string source_;
  std::unique_ptr<jinja::Template> template_;
};

}  // namespace kvasir
