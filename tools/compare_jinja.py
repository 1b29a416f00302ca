#!/usr/bin/env python3
"""Compares kvasir's Jinja interpreter with Jinja2 on random template programs.

  tools/compare_jinja.py --render build/release/tests/models/jinja_render --count 50000 [--seed N]

Needs python3 with transformers and jinja2 3.1.6 or later. Each program is a random template with a random context; it is rendered in
transformers' own Jinja2 environment, and by the binary. Three in four are made by jinja_programs.py, which knows types and mostly makes
programs that run; the others are wild and mostly fail. A difference is: another text where Jinja2 succeeds, or a text where Jinja2
fails. Prints the differences (the smallest first) and exits 1 when there are any.
"""
import argparse
import json
import random
import subprocess
import sys
import time

from transformers.utils import chat_template_utils

from jinja_programs import Programs


def environment(now=0):
    """The environment in which transformers renders chat templates: its own, with the clock stopped."""
    env = chat_template_utils._compile_jinja_template("").environment
    env = env.overlay()
    env.globals = dict(env.globals, strftime_now=lambda format: time.strftime(format, time.localtime(now)))
    return env


ENV = environment()


def expected(template, context):
    try:
        return {"text": ENV.from_string(template).render(**context)}
    except Exception as e:  # noqa: BLE001 any failure is a failure of the template
        return {"error": f"{type(e).__name__}: {e}"}


class Generator:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def pick(self, *options):
        return self.r.choice(options)

    # --- data ---
    def text(self):
        return self.pick("", "a", "user", "system", "Hello World", "  pad  ", "x,y,,z", "line1\nline2\n", "Äpfel ß Σίσυφος", "日本語 テキスト",
                         "it's", 'say "hi"', "<b>&amp;</b>", "12", "-3.5", "0", "1e3", "{{x}}", "%s %d", "tab\tend", "emoji 😀!", "ǅ ﬁ İ",
                         "back\\slash", "\u00a0nbsp\u2003", "CamelCase-word (x)", "a\r\nb", "TRUE", "\x7f\u200b")

    def value(self, depth=2):
        k = self.r.randrange(10 if depth > 0 else 6)
        if k == 0:
            return None
        if k == 1:
            return self.r.random() < 0.5
        if k == 2:
            return self.r.randrange(-5, 20)
        if k == 3:
            return self.pick(0.0, 1.5, -2.25, 3.0, 1e20, 1e-7, 0.1, 2.5, 123456.789, 1e16, 100.0)
        if k < 6:
            return self.text()
        if k < 8:
            return [self.value(depth - 1) for _ in range(self.r.randrange(4))]
        return {self.pick("a", "b", "role", "content", "name", "items", "ключ", "k k"): self.value(depth - 1)
                for _ in range(self.r.randrange(4))}

    def context(self):
        c = {"s": self.text(), "n": self.r.randrange(-4, 12), "f": self.pick(0.5, 2.0, -1.5, 10.25), "t": True, "z": None,
             "l": [self.value(1) for _ in range(self.r.randrange(5))],
             "nums": [self.r.randrange(-5, 9) for _ in range(self.r.randrange(5))],
             "words": [self.text() for _ in range(self.r.randrange(5))],
             "d": {k: self.value(1) for k in self.r.sample(["a", "b", "role", "content", "items", "Zed"], self.r.randrange(5))},
             "messages": [{"role": self.pick("user", "assistant", "system"), "content": self.text()} for _ in range(self.r.randrange(4))]}
        for name in self.r.sample(["x", "y", "v"], self.r.randrange(3)):
            c[name] = self.value()
        return c

    # --- expressions ---
    NAMES = ["s", "n", "f", "t", "z", "l", "nums", "words", "d", "messages", "x", "y", "v", "i", "m", "k", "w", "loop", "ns"]

    def literal(self):
        k = self.r.randrange(9)
        if k < 3:
            return self.string()
        if k == 3:
            return str(self.r.randrange(0, 12))
        if k == 4:
            return self.pick("1.5", "0.25", "2e3", "1_000", "0x1f", "0b11", "3.0", "0")
        if k == 5:
            return self.pick("true", "false", "none", "True", "None")
        if k == 6:
            return "[" + ", ".join(self.expr(0) for _ in range(self.r.randrange(4))) + "]"
        if k == 7:
            return "(" + ", ".join(self.expr(0) for _ in range(2)) + ")"
        return "{" + ", ".join(f"{self.string()}: {self.expr(0)}" for _ in range(self.r.randrange(3))) + "}"

    def string(self):
        s = self.text().replace("{{", "{ {").replace("\r", "")
        body = s.replace("\\", "\\\\").replace("'", "\\'").replace("\n", self.pick("\\n", "\n")).replace("\t", "\\t")
        return "'" + body + "'"

    def atom(self):
        return self.pick(*self.NAMES) if self.r.random() < 0.65 else self.literal()

    def strexpr(self, depth):
        return self.pick("s", self.string(), f"({self.expr(depth)}|string)", "words[0]", "(words|join(','))", "messages[0].content",
                         "messages[0]['content']")

    def listexpr(self, depth):
        return self.pick("l", "nums", "words", "messages", "d", "range(4)", f"[{self.expr(depth)}, {self.expr(depth)}]", "d.items()", "s",
                         "(words|map('upper'))", "(nums|select('odd'))", "d.keys()", "words|list", "range(5, 0, -2)", "x", "d|items",
                         "messages|selectattr('role', 'equalto', 'user')")

    def expr(self, depth):
        r = self.r
        if depth <= 0:
            return self.atom()
        e = lambda: self.expr(depth - 1)  # noqa: E731
        k = r.randrange(22)
        if k < 3:
            return self.atom()
        if k == 3:
            return f"{e()} {self.pick('+', '-', '*', '/', '//', '%', '~', '~', '+')} {e()}"
        if k == 4:
            return f"{e()} {self.pick('==', '!=', '<', '<=', '>', '>=', 'in', 'not in')} {e()}"
        if k == 5:
            return f"{e()} {self.pick('and', 'or')} {e()}"
        if k == 6:
            return self.pick(f"not {e()}", f"-{self.pick('n', 'f', '3', 's')}", f"({e()})", f"+{self.pick('n', 'f')}", f"{self.pick('n', '2', 'f')} ** 2")
        if k == 7:
            return f"({e()} if {e()}{' else ' + e() if r.random() < 0.8 else ''})"
        if k == 8:
            return self.pick("d", "x", "messages[0]", "m", "messages[-1]", "ns", "loop") + "." + self.pick(
                "a", "b", "role", "content", "items", "keys", "foo", "index", "index0", "first", "last", "length", "previtem", "nextitem",
                "revindex", "__class__")
        if k == 9:
            return self.atom() + "[" + self.pick("0", "-1", "1", "'a'", "'role'", "n", "'items'", "'content'", "true", e()) + "]"
        if k == 10:
            part = lambda: self.pick("", "", "1", "-1", "2", "n", "none", "-3")  # noqa: E731
            return self.pick("s", "l", "words", "nums", "x", "range(6)", "(1, 2, 3)") + f"[{part()}:{part()}{':' + part() if r.random() < 0.4 else ''}]"
        if k < 13:
            return self.strexpr(depth - 1) + self.method(depth - 1)
        if k == 13:
            return self.pick("d", "x", "m", "messages[0]") + self.pick(".items()", ".keys()", ".values()", ".get('a')", ".get('zz', 1)",
                                                                      ".get('role')", ".items()|list", ".values()|list", ".copy()", ".pop('a')")
        if k < 17:
            return self.atom_or(depth) + self.filter(depth - 1)
        if k == 17:
            return self.listexpr(depth - 1) + self.listfilter(depth - 1)
        if k < 20:
            return f"{e()} is {self.pick('', '', 'not ')}{self.test(depth - 1)}"
        if k == 20:
            return self.pick(f"mac({e()})", f"mac({e()}, b={e()})", "mac()", "range(n)", f"dict(a={e()})", "namespace(q=1).q",
                             f"mac(b={e()})", "mac(1, 2, 3)", "undefined_fn()", "loop.cycle('a', 'b', 'c')", "loop.changed(n)",
                             f"loop.changed({e()})")
        return " ~ ".join(e() for _ in range(r.randrange(2, 4)))

    def atom_or(self, depth):
        return self.atom() if self.r.random() < 0.6 else f"({self.expr(depth - 1)})"

    def method(self, depth):
        e = self.strexpr(0) if self.r.random() < 0.5 else self.string()
        return "." + self.pick(
            "strip()", "lstrip()", "rstrip()", "upper()", "lower()", "title()", "capitalize()", "split()", "split(',')", f"split({e})",
            "split('l', 1)", "rsplit(' ', 1)", "split(none, 1)", f"startswith({e})", f"endswith({e})", f"replace({e}, 'Q')",
            "replace('l', 'LL', 1)", f"find({e})", f"count({e})", "splitlines()", f"join({self.listexpr(depth)})", "strip('aH ')", "rfind('l')",
            "isdigit()", "isalpha()", "isupper()", "islower()", "isspace()", "isalnum()", "zfill(8)", "center(11, '*')", "ljust(9)", "rjust(9, '.')",
            "partition('l')", "rpartition('l')", "format(1, a=2)", "removeprefix('H')", "removesuffix('d')", "swapcase()", "casefold()",
            "lstrip('<b>')", "index('e')", "istitle()", "startswith(('a', 'H'))", "split(' ')[0]", "split(',')[-1]", "foo", "__len__()",
            "isnumeric()", "isdecimal()", "rsplit()", "splitlines(true)", "replace('', '-')", "count('')", "find('l', 4)")

    def filter(self, depth):
        e = self.expr(0)
        return "|" + self.pick(
            "length", "count", "string", "upper", "lower", "title", "capitalize", "trim", "tojson", "tojson(indent=2)", "tojson(indent=4)",
            "tojson(separators=(',', ':'))", "tojson(sort_keys=true)", "tojson(ensure_ascii=true)", "default('D')", f"default({e})",
            f"default({e}, true)", "d('x', boolean=true)", "int", "int(7)", "float", "float(1.5)", "abs", "round", "round(1)", "round(2, 'floor')",
            "round(0, 'ceil')", "list", "first", "last", "join", "join(', ')", "reverse|list", "sort", "sort(reverse=true)", "unique|list",
            "dictsort", "items|list", "safe", "escape", "e", "replace('l', 'LL')", f"replace('a', {e})", "indent", "indent(2)", "indent(2, true)",
            "indent(width=3, blank=true)", "wordcount", "format(1, 2)", "truncate(8)", "truncate(9, true)", "center(13)", "trim('aH')",
            "reverse", "safe + '<i>'", "min", "max", "sum", "map('string')|list", "select|list", "reject|list", "batch(2)|list",
            "slice(2)|list", "attr('a')", "unknown_filter", "trim|upper", "forceescape", "tojson|safe", "lower|title", "round(-1)")

    def listfilter(self, depth):
        e = self.expr(0)
        return "|" + self.pick(
            "list", "length", "first", "last", "join('-')", "join", "sort", "sort(reverse=true)", "sort(attribute='role')", "unique|list",
            "map('upper')|list", "map(attribute='role')|list", "map(attribute='content')|join('|')", "map(attribute='a', default='D')|list",
            "select('string')|list", "select|list", "reject('none')|list", "selectattr('role')|list", "selectattr('role', 'equalto', 'user')|list",
            "rejectattr('role', 'in', ['user'])|list", "sum", "min", "max", "max|string", "reverse|list", "tojson", "map('length')|list",
            "select('odd')|list", "select('>', 2)|list", "groupby('role')|list", "batch(2, 'F')|list", "slice(3)|list", "dictsort", "map('int')|sum",
            "sort(case_sensitive=true)", "unique(case_sensitive=true)|list", "min(attribute='content')", "sum(attribute='a')",
            "map('default', 'Z')|list", f"join({e})", "join(', ', attribute='role')", "first|upper", "select('defined')|first", "list|tojson(indent=1)",
            "map('string')|map('trim')|join(',')", "dictsort(by='value')", "dictsort(reverse=true)", "items|list", "list|last", "map('foo')|list")

    def test(self, depth):
        return self.pick("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable",
                         "true", "false", "odd", "even", "divisibleby(3)", "divisibleby 2", "lower", "upper", "callable", "in [1, 'a', none]",
                         f"eq({self.expr(0)})", "equalto 'a'", "ne 1", "gt 1", "lessthan(5)", "sameas none", "sameas true", "in words", "filter", "test",
                         "escaped", ">= 2")

    # --- statements ---
    def ws(self):
        return self.pick("", "", "", " ", "\n", "\n  ", "text", " a\n", "é", "{ }", "\t", "%", "\n\n", "'\"")

    def tag(self, body):
        return "{%" + self.pick("", "", "-", "+") + " " + body + " " + self.pick("", "", "-", "+") + "%}"

    def out(self, depth):
        return "{{" + self.pick("", "", "-") + " " + self.expr(depth) + " " + self.pick("", "", "-") + "}}"

    def block(self, depth, in_loop=False):
        parts = []
        for _ in range(self.r.randrange(1, 4)):
            parts.append(self.ws())
            parts.append(self.stmt(depth, in_loop))
        parts.append(self.ws())
        return "".join(parts)

    def target(self):
        return self.pick("i", "w", "x", "y", "k", "n", "s")

    def stmt(self, depth, in_loop=False):
        r = self.r
        if depth <= 0 or r.random() < 0.35:
            return self.out(2)
        k = r.randrange(16)
        b = lambda inner=in_loop: self.block(depth - 1, inner)  # noqa: E731
        if k < 3:
            s = self.tag("if " + self.expr(2)) + b()
            if r.random() < 0.3:
                s += self.tag("elif " + self.expr(1)) + b()
            if r.random() < 0.5:
                s += self.tag("else") + b()
            return s + self.tag("endif")
        if k < 7:
            head = self.pick("i", "w", "m", "k, v", "i", "x")
            source = "d.items()" if head == "k, v" and r.random() < 0.8 else self.pick("messages", self.listexpr(1)) if head == "m" else self.listexpr(1)
            cond = f" if {self.expr(1)}" if r.random() < 0.2 else ""
            s = self.tag(f"for {head} in {source}{cond}") + b(True)
            if r.random() < 0.25:
                s += self.tag("else") + b()
            return s + self.tag("endfor")
        if k < 10:
            return self.tag(self.pick(f"set {self.target()} = {self.expr(2)}", f"set {self.target()} = {self.expr(2)}",
                                      f"set x, y = {self.expr(1)}, {self.expr(1)}", f"set ns.{self.pick('a', 'b')} = {self.expr(1)}"))
        if k == 10:
            f = self.pick("", "", " | upper", " | trim")
            return self.tag(f"set {self.target()}{f}") + b() + self.tag("endset")
        if k == 11:
            return self.tag("filter " + self.pick("upper", "trim", "replace('a', 'b')", "indent", "length")) + b() + self.tag("endfilter")
        if k == 12:
            return self.tag("with " + f"{self.target()} = {self.expr(1)}") + b() + self.tag("endwith")
        if k == 13:
            return self.pick("{# comment #}", "{#- c -#}", "{# a\nb #}", "{% raw %} {{ x }} {% y {% endraw %}", "{%- raw -%}\n {{ \n{%- endraw -%}\n",
                             self.tag("generation") + self.block(depth - 1) + self.tag("endgeneration"))
        if k == 14 and in_loop:
            return self.tag(f"if {self.expr(1)}") + self.tag(self.pick("break", "continue")) + self.tag("endif")
        if k == 14:
            name = self.pick("mac", "mac", "inner")
            return (self.tag(f"macro {name}({self.pick('', 'a', 'a, b=1', 'a, b=n', 'a=s, b=a')})") +
                    self.block(depth - 1) + self.pick("", "{{ caller() }}", "{{ varargs }}", "{{ kwargs }}", "{{ caller is defined }}", "{{ a }}{{ b }}") +
                    self.tag("endmacro"))
        return self.tag(self.pick("call mac()", "call mac(1)", "call(q) mac(n)", "call inner()")) + b(False) + self.tag("endcall")

    def template(self):
        head = self.pick("", "", "{% set ns = namespace(a=1, b='') %}", "{% macro mac(a, b=2) %}<{{ a }}|{{ b }}>{% endmacro %}",
                         "{% macro mac(a) %}[{{ a }}{{ caller() if caller }}]{% endmacro %}{% set ns = namespace() %}")
        return head + self.block(self.r.randrange(0, 4)) + self.pick("", "", "\n", "\n\n")


def skipped(template, want):
    """Outputs that contain a memory address differ from run to run."""
    text = want.get("text", "").lower()
    return " 0x7f" in text or " at 0x" in text or "<built-in" in text or "items)|wordcount" in template


# What Jinja2 can do and we refuse on purpose, each with a clear error: iterating over the loop variable itself, set arithmetic on
# dict views, printing a namespace that contains itself, % on text marked |safe, an unknown filter that constant folding would drop.
REFUSALS = ("'loop' object is not iterable", "of type 'loop' is not iterable", "'dict view'", "a value nests deeper",
            "of text marked |safe", "no filter named")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--render", required=True, help="path of the jinja_render binary")
    p.add_argument("--count", type=int, default=50000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--show", type=int, default=10, help="how many differences")
    p.add_argument("--context", action="store_true", help="show the context of each difference")
    a = p.parse_args()
    print(f"seed {a.seed}, {a.count} programs")
    differences, succeeded, checked, refused = [], 0, 0, 0
    for start in range(0, a.count, 2000):
        batch = []
        for i in range(start, min(start + 2000, a.count)):
            g = (Generator if i % 4 == 0 else Programs)(a.seed * 1_000_003 + i)
            batch.append({"template": g.template(), "context": g.context()})
        answer = subprocess.run([a.render], input="".join(json.dumps(x) + "\n" for x in batch), capture_output=True, text=True)
        lines = answer.stdout.split("\n")
        if answer.returncode != 0 or len(lines) != len(batch) + 1:
            at = len(lines) - 1
            print(f"the binary died (status {answer.returncode}) on:\n{json.dumps(batch[at])}\n{answer.stderr[-2000:]}")
            return 1
        for x, line in zip(batch, lines):
            want, got = expected(x["template"], x["context"]), json.loads(line)
            if skipped(x["template"], want):
                continue
            if "text" in want and any(r in got.get("error", "") for r in REFUSALS):
                refused += 1
                continue
            checked += 1
            succeeded += "text" in want
            if ("text" in want) != ("text" in got) or ("text" in want and want["text"] != got["text"]):
                differences.append((len(x["template"]), x, want, got))
        print(f"\r{start + len(batch)} done, {len(differences)} differences", end="", file=sys.stderr, flush=True)
    print(f"{checked} compared, Jinja2 succeeded on {succeeded}, {refused} refused on purpose, {len(differences)} differences")
    differences.sort(key=lambda d: d[0])
    for _, x, want, got in differences[:a.show]:
        template = x["template"].removeprefix(Programs.HEAD).replace(Programs.MACROS, "...")
        print("---\ntemplate:", repr(template), *(["\ncontext:", x["context"]] if a.context else []), "\nwant:", want, "\ngot: ", got)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
