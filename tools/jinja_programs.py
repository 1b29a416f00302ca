"""Random Jinja programs that mostly run: expressions are made by type, from variables whose types are known.

Used by compare_jinja.py beside its wild generator, whose programs mostly fail. Every name a program can read is in the context with
the type that the generator assumes: s w k s2: str; n i n2: int; f: float; t: bool; nums: [int]; words: [str]; l: list; d: {str: any};
m and the items of messages: {role, content, ...}; tree: nested {name, kids}; ns: a namespace.
"""
import random

TEXTS = ["", "a", "user", "system", "Hello World", "  pad  ", "x,y,,z", "line1\nline2\n", "Äpfel ß Σίσυφος", "日本語 テキスト", "it's", 'say "hi"',
         "<b>&amp;</b>", "12", "-3.5", "0", "1e3", "tab\tend", "emoji 😀!", "ǅ ﬁ İ", "back\\slash", "\u00a0nbsp\u2003", "CamelCase-word (x)",
         "TRUE", "\x7f\u200b", "ΑΣ ΑΣΣ.", "ŉ ǰ ΐ", "0x1f", "<think>\nhm\n</think>\n\nyes", "a b  c   d", "one\r\ntwo", "a=b;c=d", "ⅷ²½ ٣", "ﬀi ẞ"]


class Programs:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.loops = 0
        self.macros = False

    def pick(self, *options):
        return self.r.choice(options)

    def chance(self, p):
        return self.r.random() < p

    # --- data ---
    def text(self):
        return self.r.choice(TEXTS)

    def value(self, depth=2):
        k = self.r.randrange(9 if depth > 0 else 6)
        if k == 0:
            return None
        if k == 1:
            return self.chance(0.5)
        if k == 2:
            return self.pick(0, 1, -1, 7, 42, 2**31, 2**53 + 1, -2**63, 2**64 - 1, 10**15)
        if k == 3:
            return self.pick(0.0, 1.5, -2.25, 3.0, 1e20, 1e-7, 0.1, 2.5, 123456.789, 1e16, 100.0, -0.0, 5e-324, 1.7976931348623157e308)
        if k < 6:
            return self.text()
        if k == 6:
            return [self.value(depth - 1) for _ in range(self.r.randrange(4))]
        return {self.pick("a", "b", "role", "content", "name", "ключ", "k k", "Zed", "0"): self.value(depth - 1) for _ in range(self.r.randrange(4))}

    def tree(self, depth):
        return [{"name": self.text(), "n": self.r.randrange(5), "kids": self.tree(depth - 1) if depth > 0 else []}
                for _ in range(self.r.randrange(3))]

    def context(self):
        messages = []
        for i in range(self.r.randrange(1, 5)):
            m = {"role": self.pick("user", "assistant", "system", "tool"), "content": self.text()}
            if self.chance(0.2):
                m["tool_calls"] = [{"id": "c1", "function": {"name": "f", "arguments": {"x": self.value(1)}}}]
            messages.append(m)
        d = {k: self.value(1) for k in self.r.sample(["a", "b", "role", "content", "ключ", "Zed", "c"], self.r.randrange(1, 6))}
        return {"s": self.text(), "w": self.text(), "k": self.text(), "n": self.r.randrange(-4, 12), "i": self.r.randrange(5), "t": self.chance(0.7),
                "f": self.pick(0.5, 2.0, -1.5, 10.25, 2.675, 1e22), "z": None, "l": [self.value(1) for _ in range(self.r.randrange(5))],
                "nums": [self.r.randrange(-5, 9) for _ in range(self.r.randrange(1, 6))], "words": [self.text() for _ in range(self.r.randrange(1, 5))],
                "d": d, "messages": messages, "m": messages[0], "v": self.value(), "tree": self.tree(3), "tools": self.pick(None, [{"type": "function"}]),
                "add_generation_prompt": self.chance(0.5)}

    # --- expressions by type ---
    def quoted(self, s=None):
        s = self.text() if s is None else s
        s = s.replace("{{", "{ {").replace("\r", "")
        body = s.replace("\\", "\\\\").replace("'", "\\'").replace("\n", self.pick("\\n", "\n")).replace("\t", "\\t")
        return "'" + body + "'"

    def str(self, d):
        if d <= 0:
            return self.pick("s", "w", "k", "s2", self.quoted(), self.quoted(), "m.role", "m['content']", "messages[0].content", "messages[-1]['role']",
                             "words[0]", "ns.b")
        s = lambda: self.str(d - 1)  # noqa: E731
        r = self.r.randrange(17)
        if r < 4:
            return f"{self.prim(s())}{self.strmethod(d - 1)}"
        if r < 8:
            return f"{self.prim(s())}|{self.strfilter(d - 1)}"
        if r == 8:
            return f"({self.any(d - 1)} ~ {self.any(d - 1)})"
        if r == 9:
            return f"({s()} + {s()})"
        if r == 10:
            return f"({s()} if {self.bool(d - 1)} else {s()})"
        if r == 11:
            return f"{self.prim(s())}[{self.slice()}]"
        if r == 12:
            return f"({self.list(d - 1)}|{self.pick('join', 'join(', ')', 'tojson', 'string', 'tojson(indent=2)')})".replace("join(, )", "join(', ')")
        if r == 13:
            return f"{self.pick('v', 'd', 'm', 'l', 'n', 'f', 'messages', self.any(d - 1))}|tojson{self.pick('', '', '(indent=2)', '(indent=4)', '(ensure_ascii=true)', '(ensure_ascii=False, indent=1)', '''(separators=(',', ':'))''')}"
        if r == 14:
            return self.percent(d - 1)
        if r == 15:
            return self.brace(d - 1)
        if self.macros and self.chance(0.7):
            return self.pick(f"mac({self.any(d - 1)})", f"mac({s()}, b={self.any(d - 1)})", f"many(1, {s()}, k={self.any(d - 1)}, j=2)", f"mac(a={self.int(d - 1)})",
                             f"many(*{self.list(0)})", f"mac(*[{s()}])", f"many(**{{'q': {self.int(0)}}})")
        return f"({self.any(d - 1)}|string)"

    def prim(self, e):
        return e if e.isidentifier() or (e[0] == "(" and e[-1] == ")" and e.count("(") == 1) else f"({e})"

    def strmethod(self, d):
        e = self.str(0)
        return "." + self.pick(
            "strip()", "lstrip()", "rstrip()", "upper()", "lower()", "title()", "capitalize()", "swapcase()", "casefold()", f"replace({e}, 'Q')",
            "replace('l', 'LL', 1)", "replace('', '-')", "strip('aH \\n')", "lstrip('<b>')", "rstrip('!d\\n')", "zfill(8)", "center(11, '*')", "ljust(9)",
            "rjust(9, '.')", "removeprefix('H')", "removesuffix('d')", f"join({self.strlist(d - 1)})", "split(' ')[0]", "split(',')[-1]",
            "partition(' ')[2]", "rpartition('l')[0]", "split('</think>')[-1].lstrip('\\n')", "expandtabs(4)", "replace('a', 'b').replace('b', 'c')")

    def strfilter(self, d):
        e = self.str(0)
        return self.pick(
            "upper", "lower", "title", "capitalize", "trim", "string", "replace('l', 'LL')", f"replace('a', {e})", "indent", "indent(2)", "indent(2, true)",
            "indent(width=3, blank=true)", "truncate(8)", "truncate(9, true)", "truncate(5, false, '…', 0)", "center(13)", "trim('aH')", "escape", "e", "safe",
            "default('D')", f"default({e}, true)", "reverse", "first|default('q')", "last|default('q')", "tojson", "trim|upper", "lower|title",
            "list|join('.')", "replace('o', '0', 1)", "urlencode", "forceescape", "batch(3)|list|string",
            "d('x', boolean=true)", "center(width=9)", "select|join", "map('upper')|join('')")

    def percent(self, d):
        spec, arg = self.pick(("%s", self.any(d)), ("%d", self.int(d)), ("%5.2f", self.num(d)), ("%x", "n|abs"), ("%-6s|", self.str(d)), ("%06d", self.int(d)),
                              ("%+d", self.int(d)), ("%e", self.num(d)), ("%g", self.num(d)), ("%r", self.any(d)), ("%%%s", self.int(d)), ("%.2s", self.str(d)),
                              ("%c", "65"), ("%o", "n|abs"), ("%#x", "255"), ("%10.3e", self.num(d)))
        form = self.pick("plain", "filter", "dict", "pair")
        if form == "plain":
            return f"('[{spec}]' % ({arg},))"
        if form == "filter":
            return f"('[{spec}]'|format({arg}))"
        if form == "dict":
            return f"('[%(q)s{spec.replace('%', '%(q)', 1) if not spec.startswith('%%') else ''}]' % {{'q': {arg}}})"
        return f"('{spec} %s' % ({arg}, {self.any(d)}))"

    def brace(self, d):
        return self.pick(f"'{{}}-{{}}'.format({self.any(d)}, {self.any(d)})", f"'{{0:>8}}|{{1:<5}}|'.format({self.str(d)}, {self.int(d)})",
                         f"'{{a:^9}}'.format(a={self.str(d)})", f"'{{:.3f}}'.format({self.num(d)})", f"'{{:05d}}'.format({self.int(d)})",
                         f"'{{:,}}'.format({self.int(d)})", f"'{{!r}}'.format({self.any(d)})", f"'{{:x}}'.format(n|abs)", f"'{{0[0]}}'.format(words)",
                         f"'{{:e}} {{:g}}'.format({self.num(d)}, {self.num(d)})", f"'{{:*>{{}}}}'.format({self.str(d)}, 7)", f"'{{m[role]}}'.format(m=m)",
                         f"'{{:%}}'.format(f)", f"'{{:+}} {{: d}}'.format(n, n)", f"'{{:#x}} {{:b}} {{:o}}'.format(n|abs, n|abs, n|abs)", "'{{}}'.format()")

    def int(self, d):
        if d <= 0:
            names = ["n", "i", "n2", "ns.a", str(self.r.randrange(12)), "0x1f", "1_000", "true"]
            if self.loops:
                names += ["loop.index", "loop.index0", "loop.length", "loop.revindex", "loop.revindex0", "loop.depth"]
            return self.r.choice(names)
        e = lambda: self.int(d - 1)  # noqa: E731
        return self.pick(f"({e()} + {e()})", f"({e()} - {e()})", f"({e()} * {e()})", f"({e()} // {self.pick('2', '3', '-2', '7')})",
                         f"({e()} % {self.pick('2', '3', '-5', '7')})", f"{self.prim(self.list(d - 1))}|length", f"{self.prim(self.str(d - 1))}|length", "nums|sum",
                         "nums|max", "nums|min", f"{self.prim(self.str(d - 1))}.find({self.str(0)})", f"{self.prim(self.str(d - 1))}.count({self.quoted('a')})",
                         f"({self.str(d - 1)}|int)", f"({self.num(d - 1)}|int)", f"-{self.pick('n', 'i', '3')}", f"({e()}|abs)", f"({e()} if {self.bool(d - 1)} else {e()})",
                         f"{self.prim(self.str(0))}|wordcount", "('ff'|int(0, 16))", f"(2 ** (i))", "nums[0]", "nums[-1]", "(nums|first)", "range(3, 9)[2]",
                         f"({self.bool(d - 1)}|int)", "(words|map('length')|sum)", f"{self.prim(self.str(0))}.rfind('l')", "(n ** 2)", "('12'|int(base=8))")

    def num(self, d):
        if self.chance(0.5):
            return self.int(d)
        if d <= 0:
            return self.pick("f", "1.5", "0.25", "2e3", "3.0", "1e-7", "-2.5")
        return self.pick(f"({self.num(d - 1)} / {self.pick('2', '3', '0.5')})", f"({self.num(d - 1)} + {self.num(d - 1)})", f"({self.num(d - 1)} * {self.num(d - 1)})",
                         f"({self.num(d - 1)}|round({self.pick('', '1', '2', '0', '-1')}))", f"({self.num(d - 1)}|float)", "(f|abs)", f"(f // 2)", "(f % 2)",
                         f"({self.str(0)}|float)", f"({self.num(d - 1)}|round({self.pick('1', '0')}, '{self.pick('floor', 'ceil')}'))")

    def bool(self, d):
        if d <= 0:
            names = ["t", "true", "false", "s", "n", "z", "l", "d", "add_generation_prompt", "tools", "nothing"]
            if self.loops:
                names += ["loop.first", "loop.last", "loop.first", "loop.last"]
            return self.r.choice(names)
        b = lambda: self.bool(d - 1)  # noqa: E731
        return self.pick(f"({b()} and {b()})", f"({b()} or {b()})", f"not {b()}", f"{self.int(d - 1)} {self.op()} {self.int(d - 1)}", f"{self.any(d - 1)} == {self.any(d - 1)}",
                         f"({self.any(d - 1)} != {self.any(d - 1)})", f"{self.prim(self.str(d - 1))}.startswith({self.str(0)})", f"{self.prim(self.str(d - 1))}.endswith(('d', 'o', '!'))",
                         f"{self.str(d - 1)} in {self.str(d - 1)}", f"{self.str(0)} not in {self.pick('d', 'words', 'm')}", f"{self.any(0)} in {self.list(0)}",
                         f"{self.prim(self.any(d - 1))} is {self.pick('', 'not ')}{self.test()}", f"{self.int(0)} < {self.int(0)} <= {self.int(0)}", f"{self.num(0)} {self.op()} {self.num(0)}",
                         f"{self.prim(self.str(0))}.{self.pick('isdigit', 'isalpha', 'isupper', 'islower', 'isspace', 'isalnum', 'istitle', 'isdecimal', 'isnumeric', 'isidentifier', 'isascii', 'isprintable')}()",
                         f"({self.str(0)} {self.op()} {self.str(0)})", f"{self.list(0)} == {self.list(0)}", "nothing is defined", "d.zzz is undefined", f"({self.int(0)} is {self.pick('odd', 'even', 'divisibleby 3', 'divisibleby(2)')})",
                         "m.tool_calls is defined and m.tool_calls", "'role' in m", f"{self.str(0)} is in words", "n is gt 3", f"{self.str(0)} is eq {self.str(0)}", f"{self.str(0)} is {self.pick('lower', 'upper')}")

    def op(self):
        return self.pick("<", "<=", ">", ">=", "==", "!=")

    def test(self):
        return self.pick("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable", "true", "false",
                         "callable", "sameas none", "sameas true", "eq 1", "ne 'a'", "escaped", "in [1, 'a', none]")

    def strlist(self, d):
        if d <= 0:
            return self.pick("words", "words", "['b', 'a', 'C']", "('x', 'y')")
        return self.pick(f"{self.prim(self.str(d - 1))}.split()", f"{self.prim(self.str(d - 1))}.split({self.pick(repr(','), repr(' '), 'none, 1', repr('l') + ', 1')})", "words|map('upper')|list",
                         "words|sort", "words|unique|list", "(words|reverse|list)", f"{self.prim(self.str(d - 1))}.splitlines()", "words|select|list", f"words[{self.slice()}]",
                         "messages|map(attribute='role')|list", "d.keys()|list", "d|list", "words", f"{self.prim(self.str(0))}|list",
                         "messages|map(attribute='content')|map('trim')|list", f"{self.prim(self.str(0))}.rsplit('l', 1)", "words|sort(reverse=true)", "words|sort(case_sensitive=true)",
                         "words|reject('equalto', 'a')|list", "words|map('replace', 'a', 'A')|list", "words|map('default', 'x')|list", "words|map('truncate', 4, true, '')|list")

    def list(self, d):
        if d <= 0:
            return self.pick("l", "nums", "words", "messages", "l2", "[1, 'a', none]", "[]", "(1, 2.5)", "range(4)", "ns.c", "[[1, 2], [3]]", "tree")
        return self.pick(
            self.strlist(d), self.strlist(d), f"[{self.any(d - 1)}, {self.any(d - 1)}]", "nums|sort", "nums|sort(reverse=true)", "nums|select('odd')|list", "nums|select('>', 2)|list",
            "nums|reject('even')|list", "nums|map('string')|list", f"nums[{self.slice()}]", f"l[{self.slice()}]", "messages|selectattr('role', 'equalto', 'user')|list",
            "messages|rejectattr('role', 'in', ['user', 'tool'])|list", "messages|sort(attribute='content')", "messages|selectattr('tool_calls', 'defined')|list", "range(5, 0, -2)|list",
            f"(nums + [{self.any(d - 1)}])", "nums * 2", "d.items()|list", "d|dictsort", "d|items|list", "d.values()|list", "messages|groupby('role')|list", "words|batch(2)|list",
            "words|batch(3, 'F')|list", "nums|slice(2)|list", "nums|slice(3, 'x')|list", "nums|unique|list", "l|reverse|list", f"({self.list(d - 1)} if {self.bool(d - 1)} else {self.list(d - 1)})",
            "messages|map(attribute='tool_calls', default=[])|list", "tree|map(attribute='name')|list", "d|dictsort(reverse=true)", "(d.items()|list)[:1]", "words|map('length')|list",
            "messages|groupby('role')|map('first')|list", "messages|map(attribute='role')|unique|list", "nums|map('float')|list", "nums|list",
            "tree|sort(attribute='n,name')", "tree|min(attribute='n')|default({})|list", "[[3, 'a'], [1, 'b']]|sort", "messages|map('attr', 'role')|list", "nums|map('round', 1, 'floor')|list")

    def slice(self):
        part = lambda: self.pick("", "", "1", "-1", "2", "n", "none", "-3", "i")  # noqa: E731
        return f"{part()}:{part()}" + (f":{self.pick('', '1', '2', '-1', '-2')}" if self.chance(0.4) else "")

    def dict(self, d):
        if d <= 0:
            return self.pick("d", "m", "messages[0]", "{}", "{'a': 1}")
        return self.pick(f"{{{self.quoted()}: {self.any(d - 1)}, 'b': {self.any(d - 1)}}}", f"dict(a={self.any(d - 1)})", "dict(d, q=1)", "d", "m", "dict(d.items())",
                         "dict([('x', 1)])", "{'a': {'b': [1, {'c': none}]}}", "{1: 'x', 2.5: 'y', none: 'z', true: 't'}", "{(1, 2): 'tuple'}", "dict.fromkeys(words, 0)")

    def any(self, d):
        k = self.r.randrange(14)
        if k < 4:
            return self.str(d)
        if k < 6:
            return self.int(d)
        if k == 6:
            return self.num(d)
        if k == 7:
            return f"({self.bool(d)})"
        if k == 8:
            return self.prim(self.list(d))
        if k == 9:
            return self.dict(d)
        if k == 10:
            return self.pick("v", "z", "none", "t", "l[0]", "d.a", "d['b']", "d.get('a')", "d.get('zz', 1)", "nothing", "m.get('content')", "d.missing", "words[99]", "v|default('q')")
        if k == 11 and self.loops:
            return self.pick("loop.previtem", "loop.nextitem", "loop.cycle('a', 'b', 'c')", "loop.changed(n)", "loop.changed(i)", "loop.index", f"loop.changed({self.str(0)})")
        if k == 12:
            return f"({self.any(d - 1)} if {self.bool(d - 1)})" if d > 0 else "v"
        return self.pick("ns.a", "ns.b", "ns.c", "ns.missing", "s2", "n2", "l2", "namespace(q=1).q")

    # --- statements ---
    def ws(self):
        return self.pick("", "", "", " ", "\n", "\n  ", "text", " a\n", "é", "{ }", "\t", "%", "\n\n", "'\"", "\n    \n", "<|im_start|>")

    def tag(self, body):
        return "{%" + self.pick("", "", "-", "+") + " " + body + " " + self.pick("", "", "-", "+") + "%}"

    def out(self, depth):
        return "{{" + self.pick("", "", "-") + " " + self.any(depth) + " " + self.pick("", "", "-") + "}}"

    def block(self, depth):
        parts = []
        for _ in range(self.r.randrange(1, 4)):
            parts += [self.ws(), self.stmt(depth)]
        return "".join(parts) + self.ws()

    def detached(self, depth):
        """A body that a loop outside does not reach."""
        loops, self.loops = self.loops, 0
        body = self.block(depth)
        self.loops = loops
        return body

    def stmt(self, depth):
        if depth <= 0 or self.chance(0.35):
            return self.out(2)
        k = self.r.randrange(17)
        if k < 3:
            s = self.tag("if " + self.bool(2)) + self.block(depth - 1)
            if self.chance(0.3):
                s += self.tag("elif " + self.bool(1)) + self.block(depth - 1)
            if self.chance(0.5):
                s += self.tag("else") + self.block(depth - 1)
            return s + self.tag("endif")
        if k < 7:
            return self.loop(depth)
        if k < 10:
            return self.tag(self.pick(f"set s2 = {self.str(2)}", f"set n2 = {self.int(1)}", f"set l2 = {self.list(1)}", f"set s2, n2 = {self.str(1)}, {self.int(1)}", f"set ns.a = {self.int(1)}",
                                      f"set ns.b = {self.str(1)}", "set ns.a = ns.a + 1", f"set ns.c = {self.list(1)}", f"set v = {self.any(2)}"))
        if k == 10:
            return self.tag("set s2" + self.pick("", "", " | upper", " | trim", " | replace('a', 'b')")) + self.block(depth - 1) + self.tag("endset")
        if k == 11:
            return self.tag("filter " + self.pick("upper", "trim", "replace('a', 'b')", "indent", "lower | trim", "indent(2, true)", "title")) + self.block(depth - 1) + self.tag("endfilter")
        if k == 12:
            return self.tag("with " + self.pick(f"s2 = {self.str(1)}", f"n2 = {self.int(1)}, s2 = {self.str(1)}", f"l2 = {self.list(1)}")) + self.block(depth - 1) + self.tag("endwith")
        if k == 13:
            return self.pick("{# comment #}", "{#- c -#}", "{# a\nb #}", "{% raw %} {{ x }} {% y {% endraw %}", "{%- raw -%}\n {{ \n{%- endraw -%}\n", "{{ strftime_now('%Y-%m-%d %H:%M %B %b %j') }}",
                             self.tag("generation") + self.detached(depth - 1) + self.tag("endgeneration"), self.tag(f"print {self.any(1)}, {self.str(1)}"))
        if k == 14 and self.loops:
            return self.tag(f"if {self.bool(1)}") + self.tag(self.pick("break", "continue")) + self.tag("endif")
        if k == 15 and self.macros:
            return self.tag(self.pick("call mac(1)", f"call mac({self.any(1)})", "call(q) give(n)", f"call(q, r='d') give({self.str(0)})", "call many()")) + self.detached(depth - 1) + self.tag("endcall")
        if k == 16:
            self.macros, macros = False, self.macros
            name = self.pick("mac", "own")
            body = self.detached(depth - 1)
            self.macros = macros
            return self.tag(f"macro {name}(a, b={self.any(0)}, c=a)") + body + self.pick("", "{{ a }}{{ b }}", "{{ c }}", "{{ caller is defined }}", "{{ caller() if caller }}", "{{ varargs }}{{ kwargs }}") + self.tag("endmacro")
        return self.out(3)

    def loop(self, depth):
        head, source = self.pick(("i", "nums"), ("i", "range(n2 % 5)"), ("w", "words"), ("w", self.strlist(1)), ("m", "messages"), ("k, v", "d.items()"), ("v", self.list(1)), ("m", "messages[1:]"),
                                 ("k", "d"), ("w", "s"), ("k, v", "d|dictsort"), ("m", "messages|rejectattr('role', 'equalto', 'system')"), ("i, w", "[(1, 'x'), (2, 'y')]"), ("v", "messages|groupby('role')"),
                                 ("i", "range(5, 0, -2)"), ("k, v", "d|items"), ("w", "words|map('trim')"), ("i", "nums|select('odd')"), ("tree_node", "tree"))
        self.loops += 1
        if head == "tree_node":
            inner = self.block(max(depth - 2, 0))
            s = self.tag(f"for tree_node in tree{self.pick('', ' if tree_node.n > 0')} recursive") + "{{ tree_node.name }}:{{ loop.depth }}" + inner + self.pick("", "{{ loop.index }}")
            s += self.tag("if tree_node.kids") + "({{ loop(tree_node.kids) }})" + self.tag("endif")
        else:
            s = self.tag(f"for {head} in {source}{' if ' + self.plain_bool() if self.chance(0.2) else ''}") + self.block(depth - 1)
        self.loops -= 1
        if self.chance(0.25):
            s += self.tag("else") + self.block(depth - 1)
        return s + self.tag("endfor")

    def plain_bool(self):
        loops, self.loops = self.loops, 0
        b = self.bool(1)
        self.loops = loops
        return b

    HEAD = "{% set ns = namespace(a=1, b='x', c=[]) %}{% set s2 = 'q' %}{% set n2 = 3 %}{% set l2 = [1, 2] %}"
    MACROS = ("{% macro mac(a, b=2) %}<{{ a }}|{{ b }}{{ caller() if caller }}>{% endmacro %}{% macro many() %}{{ varargs }}{{ kwargs }}"
              "{{ caller() if caller }}{% endmacro %}{% macro give(a) %}[{{ caller(a) }}{{ caller('z') }}]{% endmacro %}")

    def template(self):
        head = self.HEAD
        if self.chance(0.6):
            self.macros = True
            head += self.MACROS
        return head + self.block(self.r.randrange(1, 5)) + self.pick("", "", "\n", "\n\n")
