// The Jinja interpreter: every language feature against texts that Jinja2 rendered (tests/data/templates/goldens.json, made by
// tools/make_template_goldens.py), and every limit and refusal.
#include "models/jinja.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace kvasir {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

StatusOr<std::string> Render(const std::string& source, const Json& context = Json::object(), const JinjaLimits& limits = {}) {
  KVASIR_ASSIGN_OR_RETURN(const auto parsed, JinjaTemplate::Parse(source));
  return parsed->Render(context, limits);
}

std::string TextOf(const std::string& source, const Json& context = Json::object()) {
  const auto text = Render(source, context);
  return text.ok() ? *text : "ERROR " + Message(text.status());
}

std::string ErrorOf(const std::string& source, const Json& context = Json::object(), const JinjaLimits& limits = {}) {
  const auto text = Render(source, context, limits);
  EXPECT_FALSE(text.ok()) << source.substr(0, 200) << " gave " << text->substr(0, 200);
  if (text.ok()) return "";
  EXPECT_EQ(text.status().code(), StatusCode::kInvalidArgument);
  return Message(text.status());
}

Json Goldens() {
  std::ifstream in(std::string(KVASIR_SOURCE_DIR) + "/tests/data/templates/goldens.json");
  return Json::parse(in, nullptr, false);
}

TEST(Jinja, EveryFeatureRendersAsJinja2Does) {
  const Json goldens = Goldens();
  ASSERT_TRUE(goldens.is_object());
  ASSERT_GT(goldens["features"].size(), 60u);
  for (const auto& feature : goldens["features"]) {
    const auto source = feature[0].get<std::string>();
    const auto text = Render(source, goldens["data"]);
    if (feature[1].is_null()) {
      EXPECT_FALSE(text.ok()) << source << "\ngave " << text.value_or("");
    } else {
      ASSERT_TRUE(text.ok()) << source << "\n" << Message(text.status());
      EXPECT_EQ(*text, feature[1].get<std::string>()) << source;
    }
  }
}

// Found by comparing random programs with Jinja2.
TEST(Jinja, PythonsCorners) {
  EXPECT_EQ(TextOf("{{ 'a b  '.split(none, 1) }}{{ '  a b'.rsplit(none, 1) }}"), "['a', 'b  ']['  a', 'b']");
  EXPECT_EQ(TextOf("{{ range(6)[:3:11] }}"), "range(0, 3, 11)");
  EXPECT_EQ(TextOf("{% macro m() %}{{ caller }}{% endmacro %}{{ m }}{% call m() %}{% endcall %}"),
            "<Macro 'm'><Macro anonymous>");
  EXPECT_EQ(TextOf("{{ 'x' % nothing }}{{ '%s' % nothing }}{{ 'x' % [1] }}"), "xx");
  EXPECT_EQ(TextOf("{{ nothing.__class__ }}|"), "|");
  EXPECT_EQ(
      TextOf("{% set d = {'a': 1} %}{{ d.keys() == {'a': 2}.keys() }}{{ d.items() == d.items() }}{{ d.values() == d.values() }}"),
      "TrueTrueFalse");
  EXPECT_EQ(TextOf("{{ (0 * -2.5)|round(1, 'ceil') }}{{ (-0.04)|round(1, 'ceil') }}{{ (0 * -2.5)|round(1) }}"), "0.00.0-0.0");
  // A recursive loop is a function to Jinja2: its else cannot break out of the loop around it, another loop's else can.
  EXPECT_THAT(ErrorOf("{{ '%99999999999d' % 1 }}"), HasSubstr("too large; the limit is 1048576"));
  EXPECT_THAT(ErrorOf("{{ '%.*f' % (99999999999, 1.0) }}"), HasSubstr("too large"));
  EXPECT_THAT(ErrorOf("{% for a in [1] %}{% for b in [] recursive %}{% else %}{% break %}{% endfor %}{% endfor %}"),
              HasSubstr("'break' outside of a loop"));
  EXPECT_EQ(TextOf("{% for a in [1, 2] %}{{ a }}{% for b in [] %}{% else %}{% break %}{% endfor %}{% endfor %}"), "1");
}

TEST(Jinja, ErrorsNameTheLine) {
  EXPECT_THAT(ErrorOf("a\nb\n{{ 1 + }}"), HasSubstr("line 3"));
  EXPECT_THAT(ErrorOf("a\n{% if x %}\nb"), HasSubstr("line 2"));
  EXPECT_THAT(ErrorOf("\n\n{{ x.y.z }}", {{"x", 1}}), HasSubstr("line 3"));
  EXPECT_THAT(ErrorOf("\n{{ nothing.attribute }}"), HasSubstr("'nothing' is undefined"));
  EXPECT_THAT(ErrorOf("{{ d.missing.more }}", {{"d", Json::object()}}), HasSubstr("no attribute 'missing'"));
  EXPECT_THAT(ErrorOf("\n{{ x | tojsn }}"), HasSubstr("line 2: no filter named 'tojsn'"));
  EXPECT_THAT(ErrorOf("{{ x is strange }}"), HasSubstr("line 1: no test named 'strange'"));
  EXPECT_THAT(ErrorOf("{{ no_function() }}"), HasSubstr("'no_function' is undefined"));
}

TEST(Jinja, RaiseExceptionGivesExactlyItsText) {
  EXPECT_EQ(ErrorOf("\n{% for i in [1] %}{{ raise_exception('Roles must alternate!') }}{% endfor %}"), "Roles must alternate!");
}

TEST(Jinja, RecursiveLoops) {
  const std::string tree =
      "{% for n in t recursive %}{{ loop.depth }}{{ n[0] }}{% if n[1] %}({{ loop(n[1]) }}){% endif %}{% endfor %}";
  EXPECT_EQ(Render("{% set t = [['a', [['b', []], ['c', [['d', []]]]]], ['e', []]] %}" + tree).value(), "1a(2b2c(3d))1e");
}

TEST(Jinja, UnsupportedTagsAreRefusedByName) {
  for (const std::string tag :
       {"include 'x'", "import 'x' as y", "from 'x' import y", "extends 'x'", "block a", "autoescape true"}) {
    EXPECT_THAT(ErrorOf("{% " + tag + " %}"), HasSubstr("the tag '" + tag.substr(0, tag.find(' ')) + "' is not supported"));
  }
  EXPECT_THAT(ErrorOf("{% frobnicate %}"), HasSubstr("unknown tag 'frobnicate'"));
  EXPECT_THAT(ErrorOf("{% if a %}{% endfor %}"), HasSubstr("inside '{% if %}'"));
}

TEST(Jinja, NothingOfTheHostIsReachable) {
  const Json context = {{"s", "text"}, {"l", {1, 2}}, {"d", {{"k", "v"}}}};
  for (const std::string name :
       {"s", "l", "d", "range", "namespace", "raise_exception", "s.upper", "d.items()", "none", "(1).real"}) {
    EXPECT_EQ(TextOf("{{ " + name + ".__class__ }}", context), "") << name;
    EXPECT_FALSE(Render("{{ " + name + ".__class__.__mro__ }}", context).ok()) << name;
    EXPECT_FALSE(Render("{{ " + name + "['__class__']['__base__'] }}", context).ok()) << name;
    EXPECT_FALSE(Render("{{ (" + name + "|attr('__class__')).__subclasses__() }}", context).ok()) << name;
  }
  EXPECT_FALSE(Render("{{ '{0.__class__.__base__}'.format(s) }}", context).ok());
  for (const std::string call : {"l.append(3)", "l.pop()", "l.clear()", "d.pop('k')", "d.update(a=1)", "d.setdefault('x', 1)"}) {
    EXPECT_THAT(ErrorOf("{{ " + call + " }}", context), HasSubstr("cannot change")) << call;
  }
  EXPECT_THAT(ErrorOf("{% set ns = namespace(_x=1) %}"), HasSubstr("underscore"));
  EXPECT_THAT(ErrorOf("{% set ns = namespace() %}{% set ns.__init__ = 1 %}"), HasSubstr("underscore"));
  EXPECT_THAT(ErrorOf("{% set d.x = 1 %}", context), HasSubstr("not a namespace"));
}

TEST(Jinja, EveryBudgetIsEnforced) {
  const auto exceeded = HasSubstr("template budget exceeded");
  EXPECT_THAT(ErrorOf("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ range(10**9) }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ 'a' * 10**9 }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ [1] * 10**30 }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ 'a'.ljust(10**12) }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ 'a'.zfill(10**12) }}{{ 'x'|center(10**12) }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ 'a\nb'|indent(10**12) }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ [1]|batch(10**12, 0)|list }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ [1]|slice(10**12)|list }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ [1]|tojson(indent=10**12) }}"), exceeded);
  EXPECT_THAT(ErrorOf("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"),
              exceeded);
  EXPECT_THAT(
      ErrorOf("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s|replace('a', 'aaaa') %}{% endfor %}"),
      exceeded);
  EXPECT_THAT(ErrorOf("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"), exceeded);
  EXPECT_THAT(ErrorOf("{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}"), exceeded);
  EXPECT_THAT(ErrorOf("{% set ns = namespace(l=[1]) %}{% for i in range(1000) %}{% set ns.l = ns.l|map('string') %}{% endfor %}"),
              exceeded);
  EXPECT_THAT(ErrorOf("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ " + std::string(3000, '(') + "1" + std::string(3000, ')') + " }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ " + std::string(3000, '[') + std::string(3000, ']') + " }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ " + std::string(9000, '-') + "1 }}"), exceeded);
  std::string sum = "1", nots, blocks;
  for (int i = 0; i < 3000; i++) sum += "+1", nots += "not ", blocks += "{% if x %}";
  EXPECT_THAT(ErrorOf("{{ " + sum + " }}"), exceeded);
  EXPECT_THAT(ErrorOf("{{ " + nots + "x }}"), exceeded);
  EXPECT_THAT(ErrorOf(blocks), exceeded);
  EXPECT_THAT(ErrorOf(std::string(kMaxJinjaSourceBytes + 1, 'x')), exceeded);

  JinjaLimits small;
  small.output_bytes = 100;
  EXPECT_THAT(ErrorOf("{% for i in range(99) %}{{ 'abcdefgh' }}{% endfor %}", Json::object(), small),
              HasSubstr("bytes of output"));
  EXPECT_THAT(ErrorOf("{% set x %}{% for i in range(99) %}abcdefgh{% endfor %}{% endset %}", Json::object(), small),
              HasSubstr("bytes of output"));
  small = JinjaLimits();
  small.memory_bytes = 1000;
  EXPECT_THAT(ErrorOf("{{ x|length }}", {{"x", std::string(2000, 'x')}}, small), HasSubstr("bytes of memory"));
  small = JinjaLimits();
  small.steps = 50;
  EXPECT_THAT(ErrorOf("{% for i in range(50) %}{% endfor %}", Json::object(), small), HasSubstr("50 steps"));
  small = JinjaLimits();
  small.depth = 3;
  EXPECT_THAT(ErrorOf("{% macro f(n) %}{{ f(n - 1) if n }}{% endmacro %}{{ f(9) }}", Json::object(), small),
              HasSubstr("macro calls"));
}

// Values that share their parts are small in memory but huge to walk: without the budget these would not end.
TEST(Jinja, WalksOverSharedValuesAreBounded) {
  const std::string grow =
      "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
      "{% set ns.b = [ns.b, ns.b] %}{% endfor %}";
  for (const std::string use :
       {"{{ ns.a == ns.b }}", "{{ ns.a }}", "{{ ns.a|tojson }}", "{{ ns.a < ns.b }}", "{{ ns.a in [ns.b] }}",
        "{{ [ns.a, ns.b]|sort }}", "{{ [ns.a]|max }}{{ [ns.b, ns.a]|max }}", "{{ [ns.a].index(ns.b) }}"}) {
    EXPECT_THAT(ErrorOf(grow + use), HasSubstr("template budget exceeded")) << use;
  }
  const std::string tuples = "{% set ns = namespace(a=(1,)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}";
  for (const std::string use :
       {"{{ {ns.a: 1} }}", "{{ [ns.a]|unique|list }}", "{{ {}[ns.a] }}", "{{ ns.a in {} }}", "{{ {}.get(ns.a) }}"}) {
    EXPECT_THAT(ErrorOf(tuples + use), HasSubstr("template budget exceeded")) << use;
  }
}

TEST(Jinja, BadBytesAreRefused) {
  EXPECT_THAT(ErrorOf("a\xff"), HasSubstr("UTF-8"));
  EXPECT_THAT(ErrorOf("{{ x }}", {{"x", "\xc3"}}), HasSubstr("UTF-8"));
  EXPECT_THAT(ErrorOf("{{ '\\ud800' }}"), HasSubstr("not a character"));
  EXPECT_THAT(ErrorOf("{{ '\\x4' }}"), HasSubstr("truncated"));
  EXPECT_THAT(ErrorOf("{{ 'abc }}"), HasSubstr("not closed"));
  EXPECT_THAT(ErrorOf("{{ 1 "), HasSubstr("not closed"));
  EXPECT_THAT(ErrorOf("{# abc"), HasSubstr("comment"));
  EXPECT_THAT(ErrorOf("{% raw %}abc"), HasSubstr("raw"));
}

TEST(Jinja, DeepInputIsRefusedNotOverflowed) {
  Json deep = 1;
  for (int i = 0; i < 5000; i++) deep = Json::array({std::move(deep)});
  EXPECT_THAT(ErrorOf("{{ x }}", {{"x", std::move(deep)}}), HasSubstr("template budget exceeded"));
}

TEST(Jinja, KnowsItsVariables) {
  const auto parsed = JinjaTemplate::Parse(
      "{% set a = b %}{% for m in messages %}{{ c.d }}{{ loop.index }}{% endfor %}{% macro f(x) %}{{ x }}{{ y }}{% endmacro %}");
  ASSERT_TRUE(parsed.ok());
  for (const char* name : {"b", "messages", "c", "y"}) EXPECT_TRUE((*parsed)->UsesVariable(name)) << name;
  for (const char* name : {"a", "m", "d", "x", "loop", "f"}) EXPECT_FALSE((*parsed)->UsesVariable(name)) << name;
}

TEST(Jinja, FormatsTheGivenTime) {
  const auto parsed = JinjaTemplate::Parse("{{ strftime_now('%Y') }} {{ strftime_now('') }}|{{ strftime_now('%f%%f') }}");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ((*parsed)->Render(Json::object(), {}, 1750000000).value(), "2025 |000000%f");
}

TEST(Jinja, ALargeConversationFitsTheBudget) {
  Json messages = Json::array();
  for (int i = 0; i < 2000; i++)
    messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", std::string(1000, 'x')}});
  const auto text = Render(
      "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' + '\n' }}{% endfor %}",
      {{"messages", messages}});
  ASSERT_TRUE(text.ok()) << Message(text.status());
  EXPECT_GT(text->size(), 2'000'000u);
}

}  // namespace
}  // namespace kvasir
