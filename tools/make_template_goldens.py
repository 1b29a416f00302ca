#!/usr/bin/env python3
"""Writes tests/data/templates/goldens.json: what Jinja2 renders for the templates there and for one small template per feature.

  python3 tools/make_template_goldens.py          (needs jinja2 3.1.6 or later)

The file holds {"conversations": {name: context}, "chat": [[template file, conversation, text or null, error or null]],
"features": [[template, context, text or null]]}. null text means that Jinja2 refuses, and so must we.
"""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import compare_jinja  # noqa: E402

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "data", "templates")


def tool(name, description, properties, required):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": required}}}


TOOLS = [tool("get_weather", "Weather of a city.", {"city": {"type": "string", "description": "Name, e.g. \"Köln\" <city>"},
                                                  "days": {"type": "integer", "minimum": 0, "maximum": 18446744073709551615}}, ["city"]),
         tool("add", "Adds numbers & more", {"a": {"type": "number", "default": 1.0}, "b": {"type": ["number", "null"]}}, []),
         tool("now", "The time", {}, [])]


def user(t): return {"role": "user", "content": t}


def bot(t): return {"role": "assistant", "content": t}


def system(t): return {"role": "system", "content": t}


def thought(t): return {"reasoning_content": t, "reasoning": t, "thinking": t}  # the server gives templates all spellings


def call(name, arguments, id):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


CALLS = [user("Weather in Köln?"), {"role": "assistant", "content": None, "tool_calls": [call("get_weather", {"city": "Köln", "days": 2}, "abc123def")]},
         {"role": "tool", "tool_call_id": "abc123def", "name": "get_weather", "content": "{\"temp\": 21.5}"}]
CONVERSATIONS = {
    "one": {"messages": [user("Hello!")]},
    "system": {"messages": [system("You are brief."), user("Hello!")]},
    "turns": {"messages": [user("Hi"), bot("Hello, how can I help?"), user("  Tell a story \n")]},
    "system_turns": {"messages": [system(" Be kind. "), user("1+1?"), bot("2"), user("sure?"), bot("Yes.\n"), user("ok")]},
    "no_prompt": {"messages": [user("Hi"), bot("Hello")], "add_generation_prompt": False},
    "unicode": {"messages": [system("Réponds en 日本語 😀"), user("Grüße\u00a0Σίσυφος {{ not code }} {% raw %}")]},
    "empty": {"messages": [system(""), user(""), bot(""), user("")]},
    "two_users": {"messages": [user("a"), user("b")]},
    "html": {"messages": [user("<b>&amp; 'quotes' \"double\" \\n \t tab</b>")]},
    "tools": {"messages": [system("Use tools."), user("Weather in Köln?")], "tools": TOOLS},
    "tools_no_system": {"messages": [user("2+2?")], "tools": TOOLS[1:]},
    "tool_calls": {"messages": CALLS, "tools": TOOLS},
    "tool_answer": {"messages": [system("S")] + CALLS + [bot("21.5 degrees."), user("Thanks!")], "tools": TOOLS[:1]},
    "parallel": {"messages": [user("both"), {"role": "assistant", "content": "Let me see.", "tool_calls": [
        call("add", {"a": 1, "b": [1, 2.5, None, True]}, "aaaaaaaaa"), call("now", {}, "bbbbbbbbb")]},
        {"role": "tool", "tool_call_id": "aaaaaaaaa", "content": "3"}, {"role": "tool", "tool_call_id": "bbbbbbbbb", "content": "noon"}],
        "tools": TOOLS},
    "thinking": {"messages": [user("Why?"), bot("<think>\nhm\n</think>\n\nBecause."), user("Really?")], "enable_thinking": False},
    "reasoning": {"messages": [user("Why?"), {"role": "assistant", "content": "So.", "reasoning_content": "\nlong thought\n"}]},
    "date": {"messages": [user("Date?")], "date_string": "01 Feb 2025"},
    "system_tools_flag": {"messages": [system("S"), user("U")], "tools": TOOLS[:1], "tools_in_user_message": False},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "first "}, {"type": "text", "text": "second"}]}]},
    "unknown_role": {"messages": [{"role": "critic", "content": "boo"}]},
    "documents": {"messages": [user("Who?")], "documents": [{"title": "A \"title\"", "text": "Facts & more\n"}, {"doc_id": 7, "text": "é"}]},
    "documents_tools": {"messages": [system("S"), user("Who?")], "documents": [{"title": "T", "text": "x"}], "tools": TOOLS[2:]},
    "thinking_on": {"messages": [system("Be brief. /no_think"), user("Why?"), bot("<think>\n\n</think>\nSo."), user("?")], "enable_thinking": True,
                    "thinking": True, "reasoning_effort": "high", "controls": {"length": "short"}},
    "channel_tags": {"messages": [user("a"), bot("<|channel|>final<|message|>b"), user("c")]},
    "plan": {"messages": [user("a"), {"role": "assistant", "tool_plan": "I will add.", **thought("hm"), "tool_calls": [call("add", {"a": 0.1}, "i1")]},
                          {"role": "tool", "tool_call_id": "i1", "content": "0.1"}, {"role": "assistant", "content": "Done.", **thought("ok")}],
             "add_generation_prompt": False},
    "none": {"messages": []},
}
DATA = {"l": [3, 1, 2], "w": ["b", "A", "c", "a"], "d": {"x": 1, "Y": "two", "z": None}, "s": "Hello, Wörld", "n": 7, "f": 2.5, "e": [],
        "m": [{"r": "u", "c": "one", "k": 2}, {"r": "a", "c": "two", "k": 1}, {"r": "u", "c": "three"}], "none": None, "t": True}
FEATURES = """
{{ 1 }} {{ 1.0 }} {{ 1e16 }} {{ 1e-5 }} {{ true }} {{ none }} {{ 'a' 'b' }} {{ [1, 'a', None, (1,), {}] }} {{ {'k': [1.5]} }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ -7.5 % 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 == true }} {{ 'a' in s }} {{ 3 not in l }} {{ 'x' in d }} {{ not 1 in l }}
{{ 1 if t }} {{ 1 if not t }}| {{ 'a' if false else 'b' if false else 'c' }}
{{ s[0] }}{{ s[-1] }}{{ s[1:3] }}{{ s[::-1] }}{{ s[8:] }} {{ l[1:] }} {{ l[::2] }} {{ (1,2,3)[:-1] }} {{ l[9] }}|{{ d.y }}|{{ d['x'] }}
{{ undefined_name }}|{{ undefined_name is defined }}|{{ undefined_name | default('d') }}|{{ '' | default('d', true) }}
{{ undefined_name.attribute }}
{{ d.missing.deeper }}
{% for i in l %}{{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ loop.last }} {{ loop.revindex }} {{ loop.previtem }} {{ loop.nextitem }};{% endfor %}
{% for i in e %}x{% else %}empty{% endfor %} {% for i in l if i > 1 %}{{ i }}{{ loop.index0 }}{{ ',' if not loop.last }}{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in [1] %}{% continue %}{% else %}else-after-continue{% endfor %}
{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}
{% set ns = namespace(x=1, y='') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.missing }}
{% set a, b = 1, 'two' %}{{ b }}{{ a }} {% set c %}block {{ a }}{% endset %}{{ c }} {% set u | upper %}up{% endset %}{{ u }}
{% macro f(a, b=2, c=a) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(b=5, a='x') }}{{ f(1, 2, 3) }}
{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, k=3) }} {% macro g(x) %}{% if x > 0 %}{{ x }}{{ g(x - 1) }}{% endif %}{% endmacro %}{{ g(3) }}
{% macro wrap(t) %}<{{ t }}>{{ caller('in') }}</{{ t }}>{% endmacro %}{% call(v) wrap('b') %}body {{ v }}{% endcall %}
{% filter upper | trim %}  shout {{ s }} {% endfilter %}
{% raw %}{{ not rendered }} {% for %}{% endraw %}{# comment {{ x }} #}
   {%- if t -%}   tight   {%- endif -%}   end
a  {%+ if t %}b{% endif +%}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}
{% generation %}assistant {{ s }}{% endgeneration %}
{% if n > 10 %}big{% elif n > 5 %}medium{% else %}small{% endif %}
{{ 'a' ~ 1 ~ none ~ 1.5 ~ [1] }} {{ 'x' * 3 }} {{ [1] * 2 + [3] }} {{ 'a' + 'b' }}
{{ d | tojson }} {{ l | tojson(indent=2) }} {{ {'b': 1, 'a': [1.0, 'é', none]} | tojson(sort_keys=true, ensure_ascii=true) }} {{ 'a"\\n</b>' | tojson }}
{{ d | tojson(separators=(',', ':')) }} {{ {} | tojson(indent=4) }} {{ [[]] | tojson(indent=1) }}
{{ w | sort }} {{ w | sort(case_sensitive=true) }} {{ w | sort(reverse=true) | join('+') }} {{ m | sort(attribute='c') | map(attribute='c') | list }}
{{ w | unique | list }} {{ w | map('upper') | join }} {{ m | map(attribute='k', default=0) | list }} {{ m | selectattr('r', 'equalto', 'u') | list | length }}
{{ m | rejectattr('k') | map(attribute='c') | first }} {{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ d | dictsort }} {{ d | items | list }}
{{ l | sum }} {{ l | min }} {{ l | max }} {{ l | first }} {{ l | last }} {{ e | first }}| {{ l | reverse | list }} {{ 'abc' | reverse }} {{ m | groupby('r') | list | length }}
{{ s | upper }} {{ s | lower }} {{ 'hELLO wORLD-foo' | title }} {{ 'hELLO' | capitalize }} {{ '  x ' | trim }}| {{ s | replace('l', 'L') }} {{ s | length }} {{ s | wordcount }}
{{ 'a\\nb\\n\\nc' | indent }} {{ 'a\\nb' | indent(2, true) }} {{ 'a\\n\\nb' | indent(1, blank=true) }} {{ 'x' | center(5) }}| {{ 'long text here now' | truncate(8) }}
{{ '42' | int + 1 }} {{ 'x' | int }} {{ '3.7' | int }} {{ '3.7' | float }} {{ 2.5 | round }} {{ 3.456 | round(2) }} {{ 3.2 | round(0, 'ceil') }} {{ -5 | abs }} {{ 5 | string + '!' }}
{{ '<b>' | e }} {{ '<b>' | safe }} {{ '<b>' | safe + '<i>' }} {{ '%s-%05.2f-%x' | format('a', 3.14159, 255) }} {{ '{0}-{a:>5}-{b[0]}'.format(1, a='x', b=[9]) }}
{{ s.split(', ') }} {{ ' a b '.split() }} {{ s.startswith('He') }} {{ s.endswith(('x', 'd')) }} {{ s.find('W') }} {{ 'a,b,c'.rsplit(',', 1) }} {{ s.upper().lower().title() }} {{ '-'.join(w) }}
{{ 'ß straße'.upper() }} {{ 'ΑΣ'.lower() }} {{ s.partition(', ') }} {{ 'x'.zfill(3) }} {{ 'abc'.removeprefix('a') }} {{ '1'.isdigit() }} {{ s.count('l') }} {{ 'a\\nb'.splitlines() }}
{{ d.get('x') }} {{ d.get('q') }} {{ d.get('q', 5) }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.items() }} {{ l.index(1) }} {{ l.count(1) }}
{{ n is number }} {{ s is string }} {{ d is mapping }} {{ l is sequence }} {{ l is iterable }} {{ none is none }} {{ t is true }} {{ n is odd }} {{ n is divisibleby 7 }} {{ n is not even }} {{ n is in l }} {{ f is float }} {{ t is integer }}
{{ l.append(4) }}
{{ d.__class__ }}|{{ s.__class__.__mro__ }}
{{ ''.__class__ }}|{{ [].__len__ }}|{{ d['__class__'] }}
{{ raise_exception('stop here') }}
{% if false %}{{ x | no_such_filter }}{% endif %}ok
{{ x | no_such_filter }}
{% include 'other' %}
{% break %}
{{ 1 + 'a' }}
{{ 1 // 0 }}
{{ range(100001) }}
{{ range(5) }} {{ range(1, 10, 3) | list }} {{ range(5)[1:3] }} {{ dict(a=1, b=2) }} {{ dict([('k', 'v')]) }}
{{ "é\\u00e9\\x41\\n" }} {{ 'it\\'s' }} {{ "multi
line" }}
{{ 0x1F + 0b11 + 0o17 + 1_000 }}
{{ foo(1) }}
{% set loop_test %}{% for i in l %}{% for j in l %}{{ loop.index }}{% endfor %}-{{ loop.index }} {% endfor %}{% endset %}{{ loop_test }}
{% for i in l %}{{ loop.cycle('odd', 'even') }}{{ loop.changed(i > 1) }} {% endfor %}
{% print 1, 2 %}
{{ {'a': 1}.a }}{{ {'items': 1}.items is callable }}{{ {'items': 1}['items'] }}
{{ [1, 2] == (1, 2) }} {{ [1, [2]] == [1, [2]] }} {{ {'a': 1} == {'a': 1.0} }} {{ (1, 'a') < (1, 'b') }}
{% macro outer() %}{{ late }}{% endmacro %}{% set late = 'bound late' %}{{ outer() }}
{% for x in l %}{{ y }}{% set y = x %}{% endfor %}{% set y = 9 %}{{ y }}
""".strip("\n")


def features():
    lines = FEATURES.split("\n")
    out, i = [], 0
    while i < len(lines):
        line = lines[i]
        if line.endswith('{{ "multi'):  # the one template with a newline inside
            i += 1
            line += "\n" + lines[i]
        out.append(line.replace("\\\\n", "\\n"))
        i += 1
    return out


def main():
    chat = []
    for name in sorted(n for n in os.listdir(HERE) if n.endswith(".jinja")):
        with open(os.path.join(HERE, name), encoding="utf-8", newline="") as f:
            source = f.read()
        for conversation, data in CONVERSATIONS.items():
            context = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None, "add_generation_prompt": True, **data}
            env = compare_jinja.environment(now=1735689600)
            try:
                chat.append([name, conversation, env.from_string(source).render(**context), None])
            except Exception as e:  # noqa: BLE001
                chat.append([name, conversation, None, str(e)])
    small = []
    for template in features():
        try:
            small.append([template, compare_jinja.ENV.from_string(template).render(**DATA)])
        except Exception:  # noqa: BLE001
            small.append([template, None])
    with open(os.path.join(HERE, "goldens.json"), "w", encoding="utf-8") as f:
        json.dump({"conversations": CONVERSATIONS, "chat": chat, "data": DATA, "features": small}, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    print(f"{len(chat)} chat renderings ({sum(c[2] is not None for c in chat)} succeed), {len(small)} features "
          f"({sum(c[1] is not None for c in small)} succeed)")


if __name__ == "__main__":
    main()
